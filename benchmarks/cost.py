"""What a pass costs against the product of the same shapes, and how it grows: `python -m benchmarks.cost`.

One pass of ADMM is two products with the basis of the design for all R rows, 4 d r R flops with r = rank ≤ min(m, d);
everything else is proportional to d R. Writes benchmarks/results/cost.json, and a table between two markers of
docs/performance.md. The standard problem of m = 60,000 samples is also streamed, in a process of its own, for its peak
memory.

Other problems, or another device, whole solves included (only the file given is written):

    python -m benchmarks.cost --problems standard-m500-l1 synthetic-8192x9216-m4096-* --output cost-gpu.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import simjax
from benchmarks import problems
from benchmarks.records import RESULTS, ROOT, Record, peak_mebibytes, place, places, plain, write_between, write_text
from benchmarks.sidebyside import matching
from simjax import datasets
from simjax.rows.solve import solve_problem
from simjax.rows.solvers import admm
from simjax.rows.solvers.canonical import canonical_rows, judge
from simjax.rows.solvers.first_order import CHECK_EVERY
from simjax.rows.threads import one_thread_each
from simjax.rows.workspace import Workspace

BEGIN, END = "<!-- cost:begin -->", "<!-- cost:end -->"
SAMPLES = (100, 500, 1000, 5000, 20_000, 60_000)
_STREAM_BATCH = 4096


def seconds_of(function: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall time of a call, the first one left out."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(name: str) -> Record:
    """Setup, pass, certificate and product of a named problem."""
    problem = problems.problem(name).rows
    began = time.perf_counter()
    workspace = Workspace(problem.design)
    with one_thread_each():
        factorisation = workspace.scaled.factorisation(precise=False)
        coordinates = workspace.scaled.coordinates(problem.targets, precise=False)
        setup = time.perf_counter() - began
        rows = canonical_rows(problem, factorisation, coordinates, workspace.column_scale)
        state = admm.start(factorisation, rows)
        passes = seconds_of(lambda: admm.advance(factorisation, rows, state, passes=CHECK_EVERY)) / CHECK_EVERY
        check = seconds_of(lambda: judge(factorisation, rows, state.z, state.y))
        products = seconds_of(lambda: (state.v @ factorisation.basis) @ factorisation.basis.T, repeats=20)
    (width, rank), count = factorisation.basis.shape, problem.count
    flops = 4.0 * width * rank * count
    return {
        "problem": name,
        "m": problem.design.shape[0],
        "rows": count,
        "width": width,
        "rank": rank,
        "setup_seconds": setup,
        "pass_milliseconds": 1e3 * passes,
        "check_milliseconds": 1e3 * check,
        "products_milliseconds": 1e3 * products,
        "pass_gigaflops": flops / passes / 1e9,
        "products_gigaflops": flops / products / 1e9,
    }


def whole(name: str) -> Record:
    """The first and a second solve of a named problem, how much of it is certified, and the device's peak memory."""
    problem = problems.problem(name).rows
    solutions = [solve_problem(problem) for _ in range(2)]
    memory = jax.devices()[0].memory_stats() or {}  # none on a CPU
    peak = memory.get("peak_bytes_in_use")
    return {
        "first_seconds": solutions[0].seconds,
        "warm_seconds": solutions[1].seconds,
        "rows_certified": int(np.count_nonzero(solutions[0].status == simjax.Status.SOLVED)),
        "worst_relative_gap": float(solutions[0].certificate.relative_gap.max()),
        "peak_device_mebibytes": None if peak is None else peak / 2**20,
        "peak_mebibytes": peak_mebibytes(),
    }


def stream(file: Path) -> Record:
    """The standard problem of 60,000 samples, streamed: peak memory of this process, and times.

    Args:
      file: the images as bytes, .npy; they are mapped into memory, and never all in it.
    """
    network = problems.trained_network("fashion-mnist")
    images = np.load(file, mmap_mode="r", allow_pickle=False)
    before = peak_mebibytes()
    began = time.perf_counter()
    streamed = simjax.stream_states(
        simjax.collect_states(network, images[i : i + _STREAM_BATCH] / 255.0)
        for i in range(0, len(images), _STREAM_BATCH)
    )
    setup = time.perf_counter() - began
    result = simjax.fit(streamed, "l1", support="full", rescale="inner", units="rescaled")
    return {
        "m": streamed.m,
        "stream_seconds": setup,
        "fit_seconds": result.seconds,
        "converged": result.converged,
        "before_mebibytes": before,
        "peak_mebibytes": peak_mebibytes(),
    }


def table(results: Record) -> str:
    """The results as text for docs/performance.md."""
    lines = [
        "| m | rank r | setup (s) | a pass (ms) | its two products alone (ms) | rate of the pass (GF/s) "
        "| rate of the products (GF/s) | a certificate (ms) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for point in results["points"]:
        lines.append(
            f"| {point['m']:,} | {point['rank']} | {point['setup_seconds']:.2f} | {point['pass_milliseconds']:.2f} "
            f"| {point['products_milliseconds']:.2f} | {point['pass_gigaflops']:.0f} "
            f"| {point['products_gigaflops']:.0f} | {point['check_milliseconds']:.1f} |"
        )
    streamed = results["stream"]
    lines += [
        "",
        f"Streamed in batches of {_STREAM_BATCH:,}, the m = {streamed['m']:,} problem peaks at "
        f"{streamed['peak_mebibytes']:,.0f} MiB for the whole process, of which {streamed['before_mebibytes']:,.0f} "
        f"MiB are Python, JAX and the network before streaming begins; streaming takes "
        f"{streamed['stream_seconds']:.1f} s and the fit {streamed['fit_seconds']:.1f} s, compilation included.",
        "",
        f"R = {results['points'][0]['rows']} rows of d = {results['points'][0]['width']} coordinates, float64.",
        "",
        *places([results]),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--problems", nargs="+", metavar="NAME", help="names or patterns: measure these, whole solves too"
    )
    parser.add_argument("--output", type=Path, help="where, for --problems")
    parser.add_argument("--stream", type=Path, metavar="IMAGES", help="only the streamed problem, as JSON")
    given = parser.parse_args(arguments)
    if given.stream is not None:
        print(json.dumps(stream(given.stream)))
        return
    if (given.problems is None) != (given.output is None):
        parser.error("--problems and --output go together")
    if given.problems is not None:
        try:
            names = matching("problems", given.problems, problems.NAMES)
        except ValueError as error:
            parser.error(str(error))
        results: Record = {"points": [{**measure(name), **whole(name)} for name in names], **place()}
        write_text(given.output, json.dumps(plain(results), indent=1) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, np.uint8(255.0 * datasets.load("fashion-mnist").train_inputs + 0.5), allow_pickle=False)
        command = [sys.executable, "-m", "benchmarks.cost", "--stream", str(file)]
        streamed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    results = {
        "points": [measure(f"standard-m{m}-l1") for m in SAMPLES],
        "stream": json.loads(streamed.stdout.splitlines()[-1]),
        **place(),
    }
    write_text(RESULTS / "cost.json", json.dumps(results, indent=1) + "\n")
    write_between(ROOT / "docs" / "performance.md", BEGIN, END, table(results))


if __name__ == "__main__":
    main()
