"""Accuracy under attack of sparse models: the SIM paper's Tables 2 and 3 and its Figure 4, on Fashion-MNIST.

Three parts, each for every seed:

    baseline    the networks themselves
    table       the paper's recipe: every row of Tables 2 and 3, in several readings of what the paper leaves open
    path        the recipe simjax recommends, along a path of alphas: models of any sparsity from one set of states
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import simjax
from benchmarks.problems import KAPPA
from benchmarks.records import Record, places, table
from experiments.baselines import EPSILONS, Split, baseline, measures, sparsity
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
from simjax.states.states import States

NAME = "robustness"
KEYS = ("part", "case", "objective", "row", "seed")


class Row(NamedTuple):
    """A row of Table 2 or 3: settings, and what is printed beside them in percent; None where that is unreadable.

    `alpha` is the paper's α or β. `accuracies` are under attack with ε = 0.004 and 0.008.
    """

    m: int
    loss_weight: float
    alpha: float
    sparsity: float | None
    accuracies: tuple[float | None, float | None]


# SIM paper, Tables 2 and 3 (appendix C). The print of Table 3 is damaged: the entries of its third and fifth row run
# into each other. Settings that it allows are rows of their own, marked by None for the sparsity; see the page.
PRINTED: Mapping[str, tuple[Row, ...]] = {
    "perspective": (
        Row(700, 0.1, 0.01, 15, (78.7, 75.4)),
        Row(500, 0.1, 0.01, 23, (77.3, 73.8)),
        Row(400, 0.1, 0.01, 28, (76.6, 72.8)),
        Row(300, 0.1, 0.01, 36, (74.9, 72.4)),
        Row(200, 0.1, 0.01, 54, (73.7, 70.1)),
        Row(100, 0.1, 0.01, 77, (57.2, 49.5)),
    ),
    "l1": (
        Row(600, 0.1, 0.001, 20, (79.6, 76.2)),
        Row(1000, 0.01, 0.001, 47, (79.3, 76.2)),
        Row(500, 0.01, 0.01, None, (78.3, 75.0)),
        Row(5000, 0.01, 0.01, None, (78.3, 75.0)),
        Row(2000, 0.01, 0.01, None, (77.6, 74.6)),
        Row(900, 0.01, 0.001, 65, (74.9, 69.9)),
        Row(400, 0.01, 0.001, 76, (72.3, 68.4)),
    ),
}
TABLES = {"perspective": "Table 2, perspective", "l1": "Table 3, L1"}


@dataclasses.dataclass(frozen=True)
class Reading:
    """One way to read the paper's recipe.

    Attributes:
      told: what it is, for a table.
      baseline: "weak" or "well-trained".
      standardised: whether the network sees standardised pixels, and not pixels from 0 to 1.
      rescale: of the states: "inner" scales hidden-to-hidden weights to norms of at most κ, "uniform" divides the
        weights of every layer by the largest norm, as the paper's text has it, "none" leaves them.
      support: of A, "full" or "hollow".
      reduction: of the loss, "sum" or "mean".
      factor: α and β are the printed ones times this.
      literal: whether to leave out Σt, as formula (10) does. Then t = 1 is optimal and the penalty is α‖M‖².
    """

    told: str
    baseline: str = "weak"
    standardised: bool = False
    rescale: str = "inner"
    support: str = "full"
    reduction: str = "sum"
    factor: float = 1.0
    literal: bool = False


READINGS: Mapping[str, Reading] = {
    "paper": Reading("as printed: weak baseline, hidden weights scaled, sum of squares, A full, μ = α"),
    "tenth": Reading("the same, α (β) a tenth of the printed", factor=0.1),
    "hollow": Reading("the same as printed, A without diagonal", support="hollow"),
    "hollow-tenth": Reading("both: A without diagonal, a tenth of α (β)", support="hollow", factor=0.1),
    "well-trained": Reading("as printed, well-trained baseline", baseline="well-trained"),
    "unscaled": Reading("as printed, states not rescaled", rescale="none"),
    "uniform": Reading("as printed, every layer divided by the largest norm", rescale="uniform"),
    "standardised": Reading("as printed, standardised pixels", standardised=True),
    "mean": Reading("as printed, mean of squares", reduction="mean"),
    "literal": Reading("as printed, formula (10) without Σt", literal=True),
}
# Which reading is repeated for every seed, for every row; the others are made with the first seed, for some samples
# of Table 2.
REPEATED = ("paper",)
ONCE = (700, 300, 100)

# The recommended recipe: natural units, A without diagonal, mean loss.
PATH_SAMPLES = 1000
PATH_ALPHAS = {"l1": (3e-3, 1e-3, 3e-4, 6e-5), "perspective": (1.5e-2, 5e-3, 1.5e-3, 3e-4)}
MU_RATIO = 0.01  # μ/α of the perspective penalty: weights above 0.1 pay as in ridge, those below as in L1
PGD_STEPS = 10
FEW = 1000  # test samples that PGD attacks and that are certified, the first ones

QUICK_ROWS, QUICK_READINGS, QUICK_SAMPLES = 1, ("paper", "literal"), 100
"""With --quick: rows of each table, readings, and at most so many samples."""


# --- Running -----------------------------------------------------------------------------------------------------


def jobs(settings: Settings) -> Iterator[Job]:
    """What there is to do; jobs on the same network follow one another."""
    for seed in settings.seeds:
        names = [name for name in READINGS if name in REPEATED or seed == settings.seeds[0]]
        if settings.quick:
            names = list(QUICK_READINGS)
        networks = {(READINGS[name].baseline, READINGS[name].standardised): None for name in names}
        networks |= {("well-trained", False): None}
        for kind, standardised in networks:
            keys = {"part": "baseline", "case": case(kind, standardised), "objective": "", "row": "", "seed": seed}
            yield Job((keys,), functools.partial(of_baseline, keys, kind, standardised, settings.quick))
            for name in names:
                if (READINGS[name].baseline, READINGS[name].standardised) == (kind, standardised):
                    yield from _table_jobs(name, seed, settings.quick)
        for objective, alphas in PATH_ALPHAS.items():
            chosen = alphas[:2] if settings.quick else alphas
            every = tuple(
                {"part": "path", "case": "well-trained", "objective": objective, "row": f"{alpha:g}", "seed": seed}
                for alpha in chosen
            )
            yield Job(every, functools.partial(of_path, every, chosen, settings.quick))


def _table_jobs(name: str, seed: int, quick: bool) -> Iterator[Job]:
    for objective, rows in PRINTED.items():
        once = [row for row in rows if objective == "perspective" and row.m in ONCE]
        wanted = rows if name in REPEATED else once
        for row in wanted[:QUICK_ROWS] if quick else wanted:
            keys = {"part": "table", "case": name, "objective": objective, "row": row_name(row), "seed": seed}
            yield Job((keys,), functools.partial(of_row, keys, READINGS[name], objective, row, quick))


def case(kind: str, standardised: bool) -> str:
    """The name of a baseline in records."""
    return f"{kind}, standardised" if standardised else kind


def row_name(row: Row) -> str:
    """The name of a row of a table in records."""
    return f"{row.m}, {row.loss_weight:g}, {row.alpha:g}"


def of_baseline(keys: Record, kind: str, standardised: bool, quick: bool) -> Iterator[Record]:
    """The record of a network."""
    network, split = _baseline(kind, keys["seed"], standardised, quick)
    found = measures(
        network, split.test_inputs, split.test_labels, keys["seed"],
        unit=split.unit, steps=PGD_STEPS, few=FEW,
    )  # fmt: skip
    yield {**keys, "nonzeros": network.export().nonzeros, **found}


def of_row(keys: Record, reading: Reading, objective: str, row: Row, quick: bool) -> Iterator[Record]:
    """The record of a row of a table in one reading."""
    network, split = _baseline(reading.baseline, keys["seed"], reading.standardised, quick)
    m = min(row.m, QUICK_SAMPLES) if quick else row.m
    result = fitted(network, split.train_inputs[:m], reading, objective, row)
    found = of_model(result, network, split, keys["seed"], attacks=("fgsm_half",), certificates=False)
    yield {**keys, "m": m, **found}


def fitted(network: MLP, inputs: np.ndarray, reading: Reading, objective: str, row: Row) -> simjax.FitResult:
    """The paper's recipe for a row of its tables, on the states at `inputs` (m, p)."""
    uniform = reading.rescale == "uniform"
    rescale: Any = "none" if uniform else reading.rescale
    states = uniformly_scaled(network, inputs) if uniform else simjax.collect_states(network, inputs)
    return simjax.fit(
        states,
        "ridge" if reading.literal else objective,
        alpha=reading.factor * row.alpha,
        lambda_state=row.loss_weight,
        lambda_output=row.loss_weight,
        kappa=KAPPA,
        reduction=reading.reduction,
        support=reading.support,
        rescale=rescale,
        units="rescaled",
    )


