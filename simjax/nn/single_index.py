"""The deep equilibrium single-index model, and what gradient flow conserves in it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from simjax._checks import matrix, positive_integer
from simjax.implicit.activations import activation as find_activation
from simjax.implicit.equilibrium import Equilibrium
from simjax.implicit.report import EquilibriumInfo
from simjax.nn.base import found, input_rows, like_inputs
from simjax.states.states import States


class SingleIndexDEQ(nnx.Module):
    """z = az + bᵀu, y = φ(z): an activation on a linear equilibrium with the one index θ = b/(1 − a).

    Gradient flow of any loss of the outputs conserves (1 − a)² + ‖b‖² (`conserved`): (1 − a, b) stays on a sphere about
    0, and 1 − a, which could only become 0 where θ is infinite, stays away from it as long as θ is bounded. In θ the
    flow is that of the loss in the metric of this sphere seen from its centre, of squared radius c,

        dθ/dt = −(1 + ‖θ‖²)(I + θθᵀ)∇L(θ)/c.

    Take the mean of ½(φ(θᵀu) − y)² over samples y = φ(θ*ᵀu) with second moment S = mean uuᵀ, and an activation with
    slopes in [γ, 1], γ > 0. Then ‖∇L‖ ≥ γ²λ_min(S)‖θ − θ*‖ and L ≤ ½λ_max(S)‖θ − θ*‖², so that gradient flow
    reaches the global minimum from every start with a < 1, L(t) ≤ L(0) exp(−2γ⁴λ_min(S)²t/(cλ_max(S))), and gradient
    descent does with small steps. Descent with step η adds η²Σ(g_a² + ‖g_b‖²) to (1 − a)² + ‖b‖².

    Source: the model and its claims are those of "Gradient flow for deep equilibrium single-index models"
    (Dandapanthula & Ramdas), of which the abstract is what we had: the parameterisation and this argument are a
    reconstruction.

    Args:
      p: number of inputs.
      activation: name of φ. The argument above holds for "identity" and "leaky_relu", and for "tanh" and "sigmoid"
        as long as indices stay bounded.
      rngs: random numbers for the initial b; a starts at 0. None means `nnx.Rngs(0)`.

    Raises:
      ValueError: p below one, or an unknown activation.
      TypeError: p that is not an integer.

    Examples:
      >>> import numpy as np
      >>> from simjax.nn import SingleIndexDEQ
      >>> network = SingleIndexDEQ(3)
      >>> network(np.ones((4, 3), np.float32)).shape, network.index().shape
      ((4, 1), (3,))
    """

    def __init__(self, p: int, *, activation: str = "leaky_relu", rngs: nnx.Rngs | None = None) -> None:
        p = positive_integer("p", p)
        self.activation = find_activation(activation).name
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.a = nnx.Param(jnp.zeros(()))
        self.b = nnx.Param(jax.random.normal(rngs.params(), (p,)) / np.sqrt(p))

    def index(self) -> jax.Array:
        """θ = b/(1 − a), (p,)."""
        return self.b[...] / (1.0 - self.a[...])

    def equilibrium(self, u: ArrayLike) -> Equilibrium:
        """z for inputs u (m, p), (m, 1), with a report per sample, or for one sample (p,); raises as a call."""
        rows = input_rows(u, self.b[...][None])
        a, b = self.a[...].astype(rows.dtype), self.b[...].astype(rows.dtype)
        z = (rows @ b)[:, None] / (1.0 - a)
        finite = jnp.isfinite(z[:, 0])
        residual = jnp.where(finite, 0.0, jnp.inf).astype(z.dtype)
        z = jnp.where(finite[:, None], z, jnp.nan)
        return like_inputs(u, Equilibrium(z, EquilibriumInfo(finite, residual, jnp.ones(len(z), jnp.int32))))

    def __call__(self, u: ArrayLike) -> jax.Array:
        """Outputs (m, 1) for inputs (m, p), (1,) for one sample (p,); NaN where a = 1.

        Raises:
          ValueError: inputs of another shape.
          TypeError: inputs that are neither float32, float64 nor integers.
        """
        return find_activation(self.activation)(self.equilibrium(u).x)

    def states(self, inputs: Any) -> States:
        """The state z on `inputs` (m, p), in float64; linear in itself and the inputs, while outputs φ(z) are not.

        Raises:
          ValueError: inputs of another shape or not finite.
          RuntimeError: a = 1.
        """
        U = matrix("inputs", inputs)
        if U.shape[1] != self.b.shape[0]:
            raise ValueError(f"inputs must have shape (m, {self.b.shape[0]}), got {U.shape}.")
        with jax.enable_x64(True):
            Z = found(*_exact_states(*nnx.split(_in_float64(self)), jnp.asarray(U)))
        Y = find_activation(self.activation).host(Z)
        return States(inputs=U, preactivations=Z, activations=Z, outputs=Y, activation="identity")

    def conserved(self) -> float:
        """(1 − a)² + ‖b‖² of the present parameters, in float64: a training diagnostic."""
        a, b = float(self.a[...]), np.asarray(self.b[...], np.float64)
        return (1.0 - a) ** 2 + float(b @ b)


@functools.partial(jax.jit, static_argnums=0)
def _exact_states(graph: Any, state: Any, u: jax.Array) -> Equilibrium:
    return nnx.merge(graph, state).equilibrium(u)


def _in_float64(module: SingleIndexDEQ) -> SingleIndexDEQ:
    graph, state = nnx.split(module)
    return nnx.merge(graph, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), state))
