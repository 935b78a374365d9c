"""Sparse designs: the products of a matrix that is sparse but for one of rank one, which centring takes out of it.

    Φ' = Ψ − u μᵀ        Ψ sparse, u (m,), μ (d,)

It stands in the place of an array: the solvers and the certificate see a design through products, norms of its columns
and a few columns at a time, and none of these is made dense as a whole.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import scipy.sparse

from simjax.rows.container import memory_left

# A column whose mean is larger than this against its deviations is centred entry by entry: in Ψ − u μᵀ their digits
# would cancel. Without weights only columns that are 99 % full can be like that.
_FAR_FROM_CENTRED = 10.0
_COPIES = 3  # of a dense matrix, in what a factorisation of it takes


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SparseDesign:
    """Ψ − u μᵀ, or Ψ alone, in float64.

    Attributes:
      matrix: Ψ, (m, d), CSR or CSC.
      left, right: u, (m,), and μ, (d,); None for Ψ alone.
    """

    matrix: Any
    left: Any = None
    right: Any = None

    ndim = 2
    dtype = np.dtype(np.float64)
    __array_ufunc__ = None  # so that `array @ design` comes here

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    @property
    def T(self) -> SparseDesign:
        return SparseDesign(self.matrix.T, self.right, self.left)

    def __repr__(self) -> str:
        shift = "" if self.left is None else ", centred"
        return f"SparseDesign({self.shape[0]} × {self.shape[1]}, {self.matrix.nnz} stored entries{shift})"

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("a sparse design is not made an array by itself: its toarray() does that.")

    def __matmul__(self, other: Any) -> np.ndarray:
        if isinstance(other, SparseDesign):
            product = (self.matrix @ other.matrix).toarray()
            if self.left is not None:
                product -= np.multiply.outer(self.left, self.right @ other)
            if other.left is not None:
                product -= np.multiply.outer(self.matrix @ other.left, other.right)
            return product
        product = self.matrix @ other
        return product if self.left is None else product - np.multiply.outer(self.left, self.right @ other)

    def __rmatmul__(self, other: np.ndarray) -> np.ndarray:
        product = np.ascontiguousarray(other @ self.matrix)
        return product if self.right is None else product - np.multiply.outer(other @ self.left, self.right)

    def __mul__(self, scale: np.ndarray) -> SparseDesign:
        """The columns multiplied by `scale`, (d,)."""
        matrix = (self.matrix @ scipy.sparse.diags_array(scale)).asformat(self.matrix.format)
        return SparseDesign(matrix, self.left, None if self.right is None else self.right * scale)

    def __truediv__(self, scale: np.ndarray) -> SparseDesign:
        """The columns divided by `scale`, (d,)."""
        return self * (1.0 / scale)

    def __getitem__(self, key: Any) -> Any:
        """`[rows]`, sparse, or `[:, columns]`, an array: there are few of these."""
        if isinstance(key, tuple):
            return self.take_columns(key[1]).toarray()
        return SparseDesign(self.matrix[key], None if self.left is None else self.left[key], self.right)

    def take_columns(self, columns: np.ndarray) -> SparseDesign:
        """Some of the columns, by number or as a mask."""
        return SparseDesign(self.matrix[:, columns], self.left, None if self.right is None else self.right[columns])

    def by_rows(self) -> SparseDesign:
        """The same, with its rows at hand."""
        return SparseDesign(self.matrix.tocsr(), self.left, self.right)

    def toarray(self) -> np.ndarray:
        """As an array."""
        array = self.matrix.toarray()
        if self.left is not None:
            array -= np.multiply.outer(self.left, self.right)
        return array

    def column_norms(self) -> np.ndarray:
        """‖φ'_j‖, (d,): of the entries that are stored as they are, of the others, −u_i μ_j, by their number."""
        if self.left is None or self.right is None:
            return np.sqrt(_column_sums(self.matrix, lambda rows, columns, data: data**2))
        left, right = self.left, self.right
        stored = _column_sums(self.matrix, lambda rows, columns, data: (data - left[rows] * right[columns]) ** 2)
        return np.sqrt(stored + right**2 * _mass_of_zeros(self.matrix, left**2))

    def norm(self) -> float:
        """‖Φ'‖_F."""
        return float(np.linalg.norm(self.column_norms()))

    @functools.cached_property
    def fits_as_array(self) -> bool:
        """Whether memory is left for it as an array and what a factorisation takes beside it."""
        return 8.0 * _COPIES * self.shape[0] * self.shape[1] <= memory_left()

    def weighted(self, root: np.ndarray) -> SparseDesign:
        """The rows multiplied by `root`, (m,)."""
        left = None if self.left is None else root * self.left
        return SparseDesign(scipy.sparse.csr_array(scipy.sparse.diags_array(root) @ self.matrix), left, self.right)


