"""`solve_rows`: many lasso-like problems over one design, each with a certificate."""

from __future__ import annotations

import dataclasses
import time
import warnings
from typing import Any

import jax
import numpy as np

from simjax._checks import choice, positive_integer, positive_scalar
from simjax.certificate import Certificate, certify
from simjax.constraints import Free, L1Ball
from simjax.penalties import Penalty
from simjax.problem import RowProblem, row_problem
from simjax.solvers import portfolio
from simjax.solvers.canonical import CanonicalRows, canonical_rows
from simjax.solvers.factor import Factorisation, factorise
from simjax.solvers.iterate import ProgressCallback, Scoreboard
from simjax.status import ConvergenceWarning, Status, convergence_message, row_status

# Two evaluations of a gap differ a little: the solvers stop below the tolerance that is then certified.
_INTERNAL_TOL = 0.3
# Columns whose norms differ by more than this are brought to norm one for the solver.
_COLUMN_SPREAD = 1e3


@dataclasses.dataclass(frozen=True)
class Solution:
    """Weights of every row and what is proved about them.

    Attributes:
      weights: (R, d), float64.
      certificate: one entry per row.
      status: (R,), strings; see `Status`.
      solver: the solver that ran.
      passes: passes over the design that each row took, (R,).
      newton_steps: Newton steps of the batch each row was in, (R,).
      polished: whether the active-set polish certified the row, (R,).
      seconds: wall time of the solve, compilation included.
      tol: the relative gap that was asked for.
    """

    weights: np.ndarray
    certificate: Certificate
    status: np.ndarray
    solver: str
    passes: np.ndarray
    newton_steps: np.ndarray
    polished: np.ndarray
    seconds: float
    tol: float

    @property
    def converged(self) -> bool:
        """Whether every row is certified to the tolerance."""
        return bool(np.all(self.status == Status.SOLVED))

    def summary(self) -> str:
        """A few lines for a person: what ran, how many rows are certified, and how well."""
        rows = self.status.size
        solved = int(np.count_nonzero(self.status == Status.SOLVED))
        newton = int(np.count_nonzero(self.newton_steps))
        polished = int(np.count_nonzero(self.polished))
        lines = [
            f"solver          {self.solver}: {_explain(self.solver, rows, polished, newton)}",
            f"rows            {solved} of {rows} certified at relative gap {self.tol:g}",
            f"worst gap       {np.max(self.certificate.relative_gap):.2e} relative",
            f"infeasibility   {np.max(self.certificate.infeasibility):.2e} worst",
            f"passes          {int(self.passes.max(initial=0))} at most, {int(np.median(self.passes))} median",
            f"time            {self.seconds:.2f} s, compilation included",
        ]
        return "\n".join(lines)


def _explain(solver: str, rows: int, polished: int, newton: int) -> str:
    if solver != "auto":
        return "as asked"
    first = rows - polished - newton
    return f"{first} rows by ADMM, {polished} by active-set polish, {newton} by semismooth Newton"


def solve_rows(
    design: Any,
    targets: Any,
    *,
    loss_weight: Any = 1.0,
    penalty: Penalty,
    constraint: L1Ball | Free | None = None,
    support: Any = None,
    matching: str = "penalty",
    solver: str = "auto",
    tol: float = 1e-6,
    max_iters: int = 20_000,
    progress: ProgressCallback | None = None,
) -> Solution:
    """Solve R independent rows over one design, all at once.

        penalty   min_w  λ ‖t − Φw‖² + h(w)     s.t.  w in the constraint and the support     (SIM paper, eq. 7)
        exact     min_w  h(w)  s.t.  Φw = t,          w in the constraint and the support     (SIM paper, eq. 2b–2c)

    Args:
      design: Φ, (m, d), any array-like.
      targets: (m, R), one column per row.
      loss_weight: λ > 0, scalar or (R,).
      penalty: h, e.g. `L1(1e-3)`; parameters scalar, (d,) or (R, d).
      constraint: `L1Ball`, `Free` or None.
      support: boolean mask (d,) or (R, d) of the entries that may be nonzero, or None.
      matching: "penalty" or "exact".
      solver: "auto", "admm", or "proximal_gradient" (not for exact matching).
      tol: relative duality gap at which a row counts as solved.
      max_iters: most passes over the design that any row gets.
      progress: called with a `Progress` now and then.

    Returns:
      A `Solution`. Rows that miss `tol` carry another status than SOLVED, and one `ConvergenceWarning` is issued.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.
    """
    problem = row_problem(
        design,
        targets,
        loss_weight=loss_weight,
        penalty=penalty,
        constraint=constraint,
        support=support,
        matching=matching,
    )
    return solve_problem(problem, solver=solver, tol=tol, max_iters=max_iters, progress=progress)


