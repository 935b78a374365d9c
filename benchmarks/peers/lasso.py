"""Coordinate descent for plain lassos, row by row over processes: scikit-learn's Lasso, celer, skglm and adelie."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import environments
from benchmarks.peers.common import Answer, Task, tighten
from benchmarks.problems import Problem

LADDER = (1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13)
_LADDERS = {"adelie": (1e-7, 1e-9, 1e-11, 1e-13, 1e-15, 1e-17, 1e-19)}  # of a square
# A gap relative to ‖t‖² is not one relative to the objective, which may be far below it.
_TOLERANCE = {
    "scikit-learn": "a duality gap relative to ‖t‖²",
    "celer": "a duality gap relative to ‖t‖²",
    "skglm": "the violation of the optimality conditions",
    "adelie": "the squared change of a sweep",
}
_SCRIPT = Path(__file__).parent / "scripts" / "lasso_rows.py"
_MAX_ITERS = {"scikit-learn": 20_000, "celer": 100, "skglm": 100, "adelie": 1_000_000}  # sweeps or working sets


def refuses(problem: Problem) -> str | None:
    """Why these solvers do not solve a problem, or None if they do."""
    if problem.objective != "l1":
        return f"no {problem.objective} penalty"
    return None if problem.kappa is None else "no constraint on the norm"


def run(task: Task, solver: str) -> dict[str, Any]:
    """The record of "scikit-learn", "celer", "skglm" or "adelie"."""
    problem = task.problem
    python = sys.executable if solver == "scikit-learn" else str(environments.python(solver))
    found: dict[str, Any] = {}

    def solve(chosen: np.ndarray, tol: float) -> Answer:
        output = environments.run_script(
            python,
            _SCRIPT,
            task.folder,
            {"chosen": chosen},
            {
                "solver": solver,
                "alpha": problem.alpha,
                "loss_weight": problem.loss_weight,
                "tol": tol,
                "max_iters": _MAX_ITERS[solver],
                "workers": task.workers,
            },
            threads=1,
        )
        found.update(output.facts)
        seconds, iterations = output.arrays["row_seconds"], output.arrays["iterations"]
        return Answer(
            weights=output.arrays["weights"],
            seconds=float(output.facts["seconds"]),
            work=float(seconds.sum()) / task.workers,
            exhausted=iterations >= _MAX_ITERS[solver],
            details={"iterations": int(np.median(iterations)), "iterations_most": int(iterations.max())},
        )

    record = tighten(task, _LADDERS.get(solver, LADDER), solve)
    notes = [
        "min ‖t − Φw‖²/2m + α/(2mλ)·‖w‖₁, the same problem divided by 2mλ; no intercept",
        f"tolerance is {_TOLERANCE[solver]}; at most {_MAX_ITERS[solver]} iterations",
    ]
    return {**record, "notes": notes, "versions": found["versions"]}
