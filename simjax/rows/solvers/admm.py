"""Two-block ADMM, over-relaxed, with its own ρ for every row and Anderson extrapolation.

In terms of the point v that enters the prox, one pass is the fixed-point map F

    z ← prox_{g/ρ}(v),   u = v − z                   penalty, ball and support in one prox
    w ← argmin ½‖t̃ − Kw‖² + ρ/2‖w − (z − u)‖²        K = S Vᵀ: two products with V for all rows and every ρ
    v ← v + α(w − z)                                 over-relaxation α

After every nine passes v_0, …, v_9 the combination Σ c_i v_{i+1} with the least ‖Σ c_i (v_{i+1} − v_i)‖, Σ c_i = 1, is
tried, row by row, and kept where F moves it no further than it moved the last of them: it needs about half the passes.

The iterate that counts is z, exactly sparse and feasible. The dual point comes from the w block: y = t̃ − Kw satisfies
Kᵀy = ρ(w − z + u), and certifies rows that the residual of z does not. Under exact matching the w step is the
projection onto Kw = t̃.

Sources: Boyd et al., Distributed optimization and statistical learning via ADMM (2011), §3.4.1 for the ρ rule; Walker &
Ni, Anderson acceleration for fixed-point iterations (2011).
"""

from __future__ import annotations

import dataclasses

from simjax._typing import Array
from simjax.rows.arrays import cond, fori_loop, matmul, namespace, norms, pytree, with_slot
from simjax.rows.joint_prox import JointProx, joint_prox
from simjax.rows.penalties import total_value
from simjax.rows.solvers.canonical import CanonicalRows
from simjax.rows.solvers.factor import Factorisation
from simjax.rows.solvers.linear import solve_small

_RELAXATION = 1.6
_WINDOW = 9  # passes between two extrapolations
_WINDOWS = 2  # extrapolations between two changes of ρ
_EXTRAPOLATION_RIDGE = 1e-10
_RHO_RANGE = (1e-12, 1e6)

ROUND = _WINDOWS * (_WINDOW + 1) + 1  # passes of a full round: each extrapolation costs one, and so does changing ρ


@pytree()
@dataclasses.dataclass(frozen=True)
class AdmmState:
    v: Array  # (R, d), the next point of the prox
    z: Array  # (R, d), the prox of the last pass
    w: Array  # (R, d), and its w block
    y: Array  # (R, r), and its dual point
    rho: Array  # (R, 1)
    theta: Array  # (R, 1), the ball's root of the last prox: a warm start for the next
    age: Array  # (R, 1), how often ρ has been rebalanced


def initial_rho(rows: CanonicalRows, ridge: Array) -> Array:
    """ρ₀ = 0.3 h'(w)/‖w‖² at a ridge solution w: the weight at which the prox moves w by about its own size.

    Where ρ settles lies between a tenth and a hundredth of that ratio for near-interpolating rows, above it for others.
    """
    xp = namespace(ridge)
    value = total_value(rows.penalty, ridge)[:, None]
    return xp.clip(0.3 * value / xp.maximum(xp.sum(ridge**2, axis=1, keepdims=True), 1e-30), 1e-6, 1e2)


def start(factorisation: Factorisation, rows: CanonicalRows) -> AdmmState:
    """The state at w = 0, in arrays of its own."""
    xp = namespace(rows.targets)
    singular = factorisation.singular_values
    ridge = rows.confine(matmul(rows.targets * singular / (singular**2 + 1e-3), factorisation.basis.T))
    rho, zero = initial_rho(rows, ridge), xp.zeros_like(ridge)
    z, w, y, theta, age = zero.copy(), zero.copy(), rows.targets.copy(), xp.zeros_like(rho), xp.zeros_like(rho)
    return AdmmState(zero, z, w, y, rho, theta, age)


def restart(factorisation: Factorisation, state: AdmmState, weights: Array, dual: Array) -> AdmmState:
    """The state moved to given weights (R, d) and dual points (R, r).

    At a solution ρu = Kᵀy, so v = z + Kᵀy/ρ is the fixed point if weights and dual solve the row.
    """
    v = weights + factorisation.apply_transpose(dual) / state.rho
    return dataclasses.replace(state, v=v, z=weights, w=weights, y=dual)


