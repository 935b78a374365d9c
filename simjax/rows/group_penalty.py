"""Group penalties: Σ_g β_g ‖w_g‖₂ over disjoint groups of the columns, inside each row.

Source: Yuan & Lin, Model selection and estimation in regression with grouped variables (2006), eq. (2.1), K_g = |g| I.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from simjax._checks import nonnegative_parameter, plain_array
from simjax._typing import Array, ArrayLike
from simjax.rows.arrays import matmul, namespace, offer_pytrees, pytree, pytree_of, rounding_unit
from simjax.rows.penalties import Penalty, PiecewisePenalty, short_parameters


@pytree()
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GroupPenalty(Penalty):
    """h(w) = Σ_g β_g ‖w_g‖₂, with every column in one group.

    It is not a sum over coordinates: `value` and `conjugate` have an entry for each group, (rows, G), and the steps of
    `prox` are one for each row.

    Attributes:
      level: β ≥ 0, (1 or rows, G).
      labels: the group of each column, (1, d), integers below G. A column that is padding may be in any.
    """

    level: Array
    labels: Array

    separable = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({short_parameters(self._arguments())})"

    def _arguments(self) -> dict[str, Any]:
        """What the penalty was made of, to be shown."""
        return {"level": self.level, "labels": self.labels}

    def value(self, weights: Array) -> Array:
        """β_g ‖w_g‖ of every group, (rows, G)."""
        return self._level(weights) * self.norms(weights)

    def prox(self, points: Array, step: Array) -> Array:
        """(1 − τβ_g/‖x_g‖)₊ x_g, the block soft threshold, (rows, d), for a `step` τ of (rows, 1) or a number."""
        xp = namespace(points, step, self.level)
        norms, threshold = self.plain_norms(points), step * self._level(points)
        # A group without a threshold stays as it is, whatever its norm.
        kept = xp.where(threshold > 0.0, 1.0 - threshold / xp.where(norms > 0.0, norms, 1.0), 1.0)
        return points * self.to_columns(xp.where((norms > threshold) | (threshold <= 0.0), kept, 0.0))

    def conjugate(self, slopes: Array) -> Array:
        """The indicator of ‖s_g‖ ≤ β_g, (rows, G)."""
        xp = namespace(slopes, self.level)
        norms = self.norms(slopes)
        return xp.where(norms > self._level(slopes), xp.inf, xp.zeros_like(norms))

    def norms(self, weights: Array) -> Array:
        """‖w_g‖ of every group, (rows, G), in units of the row's largest entry, whose square may be no number."""
        xp = namespace(weights, self.labels)
        size = xp.max(xp.abs(weights), axis=-1, keepdims=True)
        unit = xp.where((size > 0.0) & xp.isfinite(size), size, 1.0)
        return unit * self.plain_norms(weights / unit)

    def plain_norms(self, weights: Array) -> Array:
        """The same for weights of about size one, as in canonical units."""
        xp, square = namespace(weights, self.labels), self.sums(weights * weights)
        if xp is np:
            return np.sqrt(square)
        positive = square > 0.0  # the derivative of a norm of zero is none, not NaN
        return xp.where(positive, xp.sqrt(xp.where(positive, square, 1.0)), 0.0)

    def sums(self, values: Array) -> Array:
        """Σ_{j ∈ g} of values (rows, d), (rows, G)."""
        xp = namespace(values, self.labels)
        if xp is np:
            order, starts = self._layout
            return np.add.reduceat(values if order is None else values[..., order], starts, axis=-1)
        # A product with the groups' indicators: a scatter would add in an order of its own on a GPU.
        return matmul(values, xp.asarray(self.labels[0][:, None] == xp.arange(self.count), dtype=values.dtype))

    def to_columns(self, of_groups: Array) -> Array:
        """Values (rows, G) at each column of their group, (rows, d)."""
        return namespace(of_groups, self.labels).take(of_groups, self.labels[0], axis=-1)

    @property
    def count(self) -> int:
        """G."""
        return int(np.shape(self.level)[-1])

    @functools.cached_property
    def _layout(self) -> tuple[np.ndarray | None, np.ndarray]:
        """The columns group by group (None where they are already), and where each group starts."""
        labels = np.asarray(self.labels[0])
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], np.arange(self.count))
        return (None if np.all(order[:-1] < order[1:]) else order), starts

    def slack(self, dtype: Any) -> float:
        """What the rounding of a norm may be, relatively: a slope is scaled that much further inside its domain."""
        return rounding_unit(np.empty(0, dtype)) * (8.0 + 2.0 * float(np.shape(self.labels)[-1]) ** 0.5)

    def _level(self, like: Array) -> Array:
        """β in the dtype of an array, where that is a float's."""
        return self.cast(like.dtype).level if np.dtype(like.dtype).kind == "f" else self.level

    def cast(self, dtype: Any) -> GroupPenalty:
        """The penalty with parameters of this dtype: itself, where they have it."""
        if getattr(self.level, "dtype", None) == dtype:
            return self
        return GroupPenalty(namespace(self.level).asarray(self.level, dtype=dtype), self.labels)

    def rows(self, index: Any) -> GroupPenalty:
        level = self.level
        return GroupPenalty(level[index] if np.shape(level)[0] > 1 else level, self.labels)

    def scaled(self, point_scale: Array, value_scale: Array) -> GroupPenalty:
        """The penalty w' ↦ q h(p w') for a p (rows, 1 or d) that the columns of a group share."""
        if np.shape(point_scale)[-1] > 1:
            xp = namespace(point_scale, self.labels)
            one = GroupPenalty(xp.ones((1, self.count), dtype=point_scale.dtype), self.labels)
            point_scale = one.sums(point_scale) / xp.maximum(one.sums(xp.ones_like(point_scale)), 1.0)
        return GroupPenalty(value_scale * point_scale * self.level, self.labels)

    def checked(self, rows: int, width: int) -> GroupPenalty | PiecewisePenalty:
        """The penalty for `rows` rows of `width` columns: that of L1 for groups of one, none where no group pays.

        Raises:
          ValueError: if groups or alpha do not fit these numbers.
        """
        if np.shape(self.labels)[-1] != width:
            raise ValueError(f"groups must be of {width} columns, got {np.shape(self.labels)[-1]}.")
        if np.shape(self.level)[0] not in (1, rows):
            raise ValueError(f"alpha must be for {rows} rows, got shape {np.shape(self.level)}.")
        zero = namespace(self.level).zeros((1, 1), dtype=self.level.dtype)
        if np.shape(self.level)[-1] == width:
            return PiecewisePenalty(self.to_columns(self.level), zero, zero)
        if namespace(self.level) is np and not np.any(self.level):
            return PiecewisePenalty(zero, zero, zero)
        return GroupPenalty(self.level, self.labels)


