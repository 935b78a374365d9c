"""Row constraints: weighted ℓ1 balls, Metzler rows and boxes, and the supports of models.

A constraint object (`L1Ball`, `MetzlerRow`, `Box`, `Free`) says what the user means; `RowBound` is what the solvers and
the certificate work with: per row, coordinate weights ω (0 for a coordinate it does not see), a tilt δ (not 0 for the
coordinate of a Metzler row that counts with its sign) and a radius κ (inf for no constraint).

    Σ_j ω_j |w_j| + δ_j w_j ≤ κ

A box is separable, as the penalties are, so that it goes with the penalty: see `boxed.BoxedPenalty`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from simjax._checks import float_array, is_traced, positive_integer
from simjax._typing import Array, ArrayLike
from simjax._values import Value
from simjax.rows.arrays import namespace, offer_pytrees, pytree, pytree_of, rounding_unit, row_sums


@pytree("size")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RowBound(Value):
    """Σ_j ω_j |w_j| + δ_j w_j ≤ κ for each row.

    Attributes:
      omega: ω ≥ 0, (1 or rows, d).
      radius: κ, (rows, 1), inf for no constraint; κ > 0 without a tilt.
      size: ω_j = δ_j = 0 from this coordinate on, so that the search for the multiplier need not look there.
      tilt: δ ≥ 0, (rows, d), positive for at most one coordinate of a row, which has ω = 0; None for δ = 0.
    """

    omega: Array
    radius: Array
    size: int
    tilt: Array | None = None

    def take(self, index: Any) -> RowBound:
        """The constraints of the rows in `index`."""
        omega = self.omega[index] if self.omega.shape[0] > 1 else self.omega
        return RowBound(omega, self.radius[index], self.size, None if self.tilt is None else self.tilt[index])

    def columns(self) -> RowBound:
        """The constraint on the first `size` coordinates, which are all it depends on."""
        tilt = None if self.tilt is None else self.tilt[:, : self.size]
        return RowBound(self.omega[:, : self.size], self.radius, self.size, tilt)

    def cast(self, dtype: Any) -> RowBound:
        """The constraint in numbers of this dtype: itself, where it is."""
        if self.omega.dtype == dtype and self.radius.dtype == dtype:
            return self
        tilt = None if self.tilt is None else self.tilt.astype(dtype)
        return RowBound(self.omega.astype(dtype), self.radius.astype(dtype), self.size, tilt)

    def norm(self, weights: Array) -> Array:
        """Σ_j ω_j |w_j| + δ_j w_j, (rows, 1); a norm where there is no tilt."""
        size = row_sums(self.omega, namespace(weights, self.omega).abs(weights))
        return size if self.tilt is None else size + row_sums(self.tilt, weights)

    def normal(self, sign: Array) -> Array:
        """ω sign(w) + δ, the gradient of the norm on the orthant of `sign`, (rows, d)."""
        return self.omega * sign if self.tilt is None else self.omega * sign + self.tilt

    def inside(self, weights: Array, fixed: Array | None = None) -> Array:
        """The weights moved inside: scaled on its coordinates, or lowered on the one that counts with its sign.

        A tilted coordinate that is zero stays so where scaling the others will do, and so do weights that are `fixed`.
        """
        xp = namespace(weights, self.omega)
        norm, radius = self.norm(weights), self.radius
        over = norm > radius
        if xp is np and not over.any():
            return weights
        shrink = xp.where(over, radius / xp.where(norm > 0.0, norm, 1.0), 1.0)
        if fixed is not None:
            held = row_sums(self.omega, xp.abs(xp.where(fixed, weights, 0.0)))
            enough = over & (held < radius) & (norm > held)
            rest = (xp.where(enough, radius, 1.0) - held) / xp.where(enough, norm - held, 1.0)
            shrink = xp.where(enough, xp.where(fixed, 1.0, rest), shrink)
        scaled = weights * xp.where(self.omega > 0.0, shrink, 1.0)
        if self.tilt is None:
            return scaled
        tilted = self.tilt > 0.0
        lowers = xp.any(tilted & (weights != 0.0), axis=1, keepdims=True) | (radius <= 0.0)
        excess = xp.where(over, norm - xp.where(over, radius, 0.0), 0.0)
        # Half an ulp of κ more, so that the rounding of the sum cannot leave an excess.
        hair = rounding_unit(norm) * (xp.abs(xp.where(over, radius, 0.0)) + xp.abs(norm))
        excess = xp.where(over, excess + hair, 0.0)
        lowered = xp.where(tilted, weights - excess / xp.where(tilted, self.tilt, 1.0), weights)
        return xp.where(lowers, lowered, scaled)

    @property
    def sees(self) -> Array:
        """Which coordinates the constraint bounds, (rows, d)."""
        seen = self.omega > 0.0 if self.tilt is None else (self.omega > 0.0) | (self.tilt > 0.0)
        return seen & namespace(self.radius, self.omega).isfinite(self.radius)


@pytree_of(("radius", "weights"), ("size",))
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class L1Ball(Value):
    """Σ_{j < size} weights_j |w_j| ≤ radius: the well-posedness constraint ‖a‖₁ ≤ κ of the SIM paper, eq. (2d).

    Args:
      radius: κ > 0, a scalar or one per row (rows,); inf for a row without the constraint.
      size: the ball binds the first `size` coordinates, the others are free; None binds all of them.
      weights: ω > 0, a scalar, (size,) or (rows, size). With ω_j = s_i / s_j the ball sees a state-rescaled A.

    Raises:
      TypeError: for values that are not real numbers.
      ValueError: for a radius or weights that are not positive (weights also finite), or an impossible size.

    Examples:
      >>> import numpy as np, simjax
      >>> ball = simjax.L1Ball(1.0)
      >>> solution = simjax.solve_rows(np.eye(2), [[3.0], [1.0]], penalty=simjax.NoPenalty(), constraint=ball)
      >>> solution.weights.round(6)  # the point of the ball that is closest to (3, 1)
      array([[1., 0.]])
    """

    radius: ArrayLike
    size: int | None = None
    weights: ArrayLike = 1.0

    def __post_init__(self) -> None:
        offer_pytrees()
        radius = _numbers("radius", self.radius, infinite=True)
        weights = _numbers("weights", self.weights)
        if radius.ndim > 1 or _known(radius <= 0.0):
            raise ValueError(f"radius must be a positive scalar or (rows,) array, got {self.radius!r}.")
        if weights.ndim > 2 or _known(weights <= 0.0):
            raise ValueError("weights of the ball must be positive: a scalar, (size,) or (rows, size).")
        if self.size is not None:
            positive_integer("size", self.size)
        object.__setattr__(self, "radius", radius)
        object.__setattr__(self, "weights", weights)

    def bound(self, rows: int, width: int, support: np.ndarray | None = None) -> RowBound:
        """The constraint for `rows` rows of `width` coordinates; it is the same for any `support`.

        Raises:
          ValueError: if size, weights or radius do not fit these numbers.
        """
        size = width if self.size is None else self.size
        radius, omega = _array(self.radius), _array(self.weights)
        if size > width:
            raise ValueError(f"size of the ball must be at most the number of coordinates {width}, got {size}.")
        if omega.ndim and omega.shape[-1] != size:
            raise ValueError(f"weights of the ball must have {size} entries a row, got shape {omega.shape}.")
        if omega.ndim == 2 and omega.shape[0] not in (1, rows):
            raise ValueError(f"weights of the ball must be for {rows} rows, got shape {omega.shape}.")
        xp = namespace(omega)
        full = xp.broadcast_to(omega, (omega.shape[0] if omega.ndim == 2 else 1, size))
        return RowBound(xp.pad(full, ((0, 0), (0, width - size))), _radius_of_rows(radius, rows), size)


@pytree_of(("radius", "diagonal", "weights"), ("size",))
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MetzlerRow(Value):
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

    Examples:
      >>> import simjax
      >>> row = simjax.MetzlerRow(0.5, diagonal=[0])  # w₀ + |w₁| ≤ 0.5
      >>> free = simjax.NoPenalty()
      >>> simjax.solve_rows([[1.0, 0.0], [0.0, 1.0]], [[-3.0], [2.0]], penalty=free, constraint=row).weights.round(6)
      array([[-3.,  2.]])
    """

    radius: ArrayLike
    diagonal: ArrayLike
    size: int | None = None
    weights: ArrayLike = 1.0

    def __post_init__(self) -> None:
        radius = _numbers("radius", self.radius, infinite=True)
        diagonal = _array(self.diagonal)
        if radius.ndim > 1 or _known(radius == -np.inf):
            raise ValueError(f"radius must be a scalar or (rows,) array above -inf, got {self.radius!r}.")
        if not np.issubdtype(diagonal.dtype, np.integer):
            raise TypeError(f"diagonal must be integers, got dtype {diagonal.dtype}.")
        if diagonal.ndim != 1:
            raise ValueError(f"diagonal must have one entry a row, got shape {diagonal.shape}.")
        plain = L1Ball(1.0, self.size, self.weights)  # checks size and weights
        object.__setattr__(self, "radius", radius)
        object.__setattr__(self, "diagonal", diagonal)
        object.__setattr__(self, "weights", plain.weights)

    def bound(self, rows: int, width: int, support: np.ndarray | None = None) -> RowBound:
        """The constraint for `rows` rows of `width` coordinates, of which `support` (rows, width) may be nonzero.

        Raises:
          ValueError: if size, weights, radius or diagonal do not fit these numbers, or no weights meet the constraint.
        """
        plain = L1Ball(1.0, self.size, self.weights).bound(rows, width)
        diagonal, radius = _array(self.diagonal), _radius_of_rows(_array(self.radius), rows)
        if diagonal.shape != (rows,) or _known((diagonal < -1) | (diagonal >= plain.size)):
            raise ValueError(
                f"diagonal must be ({rows},) numbers from -1 to {plain.size - 1}, got shape {diagonal.shape}"
                + (f" with entries from {diagonal.min()} to {diagonal.max()}." if diagonal.size else ".")
            )
        xp = namespace(diagonal, plain.omega, radius, support)
        own = diagonal[:, None] == xp.arange(width)
        omega = xp.asarray(plain.omega, dtype=radius.dtype)
        if _known(own & (omega != 1.0)):
            raise ValueError("weights must be 1 at the diagonal of each row.")
        tilted = own if support is None else own & support
        stuck = (radius <= 0.0) & ~xp.any(tilted, axis=1, keepdims=True)
        if _known(stuck):
            row = np.flatnonzero(stuck)[0]
            raise ValueError(
                "radius must be positive where the support excludes the diagonal or there is none; row "
                f"{row} has {radius[row, 0]:g}."
            )
        tilt = xp.asarray(tilted, dtype=omega.dtype)
        return RowBound(xp.where(own, 0.0, omega), radius, plain.size, tilt)


