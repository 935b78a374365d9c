"""Sparsity of a text classifier on 20 Newsgroups: Figures 2 and 3 of the SIM paper, for a smaller baseline.

The paper fits a DistilBERT model. Here the baseline is a bias-free ReLU network trained on the messages' TF-IDF weights
reduced to 300 dense inputs. What is compared is the same: the sparsity 1 − ‖M‖₀/‖N‖₀ and the F1 score of the
implicit models of a path of penalties, by objective and by the share of the training messages they were fitted to.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score
from sklearn.preprocessing import normalize

import simjax
from benchmarks.problems import digest
from benchmarks.records import Record, places, table
from experiments.experiment import (
    Experiment,
    Settings,
    all_certified,
    certified,
    errorbars,
    grouped,
    interpolated,
    spread,
    together,
)
from experiments.sparse import pruned, relative_weights
from simjax._files import atomic_file
from simjax.datasets import TextDataset, load_newsgroups
from simjax.datasets._files import cache_folder
from simjax.implicit.model import ImplicitModel
from simjax.nn import MLP, train

# SIM paper, §4.1: DistilBERT's F1 score on the test messages, the sparsity reached without a drop of it, the
# sparsity at which it even rose, and the share of the training messages that was enough for the former, all in %.
PRINTED = {"f1": 82.0, "sparsity": 17.0, "rising_sparsity": 6.0, "share": 15.0}

# Chosen on the validation messages, seed 0; see docs/experiments/newsgroups.md.
HIDDEN = (64, 32)
TRAINING: Mapping[str, Any] = {"epochs": 8, "batch_size": 64, "learning_rate": 2e-3, "weight_decay": 0.3}
SHARES = (0.05, 0.1, 0.15, 0.3, 0.6, 1.0)  # of the training messages
MAIN_SHARES = (0.15, 1.0)  # those at which every method runs
# The slope of the penalty at zero, for the mean loss with λ₁ = λ₂ = 0.1.
SLOPES = tuple(np.geomspace(0.03, 1e-3, 6).tolist())
KEPT = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)  # of the baseline's weights, by magnitude pruning
SPARSITIES = (10, 20, 40, 60, 80, 90)  # %, at which methods are compared
FIT: Mapping[str, Any] = {"reduction": "mean", "support": "hollow"}


class Method(NamedTuple):
    """A penalty: its objective, μ/α, whether its weights are adaptive, and by how much its slopes are larger."""

    title: str
    objective: str
    mu_ratio: float | None = None
    adaptive: bool = False
    stretch: float = 1.0


METHODS = {
    "l1": Method("L1", "l1"),
    "perspective": Method("perspective, μ = α", "perspective", 1.0),
    "perspective-100th": Method("perspective, μ = α/100", "perspective", 0.01),
    "perspective-adaptive": Method(
        "perspective, adaptive weights", "perspective", 1.0, True, 4.0
    ),  # most pay much less
}
EVERYWHERE = ("l1", "perspective-100th")  # run at every share
PRUNING = "pruning"


# --- The baseline ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reduction:
    """How texts become dense inputs, and how many are for what.

    Attributes:
      words: the most frequent words that get a TF-IDF weight, stop words left out.
      components: inputs of the network: coordinates in the truncated SVD of the training messages' weights.
      validation: training messages that are held out.
      training: how many of the others are used at most; None for all.
    """

    words: int = 20_000
    components: int = 300
    validation: int = 1131
    training: int | None = None


QUICK = Reduction(words=5000, components=60, validation=500, training=2000)


class Part(NamedTuple):
    """Inputs (m, p) float64 and class indices (m,)."""

    inputs: np.ndarray
    labels: np.ndarray


class Messages(NamedTuple):
    """20 Newsgroups as inputs of a network. What is validated on is held out of the training messages."""

    train: Part
    validation: Part
    test: Part


def messages(reduction: Reduction, cache: Path | None = None) -> Messages:
    """The vectorised messages, from the cache if they are there; headers, footers and quotes are left in.

    Args:
      reduction: how they are vectorised.
      cache: folder for the result; None means the user's cache.

    Raises:
      FileNotFoundError, ValueError: as `simjax.datasets.load_newsgroups`.
    """
    key = digest(dataclasses.asdict(reduction))
    file = (cache_folder() if cache is None else cache) / f"benchmark-20newsgroups-{key}.npz"
    if not file.is_file():
        made = vectorised(load_newsgroups(), reduction)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file, overwrite=True) as out:
            arrays = {
                f"{name}_{kind}": array for name, part in made._asdict().items() for kind, array in zip("ul", part)
            }
            np.savez(out, **arrays)
    with np.load(file, allow_pickle=False) as stored:
        return Messages(*(Part(stored[f"{name}_u"], stored[f"{name}_l"]) for name in Messages._fields))


def vectorised(data: TextDataset, reduction: Reduction) -> Messages:
    """TF-IDF weights, reduced by an SVD; both are learnt from the messages that the network is trained on.

    Every message is scaled to a norm of √p, so that its inputs are of the size of one.
    """
    order = np.random.default_rng(0).permutation(len(data.train_labels))
    held_out, rest = np.split(order, [reduction.validation])
    rest = rest[: reduction.training]
    words = TfidfVectorizer(max_features=reduction.words, min_df=2, sublinear_tf=True, stop_words="english")
    weights = words.fit_transform([data.train_texts[k] for k in rest])
    basis = TruncatedSVD(reduction.components, random_state=0).fit(weights)

    def inputs(texts: Sequence[str]) -> np.ndarray:
        reduced = basis.transform(words.transform(texts))
        return np.sqrt(reduction.components) * normalize(reduced).astype(np.float64)

    return Messages(
        Part(inputs([data.train_texts[k] for k in rest]), data.train_labels[rest]),
        Part(inputs([data.train_texts[k] for k in held_out]), data.train_labels[held_out]),
        Part(inputs(data.test_texts), data.test_labels),
    )


def classifier(data: Messages, seed: int) -> MLP:
    """The baseline; the seed is of its initial weights and of the order of the messages."""
    classes = int(data.train.labels.max()) + 1
    network = MLP((data.train.inputs.shape[1], *HIDDEN, classes), rngs=nnx.Rngs(seed))
    train(network, data.train.inputs, data.train.labels, seed=seed, **TRAINING)
    return network


def macro_f1(model: ImplicitModel, part: Part) -> float:
    """The mean over classes of the F1 score, in [0, 1]."""
    return float(f1_score(part.labels, np.argmax(model(part.inputs), axis=1), average="macro"))


# --- The run -----------------------------------------------------------------------------------------------------


def run(settings: Settings) -> Iterator[Record]:
    """For each seed: magnitude pruning of the baseline, then a path of fits for each share and method."""
    data = messages(QUICK if settings.quick else Reduction())
    slopes = SLOPES[1::2] if settings.quick else SLOPES
    for seed in settings.seeds:
        network = classifier(data, seed)
        baseline = network.export()
        order = np.random.default_rng(seed).permutation(len(data.train.labels))
        facts = {"seed": seed, "baseline": measured(baseline, baseline, data)}
        points = [measured(pruned(baseline, round(share * baseline.nonzeros)), baseline, data) for share in KEPT]
        yield {**facts, "share": 1.0, "method": PRUNING, "samples": len(order), "points": points}
        for share in MAIN_SHARES if settings.quick else SHARES:
            m = round(share * len(order))
            states = simjax.collect_states(network, data.train.inputs[order[:m]])
            for name in METHODS if share in MAIN_SHARES else EVERYWHERE:
                mine = [METHODS[name].stretch * slope for slope in slopes]
                path = fits(states, METHODS[name], mine)
                points = [
                    {"slope": slope, **measured(fit.model, baseline, data), **certified(fit)}
                    for slope, fit in zip(mine, path.fits)
                ]
                yield {
                    **facts, "share": share, "method": name, "samples": m, "points": points,
                    "fit_seconds": path.seconds, **together(points),
                }  # fmt: skip


def fits(states: simjax.States, method: Method, slopes: Sequence[float]) -> simjax.Path:
    """A path over penalties that all have these slopes at zero: α for L1, 2√(αμ) for perspective."""
    unit = 1.0 if method.mu_ratio is None else 2.0 * np.sqrt(method.mu_ratio)
    weights = relative_weights(states, method.objective) if method.adaptive else None
    return simjax.path(
        states,
        method.objective,
        alphas=[slope / unit for slope in slopes],
        alpha_weights=weights,
        mu_ratio=method.mu_ratio,
        **FIT,
    )


def measured(model: ImplicitModel, baseline: ImplicitModel, data: Messages) -> Record:
    """Nonzeros, sparsity against the baseline, and F1 scores of a model."""
    return {
        "nonzeros": model.nonzeros,
        "sparsity": model.sparsity(baseline.nonzeros),
        "validation_f1": macro_f1(model, data.validation),
        "test_f1": macro_f1(model, data.test),
    }


# --- What the records say ----------------------------------------------------------------------------------------


def sparsest(record: Record, drop: float = 0.0) -> Record | None:
    """The sparsest model of a record whose F1 on the validation messages is at most `drop` below the baseline's."""
    least = record["baseline"]["validation_f1"] - drop
    good = [point for point in record["points"] if point["validation_f1"] >= least]
    return max(good, key=lambda point: point["sparsity"], default=None)


