"""From an interior point to an exactly sparse one: guess the active set, solve the KKT equations on it, mend the guess.

On coordinate j with sign σ_j, |w_j| below the knot contributes the slope c_j, above it c_j + 2a_j(|w_j| − b_j):

    K_Jᵀ(t − K_J w_J) = σ(c − 2ab [curved]) + diag(2a [curved]) w_J + θω̂,     ω̂ᵀw = κ where the ball is active,

ω̂ = σω + δ; under exact matching K_Jᵀy stands on the left, and K_J w_J = t. Weights outside of J are held at zero or at
a bound of their box, and what they contribute is taken off t and κ. Corrections to the interior point are solved
for, so that what a nearly singular J leaves undetermined stays where the interior point has it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg.lapack

from simjax.rows import lapack
from simjax.rows.solvers.interior_point import InteriorPoint

_RIDGE = 1e-11  # ‖K‖ = 1
_REFINEMENTS = 3
_ROUNDS = 6
# A larger system is left alone where its k³/3 flops are more than those of the interior point itself, 15 r²d.
_LARGE_SYSTEM = 2000

Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def crossover(
    transpose: np.ndarray,
    gram: np.ndarray | None,
    targets: np.ndarray,
    slope: np.ndarray,
    curvature: np.ndarray,
    knot: np.ndarray,
    bound: tuple[np.ndarray, np.ndarray | None, np.ndarray] | None,
    support: np.ndarray | None,
    start: InteriorPoint,
    judge: Judge,
    *,
    box: tuple[np.ndarray, np.ndarray] | None = None,
    exact: bool = False,
    tol: float = 1e-8,
    rounds: int = _ROUNDS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weights (R, d), dual (R, r), gap (R,)): the best of the interior points and of what their active sets give.

    Args:
      transpose, gram, targets, slope, curvature, knot, bound, support, box, exact: as in `interior_point.solve`.
      start: what that returned.
      judge: of row numbers (k,), weights (k, d) and duals (k, r): feasible weights, the better dual, proved gaps (k,).
      tol: gap at which a row needs no more rounds.
      rounds: of mending the active set.
    """
    rows, width = start.weights.shape
    slope, curvature, knot = (np.broadcast_to(x, (rows, width)) for x in (slope, curvature, knot))
    every = np.arange(rows)
    weights, dual, gap = (value.copy() for value in judge(every, start.weights, start.dual))
    guesses = []
    for row in every:
        edge = _NO_EDGE if bound is None else _Edge.of(bound, int(row), width)
        allowed = np.ones(width, bool) if support is None else support[row]
        limits = None if box is None else (box[0][row], box[1][row])
        terms = slope[row], curvature[row], knot[row], edge, limits
        guess = _Guess(transpose, gram, targets[row], *terms, allowed, exact)
        guess.open(start.weights[row], start.dual[row], float(start.multiplier[row]))
        guesses.append(guess)
    left = every
    for _ in range(rounds):
        left = np.array([row for row in left if guesses[row].solve()], dtype=int)
        if left.size == 0:
            break
        polished = judge(
            left, *(np.array([getattr(guesses[row], name) for row in left]) for name in ("weights", "dual"))
        )
        # as good a gap is taken as well: the polished point is exactly sparse
        better = polished[2] <= np.maximum(gap[left], tol)
        for value, new in zip((weights, dual, gap), polished):
            value[left[better]] = new[better]
        left = np.array([row for row in left if gap[row] > tol and guesses[row].mend()], dtype=int)
    return weights, dual, gap


class _Edge:
    """The ball of one row."""

    def __init__(self, omega: np.ndarray, tilt: np.ndarray, radius: float) -> None:
        self.omega, self.tilt, self.radius = omega, tilt, radius

    @classmethod
    def of(cls, bound: tuple, row: int, width: int) -> _Edge:
        omega = np.broadcast_to(bound[0], (len(bound[2]), width))[row]
        tilt = np.zeros(width) if bound[1] is None else bound[1][row]
        return cls(omega, tilt, float(bound[2][row])) if np.isfinite(bound[2][row]) else _NO_EDGE

    def normal(self, sign: np.ndarray) -> np.ndarray:
        return self.omega * sign + self.tilt


