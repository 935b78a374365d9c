"""NEMON: implicit networks that are well-posed in a weighted l∞ norm (Jafarpour et al., NeurIPS 2021)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax._checks import float_array
from simjax.implicit.equilibrium import Equilibrium, eliminate_diagonal
from simjax.implicit.loop import Solver
from simjax.implicit.model import ImplicitModel
from simjax.implicit.wellposed import matrix_measure, optimal_weights
from simjax.nn.base import ImplicitModule, Matrices, checked_sizes, in_float64, scaled_normal


class NEMON(ImplicitModule):
    """x = φ(Ax + Bu + b), y = Cx + Du + c with μ_η(A) ≤ γ < 1 for every value of the parameters.

        A = γI + [η]T[η]⁻¹ − diag(|T|1),   η = exp(d),   T and d free

    Every A with μ_η(A) ≤ γ is reached. The paper's l∞ set is larger than ‖A‖∞ ≤ γ. For ReLU the equilibrium
    is found on the equivalent hollow model (`eliminate_diagonal`), else by the averaged step or its
    acceleration.

    Args:
      p, n, q: numbers of inputs, states and outputs.
      gamma: γ < 1, fixed; negative values are allowed and contract more.
      activation: name of φ.
      direct: whether inputs also reach the outputs directly, by a matrix D.
      solver: settings of the fixed-point iteration; "picard" is only safe for ReLU and identity.
      rngs: random numbers for the initial weights; None means `nnx.Rngs(0)`.

    Raises:
      ValueError: a size below one, gamma ≥ 1 or not finite, an unknown activation.
      TypeError: sizes that are not integers.

    Examples:
      >>> import numpy as np
      >>> from simjax.nn import NEMON
      >>> network = NEMON(3, 6, 2, gamma=0.5)
      >>> network(np.ones((4, 3), np.float32)).shape
      (4, 2)
    """

    def __init__(
        self,
        p: int,
        n: int,
        q: int,
        *,
        gamma: float = 0.0,
        activation: str = "relu",
        direct: bool = False,
        solver: Solver | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        super().__init__(activation, solver)
        p, n, q = checked_sizes(p, n, q)
        self.gamma = _checked_gamma(gamma)
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.T = scaled_normal(rngs, (n, n), 0.5)
        self.d = nnx.Param(jnp.zeros(n))
        self.B = scaled_normal(rngs, (n, p))
        self.C = scaled_normal(rngs, (q, n))
        self.D = nnx.Param(jnp.zeros((q, p))) if direct else None
        self.b = nnx.Param(jnp.zeros(n))
        self.c = nnx.Param(jnp.zeros(q))

    @classmethod
    def from_model(
        cls,
        model: ImplicitModel,
        *,
        gamma: float | None = None,
        eta: Any = None,
        solver: Solver | None = None,
    ) -> NEMON:
        """The NEMON with the matrices of `model`: T_ij = a_ij η_j/η_i, T_ii = ½(a_ii + Σ_{j≠i}|T_ij| − γ).

        Args:
          model: an implicit model with μ_η(A) ≤ gamma.
          gamma: γ < 1; None is the smallest possible, μ_η(A).
          eta: (n,) positive weights; None is `optimal_weights(A)`.
          solver: as the class.

        Raises:
          TypeError: model that is not an ImplicitModel.
          ValueError: a model with μ_η(A) above gamma, or, without eta, with μ_η(A) < 1 for no η.
        """
        if not isinstance(model, ImplicitModel):
            raise TypeError(f"model must be an ImplicitModel, got {type(model).__name__}.")
        dense = model.to_dense()
        eta = optimal_weights(dense.A) if eta is None else float_array("eta", eta)
        if eta is None:
            raise ValueError("model must have μ_η(A) < 1 for some weights η > 0; it has none.")
        measure = matrix_measure(dense.A, eta)
        gamma = measure if gamma is None else gamma
        if measure > _checked_gamma(gamma) + 1e-12 * max(1.0, abs(gamma)):
            raise ValueError(f"model must have μ_η(A) ≤ gamma = {gamma:g}, it has {measure:.6g}.")
        module = cls(
            model.p,
            model.n,
            model.q,
            gamma=gamma,
            activation=model.activation,
            direct=bool(np.any(dense.D)),
            solver=solver,
        )
        T = dense.A * eta / eta[:, None]
        others = np.abs(T).sum(axis=1) - np.abs(np.diag(T))
        np.fill_diagonal(T, 0.5 * (np.diag(T) + others - gamma))
        values = {
            "T": T,
            "d": np.log(eta),
            "B": dense.B,
            "C": dense.C,
            "D": dense.D,
            "b": model.b,
            "c": model.c,
        }
        for name, value in values.items():
            if getattr(module, name) is not None and value is not None:
                getattr(module, name)[...] = jnp.asarray(value)
        return module

    def matrices(self) -> Matrices:
        """A, B, C, D, b, c from the parameters."""
        T, eta = self.T[...], jnp.exp(self.d[...])
        diagonal = self.gamma - jnp.sum(jnp.abs(T), axis=1)
        A = eta[:, None] * T / eta[None] + jnp.diag(diagonal)
        D = None if self.D is None else self.D[...]
        return Matrices(A, self.B[...], self.C[...], D, self.b[...], self.c[...])

    def solve(self, matrices: Matrices, u: jax.Array) -> Equilibrium:
        """The equilibrium for inputs u (m, p), with a report per sample (on the hollow model where there is one)."""
        if self.activation in ("relu", "identity"):
            A, B, b = eliminate_diagonal(matrices.A, matrices.B, matrices.b)
            matrices = matrices._replace(A=A, B=B, b=b)
        return super().solve(matrices, u)

    def weights(self) -> np.ndarray:
        """η (n,) in float64, for which μ_η(A) ≤ γ: the weights of `lipschitz_bounds`."""
        return np.exp(np.asarray(self.d[...], dtype=np.float64))

    def lipschitz_inf(self) -> float:
        """‖C[η]‖∞‖[η]⁻¹B‖∞/(1 − γ) + ‖D‖∞ in float64: an l∞ Lipschitz bound of u ↦ y."""
        with jax.enable_x64(True):
            C, B, D = in_float64(self)._weighted_norms()
            return float(C * B / (1.0 - self.gamma) + D)

    def lipschitz_penalty(self) -> jax.Array:
        """(‖[η]⁻¹B‖∞² + ‖C[η]‖∞²)/(2(1 − max(γ, 0))), differentiable: at least the bound without D, for training."""
        C, B, _ = self._weighted_norms()
        return (B**2 + C**2) / (2.0 * (1.0 - max(self.gamma, 0.0)))

    def _weighted_norms(self) -> tuple[jax.Array, jax.Array, jax.Array | float]:
        eta = jnp.exp(self.d[...])
        C = jnp.abs(self.C[...] * eta).sum(axis=1).max()
        B = jnp.abs(self.B[...] / eta[:, None]).sum(axis=1).max()
        return C, B, 0.0 if self.D is None else jnp.abs(self.D[...]).sum(axis=1).max()


def _checked_gamma(gamma: Any) -> float:
    value = float_array("gamma", gamma)
    if value.ndim != 0 or value >= 1.0:
        raise ValueError(f"gamma must be a number below 1, got {gamma!r}.")
    return float(value)
