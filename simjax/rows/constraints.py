"""Row constraints: weighted ℓ1 balls and Metzler rows, their joint prox with a penalty, and the support function.

A constraint object (`L1Ball`, `MetzlerRow`, `Free`) says what the user means; `Ball` is what the solvers and the
certificate work with: per row, coordinate weights ω (0 for a coordinate the ball does not see), a tilt δ (not 0 for the
coordinate of a Metzler row that counts with its sign) and a radius κ (inf for no constraint).

    joint prox            argmin_w ½‖w − x‖² + τ h(w)   s.t.  Σ_j ω_j |w_j| + δ_j w_j ≤ κ
    support function      g*(s) = sup_w sᵀw − h(w)      s.t.  Σ_j ω_j |w_j| + δ_j w_j ≤ κ
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simjax._checks import float_array, positive_integer
from simjax.rows.penalties import FLAT, Penalty, PiecewisePenalty

Array = Any

_ROOT_TOL = 1e-14
_ROOT_STEPS = 100
_DOUBLINGS = 200
# A tilted coordinate without curvature demands |s_i − θδ_i| ≤ c_i; this much of its size is rounding.
_TILT_TOL = 4e-15


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ball:
    """Σ_j ω_j |w_j| + δ_j w_j ≤ κ for each row.

    Attributes:
      weights: ω ≥ 0, (1 or rows, d).
      radius: κ, (rows, 1), inf for no constraint; κ > 0 without a tilt.
      size: ω_j = δ_j = 0 from this coordinate on, so that the search for the multiplier need not look there.
      tilt: δ ≥ 0, (rows, d), positive for at most one coordinate of a row, which has ω = 0; None for δ = 0.
    """

    weights: Array
    radius: Array
    size: int = dataclasses.field(metadata={"static": True})
    tilt: Array | None = None

    def rows(self, index: Array) -> Ball:
        weights = self.weights[index] if self.weights.shape[0] > 1 else self.weights
        return Ball(weights, self.radius[index], self.size, None if self.tilt is None else self.tilt[index])

    def norm(self, weights: Array) -> Array:
        """Σ_j ω_j |w_j| + δ_j w_j, (rows, 1); a norm where there is no tilt."""
        size = jnp.sum(self.weights * jnp.abs(weights), axis=1, keepdims=True)
        return size if self.tilt is None else size + jnp.sum(self.tilt * weights, axis=1, keepdims=True)

    def normal(self, sign: Array) -> Array:
        """ω sign(w) + δ, the gradient of the norm on the orthant of `sign`, (rows, d)."""
        return self.weights * sign if self.tilt is None else self.weights * sign + self.tilt

    def inside(self, weights: Array) -> Array:
        """The weights moved into the ball: scaled on its coordinates, or lowered on the one that counts with its sign.

        A tilted coordinate that is zero stays so where scaling the others will do.
        """
        norm, radius = self.norm(weights), self.radius
        over = norm > radius
        shrink = jnp.where(over, radius / jnp.where(norm > 0.0, norm, 1.0), 1.0)
        scaled = jnp.where(self.weights > 0.0, weights * shrink, weights)
        if self.tilt is None:
            return scaled
        tilted = self.tilt > 0.0
        lowers = jnp.any(tilted & (weights != 0.0), axis=1, keepdims=True) | (radius <= 0.0)
        excess = jnp.where(over, norm - jnp.where(over, radius, 0.0), 0.0)
        # Half an ulp of κ more, so that the rounding of the sum cannot leave an excess.
        excess = jnp.where(over, excess + 2e-16 * (jnp.abs(jnp.where(over, radius, 0.0)) + jnp.abs(norm)), 0.0)
        lowered = jnp.where(tilted, weights - excess / jnp.where(tilted, self.tilt, 1.0), weights)
        return jnp.where(lowers, lowered, scaled)

    @property
    def sees(self) -> Array:
        """Which coordinates the ball bounds, (rows, d)."""
        seen = self.weights > 0.0 if self.tilt is None else (self.weights > 0.0) | (self.tilt > 0.0)
        return seen & jnp.isfinite(self.radius)


@dataclasses.dataclass(frozen=True)
class L1Ball:
    """Σ_{j < size} weights_j |w_j| ≤ radius: the well-posedness constraint ‖a‖₁ ≤ κ of the SIM paper, eq. (2d).

    Args:
      radius: κ > 0, a scalar or one per row (rows,); inf for a row without the constraint.
      size: the ball binds the first `size` coordinates, the others are free; None binds all of them.
      weights: ω > 0, a scalar, (size,) or (rows, size). With ω_j = s_i / s_j the ball sees a state-rescaled A.

    Raises:
      TypeError: for values that are not real numbers.
      ValueError: for a radius or weights that are not positive (weights also finite), or an impossible size.
    """

    radius: Any
    size: int | None = None
    weights: Any = 1.0

    def __post_init__(self) -> None:
        radius = float_array("radius", self.radius, infinite=True)
        weights = float_array("weights", self.weights)
        if radius.ndim > 1 or np.any(radius <= 0.0):
            raise ValueError(f"radius must be a positive scalar or (rows,) array, got {self.radius!r}.")
        if weights.ndim > 2 or np.any(weights <= 0.0):
            raise ValueError("weights of the ball must be positive: a scalar, (size,) or (rows, size).")
        if self.size is not None:
            positive_integer("size", self.size)
        object.__setattr__(self, "radius", radius)
        object.__setattr__(self, "weights", weights)

    def ball(self, rows: int, width: int, support: np.ndarray | None = None) -> Ball:
        """The constraint for `rows` rows of `width` coordinates; it is the same for any `support`.

        Raises:
          ValueError: if size, weights or radius do not fit these numbers.
        """
        size = width if self.size is None else self.size
        if size > width:
            raise ValueError(f"size of the ball must be at most the number of coordinates {width}, got {size}.")
        if self.radius.ndim == 1 and self.radius.shape != (rows,):
            raise ValueError(f"radius must be a scalar or ({rows},), got shape {self.radius.shape}.")
        if self.weights.ndim and self.weights.shape[-1] != size:
            raise ValueError(f"weights of the ball must have {size} entries a row, got shape {self.weights.shape}.")
        if self.weights.ndim == 2 and self.weights.shape[0] not in (1, rows):
            raise ValueError(f"weights of the ball must be for {rows} rows, got shape {self.weights.shape}.")
        weights = np.zeros((self.weights.shape[0] if self.weights.ndim == 2 else 1, width))
        weights[:, :size] = self.weights
        return Ball(weights, np.broadcast_to(self.radius.reshape(-1, 1), (rows, 1)).copy(), size)


@dataclasses.dataclass(frozen=True)
class MetzlerRow:
    """w_i + Σ_{j < size, j ≠ i} ω_j |w_j| ≤ radius, with i the row's own coordinate: μ(A) ≤ γ row by row.

    μ∞(A) = max_i a_ii + Σ_{j ≠ i} |a_ij| < 1 makes x = φ(Ax + Bu) well-posed as ‖A‖∞ < 1 does, and contains it; with
    ω_j = η_j / η_i it is the measure of the weighted norm max_i |x_i| / η_i.

    Args:
      radius: γ, a scalar or one per row (rows,), of any sign; inf for a row without the constraint.
      diagonal: i, the coordinate that counts with its sign, (rows,); −1 for none, as for a plain ball.
      size: the constraint binds the first `size` coordinates, the others are free; None binds all of them.
      weights: ω > 0, a scalar, (size,) or (rows, size); ω_i must be 1.

    Raises:
      TypeError: for values that are not real numbers, or a diagonal of other numbers than integers.
      ValueError: for weights that are not positive and finite or not 1 at the diagonal, or an impossible size.

    Source: Jafarpour, Davydov, Proskurnikov, Bullo, Robust implicit networks via non-Euclidean contractions (2021).
    """

    radius: Any
    diagonal: Any
    size: int | None = None
    weights: Any = 1.0

    def __post_init__(self) -> None:
        radius = float_array("radius", self.radius, infinite=True)
        diagonal = np.asarray(self.diagonal)
        if radius.ndim > 1 or np.any(radius == -np.inf):
            raise ValueError(f"radius must be a scalar or (rows,) array above -inf, got {self.radius!r}.")
        if not np.issubdtype(diagonal.dtype, np.integer):
            raise TypeError(f"diagonal must be integers, got dtype {diagonal.dtype}.")
        if diagonal.ndim != 1:
            raise ValueError(f"diagonal must have one entry a row, got shape {diagonal.shape}.")
        plain = L1Ball(1.0, self.size, self.weights)  # checks size and weights
        object.__setattr__(self, "radius", radius)
        object.__setattr__(self, "diagonal", diagonal)
        object.__setattr__(self, "weights", plain.weights)

    def ball(self, rows: int, width: int, support: np.ndarray | None = None) -> Ball:
        """The constraint for `rows` rows of `width` coordinates, of which `support` (rows, width) may be nonzero.

        Raises:
          ValueError: if size, weights, radius or diagonal do not fit these numbers, or no weights meet the constraint.
        """
        plain = L1Ball(1.0, self.size, self.weights).ball(rows, width)
        diagonal, every = self.diagonal, np.arange(rows)
        if self.radius.ndim == 1 and self.radius.shape != (rows,):
            raise ValueError(f"radius must be a scalar or ({rows},), got shape {self.radius.shape}.")
        if diagonal.shape != (rows,) or np.any((diagonal < -1) | (diagonal >= plain.size)):
            raise ValueError(
                f"diagonal must be ({rows},) numbers from -1 to {plain.size - 1}, got shape {diagonal.shape}"
                + (f" with entries from {diagonal.min()} to {diagonal.max()}." if diagonal.size else ".")
            )
        radius = np.broadcast_to(self.radius.reshape(-1, 1), (rows, 1)).copy()
        weights = np.broadcast_to(plain.weights, (rows, width)).copy()
        own = every[diagonal >= 0], diagonal[diagonal >= 0]
        if np.any(weights[own] != 1.0):
            raise ValueError("weights must be 1 at the diagonal of each row.")
        weights[own] = 0.0
        tilt = np.zeros((rows, width))
        tilt[own] = 1.0
        if support is not None:
            tilt[~support] = 0.0
        stuck = (radius[:, 0] <= 0.0) & ~tilt.any(axis=1)
        if stuck.any():
            raise ValueError(
                f"radius must be positive where the support excludes the diagonal or there is none; row "
                f"{np.flatnonzero(stuck)[0]} has {radius[stuck][0, 0]:g}."
            )
        return Ball(weights, radius, plain.size, tilt)


@dataclasses.dataclass(frozen=True)
class Free:
    """No constraint."""

    def ball(self, rows: int, width: int, support: np.ndarray | None = None) -> None:
        return None


Constraint = L1Ball | MetzlerRow | Free


# --- The joint prox ----------------------------------------------------------------------------------------------


class JointProx(NamedTuple):
    point: Array  # (rows, d), exactly sparse and exactly inside the ball
    theta: Array  # (rows, 1), τ times the multiplier of the ball
    seen: Array  # (rows, d), soft(x − θδ, θω): the points at which the penalty's own prox was taken


def soft(points: Array, threshold: Array) -> Array:
    """sign(x) (|x| − threshold)₊, the prox of threshold·|·|."""
    return jnp.sign(points) * jnp.maximum(jnp.abs(points) - threshold, 0.0)


def joint_prox(penalty: Penalty, ball: Ball | None, points: Array, step: Array, theta: Array) -> JointProx:
    """argmin_w ½‖w − x‖² + step·h(w) s.t. Σ ω|w| + δᵀw ≤ κ, row by row.

    For a penalty with its minimum at zero this is prox_{τh}(soft(x − θδ, θω)) with the smallest θ ≥ 0 for which the
    norm fits: a one-dimensional monotone root, found by Newton's method inside a bisection bracket.

    Args:
      points: x, (rows, d).   step: τ > 0, (rows, 1).
      theta: (rows, 1), a guess of θ, e.g. that of the previous call; any value ≥ 0 is safe.
    """
    if ball is None:
        return JointProx(penalty.prox(points, step), jnp.zeros_like(theta), points)
    weights, radius = ball.weights, ball.radius
    # The root depends on the coordinates in the ball alone.
    bound: Any = penalty.columns(ball.size) if isinstance(penalty, PiecewisePenalty) else penalty
    head = slice(ball.size if isinstance(penalty, PiecewisePenalty) else None)
    inner, omega = points[:, head], weights[:, head]
    tilt = None if ball.tilt is None else ball.tilt[:, head]

    def norm_at(theta: Array) -> tuple[Array, Array]:
        seen = _shrunk(inner, theta, omega, tilt)
        point: Any = bound.prox(seen, step)
        norm, square = omega * jnp.abs(point), omega**2
        if tilt is not None:
            norm, square = norm + tilt * point, square + tilt**2
        slope = jnp.sum(square * jnp.where(seen != 0.0, bound.prox_slope(seen, step), 0.0), axis=1, keepdims=True)
        return jnp.sum(norm, axis=1, keepdims=True), slope

    # At θ = max |x|/ω the norm is zero, so [0, that] brackets the root wherever θ = 0 does not fit already.
    high = jnp.max(
        jnp.where(omega > 0.0, jnp.abs(inner) / jnp.where(omega > 0.0, omega, 1.0), 0.0),
        axis=1,
        keepdims=True,
    )
    if tilt is not None:
        high = _doubled_until(lambda theta: norm_at(theta)[0] <= radius, high, inner, radius, tilt)
    norm_at_zero, _ = norm_at(jnp.zeros_like(theta))
    inside = norm_at_zero <= radius
    theta = jnp.where(inside, 0.0, jnp.clip(theta, 0.0, high))
    target = jnp.where(jnp.isfinite(radius), radius, 1.0)
    unit = target if tilt is None else jnp.abs(target) + jnp.sum(tilt * jnp.abs(inner), axis=1, keepdims=True)

    def unfinished(carry: tuple) -> Array:
        return jnp.any(carry[4]) & (carry[3] < _ROOT_STEPS)

    def improve(carry: tuple) -> tuple:
        theta, low, high, count, open_ = carry
        norm, slope = norm_at(theta)
        excess = norm - target
        low = jnp.where(open_ & (excess > 0.0), theta, low)
        high = jnp.where(open_ & (excess <= 0.0), theta, high)
        newton = theta + excess / jnp.where(slope > 0.0, slope, 1.0)
        # A Newton step that leaves the bracket, or a flat norm, falls back on bisection.
        good = (slope > 0.0) & (newton > low) & (newton < high)
        found = (jnp.abs(excess) <= _ROOT_TOL * unit) | (high - low <= 4e-16 * high)
        proposal = jnp.where(good, newton, 0.5 * (low + high))
        open_ = open_ & ~found
        return jnp.where(open_, proposal, theta), low, high, count + 1, open_

    low = jnp.zeros_like(theta)
    start = (theta, low, high, jnp.zeros((), jnp.int32), ~inside)
    theta, _, _, _, _ = lax.while_loop(unfinished, improve, start)
    seen = _shrunk(points, theta, weights, ball.tilt)
    # What is left of the excess is rounding; a move of O(ε) makes the point feasible.
    return JointProx(ball.inside(penalty.prox(seen, step)), theta, seen)


def _shrunk(points: Array, theta: Array, weights: Array, tilt: Array | None) -> Array:
    """soft(x − θδ, θω)."""
    return soft(points if tilt is None else points - theta * tilt, theta * weights)


def _doubled_until(fits: Any, high: Array, points: Array, radius: Array, tilt: Array) -> Array:
    """A θ ≥ `high` that fits: the tilted coordinate falls without bound as θ grows, and so does the norm."""
    reach = jnp.sum(tilt * jnp.abs(points), axis=1, keepdims=True) + jnp.where(jnp.isfinite(radius), -radius, 0.0)
    high = jnp.maximum(high, jnp.maximum(reach, 1e-300))

    def unfit(carry: tuple) -> Array:
        return jnp.any(~carry[1]) & (carry[2] < _DOUBLINGS)

    def double(carry: tuple) -> tuple:
        high, good, count = carry
        high = jnp.where(good, high, 2.0 * high)
        return high, good | fits(high), count + 1

    return lax.while_loop(unfit, double, (high, fits(high), jnp.zeros((), jnp.int32)))[0]


# --- The support function ----------------------------------------------------------------------------------------


def support_function(penalty: Penalty, ball: Ball | None, slopes: Array, mask: Array | None) -> Array:
    """g*(s) for g = h + indicator of the ball, summed over the coordinates in `mask`; (rows,), +inf possible.

        g*(s) = min_{θ ≥ 0} κθ + Σ_j h*(soft(s_j − θδ_j, θω_j))

    Any θ gives an upper bound of g*, so that a certificate built on it is valid even if the minimum is missed.
    """
    if mask is not None:
        slopes = jnp.where(mask, slopes, 0.0)
    if ball is None:
        return jnp.sum(penalty.conjugate(slopes), axis=1)
    theta = (
        _multiplier_of_piecewise(penalty, ball, slopes)
        if isinstance(penalty, PiecewisePenalty)
        else _multiplier_by_search(penalty, ball, slopes)
    )
    return _support_value(penalty, ball, slopes, theta)[:, 0]


def _support_value(penalty: Penalty, ball: Ball, slopes: Array, theta: Array) -> Array:
    finite = jnp.isfinite(ball.radius)
    bound = jnp.where(finite, jnp.where(finite, ball.radius, 0.0) * theta, 0.0)
    theta = jnp.where(finite, theta, 0.0)
    shrunk = _shrunk(slopes, theta, ball.weights, ball.tilt)
    if ball.tilt is not None and isinstance(penalty, PiecewisePenalty):
        shrunk = _within_rounding(penalty, ball.tilt, slopes, shrunk)
    return bound + jnp.sum(penalty.conjugate(shrunk), axis=1, keepdims=True)


def _within_rounding(penalty: PiecewisePenalty, tilt: Array, slopes: Array, shrunk: Array) -> Array:
    """The tilted coordinate's s_i − θδ_i brought back to ±c_i where only rounding put it beyond."""
    flat = (tilt > 0.0) & (penalty.curvature <= FLAT)
    close = jnp.abs(shrunk) <= penalty.slope + _TILT_TOL * (jnp.abs(slopes) + penalty.slope)
    return jnp.where(flat & close, jnp.clip(shrunk, -penalty.slope, penalty.slope), shrunk)