def _numbers(name: str, value: Any, *, infinite: bool = False) -> Any:
    """`value` as `float_array` checks it, or as it is where it is traced."""
    return 1.0 * value if is_traced(value) else float_array(name, value, infinite=infinite)


def _array(value: Any) -> Any:
    """An array of NumPy's, unless it is one of JAX's."""
    return value if namespace(value) is not np else np.asarray(value)


def _known(flags: Any) -> bool:
    """Whether any flag is known to be raised: of traced ones nothing is."""
    return not is_traced(flags) and bool(np.any(flags))


def _radius_of_rows(radius: Any, rows: int) -> Any:
    """A radius as (rows, 1)."""
    if radius.ndim == 1 and radius.shape != (rows,):
        raise ValueError(f"radius must be a scalar or ({rows},), got shape {radius.shape}.")
    column = namespace(radius).broadcast_to(radius.reshape(-1, 1), (rows, 1))
    return column if namespace(radius) is not np else column.copy()


@pytree_of(("lower", "upper", "ball"))
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Box(Value):
    """lower_j ≤ w_j ≤ upper_j, and Σ_j ω_j |w_j| ≤ κ where there is a ball: `Box(0.0, np.inf)` for weights ≥ 0.

    Args:
      lower: l, in the units of the weights: a scalar, one per coordinate (d,), or one per row and coordinate (rows, d);
        −inf for none.
      upper: u ≥ l, of the same kinds; inf for none.
      ball: an `L1Ball` that the weights are inside of as well, or None. Coordinates that it sees must be allowed to be
        zero.

    Raises:
      TypeError: for values that are not real numbers, or a ball that is no `L1Ball`.
      ValueError: for NaN, lower = inf, upper = −inf, lower > upper, or shapes that do not go together.

    Examples:
      >>> import numpy as np, simjax
      >>> box = simjax.Box(0.0, np.inf)
      >>> simjax.solve_rows(np.eye(2), [[3.0], [-1.0]], penalty=simjax.NoPenalty(), constraint=box).weights
      array([[3., 0.]])
    """

    lower: ArrayLike
    upper: ArrayLike
    ball: L1Ball | None = None

    def __post_init__(self) -> None:
        offer_pytrees()
        lower, upper = (_numbers(name, getattr(self, name), infinite=True) for name in ("lower", "upper"))
        for name, side, never in (("lower", lower, np.inf), ("upper", upper, -np.inf)):
            if side.ndim > 2:
                raise ValueError(f"{name} must be a scalar, (d,) or (rows, d), got shape {side.shape}.")
            if _known(side == never):
                raise ValueError(f"{name} must not be {never:g}, which no weight meets.")
        try:
            np.broadcast_shapes(lower.shape, upper.shape)
        except ValueError as error:
            raise ValueError(
                f"upper must broadcast against lower of shape {lower.shape}, got {upper.shape}."
            ) from error
        crossed = lower > upper
        if _known(crossed):
            raise ValueError(f"lower must be at most upper, and is above it in {int(np.sum(crossed))} entries.")
        if self.ball is not None and not isinstance(self.ball, L1Ball):
            raise TypeError(f"ball must be an L1Ball or None, got {type(self.ball).__name__}.")
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)

    def bound(self, rows: int, width: int, support: np.ndarray | None = None) -> RowBound | None:
        """The ball for `rows` rows of `width` coordinates; None without one."""
        return None if self.ball is None else self.ball.bound(rows, width, support)

    def sides(self, rows: int, width: int, support: np.ndarray | None = None) -> tuple[Any, Any]:
        """l and u for `rows` rows of `width` coordinates, each (1 or rows, 1 or width).

        Raises:
          ValueError: if they do not fit these numbers, or exclude zero from a coordinate that the ball sees or the
            `support` (rows, width) forbids.
        """
        lower, upper = (_side(name, _array(getattr(self, name)), rows, width) for name in ("lower", "upper"))
        excludes = (lower > 0.0) | (upper < 0.0)
        if not _known(excludes):
            return lower, upper
        bound = self.bound(rows, width, support)
        if bound is not None and _known(excludes & bound.sees if support is None else excludes & bound.sees & support):
            raise ValueError("lower must be <= 0 and upper >= 0 on the coordinates that the ball of a Box sees.")
        if support is not None and _known(excludes & ~support):
            raise ValueError("lower must be <= 0 and upper >= 0 outside of the support, where weights are zero.")
        return lower, upper


