"""One factorisation of the design, shared by every row and every ρ.

    Φ = U S Vᵀ      V (d, r) with orthonormal columns, r ≤ min(m, d)

In these coordinates λ‖t − Φw‖² = λ‖t̃ − S Vᵀw‖² + λ(‖t‖² − ‖t̃‖²) with t̃ = Uᵀt: whatever m is, the solvers work on
r equations, and a step of ADMM for any ρ is two products with V.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any

# From this many samples per coordinate on, ΦᵀΦ and its eigenvectors are cheaper than a QR factorisation of Φ.
_GRAM_FROM = 4
_RANK_TOL_QR = 1e-15
_RANK_TOL_GRAM = 1e-14


@jax.tree_util.register_dataclass
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
    precise: bool = dataclasses.field(metadata={"static": True})

    def apply(self, weights: Array) -> Array:
        """S Vᵀw for each row, (R, r)."""
        return jnp.matmul(weights, self.basis, precision="highest") * self.singular_values

    def apply_transpose(self, vectors: Array) -> Array:
        """V S y for each row, (R, d)."""
        return jnp.matmul(vectors * self.singular_values, self.basis.T, precision="highest")


def factorise(design: np.ndarray, targets: np.ndarray, *, precise: bool) -> tuple[Factorisation, np.ndarray]:
    """Factorise the design and express the targets in its coordinates.

    Args:
      design: Φ, (m, d).
      targets: (m, R).
      precise: factorise Φ itself by QR and SVD whatever it costs; otherwise ΦᵀΦ is used where m ≥ 4 d.

    Returns:
      The factorisation and t̃ = Uᵀt, (R, r).
    """
    m, d = design.shape
    if m >= _GRAM_FROM * d and not precise:
        gram, correlation = _moments(jnp.asarray(design), jnp.asarray(targets))
        return factorise_gram(np.asarray(gram), np.asarray(correlation))
    left, singular, right = _qr_svd(jnp.asarray(design))
    singular = np.asarray(singular)
    keep = np.count_nonzero(singular > _RANK_TOL_QR * singular[0]) if singular[0] > 0.0 else 0
    keep = max(keep, 1)
    scale = singular[0] if singular[0] > 0.0 else 1.0
    factorisation = Factorisation(
        jnp.asarray(right[:, :keep]), jnp.asarray(singular[:keep] / scale), jnp.asarray(scale), True
    )
    return factorisation, np.asarray(targets.T @ np.asarray(left[:, :keep]))


def factorise_gram(gram: np.ndarray, correlation: np.ndarray) -> tuple[Factorisation, np.ndarray]:
    """The factorisation from the sufficient statistics ΦᵀΦ (d, d) and ΦᵀT (d, R): t̃ = S⁻¹VᵀΦᵀt."""
    values, vectors = (np.asarray(x) for x in _eigh(jnp.asarray(gram)))
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = max(int(np.count_nonzero(values > _RANK_TOL_GRAM * max(values[0], 0.0))), 1)
    singular = np.sqrt(np.maximum(values[:keep], 0.0))
    scale = singular[0] if singular[0] > 0.0 else 1.0
    basis = np.ascontiguousarray(vectors[:, :keep])
    safe = np.where(singular > 0.0, singular, 1.0)
    coordinates = (correlation.T @ basis) / safe * (singular > 0.0)
    factorisation = Factorisation(jnp.asarray(basis), jnp.asarray(singular / scale), jnp.asarray(scale), False)
    return factorisation, coordinates


@jax.jit
def _moments(design: Array, targets: Array) -> tuple[Array, Array]:
    return jnp.matmul(design.T, design, precision="highest"), jnp.matmul(design.T, targets, precision="highest")


@jax.jit
def _eigh(gram: Array) -> tuple[Array, Array]:
    return jnp.linalg.eigh(gram)


@jax.jit
def _qr_svd(design: Array) -> tuple[Array, Array, Array]:
    """U (m, k), S (k,), V (d, k) with k = min(m, d): QR of the tall side, then the SVD of the small triangle."""
    m, d = design.shape
    orthogonal, triangle = jnp.linalg.qr(design if m >= d else design.T)
    left, singular, right = jnp.linalg.svd(triangle, full_matrices=False)
    tall, short = jnp.matmul(orthogonal, left, precision="highest"), right.T
    return (tall, singular, short) if m >= d else (short, singular, tall)