def _multiplier_of_piecewise(penalty: PiecewisePenalty, ball: Ball, slopes: Array) -> Array:
    """The minimising θ from the sign of the derivative κ − Σ ω_j |∂h*(soft(s_j, θω_j))|, by bisection."""
    weights, sees = ball.weights, ball.sees
    radius = jnp.where(jnp.isfinite(ball.radius), ball.radius, 0.0)
    excess = jnp.maximum(jnp.abs(slopes) - penalty.slope, 0.0)
    reach = jnp.where(sees & (weights > 0.0), excess / jnp.where(weights > 0.0, weights, 1.0), 0.0)
    curved = jnp.broadcast_to(penalty.curvature > FLAT, reach.shape)
    # Coordinates without curvature demand |s_j| − θω_j ≤ c_j; a relative ε covers the rounding of that product.
    low = jnp.max(jnp.where(curved, 0.0, reach), axis=1, keepdims=True) * (1.0 + 4e-16)
    low = jnp.where(
        jnp.max(jnp.where(curved, 0.0, jnp.abs(soft(slopes, low * weights)) - penalty.slope) * sees, axis=1,
                keepdims=True) > 0.0,
        low * (1.0 + 1e-15) + 1e-300,
        low,
    )  # fmt: skip
    high = jnp.maximum(low, jnp.max(jnp.where(curved, reach, 0.0), axis=1, keepdims=True))
    if ball.tilt is not None:
        low, high = _tilted_bracket(penalty, ball, slopes, low, high)
    end = high

    def unfinished(carry: tuple) -> Array:
        low, high, count = carry
        return jnp.any(high - low > _ROOT_TOL * high) & (count < _ROOT_STEPS)

    def rises(theta: Array) -> Array:
        shrunk = _shrunk(slopes, theta, weights, ball.tilt)
        size = penalty.conjugate_slope(shrunk) * sees
        if ball.tilt is None:
            return jnp.sum(weights * size, axis=1, keepdims=True) <= radius
        size = weights * size + ball.tilt * jnp.sign(shrunk) * size
        return (jnp.sum(size, axis=1, keepdims=True) <= radius) | (theta >= end)

    # Where the value rises from the start on, the least θ is the best one, and exactly so.
    high = jnp.where(rises(low), low, high)

    def halve(carry: tuple) -> tuple:
        low, high, count = carry
        middle = 0.5 * (low + high)
        rising = rises(middle)
        return jnp.where(rising, low, middle), jnp.where(rising, middle, high), count + 1

    low, high, _ = lax.while_loop(unfinished, halve, (low, high, jnp.zeros((), jnp.int32)))
    return high


