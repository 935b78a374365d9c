"""Implicit layers x = φ(Ax + Bu + b), y = Cx + Du + c with ‖A‖∞ ≤ κ for Flax NNX, alone and in a recurrent network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from simjax._checks import choice, positive_integer, positive_scalar
from simjax.implicit.loop import Solver
from simjax.implicit.model import ImplicitModel
from simjax.nn.base import ImplicitModule, Matrices, checked_sizes, outputs, scaled_normal

CONSTRAINTS = ("parameterised", "projected")


class _Support:
    """Which entries of A, B, C, D may be nonzero; hashable, hence static for JAX."""

    def __init__(self, model: ImplicitModel) -> None:
        dense = model.to_dense()
        self.masks = tuple(np.asarray(getattr(dense, name)) != 0.0 for name in "ABCD")
        self._key = tuple((mask.shape, mask.tobytes()) for mask in self.masks)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Support) and self._key == other._key


class ImplicitLayer(ImplicitModule):
    """The implicit layer x = φ(Ax + Bu + b), y = Cx + Du + c with ‖A‖∞ ≤ κ < 1 (SIM paper, eq. 1).

    Args:
      p, n, q: numbers of inputs, states and outputs.
      kappa: κ in (0, 1).
      activation: name of φ.
      constraint: "parameterised": A has the rows a_i·min(1, κ/‖a_i‖₁) of the parameter, so any optimiser
        will do. "projected": A is the parameter itself; call `project()` after each step, which makes
        rows sparse.
      use_bias: whether there are b and c.
      solver: settings of the fixed-point iteration.
      rngs: random numbers for the initial weights; None means `nnx.Rngs(0)`.

    Raises:
      ValueError: a size below one, kappa outside (0, 1), unknown names.
      TypeError: sizes that are not integers.

    Examples:
      >>> import numpy as np
      >>> from simjax.nn import ImplicitLayer
      >>> network = ImplicitLayer(3, 6, 2, kappa=0.5)
      >>> network(np.ones((4, 3), np.float32)).shape, network.export().well_posedness <= 0.5 + 1e-6
      ((4, 2), True)
    """

    def __init__(
        self,
        p: int,
        n: int,
        q: int,
        *,
        kappa: float = 0.99,
        activation: str = "relu",
        constraint: str = "parameterised",
        use_bias: bool = True,
        solver: Solver | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        super().__init__(activation, solver)
        p, n, q = checked_sizes(p, n, q)
        self.kappa = positive_scalar("kappa", kappa, below=1.0)
        self.constraint = choice("constraint", constraint, CONSTRAINTS)
        self.support: _Support | None = None
        rngs = nnx.Rngs(0) if rngs is None else rngs
        # Rows of A start with an absolute sum of about κ/2.
        self.A = scaled_normal(rngs, (n, n), 0.5 * self.kappa * np.sqrt(np.pi / (2.0 * n)))
        self.B = scaled_normal(rngs, (n, p))
        self.C = scaled_normal(rngs, (q, n))
        self.D = nnx.Param(jnp.zeros((q, p)))
        self.b = nnx.Param(jnp.zeros(n)) if use_bias else None
        self.c = nnx.Param(jnp.zeros(q)) if use_bias else None

    def matrices(self) -> Matrices:
        """A, B, C, D, b, c from the parameters."""
        parts = [self.A[...], self.B[...], self.C[...], self.D[...]]
        if self.support is not None:
            parts = [jnp.where(mask, part, 0.0) for mask, part in zip(self.support.masks, parts)]
        A, B, C, D = parts
        if self.constraint == "parameterised":
            norms = jnp.sum(jnp.abs(A), axis=1, keepdims=True)
            A = A * (self.kappa / jnp.maximum(norms, self.kappa))
        biases = (None if bias is None else bias[...] for bias in (self.b, self.c))
        return Matrices(A, B, C, D, *biases)

    def project(self) -> None:
        """Moves the parameter A to the nearest matrix with ‖A‖∞ ≤ κ, in place; also inside jit.

        For use after each optimiser step with `constraint="projected"`.
        """
        # Optax promotes types, whatever the user forbids to code of his own.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            self.A[...] = jax.vmap(lambda row: optax.projections.projection_l1_ball(row, self.kappa))(self.A[...])


def layer_of_model(
    model: ImplicitModel, *, kappa: float, constraint: str, keep_support: bool, solver: Solver | None
) -> ImplicitLayer:
    """What `ImplicitModel.to_flax` gives; arguments and errors as there."""
    if model.well_posedness > positive_scalar("kappa", kappa, below=1.0) * (1.0 + 1e-12):
        raise ValueError(
            f"model must have ‖A‖∞ ≤ kappa = {kappa:g}, it has {model.well_posedness:.6g}; model.rescaled() may "
            "bring it below one."
        )
    has_bias = model.b is not None or model.c is not None
    layer = ImplicitLayer(
        model.p,
        model.n,
        model.q,
        kappa=kappa,
        activation=model.activation,
        constraint=constraint,
        use_bias=has_bias,
        solver=solver,
    )
    dense = model.to_dense()
    for name in "ABCD":
        getattr(layer, name)[...] = jnp.asarray(getattr(dense, name))
    for name in "bc" if has_bias else "":
        if getattr(model, name) is not None:
            getattr(layer, name)[...] = jnp.asarray(getattr(model, name))
    layer.support = _Support(model) if keep_support else None
    return layer


class ImplicitRNN(nnx.Module):
    """A recurrent network with an implicit cell: h_t = cell(u_t, h_{t−1}), y_t = W h_t + c, h_0 = 0.

    Args:
      p, n, q: numbers of inputs, of the cell's states and of outputs.
      hidden: size of h.
      kappa, activation, constraint, solver: of the cell, as `ImplicitLayer`.
      rngs: random numbers for the initial weights; None means `nnx.Rngs(0)`.

    Raises:
      ValueError, TypeError: as `ImplicitLayer`.

    Examples:
      >>> import numpy as np
      >>> from simjax.nn import ImplicitRNN
      >>> network = ImplicitRNN(3, 6, 2, hidden=4)
      >>> network(np.ones((5, 7, 3), np.float32)).shape  # five series of seven steps
      (5, 7, 2)
    """

    def __init__(
        self,
        p: int,
        n: int,
        q: int,
        *,
        hidden: int,
        kappa: float = 0.99,
        activation: str = "relu",
        constraint: str = "parameterised",
        solver: Solver | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        p, n, q = checked_sizes(p, n, q)
        self.hidden = positive_integer("hidden", hidden)
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.cell = ImplicitLayer(
            p + self.hidden,
            n,
            self.hidden,
            kappa=kappa,
            activation=activation,
            constraint=constraint,
            solver=solver,
            rngs=rngs,
        )
        self.readout = nnx.Linear(self.hidden, q, rngs=rngs)

    def __call__(self, u: jax.Array) -> jax.Array:
        """Outputs (m, time, q) for sequences u (m, time, p)."""
        if u.ndim != 3 or u.shape[2] + self.hidden != self.cell.B.shape[1]:
            raise ValueError(f"u must have shape (m, time, {self.cell.B.shape[1] - self.hidden}), got {u.shape}.")
        matrices = self.cell.matrices()  # once, not once a step

        def step(h: jax.Array, u_t: jax.Array) -> tuple[jax.Array, jax.Array]:
            joint = jnp.concatenate([u_t, h], axis=1)
            h = outputs(matrices, self.cell.solve(matrices, joint).x, joint)
            return h, h

        start = jnp.zeros((u.shape[0], self.hidden), jnp.result_type(u, matrices.A))
        _, hidden = jax.lax.scan(step, start, jnp.swapaxes(u, 0, 1))
        return self.readout(jnp.swapaxes(hidden, 0, 1))
