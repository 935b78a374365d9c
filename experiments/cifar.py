"""CIFAR-100 with ResNet-20 (SIM paper, Table 1, Figures 2 and 3): `python -m experiments cifar`.

The last block of a trained ResNet-20 and its classifier are replaced by an implicit model that is fitted to their
states. This variant is for a processor: images averaged over 4×4 pixels, a network trained for a few epochs, once.
`cifar-full` is the same at 32×32 pixels and 200 epochs, for a GPU.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from matplotlib.figure import Figure

import simjax
from benchmarks.records import ROOT, Record, places, table
from experiments.experiment import Experiment, Settings, all_certified, certified, grouped, spread
from experiments.train_resnet import Recipe, held_out_part, pixels, trained, training_part
from simjax import datasets
from simjax.datasets import ImageDataset
from simjax.implicit.model import ImplicitModel
from simjax.nn import ResNet
from simjax.rows.solution import dense_rows

# Objectives: name, penalty, μ/α.
OBJECTIVES: dict[str, tuple[str, float | None]] = {
    "perspective": ("perspective", 1.0),
    "l1": ("l1", None),
}
TITLES = {
    "perspective": "perspective, μ = α (the paper's)",
    "l1": "L1",
    "pruned": "magnitude pruning",
}
# Accuracy lost on held-out training images that a setting may cost, in points: the two kinds of rows of Table 1.
ALLOWED = (0.2, 1.0)
# Method, setting, change of accuracy in points, sparsity in % as printed: SIM paper, Table 1.
PRINTED = (
    ("SSS", "P1 Fig. 3(c)", -3.7, 44.4),
    ("SSS", "P2 Fig. 3(c)", -1.3, 14.8),
    ("SPR", "λ = 1.0, α = 0.1", -2.3, 45.9),
    ("SPR", "λ = 1.3, α = 0.3", -0.2, 31.5),
    ("MLA", "ResNet-18", -3.0, 50.0),
    ("MLA", "ResNet-18", -2.5, 30.0),
    ("SIM", "perspective", -1.0, 48.1),
    ("SIM", "perspective", -0.2, 29.7),
)
PRINTED_BASELINE = 75.8  # test accuracy of the paper's ResNet-20 in % (§4.1)
KEYS = ("kind", "objective", "m", "alpha", "seed")


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is trained, replaced and fitted.

    Attributes:
      recipe: of the network's training.
      layers: how many layers of activations, from the last one back, the implicit model replaces with the classifier.
      samples: m of the path over alphas.
      fewer: the other m, in rising order.
      alphas: of the path, for the mean loss.
      quick: its small version.
      max_memory: bytes for the rows that are solved at once; None means all rows.
    """

    recipe: Recipe
    layers: int = 2
    samples: int = 10_000
    fewer: tuple[int, ...] = (500, 2000)
    alphas: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    quick: Variant | None = None
    max_memory: float | None = None


QUICK = Variant(
    Recipe(epochs=2, learning_rate=0.2, schedule="linear", resolution=8, width=4, samples=2000),
    samples=500,
    fewer=(200,),
    alphas=(2e-3, 2e-2),
)
SMALL = Variant(Recipe(epochs=4, learning_rate=0.2, schedule="linear", resolution=8), quick=QUICK)


def experiment(name: str, title: str, variant: Variant) -> Experiment:
    """The experiment on that variant."""
    return Experiment(
        name=name,
        title=title,
        keys=KEYS,
        run=functools.partial(run, name, variant),
        section=section,
        pictures=functools.partial(pictures, name),
    )


# --- Running ---------------------------------------------------------------------------------------------------------


def run(name: str, variant: Variant, settings: Settings) -> Iterator[Record]:
    """The network, then for each seed the paths and the fits to fewer samples."""
    data = datasets.load_cifar100()
    if not settings.quick:
        yield from measured(variant, settings, data, ROOT / "experiments" / "results" / f"{name}-resnet20.safetensors")
        return
    assert variant.quick is not None
    with tempfile.TemporaryDirectory() as folder:
        yield from measured(variant.quick, settings, data, Path(folder) / "network.safetensors")


