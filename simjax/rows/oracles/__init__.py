"""Independent interior-point solvers for the same rows: for checking, and as the paper's own method.

`solve` writes each row as a conic program (`build`) and has MOSEK or Clarabel solve it. There is no
fallback from one to the other.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simjax._checks import choice, positive_integer, positive_scalar
from simjax.rows.oracles.conic_row import check_conic, conic_row
from simjax.rows.oracles.interface import ORACLES, ConicSolution, OracleUnavailable, oracle_module
from simjax.rows.oracles.pool import RowSettings, solve_here, solve_in_processes
from simjax.rows.sparse_design import as_array

if TYPE_CHECKING:
    from simjax.rows.problem import RowProblem

__all__ = ["ORACLES", "ConicSolution", "OracleSolution", "OracleUnavailable", "solve"]


@dataclasses.dataclass(frozen=True)
class OracleSolution:
    """What the oracle says, one entry per row that was asked for.

    `simjax.certify(problem.take(rows), solution.weights, [solution.duals])` says how good it is.

    Attributes:
      weights: (R, d). An interior-point answer: weights that should be zero are small. Zeros for INFEASIBLE
        rows and for those without a finite answer (NONFINITE).
      duals: y, (R, m), that of the certificate. For INFEASIBLE rows a ray that proves it, scaled to
        yᵀt − sup {yᵀΦw: w in the ball and the support} = 1, where Φw = t would make it at most 0.
      status: strings as in `simjax.Status`, by the solver's own account. NONFINITE includes rows that took
        their worker process down with them every time.
      solver_status: the solver's own words, or the closed form that answers the row.
      oracle: the solver that ran.
      rows: which rows of the problem these are, (R,).
      seconds: wall time, worker start-up included.
    """

    weights: np.ndarray
    duals: np.ndarray
    status: list[str]
    solver_status: list[str]
    oracle: str
    rows: np.ndarray
    seconds: float


def solve(
    problem: RowProblem,
    *,
    oracle: str = "clarabel",
    rows: Any = None,
    workers: int = 1,
    tol: float = 1e-9,
    form: str = "residual",
    progress: Callable[[int, int], None] | None = None,
) -> OracleSolution:
    """Solve rows of `problem` by an interior-point method, each to `tol` relative to its own objective.

    Args:
      problem: rows with one of simjax's own penalties.
      oracle: "clarabel" (open source) or "mosek" (needs the user's licence).
      rows: numbers of the rows to solve, in any order; None for all.
      workers: processes to spread the rows over; 1 stays in this one. See `simjax.rows.oracles.pool`.
      tol: for the solver's gap and residuals, in units in which the row's objective is about one.
      form: "residual", or "gram" for many more samples than coordinates; see `build.conic_program`.
      progress: called with (rows done, rows in all) after each row.

    Raises:
      TypeError: if the penalty has no conic form.
      ValueError: for an argument out of range, named.
      MemoryError: for a sparse design that does not fit as an array.
      OracleUnavailable: if the package or the licence is missing.
    """
    began = time.perf_counter()
    choice("oracle", oracle, ORACLES)
    workers, tol = positive_integer("workers", workers), positive_scalar("tol", tol, below=1.0)
    check_conic(problem, form)
    chosen = _row_numbers(rows, problem.count)
    design = as_array(problem.design)
    oracle_module(oracle).check_available()

    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, chosen.size)

    conic_rows = [conic_row(problem, number) for number in chosen]
    settings = RowSettings(oracle, tol, form)
    if workers == 1 or chosen.size <= 1:
        answers = solve_here(design, conic_rows, settings, one_more)
    else:
        answers = solve_in_processes(design, conic_rows, settings, workers, one_more)
    samples, width = design.shape
    return OracleSolution(
        weights=np.array([answer.weights for answer in answers]).reshape(-1, width),
        duals=np.array([answer.dual for answer in answers]).reshape(-1, samples),
        status=[answer.status for answer in answers],
        solver_status=[answer.solver_status for answer in answers],
        oracle=oracle,
        rows=chosen,
        seconds=time.perf_counter() - began,
    )


def _row_numbers(rows: Any, count: int) -> np.ndarray:
    """The rows asked for as an integer array, or an error that names the argument."""
    if rows is None:
        return np.arange(count)
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or numbers.size == 0 or numbers.dtype.kind not in "iu":
        raise TypeError(
            f"rows must be a 1-D array of row numbers, got dtype {numbers.dtype} and shape {numbers.shape}."
        )
    if numbers.min() < 0 or numbers.max() >= count:
        raise ValueError(f"rows must be in 0..{count - 1}, got {numbers.min()}..{numbers.max()}.")
    return numbers.astype(int)
