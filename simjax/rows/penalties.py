"""Sparsity penalties h(w): value, prox and conjugate, each beside its formula.

Every penalty here is separable over coordinates, convex and smallest at w = 0. Its three functions act elementwise on
arrays of shape (rows, d), and a penalty of your own only has to supply the same three (see `Penalty`). Those that see
groups of coordinates are in `group_penalty`.

The built-in penalties are one family with three parameters per coordinate, a slope c, a curvature a and a knot b:

    h(w) = c |w| + a (|w| − b)₊²

| penalty                    | c        | a | b       |
|----------------------------|----------|---|---------|
| `L1(alpha)`                | α        | 0 | 0       |
| `Perspective(alpha, mu)`   | 2 √(α μ) | α | √(μ/α)  |
| `ElasticNet(alpha, mu)`    | α        | μ | 0       |
| `Ridge(alpha)`             | 0        | α | 0       |
| `NoPenalty()`              | 0        | 0 | 0       |
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from simjax._checks import is_traced, nonnegative_parameter
from simjax._typing import Array, ArrayLike
from simjax.rows.arrays import namespace, offer_pytrees, pytree, pytree_of, smallest_divisor


class Penalty:
    """What a penalty must supply. Subclass it for a penalty of your own.

    The three methods take arrays that broadcast against (rows, d), act elementwise, are traceable by JAX and
    compute in the dtype of their inputs. The penalty must be convex with its minimum h(0) = 0 at zero; `check_penalty`
    tests that numerically before a solve. Parameters that differ from row to row need `rows` as well.

    Examples:
      >>> import simjax
      >>> class Squares(simjax.Penalty):  # h(w) = w²
      ...     value = staticmethod(lambda w: w * w)
      ...     prox = staticmethod(lambda x, step: x / (1.0 + 2.0 * step))
      ...     conjugate = staticmethod(lambda s: s * s / 4.0)
      >>> simjax.solve_rows([[1.0]], [[2.0]], penalty=Squares()).weights.round(6)
      array([[1.]])
    """

    separable = True  # over coordinates; what is not has values for groups of them

    def value(self, weights: Array) -> Array:
        """h(w), elementwise."""
        raise TypeError(f"{type(self).__name__} has no value(weights): a penalty must supply it.")

    def prox(self, points: Array, step: Array) -> Array:
        """argmin_w ½ (w − x)² + step · h(w), elementwise; `step` broadcasts against `points`."""
        raise TypeError(f"{type(self).__name__} has no prox(points, step): a penalty must supply it.")

    def conjugate(self, slopes: Array) -> Array:
        """h*(s) = sup_w s·w − h(w), elementwise; +inf outside its domain."""
        raise TypeError(f"{type(self).__name__} has no conjugate(slopes): a penalty must supply it.")

    def rows(self, index: Any) -> Penalty:
        """The penalty of the rows in `index`; only needed where parameters differ from row to row."""
        return self


def take_rows(penalty: Penalty, index: Any) -> Penalty:
    """`penalty.rows(index)` where the penalty has it; a penalty without `rows` is the same for every row."""
    rows = getattr(penalty, "rows", None)
    return penalty if rows is None else rows(index)


@pytree()
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PiecewisePenalty(Penalty):
    """h(w) = c |w| + a (|w| − b)₊², the family of all built-in penalties.

    Args:
      slope: c ≥ 0, scalar, (d,) or (rows, d).
      curvature: a ≥ 0, likewise.
      knot: b ≥ 0, likewise.
    """

    slope: Array
    curvature: Array
    knot: Array

    def __repr__(self) -> str:
        return f"{type(self).__name__}({short_parameters(self._arguments())})"

    def _arguments(self) -> dict[str, Array]:
        """What the penalty was made of, to be shown."""
        return {"slope": self.slope, "curvature": self.curvature, "knot": self.knot}

    def value(self, weights: Array) -> Array:
        weights, own = self._meeting(weights)
        xp = namespace(weights, own.slope)
        size = xp.abs(weights)
        value = own.slope * size
        if own.bends:
            excess = xp.maximum(size - own.knot, 0.0)
            value = value + own.curvature * excess * excess
        return value

    def prox(self, points: Array, step: Array) -> Array:
        # Stationarity for w > 0:  w + τc + 2τa (w − b)₊ = x.
        points, own = self._meeting(points)
        xp = namespace(points, step, own.slope)
        shrunk = soft(points, step * own.slope, xp)
        if not own.bends:
            return shrunk
        below = xp.minimum(xp.maximum(shrunk, -own.knot), own.knot)
        shrunk = (shrunk - below) / (1.0 + 2.0 * step * own.curvature)
        shrunk += below
        return shrunk

    def prox_slope(self, points: Array, step: Array) -> Array:
        """An element of the prox's generalised derivative: 0 below the threshold, 1 up to the knot, less beyond."""
        points, own = self._meeting(points)
        return own.size_and_slope(namespace(points, own.slope).abs(points) - step * own.slope, step)[1]

    def size_and_slope(self, excess: Array, step: Array) -> tuple[Array, Array]:
        """|prox(x)| and its generalised derivative from the excess |x| − τc."""
        xp = namespace(excess, step, self.slope)
        size = xp.maximum(excess, 0.0)
        slope = xp.asarray(excess > 0.0, dtype=size.dtype)
        if not self.bends:
            return size, slope
        below, bend = xp.minimum(size, self.knot), 1.0 + 2.0 * step * self.curvature
        return below + (size - below) / bend, slope / xp.where(size > self.knot, bend, 1.0)

    def conjugate(self, slopes: Array) -> Array:
        # h*(s) = b e + e²/(4a) with e = (|s| − c)₊; for a = 0 the indicator of e = 0.
        slopes, own = self._meeting(slopes)
        xp = namespace(slopes, own.slope)
        excess = xp.maximum(xp.abs(slopes) - own.slope, 0.0)
        outside = xp.where(excess > 0.0, xp.inf, excess)
        if not own.bends:
            return outside
        quadratic = excess * (own.knot + excess / (4.0 * xp.where(own.curved, own.curvature, 1.0)))
        return xp.where(own.curved, quadratic, outside)

    def conjugate_slope(self, slopes: Array) -> Array:
        """|dh*/ds| = b + e/(2a) where e > 0, else 0 (only meaningful where a > 0)."""
        slopes, own = self._meeting(slopes)
        xp = namespace(slopes, own.slope)
        excess = xp.maximum(xp.abs(slopes) - own.slope, 0.0)
        size = own.knot + excess / (2.0 * xp.where(own.curved, own.curvature, 1.0))
        return xp.where(own.curved & (excess > 0.0), size, 0.0)

    def maximiser(self, slopes: Array) -> Array:
        """argmax_w s w − h(w): sign(s) (b + e/(2a)), 0 where e = 0; ±inf where a = 0 and e > 0."""
        slopes, own = self._meeting(slopes)
        xp = namespace(slopes, own.slope)
        outside = (xp.abs(slopes) > own.slope) & ~own.curved
        return xp.sign(slopes) * xp.where(outside, xp.inf, own.conjugate_slope(slopes))

    @functools.cached_property
    def bends(self) -> bool:
        """Whether any curvature is not zero; under JAX, where that cannot be asked, True."""
        return namespace(self.curvature) is not np or bool(np.any(self.curvature))

    @property
    def curved(self) -> Array:
        """Where there is curvature that one can divide by."""
        return self.curvature > smallest_divisor(self.curvature)

    def cast(self, dtype: Any) -> PiecewisePenalty:
        """The penalty with parameters of this dtype: itself, where they have it."""
        parameters = (self.slope, self.curvature, self.knot)
        if all(getattr(parameter, "dtype", None) == dtype for parameter in parameters):
            return self
        return PiecewisePenalty(*(namespace(parameter).asarray(parameter, dtype=dtype) for parameter in parameters))

    def _meeting(self, array: Array) -> tuple[Array, PiecewisePenalty]:
        """The array, and the penalty in its dtype, so that float32 stays float32."""
        array = namespace(array, self.slope).asarray(array)
        return (array, self.cast(array.dtype)) if array.dtype.kind == "f" else (array, self)

    def rows(self, index: Any) -> PiecewisePenalty:
        def take(parameter: Array) -> Array:
            return parameter[index] if np.ndim(parameter) == 2 and np.shape(parameter)[0] > 1 else parameter

        return PiecewisePenalty(take(self.slope), take(self.curvature), take(self.knot))

    def columns(self, count: int) -> PiecewisePenalty:
        """The penalty of the first `count` coordinates."""

        def take(parameter: Array) -> Array:
            return parameter[..., :count] if np.ndim(parameter) and np.shape(parameter)[-1] > 1 else parameter

        return PiecewisePenalty(take(self.slope), take(self.curvature), take(self.knot))

    def scaled(self, point_scale: Array, value_scale: Array) -> PiecewisePenalty:
        """The penalty w' ↦ q h(p w'), again of the family: (q p c, q p² a, b / p)."""
        return PiecewisePenalty(
            value_scale * point_scale * self.slope,
            (value_scale * point_scale) * (point_scale * self.curvature),  # p² alone may overflow
            self.knot / point_scale,
        )


