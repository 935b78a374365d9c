"""The rows in the solver's own units, where every row looks alike.

A row λ‖t − Φw‖² + h(w) is divided by 2λ‖t‖² and its weights are measured in w = p w', so that Φ' and t' have norm one:

    min ½‖t̃ − S Vᵀw'‖² + ½ e + h'(w')   s.t.  Σ ω' |w'| ≤ κ'         p = ‖t‖ / (S_max D),   h'(w') = q h(p w')

with q = 1/(2λ‖t‖²) and D the column scaling. A row's own scale, and that of the design, then cancel exactly.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from simjax._typing import Array
from simjax.rows.arrays import column_norms, matmul, namespace, of_both, pytree, tree_map
from simjax.rows.boxed import BoxedPenalty, box_of, opened_at, unboxed
from simjax.rows.conjugate import dual_scaling, held_slopes, raised_tilt, support_function
from simjax.rows.constraints import RowBound
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.joint_prox import moved_inside
from simjax.rows.own_penalty import Opaque, ScaledPenalty
from simjax.rows.penalties import Penalty, PiecewisePenalty, total_value
from simjax.rows.problem import CANONICAL_FLOOR, RowProblem
from simjax.rows.solvers.factor import Factorisation

_FEASIBILITY_FACTOR = 1e3


@pytree("exact")
@dataclasses.dataclass(frozen=True)
class CanonicalRows:
    """Rows in canonical units; every array has one entry or row per row (or a leading 1 where all rows agree).

    Attributes:
      targets: t̃, (R, r).
      offset: e = ‖t'‖² − ‖t̃‖², what no weights can explain, (R, 1).
      penalty: h'.
      bound: the constraint, or None.
      support: boolean (R, d), or None.
      point_scale: p, (R, d) or (R, 1): w = p w'.
      dual_scale: 1/(q‖t‖), (R, 1): y = U ỹ times it, plus the part of the target no weights explain.
      exact: whether the equations are constraints.
    """

    targets: Array
    offset: Array
    penalty: Any
    bound: RowBound | None
    support: Array | None
    point_scale: Array
    dual_scale: Array
    exact: bool

    def take_rows(self, index: Array) -> CanonicalRows:
        """The rows in `index`, (k,)."""
        return dataclasses.replace(
            self,
            targets=self.targets[index],
            offset=self.offset[index],
            penalty=self.penalty.rows(index),
            bound=None if self.bound is None else self.bound.take(index),
            support=None if self.support is None else self.support[index],
            point_scale=self.point_scale[index],
            dual_scale=self.dual_scale[index],
        )

    @property
    def indivisible(self) -> bool:
        """Whether a traced index cannot pick rows: a penalty of the user's own sees its rows as it knows them."""
        return isinstance(unboxed(self.penalty), ScaledPenalty)

    def astype(self, dtype: Any) -> CanonicalRows:
        """The same in numbers of another type."""
        return tree_map(lambda x: x.astype(dtype) if x.dtype.kind == "f" else x, self)

    def confine(self, weights: Array) -> Array:
        """The weights with everything outside the support set to zero."""
        if self.support is None:
            return weights
        xp = namespace(weights)
        return xp.where(self.support, weights, xp.zeros_like(weights))

    def inside(self, weights: Array) -> Array:
        """The weights confined to the support and moved into the box and the ball."""
        weights, box = self.confine(weights), box_of(self.penalty)
        if box is not None:  # no bound excludes zero where the ball would move a weight towards it
            weights = box.inside(weights)
        return moved_inside(self.penalty, self.bound, weights)