@pytree_of(("alpha", "weights"), ("groups",))
class GroupL1(GroupPenalty):
    """h(w) = Σ_g α_g ω_g ‖w_g‖₂: the group lasso over columns, inside each row; ω_g = √|g| unless told otherwise.

    A group's weights are all zero or, as a rule, none of them is: the columns of one input feature, one pixel's
    channels or the states of one layer enter a row together or not at all. Rows remain independent of each other: a
    group that is zero in every row, which removes its columns from the whole model, is what the penalty favours and
    not what it demands; a penalty that couples the rows (multi-task lasso) is another one.

    √|g| is the weight of Yuan & Lin (2006), and the default of gglasso, grpreg and adelie; skglm and celer take one:
    `weights=numpy.ones(G)`.

    Args:
      alpha: α ≥ 0, a scalar, one per group (G,), or one per row and group (rows, G) or (rows, 1).
      groups: the group of each column, d integers from 0 to G − 1, −1 for a column in no group, which is not penalised;
        or G lists of column numbers, with each column in exactly one.
      weights: ω ≥ 0, (G,); None means √|g|, with |g| the number of columns of a group.

    Raises:
      TypeError: for groups that are not integers.
      ValueError: if alpha or weights are negative, not finite or of another shape, or a column or a group is missing.

    Source: Yuan & Lin, Model selection and estimation in regression with grouped variables (2006), eq. (2.1).

    Examples:
      >>> import numpy as np, simjax
      >>> penalty = simjax.GroupL1(1.0, groups=[0, 0, 1, 1])
      >>> simjax.solve_rows(np.eye(4), [[3.0], [4.0], [0.5], [0.5]], penalty=penalty).weights[0] != 0
      array([ True,  True, False, False])
    """

    alpha: Array
    weights: Array
    groups: tuple[int, ...]

    def __init__(
        self,
        alpha: ArrayLike,
        groups: Sequence[int] | Sequence[Sequence[int]] | np.ndarray,
        weights: ArrayLike | None = None,
    ) -> None:
        offer_pytrees()
        labels = _checked_groups(groups)
        count = int(labels.max()) + 1
        level = nonnegative_parameter("alpha", alpha)
        if level.ndim and level.shape[-1] not in (1, count):
            raise ValueError(
                f"alpha must be a scalar, ({count},) or (rows, {count}) for {count} groups, got shape {level.shape}."
            )
        sizes = np.bincount(labels[labels >= 0])
        omega = np.sqrt(sizes) if weights is None else nonnegative_parameter("weights", weights)
        if omega.shape != (count,):
            raise ValueError(f"weights must be ({count},), one for each group, got shape {omega.shape}.")
        self.__dict__.update(alpha=level, weights=omega, groups=tuple(labels.tolist()))  # the class is frozen

    def times(self, factor: float | Array) -> GroupL1:
        """The penalty with α times a factor."""
        return GroupL1(self.alpha * factor, self.groups, self.weights)

    def _arguments(self) -> dict[str, Any]:
        groups = f"<{max(self.groups) + 1} of {len(self.groups)} columns>"
        return {"alpha": self.alpha, "groups": groups, "weights": self.weights}

    @property
    def labels(self) -> Array:
        """The group of each column, (1, d); those in none are one more group, which is free."""
        labels = np.asarray(self.groups)
        return np.where(labels < 0, labels.max() + 1, labels)[None, :]

    @property
    def level(self) -> Array:
        """β_g = α_g ω_g, (1 or rows, G), and zero for the columns in no group."""
        level = self.alpha.reshape((1,) * (2 - np.ndim(self.alpha)) + np.shape(self.alpha)) * self.weights
        return namespace(level).pad(level, ((0, 0), (0, 1))) if min(self.groups) < 0 else level


