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
from collections.abc import Sequence
from typing import Any

import numpy as np

from simjax._typing import ArrayLike
from simjax.rows._qr import ColumnBasis
from simjax.rows.conjugate import dual_scaling, settled_tilt, support_function
from simjax.rows.constraints import Ball
from simjax.rows.penalties import Penalty, PiecewisePenalty, traceable
from simjax.rows.problem import RowProblem

# λ‖t‖² is the objective of w = 0. An optimum below 1e-12 of it is an exact fit as far as float64 can tell.
_OBJECTIVE_FLOOR = 1e-12
_TILT_SWEEPS = 5


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What is proved about each row. All arrays are float64 with one entry per row.

    Attributes:
      objective: P(w), (R,), in the units of the problem that was stated.
      dual_objective: D(y), (R,): no weights whatever can have a smaller objective.
      gap: P − D ≥ 0, (R,).
      relative_gap: gap / max(P, 1e-12·λ‖t‖²), (R,).
      infeasibility: (R,), the larger of the relative violation of the ball, (Σω|w| + δᵀw − κ)₊/κ (for a Metzler row
        relative to |κ| + |δᵀw|), and, under exact matching, ‖Φw − t‖/‖t‖.
      dual: y, (R, m): the dual point that proves the row.
    """

    objective: np.ndarray
    dual_objective: np.ndarray
    gap: np.ndarray
    relative_gap: np.ndarray
    infeasibility: np.ndarray
    dual: np.ndarray

    def take(self, index: np.ndarray) -> Certificate:
        """The certificate of the rows in `index`."""
        return Certificate(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

    def with_rays(self, rows: np.ndarray, rays: np.ndarray) -> Certificate:
        """The certificate with `rows` proved infeasible: their optimum is +inf, their dual the ray that proves it."""
        changed = dataclasses.replace(
            self, **{field.name: getattr(self, field.name).copy() for field in dataclasses.fields(self)}
        )
        for values in (changed.objective, changed.dual_objective, changed.gap, changed.relative_gap):
            values[rows] = np.inf
        changed.dual[rows] = rays
        return changed


def joined_certificates(parts: list[Certificate]) -> Certificate:
    """The certificates of several blocks of rows as one, in their order."""
    if len(parts) == 1:
        return parts[0]
    names = [field.name for field in dataclasses.fields(Certificate)]
    return Certificate(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def certify(problem: RowProblem, weights: ArrayLike, duals: Sequence[ArrayLike] = ()) -> Certificate:
    """Certify `weights` (R, d) with the best of y = 0, the residual y = 2λ(t − Φw) and the candidates in `duals`.

    Args:
      problem: the rows.
      weights: w, (R, d), anybody's: the certificate holds for any weights.
      duals: candidate y's, each (R, m); rows that contain NaN are ignored.

    Raises:
      ValueError: if the shapes do not fit the problem.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (problem.rows_count, problem.width):
        raise ValueError(f"weights must be ({problem.rows_count}, {problem.width}), got {weights.shape}.")
    problem = dataclasses.replace(problem, penalty=traceable(problem.penalty))
    objective, residual, fit, floor = _evaluate(problem, weights)
    candidates = [np.zeros_like(residual) if problem.exact else 2.0 * problem.loss_weight[:, None] * residual]
    for dual in duals:
        dual = np.asarray(dual, dtype=np.float64)
        if dual.shape != candidates[0].shape:
            raise ValueError(f"duals must be {candidates[0].shape}, got {dual.shape}.")
        candidates.append(np.where(np.isfinite(dual).all(axis=1, keepdims=True), dual, candidates[0]))
    # y = 0 is always feasible, with D = 0: it proves an exact fit that costs nothing.
    best_gap, best_dual = objective.copy(), np.zeros_like(residual)
    for dual in candidates:
        dual, gap = _gap_of(problem, weights, residual, dual)
        better = gap < best_gap
        best_gap = np.where(better, gap, best_gap)
        best_dual = np.where(better[:, None], dual, best_dual)
    scale = np.maximum(objective, floor)
    gap = np.where(np.isfinite(objective), best_gap, np.inf)
    relative_gap = np.where(gap == 0.0, 0.0, gap / np.where(scale > 0.0, scale, np.finfo(np.float64).tiny))
    relative_gap = np.where(np.isfinite(objective), relative_gap, np.inf)
    return Certificate(
        objective=objective,
        dual_objective=objective - gap,
        gap=gap,
        relative_gap=relative_gap,
        infeasibility=np.maximum(ball_violation(problem, weights), fit if problem.exact else 0.0),
        dual=best_dual,
    )


