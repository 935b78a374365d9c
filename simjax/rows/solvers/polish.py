"""One active-set polish: solve the KKT equations on the support, the signs and the pieces a first-order method found.

On coordinate j with sign σ_j, |w_j| below the knot contributes the slope c_j, above it c_j + 2a_j(|w_j| − b_j):

    (K_JᵀK_J + diag(2a [curved])) w_J + θ ω̂ = K_Jᵀt̃ − σ (c − 2ab [curved]),     ω̂ᵀw = κ where the ball is active,

ω̂ = σω + δ. Weights on a bound of a box stay there, outside of J, and K w stands for K_J w_J.

If the guess is right the answer is exact to rounding and its residual certifies it; if not, the gap says so.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from simjax._typing import Array
from simjax.rows.answers import RowAnswers
from simjax.rows.arrays import fori_loop, namespace
from simjax.rows.boxed import BoxedPenalty, box_of, unboxed
from simjax.rows.solvers.canonical import CanonicalRows
from simjax.rows.solvers.factor import Factorisation
from simjax.rows.solvers.linear import Gram, cholesky, cholesky_solve, gather_system

_RIDGE = 1e-11  # ‖K‖ = 1
_REFINEMENTS = 3
_SETTLED = 3  # signs that may have changed since the last check for a polish to be worth its price
_PROMISING = 3e-2  # the gap below which it is at the first check, when nothing is known of the signs before
_BALL_ACTIVE = 1e-6  # relative slack of the ball below which the guess takes it for active


def polish(factorisation: Factorisation, gram: Gram, rows: CanonicalRows, weights: Array, *, size: int) -> Array:
    """Polished weights (R, d), which may be outside of the ball; the guess where they would not be finite.

    Args:
      weights: the guess; its support must have at most `size` entries.
    """
    xp = namespace(weights)
    penalty: Any = unboxed(rows.penalty)
    box = box_of(rows.penalty)
    sign = xp.sign(weights)
    fixed = xp.zeros(weights.shape, dtype=bool) if box is None else box.fixed(weights)
    member = (weights != 0.0) & ~fixed
    curved = member & (xp.abs(weights) > penalty.knot)
    curvature = xp.where(curved, 2.0 * penalty.curvature, 0.0)
    offset = sign * (penalty.slope - curvature * penalty.knot)
    normal, radius = xp.zeros_like(weights), xp.zeros((weights.shape[0], 1), weights.dtype)
    if rows.bound is not None:
        normal = rows.bound.normal(sign) * (sign != 0.0)
        slack = _BALL_ACTIVE * xp.sum(xp.abs(normal * weights), axis=1, keepdims=True)
        active = rows.bound.norm(weights) >= rows.bound.radius - slack
        normal = xp.where(active, normal, 0.0)
        radius = xp.where(active, rows.bound.radius, 0.0)

    # The ridge keeps the factorisation finite on a singular support, where it picks the solution of least norm; the
    # refinement takes its bias out again. The gap is the judge.
    system = gather_system(gram, member, curvature + _RIDGE, size)
    picked = system.pick(normal)
    factor = cholesky(system.matrix)
    bent = cholesky_solve(factor, picked)
    bend = xp.sum(picked * bent, axis=1, keepdims=True)
    bends = bend > 0.0

    def refine(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        point, theta = carry
        slopes = factorisation.apply_transpose(rows.targets - factorisation.apply(point))
        plain = cholesky_solve(factor, system.pick(slopes - offset - curvature * point - theta * normal))
        missing = radius - xp.sum(normal * point, axis=1, keepdims=True)
        change = (xp.sum(picked * plain, axis=1, keepdims=True) - missing) / xp.where(bends, bend, 1.0)
        change = xp.where(bends, change, 0.0)
        return point + system.scatter(plain - change * bent, weights.shape[1]), theta + change

    start = (xp.where(fixed, weights, 0.0), xp.zeros_like(radius))
    point, _ = fori_loop(_REFINEMENTS, refine, start, xp)
    return xp.where(xp.isfinite(point).all(axis=1, keepdims=True), point, weights)


@dataclasses.dataclass
class Signs:
    """The signs of each row's weights at the last check and at the last polish, (R, d), as −1, 0, 1; 2 for unknown."""

    checked: np.ndarray
    polished: np.ndarray
    box: BoxedPenalty | None

    @classmethod
    def of(cls, board: RowAnswers, rows: CanonicalRows) -> Signs:
        unknown = np.full(board.weights.shape, 2, dtype=np.int8)
        return cls(unknown, unknown.copy(), box_of(rows.penalty))

    def settled(self, index: np.ndarray, weights: np.ndarray, gap: np.ndarray) -> np.ndarray:
        """Which of the rows `index` are worth a polish now; remembers them as polished."""
        signs = np.sign(weights).astype(np.int8)
        if self.box is not None:  # on a bound other than zero, a weight counts as having another sign
            signs += 2 * signs * self.box.rows(index).fixed(weights)
        first = self.checked[index, 0] == 2
        changes = np.count_nonzero(signs != self.checked[index], axis=1)
        fresh = np.any(signs != self.polished[index], axis=1)
        worth = fresh & np.where(first, gap <= _PROMISING, changes <= _SETTLED)
        self.checked[index] = signs
        self.polished[index[worth]] = signs[worth]
        return worth