def measured(variant: Variant, settings: Settings, data: ImageDataset, file: Path) -> Iterator[Record]:
    """All records of a variant, with the network in `file`, which is trained if it is not there."""
    began = time.perf_counter()
    if not file.is_file():
        trained(variant.recipe, data, file)
    part = Part.of(ResNet.load(file), variant, data)
    yield {
        **named("baseline", "none", 0, 0.0, variant.recipe.seed),
        **part.facts(),
        "training": json.loads(file.with_suffix(".json").read_text(encoding="utf-8")),
        "seconds": time.perf_counter() - began,
    }
    images, _ = training_part(data)
    images = images[: variant.recipe.samples]
    states = {}
    for seed in settings.seeds:
        chosen = np.random.default_rng(seed).permutation(len(images))[: variant.samples]
        states[seed] = part.network.states(pixels(images[chosen], variant.recipe.resolution), variant.layers)
    for objective in OBJECTIVES:
        for seed, mine in states.items():
            yield from fitted(variant, part, mine, objective, seed)


def fitted(variant: Variant, part: Part, states: simjax.States, objective: str, seed: int) -> Iterator[Record]:
    """The fits of one objective to one choice of images: the path, then fewer and fewer of the images."""
    penalty, ratio = OBJECTIVES[objective]
    path = simjax.path(states, penalty, alphas=variant.alphas, mu_ratio=ratio, **options(variant))
    found = []
    for alpha, fit in zip(variant.alphas, path.fits):
        record = {**named("path", objective, states.m, alpha, seed), **part.of_fit(fit)}
        found.append(record)
        yield record
    alpha = chosen_alpha(found, part.held_out_accuracy, ALLOWED[-1])
    for m in variant.fewer:
        # The paper's loss is a sum: with fewer samples a penalty of the same weight counts for more.
        weight = alpha * states.m / m
        mu = None if ratio is None else ratio * weight
        fit = simjax.fit(states.subset(m), penalty, alpha=weight, mu=mu, **options(variant))
        yield {**named("samples", objective, m, alpha, seed), **part.of_fit(fit)}


def named(kind: str, objective: str, m: int, alpha: float, seed: int) -> Record:
    """The entries that tell records apart."""
    return dict(zip(KEYS, (kind, objective, m, float(alpha), seed)))


def options(variant: Variant) -> dict[str, Any]:
    """Arguments of every fit: the paper's ball, in the units of the network, on earlier layers only."""
    return {
        "kappa": 0.99,
        "support": "feedforward",
        "reduction": "mean",
        "fit_intercept": "penalised",
        "max_memory": variant.max_memory,
    }


def chosen_alpha(records: Sequence[Record], baseline: float, allowed: float) -> float:
    """The largest alpha of a path that costs at most `allowed` points on held-out images; else the best one."""
    within = [r["alpha"] for r in records if 100.0 * (baseline - r["held_out_accuracy"]) <= allowed]
    return max(within, default=max(records, key=lambda r: r["held_out_accuracy"])["alpha"])


