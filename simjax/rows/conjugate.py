"""The conjugate of a penalty and a row constraint together, and what keeps a dual point inside its domain.

g*(s) = sup_w sᵀw − h(w)   s.t.  Σ_j ω_j |w_j| + δ_j w_j ≤ κ

h may have a box: see `boxed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from simjax._typing import Array
from simjax.rows.arrays import namespace, rounding_unit, row_sums, smallest_divisor, while_loop
from simjax.rows.boxed import BoxedPenalty, box_of, piecewise, unboxed
from simjax.rows.constraints import RowBound
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.joint_prox import shrunk
from simjax.rows.penalties import Penalty, PiecewisePenalty, soft

_ROOT_STEPS, _ROOT_TOL = 150, 1e-14
_SECTIONS, _HALVINGS = 80, 60
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
# A tilted coordinate without curvature demands |s_i − θδ_i| ≤ c_i; this many ε of its size are rounding.
_TILT_ROUNDING = 18.0


def support_function(penalty: Penalty, bound: RowBound | None, slopes: Array, mask: Array | None) -> Array:
    """g*(s) for g = h + indicator of the ball, summed over the coordinates in `mask`; (rows,), +inf possible.

        g*(s) = min_{θ ≥ 0} κθ + Σ_j h*(soft(s_j − θδ_j, θω_j))

    Any θ gives an upper bound of g*, so that a certificate built on it is valid even if the minimum is missed.
    """
    xp = namespace(slopes, None if bound is None else bound.omega)
    if mask is not None:
        slopes = xp.where(mask, slopes, 0.0)
    if bound is None:
        return xp.sum(penalty.conjugate(slopes), axis=1)
    penalty, bound = _in_precision_of(slopes, penalty, bound)
    if isinstance(penalty, (PiecewisePenalty, BoxedPenalty)) and piecewise(penalty) is not None:
        theta = _multiplier_of_piecewise(penalty, bound, slopes)
    elif isinstance(penalty, GroupPenalty):
        theta = _multiplier_of_groups(penalty, bound, slopes)
    else:
        theta = _multiplier_by_search(penalty, bound, slopes)
    return _value_at(penalty, bound, slopes, theta)[:, 0]


def _in_precision_of(slopes: Array, penalty: Penalty, bound: RowBound | None) -> tuple[Any, Any]:
    if isinstance(penalty, PiecewisePenalty | GroupPenalty | BoxedPenalty):
        penalty = penalty.cast(slopes.dtype)
    return penalty, None if bound is None else bound.cast(slopes.dtype)


def _value_at(penalty: Penalty, bound: RowBound, slopes: Array, theta: Array) -> Array:
    """κθ + Σ_j h*(soft(s_j − θδ_j, θω_j)), (rows, 1)."""
    xp = namespace(slopes, bound.omega)
    finite = xp.isfinite(bound.radius)
    limit = xp.where(finite, xp.where(finite, bound.radius, 0.0) * theta, 0.0)
    left = shrunk(slopes, xp.where(finite, theta, 0.0), bound)
    if bound.tilt is not None and isinstance(penalty, PiecewisePenalty):
        left = _within_rounding(penalty, bound.tilt, slopes, left)
    return limit + xp.sum(penalty.conjugate(left), axis=1, keepdims=True)


def _within_rounding(penalty: PiecewisePenalty, tilt: Array, slopes: Array, left: Array) -> Array:
    """The tilted coordinate's s_i − θδ_i brought back to ±c_i where only rounding put it beyond."""
    xp = namespace(slopes, tilt)
    flat = (tilt > 0.0) & ~penalty.curved
    rounding = _TILT_ROUNDING * rounding_unit(slopes) * (xp.abs(slopes) + penalty.slope)
    close = xp.abs(left) <= penalty.slope + rounding
    return xp.where(flat & close, xp.clip(left, -penalty.slope, penalty.slope), left)


