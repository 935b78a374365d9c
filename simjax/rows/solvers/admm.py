"""Two-block ADMM, over-relaxed, with its own ρ for every row and Anderson extrapolation.

In terms of the point v that enters the prox, one pass is the fixed-point map F

    z ← prox_{g/ρ}(v),   u = v − z                   penalty, ball and support in one prox
    w ← argmin ½‖t̃ − Kw‖² + ρ/2‖w − (z − u)‖²        K = S Vᵀ: two products with V for all rows and every ρ
    v ← v + α(w − z)                                 over-relaxation α

After every nine passes v_0, …, v_9 the combination Σ c_i v_{i+1} with the least ‖Σ c_i (v_{i+1} − v_i)‖, Σ c_i = 1, is
tried, row by row, and kept where F moves it no further than it moved the last of them: it needs about half the passes.

The iterate that counts is z, exactly sparse and feasible. The dual point comes from the w block: y = t̃ − Kw satisfies
Kᵀy = ρ(w − z + u), and certifies rows that the residual of z does not. Under exact matching the w step is the
projection onto Kw = t̃.

Sources: Boyd et al., Distributed optimization and statistical learning via ADMM (2011), §3.4.1 for the ρ rule; Walker &
Ni, Anderson acceleration for fixed-point iterations (2011).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from simjax.rows.joint_prox import JointProx, joint_prox
from simjax.rows.solvers.canonical import CanonicalRows
from simjax.rows.solvers.factor import Factorisation
from simjax.rows.solvers.linear import cholesky, cholesky_solve

Array = Any

_RELAXATION = 1.6
_WINDOW = 9  # passes between two extrapolations
_WINDOWS = 2  # extrapolations between two changes of ρ
_EXTRAPOLATION_RIDGE = 1e-10
_RHO_RANGE = (1e-12, 1e6)

ROUND = _WINDOWS * (_WINDOW + 1) + 1  # passes of a full round: each extrapolation costs one, and so does changing ρ


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdmmState:
    v: Array  # (R, d), the next point of the prox
    z: Array  # (R, d), the prox of the last pass
    w: Array  # (R, d), and its w block
    y: Array  # (R, r), and its dual point
    rho: Array  # (R, 1)
    theta: Array  # (R, 1), the ball's root of the last prox: a warm start for the next
    age: Array  # (R, 1), how often ρ has been rebalanced


def initial_rho(rows: CanonicalRows, ridge: Array) -> Array:
    """ρ₀ = 0.3 h'(w)/‖w‖² at a ridge solution w: the weight at which the prox moves w by about its own size.

    Where ρ settles lies between a tenth and a hundredth of that ratio for near-interpolating rows, above it for others.
    """
    value = jnp.sum(jnp.broadcast_to(rows.penalty.value(ridge), ridge.shape), axis=1, keepdims=True)
    return jnp.clip(0.3 * value / jnp.maximum(jnp.sum(ridge**2, axis=1, keepdims=True), 1e-30), 1e-6, 1e2)


@jax.jit
def start(factorisation: Factorisation, rows: CanonicalRows) -> AdmmState:
    """The state at w = 0."""
    singular = factorisation.singular_values
    ridge = rows.confine(
        jnp.matmul(rows.targets * singular / (singular**2 + 1e-3), factorisation.basis.T, precision="highest")
    )
    rho, zero = initial_rho(rows, ridge), jnp.zeros_like(ridge)
    return AdmmState(zero, zero, zero, rows.targets, rho, jnp.zeros_like(rho), jnp.zeros_like(rho))


@jax.jit
def restart(factorisation: Factorisation, state: AdmmState, chosen: Array, weights: Array, dual: Array) -> AdmmState:
    """The state with the `chosen` (R,) rows moved to given weights (R, d) and dual points (R, r).

    At a solution ρu = Kᵀy, so v = z + Kᵀy/ρ is the fixed point if weights and dual solve the row.
    """
    chosen = chosen[:, None]
    v = weights + factorisation.apply_transpose(dual) / state.rho
    return dataclasses.replace(
        state,
        v=jnp.where(chosen, v, state.v),
        z=jnp.where(chosen, weights, state.z),
        w=jnp.where(chosen, weights, state.w),
        y=jnp.where(chosen, dual, state.y),
    )


@jax.jit(static_argnames="passes")
def advance(factorisation: Factorisation, rows: CanonicalRows, state: AdmmState, *, passes: int) -> AdmmState:
    """`passes` iterations, in rounds of two extrapolated windows and one pass more, each of which begins with a new ρ.

    One loop for everything, so that the prox is compiled once: what is special about a pass hangs on its number.
    """
    rows_count, width = state.v.shape
    window = _WINDOW + 1

    def one_pass(number: Array, carry: tuple) -> tuple:
        state, path, fallback, last_move = carry
        in_round = number % ROUND
        in_window = jnp.where(in_round < _WINDOWS * window, in_round % window, -1)
        judged = in_window == _WINDOW  # the pass from the extrapolated point, after the nine of the window
        prox = joint_prox(rows.penalty, rows.ball, rows.confine(state.v), 1.0 / state.rho, state.theta)
        state = lax.cond(in_round == 0, _rebalanced, _unchanged, rows, state, prox)
        w, y = _w_step(factorisation, rows, state)
        following = state.v + _RELAXATION * (w - state.z)

        # v₀ goes to slot 0, what follows to the next ones, and what no window wants to one slot more.
        first, then = jnp.where(in_window == 0, 0, window), jnp.where((in_window < 0) | judged, window, in_window + 1)
        path = lax.dynamic_update_slice_in_dim(path, state.v[:, None], first, axis=1)
        path = lax.dynamic_update_slice_in_dim(path, following[:, None], then, axis=1)
        kept = ~judged | (_norm(following - state.v) <= last_move)  # False for NaN
        v = jnp.where(kept, following, fallback)
        v = lax.cond(in_window == _WINDOW - 1, lambda path: _extrapolate(path[:, :window]), lambda _: v, path)
        fallback = jnp.where(in_window == _WINDOW - 1, following, fallback)
        last_move = jnp.where(in_window == _WINDOW - 1, _norm(following - state.v), last_move)
        return dataclasses.replace(state, v=v, w=w, y=y), path, fallback, last_move

    path = jnp.zeros((rows_count, window + 1, width), state.v.dtype)
    carry = (state, path, state.v, jnp.zeros_like(state.rho))
    return lax.fori_loop(0, passes, one_pass, carry)[0]


def _w_step(factorisation: Factorisation, rows: CanonicalRows, state: AdmmState) -> tuple[Array, Array]:
    """w and y = t̃ − Kw (for exact matching: the y with Kᵀy = ρ(w − z + u))."""
    singular = factorisation.singular_values
    centre = 2.0 * state.z - state.v  # z − u
    x = jnp.matmul(centre, factorisation.basis, precision="highest")
    if rows.exact:
        move = rows.targets / singular - x
    else:
        move = singular * (rows.targets - singular * x) / (singular**2 + state.rho)
    w = centre + jnp.matmul(move, factorisation.basis.T, precision="highest")
    return w, state.rho * move / singular


def _extrapolate(path: Array) -> Array:
    """Σ c_i v_{i+1} with c = argmin ‖Σ c_i r_i‖², r_i = v_{i+1} − v_i, Σ c_i = 1: c ∝ G⁻¹1, G_ij = r_iᵀr_j.

    Args:
      path: v_0, …, v_k, (R, k + 1, d).
    """
    points, moves = path[:, 1:], path[:, 1:] - path[:, :-1]
    gram = jnp.matmul(moves, moves.transpose(0, 2, 1), precision="highest")
    ridge = _EXTRAPOLATION_RIDGE * jnp.trace(gram, axis1=1, axis2=2) + 1e-300
    gram = gram + ridge[:, None, None] * jnp.eye(gram.shape[1], dtype=gram.dtype)
    weights = cholesky_solve(cholesky(gram), jnp.ones(gram.shape[:2], gram.dtype))
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    return jnp.matmul(weights[:, None, :], points, precision="highest")[:, 0]


def _unchanged(rows: CanonicalRows, state: AdmmState, prox: JointProx) -> AdmmState:
    return dataclasses.replace(state, z=prox.point, theta=prox.theta)


def _rebalanced(rows: CanonicalRows, state: AdmmState, prox: JointProx) -> AdmmState:
    """ρ ← ρ √(relative primal residual / relative dual residual) of the last pass, by less and less.

    ADMM converges for a fixed ρ; one that keeps moving can cycle for ever. The largest factor is 5 for the first ten
    times and then falls towards 1 fast enough for the product of all of them to stay bounded.

    z stays the prox of its new point: ρu, which does not change, is a subgradient of g at z.
    """
    w, z, u = rows.confine(state.w), prox.point, state.v - prox.point
    primal = _norm(w - state.z) / jnp.maximum(jnp.maximum(_norm(w), _norm(state.z)), 1e-30)
    dual = _norm(z - state.z) / jnp.maximum(_norm(u), 1e-30)
    most = 1.0 + 4.0 / jnp.maximum(state.age / 10.0, 1.0) ** 2
    meaningful = primal > 1e-15  # not at the start, nor after a restart: w = z there
    ratio = jnp.where(meaningful, jnp.clip(jnp.sqrt(primal / jnp.maximum(dual, 1e-30)), 1.0 / most, most), 1.0)
    rho = jnp.clip(state.rho * ratio, *_RHO_RANGE)
    change = state.rho / rho
    return AdmmState(
        z + u * change, z, state.w, state.y, rho, prox.theta * change, state.age + jnp.where(meaningful, 1.0, 0.0)
    )


def _norm(x: Array) -> Array:
    return jnp.linalg.norm(x, axis=-1, keepdims=True)


def point(state: AdmmState) -> tuple[Array, Array]:
    """The weights z and the dual point y of the last pass."""
    return state.z, state.y
