"""Sparsity penalties h(w): value, prox and conjugate, each beside its formula.

Every penalty is separable over coordinates, convex and smallest at w = 0. Its three functions act elementwise on arrays
of shape (rows, d), and a penalty of your own only has to supply the same three (see `Penalty`).

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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simjax._checks import nonnegative_parameter

Array = Any

# A curvature below this counts as none where it divides: 1/(4a) would overflow, or a be flushed to zero.
FLAT = 1e-300


class Penalty:
    """What a penalty must supply. Subclass it for a penalty of your own.

    The three methods take arrays that broadcast against (rows, d), act elementwise, are traceable by JAX and
    compute in the dtype of their inputs. The penalty must be convex with its minimum h(0) = 0 at zero; `check_penalty`
    tests that numerically before a solve. Parameters that differ from row to row need `rows` as well.
    """

    def value(self, weights: Array) -> Array:
        """h(w), elementwise."""
        raise TypeError(f"{type(self).__name__} has no value(weights): a penalty must supply it.")

    def prox(self, points: Array, step: Array) -> Array:
        """argmin_w ½ (w − x)² + step · h(w), elementwise; `step` broadcasts against `points`."""
        raise TypeError(f"{type(self).__name__} has no prox(points, step): a penalty must supply it.")

    def conjugate(self, slopes: Array) -> Array:
        """h*(s) = sup_w s·w − h(w), elementwise; +inf outside its domain."""
        raise TypeError(f"{type(self).__name__} has no conjugate(slopes): a penalty must supply it.")

    def rows(self, index: Array) -> Penalty:
        """The penalty of the rows in `index`; only needed where parameters differ from row to row."""
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
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

    def value(self, weights: Array) -> Array:
        size = jnp.abs(weights)
        excess = jnp.maximum(size - self.knot, 0.0)
        return self.slope * size + self.curvature * excess * excess

    def prox(self, points: Array, step: Array) -> Array:
        # Stationarity for w > 0:  w + τc + 2τa (w − b)₊ = x.
        shrunk = jnp.maximum(jnp.abs(points) - step * self.slope, 0.0)
        bend = 2.0 * step * self.curvature
        return jnp.sign(points) * jnp.where(shrunk <= self.knot, shrunk, (shrunk + bend * self.knot) / (1.0 + bend))

    def prox_slope(self, points: Array, step: Array) -> Array:
        """An element of the prox's generalised derivative: 0 below the threshold, 1 up to the knot, less beyond."""
        shrunk = jnp.abs(points) - step * self.slope
        bend = 2.0 * step * self.curvature
        return jnp.where(shrunk <= 0.0, 0.0, jnp.where(shrunk <= self.knot, 1.0, 1.0 / (1.0 + bend)))

    def conjugate(self, slopes: Array) -> Array:
        # h*(s) = b e + e²/(4a) with e = (|s| − c)₊; for a = 0 the indicator of e = 0.
        excess = jnp.maximum(jnp.abs(slopes) - self.slope, 0.0)
        curved = self.curvature > FLAT
        quadratic = excess * (self.knot + excess / (4.0 * jnp.where(curved, self.curvature, 1.0)))
        return jnp.where(curved, quadratic, jnp.where(excess > 0.0, jnp.inf, 0.0))

    def conjugate_slope(self, slopes: Array) -> Array:
        """|dh*/ds| = b + e/(2a) where e > 0, else 0 (only meaningful where a > 0)."""
        excess = jnp.maximum(jnp.abs(slopes) - self.slope, 0.0)
        curved = self.curvature > FLAT
        size = self.knot + excess / (2.0 * jnp.where(curved, self.curvature, 1.0))
        return jnp.where(curved & (excess > 0.0), size, 0.0)

    def rows(self, index: Array) -> PiecewisePenalty:
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
            value_scale * point_scale**2 * self.curvature,
            self.knot / point_scale,
        )


