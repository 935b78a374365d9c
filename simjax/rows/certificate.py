"""Certificates: primal, dual, gap and feasibility of given weights. Knows no solver.

For any y, with s = Φᵀy, weak duality bounds the optimum from below (g = h + indicator of the constraint):

    penalised   P(w) = λ‖t − Φw‖² + h(w)        D(y) = yᵀt − ‖y‖²/(4λ) − g*(s)
    exact       P(w) = h(w),  Φw = t            D(y) = yᵀt − g*(s)

The gap P − D is evaluated as a sum of nonnegative parts, which does not lose digits when P is small against λ‖t‖²:

    penalised   P − D = ‖2λ(t − Φw) − y‖²/(4λ) + [h(w) + g*(s) − sᵀw]
    exact       P − D ≤ |yᵀ(Φw − t)| + [h(w) + g*(s) − sᵀw]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from simjax._checks import refuse_masked
from simjax._typing import ArrayLike
from simjax._values import Value
from simjax.rows.arrays import column_norms, pytree
from simjax.rows.boxed import BoxedPenalty, box_of, opened_at
from simjax.rows.conjugate import held_slopes, support_function
from simjax.rows.dual_points import DualPoints, narrow_rows, projected_points, scaled_points
from simjax.rows.own_penalty import traceable
from simjax.rows.penalties import Penalty, PiecewisePenalty, total_value
from simjax.rows.problem import RowProblem, objective_floor

# A relative gap below this needs no better dual point.
_GOOD = 1e-10

# Dual points (k, m) of rows with given numbers (k,), made when they are asked for.
Candidates = Callable[[np.ndarray], np.ndarray]


@pytree()
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Certificate(Value):
    """What is proved about each row. All arrays are float64 with one entry per row.

    Attributes:
      objective: P(w), (R,), in the units of the problem that was stated.
      dual_objective: D(y), (R,): no weights whatever can have a smaller objective.
      gap: P − D ≥ 0, (R,).
      relative_gap: gap / max(P, 1e-12·λ‖t‖²), (R,).
      infeasibility: (R,), the largest of the relative violation of the ball, (Σω|w| + δᵀw − κ)₊/κ (for a Metzler row
        relative to |κ| + |δᵀw|), of that of the box, max_j (w_j − u_j)₊ and (l_j − w_j)₊ in units of the larger of that
        bound and max |w|, and, under exact matching, ‖Φw − t‖/‖t‖.
      dual: y, (R, m): the dual point that proves the row.

    Examples:
      >>> import numpy as np, simjax
      >>> certificate = simjax.solve_rows(np.eye(2), [[3.0], [1.0]], penalty=simjax.L1(1.0)).certificate
      >>> bool(certificate.relative_gap.max() <= 1e-6), certificate.dual.shape
      (True, (1, 2))
    """

    objective: np.ndarray
    dual_objective: np.ndarray
    gap: np.ndarray
    relative_gap: np.ndarray
    infeasibility: np.ndarray
    dual: np.ndarray

    def _told(self) -> str:
        worst, violation = self.relative_gap.max(initial=0.0), self.infeasibility.max(initial=0.0)
        return f"{self.gap.size} rows, worst relative gap {worst:.1e}, worst infeasibility {violation:.1e}"

    def take(self, index: np.ndarray) -> Certificate:
        """The certificate of the rows in `index`."""
        return Certificate(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

    @classmethod
    def unknown(cls, dual: np.ndarray) -> Certificate:
        """That of rows of which nothing is known, with room for their dual points, (R, m)."""
        infinite = np.full((4, len(dual)), np.inf)
        return cls(infinite[0], -infinite[1], infinite[2], infinite[3], np.full(len(dual), np.inf), dual)

    def put(self, rows: np.ndarray, other: Certificate) -> None:
        """Replace the entries of `rows` by those of another certificate."""
        for field in dataclasses.fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)

    def put_ray(self, row: int, ray: np.ndarray) -> None:
        """Set a row down as proved infeasible: its optimum is +inf, its dual the ray (m,) that proves it."""
        for values in (self.objective, self.dual_objective, self.gap, self.relative_gap):
            values[row] = np.inf
        self.dual[row] = ray


def joined_certificates(parts: list[Certificate]) -> Certificate:
    """The certificates of several blocks of rows as one, in their order."""
    if len(parts) == 1:
        return parts[0]
    names = [field.name for field in dataclasses.fields(Certificate)]
    return Certificate(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def certify(
    problem: RowProblem,
    weights: ArrayLike,
    duals: Sequence[ArrayLike] = (),
    *,
    intercept: np.ndarray | None = None,
) -> Certificate:
    """Certify `weights` (R, d) with the best of y = 0, the residual y = 2λ(t − Φw) and the candidates in `duals`.

    Args:
      problem: the rows.
      weights: w, (R, d), anybody's: the certificate holds for any weights.
      duals: candidate y's, each (R, m); rows that contain NaN are ignored.
      intercept: b, (R,), anybody's, of rows that have one; None means the best for these weights.

    Raises:
      ValueError: if the shapes do not fit the problem.

    Examples:
      >>> import simjax
      >>> problem = simjax.row_problem([[1.0]], [[3.0]], loss_weight=0.5, penalty=simjax.L1(1.0))
      >>> simjax.certify(problem, [[2.0]]).gap  # the optimum, whoever found it
      array([0.])
      >>> simjax.certify(problem, [[1.0]]).gap  # at most so far from it
      array([0.5])
    """
    refuse_masked("weights", weights)
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (problem.count, problem.width):
        raise ValueError(f"weights must be ({problem.count}, {problem.width}), got {weights.shape}.")
    shape = problem.count, problem.design.shape[0]
    candidates = []
    for dual in duals:
        refuse_masked("duals", dual)
        dual = np.asarray(dual, dtype=np.float64)
        if dual.shape != shape:
            raise ValueError(f"duals must be {shape}, got {dual.shape}.")
        candidates.append(dual)
    certificate = certify_until(problem, weights, [dual.__getitem__ for dual in candidates])
    if intercept is None or problem.centring is None:
        return certificate
    return _with_intercept(certificate, problem, intercept - problem.centring.intercept(weights))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def certify_until(
    problem: RowProblem, weights: np.ndarray, duals: Sequence[Candidates], enough: float = 0.0
) -> Certificate:
    """As `certify`, in float64, with candidates that are made for the rows whose relative gap is still above `enough`.

    A candidate costs as much as the residual, and most rows of a solver are proved by that.
    """
    problem = dataclasses.replace(problem, penalty=traceable(problem.penalty))
    objective, residual, fit, floor = _evaluate(problem, weights)
    # y = 0 is always feasible, with D = 0: it proves an exact fit that costs nothing.
    best_gap, best_dual = objective.copy(), np.zeros_like(residual)

    def keep(rows: np.ndarray, part: RowProblem, points: DualPoints) -> None:
        """Take over what the points prove of these rows, where it is more than before."""
        gap = _gap(part, weights[rows], residual[rows], points)
        better = gap < best_gap[rows]
        best_gap[rows[better]], best_dual[rows[better]] = gap[better], points.dual[better]

    def not_good(rows: np.ndarray) -> np.ndarray:
        return best_gap[rows] > _GOOD * np.maximum(objective, floor)[rows]

    def offer(rows: np.ndarray, part: RowProblem, dual: np.ndarray, penalty: Penalty) -> None:
        """Make the points feasible for the conjugate of a penalty that is nowhere above that of the rows."""
        domain = dataclasses.replace(part, penalty=penalty)
        points = scaled_points(domain, dual)
        keep(rows, part, points)
        # Where scaling lost what the point is worth, a projection may keep it.
        lost = np.flatnonzero((points.scaling[:, 0] < 1.0) & not_good(rows))
        if lost.size:
            lost = lost[narrow_rows(domain.take(lost), dual[lost])]
        if lost.size:
            keep(rows[lost], part.take(lost), projected_points(domain.take(lost), dual[lost]))

    def from_residual(rows: np.ndarray) -> np.ndarray:
        part = residual[rows]
        return np.zeros_like(part) if problem.exact else 2.0 * problem.loss_weight[rows, None] * part

    every = np.arange(problem.count)
    for number, candidate in enumerate((from_residual, *duals)):
        rows = every
        if number > 0 and enough > 0.0:
            rows = np.flatnonzero(~(best_gap <= enough * np.maximum(objective, floor)))
        if rows.size == 0:
            break
        part = problem if rows.size == every.size else problem.take(rows)
        dual = np.asarray(candidate(rows), dtype=np.float64)
        if number > 0:
            dual = np.where(np.isfinite(dual).all(axis=1, keepdims=True), dual, from_residual(rows))
        offer(rows, part, dual, opened_at(part.penalty, weights[rows]))
        if isinstance(part.penalty, BoxedPenalty):  # weights that are somebody else's may be next to their bounds
            bad = np.flatnonzero(not_good(rows))
            if bad.size:
                part = part.take(bad)
                offer(rows[bad], part, dual[bad], part.penalty)
    scale = np.maximum(objective, floor)
    gap = np.where(np.isfinite(objective), best_gap, np.inf)
    relative_gap = np.where(gap == 0.0, 0.0, gap / np.where(scale > 0.0, scale, np.finfo(np.float64).tiny))
    relative_gap = np.where(np.isfinite(objective), relative_gap, np.inf)
    return Certificate(
        objective=objective,
        dual_objective=objective - gap,
        gap=gap,
        relative_gap=relative_gap,
        infeasibility=np.maximum(bound_violation(problem, weights), fit if problem.exact else 0.0),
        dual=best_dual,
    )


def infeasibility_margin(problem: RowProblem, rays: ArrayLike) -> np.ndarray:
    """How firmly each ray y proves that no w in the ball and the support satisfies Φw = t; (R,), > 0 is a proof.

        margin = (yᵀt − sup {yᵀΦw : w in the ball and the support}) / (‖y‖ ‖t‖)

    If Φw = t for such a w, then yᵀt = yᵀΦw is at most the supremum: κ max |s_j|/ω_j over the ball's coordinates, with
    s = Φᵀy, and infinite unless s_j = 0 on the free ones (to rounding: 1e-13 √m ‖φ_j‖ ‖y‖). For a Metzler row it is
    κ s_i/δ_i, and infinite unless that θ = s_i/δ_i ≥ |s_j|/ω_j for all j. For a box it is the support function of
    box and ball, infinite unless s_j is zero, to rounding, on the sides that neither bounds.

    Args:
      rays: y, (R, m).

    Raises:
      ValueError: if the shapes do not fit the problem.
    """
    rays = np.asarray(rays, dtype=np.float64)
    rows, m = problem.count, problem.design.shape[0]
    if rays.shape != (rows, m):
        raise ValueError(f"rays must be ({rows}, {m}), got {rays.shape}.")
    slopes = rays @ problem.design
    if problem.support is not None:
        slopes = np.where(problem.support, slopes, 0.0)
    size = np.linalg.norm(rays, axis=1)
    rounding = 1e-13 * np.sqrt(m) * size[:, None] * column_norms(problem.design)
    scale = size * np.linalg.norm(problem.targets, axis=0)
    box = box_of(problem.penalty)
    if box is not None:
        aimless = BoxedPenalty(PiecewisePenalty(*np.zeros((3, 1, 1))), box.lower, box.upper)
        held = held_slopes(aimless, problem.bound, slopes)
        slopes = np.where(np.abs(slopes - held) <= rounding, held, slopes)
        gain = np.sum(rays * problem.targets.T, axis=1) - support_function(aimless, problem.bound, slopes, None)
        return np.where(scale > 0.0, gain / np.where(scale > 0.0, scale, 1.0), -np.inf)
    reach, sees = np.zeros(rows), np.zeros(slopes.shape, dtype=bool)
    escapes = np.zeros(rows, dtype=bool)
    if problem.bound is not None:
        bound = problem.bound
        omega, radius = np.asarray(bound.omega), np.asarray(bound.radius)
        finite = np.isfinite(radius)
        sees = np.broadcast_to((omega > 0.0) & finite, slopes.shape)
        per_radius = np.where(sees, np.abs(slopes) / np.where(omega > 0.0, omega, 1.0), 0.0).max(axis=1)
        if bound.tilt is not None:
            # sup = κθ with θ = s_i/δ_i for the tilted coordinate, if no other one demands more; else it is infinite.
            tilted = (bound.tilt > 0.0) & finite
            unit = np.where(tilted, bound.tilt, 1.0)
            own = np.sum(np.where(tilted, slopes / unit, 0.0), axis=1)
            slack = np.sum(np.where(tilted, rounding / unit, 0.0), axis=1)
            escapes = tilted.any(axis=1) & (per_radius > own + slack)
            per_radius = np.maximum(per_radius, own)
            sees = sees | tilted
        reach = np.where(finite[:, 0], np.where(finite, radius, 0.0)[:, 0], 0.0) * per_radius
    escapes = escapes | np.any(~sees & (np.abs(slopes) > rounding), axis=1)
    gain = np.sum(rays * problem.targets.T, axis=1) - reach
    return np.where(escapes | (scale == 0.0), -np.inf, gain / np.where(scale > 0.0, scale, 1.0))


def _evaluate(problem: RowProblem, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(P (R,), residual t − Φw (R, m), relative residual (R,), scale floor (R,))."""
    residual = problem.targets.T - weights @ problem.design.T
    square, target_square = _row_squares(residual), _row_squares(problem.targets.T)
    objective = _value(problem, weights)
    if not problem.exact:
        objective = problem.loss_weight * square + objective
    fit = np.sqrt(square) / _positive(np.sqrt(target_square))
    return objective, residual, fit, objective_floor(problem)