def _tilted_bracket(
    penalty: PiecewisePenalty, ball: Ball, slopes: Array, low: Array, high: Array
) -> tuple[Array, Array]:
    """The θ between which the least value lies, given those of the other coordinates.

    Without curvature the tilted coordinate demands |s_i − θδ_i| ≤ c_i; with it, the value has turned to rise once
    ∂h*(θδ_i − s_i) = b + (θδ_i − s_i − c)/(2a) ≥ |κ|/δ_i.
    """
    tilt = ball.tilt
    assert tilt is not None
    tilted = (tilt > 0.0) & jnp.isfinite(ball.radius)
    unit = jnp.where(tilted, tilt, 1.0)
    curved = penalty.curvature > FLAT
    infinite = jnp.full_like(slopes, jnp.inf)
    below = jnp.where(tilted & ~curved, (slopes - penalty.slope) / unit, 0.0)
    above = jnp.where(tilted & ~curved, (slopes + penalty.slope) / unit, infinite)
    radius = jnp.where(jnp.isfinite(ball.radius), jnp.abs(ball.radius), 0.0)
    turned = (jnp.abs(slopes) + penalty.slope + 2.0 * penalty.curvature * radius / unit) / unit
    low = jnp.maximum(low, jnp.max(below, axis=1, keepdims=True))
    high = jnp.maximum(high, jnp.max(jnp.where(tilted & curved, turned, 0.0), axis=1, keepdims=True))
    cap = jnp.min(above, axis=1, keepdims=True)
    # κ < 0 lets the value fall up to the cap.
    high = jnp.where(jnp.isfinite(cap), cap, high)
    return low, jnp.maximum(low, high)


