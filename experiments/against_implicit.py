"""SIM against implicit differentiation, on models of the same size: `python -m experiments against-implicit`.

The same bias-free (A, B, C, D) with ‖A‖∞ ≤ κ, four ways, each in a process of its own, one after the other:

    implicit          all of it trained end to end by Adam, with derivatives through the equilibrium
    implicit-pruned   then as many of its largest weights kept as SIM keeps, and these trained further
    sim               a layered network trained, and SIM fitted to its states (two fits: adaptive weights)
    sim-tuned         then its nonzeros trained further end to end
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import simjax
from benchmarks.problems import KAPPA
from benchmarks.records import ROOT, Record, peak_mebibytes, places, plain, table
from experiments.experiment import Experiment, Job, Settings, certified, one_after_another
from experiments.sparse import pruned, relative_weights
from experiments.stages import Stage, spending, total
from simjax import datasets
from simjax.app.demo import RECIPES
from simjax.implicit.loop import Solver
from simjax.implicit.model import ImplicitModel
from simjax.nn import MLP, RECOMMENDED, ImplicitLayer, accuracy, train
from simjax.robustness.lipschitz import lipschitz_bounds

NAME = "against-implicit"
METHODS = {
    "sim": "SIM",
    "sim-tuned": "SIM, its nonzeros tuned",
    "implicit": "implicit differentiation",
    "implicit-pruned": "the same, pruned and tuned",
}
TARGETS = {"digits": (0.90, 0.95, 0.97), "fashion-mnist": (0.80, 0.85, 0.87)}
TUNING = {"epochs": 10, "learning_rate": 1e-3}
QUICK_SAMPLES, QUICK_EPOCHS, QUICK_TUNING = 200, 5, 2
# With tens of states the averaged iteration takes less time than its acceleration, though more passes.
SOLVER = Solver(method="averaged", max_iters=3000)

Curve = list[tuple[float, float]]  # seconds since the start, test accuracy then


# --- Running -----------------------------------------------------------------------------------------------------


def jobs(settings: Settings) -> Iterator[Job]:
    """What there is to do: the four ways together, since pruning keeps as many weights as SIM does."""
    for name in ["digits"] if settings.quick else list(TARGETS):
        for seed in settings.seeds:
            keys = tuple({"dataset": name, "method": method, "seed": seed} for method in METHODS)
            yield Job(keys, functools.partial(of_ways, keys, settings.quick))


def of_ways(every: Sequence[Record], quick: bool) -> Iterator[Record]:
    """The records of all ways to a model, SIM's first."""
    nonzeros = 0  # known once SIM has run
    for keys in every:
        record = in_own_process(**keys, nonzeros=nonzeros, quick=quick)
        nonzeros = nonzeros or record["nonzeros"]
        yield record


