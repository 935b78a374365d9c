"""Many small weighted lasso problems at once, exact to rounding: projected Newton steps within an orthant.

    min_x ½ xᵀHx − lᵀx + Σ_j [c_j |x_j| + a_j (|x_j| − b_j)₊²]   s.t.  Σ_j ω_j |x_j| ≤ κ

Inside an orthant, and between knots, this is a quadratic over x_j σ_j ≥ 0. A step solves it on the coordinates that are
not held at zero and is cut back to the orthant; those that end at zero may leave it the other way in the next one. The
objective falls from step to step, and once orthant and pieces are right the answer is exact. The ball's multiplier θ
adds θω to c; it is the root of a monotone function, found by Newton's method in a bracket.

Source: Bertsekas, Projected Newton methods for optimization problems with simple constraints (SIAM J. Control 1982).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from simjax.rows import lapack

_RIDGE = 1e-12  # relative to the largest diagonal entry: a metric for singular blocks, not a change of the problem
_ARMIJO = 1e-4
_CUTS = 30
_BALL_TOL = 1e-12
_LEAST_THETA = 1e-14
_LEAST_SHRINK = 0.25  # a step lowers θ at most by this factor, so that the support cannot jump to a dense one


@dataclasses.dataclass
class Subproblems:
    """R problems of k coordinates; `k` is the largest of them and the rest is padded, with `inside` False.

    Attributes:
      gram: H, (R, k, k).
      linear: l, (R, k).
      slope, curvature, knot: c, a, b, (R, k).
      omega: ω, (R, k), or None.
      radius: κ, (R,), inf for no constraint.
      inside: boolean (R, k).
    """

    gram: np.ndarray
    linear: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray
    knot: np.ndarray
    omega: np.ndarray | None
    radius: np.ndarray
    inside: np.ndarray

    def take(self, index: np.ndarray) -> Subproblems:
        """The problems in `index`."""
        fields: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        taken: dict[str, Any] = {name: None if value is None else value[index] for name, value in fields.items()}
        return Subproblems(**taken)

    def product(self, points: np.ndarray) -> np.ndarray:
        """Hx, (R, k)."""
        return np.matmul(self.gram, points[:, :, None])[:, :, 0]

    def value(self, points: np.ndarray, product: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        """½ xᵀHx − lᵀx + Σ (c + θω)|x| + a (|x| − b)₊², (R,)."""
        size = np.abs(points)
        bend = self.curvature * np.maximum(size - self.knot, 0.0) ** 2
        return np.sum(points * (0.5 * product - self.linear) + threshold * size + bend, axis=1)


def solve_subproblems(
    problems: Subproblems, points: np.ndarray, theta: np.ndarray, steps: int = 40
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Solve every problem of `problems`.

    Args:
      points: where to start, (R, k), any.
      theta: where to start with the multiplier of the ball, (R,) ≥ 0.
      steps: at most so many.

    Returns:
      x, (R, k); θ, (R,); and which problems are solved, (R,).
    """
    rows, width = problems.linear.shape
    points, theta = np.where(problems.inside, points, 0.0), np.where(np.isfinite(problems.radius), theta, 0.0)
    found, solved = (points.copy(), theta.copy()), np.zeros(rows, dtype=bool)
    if width == 0:
        return points, np.zeros(rows), np.ones(rows, dtype=bool)
    state = _State(np.arange(rows), points, problems.product(points), theta, np.zeros(rows), np.full(rows, np.inf))
    for _ in range(steps):
        done = _advance(problems, state)
        if done.any():
            for whole, part in zip(found, (state.points, state.theta), strict=True):
                whole[state.index[done]] = part[done]
            solved[state.index[done]] = True
            if done.all():
                return *found, solved
            problems, state = problems.take(~done), state.take(~done)
    for whole, part in zip(found, (state.points, state.theta), strict=True):
        whole[state.index] = part
    return *found, solved


