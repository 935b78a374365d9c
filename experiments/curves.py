"""Sparsity against accuracy, and against the number of samples: the SIM paper's Figures 2 and 3, on Fashion-MNIST.

Two parts, each for two recipes, two or three penalties and every seed:

    trade-off    along a path of alphas: sparsity, and how much accuracy it costs (Figure 2)
    samples      at fixed settings: sparsity and accuracy for more and more samples (Figure 3)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

import simjax
from benchmarks.problems import KAPPA
from benchmarks.records import Record, places, table
from experiments.baselines import Split, baseline, sparsity
from experiments.experiment import (
    Experiment,
    Job,
    Settings,
    all_certified,
    at_sparsity,
    certified,
    grouped,
    one_after_another,
    spread,
)
from simjax.nn import MLP
from simjax.rescaling import eliminate_diagonal

NAME = "curves"
KEYS = ("part", "recipe", "penalty", "m", "alpha", "seed")
BASELINE = "well-trained"


class Recipe(NamedTuple):
    """How models are fitted.

    Attributes:
      told: what it is, for a page.
      options: of `simjax.fit`.
      samples, alphas: of the path.
      penalties: of the path.
      alpha: of the fits with more and more samples, which are made with `FEWER`.
    """

    told: str
    options: Mapping[str, Any]
    samples: int
    alphas: tuple[float, ...]
    penalties: tuple[str, ...]
    alpha: float


RECIPES: Mapping[str, Recipe] = {
    "paper": Recipe(
        "the paper's (rescaled units, sum of squares, A full)",
        {"reduction": "sum", "units": "rescaled", "support": "full"},
        500,
        (1e-1, 3e-2, 1e-2, 3e-3, 1e-3),
        ("l1", "perspective"),
        1e-3,
    ),
    "recommended": Recipe(
        "recommended (natural units, mean of squares, A without diagonal)",
        {"reduction": "mean", "units": "natural", "support": "hollow"},
        2000,
        (4e-3, 1.5e-3, 6e-4, 2e-4, 6e-5, 2e-5),
        ("l1", "perspective", "perspective-100th"),
        5e-4,
    ),
}


class Penalty(NamedTuple):
    """An objective of `simjax.fit`, μ/α where it has μ, and what α is for an L1 penalty of 1: 2√(αμ) = 1."""

    told: str
    objective: str
    mu_ratio: float | None
    scale: float
    colour: str


# The slope at zero of the perspective penalty is 2√(αμ). α is scaled so that all penalties have the same slope there:
# they then differ only in what they make of weights above √(μ/α), and of those the perspective penalty makes less.
PENALTIES: Mapping[str, Penalty] = {
    "l1": Penalty("L1", "l1", None, 1.0, "#0072B2"),
    "perspective": Penalty("perspective, μ = α", "perspective", 1.0, 0.5, "#D55E00"),
    "perspective-100th": Penalty("perspective, μ = α/100", "perspective", 0.01, 5.0, "#009E73"),
}
FEWER = ("l1", "perspective")
SAMPLES = (100, 500, 1000, 2000, 5000, 20_000)
QUICK_SAMPLES, QUICK_ALPHAS = (100, 200), 2
NO_DROP = 0.001  # accuracy lost, as a fraction, that counts as none


# --- Running -----------------------------------------------------------------------------------------------------


def jobs(settings: Settings) -> Iterator[Job]:
    """What there is to do."""
    for seed in settings.seeds:
        for name, recipe in RECIPES.items():
            for penalty in recipe.penalties:
                facts: Record = {"recipe": name, "penalty": penalty, "seed": seed}
                alphas = recipe.alphas[:QUICK_ALPHAS] if settings.quick else recipe.alphas
                m = min(QUICK_SAMPLES) if settings.quick else recipe.samples
                keys = tuple({**facts, "part": "trade-off", "m": m, "alpha": alpha} for alpha in alphas)
                yield Job(keys, functools.partial(of_path, keys, settings.quick))
        for m in QUICK_SAMPLES if settings.quick else SAMPLES:
            for name, recipe in RECIPES.items():
                for penalty in FEWER:
                    facts = {"recipe": name, "penalty": penalty, "seed": seed, "part": "samples", "m": m}
                    keys = ({**facts, "alpha": recipe.alpha},)
                    yield Job(keys, functools.partial(of_path, keys, settings.quick))


def of_path(every: Sequence[Record], quick: bool) -> Iterator[Record]:
    """The records of a path of fits, which agree in everything but alpha."""
    first = every[0]
    penalty = PENALTIES[first["penalty"]]
    network, split = _baseline(first["seed"], quick)
    states = simjax.collect_states(network, split.train_inputs[: first["m"]])
    path = simjax.path(
        states,
        penalty.objective,
        alphas=[penalty.scale * keys["alpha"] for keys in every],
        mu_ratio=penalty.mu_ratio,
        kappa=KAPPA,
        **RECIPES[first["recipe"]].options,
    )
    test = split.test_inputs, split.test_labels
    baseline_accuracy = network.export().accuracy(*test)
    for keys, result in zip(every, path.fits):
        accuracy = eliminate_diagonal(result.model).accuracy(*test)
        yield {
            **keys,
            "sparsity": sparsity(result.model, network),
            "nonzeros": result.model.nonzeros,
            "accuracy": accuracy,
            "baseline_accuracy": baseline_accuracy,
            "drop": baseline_accuracy - accuracy,
            "fit_seconds": result.seconds,
            **certified(result),
        }


@functools.lru_cache(maxsize=1)
def _baseline(seed: int, quick: bool) -> tuple[MLP, Split]:
    return baseline(BASELINE, seed, quick=quick)


# --- The page ----------------------------------------------------------------------------------------------------

SPARSITIES = (0.0, 0.2, 0.41, 0.6, 0.75)  # at which the penalties are compared; 41 % is the paper's, for CIFAR-100


def section(records: Sequence[Record]) -> str:
    """The records as tables."""
    parts = [
        "## Accuracy against sparsity",
        "",
        "![Accuracy lost against sparsity](../images/paper-curves-trade-off.png)",
    ]
    for name, recipe in RECIPES.items():
        mine = _select(records, "trade-off", name)
        if mine:
            parts += ["", f"### Recipe: {recipe.told}, m = {mine[0]['m']:,}", "", *equal_sparsity_table(mine)]
            parts += ["", *trade_off_table(mine)]
    parts += ["", "## Sparsity against the number of samples", ""]
    parts += ["![Sparsity against the number of samples](../images/paper-curves-samples.png)"]
    for name, recipe in RECIPES.items():
        mine = _select(records, "samples", name)
        if mine:
            parts += ["", f"### Recipe: {recipe.told}, α = {recipe.alpha:g} for L1", "", *samples_table(mine)]
    minutes = sum(record["wall_seconds"] for record in records) / 60
    return "\n".join([*parts, "", f"{all_certified(records)} They took {minutes:.0f} minutes.", "", *places(records)])


def equal_sparsity_table(records: Sequence[Record]) -> list[str]:
    """Accuracy lost at equal sparsity, and the largest sparsity without loss."""
    heads = ["penalty", *(f"lost at {100 * share:.0f} %" for share in SPARSITIES), "sparsest model without loss"]
    rows = []
    for (name,), mine in grouped(records, "penalty").items():
        seeds = list(grouped(mine, "seed").values())
        cells = [spread(at_sparsity(mine, share, lambda record: record["drop"]), ".2f", 100) for share in SPARSITIES]
        free = [100 * value for own in seeds for value in free_sparsity(own)]
        told = f"{spread(free)} ({len(free)} of {len(seeds)} seeds)" if free else "none"
        rows.append([PENALTIES[name].told, *cells, told])
    return table(heads, rows)


def free_sparsity(records: Sequence[Record]) -> list[float]:
    """The largest sparsity of a model of one seed that loses no more than `NO_DROP`; none if all do."""
    return [max(free)] if (free := [r["sparsity"] for r in records if r["drop"] <= NO_DROP]) else []


def trade_off_table(records: Sequence[Record]) -> list[str]:
    """The models of a path, a line for each alpha."""
    return _table(records, "α for L1", {f"{alpha:g}": mine for (alpha,), mine in grouped(records, "alpha").items()})


def samples_table(records: Sequence[Record]) -> list[str]:
    """Sparsity and accuracy lost, a line for each number of samples."""
    return _table(records, "samples", {f"{m:,}": mine for (m,), mine in sorted(grouped(records, "m").items())})


def _table(records: Sequence[Record], head: str, lines: Mapping[str, Sequence[Record]]) -> list[str]:
    """Sparsity and accuracy lost with each penalty, of the records of each line."""
    names = [name for (name,) in grouped(records, "penalty")]
    heads = [head, *(cell for name in names for cell in (f"{PENALTIES[name].told}: sparsity", "accuracy lost"))]
    return table(heads, [[told, *_cells(mine, names)] for told, mine in lines.items()])


def _cells(records: Sequence[Record], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        mine = [record for record in records if record["penalty"] == name]
        yield spread([record["sparsity"] for record in mine], scale=100)
        yield spread([record["drop"] for record in mine], ".2f", 100)


def _select(records: Sequence[Record], part: str, recipe: str) -> list[Record]:
    return [record for record in records if (record["part"], record["recipe"]) == (part, recipe)]


# --- Pictures ----------------------------------------------------------------------------------------------------


def pictures(records: Sequence[Record]) -> dict[str, Figure]:
    """Figure 2's kind of picture, and Figure 3's; a panel for each recipe."""
    return {
        f"{NAME}-trade-off": _picture(records, "trade-off", ("alpha",)),
        f"{NAME}-samples": _picture(records, "samples", ("m",)),
    }


def _picture(records: Sequence[Record], part: str, keys: tuple[str, ...]) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, len(RECIPES))
    for ax, (name, recipe) in zip(axes, RECIPES.items()):
        for (penalty,), mine in grouped(_select(records, part, name), "penalty").items():
            points = sorted(_point(group, part) for group in grouped(mine, *keys).values())
            x, y, error = zip(*points)
            style: dict[str, Any] = {"color": PENALTIES[penalty].colour, "marker": "o", "ms": 4, "capsize": 2}
            if penalty == "perspective":  # where it is the same as L1, both are to be seen
                style |= {"ms": 8, "mfc": "none", "ls": "--"}
            ax.errorbar(x, y, error, **style, label=PENALTIES[penalty].told)
        ax.axhline(0, color="#444444", ls="--", lw=1.2, label="baseline")
        ax.set_title(f"Recipe: {recipe.told}".replace(" (", "\n("), fontsize=9.5)
        if part == "samples":
            ax.set_xscale("log")
            ax.set_xlabel("samples m")
            ax.set_ylabel("sparsity (%)")
        else:
            ax.set_xlabel("sparsity (%)")
            ax.set_ylabel("test accuracy lost (percentage points)")
        ax.grid(alpha=0.3)
    drawn = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(drawn.values(), drawn.keys(), loc="outside upper center", ncols=4, fontsize=8.5, frameon=False)
    return figure


def _point(group: Sequence[Record], part: str) -> tuple[float, float, float]:
    """Abscissa, mean ordinate and its standard deviation over seeds."""
    sparse, drop = (100 * np.array([record[key] for record in group]) for key in ("sparsity", "drop"))
    x, y = (group[0]["m"], sparse) if part == "samples" else (float(sparse.mean()), drop)
    return x, float(y.mean()), float(y.std(ddof=1)) if len(group) > 1 else 0.0


EXPERIMENT = Experiment(
    name=NAME,
    title="Sparsity, accuracy and the number of samples on Fashion-MNIST (Figures 2 and 3)",
    keys=KEYS,
    run=one_after_another(jobs),
    section=section,
    pictures=pictures,
    jobs=jobs,
)
