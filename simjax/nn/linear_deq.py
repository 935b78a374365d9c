"""Linear deep equilibrium models and what gradient flow conserves in them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax.implicit.equilibrium import Equilibrium, affine
from simjax.implicit.report import EquilibriumInfo
from simjax.nn.base import ImplicitModule, Matrices, checked_sizes, scaled_normal


class Conserved(NamedTuple):
    """The two matrices that gradient flow of any loss of the outputs leaves as they are, float64 (n, n).

    Attributes:
      inputs: PPᵀ + BBᵀ; its diagonal says that each row (P_i, B_i) stays on a sphere.
      outputs: PᵀP + CᵀC, if C is trained too.
    """

    inputs: np.ndarray
    outputs: np.ndarray


class LinearDEQ(ImplicitModule):
    """z = Az + Bu, y = Cz with A free and P = I − A invertible, solved directly.

    Gradient flow conserves PPᵀ + BBᵀ and PᵀP + CᵀC (`conserved`), which keeps P away from singularity as long
    as P⁻¹B stays bounded: σ_min(P)² ≥ λ_min(P₀P₀ᵀ + B₀B₀ᵀ)/(1 + ‖P⁻¹B‖₂²). Gradient descent with step η adds
    η²Σ(G_PG_Pᵀ + G_BG_Bᵀ), which is positive semidefinite, to the first. It starts at A = 0, where both
    are positive definite.

    Args:
      p, n, q: numbers of inputs, states and outputs.
      rngs: random numbers for the initial weights; None means `nnx.Rngs(0)`.

    Raises:
      ValueError: a size below one.
      TypeError: sizes that are not integers.

    Examples:
      >>> import numpy as np
      >>> from simjax.nn import LinearDEQ
      >>> network = LinearDEQ(3, 6, 2)
      >>> network(np.ones((4, 3), np.float32)).shape, network.conserved().inputs.shape
      ((4, 2), (6, 6))
    """

    def __init__(self, p: int, n: int, q: int, *, rngs: nnx.Rngs | None = None) -> None:
        super().__init__("identity", None)
        p, n, q = checked_sizes(p, n, q)
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.A = nnx.Param(jnp.zeros((n, n)))
        self.B = scaled_normal(rngs, (n, p))
        self.C = scaled_normal(rngs, (q, n))

    def matrices(self) -> Matrices:
        """A, B, C; there are no biases."""
        return Matrices(self.A[...], self.B[...], self.C[...])

    def solve(self, matrices: Matrices, u: jax.Array) -> Equilibrium:
        """The states z = P⁻¹Bu for inputs u (m, p); not finite, and reported, where P is singular."""
        drive = affine(matrices.B, u)
        A = matrices.A.astype(drive.dtype)
        z = jnp.linalg.solve(jnp.eye(len(A), dtype=A.dtype) - A, drive.T).T
        residual = jnp.max(jnp.abs(affine(A, z, drive) - z), axis=1) / jnp.maximum(1.0, jnp.max(jnp.abs(z), axis=1))
        converged = residual <= self.solver.tolerance(z.dtype)
        z = jnp.where(converged[:, None], z, jnp.nan)
        return Equilibrium(z, EquilibriumInfo(converged, residual, jnp.ones(len(z), jnp.int32)))

    def conserved(self) -> Conserved:
        """PPᵀ + BBᵀ and PᵀP + CᵀC of the present parameters: a training diagnostic."""
        model = self.export()
        P = np.eye(model.n) - model.A
        return Conserved(P @ P.T + model.B @ model.B.T, P.T @ P + model.C.T @ model.C)
