"""Weighted samples, and a free intercept by centring: both are changes of the samples that leave a plain row problem.

    min over w, b of  λ Σ_i v_i (t_i − φ_iᵀw − b)² + h(w)

For given weights the best intercept is b = t̄ − φ̄ᵀw, with the means of the samples weighted by v. So the problem is

    min over w of  λ ‖t′ − Φ′w‖² + h(w),      Φ′ = V^½ (Φ − 1φ̄ᵀ),    t′ = V^½ (t − t̄)

and proofs carry over: with u = V^½1 / ‖V^½1‖, a dual point y of this problem, made orthogonal to u, has the same
slopes Φ′ᵀy = (V^½Φ)ᵀy and the same yᵀt′ = yᵀV^½t, is no longer than before, and is feasible in the dual of the problem
above, in which a free b demands uᵀy = 0. Under exact matching the same holds, and Φw + b1 = t is asked of samples with
v > 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from simjax._checks import float_array
from simjax._typing import ArrayLike, Weights
from simjax._values import Value
from simjax.rows.arrays import pytree
from simjax.rows.sparse_design import SparseDesign, centred, with_columns

# A column that varies by less than this share of its norm is constant: what centring leaves of it is rounding.
_CONSTANT = 1e-15


@pytree()
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Centring(Value):
    """What was taken out of the samples of rows with a free intercept.

    Attributes:
      design: φ̄, (d,).
      targets: t̄, (R,).
      total: Σ v.
      direction: u, (m,); None where the samples were compressed, which leaves nothing along it.
    """

    design: np.ndarray
    targets: np.ndarray
    total: float
    direction: np.ndarray | None = None

    def intercept(self, weights: Weights) -> np.ndarray:
        """The best intercept of each row for its weights (R, d), (R,)."""
        return self.targets - np.asarray(weights @ self.design)

    def take(self, index: np.ndarray) -> Centring:
        """That of the rows in `index`."""
        return dataclasses.replace(self, targets=self.targets[index])

    def orthogonal(self, duals: np.ndarray) -> np.ndarray:
        """Dual points (R, m) made orthogonal to u, as a free intercept demands: they prove no less."""
        if self.direction is None:
            return duals
        return duals - (duals @ self.direction)[:, None] * self.direction


def checked_sample_weight(sample_weight: ArrayLike | None, m: int) -> np.ndarray | None:
    """v as (m,) in float64, or None.

    Raises:
      TypeError, ValueError: for anything but m finite numbers ≥ 0, one of them positive.
    """
    if sample_weight is None:
        return None
    weight = float_array("sample_weight", sample_weight)
    if weight.shape != (m,):
        raise ValueError(f"sample_weight must have one number for each of the {m} samples, got shape {weight.shape}.")
    if weight.min() < 0.0:
        raise ValueError(f"sample_weight must be >= 0, got {weight.min():g}.")
    if weight.max() == 0.0:
        raise ValueError("sample_weight must be positive for one sample at least, got zeros alone.")
    return weight


def weighted_and_centred(
    design: Any, targets: np.ndarray, sample_weight: np.ndarray | None, fit_intercept: bool
) -> tuple[Any, np.ndarray, Centring | None]:
    """Φ′, T′ and what was taken out of them; None without an intercept. Arrays are changed in place."""
    root = None if sample_weight is None else np.sqrt(sample_weight)
    centring = None
    if fit_intercept:
        weight = np.ones(design.shape[0]) if sample_weight is None else sample_weight
        direction = np.ones(design.shape[0]) if root is None else root
        if isinstance(design, SparseDesign):
            means, design = _centred_sparse(design, weight)
        else:
            means = _take_out_mean(design, weight)
        centring = Centring(
            means,
            _take_out_mean(targets, weight),
            float(weight.sum()),
            direction / np.linalg.norm(direction),
        )
    if root is not None:
        if isinstance(design, SparseDesign):
            design = design.weighted(root)
        else:
            design *= root[:, None]
        targets *= root[:, None]
    return design, targets, centring


def _centred_sparse(design: SparseDesign, weight: np.ndarray) -> tuple[np.ndarray, SparseDesign]:
    """The weighted means and Φ − 1φ̄ᵀ; columns whose digits that would cost are centred entry by entry."""
    means, rest, far = centred(design, weight)
    numbers = np.flatnonzero(far)
    columns = design[:, numbers]
    means[numbers] = _take_out_mean(columns, weight)
    return means, with_columns(rest, numbers, columns)


def _take_out_mean(columns: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Subtract the weighted mean of each column, in place, and return it.

    Twice: the rounding of a mean that is large against the deviations is itself a mean, and goes with the second.
    """
    share = weight / weight.sum()
    size = np.sqrt(np.einsum("i,ij,ij->j", share, columns, columns))
    total = np.zeros(columns.shape[1])
    for _ in range(2):
        mean = np.einsum("i,ij->j", share, columns)  # no BLAS: the same bits whatever the number of threads
        columns -= mean
        total += mean
    constant = np.sqrt(np.einsum("i,ij,ij->j", share, columns, columns)) <= _CONSTANT * size
    if constant.any():
        columns[:, constant] = 0.0
    return total
