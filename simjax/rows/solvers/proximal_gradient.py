"""Accelerated proximal gradient (FISTA) with adaptive restart.

    z_new ← prox_g(v + Kᵀ(t̃ − Kv))            step 1: ‖K‖ = 1 in canonical units
    v     ← z_new + (s − 1)/s_new · (z_new − z)      restarted where the momentum points uphill

For well-conditioned rows; near-interpolating rows want ADMM and Newton. There is no gradient under exact matching.

Sources: Beck & Teboulle (2009); O'Donoghue & Candès, Adaptive restart for accelerated gradient schemes (2015), §3.2.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from simjax.rows.joint_prox import joint_prox
from simjax.rows.solvers.canonical import CanonicalRows
from simjax.rows.solvers.factor import Factorisation

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProximalGradientState:
    z: Array  # (R, d)
    v: Array  # (R, d), the extrapolated point
    momentum: Array  # (R, 1)
    theta: Array  # (R, 1)


@jax.jit
def start(factorisation: Factorisation, rows: CanonicalRows) -> ProximalGradientState:
    zero = jnp.zeros((rows.targets.shape[0], factorisation.basis.shape[0]), rows.targets.dtype)
    one = jnp.ones((zero.shape[0], 1), zero.dtype)
    return ProximalGradientState(zero, zero, one, jnp.zeros_like(one))


@jax.jit
def restart(
    factorisation: Factorisation, state: ProximalGradientState, chosen: Array, weights: Array, dual: Array
) -> ProximalGradientState:
    """The state with the `chosen` (R,) rows moved to given weights (R, d); a dual point is of no use here."""
    chosen = chosen[:, None]
    return ProximalGradientState(
        z=jnp.where(chosen, weights, state.z),
        v=jnp.where(chosen, weights, state.v),
        momentum=jnp.where(chosen, 1.0, state.momentum),
        theta=jnp.where(chosen, 0.0, state.theta),
    )


@jax.jit(static_argnames="passes")
def advance(
    factorisation: Factorisation, rows: CanonicalRows, state: ProximalGradientState, *, passes: int
) -> ProximalGradientState:
    """`passes` iterations."""

    def one_pass(_: int, state: ProximalGradientState) -> ProximalGradientState:
        residual = rows.targets - factorisation.apply(state.v)
        point = rows.confine(state.v + factorisation.apply_transpose(residual))
        prox = joint_prox(rows.penalty, rows.ball, point, jnp.ones_like(state.theta), state.theta)
        move = prox.point - state.z
        uphill = jnp.sum((state.v - prox.point) * move, axis=1, keepdims=True) > 0.0
        momentum = jnp.where(uphill, 1.0, state.momentum)
        grown = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * momentum**2))
        v = prox.point + jnp.where(uphill, 0.0, (momentum - 1.0) / grown) * move
        return ProximalGradientState(prox.point, v, grown, prox.theta)

    return lax.fori_loop(0, passes, one_pass, state)


def point(state: ProximalGradientState) -> tuple[Array, None]:
    """The weights z; the residual is the only dual point there is."""
    return state.z, None