def infeasibility_margin(problem: RowProblem, rays: ArrayLike) -> np.ndarray:
    """How firmly each ray y proves that no w in the ball and the support satisfies Φw = t; (R,), > 0 is a proof.

        margin = (yᵀt − sup {yᵀΦw : w in the ball and the support}) / (‖y‖ ‖t‖)

    If Φw = t for such a w, then yᵀt = yᵀΦw is at most the supremum: κ max |s_j|/ω_j over the ball's coordinates, with
    s = Φᵀy, and infinite unless s_j = 0 on the free ones (to rounding: 1e-13 √m ‖φ_j‖ ‖y‖). For a Metzler row it is
    κ s_i/δ_i, and infinite unless that θ = s_i/δ_i ≥ |s_j|/ω_j for all j.

    Args:
      rays: y, (R, m).

    Raises:
      ValueError: if the shapes do not fit the problem.
    """
    rays = np.asarray(rays, dtype=np.float64)
    rows, m = problem.rows_count, problem.design.shape[0]
    if rays.shape != (rows, m):
        raise ValueError(f"rays must be ({rows}, {m}), got {rays.shape}.")
    slopes = rays @ problem.design
    if problem.support is not None:
        slopes = np.where(problem.support, slopes, 0.0)
    size = np.linalg.norm(rays, axis=1)
    rounding = 1e-13 * np.sqrt(m) * size[:, None] * np.linalg.norm(problem.design, axis=0)
    reach, sees = np.zeros(rows), np.zeros(slopes.shape, dtype=bool)
    escapes = np.zeros(rows, dtype=bool)
    if problem.ball is not None:
        ball = problem.ball
        weights, radius = np.asarray(ball.weights), np.asarray(ball.radius)
        finite = np.isfinite(radius)
        sees = np.broadcast_to((weights > 0.0) & finite, slopes.shape)
        per_radius = np.where(sees, np.abs(slopes) / np.where(weights > 0.0, weights, 1.0), 0.0).max(axis=1)
        if ball.tilt is not None:
            # sup = κθ with θ = s_i/δ_i for the tilted coordinate, if no other one demands more; else it is infinite.
            tilted = (ball.tilt > 0.0) & finite
            unit = np.where(tilted, ball.tilt, 1.0)
            own = np.sum(np.where(tilted, slopes / unit, 0.0), axis=1)
            slack = np.sum(np.where(tilted, rounding / unit, 0.0), axis=1)
            escapes = tilted.any(axis=1) & (per_radius > own + slack)
            per_radius = np.maximum(per_radius, own)
            sees = sees | tilted
        reach = np.where(finite[:, 0], np.where(finite, radius, 0.0)[:, 0], 0.0) * per_radius
    escapes = escapes | np.any(~sees & (np.abs(slopes) > rounding), axis=1)
    gain = np.sum(rays * problem.targets.T, axis=1) - reach
    scale = size * np.linalg.norm(problem.targets, axis=0)
    return np.where(escapes | (scale == 0.0), -np.inf, gain / np.where(scale > 0.0, scale, 1.0))