def _with_intercept(certificate: Certificate, problem: RowProblem, off: np.ndarray) -> Certificate:
    """The certificate of intercepts that are `off` the best ones, (R,): Σ v off² is added to the squared residual."""
    assert problem.centring is not None
    excess = problem.centring.total * off**2
    if problem.exact:
        miss = np.sqrt(excess) / _positive(np.linalg.norm(problem.targets, axis=0))
        return dataclasses.replace(certificate, infeasibility=np.hypot(certificate.infeasibility, miss))
    objective = certificate.objective + problem.loss_weight * excess
    gap = certificate.gap + problem.loss_weight * excess
    scale = np.maximum(objective, objective_floor(problem))
    relative_gap = np.where(gap == 0.0, 0.0, gap / np.where(scale > 0.0, scale, np.finfo(np.float64).tiny))
    return dataclasses.replace(certificate, objective=objective, gap=gap, relative_gap=relative_gap)


def _positive(sizes: np.ndarray) -> np.ndarray:
    return np.where(sizes > 0.0, sizes, 1.0)


def _row_squares(rows: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", rows, rows)


def _value(problem: RowProblem, weights: np.ndarray) -> np.ndarray:
    """h(w), (R,)."""
    return np.asarray(total_value(problem.penalty, weights))


def _gap(problem: RowProblem, weights: np.ndarray, residual: np.ndarray, points: DualPoints) -> np.ndarray:
    """The gap that dual points prove of weights (R, d) with residual t − Φw, (R,)."""
    dual, slopes = points.dual, points.slopes
    conjugate = support_function(problem.penalty, problem.bound, slopes, problem.support)
    fenchel = np.maximum(_value(problem, weights) + conjugate - np.einsum("ij,ij->i", slopes, weights), 0.0)
    if problem.exact:
        gap = fenchel + np.abs(np.einsum("ij,ij->i", dual, residual))
    else:
        mismatch = 2.0 * problem.loss_weight[:, None] * residual - dual
        gap = fenchel + _row_squares(mismatch) / (4.0 * problem.loss_weight)
    return np.where(np.isnan(gap), np.inf, gap)


def bound_violation(problem: RowProblem, weights: np.ndarray) -> np.ndarray:
    """By what share each row exceeds its ball or box, as in `Certificate.infeasibility`, (R,); inf off the support."""
    violation, box = np.zeros(problem.count), box_of(problem.penalty)
    if box is not None:
        side = np.where(weights > box.upper, box.upper, box.lower)
        largest = np.abs(weights).max(axis=1, keepdims=True, initial=0.0)
        unit = np.maximum(np.where(np.isfinite(side), np.abs(side), 0.0), largest)
        violation = np.max(box.excess(weights) / np.where(unit > 0.0, unit, 1.0), axis=1)
    if problem.bound is not None:
        norm = np.sum(np.asarray(problem.bound.omega) * np.abs(weights), axis=1)
        radius = np.asarray(problem.bound.radius)[:, 0]
        unit = np.abs(radius)
        if problem.bound.tilt is not None:
            signed = np.sum(np.asarray(problem.bound.tilt) * weights, axis=1)
            norm, unit = norm + signed, unit + np.abs(signed)
        excess = np.maximum(norm - radius, 0.0)
        beyond = np.where(np.isfinite(radius), excess / np.where(unit > 0.0, unit, 1.0), 0.0)
        violation = np.maximum(violation, beyond)
    if problem.support is not None:
        violation = np.where(np.any(weights[:] * ~problem.support != 0.0, axis=1), np.inf, violation)
    return violation