def L1(alpha: Array) -> PiecewisePenalty:
    """h(w) = α |w|: the robustness objective of the SIM paper, eq. (6) and (11), where α is called β.

    Args:
      alpha: penalty weight α ≥ 0: a scalar, one per coordinate (d,), or one per row and coordinate (rows, d).

    Raises:
      ValueError: if alpha is negative or not finite.
    """
    alpha = nonnegative_parameter("alpha", alpha)
    zero = np.zeros_like(alpha)
    return PiecewisePenalty(alpha, zero, zero)


def Perspective(alpha: Array, mu: Array = None) -> PiecewisePenalty:
    """h(w) = min over t in [0, 1] of α w²/t + μ t: the perspective relaxation, SIM paper eq. (4) and (10).

    Minimising over t leaves 2√(αμ)|w| up to |w| = √(μ/α) and α w² + μ beyond: the reverse Huber function. The paper's
    eqs. (5) and (10) print no Σt term; without it t = 1 is optimal and the problem is plain ridge regression.

    Args:
      alpha: weight of w²/t, α ≥ 0; scalar, (d,) or (rows, d).
      mu: weight of t, μ ≥ 0, of the same kinds; None means mu = alpha.

    Raises:
      ValueError: if alpha or mu is negative or not finite.
    """
    alpha = nonnegative_parameter("alpha", alpha)
    alpha, mu = _weight_pair(alpha, mu)
    # α = 0 lets t go to 0 for free: h = 0. The knot is then irrelevant, so any finite value will do.
    knot = np.sqrt(mu) / np.sqrt(np.where(alpha > 0.0, alpha, 1.0))
    return PiecewisePenalty(2.0 * np.sqrt(alpha) * np.sqrt(mu), np.array(alpha), knot)


def ElasticNet(alpha: Array, mu: Array = None) -> PiecewisePenalty:
    """h(w) = α |w| + μ w².

    Args:
      alpha: weight of |w|, α ≥ 0; scalar, (d,) or (rows, d).
      mu: weight of w², μ ≥ 0, of the same kinds; None means mu = alpha.

    Raises:
      ValueError: if alpha or mu is negative or not finite.
    """
    alpha = nonnegative_parameter("alpha", alpha)
    alpha, mu = _weight_pair(alpha, mu)
    return PiecewisePenalty(np.array(alpha), np.array(mu), np.zeros_like(alpha))


def _weight_pair(alpha: np.ndarray, mu: Any) -> tuple[np.ndarray, np.ndarray]:
    """Alpha and mu in one shape; None for mu means mu = alpha."""
    mu = alpha if mu is None else nonnegative_parameter("mu", mu)
    try:
        broadcast = np.broadcast_arrays(alpha, mu)
    except ValueError as error:
        raise ValueError(f"mu must broadcast against alpha of shape {alpha.shape}, got shape {mu.shape}.") from error
    return broadcast[0], broadcast[1]


def Ridge(alpha: Array) -> PiecewisePenalty:
    """h(w) = α w².

    Args:
      alpha: penalty weight α ≥ 0; scalar, (d,) or (rows, d).

    Raises:
      ValueError: if alpha is negative or not finite.
    """
    alpha = nonnegative_parameter("alpha", alpha)
    zero = np.zeros_like(alpha)
    return PiecewisePenalty(zero, alpha, zero)


def NoPenalty() -> PiecewisePenalty:
    """h(w) = 0: least squares, or pure feasibility under exact matching (SIM paper eq. 8 and 9)."""
    zero = np.zeros(())
    return PiecewisePenalty(zero, zero, zero)


OBJECTIVES = {
    "perspective": lambda alpha, mu: Perspective(alpha, mu),
    "l1": lambda alpha, mu: L1(alpha),
    "elastic_net": lambda alpha, mu: ElasticNet(alpha, mu),
    "ridge": lambda alpha, mu: Ridge(alpha),
    "least_squares": lambda alpha, mu: NoPenalty(),
}


