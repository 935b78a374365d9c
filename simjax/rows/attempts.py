"""The ways in which a block of rows is solved, one after the other, each judged by the certificate.

Two evaluations of a gap differ a little, so the solvers stop below the tolerance that is then certified. The factorised
problem is the stated one up to rounding. Where that shows in the certificate, and only there, a row is polished in the
samples themselves; then it is solved with a factorisation of Φ itself, which does not square its condition number, and
polished again. What is left of the rows without penalty goes to LAPACK.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from simjax._warnings import warn
from simjax.rows import infeasible
from simjax.rows.answers import RowAnswers
from simjax.rows.arrays import largest
from simjax.rows.blocks import BlockAnswers
from simjax.rows.boxed import box_of, unboxed
from simjax.rows.certificate import Candidates, Certificate, bound_violation, certify_until
from simjax.rows.dual_points import flat_of
from simjax.rows.engines import Engine
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.history import Checks
from simjax.rows.joint_prox import moved_inside
from simjax.rows.options import SolveOptions
from simjax.rows.oracles.interface import ORACLES
from simjax.rows.penalties import PiecewisePenalty
from simjax.rows.problem import TINY, RowProblem
from simjax.rows.progress import Reporter
from simjax.rows.solvers import portfolio
from simjax.rows.solvers.canonical import CanonicalRows, canonical_rows
from simjax.rows.solvers.direct import least_squares
from simjax.rows.solvers.factor import FactoredDesign, Factorisation
from simjax.rows.solvers.supported import solve_supported_rows
from simjax.rows.sparse_design import fits_as_array
from simjax.rows.status import Status, row_status, told_apart
from simjax.rows.threads import one_thread_each
from simjax.rows.workspace import Workspace

# How, and to which share of the tolerance asked for.
_ATTEMPTS = (("moments", 0.3), ("samples", 0.3), ("precise", 0.03), ("samples", 0.3))
_ATTEMPTS_EXACT = (("precise", 0.3), ("precise", 0.03), ("precise", 0.003))
# First-order passes in float32 come near enough to these tolerances, and gain something from this size of V on.
_SINGLE_FROM, _SINGLE_SIZE = 1e-9, 2**15
_PROVED = 0.1  # share of the tolerance below which a gap need not be lowered by another dual point
_TALL = 16  # samples per coordinate from which on working sets, too, look at ΦᵀΦ alone


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a solve begins: weights (R, d) and dual points (R, m) of another, as in `Solution` and its certificate."""

    weights: np.ndarray
    duals: np.ndarray

    def take(self, index: np.ndarray) -> Start:
        return Start(self.weights[index], self.duals[index])


