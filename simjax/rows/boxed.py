"""A separable penalty and a box as one: what a solver needs of both is a scalar function of each coordinate.

    h_box(w) = h(w)  for l ≤ w ≤ u,  +inf elsewhere

    prox        clip(prox_h(x), l, u): the scalar objective falls up to prox_h(x) and rises from there
    conjugate   s w − h(w)  at  w = clip(argmax_w s w − h(w), l, u)

h is one of simjax's penalties or one of the user's own; the box is that of `constraints.Box`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from simjax._typing import Array
from simjax.rows.arrays import namespace, pytree
from simjax.rows.penalties import Penalty, PiecewisePenalty, take_rows


@pytree()
@dataclasses.dataclass(frozen=True, eq=False)
class BoxedPenalty(Penalty):
    """h(w) for l ≤ w ≤ u, +inf elsewhere.

    Args:
      base: h, a `PiecewisePenalty` or a `ScaledPenalty`.
      lower: l, (1 or rows, 1 or d), −inf for no bound.
      upper: u ≥ l, likewise, inf for no bound.
    """

    base: Any
    lower: Array
    upper: Array

    def value(self, weights: Array) -> Array:
        """h(w) of weights inside the box; whether they are, `excess` says, as with a ball."""
        return self.base.value(weights)

    def prox(self, points: Array, step: Array) -> Array:
        own = self._meeting(points)
        return own.clip(own.base.prox(points, step))

    def prox_slope(self, points: Array, step: Array) -> Array:
        """An element of the prox's generalised derivative: that of h's inside the box, 0 on its edge."""
        own = self._meeting(points)
        found = own.base.prox(points, step)
        inside = (found > own.lower) & (found < own.upper)
        return namespace(points, own.lower).where(inside, own.base.prox_slope(points, step), 0.0)

    def maximiser(self, slopes: Array) -> Array:
        """argmax_w s w − h(w) over the box, ±inf where there is none."""
        own = self._meeting(slopes)
        return own.clip(own.base.maximiser(slopes))

    def conjugate(self, slopes: Array) -> Array:
        own = self._meeting(slopes)
        xp = namespace(slopes, own.lower)
        free = own.base.maximiser(slopes)
        best = own.clip(free)
        finite = xp.where(xp.isfinite(best), best, 0.0)
        clipped = xp.where(xp.isfinite(best), slopes * finite - own.base.value(finite), xp.inf)
        # h* is a bound whatever the box, so that it serves where the user's code has no maximiser to give.
        return xp.where((free == best) | xp.isnan(free), own.base.conjugate(slopes), clipped)

    def clip(self, weights: Array) -> Array:
        """The nearest weights inside the box."""
        xp = namespace(weights, self.lower)
        return xp.minimum(xp.maximum(weights, self.lower), self.upper)

    def inside(self, weights: Array) -> Array:
        """As `clip`, in the precision of the box; weights that reach a bound in their own precision are on it."""
        xp, own = namespace(weights, self.lower), self._meeting(weights)
        weights = xp.asarray(weights)
        above, below = weights >= own.upper, weights <= own.lower
        return xp.where(above, self.upper, xp.where(below, self.lower, weights.astype(self.upper.dtype)))

    def excess(self, weights: Array) -> Array:
        """By how much each weight leaves the box, (rows, d)."""
        xp = namespace(weights, self.lower)
        return xp.maximum(xp.maximum(weights - self.upper, self.lower - weights), 0.0)

    def fixed(self, weights: Array) -> Array:
        """Which weights are on a bound other than zero, (rows, d)."""
        return ((weights == self.lower) | (weights == self.upper)) & (weights != 0.0)

    def opened(self, weights: Array) -> BoxedPenalty:
        """The penalty without the bounds that weights (rows, d) are off: at an optimum, those have no say."""
        xp = namespace(weights, self.lower)
        return BoxedPenalty(
            self.base,
            xp.where(weights > self.lower, -xp.inf, self.lower),
            xp.where(weights < self.upper, xp.inf, self.upper),
        )

    def cast(self, dtype: Any) -> BoxedPenalty:
        """The penalty with parameters of this dtype: itself, where they have it."""
        if self.lower.dtype == dtype and self.upper.dtype == dtype:
            return self
        base = self.base.cast(dtype) if isinstance(self.base, PiecewisePenalty) else self.base
        return BoxedPenalty(base, self.lower.astype(dtype), self.upper.astype(dtype))

    def _meeting(self, array: Array) -> BoxedPenalty:
        """The penalty in the precision of an array, so that float32 stays float32."""
        return self.cast(array.dtype) if namespace(array).asarray(array).dtype.kind == "f" else self

    def rows(self, index: Any) -> BoxedPenalty:
        def take(side: Array) -> Array:
            return side[index] if side.shape[0] > 1 else side

        return BoxedPenalty(take_rows(self.base, index), take(self.lower), take(self.upper))

    def columns(self, count: int) -> BoxedPenalty:
        """The penalty of the first `count` coordinates; only where h is one of simjax's."""

        def take(side: Array) -> Array:
            return side[:, :count] if side.shape[1] > 1 else side

        return BoxedPenalty(self.base.columns(count), take(self.lower), take(self.upper))


def piecewise(penalty: Any) -> PiecewisePenalty | None:
    """The c, a, b of a penalty, in a box or not; None for one of the user's own."""
    base = unboxed(penalty)
    return base if isinstance(base, PiecewisePenalty) else None


def unboxed(penalty: Any) -> Any:
    """The penalty without its box."""
    return penalty.base if isinstance(penalty, BoxedPenalty) else penalty


def box_of(penalty: Any) -> BoxedPenalty | None:
    """The penalty, where it has a box; else None."""
    return penalty if isinstance(penalty, BoxedPenalty) else None


def opened_at(penalty: Any, weights: Array) -> Any:
    """`BoxedPenalty.opened`; a penalty without box is itself."""
    return penalty.opened(weights) if isinstance(penalty, BoxedPenalty) else penalty
