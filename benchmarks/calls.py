"""What whole calls cost: `python -m benchmarks.calls`.

    first call     of the JAX engine in a fresh process, compilation included; again through the compilation cache
    path           20 alphas by `simjax.path` against 20 fits, each from nothing; compiled code warm for both
    rows in blocks 100,000 rows under a limit on working memory, their weights kept as CSR

Writes benchmarks/results/calls.json and a part of docs/performance.md between two markers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse

import simjax
from benchmarks import problems
from benchmarks.records import RESULTS, ROOT, Record, peak_mebibytes, place, places, write_between, write_text
from simjax.rows.options import SolveOptions
from simjax.rows.solve import solve_problem

BEGIN, END = "<!-- calls:begin -->", "<!-- calls:end -->"

FIRST = ("standard-m100-l1", "standard-m500-l1")
PATH_SAMPLES = 500
PATH_OBJECTIVES = ("l1", "perspective")
PATH_ALPHAS = tuple(np.geomspace(1e-1, 1e-3, 20).tolist())
# Rows in blocks: rows, samples, coordinates, nonzeros of the truth, limit on working memory.
MANY = {"rows": 100_000, "m": 64, "d": 512, "nonzeros": 4, "max_memory": 2.5e8}


# --- In a process of its own -------------------------------------------------------------------------------------


def first_call(name: str) -> Record:
    """The first solve of this process by the JAX engine and the next one, seconds."""
    problem, compiled = problems.problem(name).rows, SolveOptions(engine="jax")
    first, second = solve_problem(problem, compiled), solve_problem(problem, compiled)
    return {"first_seconds": first.seconds, "warm_seconds": second.seconds, "converged": first.converged}


def many_rows(rows: int, m: int, d: int, nonzeros: int, max_memory: float) -> Record:
    """Rows over a Gaussian design whose dense weights would not fit into `max_memory`."""
    rng = np.random.default_rng(0)
    design = rng.normal(size=(m, d))
    truth = scipy.sparse.csr_array(
        (rng.normal(size=rows * nonzeros), rng.integers(d, size=rows * nonzeros), nonzeros * np.arange(rows + 1)),
        shape=(rows, d),
    )
    targets = np.ascontiguousarray((truth @ design.T).T)
    before = peak_mebibytes()
    solution = simjax.solve_rows(
        design, targets, loss_weight=0.5, penalty=simjax.L1(0.1 * m**0.5), max_memory=max_memory
    )
    assert isinstance(solution.weights, scipy.sparse.csr_array)
    return {
        "rows": rows,
        "m": m,
        "d": d,
        "max_memory": max_memory,
        "rows_certified": int(np.count_nonzero(solution.status == simjax.Status.SOLVED)),
        "worst_relative_gap": float(solution.certificate.relative_gap.max()),
        "nonzeros": int(solution.weights.nnz),
        "dense_mebibytes": 8 * rows * d / 2**20,
        "before_mebibytes": before,
        "peak_mebibytes": peak_mebibytes(),
        "seconds": solution.seconds,
    }


def in_process(*words: str, cache: str | None = None) -> Record:
    """What this module says to `words` in a fresh process."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    if cache is not None:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    command = [sys.executable, "-m", "benchmarks.calls", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# --- Here --------------------------------------------------------------------------------------------------------


def calls(name: str) -> Record:
    """A first call without a cache, one that fills a cache, and one through it."""
    with tempfile.TemporaryDirectory() as cache:
        none = in_process("--first", name)
        in_process("--first", name, cache=cache)
        through = in_process("--first", name, cache=cache)
    return {
        "problem": name,
        "first_seconds": none["first_seconds"],
        "second_process_seconds": through["first_seconds"],
        "warm_seconds": none["warm_seconds"],
        "converged": none["converged"] and through["converged"],
    }


def path(objective: str, alphas: Sequence[float] = PATH_ALPHAS, m: int = PATH_SAMPLES) -> Record:
    """A path against its fits one by one, on states of the standard network."""
    states = problems.standard_states(m)
    simjax.path(states, objective, alphas=alphas)  # whatever is made once
    singles = []
    for alpha in alphas:
        began = time.perf_counter()
        simjax.fit(states, objective, alpha=alpha)
        singles.append(time.perf_counter() - began)
    began = time.perf_counter()
    found = simjax.path(states, objective, alphas=alphas)
    seconds = time.perf_counter() - began
    return {
        "objective": objective,
        "m": m,
        "points": len(alphas),
        "path_seconds": seconds,
        "hardest_seconds": max(singles),
        "singles_seconds": sum(singles),
        "rows": sum(fit.status.size for fit in found.fits),
        "rows_certified": sum(int(np.count_nonzero(fit.status == simjax.Status.SOLVED)) for fit in found.fits),
    }


def section(results: Record) -> str:
    """The results as text for docs/performance.md."""
    lines = [
        '| `engine="jax"` | first call (s), aim 8 at m = 500 | first with a filled cache (s) | warm call (s) |',
        "|---|---|---|---|",
    ]
    for each in results["first"]:
        lines.append(
            f"| {each['problem']} | {each['first_seconds']:.1f} | {each['second_process_seconds']:.1f} "
            f"| {each['warm_seconds']:.1f} |"
        )
    lines += [
        "",
        "| path, standard network | points | path (s) | hardest single fit (s) | ratio, aim 4 | all single fits (s) "
        "| rows certified |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in results["paths"]:
        ratio = each["path_seconds"] / each["hardest_seconds"]
        lines.append(
            f"| {each['objective']}, m = {each['m']} | {each['points']} | {each['path_seconds']:.1f} "
            f"| {each['hardest_seconds']:.1f} | {ratio:.1f} | {each['singles_seconds']:.1f} "
            f"| {each['rows_certified']} of {each['rows']} |"
        )
    many = results["many"]
    lines += [
        "",
        f"{many['rows']:,} rows of {many['d']} coordinates with max_memory = {many['max_memory'] / 1e6:,.0f} MB: "
        f"{many['rows_certified']:,} certified (worst gap {float(many['worst_relative_gap']):.1e}) in "
        f"{many['seconds']:.0f} s; {many['nonzeros']:,} nonzeros as CSR, where dense weights "
        f"would take {many['dense_mebibytes']:,.0f} MiB. The process peaked at {many['peak_mebibytes']:,.0f} MiB, "
        f"{many['before_mebibytes']:,.0f} of them before the solve began.",
        "",
        *places([results]),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--first", metavar="PROBLEM", help="only a first call in this process, as JSON")
    parser.add_argument("--many", action="store_true", help="only the rows in blocks in this process, as JSON")
    given = parser.parse_args(arguments)
    if given.first or given.many:
        found: Any = first_call(given.first) if given.first else many_rows(**MANY)  # type: ignore[arg-type]
        print(json.dumps(found))
        return
    results = {
        "first": [calls(name) for name in FIRST],
        "paths": [path(objective) for objective in PATH_OBJECTIVES],
        "many": in_process("--many"),
        **place(),
    }
    write_text(RESULTS / "calls.json", json.dumps(results, indent=1) + "\n")
    write_between(ROOT / "docs" / "performance.md", BEGIN, END, section(results))


if __name__ == "__main__":
    main()
