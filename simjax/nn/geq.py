"""GEQ, equilibrium models with a Gaussian kernel for the input–state coupling. A RECONSTRUCTION.

The published model (Li et al., "GEQ: Gaussian kernel inspired equilibrium models", NeurIPS 2023) was not
available in full; only its idea is: a Gaussian kernel replaces the linear kernel between inputs and states
of an OptEq. This is one implementable reading of it, with its own analysis; it makes no claim to the
paper's numbers.

    r = Bu + b − Hz,   k = exp(−γ‖r‖²),   z = Wᵀs,   s = σ(W(z + kHᵀr))

A stationary point of J(s) = g(s) + ½‖s‖² − ½‖Wᵀs‖² − k/(2γ). With ‖H‖₂ ≤ 1 the map contracts by
q = ‖W‖₂²(1 + 2e^(−3/2)‖H‖₂²), so for q < 1 the equilibrium is unique and the minimiser of J. An input's
influence is
bounded: ‖kr‖₂ ≤ 1/√(2eγ). For γ → 0 it is an OptEq with the injection Hᵀ(Bu + b − Hz).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from simjax._checks import matrix, positive_integer, positive_scalar
from simjax.implicit.activations import Activation
from simjax.implicit.activations import activation as find_activation
from simjax.implicit.equilibrium import Equilibrium, affine, fixed_point
from simjax.implicit.loop import Solver
from simjax.nn.base import (
    checked_sizes,
    found,
    in_float64,
    input_rows,
    like_inputs,
    scaled_normal,
    spectral_norm,
    within_norm,
)
from simjax.states.states import States

CURVATURE = 2.0 * np.exp(-1.5)
"""2e^(−3/2) = 0.4463: the Hessian of −exp(−γ‖r‖²)/(2γ) lies between −2e^(−3/2)I and I."""


class GEQ(nnx.Module):
    """s = σ(W(z + kHᵀr)), z = Wᵀs, y = Cz + c with a Gaussian kernel k of r = Bu + b − Hz (a reconstruction).

    The pre-activation is not linear in states and inputs, so there is no exact `export()`: a sparse model
    imitates it through `states(u)` only approximately.

    Args:
      p, n, q: numbers of inputs, states and outputs.
      d: size of z; None is n.
      features: size of r; None is d.
      gamma: γ > 0 of the kernel. The reconstruction's source suggests 0.2/M, M the least ‖r‖² over the
        data.
      contraction: q in (0, 1), kept by scaling H to ‖H‖₂ ≤ 1 and W accordingly.
      activation: name of σ.
      solver: settings of the fixed-point iteration.
      rngs: random numbers for the initial weights; None means `nnx.Rngs(0)`.

    Raises:
      ValueError: a size below one, gamma ≤ 0, contraction outside (0, 1), an unknown activation.
      TypeError: sizes that are not integers.

    Examples:
      >>> import numpy as np
      >>> from simjax.nn import GEQ
      >>> network = GEQ(3, 6, 2)
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
        features: int | None = None,
        gamma: float = 0.05,
        contraction: float = 0.9,
        activation: str = "relu",
        solver: Solver | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        p, n, q = checked_sizes(p, n, q)
        d = n if d is None else positive_integer("d", d)
        features = d if features is None else positive_integer("features", features)
        self.gamma = positive_scalar("gamma", gamma)
        self.contraction = positive_scalar("contraction", contraction, below=1.0)
        self.activation = find_activation(activation).name
        self.solver = Solver() if solver is None else solver
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.W = scaled_normal(rngs, (n, d))
        self.H = scaled_normal(rngs, (features, d))
        self.B = scaled_normal(rngs, (features, p))
        self.C = scaled_normal(rngs, (q, d))
        self.b = nnx.Param(jnp.zeros(features))
        self.c = nnx.Param(jnp.zeros(q))

    def bounded_weights(self) -> tuple[jax.Array, jax.Array]:
        """W (n, d) and H (features, d) with ‖H‖₂ ≤ 1 and ‖W‖₂²(1 + 2e^(−3/2)‖H‖₂²) ≤ contraction."""
        H = within_norm(self.H[...], 1.0)
        curved = 1.0 + CURVATURE * spectral_norm(H) ** 2
        return within_norm(self.W[...], jnp.sqrt(self.contraction / curved)), H

    def equilibrium(self, u: ArrayLike) -> Equilibrium:
        """The states s for inputs u (m, p) with a report per sample, or for one sample (p,); raises as a call."""
        return like_inputs(u, self._solve(*self.bounded_weights(), input_rows(u, self.B[...])))

    def __call__(self, u: ArrayLike) -> jax.Array:
        """Outputs (m, q) for inputs (m, p), (q,) for one sample (p,); NaN where the equilibrium was not found.

        Raises:
          ValueError: inputs of another shape.
          TypeError: inputs that are neither float32, float64 nor integers.
        """
        W, H = self.bounded_weights()
        x = self._solve(W, H, input_rows(u, self.B[...])).x
        return like_inputs(u, affine(self.C[...], affine(W.T, x), self.c[...]))

    def _solve(self, W: jax.Array, H: jax.Array, rows: jax.Array) -> Equilibrium:
        drive = affine(self.B[...], rows, self.b[...])
        f = _map(find_activation(self.activation), self.gamma)
        start = jnp.zeros((len(drive), W.shape[0]), drive.dtype)
        return fixed_point(f, (W, H, drive), start, solver=self.solver)

    def states(self, inputs: Any) -> States:
        """The states on `inputs` (m, p), computed in float64 to a residual of 1e-12; no linear baseline.

        Raises:
          ValueError: inputs of another shape or not finite.
          RuntimeError: the equilibrium of some sample was not found.
        """
        U = matrix("inputs", inputs)
        if U.shape[1] != self.B.shape[1]:
            raise ValueError(f"inputs must have shape (m, {self.B.shape[1]}), got {U.shape}.")
        phi = find_activation(self.activation)
        with jax.enable_x64(True):
            equilibria, Z, readout, c = _exact_states(*nnx.split(in_float64(self)), jnp.asarray(U))
        found(*equilibria)
        X = phi.host(np.asarray(Z))
        Y = X @ np.asarray(readout).T + np.asarray(c)
        return States(inputs=U, preactivations=Z, activations=X, outputs=Y, activation=self.activation)

    def lipschitz_l2(self) -> float:
        """‖CWᵀ‖₂‖W‖₂‖H‖₂‖B‖₂/(1 − q) in float64: an l2 Lipschitz bound of u ↦ y."""
        with jax.enable_x64(True):
            exact = in_float64(self)
            W, H = (np.asarray(part) for part in exact.bounded_weights())
            B, C = np.asarray(exact.B[...]), np.asarray(exact.C[...])
        w, h = np.linalg.norm(W, 2), np.linalg.norm(H, 2)
        factor = w**2 * (1.0 + CURVATURE * h**2)
        return float(np.linalg.norm(C @ W.T, 2) * w * h * np.linalg.norm(B, 2) / (1.0 - factor))