@dataclasses.dataclass(frozen=True)
class RowBlock:
    """The rows of one block while they are solved.

    Attributes:
      answers: in the problem's units, (R, d) and (R, m); its gaps are those of the certificate.
      rays: of rows that were looked at, what proves them infeasible, (m,), or None.
    """

    problem: RowProblem
    workspace: Workspace
    options: SolveOptions
    engine: Engine
    reporter: Reporter
    answers: RowAnswers
    certificate: Certificate
    rays: dict[int, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def make(
        cls, problem: RowProblem, workspace: Workspace, options: SolveOptions, engine: Engine, reporter: Reporter
    ) -> RowBlock:
        rows, m = problem.count, problem.design.shape[0]
        answers = RowAnswers.empty(rows, problem.width, m, options.tol)
        reporter.checks = Checks(rows) if options.history else None
        workspace = workspace.for_penalty(problem.penalty)
        return cls(problem, workspace, options, engine, reporter, answers, Certificate.unknown(answers.dual))

    def answered(self, start: Start | None) -> BlockAnswers:
        """Solve and certify all rows; what was found and proved, also of a free intercept."""
        status, answers, certificate = self.solve(start), self.answers, self.certificate
        checks, centring = self.reporter.checks, self.problem.centring
        if centring is not None:
            certificate = dataclasses.replace(certificate, dual=centring.orthogonal(certificate.dual))
        return BlockAnswers(
            weights=answers.weights,
            certificate=certificate,
            status=told_apart(status, answers.passes, self.options.max_iters),
            passes=answers.passes,
            newton_steps=answers.newton_steps,
            polished=answers.polished,
            history=None if checks is None else checks.history(self.certificate.relative_gap, answers.passes),
            intercept=None if centring is None else centring.intercept(answers.weights),
        )

    def solve(self, start: Start | None) -> np.ndarray:
        """Solve and certify all rows; the status of each, (R,). Those proved infeasible have the ray as their dual."""
        self.answer(start)
        status = row_status(self.certificate, self.options.tol, exact=self.problem.exact)
        if self.problem.exact:
            missed = np.flatnonzero(status != Status.SOLVED)
            for row in missed[self._infeasible(missed)].tolist():
                self.certificate.put_ray(row, self.rays[row])
                status[row] = Status.INFEASIBLE
        return status

    def answer(self, start: Start | None) -> None:
        """Solve and certify all rows by the solver that was asked for, without looking for infeasible ones."""
        if self.options.solver in ORACLES:
            found = _oracle_solve(self.problem, self.options, self.reporter)
            self._keep(np.arange(self.problem.count), self.problem, found.weights, found.duals.__getitem__)
        else:
            self._attempts(start)

    def _attempts(self, start: Start | None) -> None:
        problem, answers, options = self.problem, self.answers, self.options
        rows = problem.count
        # Below this size squares underflow: such a target is zero as far as float64 can tell, and so is such a design,
        # from which there is nothing to gain. w = 0 is the answer then, and its residual proves it; unless a Metzler
        # row with κ < 0 or a box rules it out.
        zero = np.abs(problem.targets).max(axis=0) <= TINY
        if problem.bound is not None:
            zero &= problem.bound.radius[:, 0] > 0.0
        box = box_of(problem.penalty)
        if box is not None:
            answers.weights[:] = box.clip(answers.weights)
            zero &= ~answers.weights.any(axis=1)
        if largest(problem.design) <= TINY:
            zero[:] = True
        trivial, live = np.flatnonzero(zero), np.flatnonzero(~zero)
        if trivial.size:
            part = problem.take(trivial)
            self._keep(trivial, part, answers.weights[trivial], answers.dual[trivial].__getitem__)
        if self._on_this_cpu():
            penalty: Any = problem.penalty
            live = self._sparse(live, start) if np.any(penalty.slope) else self._supported(live)
        if live.size and not self.workspace.scaled.has_room:
            warn(_no_room(live.size, self.workspace.scaled))
            live = live[:0]
        if problem.exact and isinstance(problem.penalty, GroupPenalty):  # passes are all that these rows have
            live = live[~self._infeasible(live)]
        max_iters = options.max_iters
        for way, share in _ATTEMPTS_EXACT if problem.exact else _ATTEMPTS:
            if live.size == 0 or max_iters <= 0:
                break
            part, tol = (problem if live.size == rows else problem.take(live)), share * options.tol
            if way == "samples" and self.workspace.scaled.sparse and self.engine.name != "numpy":
                continue  # a sparse matrix is no array of JAX's: what is left goes on with a precise factorisation
            with self.reporter.only(live, answers.passes):
                if way == "samples":
                    board, weights, duals = self._refine(part, tol, answers.weights[live])
                else:
                    part_start = None if start is None else start.take(live)
                    board, weights, duals = self._attempt(part, live, tol, max_iters, way == "precise", part_start)
            answers.add_costs(live, board)
            max_iters -= int(board.passes.max(initial=0))
            solved = self._keep(live, part, weights, duals)
            # Only rows that the solver takes for solved and the certificate does not have anything to gain.
            live = live[~solved & ((board.gap <= tol) | board.settled | (way == "samples"))]
        if options.solver == "auto" and not problem.exact and fits_as_array(problem.design):
            self._least_squares()
        untouched = np.flatnonzero(np.isinf(answers.gap))
        if untouched.size:  # not even w = 0 has been certified
            part, rest = problem.take(untouched), answers.dual[untouched]
            self._keep(untouched, part, answers.weights[untouched], rest.__getitem__)

    def _on_this_cpu(self) -> bool:
        """Whether there are ways that only NumPy has: for the family of penalties, in a ball or without."""
        return (
            self.options.solver == "auto"
            and self.engine.name == "numpy"
            and not self.problem.exact
            and isinstance(self.problem.penalty, PiecewisePenalty)
            and (self.problem.bound is None or self.problem.bound.tilt is None)
        )

    def _supported(self, live: np.ndarray) -> np.ndarray:
        """Rows of a quadratic objective, each on its own support, where no ball binds; those still open."""
        penalty: Any = self.problem.penalty
        m, d = self.problem.design.shape
        by_gram = not self.workspace.scaled.sparse or (d <= m and self.workspace.scaled.has_room)
        if live.size == 0 or np.any(penalty.knot) or not by_gram:
            return live
        problem: Any = self.problem.take(live)
        curvature = problem.penalty.curvature / (2.0 * problem.loss_weight[:, None])
        bound = problem.bound
        limits: dict[str, Any] = {} if bound is None else {"omega": bound.omega, "radius": bound.radius}
        limits["threads"] = getattr(self.engine, "threads", 1)
        with one_thread_each():
            found = solve_supported_rows(
                problem.design, self.workspace.gram, problem.targets.T, curvature, problem.support, **limits
            )
        chosen = np.flatnonzero(found.solved & ~found.outside)
        part = problem.take(chosen)
        duals = 2.0 * part.loss_weight[:, None] * found.residuals[chosen]
        solved = chosen[self._keep(live[chosen], part, found.weights[chosen], duals.__getitem__)]
        return np.delete(live, solved)

    def _sparse(self, live: np.ndarray, start: Start | None) -> np.ndarray:
        """Rows solved by working sets; the numbers of those still open."""
        if live.size == 0:
            return live
        problem, design = self.problem.take(live), self.workspace.scaled
        m, d = design.array.shape
        if m >= _TALL * d and (not design.sparse or d * d <= design.stored):
            samples = design.factorisation(precise=False)
            coordinates = design.coordinates(problem.targets, precise=False)
        else:
            samples, coordinates = design.itself(), problem.targets.T
        rows = canonical_rows(problem, samples, coordinates, self.workspace.column_scale)
        board = _board(samples, rows, _ATTEMPTS[0][1] * self.options.tol)
        with self.engine.session(), self.reporter.only(live, self.answers.passes):
            weights = None if start is None else start.weights[live] / rows.point_scale
            portfolio.sparse(self.engine, samples, rows, board, weights, self.reporter)
        solved, weights = np.flatnonzero(board.gap <= board.tol), _in_units(problem, board, rows)

        def duals(chosen: np.ndarray) -> np.ndarray:
            return self._full_duals(problem, samples, rows, board, solved[chosen])

        solved = solved[self._keep(live[solved], problem.take(solved), weights[solved], duals)]
        return np.delete(live, solved)

    def _least_squares(self) -> None:
        """What is left of the rows without penalty whose ball allows their least-squares solution."""
        stuck = (self.answers.gap > self.options.tol) & np.isfinite(self.answers.gap)
        linear = np.flatnonzero(stuck & _linear_rows(self.problem)) if stuck.any() else np.zeros(0, dtype=int)
        if linear.size == 0:
            return
        part = self.problem.take(linear)
        weights, residuals = least_squares(part)
        inside = np.flatnonzero(bound_violation(part, weights) == 0.0)
        part = part.take(inside)
        duals = 2.0 * part.loss_weight[:, None] * residuals[inside]
        self._keep(linear[inside], part, weights[inside], duals.__getitem__)

    def _keep(self, index: np.ndarray, part: RowProblem, weights: np.ndarray, duals: Candidates) -> np.ndarray:
        """Take over the answers to `part`, the rows `index`, that are better than before; which are solved."""
        if index.size == 0:
            return np.zeros(0, dtype=bool)
        answers, certificate = self.answers, certify_until(part, weights, [duals], _PROVED * self.options.tol)
        solved = row_status(certificate, self.options.tol, exact=part.exact) == Status.SOLVED
        # A smaller gap is no answer where the equations are missed: what is solved always counts as better.
        better = solved | (certificate.relative_gap < answers.gap[index]) | np.isinf(answers.gap[index])
        chosen = index[better]
        answers.weights[chosen], answers.gap[chosen] = weights[better], certificate.relative_gap[better]
        self.certificate.put(chosen, certificate.take(better))
        if self.reporter.checks is not None:
            self.reporter.checks.note(index, answers.gap[index], answers.passes[index])
        return solved

    def _attempt(
        self, problem: RowProblem, live: np.ndarray, tol: float, max_iters: int, precise: bool, start: Start | None
    ) -> tuple[RowAnswers, np.ndarray, Candidates]:
        """One run of the `live` rows in canonical units; weights (R, d) and duals in those of the problem."""
        design, column_scale = self.workspace.scaled, self.workspace.column_scale
        factorisation = design.factorisation(precise=precise)
        coordinates = design.coordinates(problem.targets, precise=precise)
        rows = canonical_rows(problem, factorisation, coordinates, column_scale)
        board = _board(factorisation, rows, tol)
        canonical_start = None
        if start is not None:  # ỹ = q‖t‖ Uᵀy, the inverse of `_full_duals`
            dual = design.coordinates(start.duals.T, precise=precise) / rows.dual_scale
            canonical_start = start.weights / rows.point_scale, dual
        single = self.options.precision == "auto" and not (precise or problem.exact or tol < _SINGLE_FROM)
        ours = isinstance(unboxed(problem.penalty), PiecewisePenalty | GroupPenalty)
        single = single and factorisation.basis.size >= _SINGLE_SIZE and ours
        with self.engine.session():
            portfolio.run(
                self.options.solver,
                self.engine,
                factorisation,
                rows,
                board,
                max_iters,
                self.reporter,
                single=single,
                start=canonical_start,
                impossible=(lambda index: self._infeasible(live[index])) if problem.exact else None,
            )
        duals = functools.partial(self._full_duals, problem, factorisation, rows, board)
        return board, _in_units(problem, board, rows), duals

    def _refine(self, problem: RowProblem, tol: float, guess: np.ndarray) -> tuple[RowAnswers, np.ndarray, Candidates]:
        """A polish of weights (R, d) whose residuals are computed in the samples; else as `_attempt`."""
        design, column_scale = self.workspace.scaled, self.workspace.column_scale
        samples = design.itself()
        rows = canonical_rows(problem, samples, problem.targets.T, column_scale)
        board = _board(samples, rows, tol)
        with self.engine.session():
            factorisation = design.factorisation(precise=False)
            portfolio.refine(self.engine, factorisation, samples, rows, board, guess / rows.point_scale, self.reporter)
        duals = functools.partial(self._full_duals, problem, samples, rows, board)
        return board, _in_units(problem, board, rows), duals

    def _full_duals(
        self,
        problem: RowProblem,
        factorisation: Factorisation,
        rows: CanonicalRows,
        board: RowAnswers,
        chosen: np.ndarray,
    ) -> np.ndarray:
        """The board's dual points of the `chosen` rows in sample space, (k, m).

        y = U ỹ / (q‖t‖), plus 2λ times the part of t outside the design's range.
        """
        dual, scale = board.dual[chosen], rows.dual_scale[chosen]
        if self.workspace.scaled.is_itself(factorisation):  # U = I
            return dual * scale
        inside = dual * scale if problem.exact else (dual - rows.targets[chosen]) * scale
        # U = Φ D⁻¹ V S⁻¹: cheaper than to keep U, and exact where the design itself is.
        combination = ((inside / factorisation.singular_values) @ factorisation.basis.T) / (
            self.workspace.column_scale * float(factorisation.scale)
        )
        duals = combination @ problem.design.T
        if not problem.exact:
            duals += 2.0 * problem.loss_weight[chosen, None] * problem.targets.T[chosen]
        return duals

    def _infeasible(self, rows: np.ndarray) -> np.ndarray:
        """Which of these rows under exact matching are proved infeasible, (k,); each is looked at once."""
        rest = np.array([row for row in rows.tolist() if row not in self.rays], dtype=int)
        if rest.size:
            part = self.problem.take(rest)
            rays = self._rays(part)
            proved = infeasible.proved(part, rays)
            self.rays.update((row, rays[k] if proved[k] else None) for k, row in enumerate(rest.tolist()))
        return np.array([self.rays[row] is not None for row in rows.tolist()], dtype=bool)

    def _rays(self, part: RowProblem) -> np.ndarray:
        """What might prove rows under exact matching infeasible, (k, m)."""
        rays = infeasible.inconsistency_rays(part)
        proved = infeasible.proved(part, rays)
        boxed = box_of(part.penalty) is not None
        if (boxed or (part.bound is not None and part.bound.tilt is None)) and not proved.all():
            rest = np.flatnonzero(~proved)
            phase_one = (infeasible.nearest_fit if boxed else infeasible.smallest_ball)(part.take(rest))
            block = RowBlock.make(phase_one, self.workspace, self.options, self.engine, Reporter(None, rest.size))
            block.answer(None)
            rays[rest] = block.certificate.dual
        return rays


def _board(factorisation: Factorisation, rows: CanonicalRows, tol: float) -> RowAnswers:
    """Canonical answers at w = 0 with the targets as dual points."""
    count, equations = rows.targets.shape
    board = RowAnswers.empty(count, factorisation.basis.shape[0], equations, tol)
    board.dual[:] = rows.targets
    return board


def _in_units(problem: RowProblem, board: RowAnswers, rows: CanonicalRows) -> np.ndarray:
    """The weights in the units of the problem, and in the box and the ball there, too: a change of units rounds."""
    weights: Any = board.weights * rows.point_scale
    box = box_of(problem.penalty)
    if box is not None:
        inner: Any = rows.penalty
        weights = np.where(board.weights == inner.upper, box.upper, weights)
        weights = box.clip(np.where(board.weights == inner.lower, box.lower, weights))
    return np.asarray(moved_inside(problem.penalty, problem.bound, weights))


def _no_room(rows: int, design: FactoredDesign) -> str:
    """What is said of rows that need a factorisation for which there is no memory."""
    return (
        f"{rows} rows are not solved: working sets are not for them, and all else factorises the sparse design of "
        f"shape {design.array.shape}, which takes about {design.bytes_of_factorisation / 1e9:.3g} GB, more than is "
        "free. A stronger penalty makes rows sparser."
    )


def _linear_rows(problem: RowProblem) -> np.ndarray:
    """Rows without penalty, (R,): plain least squares, if the ball allows its solution."""
    support = True if problem.support is None else problem.support
    return np.all(flat_of(dataclasses.replace(problem, bound=None)) == support, axis=1)


def _oracle_solve(problem: RowProblem, options: SolveOptions, reporter: Reporter) -> Any:
    from simjax.rows import oracles  # interior-point packages are an extra

    def report(done: int, count: int) -> None:
        reporter(done, worst_gap=np.inf, passes=0, stage=options.solver)

    return oracles.solve(problem, oracle=options.solver, workers=options.workers, progress=report)