def f1_at(record: Record, sparsity: float) -> float | None:
    """The test F1 at a sparsity, linearly between the two models next to it; None outside the path."""
    return interpolated(((point["sparsity"], point["test_f1"]) for point in record["points"]), sparsity)


def over_seeds(records: Sequence[Record], sparsity: float) -> list[float]:
    """`f1_at` of every record; empty if one of them does not reach the sparsity."""
    found = [f1_at(record, sparsity) for record in records]
    return [] if None in found else [value for value in found if value is not None]


def section(records: Sequence[Record]) -> str:
    """The tables of the page."""
    # Pruning first, then from all messages to few: seeds may have been run share by share.
    ordered = sorted(records, key=lambda record: (record["method"] != PRUNING, -record["share"]))
    groups = grouped(ordered, "share", "method")
    fitted = [record for record in records if record["method"] != PRUNING]
    one = next(iter(groups.values()))
    base = [record["baseline"] for record in one]
    lines = [
        f"Baseline: {base[0]['nonzeros']:,} weights, macro F1 on the test messages "
        f"{spread([entry['test_f1'] for entry in base], '.1f', 100)} % (printed, DistilBERT: {PRINTED['f1']:.0f} %); "
        f"{len(one)} seed{'s' * (len(one) > 1)}. {all_certified(fitted)}",
        "",
        "**The sparsest model whose F1 does not drop.** Chosen by the F1 of validation messages, among the models of a "
        "path; the change is that of the test F1 against the baseline, in points.",
        "",
        *_drop_table(groups),
        "",
        "**Test F1 (%) by sparsity**, linearly between the models of a path; a dash where not every seed's path "
        "reaches the sparsity.",
        "",
        *_sparsity_table(groups),
    ]
    seconds = {
        key: [record["fit_seconds"] for record in mine] for key, mine in grouped(fitted, "share", "method").items()
    }
    total = sum(record["wall_seconds"] for record in records)
    slowest = max(seconds, key=lambda key: statistics.fmean(seconds[key]))
    lines += [
        "",
        f"The records took {total / 60:.0f} minutes of two cores shared with other work; a path of "
        f"{len(fitted[0]['points'])} fits took up to {spread(seconds[slowest], '.0f')} s ({_title(slowest[1])}, "
        f"{100 * slowest[0]:.0f} % of the messages).",
        "",
        "![F1 against sparsity](../images/paper-newsgroups-f1.png)",
        "",
        "![Sparsity and F1 against the share of training messages](../images/paper-newsgroups-samples.png)",
        "",
        *places(records),
    ]
    return "\n".join(lines)