def _multiplier_of_piecewise(stated: PiecewisePenalty | BoxedPenalty, bound: RowBound, slopes: Array) -> Array:
    """The minimising θ from the sign of the derivative κ − Σ ω_j |∂h*(soft(s_j, θω_j))|, inside a bracket."""
    xp = namespace(slopes, bound.omega)
    penalty, box = unboxed(stated), box_of(stated)
    epsilon = rounding_unit(slopes)
    omega, sees = bound.omega, bound.sees
    radius = xp.where(xp.isfinite(bound.radius), bound.radius, 0.0)
    excess = xp.maximum(xp.abs(slopes) - penalty.slope, 0.0)
    reach = xp.where(sees & (omega > 0.0), excess / xp.where(omega > 0.0, omega, 1.0), 0.0)
    curved = xp.broadcast_to(penalty.curved, reach.shape)
    if box is not None:  # the conjugate is finite towards a finite bound as well
        curved = curved | xp.isfinite(xp.where(slopes > 0.0, box.upper, box.lower))
    # Coordinates without curvature demand |s_j| − θω_j ≤ c_j; a relative ε covers the rounding of that product.
    low = xp.max(xp.where(curved, 0.0, reach), axis=1, keepdims=True) * (1.0 + 2.0 * epsilon)
    beyond = xp.where(curved, 0.0, xp.abs(soft(slopes, low * omega)) - penalty.slope) * sees
    missed = xp.max(beyond, axis=1, keepdims=True) > 0.0
    low = xp.where(missed, low * (1.0 + 5.0 * epsilon) + smallest_divisor(low), low)
    high = xp.maximum(low, xp.max(xp.where(curved, reach, 0.0), axis=1, keepdims=True))
    if bound.tilt is not None:
        low, high = _tilted_bracket(penalty, bound, slopes, low, high)
    end, tolerance = high, max(_ROOT_TOL, 4.0 * epsilon)
    square = omega**2

    def falls(theta: Array) -> tuple[Array, Array]:
        """−d/dθ of the value, and minus the derivative of that, where it has one to go by."""
        left = shrunk(slopes, theta, bound)
        size = penalty.conjugate_slope(left) * sees
        if bound.tilt is None:
            moves = size > 0.0
            if box is not None:
                best = box.maximiser(left)
                size = xp.where(xp.isfinite(best), xp.abs(best), 0.0) * sees
                moves = (size > 0.0) & (best > box.lower) & (best < box.upper)
            bends = xp.where(moves & penalty.curved, 0.5 / xp.where(penalty.curved, penalty.curvature, 1.0), 0.0)
            return row_sums(omega, size) - radius, row_sums(square, bends)
        size = omega * size + bound.tilt * xp.sign(left) * size
        fall = xp.sum(size, axis=1, keepdims=True) - radius
        return xp.where(theta >= end, xp.minimum(fall, 0.0), fall), xp.zeros_like(fall)

    def unfinished(carry: tuple) -> Array:
        _, low, high, count = carry
        return xp.any(high - low > tolerance * high) & (count < _ROOT_STEPS)

    def narrow(carry: tuple) -> tuple:
        theta, low, high, count = carry
        fall, rate = falls(theta)
        found = xp.abs(fall) <= tolerance * radius
        low = xp.where((fall > 0.0) | found, theta, low)
        high = xp.where((fall <= 0.0) | found, theta, high)
        newton = theta + fall / xp.where(rate > 0.0, rate, 1.0)
        # Newton's steps for what is linear between jumps, and every third time a bisection, for the jumps.
        good = (rate > 0.0) & (newton > low) & (newton < high) & (count % 3 != 0)
        inside = xp.where(good, newton, 0.5 * (low + high))
        # Where it falls to the end, the largest θ is the best one: there the second step is.
        return xp.where(count == 0, xp.maximum(low, high * (1.0 - tolerance)), inside), low, high, count + 1

    # Where the value rises from the start on, the least θ is the best one, and exactly so: there the first step is.
    return while_loop(unfinished, narrow, (low, low, high, 0), xp)[2]


