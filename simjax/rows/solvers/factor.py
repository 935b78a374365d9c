"""One factorisation of the design, shared by every row and every ρ.

    Φ = U S Vᵀ      V (d, r) with orthonormal columns, r ≤ min(m, d)

In these coordinates λ‖t − Φw‖² = λ‖t̃ − S Vᵀw‖² + λ(‖t‖² − ‖t̃‖²) with t̃ = Uᵀt: whatever m is, the solvers work on
r equations, and a step of ADMM for any ρ is two products with V.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import Any

import numpy as np
import scipy.linalg

from simjax._typing import Array
from simjax.rows.arrays import matmul, namespace, pytree, rounding_unit, tree_map
from simjax.rows.container import memory_left
from simjax.rows.sparse_design import SparseDesign

# From this many samples per coordinate on, ΦᵀΦ alone is used, and Φ not looked at again.
_MOMENTS_FROM = 4
_RANK_TOL_QR = 1e-15
_RANK_TOL_GRAM = 1e-14
_BLOCK = 4096  # samples of a sparse design that are dense at once
_GREY_GRAM = 1e-10  # eigenvalues between the two may be zero or not: ask Φ itself


@pytree("precise")
@dataclasses.dataclass(frozen=True)
class Factorisation:
    """Φ = U S Vᵀ with the singular values divided by the largest one, `scale`.

    Attributes:
      basis: V, (d, r).
      singular_values: S / scale, (r,), in (0, 1].
      scale: the largest singular value, () ; 1 for Φ = 0.
      precise: whether it came from Φ itself (True) or from ΦᵀΦ, which squares the condition number (False).
    """

    basis: Array
    singular_values: Array
    scale: Array
    precise: bool

    def astype(self, dtype: Any) -> Factorisation:
        """The same in numbers of another type."""
        return tree_map(lambda array: array.astype(dtype), self)

    def apply(self, weights: Array) -> Array:
        """S Vᵀw for each row, (R, r)."""
        return matmul(weights, self.basis) * self.singular_values

    def apply_transpose(self, vectors: Array) -> Array:
        """V S y for each row, (R, d)."""
        return matmul(vectors * self.singular_values, self.basis.T)


class FactoredDesign:
    """A design Φ (m, d) and its factorisations, each made when it is first needed and shared by all that is solved.

    Args:
      design: (m, d), in float64.
      column_scale: (d,), by which its columns are divided, which makes it Φ; None for Φ itself.
    """

    def __init__(self, design: np.ndarray, column_scale: np.ndarray | None = None) -> None:
        self._design, self._column_scale = design, column_scale
        self._made: dict[bool, tuple[Factorisation, np.ndarray | None]] = {}
        self._itself: Factorisation | None = None
        self._making = threading.Lock()  # threads of an executor ask at the same time; `is_itself` needs one answer

    @functools.cached_property
    def array(self) -> np.ndarray:
        """Φ, (m, d)."""
        return self._design if self._column_scale is None else self._design / self._column_scale

    @property
    def sparse(self) -> bool:
        """Whether it is a `SparseDesign`."""
        return isinstance(self._design, SparseDesign)

    @property
    def stored(self) -> int:
        """How many entries are stored."""
        return self.array.matrix.nnz if isinstance(self.array, SparseDesign) else self.array.size

    @functools.cached_property
    def bytes_of_factorisation(self) -> float:
        """About what a factorisation takes: its Gram matrix and, unless ΦᵀΦ is enough, bases of the size of Φ."""
        m, d = self._design.shape
        return 8.0 * (4 * min(m, d) ** 2 + (0 if m >= _MOMENTS_FROM * d else 3 * m * d))

    @functools.cached_property
    def has_room(self) -> bool:
        """Whether a factorisation of a sparse design fits into the memory that is left."""
        return not self.sparse or self.bytes_of_factorisation <= memory_left()

    def factorisation(self, *, precise: bool) -> Factorisation:
        """Φ = U S Vᵀ.

        The Gram matrix of the short side is several times cheaper than a QR and an SVD, but squares the condition
        number: it is used where its eigenvalues say clearly which of them are zero, and where m ≥ 4d.

        Args:
          precise: factorise Φ itself whatever it costs.
        """
        with self._making:
            if precise not in self._made:
                self._made[precise] = self._factorised(precise)
        return self._made[precise][0]

    def _factorised(self, precise: bool) -> tuple[Factorisation, np.ndarray | None]:
        m, d = self.array.shape
        made = None
        if not precise:
            made = _by_moments(self.array) if m >= _MOMENTS_FROM * d else _by_gram(self.array)
        if made is None and isinstance(self.array, SparseDesign):
            made = _of_sparse(self.array)
        return _by_qr_svd(self.array) if made is None else made

    def itself(self) -> Factorisation:
        """`in_samples`, for products with Φ alone.

        Uᵀt − S Vᵀw is then t − Φw, in which rounding averages out over the samples. Where
        the residual is many digits smaller than the target, the coordinate of the largest singular value loses more.
        """
        with self._making:
            if self._itself is None:
                self._itself = in_samples(self.array)
        return self._itself

    def is_itself(self, factorisation: Factorisation) -> bool:
        """Whether that is what `itself` returns."""
        return factorisation is self._itself

    def coordinates(self, targets: np.ndarray, *, precise: bool) -> np.ndarray:
        """t̃ = Uᵀt of targets (m, R), as (R, r)."""
        factorisation = self.factorisation(precise=precise)
        left = self._made[precise][1]
        if left is not None:
            return targets.T @ left
        # U = Φ V S⁻¹
        singular = factorisation.singular_values * float(factorisation.scale)
        return ((targets.T @ self.array) @ factorisation.basis) / np.where(singular > 0.0, singular, 1.0)


def _factorisation(singular: np.ndarray, basis: np.ndarray, *, precise: bool) -> Factorisation:
    scale = singular[0] if singular[0] > 0.0 else 1.0
    return Factorisation(np.ascontiguousarray(basis), singular / scale, np.asarray(scale), precise)


def _by_qr_svd(design: np.ndarray) -> tuple[Factorisation, np.ndarray]:
    left, singular, right = _qr_svd(design)
    keep = max(np.count_nonzero(singular > _RANK_TOL_QR * singular[0]) if singular[0] > 0.0 else 0, 1)
    return _factorisation(singular[:keep], right[:, :keep], precise=True), left[:, :keep]


def _of_sparse(design: SparseDesign) -> tuple[Factorisation, np.ndarray | None]:
    """From Φ itself: where it is tall, from its triangular factor, block by block of samples."""
    m, d = design.shape
    if m < d:
        return _by_qr_svd(design.toarray())
    rows = design.by_rows()
    triangle: Any = np.zeros((0, d))
    for start in range(0, m, block := max(_BLOCK, d)):
        part = rows[start : start + block].toarray()
        triangle = np.linalg.qr(np.concatenate([triangle, part]), mode="r")
    return _by_qr_svd(triangle)[0], None


def _by_gram(design: np.ndarray) -> tuple[Factorisation, np.ndarray] | None:
    """From ΦΦᵀ or ΦᵀΦ, whichever is smaller, or None where its rank is in doubt.

    Its eigenvectors are orthonormal to rounding. The other side, and the singular values, come from Φ times them, so
    that K = S Vᵀ is Φ in other coordinates to rounding, and not to the square root of it.
    """
    m, d = design.shape
    short = design if m >= d else design.T
    values, vectors = (x[..., ::-1] for x in scipy.linalg.eigh(short.T @ short, driver="evd", check_finite=False))
    most = max(values[0], 0.0)
    grey = (values > _RANK_TOL_GRAM * most) & (values < _GREY_GRAM * most)
    if most == 0.0 or grey.any():
        return None
    own = np.ascontiguousarray(vectors[:, values > _RANK_TOL_GRAM * most])
    image = design @ own if m >= d else design.T @ own
    singular = np.linalg.norm(image, axis=0)
    other = image / singular
    left, right = (other, own) if m >= d else (own, other)
    return _factorisation(singular, right, precise=False), left


def _by_moments(design: np.ndarray) -> tuple[Factorisation, None]:
    """From ΦᵀΦ alone."""
    values, vectors = (x[..., ::-1] for x in scipy.linalg.eigh(design.T @ design, driver="evd", check_finite=False))
    keep = max(int(np.count_nonzero(values > _RANK_TOL_GRAM * max(values[0], 0.0))), 1)
    singular = np.sqrt(np.maximum(values[:keep], 0.0))
    return _factorisation(singular, np.ascontiguousarray(vectors[:, :keep]), precise=False), None


def in_samples(design: Array) -> Factorisation:
    """Φ in its own coordinates, U = I: V is Φᵀ, (d, m), not orthonormal; scale is ‖Φ‖_F, or 1, and S one over it."""
    xp = namespace(design)
    norm = np.asarray(design.norm()) if isinstance(design, SparseDesign) else xp.linalg.norm(design)
    scale = xp.asarray(xp.where(norm > 0.0, norm, 1.0))
    return Factorisation(design.T, xp.full(design.shape[:1], 1.0, design.dtype) / scale, scale, True)


def traced_factorisation(design: Array) -> tuple[Factorisation, Array]:
    """Φ = U S Vᵀ and U (m, k) with k = min(m, d), whatever the rank: for JAX, whose shapes must not depend on it.

    As `_by_gram` makes it, but what is below the rounding of the Gram matrix, singular values of 1e-7 of the largest
    in float64 and 2e-3 in float32, is left out: it has zeros in U and V and the singular value one, as padding has.
    Not by `svd`: LAPACK's was seen to hang on a CPU when XLA called it for many problems on several threads.
    """
    xp = namespace(design)
    m, d = design.shape
    tall = m >= d
    short = design if tall else design.T
    values, vectors = (x[..., ::-1] for x in xp.linalg.eigh(matmul(short.T, short)))
    kept = values > max(_RANK_TOL_GRAM, 32.0 * rounding_unit(design)) * values[0]
    own = xp.where(kept, vectors, 0.0)
    image = matmul(design, own) if tall else matmul(design.T, own)
    singular = xp.linalg.norm(image, axis=0)
    other = image / xp.where(kept, singular, 1.0)
    scale = xp.where(singular[0] > 0.0, singular[0], 1.0)
    left, right = (other, own) if tall else (own, other)
    return Factorisation(right, xp.where(kept, singular / scale, 1.0), scale, False), left


def _qr_svd(design: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U (m, k), S (k,), V (d, k) with k = min(m, d): QR of the tall side, then the SVD of the small triangle."""
    m, d = design.shape
    orthogonal, triangle = np.linalg.qr(design if m >= d else design.T)
    left, singular, right = np.linalg.svd(triangle, full_matrices=False)
    tall, short = orthogonal @ left, right.T
    return (tall, singular, short) if m >= d else (short, singular, tall)
