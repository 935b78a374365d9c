"""`solve_rows`: many lasso-like problems over one design, each with a certificate."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np
import scipy.sparse
from jax.sharding import Mesh

from simjax._checks import choice, positive_integer, positive_scalar
from simjax._warnings import warn
from simjax.rows import infeasible
from simjax.rows.certificate import Certificate, ball_violation, certify, joined_certificates
from simjax.rows.constraints import Constraint
from simjax.rows.dual_points import flat_of
from simjax.rows.oracles.interface import ORACLES, oracle_module
from simjax.rows.penalties import Penalty, PiecewisePenalty
from simjax.rows.problem import TINY, RowProblem, RowSource, row_problem
from simjax.rows.solvers import portfolio
from simjax.rows.solvers.canonical import CanonicalRows, canonical_rows
from simjax.rows.solvers.devices import automatic, device_count, row_blocks
from simjax.rows.solvers.direct import least_squares
from simjax.rows.solvers.factor import Design, Factorisation
from simjax.rows.solvers.iterate import Progress, ProgressCallback, Scoreboard
from simjax.rows.solvers.threads import one_thread_each
from simjax.rows.status import ConvergenceWarning, Status, convergence_message, row_status
from simjax.rows.verify import Verification, sample_rows, verify_rows

# How a row is solved, and to which share of the tolerance asked for: two evaluations of a gap differ a little, so the
# solvers stop below the tolerance that is then certified. The factorised problem is the stated one up to rounding.
# Where that shows in the certificate, and only there, a row is polished in the samples themselves; then it is solved
# with a factorisation of Φ itself, which does not square its condition number, and polished again. What is left of the
# rows without penalty goes to LAPACK.
_ATTEMPTS = (("moments", 0.3), ("samples", 0.3), ("precise", 0.03), ("samples", 0.3))
_ATTEMPTS_EXACT = (("precise", 0.3), ("precise", 0.03), ("precise", 0.003))
# Columns whose norms differ by more than this are brought to norm one for the solver.
_COLUMN_SPREAD = 1e3

Weights = np.ndarray | scipy.sparse.csr_array


def dense_rows(weights: Weights) -> np.ndarray:
    """Rows of weights as an array, whether they are kept as one or as CSR."""
    return weights if isinstance(weights, np.ndarray) else weights.toarray()


class Workspace:
    """A design made ready for solves: whatever is solved over it shares its factorisation.

    Args:
      design: Φ, (m, d), in float64, as in `RowProblem`.
    """

    def __init__(self, design: np.ndarray) -> None:
        norms = np.linalg.norm(design, axis=0)
        positive = norms[norms > 0.0]
        self.design = design
        self.column_scale = np.ones(design.shape[1])
        if positive.size and positive.max() > _COLUMN_SPREAD * positive.min():
            self.column_scale = np.where(norms > 0.0, norms, 1.0)
        scaled = design if np.all(self.column_scale == 1.0) else design / self.column_scale
        self.scaled = Design(scaled)

    def check(self, problem: RowProblem | RowSource) -> None:
        """Raise a ValueError if the problem has another design."""
        same = self.design is problem.design or np.array_equal(self.design, problem.design)
        if not same:
            raise ValueError("workspace was made for another design than that of the problem.")


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a solve begins: weights (R, d) and dual points (R, m) of another, as in `Solution` and its certificate."""

    weights: np.ndarray
    duals: np.ndarray

    def take(self, index: np.ndarray) -> Start:
        return Start(self.weights[index], self.duals[index])


@dataclasses.dataclass(frozen=True)
class Solution:
    """Weights of every row and what is proved about them.

    Attributes:
      problem: the rows that were solved.
      weights: (R, d), float64; CSR where memory only allowed for blocks of rows.
      certificate: one entry per row.
      status: (R,), strings; see `Status`.
      solver: the solver that ran.
      passes: passes over the design that each row took, (R,).
      newton_steps: Newton steps of the batch each row was in, (R,).
      polished: whether the active-set polish certified the row, (R,).
      seconds: wall time of the solve, compilation included.
      tol: the relative gap that was asked for.
    """

    problem: RowProblem | RowSource
    weights: Weights
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
            dense_rows(self.weights[numbers]),
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
    parts = []
    if rows - polished - newton:
        parts.append(f"{rows - polished - newton} rows by ADMM")
    if polished:
        parts.append(f"{polished} by active-set polish, their signs having settled")
    if newton:
        parts.append(f"{newton} by semismooth Newton, ADMM having stalled")
    return ", ".join(parts)