def _tilted_bracket(
    penalty: PiecewisePenalty, bound: RowBound, slopes: Array, low: Array, high: Array
) -> tuple[Array, Array]:
    """The θ between which the least value lies, given those of the other coordinates.

    Without curvature the tilted coordinate demands |s_i − θδ_i| ≤ c_i; with it, the value has turned to rise once
    ∂h*(θδ_i − s_i) = b + (θδ_i − s_i − c)/(2a) ≥ |κ|/δ_i.
    """
    xp = namespace(slopes, bound.omega)
    tilt = bound.tilt
    assert tilt is not None
    tilted = (tilt > 0.0) & xp.isfinite(bound.radius)
    unit = xp.where(tilted, tilt, 1.0)
    curved = penalty.curved
    infinite = xp.full_like(slopes, xp.inf)
    below = xp.where(tilted & ~curved, (slopes - penalty.slope) / unit, 0.0)
    above = xp.where(tilted & ~curved, (slopes + penalty.slope) / unit, infinite)
    radius = xp.where(xp.isfinite(bound.radius), xp.abs(bound.radius), 0.0)
    turned = (xp.abs(slopes) + penalty.slope + 2.0 * penalty.curvature * radius / unit) / unit
    low = xp.maximum(low, xp.max(below, axis=1, keepdims=True))
    high = xp.maximum(high, xp.max(xp.where(tilted & curved, turned, 0.0), axis=1, keepdims=True))
    cap = xp.min(above, axis=1, keepdims=True)
    # κ < 0 lets the value fall up to the cap.
    high = xp.where(xp.isfinite(cap), cap, high)
    return low, xp.maximum(low, high)


def _multiplier_of_groups(penalty: GroupPenalty, bound: RowBound, slopes: Array) -> Array:
    """The smallest θ ≥ 0 with ‖soft(s_g, θω_g)‖ ≤ β_g for every group: any smaller one is outside of the domain.

    The norms are convex and fall with θ, so that Newton's steps from the left stay there. The root is where the next
    number, a hair to its right, fits.
    """
    xp = namespace(slopes, bound.omega)
    omega, sees = bound.omega, bound.sees
    reach = xp.where(sees & (omega > 0.0), xp.abs(slopes) / xp.where(omega > 0.0, omega, 1.0), 0.0)
    # There nothing is left of any slope that the ball sees; two ε cover the rounding of the quotient and the product.
    high = xp.max(reach, axis=1, keepdims=True) * (1.0 + 2.0 * rounding_unit(slopes))
    hair = penalty.slack(slopes.dtype)
    omega = xp.where(sees, omega, 0.0)

    def excess(theta: Array) -> tuple[Array, Array]:
        """max_g ‖soft(s_g, θω_g)‖ − β_g, and how fast it falls."""
        left = soft(slopes, theta * omega)
        norms = penalty.norms(left)
        rate = penalty.sums(omega * xp.abs(left)) / xp.where(norms > 0.0, norms, 1.0)
        over = norms - penalty.level
        worst = xp.argmax(over, axis=1, keepdims=True)
        return xp.take_along_axis(over, worst, axis=1), xp.take_along_axis(rate, worst, axis=1)

    def unfinished(carry: tuple) -> Array:
        return xp.any(carry[2]) & (carry[3] < _ROOT_STEPS)

    def narrow(carry: tuple) -> tuple:
        low, high, open_, count = carry
        over, rate = excess(low)
        low = xp.where(open_ & (over > 0.0), low + over / xp.where(rate > 0.0, rate, 1.0), low)
        low = xp.minimum(low, high)
        beyond = xp.minimum(low * (1.0 + hair), high)
        fits = excess(beyond)[0] <= 0.0
        stuck = (rate <= 0.0) & (over > 0.0)  # no θ will do
        high = xp.where(open_ & fits, beyond, high)
        return low, high, open_ & ~fits & ~stuck, count + 1

    low = xp.zeros_like(high)
    fits = excess(low)[0] <= 0.0
    return xp.where(fits, 0.0, while_loop(unfinished, narrow, (low, high, ~fits, 0), xp)[1])


