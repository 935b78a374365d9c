"""Equilibria x = φ(Ax + Bu + b) of a batch of samples, differentiable without storing the iterations (`loop`).

Derivatives come from the equation, not from the iterations. With J = ∂f/∂x at the equilibrium,

    forward mode   ẋ = J ẋ + (∂f/∂params)·ṗ
    reverse mode   λ = Jᵀ λ + x̄,   p̄ = (∂f/∂params)ᵀ λ

and both linear systems are solved by the iteration that solved the forward problem. Each is the other's
transpose, so the derivative can itself be differentiated.

A sample that does not converge is never passed off as converged: its report says so, its states are NaN, and
derivatives through it are NaN. `unconverged="keep"` returns its last iterate instead, with the same report.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from simjax._checks import positive_scalar, refuse_masked
from simjax._values import compared_by_identity
from simjax.implicit.activations import Activation
from simjax.implicit.activations import activation as named_activation
from simjax.implicit.loop import Solver, check_float, iterate
from simjax.implicit.report import EquilibriumInfo

Array = jax.Array
Map = Callable[[Any, Array], Array]


@compared_by_identity
class Equilibrium(NamedTuple):
    """The equilibrium and the evidence for it.

    Attributes:
      x: (m, n) states; NaN for a sample that did not converge, unless `unconverged="keep"`.
      report: per-sample convergence.

    Examples:
      >>> import jax.numpy as jnp, simjax
      >>> found = simjax.equilibrium.equilibrium(jnp.array([[0.5]]), jnp.array([[1.0]]), jnp.array([[1.0]]))
      >>> found.x.shape, bool(found.report.converged.all())
      ((1, 1), True)
    """

    x: Array
    report: EquilibriumInfo


def equilibrium(
    A: Any,
    B: Any,
    u: Any,
    b: Any = None,
    *,
    activation: str | Activation = "relu",
    method: str = "anderson",
    tol: float | None = None,
    max_iters: int = 1000,
    memory: int = 5,
    step: Any = None,
    x0: Any = None,
    unconverged: str = "nan",
) -> Equilibrium:
    """Solve x = φ(Ax + Bu + b) for every row of u; differentiable in A, B, u and b.

    Composes with jit, vmap, grad, jvp and sharding of the rows of u. Works in the dtype of its arguments,
    float32 or float64. A unique equilibrium exists and "averaged" finds it from any start if μ_η(A) < 1 for
    some η > 0 (‖A‖∞ < 1 is the special case that also lets "picard" converge).

    Args:
      A: (n, n) state matrix.
      B: (n, p) input matrix.
      u: (m, p) inputs, one sample a row, or (p,) for one sample.
      b: (n,) bias, or None.
      activation: φ, elementwise with slopes in [0, 1].
      method, tol, max_iters, memory, unconverged: see `Solver`.
      step: α > 0 of "averaged", and the mixing of "anderson"; None is `average_step(A)`.
      x0: (m, n) or (n,) initial guess; None is zero. No derivative flows into it.

    Raises:
      ValueError: shapes that do not fit, unknown names, settings out of range.
      TypeError: arrays that are not real float32 or float64 (integers are converted).

    Examples:
      >>> import jax.numpy as jnp, simjax
      >>> A, B = jnp.array([[0.5]]), jnp.array([[1.0]])
      >>> simjax.equilibrium.equilibrium(A, B, jnp.array([[1.0], [-1.0]])).x.round(3).tolist()  # x = relu(0.5 x + u)
      [[2.0], [0.0]]
    """
    solver = Solver(method, tol, max_iters, memory, unconverged)
    phi = named_activation(activation)
    A, B, u, b, x0 = _float_arrays(A=A, B=B, u=u, b=b, x0=x0)
    _check_shapes(A, B, u, b, x0)
    drive = affine(B, u, b)
    start = jnp.zeros_like(drive) if x0 is None else x0
    step = average_step(A) if step is None else step
    x, report = fixed_point(_implicit_map(phi), (A, drive), jnp.atleast_2d(start), solver=solver, step=step)
    if unconverged == "nan":
        # Linear in the drive, so that derivatives with respect to B, u and b are NaN too, not only A's.
        nan = jnp.where(report.converged[:, None], 1.0, jnp.nan).astype(drive.dtype)
        x = jnp.where(report.converged[:, None], x, nan * drive)
    if u.ndim == 1:
        x, report = x[0], jax.tree.map(lambda entry: entry[0], report)
    return Equilibrium(x, report)


def average_step(A: Any) -> Array:
    """α* = 1/(1 − min_i min(a_ii, 0)), the largest step for which the averaged iteration is sure to converge.

    For any η > 0 with μ_η(A) < 1 each step α ≤ α* contracts ‖x‖_η = max|x_i|/η_i by 1 − α(1 − max(μ_η, 0))
    (Jafarpour et al., "Robust implicit networks via non-Euclidean contractions", 2021).

    Examples:
      >>> import jax.numpy as jnp, simjax
      >>> float(simjax.equilibrium.average_step(jnp.array([[-3.0, 0.1], [0.1, 0.5]])))
      0.25
    """
    return 1.0 / (1.0 - jnp.minimum(jnp.diagonal(A, axis1=-2, axis2=-1), 0.0).min(axis=-1))


def eliminate_diagonal(A: Array, B: Array, b: Array | None = None) -> tuple[Array, Array, Array | None]:
    """The equivalent hollow model for ReLU or identity: Ã = (I − diag a)⁻¹(A − diag a), B̃ and b̃ scaled alike.

    Each equation x_i = relu(a_ii x_i + c_i) is solved for its own state: x_i = relu(c_i)/(1 − a_ii).
    Since ‖Ã‖∞ < 1 ⇔ μ∞(A) < 1, Picard converges on the result without a step, and far faster where
    diagonals are very negative. Not valid for other activations. Needs a_ii < 1, which μ_η(A) < 1 implies;
    it is not checked.

    Examples:
      >>> import jax.numpy as jnp, simjax
      >>> A, B, _ = simjax.equilibrium.eliminate_diagonal(jnp.array([[-1.0, 0.5], [0.0, 0.5]]), jnp.ones((2, 1)))
      >>> A.tolist(), B.tolist()
      ([[0.0, 0.25], [0.0, 0.0]], [[0.5], [2.0]])
    """
    diagonal = jnp.diagonal(A)
    scale = 1.0 / (1.0 - diagonal)
    return scale[:, None] * (A - jnp.diag(diagonal)), scale[:, None] * B, None if b is None else scale * b


def affine(M: Array, rows: Array, bias: Array | None = None) -> Array:
    """rows·Mᵀ + bias in the full precision of the dtype (GPUs would multiply float32 in TF32).

    Examples:
      >>> import jax.numpy as jnp, simjax
      >>> simjax.equilibrium.affine(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]]), jnp.array([0.5])).tolist()
      [[11.5]]
    """
    product = jnp.matmul(rows, M.T, precision=lax.Precision.HIGHEST)
    return product if bias is None else product + along_rows(bias, product)


def along_rows(vector: Array, rows: Array) -> Array:
    """A vector (n,), or rows already, with the axes of `rows` (…, n): added unasked, they may be forbidden to JAX."""
    return jnp.expand_dims(vector, tuple(range(rows.ndim - vector.ndim)))


def fixed_point(f: Map, params: Any, x0: Array, *, solver: Solver | None = None, step: Any = 1.0) -> Equilibrium:
    """Solve x = f(params, x) for every row of x, differentiable in `params`.

    Args:
      f: maps (params, x (m, n)) to (m, n), each row from the same row of x. It is a static argument: use
        one function object for all calls (not a fresh lambda), and pass all that varies through
        `params`.
      params: pytree of arrays.
      x0: (m, n) initial guess, float32 or float64.
      solver: settings, by default `Solver()`.
      step: α of the averaged step and of Anderson's mixing.

    Raises:
      ValueError: x0 that is not a matrix, or f that does not keep its shape.
      TypeError: x0 that is not float32 or float64.

    Examples:
      >>> import jax.numpy as jnp, simjax
      >>> def halved(c, x):
      ...     return 0.5 * x + c
      >>> simjax.equilibrium.fixed_point(halved, jnp.array(1.0), jnp.zeros((1, 1))).x.round(3).tolist()
      [[2.0]]
    """
    solver = Solver() if solver is None else solver
    if x0.ndim != 2:
        raise ValueError(f"x0 must have shape (m, n), one sample a row, got shape {x0.shape}.")
    check_float("x0", x0.dtype)
    if isinstance(step, int | float):  # a traced step cannot be checked
        positive_scalar("step", step)
    image = jax.eval_shape(f, params, x0)
    if (image.shape, image.dtype) != (x0.shape, x0.dtype):
        raise ValueError(f"f must map {x0.dtype}{x0.shape} to itself, got {image.dtype}{image.shape}.")
    return _fixed_point(f, solver, params, x0, jnp.asarray(step, x0.dtype))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fixed_point(f: Map, solver: Solver, params: Any, x0: Array, step: Array) -> Equilibrium:
    frozen, start, step = lax.stop_gradient((params, x0, step))
    x, report = iterate(lambda x: f(frozen, x), start, step, solver)
    if solver.unconverged == "nan":
        x = jnp.where(report.converged[:, None], x, jnp.nan)
    return Equilibrium(_attach_derivative(f, solver, params, x, step), report)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attach_derivative(f: Map, solver: Solver, params: Any, x: Array, step: Array) -> Array:
    """Return x, with the derivative that the equation x = f(params, x) implies."""
    del f, solver, params, step
    return x


@_attach_derivative.defjvp
def _implicit_derivative(f: Map, solver: Solver, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """ẋ = (I − J)⁻¹ (∂f/∂params)·ṗ, transposable; J acts on each row separately."""
    params, x, step = primals
    # Through this call x depends on params also where the rule is differentiated once more.
    x = _attach_derivative(f, solver, params, x, step)
    rhs = jax.jvp(lambda p: f(p, x), (params,), (tangents[0],))[1]
    _, jacobian = jax.linearize(lambda v: f(params, v), x)
    # NaN by multiplication: linear in the tangent, hence NaN in the cotangent too.
    known = jnp.where(jnp.isfinite(x).all(axis=1, keepdims=True), 1.0, jnp.nan).astype(x.dtype)
    solve = functools.partial(_solve_linear, solver=solver, step=step)
    x_dot = lax.custom_linear_solve(lambda v: v - jacobian(v), rhs, solve, solve)
    return x, x_dot * known


def _solve_linear(matvec: Callable[[Array], Array], rhs: Array, *, solver: Solver, step: Array) -> Array:
    """Solve matvec(v) = rhs by v ← v + α(rhs − matvec(v)); NaN rows where it does not converge."""
    scale = jnp.max(jnp.abs(rhs), axis=1, keepdims=True)
    scale = jnp.where(scale > 0.0, scale, 1.0)  # the tolerance is relative to each sample's right-hand side
    unit = rhs / scale
    v, report = iterate(lambda v: v + unit - matvec(v), unit, step, solver)
    return jnp.where(report.converged[:, None], v * scale, jnp.nan)


# ---- maps and checks -------------------------------------------------------------------------------------


@functools.cache
def _implicit_map(phi: Activation) -> Map:
    """f((A, drive), x) = φ(Ax + drive), one function object an activation."""
    return lambda params, x: phi(affine(params[0], x, params[1]))


def _float_arrays(**arrays: Any) -> list[Array | None]:
    """The arrays in their common dtype, float32 or float64; None stays None."""
    for name, value in arrays.items():
        refuse_masked(name, value)
    given = {name: jnp.asarray(value) for name, value in arrays.items() if value is not None}
    for name, value in given.items():
        if not jnp.issubdtype(value.dtype, jnp.integer):
            check_float(name, value.dtype)
    floats = [v.dtype for v in given.values() if jnp.issubdtype(v.dtype, jnp.floating)]
    dtype = jnp.result_type(*floats) if floats else jnp.result_type(float)
    return [given[name].astype(dtype) if name in given else None for name in arrays]


def _check_shapes(A: Array, B: Array, u: Array, b: Array | None, x0: Array | None) -> None:
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.shape[0] == 0:
        raise ValueError(f"A must have shape (n, n) with n ≥ 1, got {A.shape}.")
    n = A.shape[0]
    if B.ndim != 2 or B.shape[0] != n:
        raise ValueError(f"B must have shape ({n}, p) to fit A {A.shape}, got {B.shape}.")
    if u.ndim not in (1, 2) or u.shape[-1] != B.shape[1]:
        raise ValueError(f"u must have shape (m, {B.shape[1]}) or ({B.shape[1]},) to fit B {B.shape}, got {u.shape}.")
    if b is not None and b.shape != (n,):
        raise ValueError(f"b must have shape ({n},) to fit A {A.shape}, got {b.shape}.")
    if x0 is not None and x0.shape != (*u.shape[:-1], n):
        raise ValueError(f"x0 must have shape {(*u.shape[:-1], n)} to fit u and A, got {x0.shape}.")