def total_value(penalty: Penalty, weights: Array) -> Array:
    """h(w) of each row, (rows,), for weights (rows, d): the sum over its coordinates, or over its groups."""
    value = penalty.value(weights)
    if getattr(penalty, "separable", True):
        value = namespace(value, weights).broadcast_to(value, np.shape(weights))
    return namespace(value).sum(value, axis=1)


def short_parameters(parameters: Mapping[str, Any]) -> str:
    """Names and values for `repr`, in one line."""
    return ", ".join(f"{name}={_short(value)}" for name, value in parameters.items())


def _short(parameter: Any) -> str:
    """A number as it is, an array by its shape; what is no number, such as a place in a tree of axes, as it says."""
    if is_traced(parameter) or not isinstance(getattr(parameter, "shape", None), tuple):
        return str(parameter)
    return f"{float(parameter):g}" if parameter.shape == () else f"<array {parameter.shape}>"


def soft(points: Array, threshold: Array, xp: Any = None) -> Array:
    """sign(x) (|x| − threshold)₊, the prox of threshold·|·|, as x − clip(x, ±threshold)."""
    xp = namespace(points, threshold) if xp is None else xp
    return points - xp.minimum(xp.maximum(points, -threshold), threshold)


class _Named(PiecewisePenalty):
    """A penalty of the family that keeps what its constructor was told, and is a pytree of that.

    c, a and b are worked out when asked for, so that they are traced wherever the parameters are.
    """

    alpha: Array
    mu: Array

    def _set(self, **parameters: Any) -> None:
        offer_pytrees()
        self.__dict__.update(parameters)  # the class is frozen

    def _arguments(self) -> dict[str, Array]:
        return {name: self.__dict__[name] for name in ("alpha", "mu") if name in self.__dict__}

    def _nothing(self) -> Array:
        return namespace(self.alpha).zeros_like(self.alpha)