def _multiplier_by_search(penalty: Penalty, bound: RowBound, slopes: Array) -> Array:
    """The minimising θ for a penalty that only supplies its conjugate: golden-section search of a convex function."""
    xp = namespace(slopes, bound.omega)
    omega = bound.omega
    reach = xp.where(bound.sees, xp.abs(slopes) / xp.where(omega > 0.0, omega, 1.0), 0.0)
    high = xp.max(reach, axis=1, keepdims=True)

    def value(theta: Array) -> Array:
        return _value_at(penalty, bound, slopes, theta)

    def narrow(carry: tuple) -> tuple:
        low, high, count = carry
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        at_left, at_right = value(left), value(right)
        # Infinite values lie to the left only: a larger θ always enlarges the domain.
        go_right = (at_left > at_right) | xp.isinf(at_left)
        return xp.where(go_right, left, low), xp.where(go_right, high, right), count + 1

    low, high, _ = while_loop(lambda carry: carry[2] < _SECTIONS, narrow, (xp.zeros_like(high), high, 0), xp)
    ends = xp.concatenate([low, 0.5 * (low + high), high], axis=1)
    values = xp.concatenate([value(ends[:, i : i + 1]) for i in range(3)], axis=1)
    best = xp.take_along_axis(ends, xp.argmin(values, axis=1, keepdims=True), axis=1)
    # A hair more: the value is infinite to the left of many a best θ, and the next to compute it may round otherwise.
    return best * (1.0 + 9.0 * rounding_unit(slopes))


# --- The domain --------------------------------------------------------------------------------------------------


def flat_coordinates(
    penalty: Penalty, bound: RowBound | None, shape: tuple[int, ...], support: Array | None = None
) -> Array:
    """Where neither penalty, box nor ball has a say, so that s_j = 0 is demanded; (rows, d), inside the support."""
    above, below = _flat_sides(penalty, bound, shape)
    flat = above & below
    return flat if support is None else flat & support


