"""What all implicit networks of Flax NNX share.

The contract: `__call__(u)` gives outputs (m, q) for inputs (m, p), and (q,) for one sample (p,), differentiable through
the equilibrium; `states(u)` gives `States` in float64, so that the module can be the baseline that a sparse model
imitates; `export()` gives an `ImplicitModel` where the module has an exact linear form. Inputs are float32, float64 or
integers, which are converted; outputs have the wider precision of inputs and parameters. Parameters are unconstrained
arrays: the matrices are made from them by a map whose every value is well-posed.

Flax Linen users wrap a module with `flax.nnx.bridge.to_linen(ImplicitLayer, p, n, q)`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from simjax._checks import matrix, positive_integer, refuse_masked
from simjax.implicit import matrices as linear
from simjax.implicit.activations import activation as find_activation
from simjax.implicit.equilibrium import Equilibrium, affine, equilibrium
from simjax.implicit.loop import Solver, check_float
from simjax.implicit.model import ImplicitModel
from simjax.states.states import States

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

    def __call__(self, u: ArrayLike) -> jax.Array:
        """Outputs (m, q) for inputs (m, p), (q,) for one sample (p,); NaN where the equilibrium was not found.

        Raises:
          ValueError: inputs of another shape.
          TypeError: inputs that are neither float32, float64 nor integers.
        """
        matrices = self.matrices()
        rows = input_rows(u, matrices.B)
        return like_inputs(u, outputs(matrices, self.solve(matrices, rows).x, rows))

    def equilibrium(self, u: ArrayLike) -> Equilibrium:
        """The equilibrium for inputs u (m, p) with a report per sample, or for one sample (p,); raises as a call."""
        matrices = self.matrices()
        return like_inputs(u, self.solve(matrices, input_rows(u, matrices.B)))

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
        Z = linear.preactivations(model, found(*equilibria), U)
        X = find_activation(self.activation).host(Z)
        return States(
            inputs=U,
            preactivations=Z,
            activations=X,
            outputs=linear.outputs(model, X, U),
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


def input_rows(u: ArrayLike, B: jax.Array) -> jax.Array:
    """Inputs u (m, p), or one sample (p,), as rows (m, p) in the wider precision of u and B (·, p).

    Raises:
      ValueError: another shape.
      TypeError: neither float32, float64 nor integers.
    """
    refuse_masked("inputs", u)
    rows, p = jnp.asarray(u), B.shape[1]
    if rows.ndim not in (1, 2) or rows.shape[-1] != p:
        raise ValueError(f"inputs must have shape (m, {p}), or ({p},) for one sample, got {rows.shape}.")
    if jnp.issubdtype(rows.dtype, jnp.integer):
        return jnp.atleast_2d(rows).astype(B.dtype)
    check_float("inputs", rows.dtype)
    return jnp.atleast_2d(rows).astype(jnp.promote_types(rows.dtype, B.dtype))


def like_inputs(u: ArrayLike, results: Any) -> Any:
    """What was computed for `input_rows(u, …)`, without the sample axis where u is one sample (p,)."""
    return jax.tree.map(lambda rows: rows[0], results) if jnp.ndim(u) == 1 else results


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
