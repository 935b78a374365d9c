"""The samples of a fold's training part, in as few rows as the products of their columns need.

With the columns centred by the means of all samples, the moments of a training part are those of all samples less those
of its test part,

    ΦᵀΦ = Σ_all vφφᵀ − Σ_test vφφᵀ,     Φᵀt and Σv likewise,

then centred by its own mean, and any R with RᵀR = ΦᵀΦ and z = R⁻ᵀΦᵀt state its rows again. A Gram matrix
squares the condition number: directions below 1e-7 of the largest are lost, too small to matter for a choice of α.
Source: Hastie, Tibshirani & Friedman, The Elements of Statistical Learning (2009), §7.10, for the folds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

_WELL_CONDITIONED = 1e-5  # of the pivots of a Cholesky factor
_RANK_TOL = 1e-14  # of the largest eigenvalue of ΦᵀΦ


class Moments(NamedTuple):
    """Weighted sums over samples.

    Attributes:
      weight: Σv.
      mean: Σvφ, (d + k,), of features and targets side by side.
      square: Σvφφᵀ, (d + k, d + k).
    """

    weight: float
    mean: np.ndarray
    square: np.ndarray

    @classmethod
    def of(cls, columns: np.ndarray, weight: np.ndarray | None) -> Moments:
        """Those of columns (n, d + k) with weights (n,) or None for ones."""
        weighted = columns if weight is None else weight[:, None] * columns
        total = float(len(columns)) if weight is None else float(weight.sum())
        return cls(total, weighted.sum(axis=0), weighted.T @ columns)

    def less(self, other: Moments) -> Moments:
        """Those of the samples that `other` does not have."""
        return Moments(self.weight - other.weight, self.mean - other.mean, self.square - other.square)

    def centred(self) -> np.ndarray:
        """Σv(φ − φ̄)(φ − φ̄)ᵀ, (d + k, d + k)."""
        return self.square - np.outer(self.mean, self.mean) / self.weight


class Rows(NamedTuple):
    """The rows of a training part: R (r, d), z (r, k), and the moments ΦᵀΦ (d, d) and Φᵀt (d, k) they came from."""

    design: np.ndarray
    targets: np.ndarray
    gram: np.ndarray
    products: np.ndarray


def rows_of(gram: np.ndarray, features: int) -> Rows:
    """R = S^½Vᵀ and z = S^−½VᵀΦᵀt from the moments (d + k, d + k) of features and targets, with ΦᵀΦ = V S Vᵀ."""
    square, products = gram[:features, :features], gram[:features, features:]
    triangle, failed = lapack.dpotrf(square)
    if not failed and np.diag(triangle).min() > _WELL_CONDITIONED * np.diag(triangle).max():
        inside = scipy.linalg.solve_triangular(triangle, products, trans="T", check_finite=False)
        return _with_the_rest(triangle, inside, gram, features)
    eigenvalues, vectors = scipy.linalg.eigh(square, check_finite=False)
    keep = eigenvalues > _RANK_TOL * eigenvalues[-1]
    root, vectors = np.sqrt(eigenvalues[keep]), vectors[:, keep]
    inside = (vectors.T @ products) / root[:, None]
    return _with_the_rest(root[:, None] * vectors.T, inside, gram, features)


def _with_the_rest(root: np.ndarray, inside: np.ndarray, gram: np.ndarray, features: int) -> Rows:
    """With one more sample for what of t is outside the range of R: it costs every w the same."""
    outside = np.sqrt(np.maximum(np.diag(gram)[features:] - np.sum(inside**2, axis=0), 0.0))
    design = np.asfortranarray(np.vstack([root, np.zeros((1, features))]))
    targets = np.asfortranarray(np.vstack([inside, outside]))
    square, products = gram[:features, :features], gram[:features, features:]
    return Rows(design, targets, np.ascontiguousarray(square), np.asfortranarray(products))