@dataclasses.dataclass(frozen=True)
class Part:
    """The layers that are replaced, and the images on which they and their replacements are measured.

    Attributes:
      network: the whole network.
      model: the exact implicit form of its last layers and the classifier.
      parameters: how many weights and biases these have.
      whole_parameters: of all layers.
      pixels: of the last layer's activations, over which their mean is taken.
      held_out, test: inputs of these layers, and labels.
      held_out_accuracy, test_accuracy: of the network.
    """

    network: ResNet
    model: ImplicitModel
    parameters: int
    whole_parameters: int
    pixels: int
    held_out: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    held_out_accuracy: float
    test_accuracy: float

    @classmethod
    def of(cls, network: ResNet, variant: Variant, data: ImageDataset) -> Part:
        """The last layers of a network, with their inputs on the held-out and the test images."""
        side, layers = variant.recipe.resolution, variant.layers
        model = network.export(layers, (side, side))
        sets = []
        for images, labels in (held_out_part(data), (data.test_images, data.test_labels)):
            sets.append((network.inputs(pixels(images, side), layers), labels))
        return cls(
            network=network,
            model=model,
            parameters=network.parameters_of(layers),
            whole_parameters=network.parameters_of(),
            pixels=(side // 4) ** 2,
            held_out=sets[0],
            test=sets[1],
            held_out_accuracy=model.accuracy(*sets[0]),
            test_accuracy=model.accuracy(*sets[1]),
        )

    def facts(self) -> Record:
        """Sizes and accuracies of the network, which stand in one record."""
        return {
            "n": self.model.n,
            "p": self.model.p,
            "q": self.model.q,
            "unrolled": self.model.nonzeros,
            "parameters": self.parameters,
            "whole_parameters": self.whole_parameters,
            "test_images": len(self.test[1]),
            "held_out_images": len(self.held_out[1]),
            "held_out_accuracy": self.held_out_accuracy,
            "test_accuracy": self.test_accuracy,
        }

    def of_fit(self, fit: simjax.FitResult) -> Record:
        """A fit's nonzeros and accuracies, and those of the network pruned to as many, where it has more."""
        model = fit.model
        record = {
            "nonzeros": model.nonzeros,
            "largest_weight": float(np.abs(dense_rows(fit.weights)).max()),
            "well_posedness": model.well_posedness,
            "held_out_accuracy": model.accuracy(*self.held_out),
            "test_accuracy": model.accuracy(*self.test),
            "seconds": fit.seconds,
            **certified(fit),
        }
        if model.nonzeros >= self.model.nonzeros:
            return {**record, "pruned_nonzeros": None, "pruned_test_accuracy": None}
        pruned = pruned_part(self.model, model.nonzeros, self.pixels)
        return {
            **record,
            "pruned_nonzeros": pruned.nonzeros,
            "pruned_test_accuracy": pruned.accuracy(*self.test),
        }


def pruned_part(model: ImplicitModel, nonzeros: int, pixels: int) -> ImplicitModel:
    """The exact form of some layers with at most `nonzeros` nonzeros left, by the magnitude of the network's weights.

    A convolution's weight stands in several rows and leaves all of them together. An entry of C is a weight of the
    classifier over the number of pixels, and is compared as the weight. Biases stay.

    Args:
      model: from `ResNet.export`.
      nonzeros: as `ImplicitModel.nonzeros` counts them, biases among them.
      pixels: over which C takes the mean.

    Raises:
      ValueError: if the biases alone are more.
    """
    factors = {"A": 1.0, "B": 1.0, "C": float(pixels)}
    matrices: dict[str, Any] = {name: sp.csr_array(getattr(model, name)).copy() for name in factors}
    sizes = np.concatenate([factor * np.abs(matrices[name].data) for name, factor in factors.items()])
    biases = model.nonzeros - np.count_nonzero(sizes)
    keep = nonzeros - biases
    if keep < 0:
        raise ValueError(f"nonzeros must be at least the {biases} biases, got {nonzeros}.")
    # Rounded, so that copies of one weight are equal; then the last size that still fits as a whole.
    values, counts = np.unique(np.round(sizes[sizes > 0.0], 12), return_counts=True)
    within = np.cumsum(counts[::-1]) <= keep
    least = values[::-1][within][-1] if within.any() else np.inf
    for name, factor in factors.items():
        matrix = matrices[name]
        matrix.data[np.round(factor * np.abs(matrix.data), 12) < least] = 0.0
        matrix.eliminate_zeros()
    return dataclasses.replace(model, **matrices)


# --- The page --------------------------------------------------------------------------------------------------------


def section(records: Sequence[Record]) -> str:
    """The network, Table 1, the paths, the fits to fewer samples, and where all were made."""
    base = next(record for record in records if record["kind"] == "baseline")
    fits = [record for record in records if record["kind"] != "baseline"]
    parts = [
        *_network(base),
        "### Table 1: beside other methods",
        "",
        *_table_1(base, fits),
        "",
        "### Figure 2: along the path of alphas",
        "",
        *_table(base, [r for r in fits if r["kind"] == "path"], "alpha", "α"),
        "",
        "### Figure 3: with fewer samples",
        "",
        *_table(base, _by_samples(fits), "m", "samples m"),
        "",
        "### Certificates and machine",
        "",
        f"{all_certified(fits)} The fits took {sum(r['seconds'] for r in fits):.0f} s in all, compilation included; "
        f"training took {base['training']['seconds']:.0f} s.",
        "",
        *places(records),
    ]
    return "\n".join(parts)


def _network(base: Record) -> list[str]:
    recipe = base["training"]["recipe"]
    return [
        f"ResNet-20 of width {recipe['width']} on images of {recipe['resolution']}×{recipe['resolution']} pixels, "
        f"trained once (seed {recipe['seed']}) for {recipe['epochs']:g} epochs of {base['training']['samples']:,} "
        f"images: **{100 * base['test_accuracy']:.1f} %** of {base['test_images']:,} test images "
        f"({100 * base['held_out_accuracy']:.1f} % of {base['held_out_images']:,} held-out training images); the "
        f"paper's has {PRINTED_BASELINE} %. Replaced by an implicit model with n = {base['n']:,} states, "
        f"p = {base['p']:,} inputs and q = {base['q']} outputs: its last layers and the classifier, "
        f"{base['parameters']:,} of its {base['whole_parameters']:,} parameters, or {base['unrolled']:,} nonzeros as "
        "the implicit model that they are.",
        "",
    ]


def _table_1(base: Record, fits: Sequence[Record]) -> list[str]:
    heads = ["method", "setting", "accuracy, points", "sparsity as printed %", "… of the parameters replaced %"]
    heads += ["… of their unrolled form %", "… of all parameters %"]
    rows = [[method, setting, f"{drop:+.1f}", f"{sparse:.1f}", "", "", ""] for method, setting, drop, sparse in PRINTED]
    paths = [record for record in fits if record["kind"] == "path"]
    for (objective,), records in grouped(paths, "objective").items():
        for allowed in ALLOWED:
            chosen = []
            for (_,), mine in grouped(records, "seed").items():
                alpha = chosen_alpha(mine, base["held_out_accuracy"], allowed)
                chosen += [record for record in mine if record["alpha"] == alpha]
            alphas = ", ".join(f"{alpha:g}" for alpha in sorted({record["alpha"] for record in chosen}))
            setting = f"{TITLES[objective]}, at most {allowed} points on held-out images: α = {alphas}"
            rows.append(["**here**", setting, _change(base, chosen), "", *_sparsities(base, chosen).values()])
    return table(heads, rows)


def _table(base: Record, fits: Sequence[Record], key: str, title: str) -> list[str]:
    heads = ["objective", title, "nonzeros", "sparsity, parameters %", "sparsity, unrolled %", "accuracy, points"]
    heads += ["pruned to as many nonzeros, points", "largest weight", "‖A‖∞"]
    rows = []
    for (objective, value), records in grouped(fits, "objective", key).items():
        sparse = _sparsities(base, records)
        pruned = [r["pruned_test_accuracy"] for r in records if r["pruned_test_accuracy"] is not None]
        cut = spread([share - base["test_accuracy"] for share in pruned], "+.2f", 100.0)
        rows.append(
            [
                TITLES[objective],
                f"{value:,g}",
                spread([r["nonzeros"] for r in records], ",.0f"),
                sparse["parameters"],
                sparse["unrolled"],
                _change(base, records),
                cut,
                f"{max(r['largest_weight'] for r in records):.2f}",
                f"{max(r['well_posedness'] for r in records):.2f}",
            ]
        )
    return table(heads, rows)


def _change(base: Record, records: Sequence[Record]) -> str:
    return spread([r["test_accuracy"] - base["test_accuracy"] for r in records], "+.2f", 100.0)


def _sparsities(base: Record, records: Sequence[Record]) -> dict[str, str]:
    """By what the nonzeros are measured against."""
    kept = base["whole_parameters"] - base["parameters"]
    return {
        "parameters": spread([sparsity(r["nonzeros"], base["parameters"]) for r in records], ".1f", 100.0),
        "unrolled": spread([sparsity(r["nonzeros"], base["unrolled"]) for r in records], ".1f", 100.0),
        "whole": spread([sparsity(r["nonzeros"] + kept, base["whole_parameters"]) for r in records], ".1f", 100.0),
    }


def sparsity(nonzeros: float, baseline: float) -> float:
    """1 − ‖M‖₀ / ‖N‖₀ (§4.1), a fraction; negative where the model has more than the baseline."""
    return 1.0 - nonzeros / baseline


def _by_samples(fits: Sequence[Record]) -> list[Record]:
    """The fits to fewer samples, and those of the path that they have their alpha from, by falling m."""
    fewer = [record for record in fits if record["kind"] == "samples"]
    wanted = {(record["objective"], record["seed"], record["alpha"]) for record in fewer}
    full = [r for r in fits if r["kind"] == "path" and (r["objective"], r["seed"], r["alpha"]) in wanted]
    order = list(OBJECTIVES)
    return sorted([*full, *fewer], key=lambda r: (order.index(r["objective"]), -r["m"], r["seed"]))


# --- Pictures --------------------------------------------------------------------------------------------------------

_COLOURS = {"perspective": "#0072B2", "l1": "#D55E00", "pruned": "#666666"}
_MARKERS = {"perspective": "o", "l1": "x", "pruned": "^"}


def pictures(name: str, records: Sequence[Record]) -> Mapping[str, Figure]:
    """Figure 2, accuracy against sparsity, and Figure 3, sparsity against samples."""
    base = next(record for record in records if record["kind"] == "baseline")
    fits = [record for record in records if record["kind"] != "baseline"]
    return {f"{name}-trade-off": _trade_off(base, fits), f"{name}-samples": _samples(base, fits)}


def _trade_off(base: Record, fits: Sequence[Record]) -> Figure:
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    paths = [record for record in fits if record["kind"] == "path"]
    for axes, whole, title in (
        (left, base["unrolled"], "‖N‖₀: unrolled form of the layers replaced"),
        (right, base["parameters"], "‖N‖₀: parameters of the layers replaced"),
    ):
        for (objective,), mine in grouped(paths, "objective").items():
            _curve(axes, objective, mine, "alpha", _sparse_of(whole), _points_of(base))
        # Pruned to the nonzeros of the first objective's models; those of the others say the same.
        first = paths[0]["objective"]
        pruned = [r for r in paths if r["objective"] == first and r["pruned_test_accuracy"] is not None]
        if pruned:
            _curve(axes, "pruned", pruned, "alpha", _sparse_of(whole), _points_of(base, "pruned_test_accuracy"))
        axes.axhline(0.0, color="black", linewidth=0.9, linestyle="--", label="baseline network")
        axes.set_xlabel("sparsity 1 − ‖M‖₀/‖N‖₀ (%)")
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.25)
    left.set_ylabel(f"test accuracy, points from {100 * base['test_accuracy']:.1f} %")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _samples(base: Record, fits: Sequence[Record]) -> Figure:
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    total = base["training"]["samples"]
    for (objective,), mine in grouped(_by_samples(fits), "objective").items():
        share = _share_of(total)
        _curve(left, objective, mine, "m", share, _sparse_of(base["unrolled"]))
        _curve(right, objective, mine, "m", share, _points_of(base))
    left.axhline(0.0, color="black", linewidth=0.9, linestyle="--", label="baseline network")
    right.axhline(0.0, color="black", linewidth=0.9, linestyle="--")
    left.set_ylabel("sparsity, unrolled form (%)")
    right.set_ylabel(f"test accuracy, points from {100 * base['test_accuracy']:.1f} %")
    for axes in (left, right):
        axes.set_xlabel(f"training samples m (% of {total:,})")
        axes.grid(alpha=0.25)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


Measure = Callable[[Record], float]


def _sparse_of(whole: int) -> Measure:
    return lambda record: 100.0 * sparsity(record["nonzeros"], whole)


def _points_of(base: Record, key: str = "test_accuracy") -> Measure:
    return lambda record: 100.0 * (record[key] - base["test_accuracy"])


def _share_of(total: int) -> Measure:
    return lambda record: 100.0 * record["m"] / total


def _curve(axes: Any, objective: str, records: Sequence[Record], key: str, x: Measure, y: Measure) -> None:
    """Means over seeds, with the standard deviations of y, in the order of x."""
    points = []
    for mine in grouped(records, key).values():
        ys = [y(record) for record in mine]
        points.append((np.mean([x(record) for record in mine]), np.mean(ys), np.std(ys, ddof=1) if len(ys) > 1 else 0))
    xs, means, deviations = np.array(sorted(points)).T
    axes.errorbar(
        xs, means, deviations, color=_COLOURS[objective], marker=_MARKERS[objective], markersize=5, linewidth=1.3,
        capsize=2, label=TITLES[objective],
    )  # fmt: skip


EXPERIMENT = experiment("cifar", "CIFAR-100: sparsity of ResNet-20's last block", SMALL)
