"""SIM against implicit differentiation, on models of the same size: `python -m benchmarks.against_implicit`.

The same bias-free (A, B, C, D) with ‖A‖∞ ≤ κ, four ways, each in a process of its own, one after the other:

    implicit          all of it trained end to end by Adam, with derivatives through the equilibrium
    implicit-pruned   then as many of its largest weights kept as SIM keeps, and these trained further
    sim               a layered network trained, and SIM fitted to its states (two fits: adaptive weights)
    sim-tuned         then its nonzeros trained further end to end

Writes benchmarks/results/against_implicit.json, record by record, and a table between two markers of docs/implicit.md.
With --quick, a short run on digits that only prints.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import simjax
from benchmarks.records import RESULTS, ROOT, Record, merge, peak_mebibytes, place, places, plain, read, write_between
from simjax import datasets
from simjax.app.demo import RECIPES
from simjax.implicit.equilibrium import Solver
from simjax.implicit.model import ImplicitModel
from simjax.nn import MLP, RECOMMENDED, ImplicitLayer, accuracy, train
from simjax.robustness.lipschitz import lipschitz_bounds
from simjax.states.states import States

OUTPUT = RESULTS / "against_implicit.json"
PAGE = ROOT / "docs" / "implicit.md"
BEGIN, END = "<!-- against-implicit:begin -->", "<!-- against-implicit:end -->"

KAPPA = 0.99
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
# The penalty of the first fit, whose weights say how much each weight pays in the second.
FIRST_ALPHA, FIRST_TOL, EPSILON = 1e-4, 1e-3, 0.05

Curve = list[tuple[float, float]]  # seconds since the start, test accuracy then


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--datasets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--quick", action="store_true", help="few epochs and samples of digits; writes nothing")
    parser.add_argument("--output", type=Path, help=f"records, instead of {OUTPUT.relative_to(ROOT)}")
    parser.add_argument("--page", type=Path, help=f"the page with the table, instead of {PAGE.relative_to(ROOT)}")
    parser.add_argument("--one", nargs=4, metavar=("DATASET", "METHOD", "SEED", "NONZEROS"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        name, method, seed, nonzeros = given.one
        print(json.dumps(run(name, method, int(seed), int(nonzeros), quick=given.quick), allow_nan=False))
        return
    output, page = (given.output, given.page) if given.quick else (given.output or OUTPUT, given.page or PAGE)
    records: list[Record] = []
    for name in ["digits"] if given.quick else given.datasets:
        for seed in given.seeds:
            nonzeros = 0  # known once SIM has run
            for method in METHODS:
                record = in_own_process(name, method, seed, nonzeros, quick=given.quick)
                nonzeros = nonzeros or record["nonzeros"]
                records.append(record)
                if output is not None:
                    merge(output, record, ("dataset", "method", "seed"))
                print(json.dumps({key: record[key] for key in ("dataset", "method", "seconds", "test_accuracy")}))
    if output is not None:
        records = read(output)
    if page is not None:
        write_between(page, BEGIN, END, section(records))
    else:
        print(section(records))


def in_own_process(name: str, method: str, seed: int, nonzeros: int, *, quick: bool) -> Record:
    """One record, by a process of its own, whose memory nothing else has touched."""
    command = [sys.executable, "-m", "benchmarks.against_implicit", "--one", name, method, str(seed), str(nonzeros)]
    done = subprocess.run([*command, *(["--quick"] if quick else [])], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# --- One method --------------------------------------------------------------------------------------------------


def run(name: str, method: str, seed: int, nonzeros: int, *, quick: bool) -> Record:
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
            "quick": quick,
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
            **place(),
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
    certified = int(np.count_nonzero(result.status == simjax.Status.SOLVED))
    return result.model, network, {"samples": states.m, "rows": result.status.size, "rows_certified": certified}


def relative_weights(states: States, objective: str, **options: Any) -> np.ndarray:
    """Adaptive weights, at most 1, from a coarse first fit: a weight found large pays little in the next."""
    options = {"kappa": KAPPA, "reduction": "mean", "support": "hollow", **options}
    first = simjax.fit(states, objective, alpha=FIRST_ALPHA, tol=FIRST_TOL, **options)
    return EPSILON * simjax.adaptive_weights(first, epsilon=EPSILON)


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
        begin = time.perf_counter()
        layer = make()
        report = train(
            layer,
            data.train_inputs,
            data.train_labels,
            seed=seed,
            validation=test,
            callback=lambda *_: stamps.append(time.perf_counter() - begin),
            **recipe,
        )
    measuring = min(_seconds(lambda: accuracy(layer, *test)) for _ in range(3))
    assert report.validation_accuracies is not None
    for k, (stamp, share) in enumerate(zip(stamps, report.validation_accuracies.tolist()), start=1):
        curve.append((earlier + stamp - k * measuring, share))
    stages[name] = Stage(curve[-1][0] - earlier, stages[name].compile_seconds)
    return layer


def pruned(model: ImplicitModel, nonzeros: int) -> ImplicitModel:
    """The model with only its `nonzeros` largest weights, over A, B, C and D together."""
    matrices: dict[str, Any] = {name: getattr(model.to_dense(), name) for name in "ABCD"}
    sizes_of_weights = np.sort(np.concatenate([np.abs(M).ravel() for M in matrices.values()]))
    if not 1 <= nonzeros <= sizes_of_weights.size:
        raise ValueError(f"nonzeros must be in 1 … {sizes_of_weights.size}, got {nonzeros}.")
    least = sizes_of_weights[-nonzeros]
    kept: dict[str, Any] = {name: np.where(np.abs(M) >= least, M, 0.0) for name, M in matrices.items()}
    return replace(model, **kept)


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


class Stage(NamedTuple):
    """Wall time of a stage, and how much of it XLA compiled."""

    seconds: float
    compile_seconds: float


def total(stages: Mapping[str, Stage]) -> Stage:
    """All stages together."""
    return Stage(*(sum(column) for column in zip((0.0, 0.0), *stages.values())))


@contextmanager
def spending(stages: dict[str, Stage], name: str) -> Iterator[None]:
    """Puts what is spent inside into `stages`."""
    begin, known = time.perf_counter(), len(_compilations())
    yield
    stages[name] = Stage(time.perf_counter() - begin, sum(_compilations()[known:]))


@functools.cache
def _compilations() -> list[float]:
    """The seconds of every compilation by XLA in this process since the first call of this function; it grows."""
    found: list[float] = []

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)
    return found


def _seconds(function: Callable[[], Any]) -> float:
    """Wall time of a call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


