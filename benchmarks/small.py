"""What a person waits for: `python -m benchmarks.small`.

Small jobs, first calls and sparse rows, in fresh processes where that is what counts. scikit-learn's Lasso, in a loop
over the rows, is run at the loosest of some tolerances at which every row has a certified relative gap of at most 1e-6.
Writes benchmarks/results/small.json and a table between two markers of docs/performance.md.
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
from typing import Any

import numpy as np

import simjax
from benchmarks import problems
from benchmarks.gaussian import SPARSE, sparse_rows
from benchmarks.records import RESULTS, ROOT, Record, place, places, table, write_between, write_text
from simjax.rows.problem import row_problem
from simjax.rows.solution import dense_rows
from simjax.rows.solve import solve_problem

BEGIN, END = "<!-- small:begin -->", "<!-- small:end -->"
TOL, REPEATS = 1e-6, 5
FIRST = ("standard-m100-l1", "standard-m500-l1", "standard-m1000-l1")
_SIMJAX = "import sys; from simjax.app import main; sys.exit(main())"
SHAPES = tuple((m, d) for m in (40, 120, 200, 300) for d in (30, 90, 150))  # each four times


def seconds_of(function: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median wall time of a call, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def of_process(*words: str) -> tuple[float, str]:
    """Wall time of a whole Python process, and the last line it prints."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began, (done.stdout.splitlines() or [""])[-1]


# --- In a process of its own -------------------------------------------------------------------------------------


def first_and_second(name: str) -> Record:
    """The first solve of this process and the next one, seconds."""
    problem = problems.problem(name).rows
    first, second = solve_problem(problem), solve_problem(problem)
    return {"first": first.seconds, "second": second.seconds, "converged": first.converged and second.converged}


def many_shapes() -> Record:
    """48 solves of 20 rows on a dozen shapes."""
    rng, converged, began = np.random.default_rng(0), True, time.perf_counter()
    for _ in range(4):
        for m, d in SHAPES:
            design, truth = rng.normal(size=(m, d)), rng.normal(size=(20, d)) * (rng.random((20, d)) < 0.2)
            targets = design @ truth.T + 0.1 * rng.normal(size=(m, 20))
            solution = simjax.solve_rows(design, targets, loss_weight=0.5, penalty=simjax.L1(0.05 * m))
            converged = converged and solution.converged
    return {"seconds": time.perf_counter() - began, "converged": converged}


# --- Here --------------------------------------------------------------------------------------------------------


def against_lasso(m: int, d: int, rows: int, nonzeros: int, alpha: float) -> Record:
    """simjax, warm, against scikit-learn's Lasso in a loop."""
    from sklearn.linear_model import Lasso

    design, targets = sparse_rows(m, d, rows, nonzeros)
    arguments: dict[str, Any] = {"loss_weight": 0.5, "penalty": simjax.L1(alpha)}
    own = seconds_of(lambda: simjax.solve_rows(design, targets, **arguments))
    solution = simjax.solve_rows(design, targets, **arguments)
    stated = row_problem(design, targets, **arguments)

    def loop(tol: float) -> np.ndarray:
        return np.array(
            [
                Lasso(alpha / m, fit_intercept=False, tol=tol, max_iter=100_000).fit(design, target).coef_
                for target in targets.T
            ]
        )

    for tol in (1e-4, 1e-6, 1e-8, 1e-10):
        began = time.perf_counter()
        found = loop(tol)
        seconds, gap = time.perf_counter() - began, float(simjax.certify(stated, found).relative_gap.max())
        if gap <= TOL:
            break
    return {
        "name": f"{m:,} × {d:,}, {rows} rows",
        "nonzeros": float(np.count_nonzero(dense_rows(solution.weights), axis=1).mean()),
        "seconds": own,
        "worst_gap": float(solution.certificate.relative_gap.max()),
        "lasso_seconds": seconds,
        "lasso_gap": gap,
    }


def refit() -> Record:
    """256 rows by least squares, each on its own 40 % of 256 columns."""
    rng = np.random.default_rng(0)
    design, targets, support = rng.normal(size=(2000, 256)), rng.normal(size=(2000, 256)), rng.random((256, 256)) < 0.4

    def solve() -> simjax.Solution:
        return simjax.solve_rows(design, targets, penalty=simjax.NoPenalty(), support=support)

    return {"seconds": seconds_of(solve), "converged": solve().converged}


def measure() -> Record:
    """Everything, with where and when."""
    first = {name: json.loads(of_process("-m", "benchmarks.small", "--first", name)[1]) for name in FIRST}
    gaussians = [of_process("-m", "benchmarks.gaussian") for _ in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        demo = [
            of_process("-c", _SIMJAX, "demo", "--output", f"{folder}/{k}", "--dataset", "digits")[0] for k in range(2)
        ]
    return {
        **place(),
        "first": first,
        "gaussian_seconds": statistics.median(seconds for seconds, _ in gaussians),
        "shapes": json.loads(of_process("-m", "benchmarks.small", "--shapes")[1]),
        "lasso": [against_lasso(*each) for each in SPARSE],
        "refit": refit(),
        "demo_seconds": statistics.median(demo),
    }


def section(results: Record) -> str:
    """The results as text for docs/performance.md."""
    rows = [
        (f"{name}: first call in a fresh process over the second", "≤ 1.3×",
         f"{each['first'] / each['second']:.2f}× ({each['first']:.2f} s, {each['second']:.2f} s)")
        for name, each in results["first"].items()
    ]  # fmt: skip
    small, *others = results["lasso"]
    rows.append(("200 × 300, 50 rows: process start to answer", "≤ 1.5 s", f"{results['gaussian_seconds']:.2f} s"))
    for each in (small, *others):
        ratio = each["lasso_seconds"] / each["seconds"]
        took = f"{each['seconds']:.3f} s, worst gap {each['worst_gap']:.0e}; {each['lasso_seconds']:.3f} s"
        rows.append((f"{each['name']} of {each['nonzeros']:.0f} nonzeros: warm, against scikit-learn's Lasso", "≥ 1×",
                     f"{ratio:.1f}× ({took})"))  # fmt: skip
    rows.append(("48 solves of 20 rows on a dozen shapes", "≤ 15 s", f"{results['shapes']['seconds']:.1f} s"))
    rows.append(("256 least-squares rows on supports of their own", "≤ 1 s", f"{results['refit']['seconds']:.2f} s"))
    rows.append(("`simjax demo` on digits, whole process", "≤ 6 s", f"{results['demo_seconds']:.1f} s"))
    lines = table(("what", "aim", "measured"), rows)
    return "\n".join([*lines, "", *places([results])])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the processes, or measure everything and write it down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small", description=__doc__)
    parser.add_argument("--first", choices=FIRST, help=argparse.SUPPRESS)
    parser.add_argument("--shapes", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.first:
        print(json.dumps(first_and_second(given.first)))
    elif given.shapes:
        print(json.dumps(many_shapes()))
    else:
        results = measure()
        write_text(RESULTS / "small.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        write_between(ROOT / "docs" / "performance.md", BEGIN, END, section(results))
        print(section(results))


if __name__ == "__main__":
    main()
