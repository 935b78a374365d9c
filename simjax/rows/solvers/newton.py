"""Semismooth-Newton augmented Lagrangian (SsNAL): the finisher for rows on which first-order methods stall.

The dual row is solved by the method of multipliers; with w the multiplier and σ > 0 the penalty parameter,

    y ← argmin_y ψ(y),   ψ(y) = ½‖y‖² − t̃ᵀy + max_p [pᵀKᵀy − g(p) − ‖p − w‖²/(2σ)]       p = prox_{σg}(w + σKᵀy)
    w ← p

and ∇ψ(y) = y − t̃ + Kp is semismooth. A Newton step only involves the coordinates J where the prox has slope c > 0:

    (K_JᵀK_J + diag(1/(σc))) dp + ν ω̂ = K_Jᵀ r,   ω̂ᵀdp = 0,   dy = r − K_J dp,   r = t̃ − Kp − y

with ω̂ = ω sign(p) + δ where the ball is active, and ν = 0 where it is not. Rows are batched; each has its own w, σ and
step.

Exact matching has no ½‖y‖² in its dual. A proximal term δ/2 ‖y − y_c‖² about the last y takes its place, with δ = 1/σ,
so that it vanishes as σ grows: the formulas above hold with δ(y − y_c) for y in ∇ψ, δ/(σc) on the diagonal and dy
divided by δ.

Source: Li, Sun, Toh, A highly efficient semismooth Newton augmented Lagrangian method for solving lasso problems
(SIAM J. Optim. 2018); the ball's rank-one term is the generalised derivative of its joint prox.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simjax.rows.joint_prox import joint_prox
from simjax.rows.solvers.canonical import CanonicalRows, relative_gap
from simjax.rows.solvers.factor import Factorisation
from simjax.rows.solvers.linear import Gram, cholesky, cholesky_solve, gather_system, scatter

Array = Any

_LINE_TRIALS = 12
_SIGMA_RANGE = (1e-4, 1e14)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NewtonState:
    w: Array  # (R, d), multiplier of the dual: the proximal centre
    y: Array  # (R, r)
    centre: Array  # (R, r), y_c of exact matching; zero otherwise
    sigma: Array  # (R, 1)
    theta: Array  # (R, 1)
    inner: Array  # (R,), Newton steps since the last update of w
    best_weights: Array  # (R, d)
    best_dual: Array  # (R, r)
    best_gap: Array  # (R,)
    active: Array  # (R,), |J| of the latest prox: what the caller sizes the Newton system by
    steps: Array  # (R,), Newton steps taken while the row was open


def start(
    weights: np.ndarray, dual: np.ndarray, gap: np.ndarray, sigma: np.ndarray, *, exact: bool = False
) -> NewtonState:
    """A state on the host at given weights and dual point, e.g. those of ADMM, with σ of the size of 10/ρ."""
    rows = weights.shape[0]
    return NewtonState(
        w=weights,
        y=dual,
        centre=dual if exact else np.zeros_like(dual),
        sigma=np.clip(sigma, *_SIGMA_RANGE),
        theta=np.zeros((rows, 1), weights.dtype),
        inner=np.zeros(rows, np.int32),
        best_weights=weights,
        best_dual=dual,
        best_gap=gap,
        active=np.count_nonzero(weights, axis=1),
        steps=np.zeros(rows, np.int32),
    )


@jax.jit(static_argnames=("size", "max_steps"))
def advance(
    factorisation: Factorisation,
    gram: Gram,
    rows: CanonicalRows,
    state: NewtonState,
    tol: Array,
    *,
    size: int,
    max_steps: int,
) -> NewtonState:
    """Newton steps until every row's relative gap is at most `tol`, or a system outgrows `size`, or `max_steps`.

    Args:
      gram: KᵀK.
      size: the largest |J| that fits; rows with more make the loop stop so that the caller can enlarge it.
    """

    def unfinished(carry: tuple[NewtonState, Array]) -> Array:
        state, count = carry
        open_ = state.best_gap > tol
        fits = jnp.all(~open_ | (state.active <= size))
        return jnp.any(open_) & fits & (count < max_steps)

    def step(carry: tuple[NewtonState, Array]) -> tuple[NewtonState, Array]:
        state, count = carry
        return _newton_step(factorisation, gram, rows, state, tol, size), count + 1

    return lax.while_loop(unfinished, step, (state, jnp.zeros((), jnp.int32)))[0]


def _newton_step(
    factorisation: Factorisation, gram: Gram, rows: CanonicalRows, state: NewtonState, tol: Array, size: int
) -> NewtonState:
    sigma = state.sigma
    slopes = factorisation.apply_transpose(state.y)
    points = rows.confine(state.w + sigma * slopes)
    prox = joint_prox(rows.penalty, rows.ball, points, sigma, state.theta)
    point = prox.point
    residual = rows.targets - factorisation.apply(point)  # t̃ − Kp
    delta = 1.0 / sigma if rows.exact else jnp.ones_like(sigma)
    newton_residual = residual - delta * (state.y - state.centre)  # −∇ψ(y)
    correlation = factorisation.apply_transpose(newton_residual)

    state = _keep_best(factorisation, rows, state, point, residual, slopes, correlation)
    open_ = (state.best_gap > tol)[:, None]

    # Outer update: once ∇ψ is small against the move of w, accept w ← p and adapt σ to how hard it was.
    move = _norm(point - state.w) / sigma
    # p = soft(w + σKᵀy, …) cancels most of its digits when σ is large; below that rounding ∇ψ cannot be reduced.
    rounding = _norm(newton_residual) <= 2.0 * jnp.finfo(sigma.dtype).eps * _norm(points)
    inner_done = ((_norm(correlation) <= 0.5 * move) | rounding) & open_
    effort = state.inner[:, None]
    growth = jnp.where(effort <= 2, 5.0, jnp.where(effort <= 5, 2.0, jnp.where(effort <= 10, 1.0, 0.5)))

    derivative: Any = rows.penalty.prox_slope(prox.seen, sigma)
    slope = jnp.where((point != 0.0), derivative, 0.0)
    bound = prox.theta > 0.0
    diagonal = delta / (sigma * jnp.where(slope > 0.0, slope, 1.0))
    direction, system_ok = _newton_direction(gram, rows, slope, bound, point, diagonal, correlation, size)
    dy = (newton_residual - factorisation.apply(direction)) / delta
    length = _line_search(factorisation, rows, state, delta, slopes, point, dy, prox.theta)
    newton = open_ & ~inner_done & system_ok
    y = jnp.where(newton, state.y + length * dy, state.y)
    # A singular system means σ is too large for the conditioning of this row.
    new_sigma = jnp.where(inner_done, sigma * growth, jnp.where(system_ok, sigma, 0.1 * sigma))
    new_sigma = jnp.clip(new_sigma, *_SIGMA_RANGE)
    return NewtonState(
        w=jnp.where(inner_done, point, state.w),
        y=y,
        centre=jnp.where(inner_done, y, state.centre) if rows.exact else state.centre,
        sigma=jnp.where(open_, new_sigma, sigma),
        theta=prox.theta,
        inner=jnp.where(inner_done[:, 0], 0, state.inner + 1),
        best_weights=state.best_weights,
        best_dual=state.best_dual,
        best_gap=state.best_gap,
        active=jnp.sum(slope > 0.0, axis=1),
        steps=state.steps + open_[:, 0],
    )


def _keep_best(
    factorisation: Factorisation,
    rows: CanonicalRows,
    state: NewtonState,
    point: Array,
    residual: Array,
    slopes: Array,
    correlation: Array,
) -> NewtonState:
    """Certify p with y and with its own residual (whose slopes Kᵀ(t̃ − Kp) are those of y plus the correlation)."""
    gap, dual = relative_gap(factorisation, rows, point, state.y, slopes), state.y
    if not rows.exact:
        residual_gap = relative_gap(factorisation, rows, point, residual, slopes + correlation)
        dual = jnp.where((residual_gap < gap)[:, None], residual, dual)
        gap = jnp.minimum(gap, residual_gap)
    better = gap < state.best_gap
    return dataclasses.replace(
        state,
        best_weights=jnp.where(better[:, None], point, state.best_weights),
        best_dual=jnp.where(better[:, None], dual, state.best_dual),
        best_gap=jnp.where(better, gap, state.best_gap),
    )


def _newton_direction(
    gram: Gram,
    rows: CanonicalRows,
    slope: Array,
    bound: Array,
    point: Array,
    diagonal: Array,
    correlation: Array,
    size: int,
) -> tuple[Array, Array]:
    """dp of the Newton system, (R, d), and whether it could be solved, (R, 1)."""
    system = gather_system(gram, slope > 0.0, diagonal, size)
    normal = jnp.zeros_like(slope) if rows.ball is None else rows.ball.normal(jnp.sign(point))
    normal = system.pick(jnp.where(bound, normal, 0.0))
    factor = cholesky(system.matrix)
    both = cholesky_solve(factor, jnp.stack([system.pick(correlation), normal], axis=2))
    plain, bent = both[:, :, 0], both[:, :, 1]
    curvature = jnp.sum(normal * bent, axis=1, keepdims=True)
    multiplier = jnp.sum(normal * plain, axis=1, keepdims=True) / jnp.where(curvature > 0.0, curvature, 1.0)
    step = scatter(system, plain - multiplier * bent, slope.shape[1])
    solved = jnp.all(jnp.isfinite(step), axis=1, keepdims=True)
    return jnp.where(solved, step, 0.0), solved


def _line_search(
    factorisation: Factorisation,
    rows: CanonicalRows,
    state: NewtonState,
    delta: Array,
    slopes: Array,
    point: Array,
    dy: Array,
    theta: Array,
) -> Array:
    """A step length with |ψ'(α)| ≤ ½|ψ'(0)|, or α = 1 where ψ still falls there. ψ is convex; a trial costs a prox."""
    moved = factorisation.apply_transpose(dy)

    def derivative(length: Array, point: Array) -> Array:
        quadratic = delta * (state.y + length * dy - state.centre)
        equation = jnp.sum((quadratic - rows.targets) * dy, axis=1, keepdims=True)
        return equation + jnp.sum(point * moved, axis=1, keepdims=True)

    def at(length: Array, theta: Array) -> tuple[Array, Array]:
        points = rows.confine(state.w + state.sigma * (slopes + length * moved))
        prox = joint_prox(rows.penalty, rows.ball, points, state.sigma, theta)
        return derivative(length, prox.point), prox.theta

    at_zero = derivative(jnp.zeros_like(theta), point)
    wanted = 0.5 * jnp.abs(at_zero)

    def unfinished(carry: tuple) -> Array:
        return jnp.any(~carry[3]) & (carry[5] < _LINE_TRIALS)

    def trial(carry: tuple) -> tuple:
        length, low, high, done, theta, count = carry
        value, theta = at(length, theta)
        accept = (jnp.abs(value) <= wanted) | ((value < 0.0) & (length >= 1.0))
        low = jnp.where(~done & (value < 0.0), length, low)
        high = jnp.where(~done & (value > 0.0), length, high)
        done = done | accept
        return jnp.where(done, length, 0.5 * (low + high)), low, high, done, theta, count + 1

    one = jnp.ones_like(theta)
    flat = ~(at_zero < 0.0)
    carry = (one, jnp.zeros_like(one), one, flat, theta, jnp.zeros((), jnp.int32))
    return lax.while_loop(unfinished, trial, carry)[0]


def _norm(x: Array) -> Array:
    return jnp.linalg.norm(x, axis=1, keepdims=True)