def uniformly_scaled(network: MLP, inputs: np.ndarray, gamma: float = 1.0 / KAPPA) -> States:
    """States with the weights of every layer divided by γ·max ‖W_ℓ‖∞, the SIM paper's rule (§3); so are outputs."""
    weights = [np.asarray(layer.kernel[...], np.float64).T for layer in network.layers]
    scale = gamma * max(float(np.abs(W).sum(axis=1).max()) for W in weights)
    return States.from_layers([W / scale for W in weights], None, network.activation, inputs)


def of_path(every: Sequence[Record], alphas: Sequence[float], quick: bool) -> Iterator[Record]:
    """The records of a path of fits by the recommended recipe."""
    seed, objective = every[0]["seed"], every[0]["objective"]
    network, split = _baseline("well-trained", seed, False, quick)
    m = QUICK_SAMPLES if quick else PATH_SAMPLES
    states = simjax.collect_states(network, split.train_inputs[:m])
    ratio = MU_RATIO if objective == "perspective" else None
    path = simjax.path(
        states, objective, alphas=alphas, mu_ratio=ratio, kappa=KAPPA, reduction="mean", support="hollow"
    )
    for keys, result in zip(every, path.fits):
        found = of_model(result, network, split, seed, attacks=("fgsm_half", "fgsm", "pgd"), certificates=True)
        yield {**keys, "m": m, **found}


