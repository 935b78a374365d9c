"""Newton's method on the dual of rows over a design with independent columns: a few small systems a row, however dense.

    min_w  ½‖t − Kw‖² + Σ_j c_j|w_j| + a_j(|w_j| − b_j)₊²    s.t.  Σ_j ω_j|w_j| ≤ κ,   w_j = 0 off the support

With G = KᵀK, P = G⁻¹ and l = Kᵀt the dual is a problem in the slopes s = Kᵀ(t − Kw), one for each coordinate:

    min_s  ½(s − l)ᵀP(s − l) + Σ_j h_j*(s_j) + κθ,        w = P(l − s),        limit  c̃ = c + θω

h* is 0 up to the limit and b e + e²/(4a) at e = |s| − c̃ beyond it, or ∞ where a = 0. So a coordinate is in one of
three states: at rest (|s| < c̃, w = 0), held at its limit (|s| = c̃; if a > 0, |w| ≤ b), or bent (|s| > c̃, |w| > b).
With F the coordinates that are not held, a Newton step is

    (P_FF + diag(1/(2a) [bent])) d_F = w_F − σ(b + e/(2a)) [bent]

of the size of F; or, by G instead of P, a system of the size of those that are not at rest, whichever is smaller. A
step that would leave its state stops at the limit. P and G are shared by all rows. The states of least squares are so
near to the right ones that some ten steps end the search. Then the answer is exact: the equations on the states found
are solved once more with residuals in K itself, and if that confirms them, the row has ended. Around that, θ is the
root of a monotone function, found by Newton's method in a bracket.

Source: Bertsekas, Projected Newton methods for optimization problems with simple constraints (SIAM J. Control 1982).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from simjax.rows import lapack
from simjax.rows.solvers.factor import Factorisation

_INDEPENDENT = 1e-12  # the least eigenvalue of G, of norm one, with which P has any digits
_STEPS = 60
_CUTS, _ARMIJO = 20, 1e-4
_REFINEMENTS = 3
_RIDGE = 1e-15  # relative to the largest diagonal entry of the system
_ROUNDING = 1e-13  # by which weights and slopes may differ from what their states ask for
_BALL_TOL = 1e-11
_LEAST_SHRINK = 0.1  # a step lowers θ at most by this factor, until it is below `_LEAST_THETA` of the largest one
_LEAST_THETA = 1e-10

_REST, _HELD, _BENT = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class InvertibleGram:
    """What all rows share.

    Attributes:
      transpose: Kᵀ, (d, r).
      gram: G, (d, d).
      inverse: P, (d, d): zero for columns of zeros, the inverse of the rest.
      columns: which are not zero, (d,).
    """

    transpose: np.ndarray
    gram: np.ndarray
    inverse: np.ndarray
    columns: np.ndarray


def invertible_gram(factorisation: Factorisation, gram: Callable[[], np.ndarray | None]) -> InvertibleGram | None:
    """G and P of a design whose columns, but for those of zeros, are independent; None where they are not clearly so.

    Args:
      gram: makes G, which is asked for only then; None where it would be too large.
    """
    basis, singular = np.asarray(factorisation.basis), np.asarray(factorisation.singular_values)
    squares = np.einsum("ij,ij->i", basis, basis)  # 1 and 0: V is orthogonal on the columns that are not zero
    columns = squares > 0.5
    if singular[-1] ** 2 < _INDEPENDENT or np.any(np.abs(squares - columns) > 1e-8):
        return None
    matrix = gram()
    if matrix is None:
        return None
    half = np.where(columns[:, None], basis / singular, 0.0)
    return InvertibleGram(basis * singular, matrix, half @ half.T, columns)


@dataclasses.dataclass
class _Row:
    """One row: its terms, where it is, and the states of its coordinates."""

    slope: np.ndarray
    curvature: np.ndarray
    knot: np.ndarray
    omega: np.ndarray | None
    radius: float
    allowed: np.ndarray
    slopes: np.ndarray  # s
    theta: float = 0.0
    low: float = 0.0
    high: float = np.inf
    sign: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    state: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int8))
    system: _System | None = None

    @property
    def limit(self) -> np.ndarray:
        """c̃, (d,); ∞ off the support."""
        limit = self.slope if self.omega is None else self.slope + self.theta * self.omega
        return np.where(self.allowed, limit, np.inf)

    def classify(self, slopes: np.ndarray, weights: np.ndarray) -> bool:
        """Go to s and w = P(l − s) and the states that they ask for; whether these are the same as before."""
        self.slopes = slopes
        limit, size, before = self.limit, np.abs(slopes), self.state
        self.sign = np.where(slopes != 0.0, np.sign(slopes), np.sign(weights))
        out = self.sign * weights
        bent = (self.curvature > 0.0) & ((size > limit) | ((size == limit) & (out > self.knot)))
        self.state = np.where(bent, _BENT, np.where((size >= limit) & (out >= 0.0), _HELD, _REST)).astype(np.int8)
        free = (limit == 0.0) & (self.state == _REST)  # without a slope there is nothing to rest on
        self.state[free] = _HELD
        return np.array_equal(before, self.state)

    def confirmed(self, weights: np.ndarray, slopes: np.ndarray) -> bool:
        """Whether exact weights and slopes agree with the states, but for rounding."""
        limit, out = self.limit, self.sign * weights
        unit = _ROUNDING * np.max(np.abs(weights), initial=0.0)
        margin = _ROUNDING * np.max(np.abs(slopes), initial=0.0)
        rest, held, bent = (self.state == state for state in (_REST, _HELD, _BENT))
        wrong = rest & self.allowed & (np.abs(slopes) > limit + margin)
        wrong |= held & (limit > 0.0) & (out < -unit)
        wrong |= held & (self.curvature > 0.0) & (out > self.knot + unit)
        wrong |= bent & (out < self.knot - unit)
        return not wrong.any()

    def bends(self) -> np.ndarray:
        """2a of the bent coordinates, 0 of the others."""
        return np.where(self.state == _BENT, 2.0 * self.curvature, 0.0)

    def conjugate(self, slopes: np.ndarray) -> float:
        """Σ h*(s)."""
        excess = np.maximum(np.abs(slopes) - self.limit, 0.0)
        bent = (excess > 0.0) & (self.curvature > 0.0)  # without curvature it is rounding
        excess, curvature = excess[bent], self.curvature[bent]
        return float(np.sum(excess * (self.knot[bent] + excess / (4.0 * curvature))))


class _System:
    """(G_JJ + 2a [bent]) on the coordinates J that are not at rest, by whichever of two systems is the smaller."""

    def __init__(self, shared: InvertibleGram, row: _Row) -> None:
        present = shared.columns
        self.moving = np.flatnonzero(present & (row.state != _REST))
        self.loose = np.flatnonzero(present & (row.state != _HELD))
        self.inverse, self.sign, self.state = shared.inverse, row.sign, row.state
        bend = row.bends()
        self.primal = self.moving.size <= self.loose.size
        index = self.moving if self.primal else self.loose
        source = shared.gram if self.primal else shared.inverse
        matrix = source[index[:, None], index]
        diagonal = matrix.reshape(-1)[:: index.size + 1]
        if self.primal:
            diagonal += bend[index]
        else:
            own = bend[index]
            diagonal += np.where(own > 0.0, 1.0 / np.where(own > 0.0, own, 1.0), 0.0)
        diagonal += _RIDGE * diagonal.max(initial=0.0)
        self.index, self.bend = index, bend
        self.factor = lapack.cholesky(matrix[None])
        self.good = bool(np.isfinite(self.factor[0, -1, -1])) if index.size else True

    def inner(self, right: np.ndarray) -> np.ndarray:
        """The system's solution for a right-hand side on its own coordinates."""
        return lapack.cholesky_solve(self.factor, right[None])[0]

    def weights(self, right: np.ndarray) -> np.ndarray:
        """(G_JJ + 2a)⁻¹ of `right` (d,) on J, zero elsewhere, (d,)."""
        answer = np.zeros_like(right)
        if self.primal:
            answer[self.moving] = self.inner(right[self.moving])
            return answer
        pulled = np.zeros_like(right)
        pulled[self.moving] = right[self.moving]
        point = self.inverse @ pulled
        if self.index.size:
            point = point - self.inverse[:, self.index] @ self.inner(point[self.index])
        answer[self.moving] = point[self.moving]
        return answer