def _multiplier_by_search(penalty: Penalty, ball: Ball, slopes: Array) -> Array:
    """The minimising θ for a penalty that only supplies its conjugate: golden-section search of a convex function."""
    weights, sees = ball.weights, ball.sees
    ratio = (np.sqrt(5.0) - 1.0) / 2.0
    high = jnp.max(
        jnp.where(sees, jnp.abs(slopes) / jnp.where(weights > 0.0, weights, 1.0), 0.0), axis=1, keepdims=True
    )

    def value(theta: Array) -> Array:
        return _support_value(penalty, ball, slopes, theta)

    def narrow(_: int, carry: tuple) -> tuple:
        low, high = carry
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        at_left, at_right = value(left), value(right)
        # Infinite values lie to the left only: a larger θ always enlarges the domain.
        go_right = (at_left > at_right) | jnp.isinf(at_left)
        return jnp.where(go_right, left, low), jnp.where(go_right, high, right)

    low, high = lax.fori_loop(0, 80, narrow, (jnp.zeros_like(high), high))
    ends = jnp.concatenate([low, 0.5 * (low + high), high], axis=1)
    values = jnp.concatenate([value(ends[:, i : i + 1]) for i in range(3)], axis=1)
    best = jnp.take_along_axis(ends, jnp.argmin(values, axis=1, keepdims=True), axis=1)
    # A hair more: the value is infinite to the left of many a best θ, and the next to compute it may round otherwise.
    return best * (1.0 + 2e-15)


