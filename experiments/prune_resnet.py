"""All convolutions of a ResNet-20 on CIFAR-100 by `prune`, beside Table 1: `python -m experiments prune-resnet`.

The network is the one that the cifar experiment trained, of 8×8 pixels and four epochs. Its 19 convolutions and its
classifier are pruned together, zeros are counted among parameters, and nothing is trained afterwards.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import simjax
from benchmarks.pruning_peers import PEERS
from benchmarks.records import ROOT, Record, places, table
from experiments.cifar import ALLOWED, PRINTED, PRINTED_BASELINE
from experiments.experiment import (
    Experiment,
    Job,
    Settings,
    all_certified,
    certified_layers,
    grouped,
    one_after_another,
    spread,
)
from experiments.train_resnet import held_out_part, pixels, training_part
from simjax import datasets
from simjax.datasets import ImageDataset
from simjax.nn import ResNet
from simjax.pruning.batches import Batches
from simjax.pruning.networks.flax_networks import read_flax
from simjax.pruning.networks.linear_map import Network
from simjax.pruning.passes import Calls, seen_by
from simjax.pruning.patterns import Pattern
from simjax.pruning.statistics import LayerStatistics

NAME = "prune-resnet"
KEYS = ("method", "target", "seed")
ACCURACIES = ("test_accuracy", "held_out_accuracy", "test_accuracy_renormalised")
TARGETS = (0.8, 0.5, 0.9, 0.7, 0.6, 0.3)  # in this order, so that a run that is stopped has some of both ends
EVALUATED = (0.8, 0.9)  # levels of the method that calls `evaluate`, the slowest by far
EVERY_SEED = (0.8,)  # levels of `REPEATED` that are run with every seed; the others with the first
SAMPLES = 1000  # calibration images, from the training images by the seed
IMAGES = 500  # of one call of the network when its accuracy is measured

DENSE, LARGEST = "none", "magnitude, all layers together"
# Methods: arguments of `prune`, by what the page calls them.
PRUNED: dict[str, dict[str, Any]] = {
    "prune, layer": {"allocation": "layer"},
    "prune, global": {"allocation": "global"},
    "prune, global, evaluate": {"allocation": "global"},
    "prune, layer, original": {"allocation": "layer", "propagate": "original"},
}
LAYER, GLOBAL, EVALUATE, ORIGINAL = PRUNED
BY_STATISTICS = ("ALPS", "SparseGPT")  # of `PEERS`, those that look at what a layer sees
REPEATED = (GLOBAL, LAYER, ORIGINAL, *BY_STATISTICS)
TITLES = {
    DENSE: "the network itself",
    LAYER: '`prune`, `allocation="layer"`',
    GLOBAL: '`prune`, `allocation="global"`',
    EVALUATE: '`prune`, `allocation="global"`, `evaluate=`',
    ORIGINAL: '`prune`, `allocation="layer"`, `propagate="original"`',
    "ALPS": "ALPS, each layer",
    "SparseGPT": "SparseGPT, each layer",
    "magnitude": "magnitude, each layer",
    LARGEST: LARGEST,
}


# --- What is run -------------------------------------------------------------------------------------------------


def order(settings: Settings) -> list[tuple[str, float, int]]:
    """(method, zeros, seed) of all jobs, the most important first: a run that is stopped has made these."""
    first, *others = settings.seeds
    if settings.quick:
        return [(DENSE, 0.0, first), *((method, TARGETS[1], first) for method in TITLES if method != DENSE)]
    slow = [(EVALUATE, target, first) for target in EVALUATED]
    return [
        (DENSE, 0.0, first),
        *((method, target, first) for target in TARGETS for method in (*REPEATED, "magnitude", LARGEST)),
        slow[0],
        *((method, target, seed) for seed in others for target in EVERY_SEED for method in REPEATED),
        *slow[1:],
    ]


def jobs(settings: Settings) -> Iterator[Job]:
    """One for each method, share of zeros and seed."""
    work = Work(settings.quick)
    for method, target, seed in order(settings):
        keys = dict(zip(KEYS, (method, target, seed)))
        yield Job((keys,), functools.partial(work.measured, method, target, seed))


@dataclasses.dataclass(frozen=True)
class Source:
    """A trained network and images for it.

    Attributes:
      network: in evaluation mode.
      recipe: how it was trained.
      training: images (m, 32, 32, 3) of bytes on which it was trained.
      samples: how many of them are for calibration.
      held_out, test: images as the network sees them, and labels.
    """

    network: ResNet
    recipe: Record
    training: np.ndarray
    samples: int
    held_out: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    def calibration(self, seed: int) -> np.ndarray:
        """Training images as the network sees them, chosen by the seed."""
        chosen = np.random.default_rng(seed).permutation(len(self.training))[: self.samples]
        return pixels(self.training[chosen], self.recipe["resolution"])


def trained_source(data: ImageDataset, *, quick: bool) -> Source:
    """The network of the cifar experiment, and images of CIFAR-100; a few of them if `quick`."""
    file = ROOT / "experiments" / "results" / "cifar-resnet20.safetensors"
    recipe = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["recipe"]
    training, _ = training_part(data)
    sets = [
        (pixels(images[: 200 if quick else None], recipe["resolution"]), labels[: 200 if quick else None])
        for images, labels in (held_out_part(data), (data.test_images, data.test_labels))
    ]
    return Source(ResNet.load(file), recipe, training, 100 if quick else SAMPLES, *sets)


class Work:
    """What the jobs have in common; it is made when the first of them runs.

    Args:
      quick: with few images.
    """

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self._seen: tuple[int, Network, dict[str, LayerStatistics], float] | None = None

    @functools.cached_property
    def source(self) -> Source:
        return trained_source(datasets.load_cifar100(), quick=self.quick)

    def seen(self, seed: int) -> tuple[Network, dict[str, LayerStatistics], float]:
        """The network as its linear maps, what each sees in the trained network, and the CPU seconds that took.

        Only the last seed's are kept.
        """
        if self._seen is None or self._seen[0] != seed:
            began, images = time.process_time(), self.source.calibration(seed)
            network = read_flax(self.source.network, None, images[:IMAGES])
            names = list(network.maps)
            found = seen_by(network, None, names, Batches(images, again=True), Calls(names))
            statistics = {name: parts[0] for name, parts in found.items()}  # no convolution here is grouped
            self._seen = seed, network, statistics, time.process_time() - began
        return self._seen[1:]

    def measured(self, method: str, target: float, seed: int) -> Iterator[Record]:
        """The record of one job."""
        source = self.source
        images = source.calibration(seed)
        facts: Record = {"rows": 0, "rows_certified": 0, "worst_relative_gap": 0.0, "errors": {}, "ways": {}}
        began = time.process_time()  # not disturbed by what else the machine does
        if method == DENSE:
            network = source.network
        elif method in PRUNED:
            network, facts = pruned(source, images, method, target)
        elif method == LARGEST:
            network = largest(source.network, images[:IMAGES], target)
        else:
            maps, statistics, seeing = self.seen(seed)
            began = time.process_time() - (seeing if method in BY_STATISTICS else 0.0)
            network = by_peer(maps, statistics, method, target)
        seconds = time.process_time() - began
        again = renormalised(network, images)
        yield {
            **dict(zip(KEYS, (method, target, seed))),
            "samples": len(images),
            "test_images": len(source.test[1]),
            "held_out_images": len(source.held_out[1]),
            "recipe": source.recipe,
            "parameters": source.network.parameters_of(),
            **zeros(network),
            "test_accuracy": accuracy(network, *source.test),
            "held_out_accuracy": accuracy(network, *source.held_out),
            "test_accuracy_renormalised": accuracy(again, *source.test),
            "cpu_seconds": seconds,
            **facts,
        }


# --- Methods -----------------------------------------------------------------------------------------------------


def pruned(source: Source, images: np.ndarray, method: str, target: float) -> tuple[ResNet, Record]:
    """The network by `prune`, and what is proved of its rows."""
    arguments = dict(PRUNED[method])
    if method == EVALUATE:
        arguments["evaluate"] = lambda network: accuracy(network, *source.held_out)
    result = simjax.prune(source.network, images, target, **arguments)
    layers, ways = result.layers, result.evaluation
    proved = {
        **certified_layers(layers.values()),
        "errors": {name: layer.relative_error for name, layer in layers.items()},
        "ways": {} if ways is None else {one.name: one.metric for one in ways.candidates},
        "chosen": None if ways is None else ways.chosen,
    }
    return result.network, proved


def largest(network: ResNet, images: np.ndarray, target: float) -> ResNet:
    """The network with the largest weights of all layers together."""
    at_work = read_flax(network, None, images)
    sizes = [np.abs(linear.weight).ravel() for linear in at_work.maps.values()]
    everything = np.concatenate(sizes)
    kept = Pattern.make("unstructured", target, (1, everything.size)).project(everything[None])[0]
    parts = np.split(kept, np.cumsum([size.size for size in sizes])[:-1])
    for (name, linear), part in zip(at_work.maps.items(), parts):
        at_work.write(name, np.where(part.reshape(linear.stored.shape), linear.weight, 0.0), linear.bias)
    return at_work.finished()


def by_peer(at_work: Network, statistics: Mapping[str, LayerStatistics], method: str, target: float) -> ResNet:
    """The network with the same share of zeros in each layer, by what each sees in the trained one; biases stay."""
    for name, linear in at_work.maps.items():
        (weight,) = linear.weight
        design, _ = statistics[name].compressed()
        found = PEERS[method](design.T @ design, weight, Pattern.make("unstructured", target, weight.shape))
        at_work.write(name, found[None], linear.bias)
    return nnx.clone(at_work.finished())


# --- Measures ----------------------------------------------------------------------------------------------------


@nnx.jit
def _logits(network: ResNet, images: jax.Array) -> jax.Array:
    return network(images)


def accuracy(network: ResNet, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images that are classified rightly."""
    found = [
        np.asarray(_logits(network, jnp.asarray(images[start : start + IMAGES]))).argmax(axis=1)
        for start in range(0, len(images), IMAGES)
    ]
    return float(np.mean(np.concatenate(found) == labels))


