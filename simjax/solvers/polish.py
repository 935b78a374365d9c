"""One active-set polish: solve the KKT equations on the support, the signs and the pieces a first-order method found.

On coordinate j with sign σ_j, |w_j| below the knot contributes the slope c_j, above it c_j + 2a_j(|w_j| − b_j):

    (K_JᵀK_J + diag(2a [curved])) w_J + θ ω̂ = K_Jᵀt̃ − σ (c − 2ab [curved]),     ω̂ᵀw = κ where the ball is active

If the guess is right the answer is exact to rounding and its residual certifies it; if not, the gap says so.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from simjax.penalties import PiecewisePenalty
from simjax.solvers.canonical import CanonicalRows, relative_gap
from simjax.solvers.factor import Factorisation
from simjax.solvers.linear import gather_system, scatter, solve_spd

Array = Any

_BALL_ACTIVE = 1e-6  # relative slack of the ball below which the guess takes it for active


@jax.jit(static_argnames="size")
def polish(
    factorisation: Factorisation, gram: Array, rows: CanonicalRows, weights: Array, *, size: int
) -> tuple[Array, Array, Array]:
    """Polished weights (R, d), their dual point (R, r) and the relative gap (R,).

    Args:
      weights: the guess; its support must have at most `size` entries.
    """
    penalty: PiecewisePenalty = rows.penalty
    sign = jnp.sign(weights)
    member = weights != 0.0
    curved = member & (jnp.abs(weights) > penalty.knot)
    curvature = jnp.where(curved, 2.0 * penalty.curvature, 0.0)
    offset = sign * (penalty.slope - curvature * penalty.knot)
    right = factorisation.apply_transpose(rows.targets) - offset
    normal, radius = jnp.zeros_like(weights), jnp.zeros((weights.shape[0], 1), weights.dtype)
    if rows.ball is not None:
        active = rows.ball.norm(weights) >= rows.ball.radius * (1.0 - _BALL_ACTIVE)
        normal = jnp.where(active, rows.ball.weights * sign, 0.0)
        radius = jnp.where(active, rows.ball.radius, 0.0)

    # A relative ridge of 1e-14 keeps the factorisation finite on a singular support; the gap is the judge.
    system = gather_system(gram, member, curvature + 1e-14, size)
    columns = jnp.stack([system.pick(right), system.pick(normal)], axis=2)
    solution = solve_spd(system.matrix, columns)
    plain, bent = solution[:, :, 0], solution[:, :, 1]
    picked = system.pick(normal)
    bend = jnp.sum(picked * bent, axis=1, keepdims=True)
    theta = (jnp.sum(picked * plain, axis=1, keepdims=True) - radius) / jnp.where(bend > 0.0, bend, 1.0)
    point = scatter(system, plain - jnp.where(bend > 0.0, theta, 0.0) * bent, weights.shape[1])

    point = rows.confine(jnp.where(jnp.isfinite(point).all(axis=1, keepdims=True), point, weights))
    if rows.ball is not None:
        norm = rows.ball.norm(point)
        shrink = jnp.where(norm > rows.ball.radius, rows.ball.radius / jnp.where(norm > 0.0, norm, 1.0), 1.0)
        point = jnp.where(rows.ball.weights > 0.0, point * shrink, point)
    dual = rows.targets - factorisation.apply(point)
    return point, dual, relative_gap(factorisation, rows, point, dual)