def check_solver(solver: str, matching: str) -> None:
    """Raise a ValueError for an unknown solver, or one that cannot serve the matching mode."""
    choice("solver", solver, portfolio.SOLVERS)
    if matching == "exact" and solver == "proximal_gradient":
        raise ValueError(
            "solver='proximal_gradient' cannot serve matching='exact': there is no smooth loss to take a gradient of; "
            "use 'auto' or 'admm'."
        )


def solve_problem(
    problem: RowProblem,
    *,
    solver: str = "auto",
    tol: float = 1e-6,
    max_iters: int = 20_000,
    progress: ProgressCallback | None = None,
) -> Solution:
    """Solve a `RowProblem`; arguments as in `solve_rows`."""
    check_solver(solver, problem.matching)
    tol = positive_scalar("tol", tol)
    max_iters = positive_integer("max_iters", max_iters)
    begin = time.perf_counter()
    rows, width = problem.rows_count, problem.width
    weights = np.zeros((rows, width))
    duals = np.zeros((rows, problem.design.shape[0]))
    counters = {name: np.zeros(rows, dtype=int) for name in ("passes", "newton_steps", "polished")}

    # A row with t = 0 has the exact answer w = 0, with y = 0 as its proof.
    live = np.flatnonzero(np.any(problem.targets != 0.0, axis=0))
    precise, inner_tol = problem.exact, _INTERNAL_TOL * tol
    while live.size:
        part = problem.take(live)
        with jax.enable_x64(True):
            board, part_weights, part_duals = _attempt(
                part, solver, inner_tol, max_iters, precise=precise, progress=progress
            )
        weights[live], duals[live] = part_weights, part_duals
        for name, counter in counters.items():
            counter[live] += getattr(board, name)
        # The factorised problem is the stated one up to rounding. Where that shows, and only there, go again with a
        # factorisation of Φ itself, which does not square its condition number, and a tighter tolerance.
        certificate = certify(part, part_weights, [part_duals])
        disagree = (board.gap <= inner_tol) & (
            row_status(certificate, tol, exact=part.exact) != Status.SOLVED
        )
        live = live[disagree]
        if precise and inner_tol < 0.01 * tol:
            break
        precise, inner_tol = True, 0.1 * inner_tol

    certificate = certify(problem, weights, [duals])
    status = row_status(certificate, tol, exact=problem.exact)
    if np.any(status != Status.SOLVED):
        message = convergence_message(status, certificate, tol, solver)
        warnings.warn(message, ConvergenceWarning, stacklevel=3)
    return Solution(
        weights=weights,
        certificate=certificate,
        status=status,
        solver=solver,
        passes=counters["passes"],
        newton_steps=counters["newton_steps"],
        polished=counters["polished"] > 0,
        seconds=time.perf_counter() - begin,
        tol=tol,
    )


def _attempt(
    problem: RowProblem,
    solver: str,
    tol: float,
    max_iters: int,
    *,
    precise: bool,
    progress: ProgressCallback | None,
) -> tuple[Scoreboard, np.ndarray, np.ndarray]:
    """One run in canonical units; weights (R, d) and duals (R, m) in those of the problem."""
    column_scale = _column_scale(problem.design)
    factorisation, coordinates = factorise(problem.design / column_scale, problem.targets, precise=precise)
    rows = canonical_rows(problem, factorisation, coordinates, column_scale)
    board = Scoreboard(factorisation, rows, tol, progress)
    portfolio.run(solver, factorisation, rows, board, max_iters)
    weights = board.weights * np.asarray(rows.point_scale)
    return board, weights, _full_duals(problem, factorisation, rows, board.dual, column_scale)


def _column_scale(design: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(design, axis=0)
    positive = norms[norms > 0.0]
    if positive.size == 0 or positive.max() <= _COLUMN_SPREAD * positive.min():
        return np.ones(design.shape[1])
    return np.where(norms > 0.0, norms, 1.0)


def _full_duals(
    problem: RowProblem,
    factorisation: Factorisation,
    rows: CanonicalRows,
    dual: np.ndarray,
    column_scale: np.ndarray,
) -> np.ndarray:
    """The dual points in sample space: y = U ỹ / (q‖t‖), plus 2λ times the part of t outside the design's range."""
    singular, basis = np.asarray(factorisation.singular_values), np.asarray(factorisation.basis)
    scale = np.asarray(rows.dual_scale)
    inside = dual * scale if problem.exact else (dual - np.asarray(rows.targets)) * scale
    # U = Φ D⁻¹ V S⁻¹: cheaper than to keep U, and exact where the design itself is.
    combination = ((inside / singular) @ basis.T) / (column_scale * float(factorisation.scale))
    duals = combination @ problem.design.T
    if not problem.exact:
        duals = duals + 2.0 * problem.loss_weight[:, None] * problem.targets.T
    return duals