Groups = Mapping[tuple[Any, ...], Sequence[Record]]  # by share and method


def _drop_table(groups: Groups) -> list[str]:
    heads = ["training messages", "penalty", "sparsity without a drop %", "change of test F1"]
    heads += ["sparsity for at most 1 point %", "change of test F1", "seeds with such models"]
    printed = [f"< {PRINTED['share']:.0f} %", "printed: perspective, DistilBERT", f"{PRINTED['sparsity']:.0f}", "0"]
    rows = (_drop_row(share, method, mine) for (share, method), mine in groups.items())
    return table(heads, [[*printed, "–", "–", ""], *rows])


def _sparsity_table(groups: Groups) -> list[str]:
    rows = []
    for (share, method), mine in groups.items():
        cells = (spread(over_seeds(mine, sparsity / 100), ".1f", 100) for sparsity in SPARSITIES)
        rows.append([_share(share, method, mine), _title(method), *cells])
    return table(["training messages", "penalty", *(f"{sparsity} %" for sparsity in SPARSITIES)], rows)


def _drop_row(share: float, method: str, records: Sequence[Record]) -> list[str]:
    cells, counts = [], []
    for drop in (0.0, 0.01):
        found = [(sparsest(record, drop), record["baseline"]["test_f1"]) for record in records]
        kept = [(point, before) for point, before in found if point is not None]
        counts.append(f"{len(kept)}")
        cells.append(spread([point["sparsity"] for point, _ in kept], ".1f", 100))
        cells.append(spread([point["test_f1"] - before for point, before in kept], "+.1f", 100))
    told = f"{', '.join(counts)} of {len(records)}"
    return [_share(share, method, records), _title(method), *cells, told]