def dual_scaling(penalty: Penalty, ball: Ball | None, slopes: Array, mask: Array | None) -> Array:
    """The largest f in [0, 1] for which f·s is inside the domain of g* on the coordinates no ball sees; (rows, 1).

    A free coordinate under L1 with weight β demands |s_j| ≤ β, hence f = min(1, β/‖s_b‖∞).
    """
    free = jnp.ones_like(slopes, dtype=bool) if ball is None else ~jnp.broadcast_to(ball.sees, slopes.shape)
    if mask is not None:
        free = free & mask
    every, slopes = slopes, jnp.where(free, slopes, 0.0)
    if isinstance(penalty, PiecewisePenalty):
        flat = free & (penalty.curvature <= FLAT) & (jnp.abs(slopes) > penalty.slope)
        fit = jnp.where(flat, penalty.slope / jnp.where(flat, jnp.abs(slopes), 1.0), 1.0)
        factor = jnp.min(fit, axis=1, keepdims=True)
        if ball is not None and ball.tilt is not None:
            factor = jnp.minimum(factor, _tilted_scaling(penalty, ball, every, mask))
        return jnp.where(factor < 1.0, factor * (1.0 - 4e-16), 1.0)

    def finite(factor: Array) -> Array:
        return jnp.all(jnp.isfinite(penalty.conjugate(factor * slopes)), axis=1, keepdims=True)

    def halve(_: int, carry: tuple) -> tuple:
        low, high = carry
        middle = 0.5 * (low + high)
        fits = finite(middle)
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    ones = jnp.ones((slopes.shape[0], 1), slopes.dtype)
    low, _ = lax.fori_loop(0, 60, halve, (jnp.zeros_like(ones), ones))
    # A hair inside, so that the rounding of f·s by whoever multiplies cannot leave the domain again.
    return jnp.where(finite(ones), 1.0, low * (1.0 - 1e-15))


