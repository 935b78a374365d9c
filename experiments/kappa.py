"""κ as the only knob of sparsity: Tables 1 and 3 of the follow-up framework, for two classifiers trained here.

Each row of (A B) solves, with M = (Xᵀ Uᵀ),

    P(κ):    min_a  ½‖M a − z‖²    s.t.  ‖a‖₁ ≤ κ

The framework's section 2 bounds the part of a row that belongs to A, its section 3 the whole row: both are run. C is
fitted by least squares and D = 0, as in the baselines, whose outputs read nothing but states.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

import simjax
from benchmarks.problems import trained_network
from benchmarks.records import Record, places, table
from experiments import newsgroups
from experiments.experiment import (
    Experiment,
    Job,
    Settings,
    all_certified,
    certified,
    errorbars,
    grouped,
    one_after_another,
    spread,
    together,
)
from experiments.stages import Stage, spending
from simjax import datasets
from simjax.implicit.model import ImplicitModel
from simjax.nn import MLP
from simjax.rows.constraints import feedforward_support

KAPPAS = (0.005, 0.01, 0.05, 0.1, 0.5, 0.99)
TIMED = (0.1, 0.5, 0.99)  # the κ of Table 3
SHARES = (0.05, 0.1, 0.2, 0.3, 1.0)  # of the samples, where their number varies

# The framework's Table 1: accuracy and sparsity in %, by κ.
PRINTED: Mapping[str, Mapping[float, tuple[float, float]]] = {
    "CIFAR-100": {
        0.005: (76.7, 98.1), 0.01: (79.1, 96.4), 0.05: (84.2, 95.2),
        0.1: (87.1, 93.8), 0.5: (89.0, 93.3), 0.99: (91.0, 90.1),
    },
    "20 Newsgroups": {
        0.005: (60.9, 97.8), 0.01: (74.2, 95.9), 0.05: (80.2, 95.3),
        0.1: (87.2, 93.3), 0.5: (88.8, 90.7), 0.99: (90.6, 87.4),
    },
}  # fmt: skip
PRINTED_DENSE = {"CIFAR-100": 92.1, "20 Newsgroups": 92.8}
# Its Table 3: how much faster with a warm start, and with 20 % (CIFAR-100) or 30 % (20 Newsgroups) of the data.
PRINTED_SPEED: Mapping[str, Mapping[float, tuple[float, float]]] = {
    "CIFAR-100": {0.1: (2.2, 9.1), 0.5: (2.0, 7.8), 0.99: (1.7, 7.5)},
    "20 Newsgroups": {0.1: (1.5, 8.7), 0.5: (1.6, 8.4), 0.99: (1.7, 7.4)},
}
PRINTED_SHARES = {"CIFAR-100": 0.2, "20 Newsgroups": 0.3}
# Which printed column stands beside which data set: the framework has no Fashion-MNIST.
DATASETS = {"fashion-mnist": "CIFAR-100", "20newsgroups": "20 Newsgroups"}
READINGS = {
    "ball": "‖a‖₁ ≤ κ, b free",
    "stacked_ball": "‖(a, b)‖₁ ≤ κ",
    "feedforward": "‖(a, b)‖₁ ≤ κ, earlier layers only",
}
SWEEP_SHARES = {"fashion-mnist": 1 / 6, "20newsgroups": 1.0}  # about 10,000 samples of each


class Case(NamedTuple):
    """A trained classifier, its training inputs in the order of a seed, and the test samples."""

    network: MLP
    inputs: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray


@functools.lru_cache(maxsize=1)
def case(name: str, seed: int, *, quick: bool) -> Case:
    """The classifier of that data set: `benchmarks.problems.trained_network`, or that of `newsgroups`."""
    if name == "fashion-mnist":
        data = datasets.load(name)
        network, inputs = trained_network(name, seed), data.train_inputs
        test_inputs, test_labels = data.test_inputs, data.test_labels
    else:
        split = newsgroups.messages(newsgroups.QUICK if quick else newsgroups.Reduction())
        network, inputs = newsgroups.classifier(split, seed), split.train.inputs
        test_inputs, test_labels = split.test
    order = np.random.default_rng(seed).permutation(len(inputs))[: 3000 if quick else None]
    return Case(network, inputs[order], test_inputs, test_labels)


# --- The run -----------------------------------------------------------------------------------------------------


def jobs(settings: Settings) -> Iterator[Job]:
    """What there is to do; fits to shares of Fashion-MNIST's samples, which take long, with the first seed only."""
    for seed in settings.seeds:
        for name in ("20newsgroups",) if settings.quick else tuple(DATASETS):
            wanted = [("sweep", reading, SWEEP_SHARES[name]) for reading in READINGS]
            if name == "20newsgroups" or seed == settings.seeds[0]:
                shares = SHARES[2::2] if settings.quick else SHARES
                wanted += [("samples", "stacked_ball", share) for share in shares]
            for what, reading, share in wanted:
                keys = {"dataset": name, "seed": seed, "what": what, "reading": reading, "share": share}
                yield Job((keys,), functools.partial(of_job, keys, settings.quick))