def canonical_rows(
    problem: RowProblem, factorisation: Factorisation, coordinates: Array, column_scale: Array
) -> CanonicalRows:
    """The rows of `problem` in canonical units.

    Args:
      coordinates: t̃ = Uᵀt in the problem's units, (R, r).
      column_scale: D, (d,): the factorisation is that of Φ D⁻¹.
    """
    xp = namespace(coordinates, problem.targets)
    norm = row_norms(problem)
    targets = coordinates / norm
    square = xp.sum((problem.targets / norm[:, 0]) ** 2, axis=0)[:, None]  # 1, but for targets of zero
    # One number a row where the columns share a scale, so that parameters which need no more than that stay small.
    shared = xp is np and bool(np.all(column_scale == column_scale[0]))
    point_scale = norm / (factorisation.scale * (column_scale[:1] if shared else column_scale))
    if problem.exact:
        value_scale = _exact_value_scale(problem, factorisation, targets, point_scale)
    else:
        value_scale = 1.0 / (2.0 * problem.loss_weight[:, None] * norm * norm)
    penalty = _scaled_penalty(problem.penalty, point_scale, value_scale)
    bound = problem.bound
    if bound is not None:
        # Σ ω_j p_j |w'_j| ≤ κ; the part of p that is common to a row moves into the radius.
        common = norm / factorisation.scale
        tilt = None if bound.tilt is None else bound.tilt / column_scale
        bound = RowBound(bound.omega / column_scale, bound.radius / common, bound.size, tilt)
    return CanonicalRows(
        targets=targets,
        offset=xp.maximum(square - xp.sum(targets**2, axis=1, keepdims=True), 0.0),
        penalty=penalty,
        bound=bound,
        support=problem.support,
        point_scale=point_scale,
        dual_scale=1.0 / (value_scale * norm),
        exact=problem.exact,
    )


def row_norms(problem: RowProblem) -> Any:
    """The unit of each row's equations, (R, 1): ‖t‖, or, for t = 0, the size of the fit that the constraint demands.

    Only a Metzler row with κ < 0 demands any, w_i ≤ κ/δ_i, or a box that excludes zero.
    """
    xp = namespace(problem.targets)
    norm = xp.linalg.norm(problem.targets, axis=0)[:, None]
    box = box_of(problem.penalty)
    if box is not None:
        least = xp.sum(column_norms(problem.design) * xp.abs(box.clip(xp.zeros_like(norm))), axis=1, keepdims=True)
        norm = xp.where(norm > 0.0, norm, least)
    if problem.bound is not None and problem.bound.tilt is not None:
        columns = xp.where(problem.bound.tilt > 0.0, column_norms(problem.design), 0.0)
        column = xp.sum(columns, axis=1, keepdims=True)
        norm = xp.where(norm > 0.0, norm, xp.abs(xp.minimum(problem.bound.radius, 0.0)) * column)
    return xp.where(norm > 0.0, norm, 1.0)


def _scaled_penalty(penalty: Penalty, point_scale: Array, value_scale: Array) -> Any:
    if isinstance(penalty, BoxedPenalty):
        base = _scaled_penalty(penalty.base, point_scale, value_scale)
        return BoxedPenalty(base, penalty.lower / point_scale, penalty.upper / point_scale)
    if isinstance(penalty, PiecewisePenalty):
        scaled = penalty.scaled(point_scale, value_scale)
        rows = point_scale.shape[0]

        def per_row(parameter: Any) -> Array:
            xp = namespace(parameter)
            return xp.array(xp.broadcast_to(parameter, (rows, np.shape(parameter)[1])))

        return PiecewisePenalty(per_row(scaled.slope), per_row(scaled.curvature), per_row(scaled.knot))
    if isinstance(penalty, GroupPenalty):
        scaled_groups = penalty.scaled(point_scale, value_scale)
        xp = namespace(scaled_groups.level)
        level = xp.array(xp.broadcast_to(scaled_groups.level, (point_scale.shape[0], penalty.count)))
        return GroupPenalty(level, penalty.labels)
    return ScaledPenalty(point_scale, value_scale, Opaque(penalty))


def _exact_value_scale(problem: RowProblem, factorisation: Factorisation, targets: Array, point_scale: Array) -> Array:
    """q with q h(w₀) = 1 at the least-norm solution w₀ = V S⁻¹ t̃: the objective has no scale of its own here."""
    xp = namespace(targets)
    least_norm = matmul(targets / factorisation.singular_values, factorisation.basis.T)
    value = total_value(problem.penalty, point_scale * least_norm)[:, None]
    good = xp.isfinite(value) & (value > 0.0)
    return 1.0 / xp.where(good, value, 1.0)


# --- The certificate in canonical units, for stopping ------------------------------------------------------------


def objective(factorisation: Factorisation, rows: CanonicalRows, weights: Array) -> tuple[Array, Array]:
    """(P', equation residual t̃ − S Vᵀw), (R,) and (R, r)."""
    xp = namespace(weights)
    residual = rows.targets - factorisation.apply(weights)
    value = total_value(rows.penalty, weights)
    if rows.exact:
        return value, residual
    return value + 0.5 * (xp.sum(residual**2, axis=1) + rows.offset[:, 0]), residual


