"""What certificates and attacks share: a model's matrices and equilibria in float64, and (I − ⌈A⌉)⁻¹."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from simjax._checks import float_array, matrix
from simjax._typing import ArrayLike
from simjax.implicit.activations import activation as find_activation
from simjax.implicit.equilibrium import eliminate_diagonal, equilibrium
from simjax.implicit.matrices import preactivations
from simjax.implicit.model import ImplicitModel
from simjax.implicit.wellposed import matrix_measure, metzler, optimal_weights

NORMS = ("inf", "l2")
TOL = 1e-12
MAX_ITERS = 20_000


def dense_matrices(model: ImplicitModel) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if not isinstance(model, ImplicitModel):
        raise TypeError(f"model must be an ImplicitModel, got {type(model).__name__}.")
    dense = model.to_dense()
    return dense.A, dense.B, dense.C, dense.D


def checked_inputs(model: ImplicitModel, inputs: ArrayLike, name: str = "inputs") -> np.ndarray:
    dense_matrices(model)
    U = matrix(name, inputs)
    if U.shape[1] != model.p:
        raise ValueError(f"{name} must have shape (m, {model.p}), got {U.shape}.")
    return U


def nonnegative(name: str, value: ArrayLike) -> float:
    array = float_array(name, value)
    if array.ndim != 0 or array < 0.0:
        raise ValueError(f"{name} must be a number >= 0, got {value!r}.")
    return float(array)


def batches(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (array[k : k + size] for k in range(0, len(array), size))


def norm_inf(M: np.ndarray) -> float:
    return float(np.abs(M).sum(axis=1).max())


def sensitivity(A: np.ndarray, B: np.ndarray, C: np.ndarray, D: np.ndarray) -> np.ndarray:
    """E = |C|(I − ⌈A⌉)⁻¹|B| + |D|, by a solve with the fewer right-hand sides."""
    if C.shape[0] < B.shape[1]:
        return inverse_majorant(A.T, np.abs(C).T).T @ np.abs(B) + np.abs(D)
    return np.abs(C) @ inverse_majorant(A, np.abs(B)) + np.abs(D)


def inverse_majorant(A: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(I − ⌈A⌉)⁻¹·columns, for columns ≥ 0; an error where the inverse is not nonnegative."""
    if optimal_weights(A) is None:
        raise ValueError(
            "model must have μ_η(A) < 1 for some weights η > 0 (spectral abscissa of A's Metzler majorant "
            f"below one) for this bound to exist; it has ‖A‖∞ = {norm_inf(A):.4g} and "
            f"μ∞(A) = {matrix_measure(A):.4g}."
        )
    return np.linalg.solve(np.eye(len(A)) - metzler(A), columns)


def state_equation(model: ImplicitModel) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A, B and b, or those of the equivalent hollow model where there is one: it needs fewer iterations."""
    A, B, _, _ = dense_matrices(model)
    if model.activation not in ("relu", "identity") or np.diag(A).max() >= 1.0:
        return A, B, model.b
    with jax.enable_x64(True):
        bias = None if model.b is None else jnp.asarray(model.b)
        hollow, scaled, bias = eliminate_diagonal(jnp.asarray(A), jnp.asarray(B), bias)
        return np.asarray(hollow), np.asarray(scaled), None if bias is None else np.asarray(bias)


def host_equilibrium(model: ImplicitModel, U: np.ndarray) -> np.ndarray:
    """(m, n) states; NaN for a sample that did not converge."""
    A, B, b = state_equation(model)
    with jax.enable_x64(True):
        parts = [
            equilibrium(A, B, u, b, activation=model.activation, tol=TOL, max_iters=MAX_ITERS).x
            for u in batches(U, 1000)
        ]
        return np.concatenate([np.asarray(x) for x in parts])


def equilibrium_and_error(model: ImplicitModel, U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States X (m, n) and elementwise bounds on their error.

    With r = φ(Ax + Bu + b) − x the error is at most (I − ⌈A⌉)⁻¹ max(1, 1 − a_ii)|r|.

    Raises:
      ValueError: a model with μ_η(A) < 1 for no weights η.
      RuntimeError: the iteration ended before it converged.
    """
    A, *_ = dense_matrices(model)
    inverse_majorant(A, np.ones((len(A), 1)))  # fail before the iteration, not after it
    X = host_equilibrium(model, U)
    lost = ~np.isfinite(X).all(axis=1)
    if lost.any():
        raise RuntimeError(f"{lost.sum()} of {len(U)} equilibria were not found in {MAX_ITERS} iterations.")
    r = find_activation(model.activation).host(preactivations(model, X, U)) - X
    return X, inverse_majorant(A, np.maximum(1.0, 1.0 - np.diag(A))[:, None] * np.abs(r).T).T