def of_job(keys: Record, quick: bool) -> Iterator[Record]:
    """The record of a sweep, or of the fits to a share of the samples."""
    given = case(keys["dataset"], keys["seed"], quick=quick)
    baseline = given.network.export()
    states = simjax.collect_states(given.network, given.inputs)
    states = states.subset(round(keys["share"] * states.m))
    if keys["what"] == "sweep":
        found = sweep(states, keys["reading"], KAPPAS[1::2] if quick else KAPPAS, given)
    else:
        found = cold(states, given)
    yield {
        **keys,
        "n": baseline.n,
        "p": baseline.p,
        "q": baseline.q,
        "baseline_nonzeros": baseline.nonzeros,
        "baseline_accuracy": baseline.accuracy(given.test_inputs, given.test_labels),
        **found,
    }


def arguments(states: simjax.States, reading: str) -> dict[str, Any]:
    """Those of `fit` that state P(κ) on the states as they are, with D = 0.

    As printed, a row may use every state, its own too. In the reading "feedforward", which is ours, it may use only
    inputs and states of earlier layers.
    """
    support = np.ones((states.n + states.q, states.n + states.p), dtype=bool)
    support[states.n :, states.n :] = False
    if reading == "feedforward":
        assert states.layer_sizes is not None  # both classifiers are layered
        support[: states.n] = feedforward_support(states.layer_sizes, states.p)
    return {
        "objective": "least_squares",
        "constraint": "ball" if reading == "ball" else "stacked_ball",
        "support": support,
        "rescale": "none",
    }


def sweep(states: simjax.States, reading: str, kappas: Sequence[float], given: Case) -> Record:
    """A path over κ, each model with C fitted to the baseline's states and to its own.

    Whole rows bounded, some of the fits are made from scratch too, and the path is run again: everything is compiled
    then, and the seconds are those of warm starts alone.
    """
    options = arguments(states, reading)
    path = simjax.path(states, kappas=kappas, refit="outputs", **options)
    results = list(path.fits)
    again = simjax.path(states, kappas=kappas, **options) if reading == "stacked_ball" else None
    points = []
    for k, (kappa, fit) in enumerate(zip(kappas, path.fits)):
        taught = dataclasses.replace(fit.model, C=fit.solutions[0].weights[states.n :, : states.n])
        point = {
            "kappa": kappa,
            **counts(fit.model),
            "accuracy": taught.accuracy(given.test_inputs, given.test_labels),
            "refitted_accuracy": fit.model.accuracy(given.test_inputs, given.test_labels),
            "largest_row": largest_row(fit.model, reading),
        }
        if again is not None and kappa in TIMED:
            alone, spent = timed(functools.partial(simjax.fit, states, kappa=kappa, **options))
            point |= {
                "warm_seconds": again.fits[k].seconds,
                "cold_seconds": alone.seconds - spent.compile_seconds,
                "warm_passes": int(again.fits[k].solutions[0].passes.sum()),
                "cold_passes": int(alone.solutions[0].passes.sum()),
            }
            results.append(alone)
        points.append(point)
    return {"samples": states.m, "points": points, **proofs(results)}