def renormalised(network: ResNet, images: np.ndarray) -> ResNet:
    """A copy whose BatchNorm statistics are those of these images, all of them as one batch; no weight changes."""
    copy = nnx.clone(network)
    copy.train()
    for norm in copy.norms:
        norm.momentum = 0.0  # nothing of the old ones stays
    _logits(copy, jnp.asarray(images))
    copy.eval()
    return copy


def zeros(network: ResNet) -> Record:
    """Shares of zeros among the weights of all convolutions, those of the classifier, and all parameters.

    Parameters are counted with the normalisation folded in, as a weight for each of a kernel and a bias for each
    channel.
    """
    convolutions = [np.asarray(convolution.kernel[...]) for convolution in network.convolutions]
    classifier = np.asarray(network.classifier.kernel[...])
    of_convolutions = sum(int(np.count_nonzero(kernel == 0.0)) for kernel in convolutions)
    of_classifier = int(np.count_nonzero(classifier == 0.0))
    layers = {f"convolutions.{k}": float(np.mean(kernel == 0.0)) for k, kernel in enumerate(convolutions)}
    return {
        "convolution_zeros": of_convolutions / sum(kernel.size for kernel in convolutions),
        "classifier_zeros": of_classifier / classifier.size,
        "zeros": (of_convolutions + of_classifier) / network.parameters_of(),
        "layer_zeros": {**layers, "classifier": of_classifier / classifier.size},
    }