def _flat_sides(penalty: Penalty, bound: RowBound | None, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Where weights may grow at no cost: s_j ≤ 0 is demanded there; and where they may fall: s_j ≥ 0 is; (rows, d)."""
    base: Any = unboxed(penalty)
    if isinstance(base, PiecewisePenalty):
        flat = (base.slope == 0.0) & (base.curvature == 0.0)
    elif isinstance(base, GroupPenalty):
        flat = base.to_columns(base.level == 0.0)
    else:
        ones = namespace(getattr(base, "point_scale", None)).ones(shape)
        flat = (base.value(ones) == 0.0) & (base.value(-ones) == 0.0)
    xp = namespace(flat, None if bound is None else bound.omega)
    flat = xp.broadcast_to(flat, shape)
    if bound is not None:
        flat = flat & ~bound.sees
    box = box_of(penalty)
    return (flat, flat) if box is None else (flat & xp.isinf(box.upper), flat & xp.isinf(box.lower))


def held_slopes(penalty: Penalty, bound: RowBound | None, slopes: Array) -> Array:
    """The slopes, with zero where flatness demands it of them; what is left there of Φᵀy is for the caller to judge."""
    above, below = _flat_sides(penalty, bound, slopes.shape)
    return namespace(slopes, above).where((above & (slopes > 0.0)) | (below & (slopes < 0.0)), 0.0, slopes)


def _ends(penalty: Any) -> tuple[Array, Array] | None:
    """The closed ends of the domain of h*, where they can be told: ±c where h has no curvature, else infinite."""
    base, box = piecewise(penalty), box_of(penalty)
    if base is None:
        return None
    xp = namespace(base.slope, None if box is None else box.lower)
    limit = xp.where(base.curved, xp.inf, base.slope)
    if box is None:
        return -limit, limit
    return xp.where(xp.isinf(box.lower), -limit, -xp.inf), xp.where(xp.isinf(box.upper), limit, xp.inf)


def nearest_in_domain(penalty: Penalty, bound: RowBound | None, slopes: Array, mask: Array | None) -> Array:
    """The slopes with each that is outside of the domain of h* moved to its end, on the coordinates no ball sees."""
    xp = namespace(slopes, None if bound is None else bound.omega)
    penalty, bound = _in_precision_of(slopes, penalty, bound)
    free, ends = _free(bound, slopes, mask), _ends(penalty)
    if ends is not None:
        return xp.where(free, xp.minimum(xp.maximum(slopes, ends[0]), ends[1]), slopes)
    if isinstance(penalty, GroupPenalty):
        return xp.where(free, penalty.to_columns(_group_factors(penalty, slopes, free)) * slopes, slopes)
    seen = xp.where(free, slopes, 0.0)
    low = _largest_factor(lambda factor: xp.isfinite(penalty.conjugate(factor * seen)), xp.ones_like(seen))
    return xp.where(low < 1.0, low * slopes, slopes)


def _free(bound: RowBound | None, slopes: Array, mask: Array | None) -> Array:
    """The coordinates in `mask` that no ball sees, (rows, d)."""
    xp = namespace(slopes, None if bound is None else bound.omega)
    free = xp.ones(slopes.shape, dtype=bool) if bound is None else ~xp.broadcast_to(bound.sees, slopes.shape)
    return free if mask is None else free & mask


def _largest_factor(fits: Callable[[Array], Array], ones: Array) -> Array:
    """The largest f in [0, 1] that fits, entry by entry, where 0 does and whatever is below one that does."""
    xp = namespace(ones)

    def halve(carry: tuple) -> tuple:
        low, high, count = carry
        middle = 0.5 * (low + high)
        good = fits(middle)
        return xp.where(good, middle, low), xp.where(good, high, middle), count + 1

    whole = fits(ones)
    start = (xp.where(whole, ones, 0.0), ones, 0)
    low, *_ = while_loop(lambda carry: xp.any(carry[0] < carry[1]) & (carry[2] < _HALVINGS), halve, start, xp)
    # A hair inside, so that the rounding of f·s by whoever multiplies cannot leave the domain again.
    return xp.where(whole, 1.0, low * (1.0 - 5.0 * rounding_unit(ones)))


def dual_scaling(penalty: Penalty, bound: RowBound | None, slopes: Array, mask: Array | None) -> Array:
    """The largest f in [0, 1] for which f·s is inside the domain of g* on the coordinates no ball sees; (rows, 1).

    A free coordinate under L1 with weight β demands |s_j| ≤ β, hence f = min(1, β/‖s_b‖∞); a group ‖s_g‖ ≤ β_g of those
    of its coordinates that are free.
    """
    xp = namespace(slopes, None if bound is None else bound.omega)
    penalty, bound = _in_precision_of(slopes, penalty, bound)
    free, ends = _free(bound, slopes, mask), _ends(penalty)
    if ends is not None:
        low, high = ends
        outside = free & ((slopes > high) | (slopes < low))
        end = xp.where(slopes > 0.0, high, low)
        fit = xp.where(outside, end / xp.where(outside, slopes, 1.0), 1.0)
        factor = xp.min(fit, axis=1, keepdims=True)
        if bound is not None and bound.tilt is not None:
            factor = xp.minimum(factor, _tilted_scaling(penalty, bound, slopes, mask))
        return xp.where(factor < 1.0, factor * (1.0 - 2.0 * rounding_unit(slopes)), 1.0)
    if isinstance(penalty, GroupPenalty):
        factor = xp.min(_group_factors(penalty, slopes, free), axis=1, keepdims=True)
        return xp.where(factor < 1.0, factor * (1.0 - penalty.slack(slopes.dtype)), 1.0)
    slopes = xp.where(free, slopes, 0.0)

    def finite(factor: Array) -> Array:
        return xp.all(xp.isfinite(penalty.conjugate(factor * slopes)), axis=1, keepdims=True)

    return _largest_factor(finite, xp.ones((slopes.shape[0], 1), dtype=slopes.dtype))


def _group_factors(penalty: GroupPenalty, slopes: Array, free: Array) -> Array:
    """min(1, β_g/‖s_g‖) of every group, with the norm of the coordinates that are `free`, (rows, G)."""
    xp = namespace(slopes, penalty.level)
    norms = penalty.norms(xp.where(free, slopes, 0.0))
    outside = norms > penalty.level
    return xp.where(outside, penalty.level / xp.where(outside, norms, 1.0), 1.0)


def _tilted_scaling(penalty: Any, bound: RowBound, slopes: Array, mask: Array | None) -> Array:
    """The largest f for which some θ ≥ 0 has f|s_j| ≤ c_j + θω_j and |f s_i − θδ_i| ≤ c_i; (rows, 1).

    The θ that the j demand must not exceed the one that i allows: f (|s_j|/ω_j − s_i/δ_i) ≤ c_j/ω_j + c_i/δ_i.
    Coordinates with curvature demand nothing.
    """
    xp = namespace(slopes, bound.omega)
    tilt, omega = bound.tilt, bound.omega
    assert tilt is not None
    if mask is not None:
        slopes = xp.where(mask, slopes, 0.0)
    tilted = (tilt > 0.0) & ~penalty.curved & xp.isfinite(bound.radius)
    unit = xp.where(tilted, tilt, 1.0)
    own = xp.sum(xp.where(tilted, slopes / unit, 0.0), axis=1, keepdims=True)
    slack = xp.sum(xp.where(tilted, penalty.slope / unit, 0.0), axis=1, keepdims=True)
    bends = xp.any(tilted, axis=1, keepdims=True)
    flat = (omega > 0.0) & ~penalty.curved
    omega = xp.where(flat, omega, 1.0)
    demand = xp.where(flat, xp.abs(slopes) / omega - own, 0.0)
    allowed = penalty.slope / omega + slack
    # Differences within the rounding of s count as none.
    demand = xp.where(demand <= _TILT_ROUNDING * rounding_unit(slopes) * xp.abs(own), 0.0, demand)
    fit = xp.where(demand > allowed, allowed / xp.where(demand > 0.0, demand, 1.0), 1.0)
    from_zero = xp.where(-own > slack, slack / xp.where(own < 0.0, -own, 1.0), 1.0)  # θ ≥ 0 itself
    return xp.where(bends, xp.minimum(xp.min(fit, axis=1, keepdims=True), from_zero), 1.0)


def raised_tilt(penalty: PiecewisePenalty, bound: RowBound, slopes: Array, mask: Array | None) -> Array:
    """The slopes with s_i of an unpenalised tilted coordinate raised to what the others demand, where it is below.

    There g* is finite only for s_i/δ_i ≥ (|s_j| − c_j)/ω_j for all j, which holds with equality at an optimum: rounding
    alone can break it. What the change may be is for the caller to judge.
    """
    if bound.tilt is None:
        return slopes
    xp = namespace(slopes, bound.omega)
    penalty, bound = _in_precision_of(slopes, penalty, bound)
    tilt: Any = bound.tilt
    omega = bound.omega
    seen = slopes if mask is None else xp.where(mask, slopes, 0.0)
    own = (tilt > 0.0) & xp.isfinite(bound.radius) & (penalty.slope == 0.0) & ~penalty.curved
    flat = (omega > 0.0) & ~penalty.curved
    reach = xp.where(flat, xp.abs(seen) - penalty.slope, 0.0) / xp.where(flat, omega, 1.0)
    demand = xp.maximum(xp.max(reach, axis=1, keepdims=True), 0.0)
    return xp.where(own, xp.maximum(slopes, tilt * demand), slopes)
