"""Accelerated proximal gradient (FISTA) with adaptive restart.

    z_new ← prox_g(v + Kᵀ(t̃ − Kv))            step 1: ‖K‖ = 1 in canonical units
    v     ← z_new + (s − 1)/s_new · (z_new − z)      restarted where the momentum points uphill

For well-conditioned rows; near-interpolating rows want ADMM. There is no gradient under exact matching.

Sources: Beck & Teboulle (2009); O'Donoghue & Candès, Adaptive restart for accelerated gradient schemes (2015), §3.2.
"""

from __future__ import annotations

import dataclasses

from simjax._typing import Array
from simjax.rows.arrays import fori_loop, namespace, pytree
from simjax.rows.joint_prox import joint_prox
from simjax.rows.solvers.canonical import CanonicalRows
from simjax.rows.solvers.factor import Factorisation


@pytree()
@dataclasses.dataclass(frozen=True)
class ProximalGradientState:
    z: Array  # (R, d)
    v: Array  # (R, d), the extrapolated point
    momentum: Array  # (R, 1)
    theta: Array  # (R, 1)


def start(factorisation: Factorisation, rows: CanonicalRows) -> ProximalGradientState:
    """The state at w = 0, in arrays of its own."""
    xp = namespace(rows.targets)
    zero = xp.zeros((rows.targets.shape[0], factorisation.basis.shape[0]), rows.targets.dtype)
    one = xp.ones((zero.shape[0], 1), zero.dtype)
    return ProximalGradientState(zero, zero.copy(), one, xp.zeros_like(one))


def restart(
    factorisation: Factorisation, state: ProximalGradientState, weights: Array, dual: Array
) -> ProximalGradientState:
    """The state moved to given weights (R, d); a dual point is of no use here."""
    xp = namespace(state.v)
    return ProximalGradientState(weights, weights, xp.ones_like(state.momentum), xp.zeros_like(state.theta))


def advance(
    factorisation: Factorisation, rows: CanonicalRows, state: ProximalGradientState, *, passes: int
) -> ProximalGradientState:
    """`passes` iterations."""
    xp = namespace(state.v)

    def one_pass(_: int, state: ProximalGradientState) -> ProximalGradientState:
        residual = rows.targets - factorisation.apply(state.v)
        point = rows.confine(state.v + factorisation.apply_transpose(residual))
        prox = joint_prox(rows.penalty, rows.bound, point, xp.ones_like(state.theta), state.theta)
        move = prox.point - state.z
        uphill = xp.sum((state.v - prox.point) * move, axis=1, keepdims=True) > 0.0
        momentum = xp.where(uphill, 1.0, state.momentum)
        grown = 0.5 * (1.0 + xp.sqrt(1.0 + 4.0 * momentum**2))
        v = prox.point + xp.where(uphill, 0.0, (momentum - 1.0) / grown) * move
        return ProximalGradientState(prox.point, v, grown, prox.theta)

    return fori_loop(passes, one_pass, state, xp)


def point(state: ProximalGradientState) -> tuple[Array, None]:
    """The weights z; the residual is the only dual point there is."""
    return state.z, None
