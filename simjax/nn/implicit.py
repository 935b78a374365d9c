"""Implicit layers x = φ(Ax + Bu + b), y = Cx + Du + c for Flax NNX: what they share, and the one with ‖A‖∞ ≤ κ.

The contract of every implicit module of this package: `__call__(u)` gives outputs in the network's own
precision, differentiable through the equilibrium; `states(u)` gives `States` in float64, so that the module
can be the baseline that a sparse model imitates; `export()` gives an `ImplicitModel` where the module has an
exact linear form. Parameters are unconstrained arrays: the matrices are made from them by a map whose every
value is well-posed.

Flax Linen users wrap a module with `flax.nnx.bridge.to_linen(ImplicitLayer, p, n, q)`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from simjax._checks import choice, matrix, positive_integer, positive_scalar
from simjax.implicit.activations import activation as find_activation
from simjax.implicit.equilibrium import Equilibrium, affine, equilibrium
from simjax.implicit.loop import Solver
from simjax.implicit.model import ImplicitModel
from simjax.states.states import States

CONSTRAINTS = ("parameterised", "projected")

_EXACT_TOL = 1e-12
_EXACT_MAX_ITERS = 50_000


class Matrices(NamedTuple):
    """The matrices of x = φ(Ax + Bu + b), y = Cx + Du + c; None stands for zero."""

    A: jax.Array
    B: jax.Array
    C: jax.Array
    D: jax.Array | None = None
    b: jax.Array | None = None
    c: jax.Array | None = None


class ImplicitModule(nnx.Module):
    """What implicit modules with an exact linear form share: a subclass defines `matrices`, perhaps `solve`.

    Attributes:
        activation: name of φ.
        solver: settings of the fixed-point iteration in `__call__`.
    """

    def __init__(self, activation: str, solver: Solver | None) -> None:
        self.activation = find_activation(activation).name
        self.solver = Solver() if solver is None else solver

    def matrices(self) -> Matrices:
        """The matrices in the parameters' precision, differentiable."""
        raise NotImplementedError(f"{type(self).__name__} must define matrices()")

    def solve(self, matrices: Matrices, u: jax.Array) -> Equilibrium:
        """The equilibrium for inputs u (m, p), with a report per sample."""
        settings = dataclasses.asdict(self.solver)
        return equilibrium(matrices.A, matrices.B, u, matrices.b, activation=self.activation, **settings)

    def __call__(self, u: jax.Array) -> jax.Array:
        """Outputs (m, q) for inputs (m, p); NaN for a sample whose equilibrium was not found."""
        matrices = self.matrices()
        return outputs(matrices, self.solve(matrices, u).x, u)

    def equilibrium(self, u: jax.Array) -> Equilibrium:
        """The equilibrium for inputs u (m, p), with a report per sample."""
        return self.solve(self.matrices(), u)

    def states(self, inputs: Any) -> States:
        """The states on `inputs` (m, p), computed in float64 to a residual of 1e-12.

        Raises:
            ValueError: inputs of another shape or not finite.
            RuntimeError: the equilibrium of some sample was not found.
        """
        U = matrix("inputs", inputs)
        with jax.enable_x64(True):
            p = jax.eval_shape(self.matrices).B.shape[1]
            if U.shape[1] != p:
                raise ValueError(f"inputs must have shape (m, {p}), got {U.shape}.")
            matrices, equilibria = _exact_states(*nnx.split(in_float64(self)), jnp.asarray(U))
        model = _model(matrices, self.activation)
        Z = found(*equilibria) @ model.A.T + U @ model.B.T + (0.0 if model.b is None else model.b)
        X = find_activation(self.activation).host(Z)
        return States(
            inputs=U,
            preactivations=Z,
            activations=X,
            outputs=X @ model.C.T + U @ model.D.T + (0.0 if model.c is None else model.c),
            activation=self.activation,
            baseline=model,
        )

    def export(self) -> ImplicitModel:
        """The module as an implicit model: exact, with the matrices computed in float64 from the parameters."""
        with jax.enable_x64(True):
            return _model(_exact_matrices(*nnx.split(in_float64(self))), self.activation)


# Compiled once for each kind and size of module, whatever its parameters.


@functools.partial(jax.jit, static_argnums=0)
def _exact_matrices(graph: Any, state: Any) -> Matrices:
    return nnx.merge(graph, state).matrices()


@functools.partial(jax.jit, static_argnums=0)
def _exact_states(graph: Any, state: Any, u: jax.Array) -> tuple[Matrices, Equilibrium]:
    module = nnx.merge(graph, state)
    matrices = module.matrices()
    return matrices, module.solve(matrices, u)


def _model(matrices: Matrices, activation: str) -> ImplicitModel:
    A, B, C, D, b, c = (None if part is None else np.asarray(part) for part in matrices)
    D = np.zeros((matrices.C.shape[0], matrices.B.shape[1])) if D is None else D
    return ImplicitModel(A, B, C, D, activation, b=b, c=c)


def outputs(matrices: Matrices, x: jax.Array, u: jax.Array) -> jax.Array:
    """Outputs y = Cx + Du + c for rows of x and u."""
    y = affine(matrices.C, x, matrices.c)
    return y if matrices.D is None else y + affine(matrices.D, u)


def in_float64(module: Any) -> Any:
    """A copy of the module with its parameters and its solver's tolerance in float64; call it inside enable_x64."""
    graph, state = nnx.split(module)
    copy = nnx.merge(graph, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), state))
    limit = max(_EXACT_MAX_ITERS, module.solver.max_iters)
    copy.solver = dataclasses.replace(module.solver, tol=_EXACT_TOL, max_iters=limit, unconverged="nan")
    return copy


def found(X: jax.Array, report: Any) -> np.ndarray:
    """The states on the host, or a RuntimeError where a sample did not converge."""
    lost = int(np.sum(~np.asarray(report.converged)))
    if lost:
        worst = float(np.max(np.asarray(report.residual)))
        raise RuntimeError(
            f"the equilibria of {lost} of {len(X)} samples were not found to {_EXACT_TOL:g} "
            f"(worst residual {worst:.3g})."
        )
    return np.asarray(X)


def scaled_normal(rngs: nnx.Rngs, shape: tuple[int, int], gain: float = 1.0) -> nnx.Param:
    """A parameter with independent entries of variance gain²/columns."""
    return nnx.Param(gain * jax.random.normal(rngs.params(), shape) / np.sqrt(shape[1]))


def spectral_norm(W: jax.Array) -> jax.Array:
    """‖W‖₂, with the gradient uvᵀ of its leading singular pair (no other singular vectors are differentiated)."""
    _, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(W.T @ W))
    v = vectors[:, -1]
    u = jax.lax.stop_gradient(W) @ v
    return (u / jnp.maximum(jnp.linalg.norm(u), jnp.finfo(W.dtype).tiny)) @ (W @ v)


def within_norm(W: jax.Array, limit: jax.Array | float) -> jax.Array:
    """W·min(1, limit/‖W‖₂)."""
    return W * (limit / jnp.maximum(spectral_norm(W), limit))


def checked_sizes(p: int, n: int, q: int) -> tuple[int, int, int]:
    """The numbers of inputs, states and outputs, each at least one."""
    return positive_integer("p", p), positive_integer("n", n), positive_integer("q", q)


# ---- the plain layer -------------------------------------------------------------------------------------


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
