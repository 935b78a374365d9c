"""Two-block ADMM, over-relaxed, with its own ρ for every row.

    w ← argmin ½‖t̃ − Kw‖² + ρ/2‖w − (z − u)‖²        K = S Vᵀ: two products with V for all rows and every ρ
    z ← prox_{g/ρ}(αw + (1 − α)z + u)                 penalty, ball and support in one prox
    u ← u + αw + (1 − α)z_old − z

The iterate that counts is z, the prox block, exactly sparse and feasible. The dual point comes from the w block:
y = t̃ − Kw satisfies Kᵀy = ρ(w − z + u), and certifies rows that the residual of z does not. Under exact matching the
w step is the projection onto Kw = t̃.

Source: Boyd et al., Distributed optimization and statistical learning via ADMM (2011), §3.4.1 for the ρ rule.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from simjax.constraints import joint_prox
from simjax.solvers.canonical import CanonicalRows, relative_gap
from simjax.solvers.factor import Factorisation

Array = Any

_RELAXATION = 1.6
_RHO_EVERY = 20
_RHO_RANGE = (1e-12, 1e6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdmmState:
    z: Array  # (R, d)
    u: Array  # (R, d), scaled multiplier
    rho: Array  # (R, 1)
    theta: Array  # (R, 1), the ball's root of the last prox: a warm start for the next
    age: Array  # (R, 1), how often ρ has been rebalanced


def initial_rho(rows: CanonicalRows, ridge: Array) -> Array:
    """ρ₀ = h'(w)/‖w‖² at a ridge solution w: the weight at which the prox moves w by about its own size."""
    value = jnp.sum(jnp.broadcast_to(rows.penalty.value(ridge), ridge.shape), axis=1, keepdims=True)
    return jnp.clip(value / jnp.maximum(jnp.sum(ridge**2, axis=1, keepdims=True), 1e-30), 1e-6, 1e2)


@jax.jit
def start(factorisation: Factorisation, rows: CanonicalRows) -> AdmmState:
    singular = factorisation.singular_values
    ridge = rows.confine(
        jnp.matmul(rows.targets * singular / (singular**2 + 1e-3), factorisation.basis.T, precision="highest")
    )
    rho = initial_rho(rows, ridge)
    zero = jnp.zeros_like(ridge)
    return AdmmState(z=zero, u=zero, rho=rho, theta=jnp.zeros_like(rho), age=jnp.zeros_like(rho))


def _w_step(factorisation: Factorisation, rows: CanonicalRows, state: AdmmState) -> tuple[Array, Array]:
    """w and y = t̃ − Kw (for exact matching: the y with Kᵀy = ρ(w − v))."""
    singular = factorisation.singular_values
    v = state.z - state.u
    x = jnp.matmul(v, factorisation.basis, precision="highest")
    if rows.exact:
        move = rows.targets / singular - x
    else:
        move = singular * (rows.targets - singular * x) / (singular**2 + state.rho)
    w = v + jnp.matmul(move, factorisation.basis.T, precision="highest")
    return w, state.rho * move / singular


@jax.jit(static_argnames="passes")
def advance(factorisation: Factorisation, rows: CanonicalRows, state: AdmmState, *, passes: int) -> AdmmState:
    """`passes` iterations; ρ is rebalanced every 20 of them."""

    def one_pass(state: AdmmState) -> tuple[AdmmState, Array, Array]:
        w, _ = _w_step(factorisation, rows, state)
        relaxed = _RELAXATION * w + (1.0 - _RELAXATION) * state.z
        step = 1.0 / state.rho
        prox = joint_prox(rows.penalty, rows.ball, rows.confine(relaxed + state.u), step, state.theta)
        u = state.u + relaxed - prox.point
        return AdmmState(prox.point, u, state.rho, prox.theta, state.age), w, prox.point - state.z

    def block(_: int, state: AdmmState) -> AdmmState:
        state = lax.fori_loop(0, _RHO_EVERY - 1, lambda _, s: one_pass(s)[0], state)
        state, w, move = one_pass(state)
        return _rebalance(state, rows.confine(w), move)

    state = lax.fori_loop(0, passes // _RHO_EVERY, block, state)
    return lax.fori_loop(0, passes % _RHO_EVERY, lambda _, s: one_pass(s)[0], state)


def _rebalance(state: AdmmState, w: Array, move: Array) -> AdmmState:
    """ρ ← ρ √(relative primal residual / relative dual residual), by less and less.

    ADMM converges for a fixed ρ; one that keeps moving can cycle for ever. The largest factor is 5 for the first ten
    times and then falls towards 1 fast enough for the product of all of them to stay bounded.
    """
    size = jnp.maximum(_norm(w), _norm(state.z))
    primal = _norm(w - state.z) / jnp.maximum(size, 1e-30)
    dual = _norm(move) / jnp.maximum(_norm(state.u), 1e-30)
    most = 1.0 + 4.0 / jnp.maximum(state.age / 10.0, 1.0) ** 2
    meaningful = (primal > 1e-15) & (dual > 1e-15)
    ratio = jnp.where(meaningful, jnp.clip(jnp.sqrt(primal / jnp.where(meaningful, dual, 1.0)), 1.0 / most, most), 1.0)
    rho = jnp.clip(state.rho * ratio, *_RHO_RANGE)
    return AdmmState(state.z, state.u * (state.rho / rho), rho, state.theta * (state.rho / rho), state.age + 1.0)


def _norm(x: Array) -> Array:
    return jnp.linalg.norm(x, axis=1, keepdims=True)


@jax.jit
def candidate(factorisation: Factorisation, rows: CanonicalRows, state: AdmmState) -> tuple[Array, Array, Array]:
    """The weights z, the better of the two dual points y, and the relative gap it proves."""
    _, dual = _w_step(factorisation, rows, state)
    gap = relative_gap(factorisation, rows, state.z, dual)
    if rows.exact:
        return state.z, dual, gap
    residual = rows.targets - factorisation.apply(state.z)
    residual_gap = relative_gap(factorisation, rows, state.z, residual)
    better = residual_gap < gap
    return state.z, jnp.where(better[:, None], residual, dual), jnp.minimum(gap, residual_gap)