@np.errstate(over="ignore", divide="ignore", invalid="ignore")
def solve(
    shared: InvertibleGram,
    targets: np.ndarray,
    slope: np.ndarray,
    curvature: np.ndarray,
    knot: np.ndarray,
    bound: tuple[np.ndarray, np.ndarray] | None = None,
    support: np.ndarray | None = None,
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Solve rows in canonical units.

    Args:
      shared: the design.
      targets: t, (R, r).
      slope, curvature, knot: c, a and b, (R or 1, d or 1).
      bound: (ω, κ) of shapes (R or 1, d) and (R,); κ = ∞ for a row without a ball.
      support: boolean (R, d); None for all.
      start: weights whose signs to begin with, (R, d); None for those of least squares.

    Returns:
      weights (R, d); the steps each row took (R,); and which rows have come to an end, (R,). The weights of the others
      are those of the states where they stopped.
    """
    pulls = targets @ shared.transpose.T
    shape = pulls.shape
    slope, curvature, knot = (np.broadcast_to(x, shape) for x in (slope, curvature, knot))
    guess = pulls @ shared.inverse if start is None else start
    slopes = None if start is None else pulls - start @ shared.gram
    rows = []
    for i in range(shape[0]):
        omega, radius = (None, np.inf) if bound is None else (np.broadcast_to(bound[0], shape)[i], float(bound[1][i]))
        omega = omega if np.isfinite(radius) else None
        allowed = shared.columns if support is None else shared.columns & support[i]
        row = _Row(slope[i], curvature[i], knot[i], omega, radius, allowed, np.zeros(0))
        row.slopes = _slopes_of(row, guess[i], pulls[i] if slopes is None else slopes[i])
        rows.append(row)
    points = (pulls - np.array([row.slopes for row in rows])) @ shared.inverse
    weights, steps = np.zeros(shape), np.zeros(shape[0], int)
    ended, open_ = np.zeros(shape[0], bool), np.arange(shape[0])
    for row, point in zip(rows, points):
        row.classify(row.slopes, point)
    for _ in range(_STEPS):
        steps[open_] += 1
        settled = open_[_advance(shared, pulls, rows, points, open_)]
        if settled.size:
            weights[settled], slopes = _exact(shared, targets[settled], [rows[i] for i in settled])
            points[settled] = weights[settled]
            confirmed = np.array([rows[i].confirmed(points[i], s) for i, s in zip(settled, slopes)])
            for i in settled[confirmed]:
                ended[i] = not _move_multiplier(rows[i], points[i])
            again = settled[~ended[settled]]
            _restart(shared, rows, points, again, slopes[~ended[settled]])
            open_ = open_[~ended[open_]]
        if open_.size == 0:
            break
    for i in open_:
        rows[i].system = _System(shared, rows[i])
    if open_.size:
        weights[open_], _ = _exact(shared, targets[open_], [rows[i] for i in open_])
    return weights, steps, ended


def _restart(
    shared: InvertibleGram, rows: list[_Row], points: np.ndarray, index: np.ndarray, slopes: np.ndarray
) -> None:
    """The rows `index` from exact weights and slopes on, in place; what has left the dual domain is brought back."""
    if index.size == 0:
        return
    wanted = np.array([_slopes_of(rows[i], points[i], s) for i, s in zip(index, slopes)])
    points[index] -= (wanted - slopes) @ shared.inverse
    for i, s in zip(index, wanted):
        rows[i].classify(s, points[i])


def _slopes_of(row: _Row, weights: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """s at given weights (d,): at or beyond the limit with their signs, or where there are none, `slopes` within it."""
    limit, size = row.limit, np.abs(weights)
    push = 2.0 * row.curvature * np.maximum(size - row.knot, 0.0)
    limit = np.where(np.isfinite(limit), limit, np.abs(slopes))
    inside = np.clip(slopes, -limit, limit)
    return np.where(row.allowed & (weights != 0.0), np.sign(weights) * (limit + push), inside)


def _advance(
    shared: InvertibleGram, pulls: np.ndarray, rows: list[_Row], points: np.ndarray, index: np.ndarray
) -> np.ndarray:
    """One step of the rows `index`, in place; which of them have settled: a whole step that changes no state."""
    settled = np.zeros(index.size, bool)
    moves, gradients = np.zeros((index.size, pulls.shape[1])), np.zeros((index.size, pulls.shape[1]))
    primal: list[tuple[int, np.ndarray]] = []
    systems = [_System(shared, rows[i]) for i in index]
    for k, (i, system) in enumerate(zip(index, systems)):
        row = rows[i]
        row.system = system
        bent = row.state == _BENT
        wanted = np.where(bent, row.sign * row.knot, 0.0)
        bend = np.where(bent, 2.0 * row.curvature, 1.0)
        excess = np.where(bent, np.abs(row.slopes) - row.limit, 0.0)
        gradient = points[i] - wanted - np.where(bent, row.sign * excess / bend, 0.0)
        gradients[k, system.loose] = gradient[system.loose]
        if system.primal:
            right = pulls[i] - row.sign * np.where(row.state == _REST, 0.0, row.limit - row.bends() * row.knot)
            moves[k] = system.weights(right)
            primal.append((k, system.loose))
        else:
            moves[k, system.loose] = system.inner(gradient[system.loose])
    if primal:  # the slopes at those weights
        chosen = [k for k, _ in primal]
        reached = pulls[index[chosen]] - moves[chosen] @ shared.gram
        for (k, loose), slopes in zip(primal, reached):
            moves[k] = 0.0
            moves[k, loose] = slopes[loose] - rows[index[k]].slopes[loose]
    pending, step, settled = np.arange(index.size), 1.0, np.zeros(index.size, bool)
    for cut in range(_CUTS):
        trials = np.array([_cut_back(rows[index[k]], step * moves[k]) for k in pending])
        changes = trials - np.array([rows[index[k]].slopes for k in pending])
        turns = changes @ shared.inverse
        left = []
        for k, slopes, change, turn in zip(pending.tolist(), trials, changes, turns):
            row, i = rows[index[k]], index[k]
            before = row.slopes, points[i].copy()
            points[i] -= turn
            if row.classify(slopes, points[i]) and cut == 0:
                settled[k] = True  # a whole step within the quadratic that it minimises
                continue
            # The change of the objective, of differences alone: the objective itself is larger by many orders.
            rise = row.conjugate(slopes) - row.conjugate(before[0]) + float(change @ (0.5 * turn - before[1]))
            if rise > -_ARMIJO * float(gradients[k] @ change) and cut < _CUTS - 1:
                row.slopes, points[i] = before
                row.sign, row.state = systems[k].sign, systems[k].state
                left.append(k)
        pending = np.array(left, dtype=int)
        if pending.size == 0:
            break
        step *= 0.5
    return settled


def _cut_back(row: _Row, move: np.ndarray) -> np.ndarray:
    """s + `move`, stopped where a coordinate would leave its state."""
    limit, slopes = row.limit, row.slopes + move
    inside = np.clip(slopes, -limit, limit)
    outside = row.sign * np.maximum(row.sign * slopes, limit)
    return np.where(row.state == _BENT, outside, np.where(row.state == _HELD, row.slopes, inside))


def _move_multiplier(row: _Row, point: np.ndarray) -> bool:
    """A step of θ where the row at its present θ is solved; whether there was anything to move."""
    if row.omega is None or row.system is None:
        return False
    excess = float(row.omega @ np.abs(point)) - row.radius
    if abs(excess) <= _BALL_TOL * row.radius or (excess <= 0.0 and row.theta == 0.0):
        return False
    if excess > 0.0:
        row.low = row.theta
    else:
        row.high = row.theta
    if row.high - row.low <= 4e-16 * row.low:
        return False
    # dw/dθ = −(G_JJ + 2a)⁻¹σω, so that the norm falls at the rate ωᵀσ(G_JJ + 2a)⁻¹σω.
    normal = np.where(row.state == _REST, 0.0, row.sign * row.omega)
    rate = float(normal @ row.system.weights(normal))
    theta = row.theta + excess / rate if rate > 0.0 else np.inf
    theta = max(theta, _LEAST_SHRINK * row.theta)
    if row.low == 0.0 and theta <= _LEAST_THETA * np.max(np.abs(row.slopes), initial=0.0):
        theta = 0.0
    if not (row.low < theta < row.high or theta == row.low == 0.0):
        theta = 0.5 * (row.low + row.high) if np.isfinite(row.high) else 2.0 * row.low + 1.0
    row.theta = theta
    return True


def _exact(shared: InvertibleGram, targets: np.ndarray, rows: list[_Row]) -> tuple[np.ndarray, np.ndarray]:
    """The weights that solve the equations of the present states, and Kᵀ(t − Kw), (R, d) each.

    By refinement with residuals in K: P and G have lost half of its digits.
    """
    weights = np.zeros((len(rows), shared.gram.shape[0]))
    offsets = np.array([row.sign * np.where(row.state == _REST, 0.0, row.limit) for row in rows])
    bends = np.array([row.bends() for row in rows])
    knots = np.array([row.sign * row.knot for row in rows])
    for _ in range(_REFINEMENTS):
        residual = (targets - weights @ shared.transpose) @ shared.transpose.T - offsets - bends * (weights - knots)
        weights += np.array([row.system.weights(right) for row, right in zip(rows, residual) if row.system is not None])
    return weights, (targets - weights @ shared.transpose) @ shared.transpose.T