@dataclasses.dataclass
class _State:
    """The problems still open: their numbers, x, Hx, θ, the bracket of θ, and whether the last step ended in x."""

    index: np.ndarray
    points: np.ndarray
    product: np.ndarray
    theta: np.ndarray
    low: np.ndarray
    high: np.ndarray
    stationary: np.ndarray | None = None

    def take(self, index: np.ndarray) -> _State:
        return _State(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))


def _advance(problems: Subproblems, state: _State) -> np.ndarray:
    """One step of every problem; which of them are solved."""
    points, product = state.points, state.product
    threshold = problems.slope if problems.omega is None else problems.slope + state.theta[:, None] * problems.omega
    gradient = product - problems.linear
    nonzero = points != 0.0
    free = problems.inside & (nonzero | (np.abs(gradient) > threshold))
    sign = np.where(nonzero, np.sign(points), -np.sign(gradient))
    curved = _curved(problems, points)
    bend = np.where(curved, 2.0 * problems.curvature, 0.0)
    pull = gradient + sign * (threshold + bend * (np.abs(points) - problems.knot))
    missing = np.where(free, np.abs(pull), 0.0).max(axis=1)
    small = np.where(free, threshold, 0.0).max(axis=1)
    stationary = missing <= np.maximum(1e-9 * small, 1e-15 * np.abs(problems.linear).max(axis=1))
    if state.stationary is not None:
        stationary |= state.stationary
    # A coordinate next to zero that wants to cross it would cut the whole step short: it moves by itself.
    scale = np.diagonal(problems.gram, axis1=1, axis2=2) + bend
    stuck = free & nonzero & (sign * pull > 0.0) & (np.abs(points) * scale <= 1e-3 * np.abs(pull))
    newton = free & ~stuck
    wanted = ~stationary if problems.omega is None else ~stationary | np.isfinite(problems.radius)
    direction, tangent = _directions(problems, wanted, newton, pull, bend, sign)
    own = -pull / np.where(scale > 0.0, scale, 1.0)
    direction = np.where(newton, direction, np.where(stuck, own, 0.0))

    done, moved = stationary, np.zeros_like(stationary)
    if tangent is not None:
        moved = _move_multipliers(problems, state, stationary, tangent, sign)
        done = stationary & ~moved
    going = ~stationary
    whole = _search(problems, state, threshold, direction, sign, pull, going)
    if moved.any():
        state.product[moved] = problems.take(moved).product(state.points[moved])
    # The same orthant and pieces after a whole step: the quadratic's own minimum, exact to rounding.
    same = (state.points != 0.0) == newton
    same &= (_curved(problems, state.points) == curved) | (problems.curvature == 0.0) | ~newton
    gradient = state.product - problems.linear
    same &= ~(problems.inside & (state.points == 0.0) & (np.abs(gradient) > threshold))
    state.stationary = whole & going & same.all(axis=1)
    return done


def _curved(problems: Subproblems, points: np.ndarray) -> np.ndarray:
    """Beyond the knot, where the curvature counts."""
    return (np.abs(points) > problems.knot) | (problems.knot == 0.0)


