"""The averaged iteration in float64 on the host's arrays, dense by JAX and CSR by SciPy.

x ← (1 − α) x + α φ(Ax + Bu + b),     α = 1 / (1 − min(0, min_i a_ii))
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from simjax._typing import Weights
from simjax.implicit.activations import activation as find_activation


def iterate(A: Weights, drive: np.ndarray, name: str, tol: float, max_iters: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Iterates from 0 until the last step of every sample is at most α · tol · max(1, max|x⁺|), or overflows.

    Args:
      A: (n, n).
      drive: (m, n), Bu + b.
      name: of φ.

    Returns:
      The states (m, n), the size (m,) max|x⁺ − x| / (α max(1, max|x⁺|)) of their last steps, and the passes made.
    """
    lowest = min(0.0, float(A.diagonal().min(initial=0.0)))
    step = 1.0 / (1.0 - lowest) if lowest < 0.0 else None  # None keeps the plain iteration exact
    if sp.issparse(A):
        return _averaged_csr(A, drive, name, step, tol, max_iters)
    return _averaged_dense(A, drive, name, step, tol, max_iters)


def _averaged_dense(
    A: np.ndarray, drive: np.ndarray, name: str, step: float | None, tol: float, max_iters: int
) -> tuple:
    """Iterates x ← (1 − α) x + α φ(Ax + drive) from 0 in float64 until every sample has converged or overflowed."""
    with jax.enable_x64(True):
        X, residual, iterations = _averaged(jnp.asarray(A.T), jnp.asarray(drive), name, step, tol, max_iters)
        return np.array(X), np.array(residual), int(iterations)


@partial(jax.jit, static_argnames="name")
def _averaged(A_T: jax.Array, drive: jax.Array, name: str, step: float | None, tol: float, max_iters: int) -> tuple:
    phi = find_activation(name)

    def advance(carry: tuple) -> tuple:
        X, _, k = carry
        X_next = _averaged_with(X, phi(X @ A_T + drive), step)
        return X_next, _last_step(X_next, X, step, jnp), k + 1

    def unfinished(carry: tuple) -> jax.Array:
        _, residual, k = carry
        return (k < max_iters) & jnp.any((residual > tol) & jnp.isfinite(residual))

    start = advance((jnp.zeros_like(drive), jnp.zeros(drive.shape[0]), jnp.asarray(0)))
    return jax.lax.while_loop(unfinished, advance, start)


def _averaged_csr(
    A: sp.csr_array, drive: np.ndarray, name: str, step: float | None, tol: float, max_iters: int
) -> tuple:
    """The same iteration with SciPy's sparse product."""
    phi, A_T = find_activation(name).host, A.T
    X, residual, k = np.zeros_like(drive), np.full(drive.shape[0], np.finfo(float).max), 0
    with np.errstate(over="ignore", invalid="ignore"):  # divergence shows in the residual
        while k < max_iters and np.any((residual > tol) & np.isfinite(residual)):
            X, previous, k = _averaged_with(X, phi(X @ A_T + drive), step), X, k + 1
            residual = _last_step(X, previous, step, np)
    return X, residual, k


def _averaged_with(X: Any, image: Any, step: float | None) -> Any:
    return image if step is None else (1.0 - step) * X + step * image


def _last_step(X_next: Any, X: Any, step: float | None, xp: Any) -> Any:
    return xp.max(xp.abs(X_next - X), axis=1) / (
        (1.0 if step is None else step) * xp.maximum(1.0, xp.max(xp.abs(X_next), axis=1))
    )