def of_model(
    result: simjax.FitResult,
    network: MLP,
    split: Split,
    seed: int,
    *,
    attacks: Sequence[str],
    certificates: bool,
) -> Record:
    """What is recorded of a fit."""
    model = result.model
    return {
        "sparsity": sparsity(model, network),
        "nonzeros": model.nonzeros,
        "well_posedness": model.well_posedness,
        "fit_seconds": result.seconds,
        **certified(result),
        **measures(
            model, split.test_inputs, split.test_labels, seed, unit=split.unit, attacks=attacks,
            certificates=certificates, steps=PGD_STEPS, few=FEW,
        ),
    }  # fmt: skip


@functools.lru_cache(maxsize=1)
def _baseline(kind: str, seed: int, standardised: bool, quick: bool) -> tuple[MLP, Split]:
    return baseline(kind, seed, standardised=standardised, quick=quick)


# --- The page ----------------------------------------------------------------------------------------------------

SPARSITIES = (0.15, 0.3, 0.45, 0.6, 0.75)  # at which the two penalties are compared
ATTACK_NAMES = {
    "fgsm_half": "FGSM, half of the pixels",
    "fgsm": "FGSM, all pixels",
    "pgd": "PGD",
    "certified": "certified",
}


def section(records: Sequence[Record]) -> str:
    """The records as tables."""
    fits = [record for record in records if "rows_certified" in record]
    parts = []
    if any(record["part"] == "baseline" for record in records):
        parts += ["## The baselines", "", *baseline_table(records), ""]
    for objective in PRINTED:
        mine = [record for record in records if record["part"] == "table" and record["objective"] == objective]
        if mine:
            parts += [f"## {TABLES[objective]}", "", *printed_table(mine, objective), ""]
            parts += [f"### {TABLES[objective]}: readings", "", *readings_table(mine, objective), ""]
    parts += ["## Figure 4", "", "![Accuracy under attack against sparsity](../images/paper-robustness.png)", ""]
    parts += ["### At equal sparsity", "", *equal_sparsity_table(records), ""]
    if any(record["part"] == "path" for record in records):
        parts += ["### The path", "", *path_table(records), ""]
    minutes = sum(record["wall_seconds"] for record in records) / 60
    return "\n".join([*parts, f"{all_certified(fits)} They took {minutes:.0f} minutes.", "", *places(records)])


def baseline_table(records: Sequence[Record]) -> list[str]:
    """The networks themselves, a line each."""
    groups = grouped([record for record in records if record["part"] == "baseline"], "case")
    return table(
        ["baseline", "seeds", "clean", *_attack_heads()],
        [[name, f"{len(mine)}", _clean(mine), *_attack_cells(mine)] for (name,), mine in groups.items()],
    )