# --- The page ----------------------------------------------------------------------------------------------------


def section(records: Sequence[Record]) -> str:
    """The network, the methods beside Table 1, everything that was measured, and where."""
    base = next(record for record in records if record["method"] == DENSE)
    rest = [record for record in records if record["method"] != DENSE]
    recipe = base["recipe"]
    seeds = sorted({record["seed"] for record in records})
    return "\n".join(
        [
            f"ResNet-20 of width {recipe['width']} on images of {recipe['resolution']}×{recipe['resolution']} pixels, "
            f"trained for {recipe['epochs']:g} epochs: **{100 * base['test_accuracy']:.1f} %** of "
            f"{base['test_images']:,} test images, {100 * base['held_out_accuracy']:.1f} % of "
            f"{base['held_out_images']:,} held-out training images, "
            f"{100 * base['test_accuracy_renormalised']:.1f} % of the test images with BatchNorm re-estimated; the "
            f"paper's has {PRINTED_BASELINE} %. {base['parameters']:,} parameters with the normalisation folded in. "
            f"Calibrated on {base['samples']:,} training images; seeds {', '.join(map(str, seeds))} of their choice, "
            "mean ± standard deviation where there are several. Points are changes from the network itself; where "
            "BatchNorm is re-estimated, from the network itself with BatchNorm re-estimated.",
            "",
            "### Beside Table 1",
            "",
            *_beside(base, rest),
            "",
            "### All that was measured",
            "",
            *_all(base, rest),
            "",
            *_ways(base, rest),
            "",
            all_certified(rest),
            "",
            *places(records),
        ]
    )