def relative_gap(
    factorisation: Factorisation,
    rows: CanonicalRows,
    weights: Array,
    dual: Array,
    slopes: Array | None = None,
) -> Array:
    """The relative gap that the dual point y (R, r) proves for feasible weights (R, d); (R,).

    Under exact matching the relative residual of the equations counts too: 1e-9 of it as much as a gap of 1e-6.

    `slopes` is Kᵀy where the caller has it already.
    """
    xp = namespace(weights)
    primal, residual = objective(factorisation, rows, weights)
    slopes = factorisation.apply_transpose(dual) if slopes is None else slopes
    # Bounds that the weights are off count as none, lest a loose one price what a dual point misses by.
    opened = opened_at(rows.penalty, weights)
    held = held_slopes(opened, rows.bound, slopes)
    missed, slopes, shift = rows.confine(slopes - held), held, xp.zeros_like(slopes)
    if rows.bound is not None and rows.bound.tilt is not None:
        shift = raised_tilt(rows.penalty, rows.bound, slopes, rows.support) - slopes
    slopes = slopes + shift
    factor = dual_scaling(opened, rows.bound, slopes, rows.support)
    dual, slopes = factor * dual, factor * slopes
    value = total_value(rows.penalty, weights)
    pairing = xp.sum(slopes * weights, axis=1)
    gap = xp.maximum(value + support_function(rows.penalty, rows.bound, slopes, rows.support) - pairing, 0.0)
    # A flat coordinate demands s_j = 0. What is left of it counts as a gap over weights of the present size; the
    # certificate, which has the last word, projects y instead. Likewise for an unpenalised tilted coordinate.
    reach = 1.0 + xp.abs(weights) + xp.max(xp.abs(weights), axis=1, keepdims=True)
    gap = gap + xp.sum((xp.abs(factor * missed) + shift) * reach, axis=1)
    if rows.exact:
        gap = gap + xp.abs(xp.sum(dual * residual, axis=1))
    else:
        gap = gap + 0.5 * xp.sum((residual - dual) ** 2, axis=1)
    # y = 0 is a dual point as well, with D = 0: it proves an exact fit that costs nothing.
    gap = xp.minimum(xp.where(xp.isnan(gap), xp.inf, gap), primal)
    scale = xp.maximum(primal, 0.0 if rows.exact else CANONICAL_FLOOR)
    gap = xp.where(gap == 0.0, 0.0, gap / xp.where(scale > 0.0, scale, 1e-300))
    if rows.exact:
        gap = xp.maximum(gap, _FEASIBILITY_FACTOR * xp.linalg.norm(residual, axis=1))
    return gap


def judge(factorisation: Factorisation, rows: CanonicalRows, weights: Array, dual: Array | None) -> tuple[Array, Array]:
    """The better of the given dual points y (R, r) and the residual, and the relative gap it proves, (R,).

    Every stage asks this one function; None for a dual point asks for what the residual proves.
    """
    if rows.exact:
        assert dual is not None  # there is no residual to prove anything
        return dual, relative_gap(factorisation, rows, weights, dual)
    xp = namespace(weights)
    residual = rows.targets - factorisation.apply(weights)
    if dual is None:
        return residual, relative_gap(factorisation, rows, weights, residual)
    gap, other = of_both(lambda point: relative_gap(factorisation, rows, weights, point), residual, dual, xp)
    better = other < gap
    return xp.where(better[:, None], dual, residual), xp.where(better, other, gap)


def judged_inside(
    factorisation: Factorisation, rows: CanonicalRows, weights: Array, dual: Array | None
) -> tuple[Array, Array, Array]:
    """`judge`, in float64, of the weights made feasible first: weights (R, d), dual points (R, r), gaps (R,)."""
    box = box_of(rows.penalty)
    if box is not None:  # in their own precision, so that those on a bound stay on it
        weights = box.inside(weights)
    weights = rows.inside(weights.astype(np.float64))
    dual = None if dual is None else dual.astype(np.float64)
    return (weights, *judge(factorisation, rows, weights, dual))