def cold(states: simjax.States, given: Case) -> Record:
    """Fits from scratch, whole rows bounded, with the time of everything but compilation."""
    points, results = [], []
    for kappa in TIMED:
        result, spent = timed(functools.partial(simjax.fit, states, kappa=kappa, **arguments(states, "stacked_ball")))
        points.append(
            {
                "kappa": kappa,
                **counts(result.model),
                "accuracy": result.model.accuracy(given.test_inputs, given.test_labels),
                "seconds": spent.seconds - spent.compile_seconds,
                "passes": int(result.solutions[0].passes.sum()),
            }
        )
        results.append(result)
    return {"samples": states.m, "points": points, **proofs(results)}


def timed(make: Callable[[], simjax.FitResult]) -> tuple[simjax.FitResult, Stage]:
    """A fit, and what it took."""
    stages: dict[str, Stage] = {}
    with spending(stages, "fit"):
        result = make()
    return result, stages["fit"]


def counts(model: ImplicitModel) -> Record:
    """Nonzeros of A, B, C and D."""
    return {f"nonzeros_{name}": int(np.count_nonzero(getattr(model, name))) for name in "ABCD"}


def largest_row(model: ImplicitModel, reading: str) -> float:
    """The greatest ℓ1 norm of what κ bounds."""
    rows = model.A if reading == "ball" else np.concatenate([model.A, model.B], axis=1)
    return float(np.abs(rows).sum(axis=1).max())


def proofs(results: Sequence[simjax.FitResult]) -> Record:
    """How many rows of all these fits are certified."""
    return together([certified(result) for result in results])


# --- What the records say ----------------------------------------------------------------------------------------


def sparsity(record: Record, point: Record, of: str) -> float:
    """The share of zeros: against the baseline's nonzeros ("baseline"), or of all entries of A, B, C, D ("entries")."""
    nonzeros = sum(point[f"nonzeros_{name}"] for name in "ABCD")
    entries = (record["n"] + record["q"]) * (record["n"] + record["p"])
    return 1.0 - nonzeros / (record["baseline_nonzeros"] if of == "baseline" else entries)


def at(records: Sequence[Record], kappa: float) -> list[tuple[Record, Record]]:
    """Each record with its point at κ."""
    return [(record, point) for record in records for point in record["points"] if point["kappa"] == kappa]


def speed_ups(records: Sequence[Record], kappa: float, share: float) -> list[float]:
    """By seed, the seconds of the fit to all samples over those of the fit to a share of them."""
    whole, part = ({r["seed"]: p["seconds"] for r, p in at(records, kappa) if r["share"] == s} for s in (1.0, share))
    return [whole[seed] / part[seed] for seed in whole if seed in part]


def section(records: Sequence[Record]) -> str:
    """The tables of the page."""
    lines = [all_certified(records), ""]
    for (name,), mine in grouped(records, "dataset").items():
        kinds = {record["what"] for record in mine}
        lines += [*_sweep_table(name, mine), "", *_speed_table(name, mine), ""] if "sweep" in kinds else []
        lines += [*_samples_table(mine), ""] if "samples" in kinds else []
    total = sum(record["wall_seconds"] for record in records)
    lines += [
        f"The records took {total / 60:.0f} minutes of two cores shared with other work.",
        "",
    ]
    for name, (what, title, _) in PICTURES.items():
        if any(record["what"] == what for record in records):
            lines += [f"![{title}](../images/paper-{name}.png)", ""]
    lines += places(records)
    return "\n".join(lines)