def sparsest(base: Record, records: Sequence[Record], allowed: float) -> Record | None:
    """The one with the most zeros that loses at most `allowed` points on held-out images; None if none does."""
    lost = [100.0 * (base["held_out_accuracy"] - record["held_out_accuracy"]) for record in records]
    within = [record for record, points in zip(records, lost) if points <= allowed]
    return max(within, key=lambda record: record["zeros"], default=None)


def _beside(base: Record, rest: Sequence[Record]) -> list[str]:
    """The printed rows, and of each method the sparsest network of the first seed that costs so little."""
    heads = ["method", "setting", "accuracy, points", "zeros as printed %", "zeros of all parameters %"]
    rows = [[method, setting, f"{drop:+.1f}", f"{sparse:.1f}", ""] for method, setting, drop, sparse in PRINTED]
    whole = [record for record in rest if record["seed"] == base["seed"] and record["method"] != EVALUATE]
    for (method,), mine in _sorted(grouped(whole, "method")):
        for allowed in ALLOWED:
            found = sparsest(base, mine, allowed)
            setting = f"at most {allowed:g} points on held-out images"
            cells = ["–", "", "none"] if found is None else [_points(base, [found]), "", _percent([found], "zeros")]
            rows.append([f"**here**, {TITLES[method]}", setting, *cells])
    return table(heads, rows)


def _all(base: Record, rest: Sequence[Record]) -> list[str]:
    heads = ["asked for", "method", "seeds", "zeros of convolutions %", "of classifier %", "of all parameters %"]
    heads += ["test accuracy, points", "held-out, points", "test, BatchNorm re-estimated", "rows certified", "CPU s"]
    rows = []
    for (target,), level in sorted(grouped(rest, "target").items()):
        for (method,), mine in _sorted(grouped(level, "method")):
            count, proved = (sum(record[key] for record in mine) for key in ("rows", "rows_certified"))
            rows.append(
                [
                    f"{100 * target:.0f} %",
                    TITLES[method],
                    f"{len(mine)}",
                    *(_percent(mine, key) for key in ("convolution_zeros", "classifier_zeros", "zeros")),
                    *(_points(base, mine, key) for key in ACCURACIES),
                    f"{proved:,} of {count:,}" if count else "–",
                    f"{np.mean([record['cpu_seconds'] for record in mine]):.1f}",
                ]
            )
    return table(heads, rows)


