"""Equilibria x = φ(Ax + Bu + b) of a batch of samples, differentiable without storing the iterations.

Three iterations for a map f that acts on the rows (samples) of x separately:

    picard      x ← f(x)
    averaged    x ← (1 − α) x + α f(x)      with the step α* it converges whenever μ_η(A) < 1 for some η > 0
    anderson    the averaged step, extrapolated through the last few residuals, with a safeguard

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
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve

from simjax._checks import choice, positive_integer, positive_scalar
from simjax.implicit.activations import Activation
from simjax.implicit.activations import activation as named_activation

Array = jax.Array
Map = Callable[[Any, Array], Array]

METHODS = ("anderson", "averaged", "picard")
UNCONVERGED = ("nan", "keep")

_DEFAULT_TOL = {"float32": 1e-5, "float64": 1e-10}

# An extrapolation is kept if it brings the residual to _PROGRESS of the best so far, or, at most _CREDIT
# times until the next such success, if it does not grow by more than _GROWTH; else the averaged step is
# taken from where it started. So either the residual goes to zero geometrically or only averaged steps are
# taken from some point on.
_PROGRESS, _GROWTH, _CREDIT = 0.99, 2.0, 5


class Report(NamedTuple):
    """How the iteration went, per sample; scalars when there is one sample without a batch axis.

    Attributes:
        converged: (m,) bool, whether the residual met the tolerance.
        residual: (m,) max|f(x) − x| / max(1, max|x|) at the last iterate.
        iterations: (m,) int32, updates made from the initial guess.
    """

    converged: Array
    residual: Array
    iterations: Array


class Equilibrium(NamedTuple):
    """The equilibrium and the evidence for it.

    Attributes:
        x: (m, n) states; NaN for a sample that did not converge, unless `unconverged="keep"`.
        report: per-sample convergence.
    """

    x: Array
    report: Report


@dataclass(frozen=True)
class Solver:
    """Settings of a fixed-point iteration; hashable, so that it can be a static argument.

    Anderson needs fewer iterations: a few per cent fewer where the map contracts strongly, fifty times fewer
    where it hardly does. But each makes some ten more passes over the batch, so that with tens of states and a
    contraction by 0.8 or so "averaged" took half its time on a CPU.

    Attributes:
        method: "anderson", "averaged" or "picard" ("picard" ignores the step: it is 1).
        tol: bound on the residual max|f(x) − x| / max(1, max|x|); None is 1e-10 in float64, 1e-5 in float32.
        max_iters: updates allowed, for the equilibrium and again for the linear system of its derivative.
        memory: residual differences that Anderson's extrapolation combines.
        unconverged: "nan" or "keep", what to return for a sample that did not converge.

    Raises:
        ValueError: an unknown method or `unconverged`, tol ≤ 0, max_iters or memory < 1.
        TypeError: max_iters or memory that is not an integer.
    """

    method: str = "anderson"
    tol: float | None = None
    max_iters: int = 1000
    memory: int = 5
    unconverged: str = "nan"

    def __post_init__(self) -> None:
        choice("method", self.method, METHODS)
        choice("unconverged", self.unconverged, UNCONVERGED)
        if self.tol is not None:
            positive_scalar("tol", self.tol)
        positive_integer("max_iters", self.max_iters)
        positive_integer("memory", self.memory)

    def tolerance(self, dtype: Any) -> float:
        """The tolerance in force for states of that dtype."""
        return _DEFAULT_TOL[jnp.dtype(dtype).name] if self.tol is None else float(self.tol)


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
    """
    solver = Solver(method, tol, max_iters, memory, unconverged)
    phi = named_activation(activation)
    A, B, u, b, x0 = _float_arrays(A=A, B=B, u=u, b=b, x0=x0)
    _check_shapes(A, B, u, b, x0)
    drive = affine(B, u, b)
    start = jnp.zeros(drive.shape, drive.dtype) if x0 is None else x0
    step = average_step(A) if step is None else step
    x, report = fixed_point(_implicit_map(phi), (A, drive), jnp.atleast_2d(start), solver=solver, step=step)
    if unconverged == "nan":
        # Linear in the drive, so that derivatives with respect to B, u and b are NaN too, not only A's.
        nan = jnp.where(report.converged[:, None], 1.0, jnp.nan).astype(drive.dtype)
        x = jnp.where(report.converged[:, None], x, nan * drive)
    if u.ndim == 1:
        x, report = x[0], Report(*(entry[0] for entry in report))
    return Equilibrium(x, report)