def in_own_process(dataset: str, method: str, seed: int, nonzeros: int, *, quick: bool) -> Record:
    """One record, by a process of its own, whose memory nothing else has touched."""
    command = [sys.executable, "-m", "experiments.against_implicit", dataset, method, str(seed), str(nonzeros)]
    done = subprocess.run([*command, *(["--quick"] if quick else [])], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the record of one way, for `in_own_process`."""
    parser = argparse.ArgumentParser(description="One way to a model, in this fresh process.")
    parser.add_argument("dataset", choices=list(TARGETS))
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("seed", type=int)
    parser.add_argument("nonzeros", type=int, help="how many weights implicit-pruned keeps")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    record = of_way(given.dataset, given.method, given.seed, given.nonzeros, quick=given.quick)
    print(json.dumps(record, allow_nan=False))


# --- One method --------------------------------------------------------------------------------------------------


def of_way(name: str, method: str, seed: int, nonzeros: int, *, quick: bool) -> Record:
    """Train by `method` and measure; `nonzeros` is how many "implicit-pruned" keeps."""
    data = datasets.load(name)
    recipe = dict(RECOMMENDED[name])
    tuning = {**recipe, **TUNING}
    if quick:
        recipe["epochs"], tuning["epochs"] = QUICK_EPOCHS, QUICK_TUNING
    before, stages, facts = peak_mebibytes(), dict[str, Stage](), dict[str, Any]()
    network: nnx.Module
    if method.startswith("sim"):
        model, network, facts = by_sim(data, seed, recipe, QUICK_SAMPLES if quick else None, stages)
        curve: Curve = [(total(stages).seconds, model.accuracy(data.test_inputs, data.test_labels))]
    else:
        p, n, q = sizes(data)

        def fresh() -> ImplicitLayer:
            return ImplicitLayer(p, n, q, kappa=KAPPA, use_bias=False, solver=SOLVER, rngs=nnx.Rngs(seed))

        network = layer = trained(fresh, data, seed, recipe, curve := [], stages, "training")
        model = layer.export()
    if method in ("sim-tuned", "implicit-pruned"):
        if method == "implicit-pruned":  # what came before was a larger model: its accuracies are not this one's
            model, curve = pruned(model, nonzeros), []
        kept = model
        network = layer = trained(
            lambda: kept.to_flax(kappa=KAPPA, keep_support=True, solver=SOLVER),
            data, seed, tuning, curve, stages, "tuning",
        )  # fmt: skip
        model = layer.export()
    peak, spent = peak_mebibytes(), total(stages)
    bounds = lipschitz_bounds(model)
    entries = model.n * (model.n + model.p) + model.q * (model.n + model.p)
    return plain(
        {
            "dataset": name,
            "method": method,
            "seed": seed,
            "n": model.n,
            "p": model.p,
            "q": model.q,
            **spent._asdict(),
            "stages": {stage: spent._asdict() for stage, spent in stages.items()},
            "curve": curve,
            "seconds_to": {f"{target:g}": time_to(curve, target) for target in TARGETS[name]},
            "test_accuracy": model.accuracy(data.test_inputs, data.test_labels),
            "nonzeros": model.nonzeros,
            "zeros": 1.0 - model.nonzeros / entries,
            "well_posedness": model.well_posedness,
            "lipschitz_inf": bounds.inf,
            "lipschitz_l2": bounds.l2,
            **facts,
            "before_mebibytes": before,
            "peak_mebibytes": peak,
            "gradient_mebibytes": gradient_mebibytes(network, data, recipe["batch_size"]),
        }
    )


def by_sim(
    data: datasets.Dataset, seed: int, recipe: Mapping[str, Any], samples: int | None, stages: dict[str, Stage]
) -> tuple[ImplicitModel, MLP, dict[str, Any]]:
    """A model fitted to a network trained here, the network, and what is certified; what was spent goes to `stages`.

    As `simjax demo` does it, with its recipe for the data set.
    """
    chosen = RECIPES[data.name]
    rows = np.random.default_rng(seed).permutation(len(data.train_labels))[: samples or chosen.samples]
    with spending(stages, "baseline"):
        network = MLP(chosen.sizes, rngs=nnx.Rngs(seed))
        train(network, data.train_inputs, data.train_labels, seed=seed, **recipe)
    with spending(stages, "states"):
        states = simjax.collect_states(network, data.train_inputs[rows])
    with spending(stages, "fits"):
        alpha = chosen.alpha * relative_weights(states, "perspective")
        result = simjax.fit(states, "perspective", alpha=alpha, kappa=KAPPA, reduction="mean", support="hollow")
    return result.model, network, {"samples": states.m, **certified(result)}


def trained(
    make: Callable[[], ImplicitLayer],
    data: datasets.Dataset,
    seed: int,
    recipe: Mapping[str, Any],
    curve: Curve,
    stages: dict[str, Stage],
    name: str,
) -> ImplicitLayer:
    """A new layer, trained; each epoch's end and accuracy go to `curve`, without the seconds that measuring it took."""
    earlier, test, stamps = total(stages).seconds, (data.test_inputs, data.test_labels), list[float]()
    with spending(stages, name):
        began = time.perf_counter()
        layer = make()
        report = train(
            layer,
            data.train_inputs,
            data.train_labels,
            seed=seed,
            validation=test,
            callback=lambda *_: stamps.append(time.perf_counter() - began),
            **recipe,
        )
    measuring = min(_seconds(lambda: accuracy(layer, *test)) for _ in range(3))
    assert report.validation_accuracies is not None
    for k, (stamp, share) in enumerate(zip(stamps, report.validation_accuracies.tolist()), start=1):
        curve.append((earlier + stamp - k * measuring, share))
    stages[name] = Stage(curve[-1][0] - earlier, stages[name].compile_seconds)
    return layer


def sizes(data: datasets.Dataset) -> tuple[int, int, int]:
    """The p, n and q of the implicit form of the data set's layered network."""
    p, *hidden, q = RECIPES[data.name].sizes
    return p, sum(hidden), q


def time_to(curve: Curve, target: float) -> float | None:
    """When the accuracy first was at least `target`, or None."""
    return next((seconds for seconds, share in curve if share >= target), None)


def gradient_mebibytes(network: nnx.Module, data: datasets.Dataset, batch_size: int) -> float:
    """Temporary memory of the compiled gradient of one batch, as the compiler states it."""
    graph, parameters = nnx.split(network)

    def loss(parameters: Any, u: jax.Array, labels: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, parameters)(u)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    u = jnp.asarray(data.train_inputs[:batch_size], jnp.float32)
    labels = jnp.asarray(data.train_labels[:batch_size], jnp.int32)
    analysis = jax.jit(jax.grad(loss)).lower(parameters, u, labels).compile().memory_analysis()
    assert analysis is not None  # every backend with a compiler has one
    return analysis.temp_size_in_bytes / 2**20


def _seconds(function: Callable[[], Any]) -> float:
    """Wall time of a call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


# --- The page ----------------------------------------------------------------------------------------


def section(records: Sequence[Record]) -> str:
    """The records as a table for each data set, and where they were made."""
    parts = []
    for name in dict.fromkeys(record["dataset"] for record in records):
        mine = [record for record in records if record["dataset"] == name]
        first = mine[0]
        parts += [f"**{name}**, n = {first['n']} states, p = {first['p']} inputs, q = {first['q']} outputs:", ""]
        parts += [*ways_table(mine), ""]
    return "\n".join([*parts, *places(records)])


def ways_table(records: Sequence[Record]) -> list[str]:
    """The records of one data set, a line each."""
    targets = list(records[0]["seconds_to"])
    heads = ["trained by", "seed", "seconds", "of them compiling"]
    heads += [f"to {100 * float(target):.0f} % (s)" for target in targets]
    heads += ["test accuracy %", "nonzeros", "zeros %", "‖A‖∞", "Lipschitz l∞", "Lipschitz l2", "memory (MiB)"]
    heads += ["gradient of a batch (MiB)"]
    rows = [
        [
            METHODS[record["method"]],
            f"{record['seed']}",
            f"{record['seconds']:.1f}",
            f"{record['compile_seconds']:.1f}",
            *(_number(record["seconds_to"][target], ".1f") for target in targets),
            f"{100 * record['test_accuracy']:.1f}",
            f"{record['nonzeros']:,}",
            f"{100 * record['zeros']:.1f}",
            f"{record['well_posedness']:.3f}",
            _number(record["lipschitz_inf"], ".3g"),
            _number(record["lipschitz_l2"], ".3g"),
            f"{record['peak_mebibytes'] - record['before_mebibytes']:.0f}",
            f"{record['gradient_mebibytes']:.2f}",
        ]
        for record in records
    ]
    return table(heads, rows)


def _number(value: Any, form: str) -> str:
    """A number, a dash where there is none, ∞ where it is not finite (a string in the records)."""
    return "–" if value is None else "∞" if isinstance(value, str) else format(value, form)


EXPERIMENT = Experiment(
    name=NAME,
    title="SIM against implicit differentiation",
    keys=("dataset", "method", "seed"),
    run=one_after_another(jobs),
    section=section,
    pictures=lambda _: {},
    jobs=jobs,
)


if __name__ == "__main__":
    main()
