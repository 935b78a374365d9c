"""Where zeros may lie: anywhere in the layer, n of m in a row, or whole rows."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from simjax._checks import float_array
from simjax._values import Unstated

SPARSITY = Unstated(0.8)  # where nobody says how many zeros
_SHAPE = re.compile(r"([1-9][0-9]*):([1-9][0-9]*)")
_ROUNDING = 1e-9  # a share of zeros this near to a whole number of weights is that number


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Which supports are allowed, and how many weights of a layer are kept.

    Attributes:
      name: "unstructured", "rows", or n:m as it was given.
      group: (n, m): at most n of any m inputs that follow one another, from the first one on, are kept in a row.
      shape: (out, in) of the layer.
      kept: how many weights are kept at most, of rows how many rows.
    """

    name: str
    group: tuple[int, int] | None
    shape: tuple[int, int]
    kept: int

    @classmethod
    def make(cls, name: Any, sparsity: Any, shape: tuple[int, int], *, stated: bool = True) -> Pattern:
        """The pattern called `name` with at least a share of `sparsity` zeros in a layer (out, in).

        Args:
          stated: whether the user gave the sparsity; n:m brings its own otherwise.

        Raises:
          TypeError, ValueError: an unknown name, a group that does not fit the layer, a sparsity that is not in [0, 1)
            or smaller than what n:m leaves zero in any case.
        """
        group = None
        if name not in ("unstructured", "rows"):
            found = _SHAPE.fullmatch(name) if isinstance(name, str) else None
            if found is None:
                raise ValueError(f"pattern must be 'unstructured', 'rows' or 'n:m' such as '2:4', got {name!r}.")
            group = int(found[1]), int(found[2])
            if group[0] >= group[1]:
                raise ValueError(f"pattern {name!r} must keep fewer weights of a group than it has.")
            if shape[1] % group[1]:
                raise ValueError(
                    f"pattern {name!r} needs inputs in groups of {group[1]}, but the layer has {shape[1]} inputs."
                )
        sparsity = checked_sparsity(sparsity)
        if group is not None:
            own = 1.0 - group[0] / group[1]
            if stated and sparsity < own * (1.0 - _ROUNDING):
                raise ValueError(
                    f"sparsity must be at least {own:g} for pattern {name!r}, which leaves no fewer zeros; got "
                    f"{sparsity:g}."
                )
            sparsity = sparsity if stated else own
        count = shape[0] if name == "rows" else shape[0] * shape[1]
        return cls(name, group, shape, int(np.floor((1.0 - sparsity) * count + _ROUNDING * count)))

    def project(self, scores: np.ndarray) -> np.ndarray:
        """The allowed support (out, in) with the largest sum of `scores` ≥ 0, (out, in): the nearest in this measure.

        The supports of n:m with at most k weights are the independent sets of a matroid, a partition matroid cut off at
        rank k, so that the greedy choice is the best one: the k largest of the n largest of each group.
        """
        if self.name == "rows":
            return np.repeat(_largest(scores.sum(axis=1), self.kept)[:, None], self.shape[1], axis=1)
        if self.group is None:
            return _largest(scores.ravel(), self.kept).reshape(self.shape)
        n, m = self.group
        allowed = (_places(scores.reshape(-1, m)) < n).reshape(self.shape)
        if self.kept >= allowed.sum():
            return allowed
        return _largest(np.where(allowed, scores, -1.0).ravel(), self.kept).reshape(self.shape)


def checked_sparsity(sparsity: Any) -> float:
    """`sparsity` as a float in [0, 1).

    Raises:
      TypeError, ValueError: for anything else.
    """
    if sparsity is None or isinstance(sparsity, str | bool):
        raise TypeError(f"sparsity must be a number in [0, 1), the share of zeros, got {sparsity!r}.")
    array = float_array("sparsity", sparsity)
    if array.ndim != 0 or not 0.0 <= float(array) < 1.0:
        raise ValueError(f"sparsity must be a number in [0, 1), the share of zeros, got {sparsity!r}.")
    return float(array)


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Which of the scores (N,) are the `count` largest; exactly as many, of equal ones the first."""
    if count == 0:
        return np.zeros(scores.size, dtype=bool)
    least = np.partition(scores, scores.size - count)[scores.size - count]  # a third of the time of argpartition
    chosen = scores > least
    chosen[np.flatnonzero(scores == least)[: count - np.count_nonzero(chosen)]] = True
    return chosen


def _places(groups: np.ndarray) -> np.ndarray:
    """The place of each score in its group (N, m), 0 for the largest, of equal ones the first: all pairs compared."""
    columns = np.ascontiguousarray(groups.T)
    places = np.zeros(columns.shape, dtype=np.int32)
    for j in range(len(columns)):
        for k in range(j):
            before = columns[k] >= columns[j]
            places[j] += before
            places[k] += ~before
    return places.T