def average_step(A: Any) -> Array:
    """α* = 1/(1 − min_i min(a_ii, 0)), the largest step for which the averaged iteration is sure to converge.

    For any η > 0 with μ_η(A) < 1 each step α ≤ α* contracts ‖x‖_η = max|x_i|/η_i by 1 − α(1 − max(μ_η, 0))
    (Jafarpour et al., "Robust implicit networks via non-Euclidean contractions", 2021).
    """
    return 1.0 / (1.0 - jnp.minimum(jnp.diagonal(A, axis1=-2, axis2=-1), 0.0).min(axis=-1))


def eliminate_diagonal(A: Array, B: Array, b: Array | None = None) -> tuple[Array, Array, Array | None]:
    """The equivalent hollow model for ReLU or identity: Ã = (I − diag a)⁻¹(A − diag a), B̃ and b̃ scaled alike.

    Each equation x_i = relu(a_ii x_i + c_i) is solved for its own state: x_i = relu(c_i)/(1 − a_ii).
    Since ‖Ã‖∞ < 1 ⇔ μ∞(A) < 1, Picard converges on the result without a step, and far faster where
    diagonals are very negative. Not valid for other activations. Needs a_ii < 1, which μ_η(A) < 1 implies;
    it is not checked.
    """
    diagonal = jnp.diagonal(A)
    scale = 1.0 / (1.0 - diagonal)
    return scale[:, None] * (A - jnp.diag(diagonal)), scale[:, None] * B, None if b is None else scale * b


def affine(M: Array, rows: Array, bias: Array | None = None) -> Array:
    """rows·Mᵀ + bias in the full precision of the dtype (GPUs would multiply float32 in TF32)."""
    product = jnp.matmul(rows, M.T, precision=lax.Precision.HIGHEST)
    return product if bias is None else product + bias


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
    """
    solver = Solver() if solver is None else solver
    if x0.ndim != 2:
        raise ValueError(f"x0 must have shape (m, n), one sample a row, got shape {x0.shape}.")
    _check_float("x0", x0.dtype)
    if isinstance(step, int | float):  # a traced step cannot be checked
        positive_scalar("step", step)
    image = jax.eval_shape(f, params, x0)
    if (image.shape, image.dtype) != (x0.shape, x0.dtype):
        raise ValueError(f"f must map {x0.dtype}{x0.shape} to itself, got {image.dtype}{image.shape}.")
    return _fixed_point(f, solver, params, x0, jnp.asarray(step, x0.dtype))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fixed_point(f: Map, solver: Solver, params: Any, x0: Array, step: Array) -> Equilibrium:
    frozen, start, step = lax.stop_gradient((params, x0, step))
    x, report = _iterate(lambda x: f(frozen, x), start, step, solver)
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
    v, report = _iterate(lambda v: v + unit - matvec(v), unit, step, solver)
    return jnp.where(report.converged[:, None], v * scale, jnp.nan)


# ---- the iterations --------------------------------------------------------------------------------------


class _History(NamedTuple):
    """What Anderson's extrapolation remembers, each with a leading sample axis."""

    x: Array
    """(m, n) last iterate that was kept."""
    r: Array
    """(m, n) its residual f(x) − x."""
    dx: Array
    """(m, k, n) differences of iterates from the kept one before, a ring."""
    dr: Array
    """(m, k, n) differences of their residuals."""
    trial: Array
    """(m,) whether the current iterate is an extrapolation still to be judged."""
    best: Array
    """(m,) least ‖r‖₂ so far."""
    credit: Array
    """(m,) extrapolations that may still be kept without a new best."""


class _Loop(NamedTuple):
    k: Array
    x: Array
    r: Array
    iterations: Array
    history: _History | None


def _iterate(f: Callable[[Array], Array], x0: Array, step: Array, solver: Solver) -> tuple[Array, Report]:
    """Iterate until each row meets the tolerance, overflows or hits the limit; finished rows stand still."""
    tol = solver.tolerance(x0.dtype)

    def residual(x: Array, r: Array) -> Array:
        return jnp.max(jnp.abs(r), axis=1) / jnp.maximum(1.0, jnp.max(jnp.abs(x), axis=1))

    def unfinished(loop: _Loop) -> Array:
        size = residual(loop.x, loop.r)
        hopeful = jnp.isfinite(size) if loop.history is None else jnp.isfinite(size) | loop.history.trial
        return ~(size <= tol) & hopeful

    def advance(loop: _Loop) -> _Loop:
        active = unfinished(loop)
        history = loop.history
        if solver.method == "picard":
            x = loop.x + loop.r
        elif solver.method == "averaged":
            x = loop.x + step * loop.r
        else:
            x, history = _anderson_step(loop, step)
        x = jnp.where(active[:, None], x, loop.x)
        return _Loop(loop.k + 1, x, f(x) - x, loop.iterations + active, history)

    r0 = f(x0) - x0
    history = _empty_history(x0, r0, solver.memory) if solver.method == "anderson" else None
    start = _Loop(jnp.int32(0), x0, r0, jnp.zeros(x0.shape[0], jnp.int32), history)
    end = lax.while_loop(lambda loop: (loop.k < solver.max_iters) & unfinished(loop).any(), advance, start)
    size = residual(end.x, end.r)
    return end.x, Report(size <= tol, size, end.iterations)