def _directions(
    problems: Subproblems, rows: np.ndarray, newton: np.ndarray, pull: np.ndarray, bend: np.ndarray, sign: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """−(H_JJ + diag)⁻¹ times the gradient and, with a ball, times σω: the change of x with θ; (R, k) each."""
    direction = np.zeros_like(pull)
    tangent = None if problems.omega is None else np.zeros_like(pull)
    for i in np.flatnonzero(rows):
        chosen = np.flatnonzero(newton[i])
        if chosen.size == 0:
            continue
        matrix = problems.gram[i][chosen[:, None], chosen]
        diagonal = matrix.reshape(-1)[:: chosen.size + 1]
        diagonal += bend[i, chosen] + _RIDGE * max(diagonal.max(), 1e-300)
        right = pull[i, chosen]
        if problems.omega is not None:
            right = np.column_stack([right, sign[i, chosen] * problems.omega[i, chosen]])
        if lapack.cholesky_in_place(matrix):
            answer = lapack.cholesky_solve(matrix[None], right[None])[0]
        else:
            answer = np.linalg.lstsq(problems.gram[i][chosen[:, None], chosen] + np.diag(bend[i, chosen]), right)[0]
        if tangent is None:
            direction[i, chosen] = -answer
        else:
            direction[i, chosen], tangent[i, chosen] = -answer[:, 0], -answer[:, 1]
    return direction, tangent


def _move_multipliers(
    problems: Subproblems, state: _State, stationary: np.ndarray, tangent: np.ndarray, sign: np.ndarray
) -> np.ndarray:
    """A step of θ, and of x along with it, where the problem at its present θ is solved; which problems moved."""
    omega, theta, points = problems.omega, state.theta, state.points
    assert omega is not None
    finite = np.isfinite(problems.radius)
    radius = np.where(finite, problems.radius, 0.0)
    excess = np.sum(omega * np.abs(points), axis=1) - radius
    moved = stationary & finite & (np.abs(excess) > _BALL_TOL * radius) & ((excess > 0.0) | (theta > 0.0))
    state.low = low = np.where(moved & (excess > 0.0), theta, state.low)
    state.high = high = np.where(moved & (excess <= 0.0), theta, state.high)
    rate = -np.sum(omega * sign * tangent * (points != 0.0), axis=1)  # −d(norm)/dθ
    newton = np.where(rate > 0.0, theta + excess / np.where(rate > 0.0, rate, 1.0), np.where(excess > 0.0, np.inf, 0.0))
    newton = np.maximum(newton, _LEAST_SHRINK * theta)
    newton = np.where(
        (low == 0.0) & np.isfinite(high) & (newton <= _LEAST_THETA * _largest_theta(problems)), 0.0, newton
    )
    middle = np.where(np.isfinite(high), 0.5 * (low + np.where(np.isfinite(high), high, 0.0)), 2.0 * low)
    good = ((newton > low) & (newton < high)) | ((newton == 0.0) & (low == 0.0))
    moved &= high - low > 4e-16 * low
    change = np.where(moved, np.where(good, newton, middle) - theta, 0.0)
    shifted = points + change[:, None] * tangent
    state.points = np.where(moved[:, None], np.where(shifted * points > 0.0, shifted, 0.0), points)
    state.theta = theta + change
    return moved


def _largest_theta(problems: Subproblems) -> np.ndarray:
    """max |l_j|/ω_j: at a θ of this size nothing in the ball is left, (R,)."""
    assert problems.omega is not None
    seen = problems.omega > 0.0
    return np.where(seen, np.abs(problems.linear) / np.where(seen, problems.omega, 1.0), 0.0).max(axis=1)


def _search(
    problems: Subproblems,
    state: _State,
    threshold: np.ndarray,
    direction: np.ndarray,
    sign: np.ndarray,
    pull: np.ndarray,
    going: np.ndarray,
) -> np.ndarray:
    """Moves to the first point of the arc, which the orthant bends, that lowers the objective enough.

    Returns:
      which problems took the whole step, (R,).
    """
    points, product = state.points, state.product
    start = problems.value(points, product, threshold)
    rounding = 1e-15 * (np.abs(start) + np.sum(np.abs(points * problems.linear), axis=1))
    whole, step, pending = going.copy(), 1.0, np.flatnonzero(going)
    new, new_product = points.copy(), product.copy()
    for cut in range(_CUTS):
        if pending.size == 0:
            break
        every = pending.size == points.shape[0]
        part = problems if every else problems.take(pending)
        trial = points[pending] + step * direction[pending]
        trial = np.where(trial * sign[pending] > 0.0, trial, 0.0)
        trial_product = part.product(trial)
        drop = np.sum(pull[pending] * (trial - points[pending]), axis=1)
        value = part.value(trial, trial_product, threshold[pending])
        enough = value <= start[pending] + _ARMIJO * np.minimum(drop, 0.0) + rounding[pending]
        kept = pending[enough]
        new[kept], new_product[kept] = trial[enough], trial_product[enough]
        pending = pending[~enough]
        whole[pending] = False
        step *= 0.5 if cut < 4 else 0.1
    state.points, state.product = new, new_product
    return whole