def _side(name: str, side: Any, rows: int, width: int) -> Any:
    """A bound of a box as (1 or rows, 1 or width)."""
    if side.shape not in ((), (1,), (width,), (1, 1), (1, width), (rows, 1), (rows, width)):
        raise ValueError(f"{name} must be a scalar, ({width},) or ({rows}, {width}), got shape {side.shape}.")
    return side.reshape((1,) * (2 - side.ndim) + side.shape)


@pytree_of(())
@dataclasses.dataclass(frozen=True)
class Free:
    """No constraint.

    Examples:
      >>> import numpy as np, simjax
      >>> free = simjax.Free()  # as None is
      >>> simjax.solve_rows(np.eye(2), [[3.0], [1.0]], penalty=simjax.L1(2.0), constraint=free).weights.round(6)
      array([[2., 0.]])
    """

    def bound(self, rows: int, width: int, support: np.ndarray | None = None) -> None:
        return None


Constraint = L1Ball | MetzlerRow | Box | Free


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


def architecture_support(layer_sizes: Sequence[int], p: int, q: int, rows: np.ndarray | None = None) -> np.ndarray:
    """What a layered network has itself, in the stacked order (last hidden layer first): boolean (n + q, n + p).

    A state depends on those of the layer before alone, those of the first layer on the inputs alone, and outputs on the
    last layer alone: A is block superdiagonal, B and C have a block each, D = 0.

    Args:
      layer_sizes: widths of the hidden layers, the first hidden layer first.
      rows: only these rows of the mask; None means all.
    """
    hidden = np.repeat(np.arange(1, len(layer_sizes) + 1), layer_sizes)[::-1]
    depth = np.concatenate([hidden, np.full(q, len(layer_sizes) + 1)])
    own = depth if rows is None else depth[rows]
    return own[:, None] == np.concatenate([hidden, np.zeros(p, dtype=int)])[None, :] + 1
