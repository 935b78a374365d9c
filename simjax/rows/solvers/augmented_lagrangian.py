"""Semismooth Newton augmented Lagrangian for rows with a group penalty, in canonical units, on the host.

The dual of min ½‖t̃ − Kw‖² + g(w) is min ½‖y‖² − t̃ᵀy + g*(Kᵀy). Its augmented Lagrangian at a multiplier w and with a
step σ is, but for a constant and with v = w + σKᵀy and p = prox_{σg}(v),

    ψ(y) = ½‖y‖² − t̃ᵀy + (vᵀp − ½‖p‖²)/σ − h(p)        ∇ψ = y − t̃ + Kp        ∇²ψ = I + σ K J Kᵀ

with J an element of the generalised Jacobian of the prox. p is the next multiplier. ψ is convex, with a gradient that
has kinks, and Newton's method with a line search minimises it; by Woodbury a step is a system in the coordinates A of p
alone:

    (I + σKJKᵀ)⁻¹ = I − K_A M⁻¹ K_Aᵀ,    M = K_AᵀK_A + J_A⁻¹/σ,    J_A⁻¹/σ = I/σ + (β_g/‖p_g‖)(I − p_g p_gᵀ/‖p_g‖²)

and where the ball binds, M⁻¹ is confined to nᵀdp = 0 for its normal n. What p is zero in costs nothing, the
multipliers converge the faster the larger σ, and no condition number of K is in the way.

Sources: Li, Sun & Toh, A highly efficient semismooth Newton augmented Lagrangian method for solving lasso problems
(2018), algorithm SSNAL; Zhang, Zhang, Sun & Toh, An efficient Hessian based algorithm for solving large-scale sparse
group lasso problems (2020).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.joint_prox import JointProx, joint_prox
from simjax.rows.solvers.canonical import CanonicalRows
from simjax.rows.solvers.factor import Factorisation
from simjax.rows.solvers.linear import Gram, cholesky, cholesky_solve, gather_system

_MULTIPLIERS = 40  # updates of w
_NEWTON_STEPS = 30  # for each
_HALVINGS = 30
_ARMIJO = 1e-4
_NEAR = 0.1  # ∇ψ against ‖p − w‖/σ, by how much the new multiplier misses the dual's equations, where a step ends
_GROWTH = 5.0
_LARGEST = 1e10
_SYSTEM_BYTES = 2**26  # of the systems that are solved at once

# Weights (k, d) and dual points (k, r) of rows with given numbers, judged: weights, dual points, gaps.
Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclasses.dataclass
class _Rows:
    """The open rows while ψ is minimised: arrays with an entry for each."""

    rows: CanonicalRows
    w: np.ndarray  # (k, d)
    sigma: np.ndarray  # (k, 1)
    y: np.ndarray  # (k, r)
    slopes: np.ndarray  # Kᵀy, (k, d)
    theta: np.ndarray  # (k, 1)

    def take(self, index: np.ndarray) -> _Rows:
        return _Rows(
            self.rows.take_rows(index),
            self.w[index],
            self.sigma[index],
            self.y[index],
            self.slopes[index],
            self.theta[index],
        )

    def put(self, index: np.ndarray, part: _Rows) -> None:
        for name in ("y", "slopes", "theta"):
            getattr(self, name)[index] = getattr(part, name)


def solve(
    factorisation: Factorisation,
    gram: Gram,
    rows: CanonicalRows,
    weights: np.ndarray,
    dual: np.ndarray,
    judged: Judge,
    *,
    tol: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights (R, d), dual points (R, r), relative gaps (R,) and the Newton steps of each row, (R,).

    Args:
      weights, dual: where to begin; any are safe.
      tol: the gap at which a row is done.
    """
    count = weights.shape[0]
    every = np.arange(count)
    best = [np.array(part) for part in judged(every, weights, dual)]
    steps = np.zeros(count, dtype=int)
    w, y = best[0].copy(), best[1].copy()
    slopes = np.asarray(factorisation.apply_transpose(y))
    sigma = _first_sigma(w, slopes)
    state = _Rows(rows, w, sigma, y, slopes, np.zeros_like(sigma))
    for _ in range(_MULTIPLIERS):
        open_ = np.flatnonzero(~(best[2] <= tol))
        if open_.size == 0:
            break
        part = state.take(open_)
        scale = np.sqrt(2.0 * tol * np.maximum(_objective(factorisation, part), 1e-300))
        point, taken = _minimise(factorisation, gram, part, 0.1 * scale)
        steps[open_] += taken
        state.put(open_, part)
        found = judged(open_, point, part.y)
        better = found[2] < best[2][open_]
        for into, values in zip(best, found):
            into[open_[better]] = values[better]
        state.w[open_] = point
        growth = np.where(taken[:, None] <= 8, _GROWTH, 2.0)
        state.sigma[open_] = np.minimum(part.sigma * growth, _LARGEST)
    return best[0], best[1], best[2], steps