def settled_tilt(penalty: PiecewisePenalty, ball: Ball, slopes: Array, mask: Array | None) -> Array:
    """The slopes with s_i of an unpenalised tilted coordinate raised to what the others demand, where it is below.

    There g* is finite only for s_i/δ_i ≥ (|s_j| − c_j)/ω_j for all j, which holds with equality at an optimum: rounding
    alone can break it. What the change may be is for the caller to judge.
    """
    tilt, weights = ball.tilt, ball.weights
    if tilt is None:
        return slopes
    seen = slopes if mask is None else jnp.where(mask, slopes, 0.0)
    own = (tilt > 0.0) & jnp.isfinite(ball.radius) & (penalty.slope == 0.0) & (penalty.curvature <= FLAT)
    flat = (weights > 0.0) & (penalty.curvature <= FLAT)
    reach = jnp.where(flat, jnp.abs(seen) - penalty.slope, 0.0) / jnp.where(flat, weights, 1.0)
    demand = jnp.maximum(jnp.max(reach, axis=1, keepdims=True), 0.0)
    return jnp.where(own, jnp.maximum(slopes, tilt * demand), slopes)


def _tilted_scaling(penalty: PiecewisePenalty, ball: Ball, slopes: Array, mask: Array | None) -> Array:
    """The largest f for which some θ ≥ 0 has f|s_j| ≤ c_j + θω_j and |f s_i − θδ_i| ≤ c_i; (rows, 1).

    The θ that the j demand must not exceed the one that i allows: f (|s_j|/ω_j − s_i/δ_i) ≤ c_j/ω_j + c_i/δ_i.
    Coordinates with curvature demand nothing.
    """
    tilt, weights = ball.tilt, ball.weights
    assert tilt is not None
    if mask is not None:
        slopes = jnp.where(mask, slopes, 0.0)
    finite = jnp.isfinite(ball.radius)
    tilted = (tilt > 0.0) & (penalty.curvature <= FLAT) & finite
    unit = jnp.where(tilted, tilt, 1.0)
    own = jnp.sum(jnp.where(tilted, slopes / unit, 0.0), axis=1, keepdims=True)
    slack = jnp.sum(jnp.where(tilted, penalty.slope / unit, 0.0), axis=1, keepdims=True)
    bends = jnp.any(tilted, axis=1, keepdims=True)
    flat = (weights > 0.0) & (penalty.curvature <= FLAT)
    omega = jnp.where(flat, weights, 1.0)
    demand = jnp.where(flat, jnp.abs(slopes) / omega - own, 0.0)
    allowed = penalty.slope / omega + slack
    # Differences within the rounding of s count as none.
    demand = jnp.where(demand <= _TILT_TOL * jnp.abs(own), 0.0, demand)
    fit = jnp.where(demand > allowed, allowed / jnp.where(demand > 0.0, demand, 1.0), 1.0)
    from_zero = jnp.where(-own > slack, slack / jnp.where(own < 0.0, -own, 1.0), 1.0)  # θ ≥ 0 itself
    return jnp.where(bends, jnp.minimum(jnp.min(fit, axis=1, keepdims=True), from_zero), 1.0)


# --- Supports ----------------------------------------------------------------------------------------------------


def hollow_support(n: int, p: int, rows: np.ndarray | None = None) -> np.ndarray:
    """A_ii = 0, everything else free: boolean (n, n + p), or only the given `rows` of it."""
    rows = np.arange(n) if rows is None else rows
    mask = np.ones((rows.size, n + p), dtype=bool)
    mask[np.arange(rows.size), rows] = False
    return mask


def feedforward_support(layer_sizes: Sequence[int], p: int, rows: np.ndarray | None = None) -> np.ndarray:
    """A strictly upper block triangular in the stacked order (last hidden layer first): boolean (n, n + p).

    A state may depend on every state of an earlier layer and on the inputs, so that A is nilpotent and the model is
    well-posed whatever the norm of A.

    Args:
      layer_sizes: widths of the hidden layers, the first hidden layer first.
      rows: only these rows of the mask; None means all.
    """
    depth = np.repeat(np.arange(len(layer_sizes)), layer_sizes)[::-1]
    own = depth if rows is None else depth[rows]
    return np.concatenate([own[:, None] > depth[None, :], np.ones((own.size, p), dtype=bool)], axis=1)