def solve_rows(
    design: Any,
    targets: Any,
    *,
    loss_weight: Any = 1.0,
    penalty: Penalty,
    constraint: Constraint | None = None,
    support: Any = None,
    matching: str = "penalty",
    solver: str = "auto",
    tol: float = 1e-6,
    max_iters: int = 20_000,
    workers: int = 1,
    mesh: Mesh | None = None,
    max_memory: float | None = None,
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
      constraint: `L1Ball`, `MetzlerRow` (not with a penalty of your own), `Free` or None.
      support: boolean mask (d,) or (R, d) of the entries that may be nonzero, or None.
      matching: "penalty" or "exact".
      solver: "auto", "admm", "proximal_gradient" (not for exact matching), or an oracle, "mosek" or "clarabel", which
        solves row by row with an interior-point method, as the SIM paper does (Algorithm 1). Nothing falls back.
      tol: relative duality gap at which a row counts as solved.
      max_iters: most passes over the design that any row gets.
      workers: processes over which an oracle spreads the rows; the other solvers solve all rows at once.
      mesh: devices to spread the rows over, whatever its axes; None means one device. Not for the oracles, nor for a
        penalty of your own.
      max_memory: bytes that the solver's working arrays may take: more rows than fit are solved in blocks, and their
        weights kept as CSR. None means half of the memory that the device has free.
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
    return solve_problem(
        problem,
        solver=solver,
        tol=tol,
        max_iters=max_iters,
        workers=workers,
        mesh=mesh,
        max_memory=max_memory,
        progress=progress,
    )


def check_solver(solver: str, matching: str, workers: int = 1) -> None:
    """Check that a solver exists and can serve the matching mode; for an oracle, that it is installed and licensed.

    Raises:
      ValueError: for an unknown solver, or one that cannot serve the request; the message says which can.
      OracleUnavailable: for an oracle without its package or licence.
    """
    choice("solver", solver, (*portfolio.SOLVERS, *ORACLES))
    positive_integer("workers", workers)
    if solver in ORACLES:
        oracle_module(solver).check_available()
    elif workers != 1:
        raise ValueError(f"workers must be 1 for solver={solver!r}, which solves all rows at once; got {workers}.")
    if matching == "exact" and solver == "proximal_gradient":
        raise ValueError(
            "solver='proximal_gradient' cannot serve matching='exact': there is no smooth loss to take a gradient of; "
            "use 'auto' or 'admm'."
        )


def solve_problem(
    problem: RowProblem | RowSource,
    *,
    solver: str = "auto",
    tol: float = 1e-6,
    max_iters: int = 20_000,
    workers: int = 1,
    mesh: Mesh | None = None,
    max_memory: float | None = None,
    progress: ProgressCallback | None = None,
    workspace: Workspace | None = None,
    start: Start | None = None,
) -> Solution:
    """Solve a `RowProblem`; arguments as in `solve_rows`, and:

    Args:
      workspace: of the same design, where it is solved over more than once.
      start: where to begin; any weights and dual points are safe.
    """
    check_solver(solver, problem.matching, workers)
    mesh = automatic(mesh)
    if mesh is not None and solver in ORACLES:
        raise ValueError(f"mesh must be None for solver={solver!r}, which runs on the host; use workers instead.")
    tol = positive_scalar("tol", tol)
    max_iters = positive_integer("max_iters", max_iters)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable or None, got {type(progress).__name__}.")
    if max_memory is not None:
        max_memory = positive_scalar("max_memory", max_memory)
    begin = time.perf_counter()
    if workspace is None:
        workspace = Workspace(problem.design)
    workspace.check(problem)
    run = _Run(workspace, solver, tol, max_iters, workers, mesh)
    blocks = row_blocks(problem.rows_count, problem.design.shape, max_memory, device_count(mesh))
    solved = []
    for block in blocks:
        if len(blocks) == 1 and isinstance(problem, RowProblem):
            part = problem
        else:
            part = problem.take(block)
        report = _progress_of_block(progress, problem.rows_count, int(block[0]), begin)
        solved.append(run.block(part, None if start is None else start.take(block), report, keep=len(blocks) == 1))
    if len(blocks) == 1:
        weights, problem = solved[0].weights, part
    else:
        parts = [scipy.sparse.csr_array(block.weights) for block in solved]
        weights = scipy.sparse.csr_array(scipy.sparse.vstack(parts))
    certificate = joined_certificates([block.certificate for block in solved])
    status = np.concatenate([block.status for block in solved])
    if np.any(status != Status.SOLVED):
        message = convergence_message(status, certificate, tol, solver)
        warn(message, ConvergenceWarning)
    return Solution(
        problem=problem,
        weights=weights,
        certificate=certificate,
        status=status,
        solver=solver,
        passes=np.concatenate([block.passes for block in solved]),
        newton_steps=np.concatenate([block.newton_steps for block in solved]),
        polished=np.concatenate([block.polished for block in solved]),
        seconds=time.perf_counter() - begin,
        tol=tol,
    )


def _progress_of_block(
    progress: ProgressCallback | None, rows: int, settled: int, begin: float
) -> ProgressCallback | None:
    """Progress of a block, told as progress of all rows; those before it count as solved."""
    if progress is None:
        return None

    def report(part: Progress) -> None:
        seconds = time.perf_counter() - begin
        progress(dataclasses.replace(part, rows=rows, solved=settled + part.solved, seconds=seconds))

    return report


@dataclasses.dataclass(frozen=True)
class _Block:
    """What a block of rows leaves behind."""

    weights: Weights
    certificate: Certificate
    status: np.ndarray
    passes: np.ndarray
    newton_steps: np.ndarray
    polished: np.ndarray


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


@dataclasses.dataclass(frozen=True)
class _Run:
    """What all rows of a solve share."""

    workspace: Workspace
    solver: str
    tol: float
    max_iters: int
    workers: int
    mesh: Mesh | None

    def block(
        self, problem: RowProblem, start: Start | None, progress: ProgressCallback | None, *, keep: bool
    ) -> _Block:
        """Solve and certify some rows; their weights come as an array if `keep`, otherwise as CSR."""
        if self.mesh is not None and not isinstance(problem.penalty, PiecewisePenalty):
            raise ValueError(
                f"mesh must be None for a penalty of your own, got {type(problem.penalty).__name__}: its parameters "
                "cannot be told apart by row."
            )
        if self.solver in ORACLES:
            answer = _Answer.empty(problem)
            oracle = _oracle_solve(problem, self.solver, self.workers, progress)
            answer.weights[:], answer.duals[:] = oracle.weights, oracle.duals
        else:
            answer = self.solve(problem, start, progress)
        certificate = certify(problem, answer.weights, [answer.duals])
        status = row_status(certificate, self.tol, exact=problem.exact)
        if problem.exact:
            certificate, status = self._mark_infeasible(problem, certificate, status)
        weights = answer.weights if keep else scipy.sparse.csr_array(answer.weights)
        return _Block(weights, certificate, status, answer.passes, answer.newton_steps, answer.polished)

    def solve(self, problem: RowProblem, start: Start | None, progress: ProgressCallback | None) -> _Answer:
        """Solve the rows with t ≠ 0; a row with t = 0 has the exact answer w = 0, with y = 0 as its proof.

        Unless a Metzler row with κ < 0 rules out w = 0.
        """
        max_iters = self.max_iters
        answer = _Answer.empty(problem)
        # Below this size squares underflow: such a target is zero as far as float64 can tell, and so is such a design,
        # from which there is nothing to gain. w = 0 is the answer then, and its residual proves it.
        zero = np.abs(problem.targets).max(axis=0) <= TINY
        if problem.ball is not None:
            zero &= problem.ball.radius[:, 0] > 0.0
        live = np.flatnonzero(~zero)
        if np.abs(problem.design).max() <= TINY:
            live = live[:0]
        rows = problem.rows_count

        def report(part: Progress) -> None:
            """Progress of the rows still live, told as progress of all rows."""
            if progress is not None:
                settled = rows - part.rows
                progress(dataclasses.replace(part, rows=rows, solved=part.solved + settled))

        best = np.full(rows, np.inf)

        def keep(index: np.ndarray, part: RowProblem, weights: np.ndarray, duals: np.ndarray) -> np.ndarray:
            """Take over the answers to `part`, the rows `index`, that are better than before; which are solved."""
            certificate = certify(part, weights, [duals])
            solved = row_status(certificate, self.tol, exact=part.exact) == Status.SOLVED
            # A smaller gap is no answer where the equations are missed: what is solved always counts as better.
            better = solved | (certificate.relative_gap < best[index]) | np.isinf(best[index])
            chosen = index[better]
            answer.weights[chosen], answer.duals[chosen] = weights[better], duals[better]
            best[chosen] = certificate.relative_gap[better]
            return solved

        for way, share in _ATTEMPTS_EXACT if problem.exact else _ATTEMPTS:
            if live.size == 0 or max_iters <= 0:
                break
            part, tol = problem.take(live), share * self.tol
            with jax.enable_x64(True):
                if way == "samples":
                    board, weights, duals = self._refine(part, tol, answer.weights[live], report)
                else:
                    begin = None if start is None else start.take(live)
                    board, weights, duals = self._attempt(part, tol, max_iters, way == "precise", begin, report)
            answer.passes[live] += board.passes
            answer.newton_steps[live] += board.newton_steps
            answer.polished[live] |= board.polished
            max_iters -= int(board.passes.max(initial=0))
            solved = keep(live, part, weights, duals)
            # Only rows that the solver takes for solved and the certificate does not have anything to gain.
            live = live[~solved & ((board.gap <= tol) | (way == "samples"))]
        if self.solver != "auto" or problem.exact:
            return answer
        stuck = (best > self.tol) & np.isfinite(best)
        linear = np.flatnonzero(stuck & _linear_rows(problem)) if stuck.any() else live[:0]
        if linear.size:
            part = problem.take(linear)
            with one_thread_each():
                weights, residuals = least_squares(part)
            inside = np.flatnonzero(ball_violation(part, weights) == 0.0)
            part = part.take(inside)
            keep(linear[inside], part, weights[inside], 2.0 * part.loss_weight[:, None] * residuals[inside])
        return answer

    def _attempt(
        self,
        problem: RowProblem,
        tol: float,
        max_iters: int,
        precise: bool,
        start: Start | None,
        report: ProgressCallback,
    ) -> tuple[Scoreboard, np.ndarray, np.ndarray]:
        """One run in canonical units; weights (R, d) and duals (R, m) in those of the problem."""
        design, column_scale = self.workspace.scaled, self.workspace.column_scale
        factorisation = design.factorisation(precise=precise)
        coordinates = design.coordinates(problem.targets, precise=precise)
        rows = canonical_rows(problem, factorisation, coordinates, column_scale)
        point_scale = np.asarray(rows.point_scale)
        board = Scoreboard(factorisation, rows, tol, report)
        begin = None
        if start is not None:  # ỹ = q‖t‖ Uᵀy, the inverse of `_full_duals`
            dual = design.coordinates(start.duals.T, precise=precise) / np.asarray(rows.dual_scale)
            begin = start.weights / point_scale, dual
        with one_thread_each():
            portfolio.run(self.solver, factorisation, rows, board, max_iters, mesh=self.mesh, start=begin)
        weights = board.weights * point_scale
        return board, weights, _full_duals(problem, factorisation, rows, board.dual, column_scale)

    def _refine(
        self, problem: RowProblem, tol: float, guess: np.ndarray, report: ProgressCallback
    ) -> tuple[Scoreboard, np.ndarray, np.ndarray]:
        """A polish of weights (R, d) whose residuals are computed in the samples; else as `_attempt`."""
        design, column_scale = self.workspace.scaled, self.workspace.column_scale
        samples = design.itself()
        rows = canonical_rows(problem, samples, problem.targets.T, column_scale)
        point_scale = np.asarray(rows.point_scale)
        board = Scoreboard(samples, rows, tol, report)
        with one_thread_each():
            portfolio.refine(design.factorisation(precise=False), samples, rows, board, guess / point_scale)
        return board, board.weights * point_scale, board.dual * np.asarray(rows.dual_scale)

    def _mark_infeasible(
        self, problem: RowProblem, certificate: Certificate, status: np.ndarray
    ) -> tuple[Certificate, np.ndarray]:
        """Give the rows that can be proved infeasible that status, and the ray as their dual."""
        missed = np.flatnonzero(status != Status.SOLVED)
        if missed.size == 0:
            return certificate, status
        part = problem.take(missed)
        rays = infeasible.inconsistency_rays(part)
        proved = infeasible.proved(part, rays)
        if part.ball is not None and part.ball.tilt is None and not proved.all():
            rest = np.flatnonzero(~proved)
            phase_one = infeasible.smallest_ball(part.take(rest))
            answer = dataclasses.replace(self, solver="auto").solve(phase_one, None, None)
            rays[rest] = certify(phase_one, answer.weights, [answer.duals]).dual
            proved[rest] = infeasible.proved(part.take(rest), rays[rest])
        status = status.copy()
        status[missed[proved]] = Status.INFEASIBLE
        return certificate.with_rays(missed[proved], rays[proved]), status


def _linear_rows(problem: RowProblem) -> np.ndarray:
    """Rows without penalty, (R,): plain least squares, if the ball allows its solution."""
    support = True if problem.support is None else problem.support
    return np.all(flat_of(dataclasses.replace(problem, ball=None)) == support, axis=1)


def _oracle_solve(problem: RowProblem, oracle: str, workers: int, progress: ProgressCallback | None) -> Any:
    from simjax.rows import oracles  # interior-point packages are an extra

    begin = time.perf_counter()

    def report(done: int, count: int) -> None:
        if progress is not None:
            seconds = time.perf_counter() - begin
            progress(Progress(count, done, worst_gap=np.inf, passes=0, seconds=seconds, stage=oracle))

    return oracles.solve(problem, oracle=oracle, workers=workers, progress=report)


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