@pytree_of(("alpha",))
class L1(_Named):
    """h(w) = α |w|: the robustness objective of the SIM paper, eq. (6) and (11), where α is called β.

    Args:
      alpha: penalty weight α ≥ 0: a scalar, one per coordinate (d,), or one per row and coordinate (rows, d).

    Raises:
      ValueError: if alpha is negative or not finite.

    Examples:
      >>> import simjax
      >>> simjax.L1(0.5).value(-2.0).item()
      1.0
    """

    def __init__(self, alpha: ArrayLike) -> None:
        self._set(alpha=nonnegative_parameter("alpha", alpha))

    slope = property(lambda self: self.alpha)
    curvature = knot = property(_Named._nothing)


@pytree_of(("alpha", "mu"))
class Perspective(_Named):
    """h(w) = min over t in [0, 1] of α w²/t + μ t: the perspective relaxation, SIM paper eq. (4) and (10).

    Minimising over t leaves 2√(αμ)|w| up to |w| = √(μ/α) and α w² + μ beyond: the reverse Huber function. The paper's
    eqs. (5) and (10) print no Σt term; without it t = 1 is optimal and the problem is plain ridge regression.

    Args:
      alpha: weight of w²/t, α ≥ 0; scalar, (d,) or (rows, d).
      mu: weight of t, μ ≥ 0, of the same kinds; None means mu = alpha.

    Raises:
      ValueError: if alpha or mu is negative or not finite.

    Examples:
      >>> import simjax
      >>> simjax.Perspective(1.0, mu=4.0).value([1.0, 3.0])  # 4|w| up to the knot |w| = 2, w² + 4 beyond
      array([ 4., 13.])
    """

    def __init__(self, alpha: ArrayLike, mu: ArrayLike | None = None) -> None:
        alpha, mu = _weight_pair(nonnegative_parameter("alpha", alpha), mu)
        self._set(alpha=alpha, mu=mu)

    curvature = property(lambda self: self.alpha)

    @property
    def slope(self) -> Array:
        xp = namespace(self.alpha, self.mu)
        return 2.0 * xp.sqrt(self.alpha) * xp.sqrt(self.mu)

    @property
    def knot(self) -> Array:
        # α = 0 lets t go to 0 for free: h = 0. The knot is then irrelevant, so any finite value will do.
        xp = namespace(self.alpha, self.mu)
        return xp.sqrt(self.mu) / xp.sqrt(xp.where(self.alpha > 0.0, self.alpha, 1.0))


