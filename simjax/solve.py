"""`solve_rows`: many lasso-like problems over one design, each with a certificate."""

from __future__ import annotations

import dataclasses
import time
import warnings
from typing import Any

import jax
import numpy as np

from simjax import infeasible
from simjax._checks import choice, positive_integer, positive_scalar
from simjax.certificate import Certificate, certify
from simjax.constraints import Free, L1Ball
from simjax.penalties import Penalty
from simjax.problem import RowProblem, row_problem
from simjax.solvers import portfolio
from simjax.solvers.canonical import CanonicalRows, canonical_rows
from simjax.solvers.factor import Factorisation, factorise
from simjax.solvers.iterate import Progress, ProgressCallback, Scoreboard
from simjax.status import ConvergenceWarning, Status, convergence_message, row_status
from simjax.verify import Verification, sample_rows, verify_rows

# Two evaluations of a gap differ a little: the solvers stop below the tolerance that is then certified.
_INTERNAL_TOL = 0.3
# Columns whose norms differ by more than this are brought to norm one for the solver.
_COLUMN_SPREAD = 1e3

ORACLES = ("clarabel", "mosek")


@dataclasses.dataclass(frozen=True)
class Solution:
    """Weights of every row and what is proved about them.

    Attributes:
      problem: the rows that were solved.
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

    problem: RowProblem
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

    def verify(self, oracle: str = "clarabel", rows: int = 16, *, seed: int = 0, workers: int = 1) -> Verification:
        """Have an interior-point oracle solve a random sample of rows again, and compare.

        Args:
          oracle: "clarabel" or "mosek".
          rows: how many rows; all of them if there are fewer.
          seed: of the sample.
          workers: processes over which the oracle spreads the rows.

        Raises:
          OracleUnavailable: if the oracle's package or licence is missing.
        """
        return self.verify_numbers(sample_rows(self.status.size, rows, seed), oracle=oracle, workers=workers)

    def verify_numbers(self, numbers: np.ndarray, *, oracle: str, workers: int, first: int = 0) -> Verification:
        """`verify` for given rows, which the table calls `first` + their number."""
        return verify_rows(
            self.problem.take(numbers),
            self.weights[numbers],
            self.certificate.take(numbers),
            self.status[numbers],
            first + numbers,
            oracle=oracle,
            workers=workers,
            tol=self.tol,
        )

    def summary(self) -> str:
        """A few lines for a person: what ran, how many rows are certified, and how well."""
        rows = self.status.size
        solved = int(np.count_nonzero(self.status == Status.SOLVED))
        newton = int(np.count_nonzero(self.newton_steps))
        polished = int(np.count_nonzero(self.polished))
        feasible = self.status != Status.INFEASIBLE
        certificate = self.certificate.take(feasible)
        lines = [
            f"solver          {self.solver}: {_explain(self.solver, rows, polished, newton)}",
            f"rows            {solved} of {rows} certified at relative gap {self.tol:g}",
            f"worst gap       {certificate.relative_gap.max(initial=0.0):.2e} relative",
            f"infeasibility   {certificate.infeasibility.max(initial=0.0):.2e} worst",
            f"passes          {int(self.passes.max(initial=0))} at most, {int(np.median(self.passes))} median",
            f"time            {self.seconds:.2f} s, compilation included",
        ]
        if not feasible.all():
            lines.insert(2, f"infeasible      {np.count_nonzero(~feasible)} rows, proved by a dual ray each")
        return "\n".join(lines)


def _explain(solver: str, rows: int, polished: int, newton: int) -> str:
    if solver in ORACLES:
        return "interior-point method, row by row"
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
    workers: int = 1,
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
      solver: "auto", "admm", "proximal_gradient" (not for exact matching), or an oracle, "mosek" or "clarabel", which
        solves row by row with an interior-point method, as the SIM paper does (Algorithm 1). Nothing falls back.
      tol: relative duality gap at which a row counts as solved.
      max_iters: most passes over the design that any row gets.
      workers: processes over which an oracle spreads the rows; the other solvers solve all rows at once.
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
    return solve_problem(problem, solver=solver, tol=tol, max_iters=max_iters, workers=workers, progress=progress)


def check_solver(solver: str, matching: str, workers: int = 1) -> None:
    """Check that a solver exists and can serve the matching mode; for an oracle, that it is installed and licensed.

    Raises:
      ValueError: for an unknown solver, or one that cannot serve the request; the message says which can.
      OracleUnavailable: for an oracle without its package or licence.
    """
    choice("solver", solver, (*portfolio.SOLVERS, *ORACLES))
    positive_integer("workers", workers)
    if solver in ORACLES:
        from simjax.oracles.interface import oracle_module  # interior-point packages are an extra

        oracle_module(solver).check_available()
    elif workers != 1:
        raise ValueError(f"workers must be 1 for solver={solver!r}, which solves all rows at once; got {workers}.")
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
    workers: int = 1,
    progress: ProgressCallback | None = None,
) -> Solution:
    """Solve a `RowProblem`; arguments as in `solve_rows`."""
    check_solver(solver, problem.matching, workers)
    tol = positive_scalar("tol", tol)
    max_iters = positive_integer("max_iters", max_iters)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable or None, got {type(progress).__name__}.")
    begin = time.perf_counter()
    if solver in ORACLES:
        answer = _Answer.empty(problem)
        oracle = _oracle_solve(problem, solver, workers, progress)
        answer.weights[:], answer.duals[:] = oracle.weights, oracle.duals
    else:
        answer = _solve_live_rows(problem, solver, tol, max_iters, progress)
    certificate = certify(problem, answer.weights, [answer.duals])
    status = row_status(certificate, tol, exact=problem.exact)
    if problem.exact:
        certificate, status = _mark_infeasible(problem, certificate, status, tol, max_iters)
    if np.any(status != Status.SOLVED):
        message = convergence_message(status, certificate, tol, solver)
        warnings.warn(message, ConvergenceWarning, stacklevel=3)
    return Solution(
        problem=problem,
        weights=answer.weights,
        certificate=certificate,
        status=status,
        solver=solver,
        passes=answer.passes,
        newton_steps=answer.newton_steps,
        polished=answer.polished,
        seconds=time.perf_counter() - begin,
        tol=tol,
    )


@dataclasses.dataclass
class _Answer:
    """Weights and duals in the problem's units, and what they cost."""

    weights: np.ndarray
    duals: np.ndarray
    passes: np.ndarray
    newton_steps: np.ndarray
    polished: np.ndarray

    @classmethod
    def empty(cls, problem: RowProblem) -> _Answer:
        rows = problem.rows_count
        return cls(
            weights=np.zeros((rows, problem.width)),
            duals=np.zeros((rows, problem.design.shape[0])),
            passes=np.zeros(rows, dtype=int),
            newton_steps=np.zeros(rows, dtype=int),
            polished=np.zeros(rows, dtype=bool),
        )