def fits_as_array(design: Any) -> bool:
    """Whether a design may be looked at as an array: one that is an array may."""
    return not isinstance(design, SparseDesign) or design.fits_as_array


def as_array(design: Any) -> np.ndarray:
    """A design as an array, whatever it is.

    Raises:
      MemoryError: if a sparse one does not fit into the memory that is left, with what is made of it.
    """
    if not isinstance(design, SparseDesign):
        return design
    if not design.fits_as_array:
        m, d = design.shape
        raise MemoryError(
            f"an oracle works on the sparse design as an array of shape ({m}, {d}), which takes "
            f"{8e-9 * _COPIES * m * d:.3g} GB with what is made of it, more than is free: use solver='auto', or verify "
            "fewer samples."
        )
    return design.toarray()


def sparse_design(name: str, value: Any, largest: float) -> SparseDesign:
    """A matrix of scipy.sparse, of whatever format and real type, with at least one row and one column.

    Entries that are stored twice are added, as scipy.sparse has it.

    Raises:
      TypeError: if it is not made of real numbers.
      ValueError: empty, not two-dimensional, or with entries that are NaN, infinite, or beyond `largest`.
    """
    if value.ndim != 2:
        raise ValueError(f"{name} must be a 2-D array, got {value.ndim}-D with shape {value.shape}.")
    if 0 in value.shape:
        raise ValueError(f"{name} must not be empty, got shape {value.shape}.")
    if np.dtype(value.dtype).kind not in "fiub":
        raise TypeError(f"{name} must be an array of real numbers, got dtype {value.dtype}.")
    matrix = scipy.sparse.csr_array(value.astype(np.float64, copy=True))
    with np.errstate(over="ignore", invalid="ignore"):
        matrix.sum_duplicates()
    finite = np.isfinite(matrix.data)
    if not finite.all():
        raise ValueError(
            f"{name} must be finite, got {np.count_nonzero(~finite)} NaN or infinite entries of {matrix.nnz} stored."
        )
    size = float(np.abs(matrix.data).max(initial=0.0))
    if size > largest:
        raise ValueError(f"{name} must not exceed {largest:g}, beyond which squares overflow, got {size:g}: rescale.")
    return SparseDesign(matrix)


def centred(design: SparseDesign, weight: np.ndarray) -> tuple[np.ndarray, SparseDesign, np.ndarray]:
    """The weighted means of the columns (d,), Φ − 1 φ̄ᵀ without the columns that are far from centred, and which are.

    Args:
      design: Φ, without a matrix of rank one.
      weight: v ≥ 0, (m,).
    """
    matrix, total = design.matrix, weight.sum()
    means = (weight @ matrix) / total
    # Once more, as the rounding of a mean is a mean.
    zeros = _mass_of_zeros(matrix, weight)
    off = _column_sums(matrix, lambda rows, columns, data: weight[rows] * (data - means[columns]))
    means = means + (off - means * zeros) / total
    square = _column_sums(matrix, lambda rows, columns, data: weight[rows] * (data - means[columns]) ** 2)
    square += means**2 * zeros
    far = means**2 * total > _FAR_FROM_CENTRED**2 * square
    kept = scipy.sparse.csr_array(matrix @ scipy.sparse.diags_array(np.where(far, 0.0, 1.0)))
    kept.eliminate_zeros()
    return means, SparseDesign(kept, np.ones(matrix.shape[0]), np.where(far, 0.0, means)), far


def with_columns(design: SparseDesign, numbers: np.ndarray, columns: np.ndarray) -> SparseDesign:
    """The design plus `columns`, (m, k), in the places `numbers` (k,), where it has none."""
    if numbers.size == 0:
        return design
    added = scipy.sparse.coo_array(columns)
    added = scipy.sparse.coo_array((added.data, (added.row, numbers[added.col])), shape=design.shape)
    return dataclasses.replace(design, matrix=scipy.sparse.csr_array(design.matrix + added))


def _mass_of_zeros(matrix: Any, mass: np.ndarray) -> np.ndarray:
    """Σ of the `mass` (m,) of the rows in which each column stores nothing, (d,); 0 for a full column, exactly."""
    stored = _column_sums(matrix, lambda rows, columns, data: mass[rows])
    seen = _column_sums(matrix, lambda rows, columns, data: (mass[rows] > 0.0).astype(np.float64))
    rest = np.maximum(mass.sum() - stored, 0.0)
    return np.where(seen == np.count_nonzero(mass > 0.0), 0.0, rest)


def _column_sums(matrix: Any, terms: Any) -> np.ndarray:
    """Σ over the stored entries of each column of `terms(rows, columns, data)`, (d,)."""
    entries = matrix.tocoo()
    values = terms(entries.row, entries.col, entries.data)
    # Without any entry the sums are whole numbers to NumPy.
    return np.bincount(entries.col, weights=values, minlength=matrix.shape[1]).astype(np.float64)