def advance(factorisation: Factorisation, rows: CanonicalRows, state: AdmmState, *, passes: int) -> AdmmState:
    """`passes` iterations, in rounds of two extrapolated windows and one pass more, each of which begins with a new ρ.

    One loop for everything, so that the prox is compiled once: what is special about a pass hangs on its number.
    """
    xp = namespace(state.v)
    count, width = state.v.shape
    window = _WINDOW + 1

    def one_pass(number: Array, carry: tuple) -> tuple:
        state, path, fallback, last_move = carry
        in_round = number % ROUND
        in_window = xp.where(in_round < _WINDOWS * window, in_round % window, -1)
        judged = in_window == _WINDOW  # the pass from the extrapolated point, after the nine of the window
        prox = joint_prox(rows.penalty, rows.bound, rows.confine(state.v), 1.0 / state.rho, state.theta)
        state = cond(in_round == 0, _rebalanced, _unchanged, xp, rows, state, prox)
        w, y = _w_step(factorisation, rows, state)
        following = state.v + _RELAXATION * (w - state.z)

        def accepted(following: Array, fallback: Array) -> Array:
            return xp.where(norms(following - state.v) <= last_move, following, fallback)  # False for NaN

        def extrapolated(path: Array) -> tuple[Array, Array, Array]:
            return _extrapolate(path[:, :window]), following, norms(following - state.v)

        # v₀ goes to slot 0, what follows to the next ones, and what no window wants to one slot more.
        first, then = xp.where(in_window == 0, 0, window), xp.where((in_window < 0) | judged, window, in_window + 1)
        path = with_slot(path, state.v, first, xp)
        path = with_slot(path, following, then, xp)
        v = cond(judged, accepted, lambda following, _: following, xp, following, fallback)
        last = in_window == _WINDOW - 1
        v, fallback, last_move = cond(last, extrapolated, lambda *_: (v, fallback, last_move), xp, path)
        return dataclasses.replace(state, v=v, w=w, y=y), path, fallback, last_move

    path = xp.zeros((count, window + 1, width), state.v.dtype)
    carry = (state, path, state.v, xp.zeros_like(state.rho))
    return fori_loop(passes, one_pass, carry, xp)[0]


def _w_step(factorisation: Factorisation, rows: CanonicalRows, state: AdmmState) -> tuple[Array, Array]:
    """w and y = t̃ − Kw (for exact matching: the y with Kᵀy = ρ(w − z + u))."""
    singular = factorisation.singular_values
    centre = 2.0 * state.z - state.v  # z − u
    x = matmul(centre, factorisation.basis)
    if rows.exact:
        move = rows.targets / singular - x
    else:
        move = singular * (rows.targets - singular * x) / (singular**2 + state.rho)
    w = centre + matmul(move, factorisation.basis.T)
    return w, state.rho * move / singular


def _extrapolate(path: Array) -> Array:
    """Σ c_i v_{i+1} with c = argmin ‖Σ c_i r_i‖², r_i = v_{i+1} − v_i, Σ c_i = 1: c ∝ G⁻¹1, G_ij = r_iᵀr_j.

    Args:
      path: v_0, …, v_k, (R, k + 1, d).
    """
    xp = namespace(path)
    points, moves = path[:, 1:], path[:, 1:] - path[:, :-1]
    gram = matmul(moves, moves.transpose(0, 2, 1))
    ridge = _EXTRAPOLATION_RIDGE * xp.trace(gram, axis1=1, axis2=2) + float(xp.finfo(gram.dtype).tiny)
    gram = gram + ridge[:, None, None] * xp.eye(gram.shape[1], dtype=gram.dtype)
    weights = solve_small(gram, xp.ones(gram.shape[:2], gram.dtype))
    weights = weights / xp.sum(weights, axis=1, keepdims=True)
    return matmul(weights[:, None, :], points)[:, 0]


def _unchanged(rows: CanonicalRows, state: AdmmState, prox: JointProx) -> AdmmState:
    return dataclasses.replace(state, z=prox.point, theta=prox.theta)


def _rebalanced(rows: CanonicalRows, state: AdmmState, prox: JointProx) -> AdmmState:
    """ρ ← ρ √(relative primal residual / relative dual residual) of the last pass, by less and less.

    ADMM converges for a fixed ρ; one that keeps moving can cycle for ever. The largest factor is 5 for the first ten
    times and then falls towards 1 fast enough for the product of all of them to stay bounded.

    z stays the prox of its new point: ρu, which does not change, is a subgradient of g at z.
    """
    xp = namespace(state.v)
    w, z, u = rows.confine(state.w), prox.point, state.v - prox.point
    primal = norms(w - state.z) / xp.maximum(xp.maximum(norms(w), norms(state.z)), 1e-30)
    dual = norms(z - state.z) / xp.maximum(norms(u), 1e-30)
    most = 1.0 + 4.0 / xp.maximum(state.age / 10.0, 1.0) ** 2
    meaningful = primal > 1e-15  # not at the start, nor after a restart: w = z there
    ratio = xp.where(meaningful, xp.clip(xp.sqrt(primal / xp.maximum(dual, 1e-30)), 1.0 / most, most), 1.0)
    rho = xp.clip(state.rho * ratio, *_RHO_RANGE)
    change, age = state.rho / rho, state.age + xp.asarray(meaningful, dtype=state.rho.dtype)
    return AdmmState(z + u * change, z, state.w, state.y, rho, prox.theta * change, age)


def point(state: AdmmState) -> tuple[Array, Array]:
    """The weights z and the dual point y of the last pass."""
    return state.z, state.y