def _sweep_table(name: str, records: Sequence[Record]) -> list[str]:
    sweeps = [record for record in records if record["what"] == "sweep"]
    one, column = sweeps[0], DATASETS[name]
    seeds = {record["seed"]: record["baseline_accuracy"] for record in sweeps}
    lines = [
        f"**{name}**: n = {one['n']} states, p = {one['p']} inputs, q = {one['q']} outputs; the baseline has "
        f"{one['baseline_nonzeros']:,} weights and a test accuracy of {spread(list(seeds.values()), '.1f', 100)} % "
        f"({len(seeds)} seeds); {one['samples']:,} training samples. Printed beside it: {column}, whose dense model "
        f"has {PRINTED_DENSE[column]} %.",
        "",
    ]
    heads = ["bound", "κ", "test accuracy %", "the same, C refitted %", "zeros against the baseline's weights %"]
    heads += [
        "zeros among all entries of A, B, C, D %",
        "nonzeros of A, B, C",
        "printed accuracy %",
        "printed sparsity %",
    ]
    rows = []
    for (reading,), mine in grouped(sweeps, "reading").items():
        for kappa in [point["kappa"] for point in mine[0]["points"]]:
            found = at(mine, kappa)
            cells = [
                spread([point[key] for _, point in found], ".1f", 100) for key in ("accuracy", "refitted_accuracy")
            ]
            cells += [spread([sparsity(r, p, of) for r, p in found], ".1f", 100) for of in ("baseline", "entries")]
            sizes = (statistics.fmean(point[f"nonzeros_{block}"] for _, point in found) for block in "ABC")
            cells.append(", ".join(f"{size:,.0f}" for size in sizes))
            printed = (f"{value}" for value in PRINTED[column][kappa])
            rows.append([READINGS[reading], f"{kappa}", *cells, *printed])
    return [*lines, *table(heads, rows)]


def _speed_table(name: str, records: Sequence[Record]) -> list[str]:
    stacked = [record for record in records if record["what"] == "sweep" and record["reading"] == "stacked_ball"]
    samples = [record for record in records if record["what"] == "samples"]
    column = DATASETS[name]
    share = PRINTED_SHARES[column]
    heads = ["κ", "warm start: time ÷", "passes ÷", "printed", f"{100 * share:.0f} % of the samples: time ÷", "printed"]
    rows = []
    for kappa in TIMED:
        points = [point for _, point in at(stacked, kappa) if "warm_seconds" in point]
        cells = [
            f"{kappa}",
            spread([point["cold_seconds"] / point["warm_seconds"] for point in points]),
            spread([point["cold_passes"] / max(point["warm_passes"], 1) for point in points]),
            f"{PRINTED_SPEED[column][kappa][0]}",
            spread(speed_ups(samples, kappa, share)),
            f"{PRINTED_SPEED[column][kappa][1]}",
        ]
        rows.append(cells)
    return table(heads, rows)


def _samples_table(records: Sequence[Record]) -> list[str]:
    groups = grouped([record for record in records if record["what"] == "samples"], "share")
    heads = ["share of the samples", "samples"]
    heads += [head for kappa in TIMED for head in (f"κ = {kappa}: test accuracy %", "zeros %", "seconds")]
    rows = []
    for (share,), mine in groups.items():
        cells = [f"{100 * share:.0f} %", f"{mine[0]['samples']:,}"]
        for kappa in TIMED:
            found = at(mine, kappa)
            cells.append(spread([point["accuracy"] for _, point in found], ".1f", 100))
            cells.append(spread([sparsity(record, point, "baseline") for record, point in found], ".1f", 100))
            cells.append(spread([point["seconds"] for _, point in found], ".2f"))
        rows.append(cells)
    return table(heads, rows)


# --- Pictures ----------------------------------------------------------------------------------------------------

COLOURS = {"ball": "#0072B2", "stacked_ball": "#D55E00", "feedforward": "#009E73"}
KAPPA_COLOURS = dict(zip(TIMED, ("#009E73", "#D55E00", "#A0488A")))


