"""Everything that is claimed about GPUs, measured by one command within nine minutes: `python -m benchmarks.gpu`.

    device        what it is, with which versions and drivers
    rates         products at the solver's shapes: float32 in full precision and as JAX does by default (TF32 on
                  NVIDIA's cards), float64
    solve         whole solves on the engine "jax": compilation apart, passes in float32 and in float64 alone, the share
                  of the product rate that they achieve, memory, and certificates worked out again by NumPy on the CPU
    functional    the functional API under vmap, against its calls one by one, and its derivatives
    prune         `simjax.prune_layer`

It needs no file outside of this repository: stand-ins of the standard problem take the place of Fashion-MNIST. Results
are written after every step, the most important ones first, so that a run that is cut keeps what it has. `--quick`
takes the same steps at small sizes, in less than a minute on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import simjax
from benchmarks import budget, problems
from benchmarks.cost import seconds_of
from benchmarks.records import RESULTS, Record, peak_mebibytes, place, versions
from simjax import functional
from simjax.rows.certificate import certify
from simjax.rows.engines.jax_engine import JaxEngine
from simjax.rows.options import SolveOptions
from simjax.rows.solution import dense_rows
from simjax.rows.solve import solve_problem
from simjax.rows.solvers import admm, first_order
from simjax.rows.solvers.canonical import CanonicalRows, canonical_rows
from simjax.rows.solvers.factor import Factorisation
from simjax.rows.workspace import Workspace

LIMIT = 9 * 60.0
_COMPILED = "/jax/core/compile/backend_compile_duration"
_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)

Step = tuple[str, float, Callable[[], Record]]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
      products: rows, columns and rank of the products.
      stand_ins: samples and objective of the stand-ins, and their network.
      held_out: rows, columns, samples.
      large: rows, columns (states and inputs), samples.
      batch: designs, samples, columns and rows of each, for vmap.
      alphas: as many derivatives at once.
      one: samples, columns and rows of one functional call.
      one_in: its precisions.
      layer: samples, inputs and outputs of the layer to prune.
    """

    products: tuple[tuple[int, int, int], ...]
    stand_ins: tuple[tuple[int, str], ...]
    network: tuple[int, ...]
    held_out: tuple[int, int, int]
    large: tuple[int, int, int]
    batch: tuple[int, int, int, int]
    alphas: int
    one: tuple[int, int, int]
    one_in: tuple[np.dtype, ...]
    layer: tuple[int, int, int]


FULL = Sizes(
    products=((122, 896, 100), (122, 896, 500), (122, 896, 880), (1024, 896, 880), (8192, 9216, 4096)),
    stand_ins=(
        *((m, "l1") for m in (500, 100, 1000, 60_000)),
        (500, "perspective"),
        *((m, "l1") for m in (5000, 20_000)),
    ),
    network=problems.NETWORKS["fashion-mnist"],
    held_out=(2000, 300, 500),
    large=(8192, 8192 + 1024, 4096),
    batch=(64, 100, 50, 10),
    alphas=20,
    one=(500, 896, 122),
    one_in=(_SINGLE, _DOUBLE),
    layer=(4096, 1024, 1024),
)
QUICK = Sizes(
    products=((24, 64, 40),),
    stand_ins=((40, "l1"),),
    network=problems.NETWORKS["digits"],
    held_out=(24, 60, 40),
    large=(32, 64, 40),
    batch=(4, 30, 20, 4),
    alphas=3,
    one=(30, 20, 4),
    one_in=(_SINGLE,),
    layer=(200, 24, 16),
)


# --- Device and products -----------------------------------------------------------------------------------------