def _first_sigma(w: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """The σ with which w and σKᵀy are of one size, (R, 1); 1 for w = 0."""
    size = np.linalg.norm(w, axis=1, keepdims=True)
    pull = np.linalg.norm(slopes, axis=1, keepdims=True)
    return np.where((size > 0.0) & (pull > 0.0), np.clip(size / np.where(pull > 0.0, pull, 1.0), 1.0, 1e6), 1.0)


def _objective(factorisation: Factorisation, part: _Rows) -> np.ndarray:
    """P(w), (k, 1)."""
    residual = part.rows.targets - factorisation.apply(part.w)
    value = part.rows.penalty.value(part.w).sum(axis=1, keepdims=True)
    return value + 0.5 * (np.sum(residual**2, axis=1, keepdims=True) + part.rows.offset)


def _prox(part: _Rows, slopes: np.ndarray) -> JointProx:
    points = part.rows.confine(part.w + part.sigma * slopes)
    return joint_prox(part.rows.penalty, part.rows.bound, points, part.sigma, part.theta)


def _psi(part: _Rows, y: np.ndarray, slopes: np.ndarray, point: np.ndarray) -> np.ndarray:
    """ψ(y) up to a constant, (k, 1)."""
    points = part.rows.confine(part.w + part.sigma * slopes)
    moreau = np.sum((points - 0.5 * point) * point, axis=1, keepdims=True) / part.sigma
    value = part.rows.penalty.value(point).sum(axis=1, keepdims=True)
    return np.sum((0.5 * y - part.rows.targets) * y, axis=1, keepdims=True) + moreau - value


def _minimise(
    factorisation: Factorisation, gram: Gram, part: _Rows, enough: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Newton's method on ψ; p (k, d) and the steps each row took, (k,). The rows' y, slopes and θ are changed.

    Args:
      enough: ‖∇ψ‖ that need not be lowered, (k, 1).
    """
    count = part.y.shape[0]
    prox = _prox(part, part.slopes)
    point, seen = np.array(prox.point), np.array(prox.seen)
    part.theta[:] = prox.theta
    steps = np.zeros(count, dtype=int)
    gradient = np.asarray(part.y - part.rows.targets + factorisation.apply(point))
    open_ = np.arange(count)
    for _ in range(_NEWTON_STEPS):
        missed = np.linalg.norm(point - part.w, axis=1, keepdims=True) / part.sigma
        size = np.linalg.norm(gradient, axis=1, keepdims=True)
        open_ = open_[(size > np.maximum(_NEAR * missed, enough))[open_, 0]]
        if open_.size == 0:
            break
        now = part.take(open_)
        direction = _direction(factorisation, gram, now, point[open_], seen[open_], gradient[open_])
        steps[open_] += 1
        falls, found = _line_search(factorisation, now, direction, point[open_], gradient[open_])
        part.put(open_, now)
        point[open_], seen[open_] = found.point, found.seen
        gradient[open_] = now.y - now.rows.targets + factorisation.apply(found.point)
        # Where ψ can tell no difference any more, a step counts as long as it halves the gradient.
        halved = 2.0 * np.linalg.norm(gradient[open_], axis=1, keepdims=True) <= size[open_]
        open_ = open_[(falls | halved)[:, 0]]
    return point, steps


def _direction(
    factorisation: Factorisation, gram: Gram, part: _Rows, point: np.ndarray, seen: np.ndarray, gradient: np.ndarray
) -> np.ndarray:
    """−(∇²ψ)⁻¹∇ψ, (k, r), some rows at a time."""
    penalty: GroupPenalty = part.rows.penalty
    norms = penalty.norms(point)
    level = np.broadcast_to(penalty.level, norms.shape)
    inactive = (norms == 0.0) & (level > 0.0)
    member = (seen != 0.0) & ~penalty.to_columns(inactive)
    # Of a group p_g = 0 on the edge of its ball nothing is known: it takes no part.
    bend = penalty.to_columns(np.where(norms > 0.0, level / np.where(norms > 0.0, norms, 1.0), 0.0))
    unit = point / penalty.to_columns(np.where(norms > 0.0, norms, 1.0))
    normal = np.zeros_like(point)
    if part.rows.bound is not None:
        normal = np.where(member & (part.theta > 0.0), part.rows.bound.normal(np.sign(seen)), 0.0)
    pull = factorisation.apply_transpose(gradient)
    labels = np.asarray(penalty.labels)[0]
    change = np.zeros_like(point)
    sizes = np.count_nonzero(member, axis=1)
    order = np.argsort(sizes, kind="stable")
    while order.size:  # the largest first
        size = max(int(sizes[order[-1]]), 1)
        tile = max(_SYSTEM_BYTES // (8 * size * size), 1)
        order, index = order[:-tile], order[-tile:]
        diagonal = bend[index] + 1.0 / part.sigma[index]
        system = gather_system(gram, member[index], diagonal, size)
        own, turned = labels[system.chosen], system.pick(unit[index])
        same = own[:, :, None] == own[:, None, :]
        curved = system.pick(bend[index])[:, :, None] * turned[:, :, None] * turned[:, None, :]
        factor = cholesky(system.matrix - np.where(same, curved, 0.0))
        found = cholesky_solve(factor, system.pick(pull[index]))
        edge = system.pick(normal[index])
        bent = cholesky_solve(factor, edge)
        steep = np.sum(edge * bent, axis=1, keepdims=True)
        share = np.sum(bent * system.pick(pull[index]), axis=1, keepdims=True)
        found = found - np.where(steep > 0.0, share / np.where(steep > 0.0, steep, 1.0), 0.0) * bent
        change[index] = system.scatter(found, point.shape[1])
    direction = factorisation.apply(change) - gradient
    return np.where(np.isfinite(direction).all(axis=1, keepdims=True), direction, -gradient)


def _line_search(
    factorisation: Factorisation, part: _Rows, direction: np.ndarray, point: np.ndarray, gradient: np.ndarray
) -> tuple[np.ndarray, JointProx]:
    """Move y, slopes and θ of the rows along a direction as far as ψ falls enough.

    Returns:
      Whether ψ fell by more than its rounding, (k, 1), and the prox at the new points.
    """
    along = factorisation.apply_transpose(direction)
    start = _psi(part, part.y, part.slopes, point)
    fall = np.sum(gradient * direction, axis=1, keepdims=True)
    rounding = 1e-14 * (np.abs(start) + np.sum(np.abs(part.rows.targets * part.y), axis=1, keepdims=True))
    length = np.ones_like(start)
    y, slopes = part.y + direction, part.slopes + along
    first = _prox(part, slopes)
    found = JointProx(*(np.array(values) for values in first))
    bad = ~(_psi(part, y, slopes, np.asarray(found.point)) <= start + _ARMIJO * fall + rounding)[:, 0]
    for _ in range(_HALVINGS):
        index = np.flatnonzero(bad)
        if index.size == 0:
            break
        length[index] *= 0.5
        now = part.take(index)
        y[index] = now.y + length[index] * direction[index]
        slopes[index] = now.slopes + length[index] * along[index]
        tried = _prox(now, slopes[index])
        for into, values in zip(found, tried):
            into[index] = values
        enough = start[index] + _ARMIJO * length[index] * fall[index] + rounding[index]
        bad[index] = ~(_psi(now, y[index], slopes[index], np.asarray(tried.point)) <= enough)[:, 0]
    part.y[:], part.slopes[:], part.theta[:] = y, slopes, found.theta
    return ~bad[:, None] & (-fall > rounding), found
