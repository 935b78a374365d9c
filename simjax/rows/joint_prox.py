"""The prox of a penalty and a row constraint together, row by row.

argmin_w ½‖w − x‖² + τ h(w)   s.t.  Σ_j ω_j |w_j| + δ_j w_j ≤ κ
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from simjax._typing import Array
from simjax.rows.arrays import namespace, rounding_unit, row_sums, while_loop
from simjax.rows.boxed import box_of, piecewise
from simjax.rows.constraints import RowBound
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.penalties import Penalty, PiecewisePenalty, soft, take_rows

_ROOT_STEPS = 100
_DOUBLINGS = 200


class JointProx(NamedTuple):
    """What `joint_prox` finds."""

    point: Array  # (rows, d), exactly sparse and exactly inside the ball
    theta: Array  # (rows, 1), τ times the multiplier of the ball
    seen: Array  # (rows, d), soft(x − θδ, θω): the points at which the penalty's own prox was taken


def joint_prox(penalty: Penalty, bound: RowBound | None, points: Array, step: Array, theta: Array) -> JointProx:
    """argmin_w ½‖w − x‖² + step·h(w) s.t. Σ ω|w| + δᵀw ≤ κ, row by row.

    For a penalty with its minimum at zero, in a box that holds zero or none, this is prox_{τh}(soft(x − θδ, θω)) with
    the smallest θ ≥ 0 for which the norm fits: a one-dimensional monotone root, found by Newton's method inside a
    bisection bracket. In NumPy only rows whose ball binds have their root looked for. It is so for a penalty of
    groups as well, whose prox keeps the signs of soft(…), and so its subgradient (Simon, Friedman, Hastie & Tibshirani,
    A sparse-group lasso, 2013).

    Args:
      points: x, (rows, d).   step: τ > 0, (rows, 1).
      theta: (rows, 1), a guess of θ, e.g. that of the previous call; any value ≥ 0 is safe.
    """
    xp = namespace(points, step, theta, None if bound is None else bound.omega)
    point = penalty.prox(points, step)
    if bound is None:
        return JointProx(point, xp.zeros_like(theta), points)
    bound = bound.cast(points.dtype)
    free = bound.norm(point) <= bound.radius
    if xp is not np:
        return _on_the_bound(penalty, bound, points, step, theta, free)
    binds = np.flatnonzero(~free)
    if binds.size == points.shape[0]:
        return _on_the_bound(penalty, bound, points, step, theta, free)
    theta, seen, steps = np.zeros_like(theta), points, np.broadcast_to(step, theta.shape)
    if binds.size:
        part = _on_the_bound(
            take_rows(penalty, binds), bound.take(binds), points[binds], steps[binds], theta[binds], free[binds]
        )
        seen = points.copy()
        point[binds], theta[binds], seen[binds] = part
    return JointProx(point, theta, seen)


def _on_the_bound(
    penalty: Penalty, bound: RowBound, points: Array, step: Array, theta: Array, free: Array
) -> JointProx:
    """The joint prox where the constraint binds; where it does not, in rows that are `free`, θ = 0."""
    theta = _root(penalty, bound, points, step, theta, free)
    seen = shrunk(points, theta, bound)
    # What is left of the excess is rounding; a move of O(ε) makes the point feasible.
    return JointProx(moved_inside(penalty, bound, penalty.prox(seen, step)), theta, seen)


def moved_inside(penalty: Penalty, bound: RowBound | None, weights: Array) -> Array:
    """Weights of the box moved into the ball, (rows, d); those on a bound of the box stay there if that can be."""
    if bound is None:
        return weights
    box = box_of(penalty)
    return bound.inside(weights, None if box is None else box.fixed(weights))


def shrunk(points: Array, theta: Array, bound: RowBound) -> Array:
    """soft(x − θδ, θω)."""
    return soft(points if bound.tilt is None else points - theta * bound.tilt, theta * bound.omega)


def _root(penalty: Penalty, bound: RowBound, points: Array, step: Array, theta: Array, free: Array) -> Array:
    """The smallest θ ≥ 0 with Σ ω|w| + δᵀw ≤ κ for w = prox_{τh}(soft(x − θδ, θω)), (rows, 1)."""
    xp = namespace(points, step, theta, bound.omega)
    sliced: Any = penalty
    if piecewise(penalty) is not None:  # the root depends on the coordinates in the ball alone
        penalty, points, bound = (
            sliced.columns(bound.size).cast(points.dtype),
            points[:, : bound.size],
            bound.columns(),
        )
    omega, radius, tilt = bound.omega, bound.radius, bound.tilt
    if tilt is None and isinstance(penalty, PiecewisePenalty):
        norm_at = _norm_of_piecewise(penalty, bound, points, step)
    elif isinstance(penalty, GroupPenalty):
        norm_at = _norm_of_groups(penalty, bound, points, step)
    else:
        norm_at = _norm_of_any(penalty, bound, points, step)
    # At θ = max |x|/ω the norm is zero, so [0, that] brackets the root wherever θ = 0 does not fit already.
    sees, size = omega > 0.0, xp.abs(points)
    high = xp.max(xp.where(sees, size, 0.0) / xp.where(sees, omega, 1.0), axis=1, keepdims=True)
    unit = target = xp.where(xp.isfinite(radius), radius, 1.0)
    if tilt is not None:
        high = _doubled_until(lambda theta: norm_at(theta)[0] <= radius, high, points, radius, tilt)
        unit = xp.abs(target) + row_sums(tilt, size)
    theta = xp.where(free, 0.0, xp.clip(theta, 0.0, high))
    epsilon = rounding_unit(points)
    tolerance = max(1e-14, 16.0 * epsilon) * unit

    def unfinished(carry: tuple) -> Array:
        return xp.any(carry[4]) & (carry[3] < _ROOT_STEPS)

    def improve(carry: tuple) -> tuple:
        theta, low, high, count, open_ = carry
        norm, slope = norm_at(theta)
        excess = norm - target
        low = xp.where(open_ & (excess > 0.0), theta, low)
        high = xp.where(open_ & (excess <= 0.0), theta, high)
        newton = theta + excess / xp.where(slope > 0.0, slope, 1.0)
        # A Newton step that leaves the bracket, or a flat norm, falls back on bisection.
        good = (slope > 0.0) & (newton > low) & (newton < high)
        found = (xp.abs(excess) <= tolerance) | (high - low <= 2.0 * epsilon * high)
        proposal = xp.where(good, newton, 0.5 * (low + high))
        open_ = open_ & ~found
        return xp.where(open_, proposal, theta), low, high, count + 1, open_

    return while_loop(unfinished, improve, (theta, xp.zeros_like(theta), high, 0, ~free), xp)[0]


_Norm = Callable[[Array], tuple[Array, Array]]


def _norm_of_piecewise(penalty: PiecewisePenalty, bound: RowBound, points: Array, step: Array) -> _Norm:
    """Σ ω|w| at θ and minus its derivative, where only sizes matter: |w| is a function of |x| − τc − θω."""
    omega, square = bound.omega, bound.omega**2
    excess = namespace(points, bound.omega).abs(points) - step * penalty.slope

    def norm_at(theta: Array) -> tuple[Array, Array]:
        size, slope = penalty.size_and_slope(excess - theta * omega, step)
        return row_sums(omega, size), row_sums(square, slope)

    return norm_at


def _norm_of_groups(penalty: GroupPenalty, bound: RowBound, points: Array, step: Array) -> _Norm:
    """The same for groups, group by group, with u_j = (|x_j| − θω_j)₊, its norm n and k = (1 − τβ/n)₊:

    Σ_g k Σ_j ω_j u_j  and  Σ_g k Σ_{u_j > 0} ω_j² + (1 − k) (Σ_j ω_j u_j)²/n².
    """
    xp = namespace(points, bound.omega)
    omega, square = bound.omega, bound.omega**2
    size, threshold = xp.abs(points), step * penalty.cast(points.dtype).level

    def norm_at(theta: Array) -> tuple[Array, Array]:
        left = xp.maximum(size - theta * omega, 0.0)
        norms, inner = penalty.plain_norms(left), penalty.sums(omega * left)
        unit = xp.where(norms > 0.0, norms, 1.0)
        kept = xp.where(norms > threshold, 1.0 - threshold / unit, 0.0)
        rate = kept * penalty.sums(xp.where(left > 0.0, square, 0.0))
        rate = rate + xp.where(kept > 0.0, (1.0 - kept) * (inner / unit) ** 2, 0.0)
        return xp.sum(kept * inner, axis=1, keepdims=True), xp.sum(rate, axis=1, keepdims=True)

    return norm_at


def _norm_of_any(penalty: Any, bound: RowBound, points: Array, step: Array) -> _Norm:
    """Σ ω|w| + δᵀw at θ and minus its derivative."""
    xp = namespace(points, bound.omega)
    square = bound.omega**2 if bound.tilt is None else bound.omega**2 + bound.tilt**2

    def norm_at(theta: Array) -> tuple[Array, Array]:
        seen = shrunk(points, theta, bound)
        slope = xp.where(seen != 0.0, penalty.prox_slope(seen, step), 0.0)
        return bound.norm(penalty.prox(seen, step)), row_sums(square, slope)

    return norm_at


def _doubled_until(fits: Callable[[Array], Array], high: Array, points: Array, radius: Array, tilt: Array) -> Array:
    """A θ ≥ `high` that fits: the tilted coordinate falls without bound as θ grows, and so does the norm."""
    xp = namespace(high, points)
    reach = row_sums(tilt, xp.abs(points)) + xp.where(xp.isfinite(radius), -radius, 0.0)
    high = xp.maximum(high, xp.maximum(reach, float(np.finfo(high.dtype).tiny)))

    def unfit(carry: tuple) -> Array:
        return xp.any(~carry[1]) & (carry[2] < _DOUBLINGS)

    def double(carry: tuple) -> tuple:
        high, good, count = carry
        high = xp.where(good, high, 2.0 * high)
        return high, good | fits(high), count + 1

    return while_loop(unfit, double, (high, fits(high), 0), xp)[0]