def device() -> Record:
    """What JAX and the driver say of the devices."""
    first = jax.devices()[0]
    record: Record = {
        "devices": [str(each) for each in jax.devices()],
        "platform": first.platform,
        "kind": first.device_kind,
        "compute_capability": getattr(first, "compute_capability", None),
        "jaxlib": versions("jaxlib")["jaxlib"],
        "backend": getattr(first.client, "platform_version", None),
        "memory": memory(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }
    if shutil.which("nvidia-smi"):
        asked = "name,driver_version,memory.total,clocks.max.sm,power.limit,mig.mode.current"
        command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            record["nvidia_smi"] = subprocess.run(
                command, capture_output=True, text=True, timeout=20
            ).stdout.splitlines()
    return record


def memory() -> Record:
    """Mebibytes of the device, as far as it counts them, and of this process."""
    counted = jax.devices()[0].memory_stats() or {}  # none on a CPU
    names = ("bytes_limit", "bytes_in_use", "peak_bytes_in_use")
    return {
        **{name.replace("bytes", "mebibytes"): counted[name] / 2**20 for name in names if name in counted},
        "process_peak_mebibytes": peak_mebibytes(),
    }


@functools.lru_cache(maxsize=64)
def product_rate(rows: int, width: int, rank: int, dtype: np.dtype, precision: str = "highest") -> float:
    """GF/s of the two products of a pass, (R, d) with (d, r) and back."""
    with jax.enable_x64(True):
        weights, basis = jnp.ones((rows, width), dtype), jnp.ones((width, rank), dtype) / width

        def products(weights: Any, basis: Any) -> Any:
            image = jnp.matmul(weights, basis, precision=precision)
            return jnp.matmul(image, basis.T, precision=precision)

        both = jax.jit(products)
        seconds = seconds_of(lambda: both(weights, basis).block_until_ready(), repeats=20)
    return 4.0 * rows * width * rank / seconds / 1e9


def rates(shape: tuple[int, int, int]) -> Record:
    return {
        "shape": shape,
        "float32_gigaflops": product_rate(*shape, _SINGLE),
        "float32_default_gigaflops": product_rate(*shape, _SINGLE, "default"),
        "float64_gigaflops": product_rate(*shape, _DOUBLE),
    }


# --- Whole solves ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """The seconds of each compilation by XLA within."""
    found: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            found.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def solve(make: Callable[[], problems.Problem], *, twice: bool = True) -> Record:
    """A problem solved with first passes in float32 and with float64 alone, each first with and then without compiling.

    Args:
      twice: whether there is time for the second one of each, and for float64 alone.
    """
    problem = make()
    rows, width = problem.rows.count, problem.rows.width
    record: Record = {"problem": problem.name, "m": problem.design.shape[0], "rows": rows, "width": width}
    for precision in ("auto", "float64") if twice else ("auto",):
        options = SolveOptions(engine="jax", precision=precision)
        with compilations() as compiled:
            solution = solve_problem(problem.rows, options)
        found = {"first_seconds": solution.seconds, "compile_seconds": sum(compiled), "programs": len(compiled)}
        if twice:
            solution = solve_problem(problem.rows, options)
            found["warm_seconds"] = solution.seconds
        began, weights = time.perf_counter(), dense_rows(solution.weights)
        # By NumPy, in float64, in the samples: nothing of what the device says is believed.
        certificate = certify(problem.rows, weights, [solution.certificate.dual])
        found |= {
            "passes": int(solution.passes.sum()),
            "rows_solved": int(np.count_nonzero(solution.status == simjax.Status.SOLVED)),
            "rows_certified": int(np.count_nonzero(certificate.relative_gap <= options.tol)),
            "worst_relative_gap": float(certificate.relative_gap.max()),
            "certificate_seconds": time.perf_counter() - began,
            "nonzeros": int(np.count_nonzero(weights)),
        }
        record[precision] = found
    return {**record, **passes(problem), "memory": memory()}


def passes(problem: problems.Problem) -> Record:
    """A pass of ADMM for all rows in both precisions, and its share of the rate of its two products."""
    workspace, engine = Workspace(problem.design), JaxEngine()
    factorisation = workspace.scaled.factorisation(precise=False)
    coordinates = workspace.scaled.coordinates(problem.targets, precise=False)
    (width, rank), count = factorisation.basis.shape, problem.rows.count
    record: Record = {"rank": rank}
    for dtype in (_SINGLE, _DOUBLE):
        factors = factorisation.astype(dtype)
        rows = canonical_rows(problem.rows, factorisation, coordinates, workspace.column_scale).astype(dtype)
        with engine.session():
            seconds = _advance_seconds(engine, factors, rows) / first_order.CHECK_EVERY
        rate = 4.0 * count * width * rank / seconds / 1e9
        record[f"pass_{dtype.name}"] = {
            "milliseconds": 1e3 * seconds,
            "gigaflops": rate,
            "share_of_products": rate / product_rate(count, width, rank, dtype),
        }
    return record


def _advance_seconds(engine: JaxEngine, factors: Factorisation, rows: CanonicalRows) -> float:
    """Seconds of the passes between two checks, for all rows."""
    state = engine.spread(admm.start(factors, rows))
    shared, everything = (engine.share(factors), np.int32(first_order.CHECK_EVERY)), np.arange(len(rows.targets))
    program, operands = engine.prepared(
        first_order._advance, shared, (engine.spread(rows),), state, everything, 0, {"method": admm}
    )
    return seconds_of(lambda: jax.block_until_ready(program(*operands)), repeats=3)


# --- The functional API ------------------------------------------------------------------------------------------


def batch(designs: int, m: int, d: int, rows: int, dtype: np.dtype) -> Record:
    """Rows over many designs at once, and one design after the other."""
    rng = np.random.default_rng(0)
    truths = rng.normal(size=(designs, rows, d)) * (rng.random((designs, rows, d)) < 0.2)
    X = rng.normal(size=(designs, m, d))
    T = np.einsum("bmd,brd->bmr", X, truths) + 0.1 * rng.normal(size=(designs, m, rows))
    penalty = simjax.L1(0.03 * m)

    def of_one(design: Any, targets: Any) -> functional.SolvedRows:
        return functional.solve_rows(design, targets, penalty=penalty)

    with jax.enable_x64(dtype == _DOUBLE):
        operands = jax.device_put((X.astype(dtype), T.astype(dtype)))
        apart = [jax.device_put((X[k].astype(dtype), T[k].astype(dtype))) for k in range(designs)]
        at_once, single = jax.jit(jax.vmap(of_one)), jax.jit(of_one)
        with compilations() as compiled:
            found = jax.block_until_ready(at_once(*operands))
        warm = seconds_of(lambda: jax.block_until_ready(at_once(*operands)), repeats=3)
        one_by_one = jax.device_get([single(*each) for each in apart])
        loop = seconds_of(lambda: jax.block_until_ready([single(*each) for each in apart]), repeats=3)
        found = jax.device_get(found)
    gaps = [
        certify(simjax.row_problem(X[k], T[k], penalty=penalty), found.weights[k], [found.dual[k]])
        for k in range(designs)
    ]
    return {
        "designs": designs,
        "shape": (m, d, rows),
        "precision": dtype.name,
        "compile_seconds": sum(compiled),
        "warm_seconds": warm,
        "one_by_one_seconds": loop,
        "difference": max(float(np.abs(found.weights[k] - each.weights).max()) for k, each in enumerate(one_by_one)),
        "solved": int(np.count_nonzero(found.status == 0)),
        "stated_gap": float(np.max(found.relative_gap)),
        "worst_relative_gap": max(float(each.relative_gap.max()) for each in gaps),
        "memory": memory(),
    }


def one(m: int, d: int, rows: int, dtype: np.dtype, alphas: int) -> Record:
    """One functional call, and the derivatives of the error of its first rows for many alphas at once."""
    rng, few, middle = np.random.default_rng(1), min(rows, 8), 0.1 * m
    design = rng.normal(size=(m, d))
    truth = rng.normal(size=(rows, d)) * (rng.random((rows, d)) < 0.05)
    targets = design @ truth.T + 0.1 * rng.normal(size=(m, rows))

    def solved(design: Any, targets: Any, alpha: Any) -> functional.SolvedRows:
        return functional.solve_rows(design, targets, penalty=simjax.L1(alpha))

    def error(alpha: Any, design: Any, targets: Any) -> Any:
        return jnp.mean((solved(design, targets, alpha).weights - truth[:few].astype(dtype)) ** 2)

    with jax.enable_x64(dtype == _DOUBLE):
        X, T, alpha = jax.device_put((design.astype(dtype), targets.astype(dtype), np.asarray(middle, dtype)))
        call = jax.jit(solved)
        with compilations() as compiled:
            found = jax.block_until_ready(call(X, T, alpha))
        warm = seconds_of(lambda: jax.block_until_ready(call(X, T, alpha)), repeats=3)
        slopes = jax.jit(jax.vmap(jax.value_and_grad(error), in_axes=(0, None, None)))
        operands = middle * jnp.geomspace(0.3, 3.0, alphas, dtype=dtype), X, T[:, :few]
        with compilations() as derived:
            jax.block_until_ready(slopes(*operands))
        derivatives = seconds_of(lambda: jax.block_until_ready(slopes(*operands)), repeats=3)
        found, (_, slope) = jax.device_get((found, slopes(*operands)))
    problem = simjax.row_problem(design, targets, penalty=simjax.L1(middle))
    certificate = certify(problem, found.weights, [found.dual])
    return {
        "shape": (m, d, rows),
        "precision": dtype.name,
        "compile_seconds": sum(compiled),
        "warm_seconds": warm,
        "iterations": int(np.max(found.iterations)),
        "stated_gap": float(np.max(found.relative_gap)),
        "worst_relative_gap": float(certificate.relative_gap.max()),
        "alphas": alphas,
        "derivatives_compile_seconds": sum(derived),
        "derivatives_warm_seconds": derivatives,
        "derivatives_finite": int(np.count_nonzero(np.isfinite(slope))),
        "memory": memory(),
    }


# --- Pruning -----------------------------------------------------------------------------------------------------


def prune(samples: int, inputs: int, outputs: int) -> Record:
    """A layer pruned to 80 % zeros."""
    rng = np.random.default_rng(2)
    seen = np.maximum(rng.normal(size=(samples, inputs)) @ rng.normal(size=(inputs, inputs)) / inputs**0.5, 0.0)
    weight = rng.normal(size=(outputs, inputs)) / inputs**0.5
    with compilations() as compiled:
        began = time.perf_counter()
        pruned = simjax.prune_layer(seen, weight, sparsity=0.8)
        seconds = time.perf_counter() - began
    certificate = pruned.solution.certificate
    return {
        "shape": (samples, inputs, outputs),
        "prune_seconds": seconds,
        "compile_seconds": sum(compiled),
        "zeros": float(np.mean(np.asarray(pruned.weight) == 0.0)),
        "worst_relative_gap": float(certificate.relative_gap.max()),
        "memory": memory(),
    }


# --- All of it ---------------------------------------------------------------------------------------------------


def steps(sizes: Sizes) -> list[Step]:
    """Names, most seconds and functions, what matters most first."""
    made: list[Step] = [("device", 30.0, device)]
    made += [(f"rates {shape}", 40.0, functools.partial(rates, shape)) for shape in sizes.products]

    def stand_in(m: int, objective: str) -> Step:
        make = functools.partial(problems.stand_in, m, objective, sizes=sizes.network)
        return f"solve stand-in m = {m} {objective}", 100.0, functools.partial(solve, make)

    first, *others = (stand_in(*each) for each in sizes.stand_ins)
    made.append(first)
    made += [
        (f"functional batch {dtype.name}", 60.0, functools.partial(batch, *sizes.batch, dtype))
        for dtype in (_SINGLE, _DOUBLE)
    ]
    large = functools.partial(problems.synthetic, *sizes.large, 100.0, 0.99)
    made.append(("solve large", 150.0, functools.partial(solve, large, twice=False)))
    made += others[:3]
    made += [
        (f"functional one {dtype.name}", 60.0, functools.partial(one, *sizes.one, dtype, sizes.alphas))
        for dtype in sizes.one_in
    ]
    made.append(("prune", 60.0, functools.partial(prune, *sizes.layer)))
    held_out = functools.partial(problems.held_out, *sizes.held_out)
    made.append(("solve held-out", 60.0, functools.partial(solve, held_out)))
    return made + others[3:]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 if a step failed."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small sizes: does everything run?")
    parser.add_argument("--output", type=Path, help="where; benchmarks/results/gpu.json or gpu-quick.json otherwise")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all of it (%(default)s)")
    given = parser.parse_args(arguments)
    file = given.output or RESULTS / ("gpu-quick.json" if given.quick else "gpu.json")
    head = {"step": "place", "quick": given.quick, "limit_seconds": given.limit, **place()}
    records = budget.run(steps(QUICK if given.quick else FULL), file, given.limit, head, began=began)
    for record in records[1:]:
        state = next((f"{kind}: {record[kind]}" for kind in ("error", "cut", "left_out") if kind in record), "")
        print(f"{record['step']:<40} {record.get('seconds', 0.0):7.1f} s  {state}")
    return int(any("error" in record for record in records))


if __name__ == "__main__":
    raise SystemExit(main())
