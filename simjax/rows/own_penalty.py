"""A penalty of the user's own: in the form that solvers and certificates take, and tried out before a solve."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from simjax._typing import Array
from simjax.rows.arrays import namespace, pytree, rounding_unit, settings_of_its_own
from simjax.rows.boxed import BoxedPenalty
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.penalties import Penalty, PiecewisePenalty, soft, take_rows


class Opaque:
    """A penalty of the user's own, compared by identity."""

    def __init__(self, penalty: Penalty) -> None:
        self.penalty = penalty

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other.penalty is self.penalty

    def __hash__(self) -> int:
        return id(self.penalty)


@pytree("own")
@dataclasses.dataclass(frozen=True, eq=False)
class ScaledPenalty(Penalty):
    """w' ↦ q h(p w') for a penalty h of the user's own (`point_scale` p > 0, `value_scale` q > 0, (1 or rows, 1 or d)).

    It is what solvers and certificates get to see of such a penalty, which need not be a pytree, nor hashable. h is
    written with `jax.numpy`: NumPy arrays reach it as JAX's of their precision, and its answers come back as NumPy's.
    """

    point_scale: Array
    value_scale: Array
    own: Opaque

    @property
    def penalty(self) -> Penalty:
        """The user's penalty h."""
        return self.own.penalty

    def value(self, weights: Array) -> Array:
        return self.value_scale * _asked(self.penalty.value, self.point_scale * weights)

    def prox(self, points: Array, step: Array) -> Array:
        p = self.point_scale
        return _asked(self.penalty.prox, p * points, step * self.value_scale * p * p) / p

    def prox_slope(self, points: Array, step: Array) -> Array:
        """The prox's derivative by automatic differentiation."""

        def derivative(x: Array, step: Array) -> Array:
            import jax

            return jax.jvp(lambda x: self.penalty.prox(x, step), (x,), (jax.numpy.ones_like(x),))[1]

        p = self.point_scale
        return _asked(derivative, p * points, step * self.value_scale * p * p)

    def conjugate(self, slopes: Array) -> Array:
        return self.value_scale * _asked(self.penalty.conjugate, slopes / (self.value_scale * self.point_scale))

    def maximiser(self, slopes: Array) -> Array:
        """argmax_w s w − h(w), the derivative of h*, by automatic differentiation; ±inf outside the domain of h*."""

        def derivative(s: Array) -> Array:
            import jax

            value, slope = jax.jvp(self.penalty.conjugate, (s,), (jax.numpy.ones_like(s),))
            return jax.numpy.where(jax.numpy.isinf(value), jax.numpy.sign(s) * jax.numpy.inf, slope)

        p = self.point_scale
        return _asked(derivative, slopes / (self.value_scale * p)) / p

    def rows(self, index: Any) -> ScaledPenalty:
        def take(scale: Array) -> Array:
            return scale[index] if np.ndim(scale) == 2 and np.shape(scale)[0] > 1 else scale

        own = Opaque(take_rows(self.penalty, np.asarray(index)))
        return ScaledPenalty(take(self.point_scale), take(self.value_scale), own)


def _asked(function: Callable[..., Array], *arrays: Array) -> Array:
    """What a function of the user's says of arrays: traced ones as they are, NumPy's in their own precision."""
    if namespace(*arrays) is not np:
        return function(*arrays)
    import jax

    with settings_of_its_own():
        return np.array(function(*(jax.numpy.asarray(array) for array in arrays)))


def traceable(penalty: Penalty) -> PiecewisePenalty | GroupPenalty | ScaledPenalty | BoxedPenalty:
    """The penalty in a form that takes NumPy arrays and traced ones, and can be an argument of a compiled function."""
    if isinstance(penalty, BoxedPenalty):
        return dataclasses.replace(penalty, base=traceable(penalty.base))
    if isinstance(penalty, (PiecewisePenalty, GroupPenalty, ScaledPenalty)):
        return penalty
    return ScaledPenalty(np.ones((1, 1)), np.ones((1, 1)), Opaque(penalty))


_SAMPLED = (-30.0, -2.0, -0.3, -1e-3, 0.0, 1e-3, 0.3, 2.0, 30.0)


def check_penalty(penalty: Any, rows: int = 1, width: int = 1) -> None:
    """Check that `penalty` is a penalty: three functions, smallest at zero, prox and conjugate consistent.

    A penalty of the user's own is tried out at a few points, in arrays of shape (rows, width).

    Raises:
      TypeError: if a function is missing.
      ValueError: if they contradict each other at the sampled points (Fenchel–Young with equality at the prox).
    """
    if isinstance(penalty, type):
        raise TypeError(
            f"penalty must be an object, got the class {penalty.__name__}: call it, as in {penalty.__name__}(0.1)."
        )
    if isinstance(penalty, str) or (np.ndim(penalty) == 0 and isinstance(penalty, int | float | np.number)):
        weight = 0.1 if isinstance(penalty, str) else penalty
        raise TypeError(f"penalty must be a penalty object such as simjax.L1({weight}), got {penalty!r}.")
    missing = [name for name in ("value", "prox", "conjugate") if not callable(getattr(penalty, name, None))]
    if missing:
        raise TypeError(
            f"penalty must supply value(weights), prox(points, step) and conjugate(slopes); "
            f"{type(penalty).__name__} lacks {', '.join(missing)}."
        )
    if isinstance(penalty, (PiecewisePenalty, GroupPenalty)):
        return
    name, asked = type(penalty).__name__, traceable(penalty)
    for point in _SAMPLED:
        x = np.full((rows, width), point)
        try:
            value = asked.value(x)
        except ValueError as error:
            raise ValueError(
                f"penalty {name} must take weights of shape ({rows}, {width}), and says: {error}"
            ) from error
        if not np.all(value >= 0.0) or (point == 0.0 and np.any(value != 0.0)):
            raise ValueError(
                f"penalty {name} must satisfy h(0) = 0 and h(w) >= 0 everywhere; at {point:g} it does not."
            )
        for step in (0.1, 1.0, 10.0):
            w = asked.prox(x, np.full_like(x, step))
            # A hair towards zero, so that the rounding of x − w does not push the slope out of the conjugate's domain.
            hair = 8.0 * rounding_unit(x) * (np.abs(x) + np.abs(w)) / step
            slope = soft((x - w) / step, hair)
            with np.errstate(invalid="ignore"):
                mismatch = np.abs(asked.value(w) + asked.conjugate(slope) - slope * w)
            relative = mismatch / (1.0 + np.abs(slope * w))
            if not np.all(relative <= 1e-9):
                raise ValueError(
                    f"penalty {name}: value, prox and conjugate contradict each other; at w = prox({point:g}) for "
                    f"step {step:g}, h(w) + h*(s) must equal s·w with s = (x − w)/step, but differs by up to "
                    f"{float(np.max(relative)):.1e}."
                )