def _ways(base: Record, rest: Sequence[Record]) -> list[str]:
    """What `evaluate` said of each way to share out zeros."""
    told = [record for record in rest if record["ways"]]
    if not told:
        return ["`evaluate=` was not run."]
    heads = ["asked for", "way to share out zeros", "held-out, points", ""]
    rows = [
        [
            f"{100 * record['target']:.0f} %",
            name,
            f"{100 * (metric - base['held_out_accuracy']):+.2f}",
            "kept" if name == record["chosen"] else "",
        ]
        for record in sorted(told, key=lambda record: (record["target"], record["seed"]))
        for name, metric in record["ways"].items()
    ]
    return ["What `evaluate=`, the accuracy on the held-out images, gave for each way:", "", *table(heads, rows)]


def _sorted(groups: Mapping[tuple[Any, ...], list[Record]]) -> list[tuple[tuple[Any, ...], list[Record]]]:
    """Groups by method, in the order of `TITLES`."""
    return sorted(groups.items(), key=lambda entry: list(TITLES).index(entry[0][0]))


def _percent(records: Sequence[Record], key: str) -> str:
    return spread([record[key] for record in records], ".1f", 100.0)


def _points(base: Record, records: Sequence[Record], key: str = "test_accuracy") -> str:
    return spread([record[key] - base[key] for record in records], "+.2f", 100.0)


# --- The picture -------------------------------------------------------------------------------------------------

_STYLES = {
    GLOBAL: ("#0072B2", "D", "-"),
    LAYER: ("#D55E00", "o", "-"),
    ORIGINAL: ("#E69F00", "v", "--"),
    "ALPS": ("#009E73", "^", "--"),
    "SparseGPT": ("#CC79A7", "x", "--"),
    "magnitude": ("#999999", "<", ":"),
    LARGEST: ("#444444", ">", ":"),
    EVALUATE: ("#56B4E9", "*", ""),
}
_PRINTED_MARKERS = {"SSS": "s", "SPR": "P", "MLA": "X", "SIM": "p"}


def pictures(records: Sequence[Record]) -> Mapping[str, Figure]:
    """Change of test accuracy against zeros, as pruned and with BatchNorm re-estimated, with the printed points."""
    base = next(record for record in records if record["method"] == DENSE)
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, title in (
        (left, "test_accuracy", "as pruned"),
        (right, "test_accuracy_renormalised", "BatchNorm re-estimated, also of the network itself"),
    ):
        for method, (colour, marker, line) in _STYLES.items():
            mine = [record for record in records if record["method"] == method]
            if mine:
                _drawn(axes, base, mine, key, {"color": colour, "marker": marker, "linestyle": line or "none"})
        for method, marker in _PRINTED_MARKERS.items():
            points = [(sparse, drop) for name, _, drop, sparse in PRINTED if name == method]
            axes.scatter(
                *zip(*points), marker=marker, s=55, facecolors="none", edgecolors="black", zorder=3,
                label=f"{method}, printed in Table 1",
            )  # fmt: skip
        axes.axhline(0.0, color="black", linewidth=0.9, linestyle="--", label="the network itself")
        axes.set(xlabel="zeros of all parameters (%)")
        axes.set_title(f"{title}: {100 * base[key]:.1f} % before", fontsize=9)
        axes.grid(alpha=0.25)
    left.set_ylabel("test accuracy, points from the network itself")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return {NAME: figure}


def _drawn(axes: Axes, base: Record, records: Sequence[Record], key: str, style: Mapping[str, Any]) -> None:
    """Means over seeds at each share of zeros."""
    groups = sorted(grouped(records, "target").items())
    x = [100 * np.mean([record["zeros"] for record in mine]) for _, mine in groups]
    y = [100 * np.mean([record[key] - base[key] for record in mine]) for _, mine in groups]
    label = TITLES[records[0]["method"]].replace("`", "")
    axes.plot(x, y, markersize=5, linewidth=1.3, label=label, **style)


EXPERIMENT = Experiment(
    name=NAME,
    title="prune on a ResNet-20",
    keys=KEYS,
    run=one_after_another(jobs),
    section=section,
    pictures=pictures,
    jobs=jobs,
)
