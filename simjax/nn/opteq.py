"""Optimization-induced equilibrium networks (Xie et al. 2021), reconstructed from their abstract.

A unit layer f(z) = Wᵀσ(Wz + Bu + b) with ‖W‖₂ ≤ 1 and σ the prox of g is itself a prox, so its equilibrium
solves an optimisation problem. With s = σ(Wz + Bu + b) and z = Wᵀs it is an implicit model in s:

    s = σ(WWᵀs + Bu + b)   and   s = argmin g(s) + ½sᵀ(I − WWᵀ)s − (Bu + b)ᵀs,   unique if ‖W‖₂ < 1

For L layers z_l = f_l(z_{l+1}), z_L = f_L(z_1), and A is block cyclic with blocks W_l W_{l+1}ᵀ. For L = 2
the equilibrium still minimises φ₁(z₁) + φ₂(z₂) + ½‖z₁ − z₂‖²; for L ≥ 3 no objective is claimed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax._checks import positive_integer, positive_scalar
from simjax.implicit.activations import activation as find_activation
from simjax.implicit.equilibrium import affine
from simjax.implicit.loop import Solver
from simjax.nn.base import (
    ImplicitModule,
    Matrices,
    checked_sizes,
    in_float64,
    scaled_normal,
    within_norm,
)


class OptEq(ImplicitModule):
    """s = σ(WWᵀs + Bu + b), y = C_out Wᵀs + c with ‖W‖₂ ≤ r: a contraction with factor r² for r < 1.

    Lipschitz in l2 with the constant ‖C_outWᵀ‖₂‖B‖₂/(1 − r²).

    Args:
      p, n, q: numbers of inputs, states (of all layers together) and outputs.
      d: size of z; None is n/layers.
      layers: number of unit layers in the cycle; divides n.
      norm_bound: r in (0, 1]. At 1 the equilibrium need not be unique: see `select_fixed_point`.
      activation: name of σ.
      solver: settings of the fixed-point iteration.
      rngs: random numbers for the initial weights; None means `nnx.Rngs(0)`.

    Raises:
      ValueError: a size below one, layers that do not divide n, norm_bound outside (0, 1], an unknown
        activation.
      TypeError: sizes that are not integers.

    Examples:
      >>> import numpy as np
      >>> from simjax.nn import OptEq
      >>> network = OptEq(3, 6, 2)
      >>> network(np.ones((4, 3), np.float32)).shape
      (4, 2)
    """

    def __init__(
        self,
        p: int,
        n: int,
        q: int,
        *,
        d: int | None = None,
        layers: int = 1,
        norm_bound: float = 0.95,
        activation: str = "relu",
        solver: Solver | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        super().__init__(activation, solver)
        p, n, q = checked_sizes(p, n, q)
        self.layers = positive_integer("layers", layers)
        if n % self.layers:
            raise ValueError(f"layers must divide n = {n}, got {layers}.")
        width = n // self.layers
        d = width if d is None else positive_integer("d", d)
        self.norm_bound = positive_scalar("norm_bound", norm_bound)
        if self.norm_bound > 1.0:
            raise ValueError(f"norm_bound must be in (0, 1], got {norm_bound:g}.")
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.W = nnx.List(scaled_normal(rngs, (width, d)) for _ in range(self.layers))
        self.B = scaled_normal(rngs, (n, p))
        self.C = scaled_normal(rngs, (q, d))
        self.b = nnx.Param(jnp.zeros(n))
        self.c = nnx.Param(jnp.zeros(q))

    def bounded_weights(self) -> list[jax.Array]:
        """W_1, …, W_L (n/L, d), each with ‖W_l‖₂ ≤ norm_bound."""
        return [within_norm(W[...], self.norm_bound) for W in self.W]

    def matrices(self) -> Matrices:
        """A = WWᵀ (block cyclic for several layers), B, C = C_out W_1ᵀ, b, c."""
        W = self.bounded_weights()
        blocks = [[jnp.zeros((len(row), len(col)), row.dtype) for col in W] for row in W]
        for l, row in enumerate(W):
            following = (l + 1) % len(W)
            blocks[l][following] = row @ W[following].T
        C = jnp.zeros((self.C.shape[0], self.B.shape[0]), W[0].dtype).at[:, : len(W[0])].set(self.C[...] @ W[0].T)
        return Matrices(jnp.block(blocks), self.B[...], C, None, self.b[...], self.c[...])

    def layer(self, u: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """The map f(z) (m, d) → (m, d), f_1 ∘ … ∘ f_L, whose fixed point is z = W_1ᵀs_1; outputs are Cz + c."""
        phi, weights = find_activation(self.activation), self.bounded_weights()
        drives = jnp.split(affine(self.B[...], u, self.b[...]), self.layers, axis=1)

        def f(z: jax.Array) -> jax.Array:
            for W, drive in zip(reversed(weights), reversed(drives)):
                z = affine(W.T, phi(affine(W, z, drive)))
            return z

        return f

    def lipschitz_l2(self) -> float:
        """‖C_outWᵀ‖₂‖B‖₂/(1 − max‖W_l‖₂²) in float64, inf if the norm is 1: an l2 Lipschitz bound of u ↦ y."""
        with jax.enable_x64(True):
            contraction = max(float(np.linalg.norm(W, 2)) for W in in_float64(self).bounded_weights()) ** 2
        model = self.export()
        product = float(np.linalg.norm(model.C, 2) * np.linalg.norm(model.B, 2))
        return product / (1.0 - contraction) if contraction < 1.0 else np.inf


def select_fixed_point(
    f: Callable[[jax.Array], jax.Array],
    z0: Any,
    prior_gradient: Callable[[jax.Array], jax.Array],
    *,
    step: float,
    iterations: int = 10_000,
) -> jax.Array:
    """The fixed point of a nonexpansive f that minimises a convex prior ω.

        z ← β_k(z − t∇ω(z)) + (1 − β_k)f(z),   β_k = 1/(k + 1)

    With an L-smooth and μ-strongly convex ω and t ≤ 2/(L + μ) the distance to
    argmin{ω(z): z = f(z)} falls like k^−min(1, tμ), so take tμ = 1 where the step allows it (sequential averaging,
    Sabach, Shtern 2017). For fixed sets that are not single points, as of an OptEq with ‖W‖₂ = 1.

    Args:
      f: maps (m, d) to (m, d), rows separately; `OptEq.layer(u)`.
      z0: (m, d) start.
      prior_gradient: ∇ω, rows separately.
      step: t > 0.
      iterations: how many; there is no stopping rule, so check z ≈ f(z).

    Returns:
      z (m, d), in the dtype of z0.

    Raises:
      ValueError: step ≤ 0, iterations < 1.
    """
    step, iterations = positive_scalar("step", step), positive_integer("iterations", iterations)

    def advance(k: jax.Array, z: jax.Array) -> jax.Array:
        beta = 1.0 / (k + 2.0).astype(z.dtype)  # k counts from 0; β₀ = 1 would forget the start
        return beta * (z - step * prior_gradient(z)) + (1.0 - beta) * f(z)

    return jax.lax.fori_loop(0, iterations, lambda k, z: advance(jnp.asarray(k), z), jnp.asarray(z0))