def _checked_groups(groups: Any) -> np.ndarray:
    """The label of each column, (d,), −1 for none, from labels or from lists of column numbers."""
    if isinstance(groups, str) or not hasattr(groups, "__len__"):
        raise TypeError(f"groups must be d integers or lists of column numbers, got {groups!r}.")
    if len(groups) == 0:
        raise ValueError("groups must not be empty.")
    if all(np.ndim(group) == 0 for group in groups):
        labels = _integers("groups", groups)
        count = max(int(labels.max()) + 1, 0)
        missing = np.setdiff1d(np.arange(count), labels)
        if labels.min() < -1 or count == 0 or missing.size:
            why = f"none of {missing[:5].tolist()}" if missing.size else f"{labels.min()} to {labels.max()}"
            raise ValueError(
                f"groups must be numbered from 0 without a gap, with -1 for columns in no group, got {why}."
            )
        return labels
    members = [_integers(f"groups[{number}]", group) for number, group in enumerate(groups)]
    for number, group in enumerate(members):
        if group.size == 0:
            raise ValueError(f"groups[{number}] must not be empty.")
    every = np.concatenate(members)
    seen = np.bincount(every[every >= 0], minlength=1)
    if every.min() < 0 or np.any(seen != 1):
        wrong = np.flatnonzero(seen != 1)[:5].tolist()
        why = f"column {every.min()}" if every.min() < 0 else f"columns {wrong} in none or in several"
        raise ValueError(f"groups must have each column from 0 on in exactly one group, got {why}.")
    labels = np.empty(every.size, dtype=int)
    for number, group in enumerate(members):
        labels[group] = number
    return labels


def _integers(name: str, value: Any) -> np.ndarray:
    array = plain_array(name, value)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}.")
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {array.shape}.")
    return array.astype(int)
