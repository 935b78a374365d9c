"""An orthonormal basis of the span of some columns, whatever their scales and however dependent they are."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.linalg

# A column that lies in the span of the others but for this share of its norm lies in it: what is left is rounding.
_RANK_TOL = 1e-13


@dataclasses.dataclass(frozen=True)
class ColumnBasis:
    """X D⁻¹ P = Q R by columns of norm one in the order of pivoting, cut off at the rank k that rounding leaves.

    Attributes:
      basis: Q, (m, k), orthonormal.
      triangle: R, (k, k), upper triangular.
      chosen: (k,), the columns that span the others.
      norms: of these columns, (k,): their part of D.
    """

    basis: np.ndarray
    triangle: np.ndarray
    chosen: np.ndarray
    norms: np.ndarray

    @classmethod
    def of(cls, columns: np.ndarray) -> ColumnBasis:
        """That of X (m, c)."""
        norms = np.linalg.norm(columns, axis=0)
        scaled = columns / np.where(norms > 0.0, norms, 1.0)
        basis, triangle, pivots = scipy.linalg.qr(scaled, mode="economic", pivoting=True, check_finite=False)
        diagonal = np.abs(np.diag(triangle))
        rank = int(np.count_nonzero(diagonal > _RANK_TOL * diagonal.max(initial=0.0)))
        chosen = pivots[:rank]
        return cls(basis[:, :rank], triangle[:rank, :rank], chosen, norms[chosen])

    def coefficients(self, targets: np.ndarray) -> np.ndarray:
        """Least squares of targets (m, R) on the columns `chosen`, (k, R)."""
        found = scipy.linalg.solve_triangular(self.triangle, self.basis.T @ targets, check_finite=False)
        return found / self.norms[:, None]
