"""simjax itself, in a fresh process: the first call with its compilation, then warm calls."""

from __future__ import annotations

import statistics
import time
import warnings
from typing import Any

import jax
import numpy as np

import simjax
from benchmarks.peers.common import REACHED, REFERENCE_FILE, Task, figures, judge
from benchmarks.records import versions
from simjax.rows.options import SolveOptions
from simjax.rows.problem import RowProblem
from simjax.rows.solution import Solution, dense_rows
from simjax.rows.solve import solve_problem

_REFERENCE_TOL = 1e-8


def run(task: Task) -> dict[str, Any]:
    """The record of simjax's default solver at its default tolerance; judged by its own dual points alone."""
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        raise RuntimeError("JAX keeps compiled code from earlier processes: no first call of this one is a first call.")
    first, _ = _timed(task)
    task.note({"first_seconds": first})
    seconds = []
    for _ in range(task.repeats):
        warm, solution = _timed(task)
        seconds.append(warm)
    verdict = judge(task.problem.rows, dense_rows(solution.weights), [solution.certificate.dual])
    return {
        **figures(task, verdict, seconds),
        "first_seconds": first,
        "compile_seconds": first - statistics.median(seconds),
        "tolerance": REACHED,
        "device": str(jax.devices()[0].device_kind),
        "passes": int(solution.passes.max()),
        "newton_rows": int(np.count_nonzero(solution.newton_steps)),
        "polished_rows": int(np.count_nonzero(solution.polished)),
        "versions": {"simjax": simjax.__version__, **versions("jax", "jaxlib", "numpy")},
    }


def reference(task: Task) -> dict[str, Any]:
    """Dual points of a solve to a tighter tolerance, in the task's folder: they prove how good any peer's weights are.

    A peer without dual points of its own would else have its weights judged by its residual's, which proves little
    where the fit is nearly exact. Any dual point gives a true bound, whoever found it.
    """
    solution = _solve(task.problem.rows, _REFERENCE_TOL)
    np.save(task.folder / REFERENCE_FILE, solution.certificate.dual, allow_pickle=False)
    return {
        "tolerance": _REFERENCE_TOL,
        "worst_relative_gap": float(solution.certificate.relative_gap.max()),
    }


def dual_points(rows: RowProblem) -> np.ndarray:
    """What `reference` saves, (R, m), for any rows."""
    return _solve(rows, _REFERENCE_TOL).certificate.dual


def _timed(task: Task) -> tuple[float, Solution]:
    began = time.perf_counter()
    solution = _solve(task.problem.rows, REACHED)  # returns NumPy arrays: nothing is left to wait for
    return time.perf_counter() - began, solution


def _solve(rows: RowProblem, tol: float) -> Solution:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", simjax.ConvergenceWarning)  # the record counts the rows
        return solve_problem(rows, SolveOptions(solver="auto", tol=tol))