_NO_EDGE = _Edge(np.zeros(1), np.zeros(1), np.inf)


class _Guess:
    """One row with a guess of its active set, and the point that solves the equations there."""

    def __init__(self, transpose, gram, target, slope, curvature, knot, edge, limits, allowed, exact) -> None:
        self.transpose, self.gram, self.target, self.exact = transpose, gram, target, exact
        self.slope, self.curvature, self.knot, self.edge, self.allowed = slope, curvature, knot, edge, allowed
        self.lower, self.upper = limits or (np.full_like(slope, -np.inf), np.full_like(slope, np.inf))
        self.least = np.clip(0.0, self.lower, self.upper)  # what a weight is that is not in use

    def open(self, weights: np.ndarray, dual: np.ndarray, theta: float) -> None:
        """The active set of a primal–dual point, by strict complementarity: which of w_j and its slack is larger."""
        self.weights, self.dual, self.theta = weights, dual, theta
        slopes = self._slopes()
        self.sign = np.where(weights != 0.0, np.sign(weights), np.sign(slopes))
        slack = np.maximum(self._price(self.least) - self.sign * slopes, 0.0)
        size, reach = np.abs(weights - self.least), self._reach()
        unit = max(np.abs(weights).max(initial=0.0), 1e-300)
        price = max(
            np.max(np.where(self.allowed, slack, 0.0), initial=0.0), np.max(np.abs(slopes), initial=0.0), 1e-300
        )
        self.member = self.allowed & (size * price > slack * unit)
        # On the far bound, likewise: which of the way to it and its multiplier is larger.
        pull = np.maximum(self.sign * slopes - self._price(weights), 0.0)
        far = self.member & ((reach - np.abs(weights)) * price <= pull * unit)
        self.held = np.where(far, self.sign * np.where(far, reach, 0.0), self.least)
        self.member &= ~far
        self.curved = self.member & (self.curvature > 0.0) & (np.abs(weights) > self.knot)
        room = self.edge.radius - np.sum(self.edge.normal(np.sign(weights)) * weights)
        self.active = (
            np.isfinite(self.edge.radius) and room / unit < theta * np.max(self.edge.omega + self.edge.tilt) / price
        )

    def _slopes(self) -> np.ndarray:
        return self.transpose @ self.dual - self.theta * self.edge.tilt

    def _price(self, weights: np.ndarray) -> np.ndarray:
        """The slope of penalty and ball at weights of these sizes, away from zero, (d,)."""
        bend = 2.0 * self.curvature * np.maximum(np.abs(weights) - self.knot, 0.0)
        return self.slope + bend + max(self.theta, 0.0) * self.edge.omega

    def _reach(self) -> np.ndarray:
        """How large a weight of the present sign may be, (d,)."""
        return np.where(self.sign > 0.0, self.upper, -self.lower)

    def solve(self) -> bool:
        """The point of the guess; False where its equations have no finite solution, or are too many."""
        index = np.flatnonzero(self.member)
        sign, columns = self.sign[index], self.transpose[index]
        held = np.where(self.member, 0.0, self.held)
        target, radius = self.target, self.edge.radius
        if held.any():
            target = target - held @ self.transpose
            radius = radius - float(np.sum(self.edge.normal(np.sign(held)) * held))
        bend = np.where(self.curved[index], 2.0 * self.curvature[index], 0.0)
        offset = sign * (self.slope[index] - bend * self.knot[index])
        normal = np.zeros(index.size)
        if self.active:
            normal = (self.edge.omega[index] * sign + self.edge.tilt[index]).astype(float)
        bordered = bool(normal.any())
        point, theta = self.weights[index].copy(), self.theta if bordered else 0.0
        dual = self.dual.copy() if self.exact else target - point @ columns
        system = self._system(columns, index, bend)
        if system is None:
            return False
        bent = system(normal, np.zeros_like(dual))
        stiffness = float(normal @ bent[0])
        bordered = bordered and stiffness > 0.0
        for _ in range(_REFINEMENTS):
            residual = columns @ dual - offset - bend * point - theta * normal
            equations = target - point @ columns - (0.0 if self.exact else dual)
            step, turn = system(residual, equations)
            change = 0.0
            if bordered:
                change = (float(normal @ step) - (radius - float(normal @ point))) / stiffness
            point = point + step - change * bent[0]
            theta += change
            dual = dual + turn - change * bent[1] if self.exact else target - point @ columns
        if not (np.isfinite(point).all() and np.isfinite(dual).all() and np.isfinite(theta)):
            return False
        self.weights = held
        self.weights[index], self.dual, self.theta = point, dual, theta
        return True

    def _system(self, columns: np.ndarray, index: np.ndarray, bend: np.ndarray) -> Callable | None:
        """The solver of (H w − K_Jᵀy, K_J w + ρ y) = (a, b), with a ridge; None: no factor, or too dear."""
        count, rank = columns.shape
        if count > _LARGE_SYSTEM and count**3 > 45 * rank**2 * self.slope.size:
            return None
        if self.exact:
            matrix = np.zeros((count + rank, count + rank))
            matrix[:count, :count] = np.diag(bend + _RIDGE)
            matrix[:count, count:], matrix[count:, :count] = -columns, columns.T
            matrix[count:, count:] = _RIDGE * np.eye(rank)
            lu, pivots, failed = scipy.linalg.lapack.dgetrf(matrix)

            def both(upper: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                solution = scipy.linalg.lapack.dgetrs(lu, pivots, np.concatenate([upper, lower]))[0]
                return solution[:count], solution[count:]

            return both if failed == 0 else None
        if count == 0:
            return lambda upper, lower: (upper, lower)
        matrix = columns @ columns.T if self.gram is None else self.gram[index[:, None], index]
        matrix[np.diag_indices(count)] += bend + _RIDGE
        matrix = np.ascontiguousarray(matrix)
        good = lapack.cholesky_in_place(matrix)

        def primal(upper: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return lapack.cholesky_solve(matrix[None], (upper + columns @ lower)[None])[0], lower

        return primal if good else None

    def mend(self) -> bool:
        """Correct the guess by what its point says; False where there is nothing to correct."""
        slopes = self._slopes()
        flat = self._price(np.zeros_like(slopes)) == 0.0  # no sign to be wrong
        self.sign = np.where(flat & self.member, np.sign(self.weights), self.sign)
        beyond = self.member & ((self.weights > self.upper) | (self.weights < self.lower))
        wrong = self.member & (self.sign * self.weights <= 0.0) & ~flat & ~beyond
        unit = 1e-12 * max(np.max(np.abs(slopes), initial=0.0), 1e-300)
        resting = self.allowed & ~self.member
        far = resting & (self.held != self.least)
        sign = np.where(far | (self.least != 0.0), np.sign(self.held), np.sign(slopes))
        pull = sign * slopes - self._price(self.held)
        open_ = np.where(sign > 0.0, self.upper, -self.lower) > np.abs(self.least)
        missing = np.where(far, pull < -unit, resting & open_ & (pull > unit))
        curved = self.member & (self.curvature > 0.0) & (np.abs(self.weights) > self.knot)
        active = self.active
        if np.isfinite(self.edge.radius):
            norm = float(np.sum(self.edge.normal(np.sign(self.weights)) * self.weights))
            active = self.theta > 0.0 if self.active else norm > self.edge.radius + 1e-12 * abs(self.edge.radius)
        changed = wrong.any() or beyond.any() or missing.any()
        changed = changed or bool((curved != self.curved).any()) or active != self.active
        self.sign = np.where(missing, sign, self.sign)
        self.held = np.where(
            beyond, np.clip(self.weights, self.lower, self.upper), np.where(wrong, self.least, self.held)
        )
        self.curved = (curved & ~wrong & ~beyond) | (
            missing & far & (self.curvature > 0.0) & (np.abs(self.held) > self.knot)
        )
        self.member = (self.member & ~wrong & ~beyond) | missing
        self.weights, self.active = np.where(self.member, self.weights, self.held), active
        return changed