class Opaque:
    """A penalty of the user's own, compared by identity."""

    def __init__(self, penalty: Penalty) -> None:
        self.penalty = penalty

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other.penalty is self.penalty

    def __hash__(self) -> int:
        return id(self.penalty)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledPenalty(Penalty):
    """w' ↦ q h(p w') for a penalty h of the user's own (`point_scale` p > 0, `value_scale` q > 0, (rows, 1 or d)).

    It is what JAX gets to see of such a penalty, which need not be a pytree, nor hashable.
    """

    point_scale: Array
    value_scale: Array
    own: Opaque = dataclasses.field(metadata={"static": True})

    @property
    def penalty(self) -> Penalty:
        """The user's penalty h."""
        return self.own.penalty

    def value(self, weights: Array) -> Array:
        return self.value_scale * self.penalty.value(self.point_scale * weights)

    def prox(self, points: Array, step: Array) -> Array:
        p = self.point_scale
        return self.penalty.prox(p * points, step * self.value_scale * p * p) / p

    def prox_slope(self, points: Array, step: Array) -> Array:
        return jax.jvp(lambda x: self.prox(x, step), (points,), (jnp.ones_like(points),))[1]

    def conjugate(self, slopes: Array) -> Array:
        return self.value_scale * self.penalty.conjugate(slopes / (self.value_scale * self.point_scale))


def traceable(penalty: Penalty) -> Penalty:
    """The penalty in a form that can be an argument of a compiled function."""
    if isinstance(penalty, (PiecewisePenalty, ScaledPenalty)):
        return penalty
    return ScaledPenalty(np.ones((1, 1)), np.ones((1, 1)), Opaque(penalty))


def check_penalty(penalty: Any, rows: int = 1, width: int = 1) -> None:
    """Check that `penalty` is a penalty: three functions, smallest at zero, prox and conjugate consistent.

    A penalty of the user's own is tried out at a few points, in arrays of shape (rows, width).

    Raises:
      TypeError: if a function is missing.
      ValueError: if they contradict each other at the sampled points (Fenchel–Young with equality at the prox).
    """
    if isinstance(penalty, type):
        raise TypeError(f"penalty must be an object, got the class {penalty.__name__}; make one of it.")
    missing = [name for name in ("value", "prox", "conjugate") if not callable(getattr(penalty, name, None))]
    if missing:
        raise TypeError(
            f"penalty must supply value(weights), prox(points, step) and conjugate(slopes); "
            f"{type(penalty).__name__} lacks {', '.join(missing)}."
        )
    if isinstance(penalty, PiecewisePenalty):
        return
    name = type(penalty).__name__
    with jax.enable_x64(True):
        for point in (-30.0, -2.0, -0.3, -1e-3, 0.0, 1e-3, 0.3, 2.0, 30.0):
            x = jnp.full((rows, width), point)
            value = penalty.value(x)
            if not bool(jnp.all(value >= 0.0)) or (point == 0.0 and bool(jnp.any(value != 0.0))):
                raise ValueError(
                    f"penalty {name} must satisfy h(0) = 0 and h(w) >= 0 everywhere; at {point:g} it does not."
                )
            for step in (0.1, 1.0, 10.0):
                w = penalty.prox(x, jnp.full_like(x, step))
                # A hair towards zero, so that rounding does not push a slope out of the conjugate's domain.
                slope = (1.0 - 1e-12) * (x - w) / step
                mismatch = penalty.value(w) + penalty.conjugate(slope) - slope * w
                relative = jnp.abs(mismatch) / (1.0 + jnp.abs(slope * w))
                if not bool(jnp.all(relative <= 1e-9)):
                    raise ValueError(
                        f"penalty {name}: value, prox and conjugate contradict each other; at w = prox({point:g}) for "
                        f"step {step:g}, h(w) + h*(s) must equal s·w with s = (x − w)/step, but differs by up to "
                        f"{float(jnp.max(relative)):.1e}."
                    )