@pytree_of(("alpha", "mu"))
class ElasticNet(_Named):
    """h(w) = α |w| + μ w².

    Args:
      alpha: weight of |w|, α ≥ 0; scalar, (d,) or (rows, d).
      mu: weight of w², μ ≥ 0, of the same kinds; None means mu = alpha.

    Raises:
      ValueError: if alpha or mu is negative or not finite.

    Examples:
      >>> import simjax
      >>> simjax.ElasticNet(1.0, mu=0.5).value(-2.0).item()
      4.0
    """

    def __init__(self, alpha: ArrayLike, mu: ArrayLike | None = None) -> None:
        alpha, mu = _weight_pair(nonnegative_parameter("alpha", alpha), mu)
        self._set(alpha=alpha, mu=mu)

    slope = property(lambda self: self.alpha)
    curvature = property(lambda self: self.mu)
    knot = property(_Named._nothing)


@pytree_of(("alpha",))
class Ridge(_Named):
    """h(w) = α w².

    Args:
      alpha: penalty weight α ≥ 0; scalar, (d,) or (rows, d).

    Raises:
      ValueError: if alpha is negative or not finite.

    Examples:
      >>> import simjax
      >>> simjax.Ridge(0.5).value(-2.0).item()
      2.0
    """

    def __init__(self, alpha: ArrayLike) -> None:
        self._set(alpha=nonnegative_parameter("alpha", alpha))

    curvature = property(lambda self: self.alpha)
    slope = knot = property(_Named._nothing)


@pytree_of(())
class NoPenalty(_Named):
    """h(w) = 0: least squares, or pure feasibility under exact matching (SIM paper eq. 8 and 9).

    Examples:
      >>> import simjax
      >>> simjax.solve_rows([[1.0], [1.0]], [[1.0], [3.0]], penalty=simjax.NoPenalty()).weights
      array([[2.]])
    """

    def __init__(self) -> None:
        self._set()

    slope = curvature = knot = property(lambda self: np.zeros(()))


def _weight_pair(alpha: Any, mu: Any) -> tuple[Any, Any]:
    """Alpha and mu in one shape; None for mu means mu = alpha."""
    mu = alpha if mu is None else nonnegative_parameter("mu", mu)
    try:
        shape = np.broadcast_shapes(alpha.shape, mu.shape)
    except ValueError as error:
        raise ValueError(f"mu must broadcast against alpha of shape {alpha.shape}, got shape {mu.shape}.") from error
    return namespace(alpha).broadcast_to(alpha, shape), namespace(mu).broadcast_to(mu, shape)


OBJECTIVES = {
    "perspective": lambda alpha, mu: Perspective(alpha, mu),
    "l1": lambda alpha, mu: L1(alpha),
    "elastic_net": lambda alpha, mu: ElasticNet(alpha, mu),
    "ridge": lambda alpha, mu: Ridge(alpha),
    "least_squares": lambda alpha, mu: NoPenalty(),
}