def _evaluate(problem: RowProblem, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(P (R,), residual t − Φw (R, m), relative residual (R,), scale floor (R,))."""
    residual = problem.targets.T - weights @ problem.design.T
    square, target_square = _row_squares(residual), _row_squares(problem.targets.T)
    objective, floor = _value(problem, weights), np.zeros(problem.rows_count)
    if not problem.exact:
        objective = problem.loss_weight * square + objective
        floor = _OBJECTIVE_FLOOR * problem.loss_weight * target_square
    return objective, residual, np.sqrt(square) / np.where(target_square > 0.0, np.sqrt(target_square), 1.0), floor


def _row_squares(rows: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", rows, rows)


def _value(problem: RowProblem, weights: np.ndarray) -> np.ndarray:
    """Σ_j h(w_j), (R,)."""
    return np.sum(np.broadcast_to(problem.penalty.value(weights), weights.shape), axis=1)


def _gap_of(
    problem: RowProblem, weights: np.ndarray, residual: np.ndarray, dual: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The dual point made feasible, and the gap it proves, (R,)."""
    dual = _project_onto_tilt(problem, _project_out_flat(problem, dual))
    penalty, ball, mask = problem.penalty, problem.ball, problem.support
    slopes = _settled(problem, dual @ problem.design, dual, mask)
    # Directions in which h is flat demand s = 0; they were projected out and must not scale the rest to nothing.
    factor = dual_scaling(penalty, ball, slopes, _not_flat(penalty, ball, slopes.shape, mask))
    dual, slopes = factor * dual, factor * slopes
    slopes = np.where(_negligible(problem, slopes, dual), 0.0, slopes)
    conjugate = support_function(penalty, ball, slopes, mask)
    fenchel = np.maximum(_value(problem, weights) + conjugate - np.einsum("ij,ij->i", slopes, weights), 0.0)
    if problem.exact:
        gap = fenchel + np.abs(np.einsum("ij,ij->i", dual, residual))
    else:
        mismatch = 2.0 * problem.loss_weight[:, None] * residual - dual
        gap = fenchel + _row_squares(mismatch) / (4.0 * problem.loss_weight)
    return dual, np.where(np.isnan(gap), np.inf, gap)


def ball_violation(problem: RowProblem, weights: np.ndarray) -> np.ndarray:
    """By what share of its radius each row exceeds its ball, (R,); inf outside the support."""
    violation = np.zeros(problem.rows_count)
    if problem.ball is not None:
        norm = np.sum(np.asarray(problem.ball.weights) * np.abs(weights), axis=1)
        radius = np.asarray(problem.ball.radius)[:, 0]
        unit = np.abs(radius)
        if problem.ball.tilt is not None:
            signed = np.sum(np.asarray(problem.ball.tilt) * weights, axis=1)
            norm, unit = norm + signed, unit + np.abs(signed)
        excess = np.maximum(norm - radius, 0.0)
        violation = np.where(np.isfinite(radius), excess / np.where(unit > 0.0, unit, 1.0), 0.0)
    if problem.support is not None:
        violation = np.where(np.any(weights[:] * ~problem.support != 0.0, axis=1), np.inf, violation)
    return violation


# --- Directions in which the objective is flat -------------------------------------------------------------------
# Where h = 0 and no ball binds, g* is finite only for s = 0: the dual point has to be orthogonal to those columns.


def _not_flat(penalty: Penalty, ball: Ball | None, shape: tuple[int, ...], mask: Any) -> Any:
    flat = _flat(penalty, ball, shape)
    return ~flat if mask is None else mask & ~flat


def _flat(penalty: Penalty, ball: Ball | None, shape: tuple[int, ...]) -> np.ndarray:
    """Where neither penalty nor ball has a say, (R, d)."""
    if isinstance(penalty, PiecewisePenalty):
        flat = (np.asarray(penalty.slope) == 0.0) & (np.asarray(penalty.curvature) == 0.0)
    else:
        ones = np.ones(shape)
        flat = (penalty.value(ones) == 0.0) & (penalty.value(-ones) == 0.0)
    flat = np.broadcast_to(flat, shape)
    return flat if ball is None else flat & ~np.asarray(ball.sees)


def flat_coordinates(problem: RowProblem) -> np.ndarray:
    """Where neither penalty nor ball has a say, (R, d), inside the support."""
    flat = _flat(traceable(problem.penalty), problem.ball, (problem.rows_count, problem.width))
    return flat if problem.support is None else flat & problem.support


def _project_out_flat(problem: RowProblem, dual: np.ndarray) -> np.ndarray:
    flat = flat_coordinates(problem)
    if not flat.any():
        return dual
    dual = dual.copy()
    patterns, which = np.unique(flat, axis=0, return_inverse=True)
    for k, pattern in enumerate(patterns):
        if pattern.any():
            rows = which.reshape(-1) == k
            basis = ColumnBasis.of(problem.design[:, pattern]).basis
            block = dual[rows]
            size = np.linalg.norm(block, axis=1, keepdims=True)
            for _ in range(2):  # a second pass removes the rounding of the first
                block = block - (block @ basis) @ basis.T
            # What is left after full cancellation is rounding: y = 0 is the only feasible point then.
            dual[rows] = np.where(np.linalg.norm(block, axis=1, keepdims=True) > 1e-12 * size, block, 0.0)
    return dual


def _project_onto_tilt(problem: RowProblem, dual: np.ndarray) -> np.ndarray:
    """y moved to where an unpenalised tilted coordinate allows what the others demand: s_i/δ_i ≥ (|s_j| − c_j)/ω_j.

    At an optimum these are equalities for all j in the support of w. The least change of y that gives i and the
    coordinates that demand more the same θ, and leaves the slopes of flat ones, is in the span of their columns; a few
    sweeps catch those that come to demand more by it.
    """
    ball = problem.ball
    if ball is None or ball.tilt is None:
        return dual
    penalty: Any = problem.penalty
    shape = (problem.rows_count, problem.width)
    slope, straight = np.broadcast_to(penalty.slope, shape), ~np.broadcast_to(penalty.curved, shape)
    tilted = (np.asarray(ball.tilt) > 0.0) & np.isfinite(ball.radius) & (slope == 0.0) & straight
    dual, flat = dual.copy(), flat_coordinates(problem)
    for row in np.flatnonzero(tilted.any(axis=1)):
        own = int(np.argmax(tilted[row]))
        omega = np.broadcast_to(ball.weights, shape)[row]
        others = (omega > 0.0) & straight[row]
        if problem.support is not None:
            others = others & problem.support[row]
        members = np.zeros_like(others)
        for _ in range(_TILT_SWEEPS):
            slopes = dual[row] @ problem.design
            theta = slopes[own] / ball.tilt[row, own]
            demand = np.where(others, (np.abs(slopes) - slope[row]) / np.where(others, omega, 1.0), -np.inf)
            over = demand > theta
            if not over.any():
                break
            members = members | over
            chosen = np.flatnonzero(members)
            level = 0.5 * (theta + demand[chosen].max())
            wanted = np.sign(slopes[chosen]) * (slope[row, chosen] + omega[chosen] * level) - slopes[chosen]
            still = np.flatnonzero(flat[row])
            wanted = np.concatenate([wanted, [ball.tilt[row, own] * level - slopes[own]], -slopes[still]])
            columns = problem.design[:, np.concatenate([chosen, [own], still])]
            dual[row] += np.linalg.lstsq(columns.T, wanted, rcond=1e-13)[0]
    return dual


def _settled(problem: RowProblem, slopes: np.ndarray, dual: np.ndarray, mask: Any) -> np.ndarray:
    """The slopes, with an unpenalised tilted coordinate raised to what the others demand if only rounding is missing.

    As in `_negligible`, rounding is 1e-13 √m ‖φ_i‖ ‖y‖.
    """
    if problem.ball is None or problem.ball.tilt is None:
        return slopes
    raised = settled_tilt(problem.penalty, problem.ball, slopes, mask)  # type: ignore[arg-type]
    reach = np.linalg.norm(dual, axis=1, keepdims=True) * np.linalg.norm(problem.design, axis=0)
    return np.where(raised - slopes <= 1e-13 * np.sqrt(problem.design.shape[0]) * reach, raised, slopes)


def _negligible(problem: RowProblem, slopes: np.ndarray, dual: np.ndarray) -> np.ndarray:
    """Where s_j = 0 is demanded and holds to rounding: |s_j| ≤ 1e-13 √m ‖φ_j‖ ‖y‖."""
    flat = flat_coordinates(problem)
    if not flat.any():
        return flat
    reach = np.linalg.norm(dual, axis=1, keepdims=True) * np.linalg.norm(problem.design, axis=0)
    return flat & (np.abs(slopes) <= 1e-13 * np.sqrt(problem.design.shape[0]) * reach)