def _empty_history(x: Array, r: Array, memory: int) -> _History:
    m, n = x.shape
    none = jnp.zeros((m, memory, n), x.dtype)
    return _History(x, r, none, none, jnp.zeros(m, bool), jnp.full(m, jnp.inf, x.dtype), jnp.zeros(m, jnp.int32))


def _anderson_step(loop: _Loop, step: Array) -> tuple[Array, _History]:
    """Type-II Anderson step, safeguarded: x + αr − (ΔX + αΔR)ᵀγ, γ ≈ argmin ‖r − ΔRᵀγ‖."""
    x, r, old = loop.x, loop.r, loop.history
    assert old is not None
    size, last = jnp.linalg.norm(r, axis=1), jnp.linalg.norm(old.r, axis=1)
    success = size <= _PROGRESS * old.best
    keep = ~old.trial | success | ((old.credit > 0) & (size <= _GROWTH * last))
    credit = jnp.where(success, _CREDIT, old.credit - (old.trial & keep))

    # At k = 0 the difference is zero: an empty slot, which the regularisation gives the weight γ = 0.
    usable = jnp.isfinite(size)[:, None]
    slot = (loop.k - 1) % old.dx.shape[1]
    dx = old.dx.at[:, slot].set(jnp.where(usable, x - old.x, 0.0))
    dr = old.dr.at[:, slot].set(jnp.where(usable, r - old.r, 0.0))
    x, r = jnp.where(keep[:, None], x, old.x), jnp.where(keep[:, None], r, old.r)

    gamma = _least_squares(dr, r)
    plain = x + step * r
    extrapolated = plain - jnp.einsum("mk,mkn->mn", gamma, dx + step * dr, precision=lax.Precision.HIGHEST)
    trial = keep & jnp.isfinite(extrapolated).all(axis=1)
    history = _History(x, r, dx, dr, trial, jnp.fmin(old.best, size), credit)
    return jnp.where(trial[:, None], extrapolated, plain), history


def _least_squares(dr: Array, r: Array) -> Array:
    """γ (m, k) minimising ‖r − ΔRᵀγ‖² + ε·tr(ΔRΔRᵀ)‖γ‖² for each sample, by the normal equations."""
    gram = jnp.einsum("mkn,mln->mkl", dr, dr, precision=lax.Precision.HIGHEST)
    right = jnp.einsum("mkn,mn->mk", dr, r, precision=lax.Precision.HIGHEST)
    trace = jnp.trace(gram, axis1=1, axis2=2)[:, None, None]
    ridge = jnp.where(trace > 0.0, 0.01 * jnp.sqrt(jnp.finfo(r.dtype).eps) * trace, 1.0)
    factor = cho_factor(gram + ridge * jnp.eye(dr.shape[1], dtype=r.dtype))
    return cho_solve(factor, right[:, :, None])[:, :, 0]


# ---- maps and checks -------------------------------------------------------------------------------------


@functools.cache
def _implicit_map(phi: Activation) -> Map:
    """f((A, drive), x) = φ(Ax + drive), one function object an activation."""
    return lambda params, x: phi(affine(params[0], x, params[1]))


def _check_float(name: str, dtype: Any) -> None:
    if jnp.dtype(dtype).name not in _DEFAULT_TOL:
        raise TypeError(f"{name} must be float32 or float64, got {jnp.dtype(dtype).name}.")


def _float_arrays(**arrays: Any) -> list[Array | None]:
    """The arrays in their common dtype, float32 or float64; None stays None."""
    given = {name: jnp.asarray(value) for name, value in arrays.items() if value is not None}
    for name, value in given.items():
        if not jnp.issubdtype(value.dtype, jnp.integer):
            _check_float(name, value.dtype)
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