def pictures(records: Sequence[Record]) -> dict[str, Figure]:
    """Accuracy and sparsity against κ, and against the share of samples."""
    kinds = {record["what"] for record in records}
    return {name: draw(records) for name, (what, _, draw) in PICTURES.items() if what in kinds}


def _sweep_picture(records: Sequence[Record]) -> Figure:
    groups = grouped([record for record in records if record["what"] == "sweep"], "dataset")
    figure = Figure(figsize=(11.0, 3.6 * len(groups) + 1.2), layout="constrained")
    for (left, right), ((name,), mine) in zip(figure.subplots(len(groups), 2, squeeze=False), groups.items()):
        for (reading,), these in grouped(mine, "reading").items():
            kappas = [point["kappa"] for point in these[0]["points"]]
            for key, style in (("accuracy", "o-"), ("refitted_accuracy", "s--")):
                values = [[point[key] for _, point in at(these, kappa)] for kappa in kappas]
                label = READINGS[reading] + (", C refitted" if key.startswith("refitted") else "")
                errorbars(left, kappas, values, style, COLOURS[reading], label, scale=100.0)
            zeros = [[sparsity(record, point, "entries") for record, point in at(these, kappa)] for kappa in kappas]
            errorbars(right, kappas, zeros, "o-", COLOURS[reading], READINGS[reading], scale=100.0)
        printed, column = PRINTED[DATASETS[name]], DATASETS[name]
        for axes, k in ((left, 0), (right, 1)):
            axes.plot(
                list(printed), [value[k] for value in printed.values()], "k:", marker="x", label=f"printed, {column}"
            )
            axes.set(xscale="log", xlabel="κ", title=name)
            axes.grid(alpha=0.3)
        base = statistics.fmean(100 * record["baseline_accuracy"] for record in mine)
        left.axhline(base, color="black", linewidth=1, label="baseline")
        left.set_ylabel("test accuracy (%)")
        right.set_ylabel("zeros among all entries of A, B, C, D (%)")
    for axes in figure.axes[-2:]:
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return figure


def _samples_picture(records: Sequence[Record]) -> Figure:
    groups = grouped([record for record in records if record["what"] == "samples"], "dataset")
    figure = Figure(figsize=(10.0, 3.6 * len(groups)), layout="constrained")
    for (left, right), ((name,), mine) in zip(figure.subplots(len(groups), 2, squeeze=False), groups.items()):
        shares = sorted({record["share"] for record in mine})
        for kappa in TIMED:
            for axes, key, scale in ((left, "accuracy", 100.0), (right, "seconds", 1.0)):
                values = [[p[key] for r, p in at(mine, kappa) if r["share"] == share] for share in shares]
                percent = [100 * share for share in shares]
                errorbars(axes, percent, values, "o-", KAPPA_COLOURS[kappa], f"κ = {kappa}", scale=scale)
        base = statistics.fmean(100 * record["baseline_accuracy"] for record in mine)
        left.axhline(base, color="black", linewidth=1, label="baseline")
        left.set_ylabel("test accuracy (%)")
        right.set_ylabel("seconds of a fit from scratch")
        right.set_ylim(bottom=0.0)
        for axes in (left, right):
            axes.axvline(100 * PRINTED_SHARES[DATASETS[name]], color="black", linestyle=":", linewidth=0.8)
            axes.set(xlabel="share of the training samples (%)", title=name)
            axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return figure


PICTURES = {
    "kappa-sweep": ("sweep", "Accuracy and sparsity against κ", _sweep_picture),
    "kappa-samples": ("samples", "Accuracy and time against the share of samples", _samples_picture),
}
EXPERIMENT = Experiment(
    name="kappa",
    title="κ as the only knob",
    keys=("dataset", "seed", "what", "reading", "share"),
    run=one_after_another(jobs),
    section=section,
    pictures=pictures,
    jobs=jobs,
)