def _share(share: float, method: str, records: Sequence[Record]) -> str:
    return "–" if method == PRUNING else f"{100 * share:.0f} % ({records[0]['samples']:,})"


def _title(method: str) -> str:
    return "magnitude pruning of the baseline" if method == PRUNING else METHODS[method].title


# --- Pictures ----------------------------------------------------------------------------------------------------

COLOURS = {
    "l1": "#0072B2",
    "perspective": "#D55E00",
    "perspective-100th": "#009E73",
    "perspective-adaptive": "#A0488A",
    PRUNING: "#666666",
}
STYLES = {"l1": "o-", "perspective": "x:", "perspective-100th": "s-", "perspective-adaptive": "^-", PRUNING: "v--"}


def pictures(records: Sequence[Record]) -> dict[str, Figure]:
    """F1 against sparsity (the paper's Figure 2); sparsity, and F1 at a sparsity, against samples (its Figure 3)."""
    return {"newsgroups-f1": _f1_picture(records), "newsgroups-samples": _samples_picture(records)}


def _f1_picture(records: Sequence[Record]) -> Figure:
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    for axes, share in zip(figure.subplots(1, len(MAIN_SHARES), sharey=True), MAIN_SHARES):
        for (method,), mine in grouped([r for r in records if r["share"] == share], "method").items():
            # One point per penalty: the means over seeds, whose sparsities differ a little.
            points = list(zip(*(record["points"] for record in mine)))
            x = [100 * statistics.fmean(point["sparsity"] for point in same) for same in points]
            values = [[100 * point["test_f1"] for point in same] for same in points]
            errorbars(axes, x, values, STYLES[method], COLOURS[method], _title(method), size=5)
        base = [100 * record["baseline"]["test_f1"] for record in records]
        axes.axhline(statistics.fmean(base), color="black", linewidth=1, label="baseline")
        axes.axvline(
            PRINTED["sparsity"], color="black", linestyle=":", linewidth=1, label="printed: no drop up to here"
        )
        axes.set(xlabel="sparsity (%)", title=f"{100 * share:.0f} % of the training messages")
        axes.set(xlim=(-40, 100), ylim=(30, 85))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("macro F1 on the test messages (%)")
    figure.axes[-1].legend(fontsize=8, loc="lower left")
    return figure


def _samples_picture(records: Sequence[Record]) -> Figure:
    figure = Figure(figsize=(11.0, 5.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for method in EVERYWHERE:
        mine = sorted((record for record in records if record["method"] == method), key=lambda record: record["share"])
        groups = grouped(mine, "share")
        for drop, style in ((0.0, "-"), (0.01, "--")):
            best = {share: [sparsest(record, drop) for record in same] for (share,), same in groups.items()}
            complete = {
                share: [100 * point["sparsity"] for point in points if point is not None]
                for share, points in best.items()
                if None not in points
            }
            label = f"{_title(method)}, {'no drop' if drop == 0.0 else 'at most 1 point'}"
            _by_share(left, complete, style, COLOURS[method], label)
        for sparsity, style in ((0.2, "-"), (0.6, "--")):
            found = {share: over_seeds(same, sparsity) for (share,), same in groups.items()}
            complete = {share: [100 * value for value in values] for share, values in found.items() if values}
            _by_share(right, complete, style, COLOURS[method], f"{_title(method)}, {100 * sparsity:.0f} % sparse")
    left.axhline(PRINTED["sparsity"], color="black", linestyle=":", linewidth=1, label="printed: 17 %, no drop")
    left.set_ylabel("greatest sparsity at that validation F1 (%)")
    base = statistics.fmean(100 * record["baseline"]["test_f1"] for record in records)
    right.axhline(base, color="black", linewidth=1, label="baseline")
    right.set_ylabel("macro F1 on the test messages (%)")
    for axes in (left, right):
        axes.set_xlabel("share of the training messages (%)")
        axes.axvline(PRINTED["share"], color="black", linestyle=":", linewidth=0.7)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return figure


def _by_share(axes: Axes, values: Mapping[float, Sequence[float]], style: str, colour: str, label: str) -> None:
    errorbars(axes, [100 * share for share in values], list(values.values()), "o" + style, colour, label)


EXPERIMENT = Experiment(
    name="newsgroups",
    title="20 Newsgroups: sparsity and samples",
    keys=("seed", "share", "method"),
    run=run,
    section=section,
    pictures=pictures,
)
