"""`prune` on the Fashion-MNIST networks of the pareto experiment: `python -m experiments prune-fashion`.

Calibrated on training samples alone, at the same shares of zeros, with the zeros the same in every layer or shared out;
test accuracy beside that of the fits which the pareto experiment chose on held-out samples.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

import simjax
from benchmarks.records import ROOT, Record, places, read, table
from experiments import pareto
from experiments.baselines import baseline
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

NAME = "prune-fashion"
TARGETS = pareto.TARGETS
ALLOCATIONS = {"layer": "the same share in every layer", "global": "shared out by error curves"}
SAMPLES = 10_000  # training samples, the first in the order of the seed


def jobs(settings: Settings) -> Iterator[Job]:
    """One for each seed."""
    for seed in settings.seeds:
        keys = [("none", 0.0), *((allocation, target) for allocation in ALLOCATIONS for target in TARGETS)]
        made = tuple({"seed": seed, "allocation": allocation, "target": target} for allocation, target in keys)
        yield Job(made, functools.partial(measured, seed, settings.quick))


def measured(seed: int, quick: bool) -> Iterator[Record]:
    """A record for the network itself, and one for each allocation and target."""
    network, split = baseline("well-trained", seed, quick=quick)
    inputs = split.train_inputs[: 500 if quick else SAMPLES].astype(np.float32)
    common = {"seed": seed, "samples": len(inputs)}
    nothing = {"rows": 0, "rows_certified": 0, "worst_relative_gap": 0.0, "sparsity": 0.0, "errors": []}
    clean = network.export().accuracy(split.test_inputs, split.test_labels)
    yield {**common, "allocation": "none", "target": 0.0, **nothing, "clean": clean, "prune_seconds": 0.0}
    for allocation in ALLOCATIONS:
        for target in TARGETS:
            result = simjax.prune(network, inputs, target, allocation=allocation)
            layers = list(result.layers.values())
            yield {
                **common,
                "allocation": allocation,
                "target": target,
                "sparsity": result.sparsity,
                **certified_layers(layers),
                "errors": [layer.relative_error for layer in layers],
                "clean": result.network.export().accuracy(split.test_inputs, split.test_labels),
                "prune_seconds": result.seconds,
            }


def chosen_fits() -> dict[float, list[float]]:
    """Test accuracies of the fits that the pareto experiment chose, for each target, over its seeds."""
    records = read(ROOT / "experiments" / "results" / f"{pareto.NAME}.json")
    chosen = pareto.chosen(records)
    return {
        target: [
            record["clean"]
            for record in records
            if (record["split"], record["method"], record["target"]) == ("test", chosen[target], target)
        ]
        for target in TARGETS
    }


def section(records: Sequence[Record]) -> str:
    """The table, whether each aim is met, the certificates, and where made."""
    seeds = ", ".join(str(seed) for (seed,) in grouped(records, "seed"))
    base = [record["clean"] for record in records if record["allocation"] == "none"]
    fits = chosen_fits()
    heads = [
        "zeros",
        "allocation",
        "zeros reached (%)",
        "relative error of each layer",
        "test accuracy (%)",
        "SIM fit (%)",
        "",
    ]
    rows = [["0 %", "the network itself", "0.0", "–", spread(base, ".2f", 100.0), "–", ""]]
    pruned = [record for record in records if record["allocation"] != "none"]
    for (target, allocation), mine in sorted(grouped(pruned, "target", "allocation").items()):
        accuracy = [record["clean"] for record in mine]
        met = np.mean(accuracy) >= np.mean(fits[target])
        rows.append(
            [
                f"{100 * target:.0f} %",
                ALLOCATIONS[allocation],
                spread([record["sparsity"] for record in mine], ".1f", 100.0),
                ", ".join(f"{error:.3g}" for error in np.mean([record["errors"] for record in mine], axis=0)),
                spread(accuracy, ".2f", 100.0),
                spread(fits[target], ".2f", 100.0),
                "no worse" if met else "**worse**",
            ]
        )
    lines = [f"Seeds {seeds}; calibrated on {records[0]['samples']:,} training samples.", "", *table(heads, rows), ""]
    return "\n".join([*lines, all_certified(records), "", *places(records)])


def pictures(records: Sequence[Record]) -> Mapping[str, Figure]:
    """Error of the first layer's outputs and of the last one's, and test accuracy, against zeros; means over seeds."""
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    errors, accuracy = figure.subplots(1, 2)
    styles = {"layer": ("tab:orange", "o"), "global": ("tab:blue", "D")}
    for allocation, (colour, marker) in styles.items():
        groups = sorted(grouped([r for r in records if r["allocation"] == allocation], "target").items())
        if not groups:
            continue
        zeros = [100 * np.mean([record["sparsity"] for record in mine]) for _, mine in groups]
        for layer, style in ((0, "-"), (-1, "--")):
            which = "first" if layer == 0 else "last"
            values = [np.mean([record["errors"][layer] for record in mine]) for _, mine in groups]
            label = f"{ALLOCATIONS[allocation]}, {which} layer"
            errors.plot(zeros, values, color=colour, marker=marker, linestyle=style, label=label)
        values = [100 * np.mean([record["clean"] for record in mine]) for _, mine in groups]
        accuracy.plot(zeros, values, color=colour, marker=marker, label=f"prune, {ALLOCATIONS[allocation]}")
    fits = chosen_fits()
    means = [100 * np.mean(fits[target]) for target in TARGETS]
    accuracy.plot([100 * target for target in TARGETS], means, color="tab:gray", marker="s", label="SIM fit (pareto)")
    base = 100 * np.mean([record["clean"] for record in records if record["allocation"] == "none"])
    accuracy.axhline(base, color="black", linestyle="--", label="the network itself")
    errors.set(xlabel="zeros (%)", ylabel="relative error of outputs", yscale="log")
    accuracy.set(xlabel="zeros (%)", ylabel="test accuracy (%)")
    for axis in (errors, accuracy):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14))  # below, clear of the points
    return {NAME: figure}


EXPERIMENT = Experiment(
    name=NAME,
    title="prune on Fashion-MNIST",
    keys=("seed", "allocation", "target"),
    run=one_after_another(jobs),
    section=section,
    pictures=pictures,
    jobs=jobs,
)