@functools.cache
def _map(phi: Activation, gamma: float) -> Any:
    """f((W, H, drive), s) = σ(W(z + kHᵀr)), one function object for each activation and γ."""
    return lambda params, s: phi(_preactivation(params, s, gamma))


@functools.partial(jax.jit, static_argnums=0)
def _exact_states(graph: Any, state: Any, u: jax.Array) -> tuple[Equilibrium, jax.Array, jax.Array, jax.Array]:
    """The equilibrium, the pre-activations, and (C Wᵀ, c) of the outputs; compiled once for each size."""
    module = nnx.merge(graph, state)
    W, H = module.bounded_weights()
    result = module.equilibrium(u)
    Z = _preactivation((W, H, affine(module.B[...], u, module.b[...])), result.x, module.gamma)
    return result, Z, affine(W, module.C[...]), module.c[...]


def _preactivation(params: tuple, s: jax.Array, gamma: float) -> jax.Array:
    """W(z + kHᵀr) with z = Wᵀs, r = drive − Hz, k = exp(−γ‖r‖²), for rows of s."""
    W, H, drive = params
    z = affine(W.T, s)
    r = drive - affine(H, z)
    k = jnp.exp(-gamma * jnp.sum(r**2, axis=1, keepdims=True))
    return affine(W, z + k * affine(H.T, r))