# --- The page ----------------------------------------------------------------------------------------


def section(records: Sequence[Record]) -> str:
    """The records as a table for each data set, and where they were made."""
    parts = ["Generated by `python -m benchmarks.against_implicit`; do not edit.", ""]
    for name in dict.fromkeys(record["dataset"] for record in records):
        mine = [record for record in records if record["dataset"] == name]
        first = mine[0]
        parts += [f"**{name}**, n = {first['n']} states, p = {first['p']} inputs, q = {first['q']} outputs:", ""]
        parts += [*table(mine), ""]
    return "\n".join([*parts, *places(records)])


def table(records: Sequence[Record]) -> list[str]:
    """The records of one data set, a line each."""
    targets = list(records[0]["seconds_to"])
    reached = " | ".join(f"to {100 * float(target):.0f} % (s)" for target in targets)
    lines = [
        f"| trained by | seed | seconds | of them compiling | {reached} | test accuracy % | nonzeros "
        "| zeros % | ‖A‖∞ | Lipschitz l∞ | Lipschitz l2 | memory (MiB) | gradient of a batch (MiB) |",
        "|---" * (12 + len(targets)) + "|",
    ]
    for record in records:
        times = " | ".join(_number(record["seconds_to"][target], ".1f") for target in targets)
        lines.append(
            f"| {METHODS[record['method']]} | {record['seed']} | {record['seconds']:.1f} "
            f"| {record['compile_seconds']:.1f} | {times} "
            f"| {100 * record['test_accuracy']:.1f} | {record['nonzeros']:,} | {100 * record['zeros']:.1f} "
            f"| {record['well_posedness']:.3f} | {_number(record['lipschitz_inf'], '.3g')} "
            f"| {_number(record['lipschitz_l2'], '.3g')} "
            f"| {record['peak_mebibytes'] - record['before_mebibytes']:.0f} | {record['gradient_mebibytes']:.2f} |"
        )
    return lines


def _number(value: Any, form: str) -> str:
    """A number, a dash where there is none, ∞ where it is not finite (a string in the records)."""
    return "–" if value is None else "∞" if isinstance(value, str) else format(value, form)


if __name__ == "__main__":
    main()