def printed_table(records: Sequence[Record], objective: str) -> list[str]:
    """The rows of a table beside the repeated readings of it."""
    names = [name for name in REPEATED if any(record["case"] == name for record in records)]
    wanted = ["sparsity", *(f"ε = {epsilon:g}" for epsilon in EPSILONS)]
    heads = ["m", "λ", "α" if objective == "perspective" else "β"]
    heads += [f"{told}: {who}" for told in wanted for who in ("printed", *names)] + [f"clean: {name}" for name in names]
    lines = []
    for row in PRINTED[objective]:
        of = {name: [r for r in records if (r["case"], r["row"]) == (name, row_name(row))] for name in names}
        if not any(of.values()):
            continue
        cells = [f"{row.m}", f"{row.loss_weight:g}", f"{row.alpha:g}", _number(row.sparsity)]
        cells += [spread([r["sparsity"] for r in mine], scale=100) for mine in of.values()]
        for k, printed in enumerate(row.accuracies):
            cells += [_number(printed), *(_attacked(mine, "fgsm_half", k) for mine in of.values())]
        lines.append([*cells, *(_clean(mine) for mine in of.values())])
    return table(heads, lines)


def readings_table(records: Sequence[Record], objective: str) -> list[str]:
    """Every reading, a line each, with the first seed: sparsity and accuracy under attack in every row of the table."""
    rows = PRINTED[objective]
    first = min(record["seed"] for record in records)
    heads = ["reading", *(f"m = {row.m}" for row in rows), "distance of sparsity", "of accuracy"]
    shown = [f"{_number(row.sparsity)}: {_number(row.accuracies[0])}" for row in rows]
    lines = [["printed", *shown, "", ""]]
    for name, reading in READINGS.items():
        mine = {r["row"]: r for r in records if (r["case"], r["seed"]) == (name, first)}
        if not mine:
            continue
        found = [mine.get(row_name(row)) for row in rows]
        cells = ["–" if r is None else f"{100 * r['sparsity']:.0f}: {100 * r['fgsm_half'][0]:.1f}" for r in found]
        pairs = [(r, row) for r, row in zip(found, rows) if r is not None]
        apart = [
            _distance([(100 * r["sparsity"], row.sparsity) for r, row in pairs]),
            _distance([(100 * r["fgsm_half"][0], row.accuracies[0]) for r, row in pairs]),
        ]
        lines.append([f"{name}: {reading.told}", *cells, *apart])
    return table(heads, lines)


def equal_sparsity_table(records: Sequence[Record]) -> list[str]:
    """L1 beside perspective where both are equally sparse, by lines between neighbouring models of each seed."""
    heads = ["models", "attack", *(f"{100 * share:.0f} %" for share in SPARSITIES), "baseline"]
    lines = []
    for part, name, network in (*(("table", name, case_of(name)) for name in REPEATED), ("path", "well-trained", None)):
        told = f"{name}, Tables 2 and 3" if part == "table" else "path"
        for k, epsilon in enumerate(EPSILONS):
            nets = _select(records, "baseline", network or name)
            for objective in PRINTED:
                mine = [r for r in _select(records, part, name) if r["objective"] == objective]
                if not mine:
                    continue
                accuracies = (at_sparsity(mine, share, under_attack(k)) for share in SPARSITIES)
                cells = [spread(values, scale=100) for values in accuracies]
                attacked = _attacked(nets, "fgsm_half", k)
                lines.append([f"{told}: {objective}", f"ε = {epsilon:g}", *cells, attacked])
    return table(heads, lines)


def path_table(records: Sequence[Record]) -> list[str]:
    """The models of the path, a line each."""
    lines = []
    paths = [record for record in records if record["part"] == "path"]
    for (objective, row), mine in grouped(paths, "objective", "row").items():
        sparse = spread([r["sparsity"] for r in mine], scale=100)
        lines.append([objective, row, f"{len(mine)}", sparse, _clean(mine), *_attack_cells(mine)])
    return table(["penalty", "α", "seeds", "sparsity", "clean", *_attack_heads()], lines)


def _attack_heads() -> list[str]:
    return [f"{told}, ε = {epsilon:g}" for told in ATTACK_NAMES.values() for epsilon in EPSILONS]


