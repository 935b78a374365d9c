"""One loop for three fixed-point iterations of a map f that acts on the rows (samples) of x separately.

    picard      x ← f(x)
    averaged    x ← (1 − α) x + α f(x)      with the step α* it converges whenever μ_η(A) < 1 for some η > 0
    anderson    the averaged step, extrapolated through the last few residuals, with a safeguard

Rows that have met the tolerance stand still while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from simjax._checks import choice, positive_integer, positive_scalar
from simjax.implicit.report import EquilibriumInfo

Array = jax.Array

METHODS = ("anderson", "averaged", "picard")
UNCONVERGED = ("nan", "keep")

_DEFAULT_TOL = {"float32": 1e-5, "float64": 1e-10}

# An extrapolation is kept if it brings the residual to _PROGRESS of the best so far, or, at most _CREDIT
# times until the next such success, if it does not grow by more than _GROWTH; else the averaged step is
# taken from where it started. So either the residual goes to zero geometrically or only averaged steps are
# taken from some point on.
_PROGRESS, _GROWTH, _CREDIT = 0.99, 2.0, 5


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

    Examples:
      >>> from simjax.equilibrium import Solver
      >>> Solver(method="averaged", tol=1e-8).max_iters
      1000
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


def check_float(name: str, dtype: Any) -> None:
    """Refuses every precision but the two that tolerances are known for.

    Raises:
      TypeError: neither float32 nor float64.
    """
    if jnp.dtype(dtype).name not in _DEFAULT_TOL:
        raise TypeError(f"{name} must be float32 or float64, got {jnp.dtype(dtype).name}.")


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


def iterate(f: Callable[[Array], Array], x0: Array, step: Array, solver: Solver) -> tuple[Array, EquilibriumInfo]:
    """Iterate until each row meets the tolerance, overflows or hits the limit; finished rows stand still.

    Args:
      f: maps (m, n) to (m, n), rows separately.
      x0: (m, n) start.
      step: α.
      solver: settings.

    Returns:
      The last iterates (m, n) and how they ended.
    """
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
        return _Loop(loop.k + 1, x, f(x) - x, loop.iterations + active.astype(jnp.int32), history)

    r0 = f(x0) - x0
    x0 = x0 + jnp.zeros_like(r0)  # where f puts the rows
    history = _empty_history(x0, r0, solver.memory) if solver.method == "anderson" else None
    start = _Loop(jnp.int32(0), x0, r0, jnp.zeros_like(x0[:, 0], jnp.int32), history)
    end = lax.while_loop(lambda loop: (loop.k < solver.max_iters) & unfinished(loop).any(), advance, start)
    size = residual(end.x, end.r)
    return end.x, EquilibriumInfo(size <= tol, size, end.iterations)


def _empty_history(x: Array, r: Array, memory: int) -> _History:
    # Made of x, so that they lie on the devices on which its rows do.
    none, row = jnp.stack([jnp.zeros_like(x)] * memory, axis=1), x[:, 0]
    trial, credit = jnp.zeros_like(row, bool), jnp.zeros_like(row, jnp.int32)
    return _History(x, r, none, none, trial, jnp.full_like(row, jnp.inf), credit)


def _anderson_step(loop: _Loop, step: Array) -> tuple[Array, _History]:
    """Type-II Anderson step, safeguarded: x + αr − (ΔX + αΔR)ᵀγ, γ ≈ argmin ‖r − ΔRᵀγ‖."""
    x, r, old = loop.x, loop.r, loop.history
    assert old is not None
    size, last = jnp.linalg.norm(r, axis=1), jnp.linalg.norm(old.r, axis=1)
    success = size <= _PROGRESS * old.best
    keep = ~old.trial | success | ((old.credit > 0) & (size <= _GROWTH * last))
    credit = jnp.where(success, _CREDIT, old.credit - (old.trial & keep).astype(jnp.int32))

    # At k = 0 the difference is zero: an empty slot, which the regularisation gives the weight γ = 0.
    usable = jnp.isfinite(size)[:, None]
    slot = (loop.k - 1) % old.dx.shape[1]
    dx = lax.dynamic_update_slice_in_dim(old.dx, jnp.where(usable, x - old.x, 0.0)[:, None], slot, axis=1)
    dr = lax.dynamic_update_slice_in_dim(old.dr, jnp.where(usable, r - old.r, 0.0)[:, None], slot, axis=1)
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
    return _solve_positive(gram + ridge * jnp.eye(dr.shape[1], dtype=r.dtype)[None], right)


def _solve_positive(matrices: Array, right: Array) -> Array:
    """M⁻¹b for positive definite M (m, k, k) and b (m, k), by elimination.

    A few elementwise operations for each of the k columns, which keep to the devices of their rows; LAPACK would be
    called once for each sample, and JAX's batched factorisations do not take rows sharded over explicit axes.
    """
    k = right.shape[1]

    def eliminate(j: Array, system: Array) -> Array:
        row = lax.dynamic_slice_in_dim(system, j, 1, axis=1)
        column = lax.dynamic_slice_in_dim(system, j, 1, axis=2)
        unit = (jnp.arange(k) == j).astype(system.dtype)[None, :, None]
        # Row i ≠ j loses M_ij times row j over its pivot; row j itself becomes that row over its pivot.
        return system - (column - unit) * (row / lax.dynamic_slice_in_dim(row, j, 1, axis=2))

    return lax.fori_loop(0, k, eliminate, jnp.concatenate([matrices, right[:, :, None]], axis=2))[:, :, k]
