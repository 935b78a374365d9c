"""Trainable networks of SLL and sandwich layers, and the same as one Lipschitz form."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax.implicit.equilibrium import affine
from simjax.nn.base import scaled_normal
from simjax.nn.lben import LipschitzForm, amplify, cascade, sandwich, sll


class LipschitzNetwork(nnx.Module):
    """SLL layers, then sandwich layers, times γ: γ-Lipschitz in l2 for every value of the parameters.

        SLL         x − 2KᵀT⁻¹relu(Kx + b),       T_i = Σ_j |KKᵀ|_ij q_j/q_i,   q = exp(free)
        sandwich    √2 GᵀΨ relu(√2 Ψ⁻¹Hx + b),    [G H] = L⁻¹M, MMᵀ = LLᵀ,      Ψ = exp(free)

    Args:
      p: number of inputs.
      residual: states of each SLL layer.
      sandwiches: (states, outputs) of each sandwich layer.
      gamma: γ.
      rngs: random numbers for the initial weights.
    """

    def __init__(
        self, p: int, residual: Sequence[int], sandwiches: Sequence[tuple[int, int]], gamma: float, rngs: nnx.Rngs
    ) -> None:
        self.gamma = gamma
        self.K = nnx.List(scaled_normal(rngs, (h, p)) for h in residual)
        self.K_bias = nnx.List(nnx.Param(jnp.zeros(h)) for h in residual)
        self.q = nnx.List(nnx.Param(jnp.zeros(h)) for h in residual)
        inputs = [p, *(q for _, q in sandwiches[:-1])]
        self.M = nnx.List(scaled_normal(rngs, (h, q + into)) for (h, q), into in zip(sandwiches, inputs))
        self.M_bias = nnx.List(nnx.Param(jnp.zeros(h)) for h, _ in sandwiches)
        self.psi = nnx.List(nnx.Param(jnp.zeros(h)) for h, _ in sandwiches)
        self.outputs = tuple(q for _, q in sandwiches)

    def __call__(self, u: jax.Array) -> jax.Array:
        """Outputs (m, q) for inputs (m, p)."""
        for K, bias, free in zip(self.K, self.K_bias, self.q):
            q = jnp.exp(free[...])
            T = jnp.abs(K[...] @ K[...].T) @ q / q
            u = u - affine((2.0 / T * K[...].T), jax.nn.relu(affine(K[...], u, bias[...])))
        for M, bias, free, width in zip(self.M, self.M_bias, self.psi, self.outputs):
            psi, rows = jnp.exp(free[...]), orthonormal(M[...])
            G, H = rows[:, :width], rows[:, width:]
            u = affine(np.sqrt(2.0) * (G.T * psi), jax.nn.relu(affine(np.sqrt(2.0) * H / psi[:, None], u, bias[...])))
        return self.gamma * u

    def form(self) -> LipschitzForm:
        """The network as one Lipschitz form, in float64."""
        exact = []
        for K, bias, free in zip(self.K, self.K_bias, self.q):
            k, b, q = (np.asarray(part[...], np.float64) for part in (K, bias, free))
            exact.append(sll(k, b, np.exp(q)))
        for M, bias, free, width in zip(self.M, self.M_bias, self.psi, self.outputs):
            with jax.enable_x64(True):
                rows = np.asarray(orthonormal(jnp.asarray(M[...], jnp.float64)))
            psi = np.exp(np.asarray(free[...], np.float64))
            exact.append(sandwich(rows[:, :width], rows[:, width:], psi, np.asarray(bias[...], np.float64)))
        return amplify(functools.reduce(cascade, exact), self.gamma)


def orthonormal(M: jax.Array) -> jax.Array:
    """L⁻¹M with MMᵀ = LLᵀ: orthonormal rows."""
    return jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(M @ M.T), M, lower=True)