def _attack_cells(records: Sequence[Record]) -> list[str]:
    return [_attacked(records, attack, k) for attack in ATTACK_NAMES for k in range(len(EPSILONS))]


def case_of(name: str) -> str:
    """The name in records of the baseline of a reading."""
    return case(READINGS[name].baseline, READINGS[name].standardised)


def _select(records: Sequence[Record], part: str, name: str) -> list[Record]:
    return [record for record in records if (record["part"], record["case"]) == (part, name)]


def under_attack(k: int) -> Callable[[Record], float]:
    """The accuracy of a record under the paper's attack with the k-th ε."""
    return lambda record: record["fgsm_half"][k]


def _attacked(records: Sequence[Record], attack: str, k: int) -> str:
    return spread([record[attack][k] for record in records if attack in record], scale=100)


def _clean(records: Sequence[Record]) -> str:
    return spread([record["clean"] for record in records], scale=100)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:g}"


def _distance(pairs: Sequence[tuple[float, float | None]]) -> str:
    """Root mean square of the differences, where both are known."""
    known = [(ours - printed) ** 2 for ours, printed in pairs if printed is not None]
    return f"{math.sqrt(sum(known) / len(known)):.1f}" if known else "–"


# --- Pictures ----------------------------------------------------------------------------------------------------

COLOURS = {"perspective": "#D55E00", "l1": "#0072B2"}
LABELS = {"perspective": "perspective", "l1": "L1"}


def pictures(records: Sequence[Record]) -> dict[str, Figure]:
    """Figure 4: accuracy under the paper's attack against sparsity, a row of panels for each set of models."""
    drawn = [("table", name, case_of(name), f"Tables 2 and 3, reading “{name}”") for name in REPEATED]
    drawn.append(("path", "well-trained", "well-trained", f"recommended recipe, m = {PATH_SAMPLES:,}"))
    drawn = [entry for entry in drawn if _select(records, entry[0], entry[1])]
    figure = Figure(figsize=(9.5, 3.4 * len(drawn) + 0.4), layout="constrained")
    axes = figure.subplots(len(drawn), len(EPSILONS), squeeze=False, sharey="row", sharex=True)
    for line, (part, name, network, title) in zip(axes, drawn):
        for k, ax in enumerate(line):
            _panel(ax, _select(records, part, name), _select(records, "baseline", network), k, printed=part == "table")
            ax.set_title(f"{title}, ε = {EPSILONS[k]:g}", fontsize=9.5)
        line[0].set_ylabel("accuracy under attack (%)")
    for ax in axes[-1]:
        ax.set_xlabel("sparsity (%): parameters fewer than the baseline's")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=8.5, frameon=False)
    return {NAME: figure}


def _panel(ax: Axes, models: Sequence[Record], networks: Sequence[Record], k: int, *, printed: bool) -> None:
    for objective in PRINTED:
        mine = [record for record in models if record["objective"] == objective]
        points = sorted(
            (
                100 * np.mean([r["sparsity"] for r in group]),
                100 * np.mean([r["fgsm_half"][k] for r in group]),
                100 * np.std([r["fgsm_half"][k] for r in group], ddof=1) if len(group) > 1 else 0.0,
            )
            for group in grouped(mine, "row").values()
        )
        if points:
            x, y, error = zip(*points)
            ax.errorbar(x, y, error, color=COLOURS[objective], marker="o", ms=4, capsize=2, label=LABELS[objective])
        known = [(r.sparsity, r.accuracies[k]) for r in PRINTED[objective] if r.sparsity is not None]
        if printed:
            x, y = zip(*sorted(known))
            style: dict[str, Any] = {"color": COLOURS[objective], "marker": "s", "mfc": "none", "ms": 5, "ls": ":"}
            ax.plot(x, y, **style, label=f"{LABELS[objective]}, printed")
    if networks:
        level = 100 * np.mean([record["fgsm_half"][k] for record in networks])
        ax.axhline(level, color="#444444", ls="--", lw=1.2, label="baseline, under the same attack")
    ax.grid(alpha=0.3)


EXPERIMENT = Experiment(
    name=NAME,
    title="Accuracy under attack of sparse models (Tables 2 and 3, Figure 4)",
    keys=KEYS,
    run=one_after_another(jobs),
    section=section,
    pictures=pictures,
    jobs=jobs,
)
