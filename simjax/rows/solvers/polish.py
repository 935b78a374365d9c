"""One active-set polish: solve the KKT equations on the support, the signs and the pieces a first-order method found.

On coordinate j with sign σ_j, |w_j| below the knot contributes the slope c_j, above it c_j + 2a_j(|w_j| − b_j):

    (K_JᵀK_J + diag(2a [curved])) w_J + θ ω̂ = K_Jᵀt̃ − σ (c − 2ab [curved]),     ω̂ᵀw = κ where the ball is active,

ω̂ = σω + δ.

If the guess is right the answer is exact to rounding and its residual certifies it; if not, the gap says so.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from simjax.rows.penalties import PiecewisePenalty
from simjax.rows.solvers.canonical import CanonicalRows
from simjax.rows.solvers.factor import Factorisation
from simjax.rows.solvers.linear import Gram, cholesky, cholesky_solve, gather_system, scatter

Array = Any

_RIDGE = 1e-11  # ‖K‖ = 1
_REFINEMENTS = 3
_BALL_ACTIVE = 1e-6  # relative slack of the ball below which the guess takes it for active


@jax.jit(static_argnames="size")
def polish(factorisation: Factorisation, gram: Gram, rows: CanonicalRows, weights: Array, *, size: int) -> Array:
    """Polished weights, (R, d). Whether they are any good, `judge` says.

    Args:
      weights: the guess; its support must have at most `size` entries.
    """
    penalty: PiecewisePenalty = rows.penalty
    sign = jnp.sign(weights)
    member = weights != 0.0
    curved = member & (jnp.abs(weights) > penalty.knot)
    curvature = jnp.where(curved, 2.0 * penalty.curvature, 0.0)
    offset = sign * (penalty.slope - curvature * penalty.knot)
    normal, radius = jnp.zeros_like(weights), jnp.zeros((weights.shape[0], 1), weights.dtype)
    if rows.ball is not None:
        normal = jnp.where(member, rows.ball.normal(sign), 0.0)
        slack = _BALL_ACTIVE * jnp.sum(jnp.abs(normal * weights), axis=1, keepdims=True)
        active = rows.ball.norm(weights) >= rows.ball.radius - slack
        normal = jnp.where(active, normal, 0.0)
        radius = jnp.where(active, rows.ball.radius, 0.0)

    # The ridge keeps the factorisation finite on a singular support, where it picks the solution of least norm; the
    # refinement takes its bias out again. The gap is the judge.
    system = gather_system(gram, member, curvature + _RIDGE, size)
    picked = system.pick(normal)
    factor = cholesky(system.matrix)
    bent = cholesky_solve(factor, picked)
    bend = jnp.sum(picked * bent, axis=1, keepdims=True)
    bound = bend > 0.0

    def refine(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        point, theta = carry
        slopes = factorisation.apply_transpose(rows.targets - factorisation.apply(point))
        plain = cholesky_solve(factor, system.pick(slopes - offset - curvature * point - theta * normal))
        missing = radius - jnp.sum(normal * point, axis=1, keepdims=True)
        change = (jnp.sum(picked * plain, axis=1, keepdims=True) - missing) / jnp.where(bound, bend, 1.0)
        change = jnp.where(bound, change, 0.0)
        return point + scatter(system, plain - change * bent, weights.shape[1]), theta + change

    start = (jnp.zeros_like(weights), jnp.zeros_like(radius))
    point, _ = lax.fori_loop(0, _REFINEMENTS, refine, start)

    return rows.feasible(jnp.where(jnp.isfinite(point).all(axis=1, keepdims=True), point, weights))