def _solve_live_rows(
    problem: RowProblem, solver: str, tol: float, max_iters: int, progress: ProgressCallback | None
) -> _Answer:
    """Solve the rows with t ≠ 0; a row with t = 0 has the exact answer w = 0, with y = 0 as its proof."""
    answer = _Answer.empty(problem)
    live = np.flatnonzero(np.any(problem.targets != 0.0, axis=0))
    if not problem.design.any():  # nothing to gain: w = 0 is optimal, and its residual proves it
        live = live[:0]
    rows = problem.rows_count

    def report(part: Progress) -> None:
        """Progress of the rows still live, told as progress of all rows."""
        if progress is not None:
            settled = rows - part.rows
            progress(dataclasses.replace(part, rows=rows, solved=part.solved + settled))

    precise, inner_tol = problem.exact, _INTERNAL_TOL * tol
    while live.size and max_iters > 0:
        part = problem.take(live)
        with jax.enable_x64(True):
            board, weights, duals = _attempt(part, solver, inner_tol, max_iters, precise=precise, progress=report)
        answer.weights[live], answer.duals[live] = weights, duals
        answer.passes[live] += board.passes
        answer.newton_steps[live] += board.newton_steps
        answer.polished[live] |= board.polished
        # The factorised problem is the stated one up to rounding. Where that shows, and only there, go again with a
        # factorisation of Φ itself, which does not square its condition number, and a tighter tolerance.
        certificate = certify(part, weights, [duals])
        disagree = (board.gap <= inner_tol) & (row_status(certificate, tol, exact=part.exact) != Status.SOLVED)
        max_iters -= int(board.passes.max(initial=0))
        live = live[disagree]
        if precise and inner_tol < 0.01 * tol:
            break
        precise, inner_tol = True, 0.1 * inner_tol
    return answer


def _mark_infeasible(
    problem: RowProblem, certificate: Certificate, status: np.ndarray, tol: float, max_iters: int
) -> tuple[Certificate, np.ndarray]:
    """Give the rows that can be proved infeasible that status, and the ray as their dual."""
    missed = np.flatnonzero(status != Status.SOLVED)
    if missed.size == 0:
        return certificate, status
    part = problem.take(missed)
    rays = infeasible.inconsistency_rays(part)
    proved = infeasible.proved(part, rays)
    if part.ball is not None and not proved.all():
        rest = np.flatnonzero(~proved)
        phase_one = infeasible.smallest_ball(part.take(rest))
        answer = _solve_live_rows(phase_one, "auto", tol, max_iters, None)
        rays[rest] = certify(phase_one, answer.weights, [answer.duals]).dual
        proved[rest] = infeasible.proved(part.take(rest), rays[rest])
    status = status.copy()
    status[missed[proved]] = Status.INFEASIBLE
    return certificate.with_rays(missed[proved], rays[proved]), status


def _oracle_solve(problem: RowProblem, oracle: str, workers: int, progress: ProgressCallback | None) -> Any:
    from simjax import oracles  # interior-point packages are an extra

    begin = time.perf_counter()

    def report(done: int, count: int) -> None:
        if progress is not None:
            seconds = time.perf_counter() - begin
            progress(Progress(count, done, worst_gap=np.inf, passes=0, seconds=seconds, stage=oracle))

    return oracles.solve(problem, oracle=oracle, workers=workers, progress=report)


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
