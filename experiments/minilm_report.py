"""What the prune-minilm experiment says of its records: tables, aims and pictures."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.pruning_peers import PEERS
from benchmarks.records import Record, places, table
from experiments import minilm
from experiments.experiment import all_certified, grouped, spread
from experiments.minilm_matrices import (
    ALONE,
    CORRECTIONS,
    DENSE,
    EVALUATED,
    IN_TURN,
    LEVELS,
    METHODS,
    OURS,
)
from simjax.pruning.evaluation import CURVES, EVEN, SENSITIVITY

WAYS = (CURVES, SENSITIVITY, EVEN)  # in the order in which `prune` tries them
TITLES = {
    OURS: "simjax",
    EVALUATED: "simjax, by evaluate",
    **{method: f"simjax, correction={gamma:g}" for method, gamma in CORRECTIONS.items()},
    DENSE: "the trained encoder",
}
COLOURS = {
    EVALUATED: "tab:red",
    OURS: "tab:blue",
    "ALPS": "tab:orange",
    "SparseGPT": "tab:green",
    "SparseSwaps": "tab:purple",
    "Wanda": "tab:brown",
    "magnitude": "tab:gray",
}
KEYS = ("zeros", "method", "refit")
Cell = Mapping[tuple[str, str, bool], list[Record]]  # by them, the records of the seeds


def cells(records: Sequence[Record], how: str) -> dict[tuple[str, str, bool], list[Record]]:
    mine = [record for record in records if record["how"] == how]
    return {(zeros, method, refit): found for (zeros, method, refit), found in grouped(mine, *KEYS).items()}


def shown(zeros: str) -> str:
    """A level for a person."""
    return zeros if ":" in zeros else f"{100 * float(zeros):.0f} %"


def levels(by: Cell) -> list[str]:
    """Those there are, in the order of `LEVELS`."""
    there = {zeros for zeros, _, _ in by}
    return [zeros for zeros in LEVELS if zeros in there]


def mean_error(record: Record) -> float:
    """Over all matrices, on tokens held out."""
    return float(np.mean(record["errors"]))


def section(records: Sequence[Record]) -> str:
    """The tables, what was aimed at, the certificates, and where made."""
    alone, in_turn = cells(records, ALONE), cells(records, IN_TURN)
    one = next((record for record in records if record["how"] == IN_TURN), records[0])  # which embeds messages
    lines = [
        f"Calibrated on {one['calibration_tokens']:,} tokens, errors on {one['held_out_tokens']:,} others; embeddings "
        f"of {one['test_texts']:,} test messages, a classifier trained on {one['train_texts']:,}, all cut at "
        f"{one['max_tokens']} tokens. Where there are several seeds: mean ± standard deviation over them.",
        "",
        "## What was aimed at",
        "",
        "Accuracies over all seeds, and of a peer those that it was run with; all else with the first seed.",
        "",
        *aims(alone, in_turn),
        "",
        "## Alone: relative error",
        "",
        "Mean over the matrices, on tokens held out; as it is → with our refit on its support.",
        "",
        *error_table(alone, levels(alone)),
        "",
        "Matrix by matrix: on how many ours is at or below a peer.",
        "",
        *duel_table(alone, levels(alone)),
        "",
        "Relative error of ours by kind of matrix, mean over layers and seeds; the seconds at 70 %, for all layers.",
        "",
        *kind_table(alone, levels(alone)),
        "",
        "## In turn: the encoder",
        "",
        *accuracy_table(in_turn, levels(in_turn)),
        "",
        *sharing_table(in_turn, levels(in_turn)),
        all_certified(records),
        "",
        *places(records),
    ]
    return "\n".join(lines)


def aims(alone: Cell, in_turn: Cell) -> list[str]:
    """What was aimed at, and what was found: accuracies of all seeds, all else of the first one there is."""

    def first(by: Cell, zeros: str, method: str, refit: bool = True) -> Record | None:
        mine = by.get((zeros, method, refit), [])
        return min(mine, key=lambda record: record["seed"]) if mine else None

    def verdict(met: Sequence[bool], wanted: int) -> str:
        """Of what was measured, and whether that is all."""
        if not met:
            return "not measured"
        said = "met" if all(met) else "**missed**"
        return said if len(met) == wanted else f"{said} at {len(met)} of {wanted} levels, the others not measured"

    rows = []
    told, met = [], []
    for zeros in levels(alone):
        ours, peer = first(alone, zeros, OURS), first(alone, zeros, "SparseGPT", False)
        if ours is not None and peer is not None:
            told.append(f"{shown(zeros)}: {mean_error(ours):.3g} and {mean_error(peer):.3g}")
            met.append(mean_error(ours) < mean_error(peer))
    aim = "mean error below SparseGPT's at every level"
    rows.append([aim, "; ".join(told), verdict(met, len(LEVELS))])
    told, met = [], []
    for zeros in ("0.5", "0.7", "0.9", "2:4"):
        ours, peer = first(alone, zeros, OURS), first(alone, zeros, "ALPS", False)
        if ours is not None and peer is not None:
            won = sum(a <= b for a, b in zip(ours["errors"], peer["errors"], strict=True))
            told.append(f"{shown(zeros)}: {won} of {len(ours['errors'])}")
            met.append(won >= 30)
    aim = "at or below ALPS, as it is, on at least 30 of the 36 matrices"
    rows.append([aim, "; ".join(told), verdict(met, 4)])
    dense = first(in_turn, "0", DENSE, False)
    for zeros in ("0.5", "0.7", "0.8"):
        accuracies, leads = by_seed(in_turn, zeros, OURS, True), leads_of(in_turn, zeros)
        if not accuracies or dense is None:
            continue
        told_ours = f"{spread(list(accuracies.values()), '.2f', 100.0)} %"
        if zeros == "0.5":
            aim = "at 50 % accuracy within 0.5 points of the trained encoder's"
            met = [statistics.fmean(accuracies.values()) >= dense["accuracy"] - 0.005]
            rows.append([aim, f"{told_ours}, {100 * dense['accuracy']:.2f} % trained", verdict(met, 1)])
        elif leads:
            name, values = min(leads.items(), key=lambda one: statistics.fmean(one[1]))
            lead = spread(values, "+.2f", 100.0)
            found = f"{told_ours}; against the best of {len(leads)} peers, {name}, {lead} points"
            said = verdict([statistics.fmean(values) > 0.0], 1)
            missing = 2 * len(PEERS) - len(leads)
            said += f", {missing} peers not measured" if missing else ""
            rows.append([f"at {shown(zeros)} accuracy ahead of every peer, refitted or not", found, said])
    runs = [record for mine in in_turn.values() for record in mine if record["method"] == OURS]
    timed = [record for record in runs if record["mebibytes"] and not record["threads"]]  # with a thread for each core
    for record in timed[:1]:
        minutes = record["seconds"] / 60.0
        found = (
            f"`prune` at {shown(record['zeros'])}: {minutes:.1f} minutes and {record['mebibytes']:,.0f} MiB, where the "
            f"load of the cores was {record['load_before']:g} before and {record['load']:g} after"
        )
        met = [minutes <= 10.0 and record["mebibytes"] <= 2e9 / 2**20]
        rows.append(["all matrices in ten minutes on two cores and 2 GB", found, verdict(met, 1)])
    solved, there = (
        sum(r[key] for by in (alone, in_turn) for mine in by.values() for r in mine if r["method"] not in PEERS)
        for key in ("rows_certified", "rows")
    )
    rows.append(["every refitted row certified at 1e-6", f"{solved:,} of {there:,}", verdict([solved == there], 1)])
    return table(["aim", "found", ""], rows)


def by_seed(by: Cell, zeros: str, method: str, refit: bool) -> dict[int, float]:
    """The accuracy of a method with each seed that it was run with."""
    return {record["seed"]: record["accuracy"] for record in by.get((zeros, method, refit), [])}


def leads_of(by: Cell, zeros: str) -> dict[str, list[float]]:
    """How far ours is ahead of each peer in accuracy, with each seed that both were run with."""
    ours, leads = by_seed(by, zeros, OURS, True), dict[str, list[float]]()
    for method, refit in itertools.product(PEERS, (False, True)):
        peer = by_seed(by, zeros, method, refit)
        both = [ours[seed] - peer[seed] for seed in sorted(ours.keys() & peer.keys())]
        if both:
            leads[named(method, refit)] = both
    return leads


def named(method: str, refit: bool) -> str:
    """A method for a person; ours is always refitted."""
    return TITLES.get(method, method) + (" + refit" if refit and method in PEERS else "")


def error_table(by: Cell, shares: Sequence[str]) -> list[str]:
    """Methods in columns, levels in rows."""
    rows, methods = [], (OURS, *reversed(PEERS))
    for zeros in shares:
        row = [shown(zeros)]
        for method in methods:
            found = [by.get((zeros, method, refit), []) for refit in (False, True)]
            texts = [spread([mean_error(record) for record in mine], ".3g") for mine in found if mine]
            row.append(" → ".join(texts) or "–")
        rows.append([*row, seeds_of(by, zeros)])
    return table(["zeros", *(TITLES.get(method, method) for method in methods), "seeds"], rows)


def seeds_of(by: Cell, zeros: str) -> str:
    """How many seeds each number of a level is a mean of: one number, or the methods with more than the fewest."""
    counts = {method: len(by.get((zeros, method, True), [])) for method in METHODS}
    counts = {method: count for method, count in counts.items() if count}
    least = min(counts.values())
    more = [f"{count} {TITLES.get(method, method)}" for method, count in counts.items() if count > least]
    return ", ".join([str(least), *more])


def accuracy_table(by: Cell, shares: Sequence[str]) -> list[str]:
    """A line for each level, method and whether refitted."""
    dense = by.get(("0", DENSE, False), [])
    rows = []
    for (zeros, method, refit), mine in [
        *(((zeros, DENSE, False), dense) for zeros in ("0",) if dense),
        *((key, by[key]) for key in itertools.product(shares, METHODS, (False, True)) if key in by),
    ]:
        title = named(method, refit)
        numbers = [spread([r[key] for r in mine], ".2f", 100.0) for key in ("accuracy", "accuracy_retrained")]
        lost = spread([r["accuracy"] - dense[0]["accuracy"] for r in mine], "+.2f", 100.0) if dense else "–"
        cosine = spread([r["cosine"] for r in mine], ".4f")
        rows.append([shown(zeros), title, cosine, numbers[0], lost, numbers[1], str(len(mine))])
    heads = [
        "zeros",
        "method",
        "cosine",
        "accuracy (%)",
        "against trained (points)",
        "trained anew (%)",
        "seeds",
    ]
    return table(heads, rows)


def sharing_table(by: Cell, shares: Sequence[str]) -> list[str]:
    """What `evaluate` gave for each way to share out zeros, and the share that each kind of matrix got."""
    rows = []
    for zeros in shares:
        for record in by.get((zeros, EVALUATED, True), []):
            of_kinds: dict[str, list[float]] = {kind: [] for kind in minilm.LINEAR}
            for name, share in record["layer_zeros"].items():
                of_kinds[name.rpartition(".")[2]].append(100.0 * share)
            told = [f"{record['ways'][way]:.4f}" if way in record["ways"] else "–" for way in WAYS]
            told[WAYS.index(record["chosen"])] = f"**{told[WAYS.index(record['chosen'])]}**"
            rows.append([shown(zeros), *told, *(f"{np.mean(found):.0f}" for found in of_kinds.values())])
    if not rows:
        return []
    heads = ["zeros", *(f"cosine, {way}" for way in WAYS), *(f"{kind} (%)" for kind in minilm.LINEAR)]
    said = (
        "With `evaluate`: the cosine on training messages of each way to share out zeros, in bold the one that was "
        "kept, and the share of zeros that it gives each kind of matrix, mean over layers."
    )
    return [said, "", *table(heads, rows), ""]


def duel_table(by: Cell, shares: Sequence[str]) -> list[str]:
    """On how many matrices ours is at or below each peer, with the same seed; certified rows and time."""
    rivals = [(method, refit) for method in ("ALPS", "SparseGPT") for refit in (False, True)]
    rows = []
    for zeros in shares:
        ours = by.get((zeros, OURS, True), [])
        if not ours:
            continue
        row = [shown(zeros)]
        for method, refit in rivals:
            pairs = [
                (mine, peer)
                for mine in ours
                for peer in by.get((zeros, method, refit), [])
                if mine["seed"] == peer["seed"]
            ]
            won = [sum(a <= b for a, b in zip(mine["errors"], peer["errors"], strict=True)) for mine, peer in pairs]
            row.append(f"{spread(won, '.3g')} of {len(ours[0]['errors'])}" if won else "–")
        solved, rows_there = (sum(record[key] for record in ours) for key in ("rows_certified", "rows"))
        seconds = spread([record["seconds"] for record in ours], ".0f")
        load = spread([record["load"] for record in ours], ".1f")
        rows.append([*row, f"{solved:,} of {rows_there:,}", seconds, load])
    names = [f"≤ {named(method, refit)}" for method, refit in rivals]
    return table(["zeros", *names, "rows certified", "s", "load"], rows)


def kind_table(by: Cell, shares: Sequence[str]) -> list[str]:
    """Error of ours by kind of matrix."""
    rows = []
    for kind in kinds(by):
        row = [kind]
        for zeros in shares:
            row.append(
                spread([float(np.mean(of_kind(r, kind, "errors"))) for r in by.get((zeros, OURS, True), [])], ".3g")
            )
        row.append(spread([sum(of_kind(r, kind, "matrix_seconds")) for r in by.get(("0.7", OURS, True), [])], ".0f"))
        rows.append(row)
    return table(["matrix", *map(shown, shares), "s"], rows)


def kinds(by: Cell) -> list[str]:
    """Those of the matrices of ours that there are."""
    there = {name.split(".")[1] for (_, method, _), mine in by.items() if method == OURS for name in mine[0]["names"]}
    return [kind for kind in minilm.LINEAR if kind in there]


def of_kind(record: Record, kind: str, entry: str) -> list[float]:
    """The numbers of the matrices of one kind, layer by layer."""
    return [value for name, value in zip(record["names"], record[entry], strict=True) if name.endswith(f".{kind}")]


def pictures(records: Sequence[Record]) -> Mapping[str, Figure]:
    """Error and accuracy against zeros, and the error of each matrix."""
    alone, in_turn = cells(records, ALONE), cells(records, IN_TURN)
    figure = Figure(figsize=(13.0, 5.8), layout="constrained")
    error, accuracy, matrices_ = figure.subplots(1, 3)
    for method, refit in itertools.product(COLOURS, (True, False)):
        drawn(error, alone, method, refit, mean_error)
        drawn(accuracy, in_turn, method, refit, lambda record: 100 * record["accuracy"])
    for record in in_turn.get(("0", DENSE, False), []):
        accuracy.axhline(100 * record["accuracy"], color="black", linestyle=":", label="the trained encoder")
    error.set(xlabel="zeros (%)", ylabel="relative error", yscale="log", title="mean over the matrices")
    accuracy.set(xlabel="zeros (%)", ylabel="accuracy (%)", title="the trained encoder's classifier")
    lines = {"0.5": ":", "0.7": "--", "0.9": "-"}
    there = [zeros for zeros in lines if (zeros, OURS, True) in alone]
    colours = ("tab:blue", "tab:cyan", "tab:green", "tab:orange", "tab:red", "tab:purple")
    for zeros, (kind, colour) in itertools.product(there, zip(kinds(alone), colours)):
        values = np.mean([of_kind(record, kind, "errors") for record in alone[zeros, OURS, True]], axis=0)
        label = kind if zeros == there[-1] else None
        matrices_.plot(np.arange(1, len(values) + 1), values, lines[zeros], color=colour, marker=".", label=label)
    matrices_.set(
        xlabel="layer", ylabel="relative error", yscale="log", title="simjax at 50 % (···), 70 % (– –), 90 % (—)"
    )
    for axis in (error, accuracy, matrices_):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return {"prune-minilm": figure}


def drawn(axes: Axes, by: Cell, method: str, refit: bool, value: Callable[[Record], float]) -> None:
    """A method's line; dashed as it is, full with a refit."""
    points = [
        (100 * float(zeros), by[zeros, method, refit])
        for zeros in levels(by)
        if ":" not in zeros and (zeros, method, refit) in by
    ]
    if points:
        means = [np.mean([value(record) for record in mine]) for _, mine in points]
        style, width = ("-" if refit else "--"), (1.2 if method in PEERS else 2.2)
        axes.plot(
            [x for x, _ in points],
            means,
            style,
            color=COLOURS[method],
            linewidth=width,
            marker="o",
            markersize=3,
            label=named(method, refit),
        )
