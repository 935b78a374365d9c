"""torchidl, the SIM authors' package, in an environment of its own: CVXSolver and ADMMSolver.

By its source, version 0.0.4 solves for every row min ½‖t − Φw‖² + λ_yz‖w‖₁, with ‖a‖₁ ≤ κ for rows of (A B). With
λ_yz = α/(2λ) this is our L1 problem divided by 2λ, except that

* CVXSolver reads X and U as float32, so that its design is ours rounded; it asks MOSEK and, on any error, Clarabel,
  both at their default tolerances, which it offers no way to change; and it sets weights up to `tol` to zero;
* ADMMSolver computes in float32 and makes a fixed number of iterations from random weights. Its (A B) is the average
  of three consensus copies: neither sparse nor in the ball. Its (C D) takes a step against the sign of the copy
  instead of a soft threshold, so that its fixed point is no lasso solution.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import environments
from benchmarks.peers.common import Answer, Task, judge, memory_limit, tighten
from benchmarks.peers.own import dual_points
from benchmarks.problems import Problem

_SCRIPT = Path(__file__).parent / "scripts" / "torchidl_rows.py"


def refuses(problem: Problem) -> str | None:
    """Why torchidl does not solve a problem, or None if it does."""
    return None if problem.objective == "l1" else f"no {problem.objective} penalty"


def cvx(task: Task) -> dict[str, Any]:
    """The record of CVXSolver with as many processes as there are workers, one batch of all rows."""
    found: dict[str, Any] = {}
    answers: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def solve(chosen: np.ndarray, zeroed: float) -> Answer:
        arguments = {
            **_weights(task),
            "batch_size": chosen.size,
            "num_processes": task.workers,
            "well_pose": task.problem.kappa is not None,
            "tol": zeroed,
        }
        answer = _solve(task, chosen, "CVXSolver", arguments, threads=1, found=found)
        answers[chosen.size] = chosen, answer.weights
        return answer

    record = tighten(task, (1e-6, 0.0), solve)
    if not record["reached"]:  # is that the rounding of the design, or the solver?
        rounded = task.problem.design.astype(np.float32).astype(np.float64)
        chosen, weights = answers[record["rows_timed"]]
        own_rows = dataclasses.replace(task.problem.rows, design=rounded).take(chosen)
        on_own = judge(own_rows, weights, [dual_points(own_rows)])
        record["on_rounded_design"] = on_own.figures()
    notes = [
        "min ½‖t − Φw‖² + α/(2λ)·‖w‖₁: the same problem divided by 2λ, with our design rounded to float32",
        "its tolerance cannot be set: MOSEK is tried first, then Clarabel at its defaults",
        "tolerance is the size up to which it sets weights to zero",
    ]
    return {
        **record,
        "notes": notes,
        "cvxpy_solvers": found["cvxpy_solvers"],
        "versions": found["versions"],
    }


def admm(task: Task) -> dict[str, Any]:
    """The record of ADMMSolver at its default numbers of iterations, all rows in one batch."""
    found: dict[str, Any] = {}

    def solve(chosen: np.ndarray, iterations: int) -> Answer:
        arguments = {**_weights(task), "batch_feature_size": chosen.size + 1, "num_epoch_ab": iterations}
        return _solve(task, chosen, "ADMMSolver", arguments, threads=task.workers, found=found)

    record = tighten(task, (1000,), solve, whole=True)
    notes = [
        "tolerance is its number of iterations for (A B), which is its default",
        "float32; (A B) is an average of consensus copies; (C D) by sign steps, which do not lead to a lasso solution",
    ]
    return {**record, "notes": notes, "versions": found["versions"]}


def _weights(task: Task) -> dict[str, float]:
    """λ_yz = α/(2λ) for both blocks."""
    weight = task.problem.alpha / (2.0 * task.problem.loss_weight)
    return {"lambda_z": weight, "lambda_y": weight}


def _solve(
    task: Task, chosen: np.ndarray, solver: str, arguments: dict[str, Any], *, threads: int, found: dict[str, Any]
) -> Answer:
    settings = {
        "solver": solver,
        "arguments": arguments,
        "n": task.problem.n,
        "inner": task.problem.inner,
        "kappa": task.problem.kappa,
        "threads": threads,
        "memory": memory_limit(task.workers),
    }
    output = environments.run_script(
        str(environments.python("torchidl")), _SCRIPT, task.folder, {"chosen": chosen}, settings, threads=threads
    )
    found.update(output.facts)
    return Answer(weights=output.arrays["weights"], seconds=float(output.facts["seconds"]))
