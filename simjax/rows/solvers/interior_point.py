"""A primal–dual interior-point method for rows that first-order passes do not settle, in a bounded number of steps.

    min_w  ½‖t − Kw‖² + Σ_j c_j|w_j| + a_j(|w_j| − b_j)₊²    s.t.  Σ_j ω_j|w_j| + δ_j w_j ≤ κ,   w_j = 0 off the support

or, under exact matching, the second term alone s.t. Kw = t. Every coordinate is a sum of parts x ≥ 0 with signs σ,

    w = Σ σ x,   cost c x (+ a x² for the part beyond the knot),   x ≤ b for the part below it,

two of them, or four where there is a knot. A coordinate without slope, weight in the ball and box is not split. In a
box l ≤ w ≤ u the parts are those of w − p, with its point p next to zero, and end where it does. With ρ = 1,
or ρ = 0 for exact matching, multipliers y of Kw + ρy = t, z of x ≥ 0, g of v = b − x ≥ 0 and θ of the slack s of the
ball, a Newton step for the optimality conditions comes down to a system in dy and dθ:

    (ρI + K D Kᵀ) dy = r_p − K(Q − B dθ)            D = Σ 1/Θ,  B = Σ σω̂/Θ,  Q = Σ σq/Θ,   Θ = 2a + z/x + g/v
    dw = Q + D Kᵀdy − B dθ,                           ω̂ = ω + σδ

of size r; or, with A = K D^½ on the coordinates whose D matters, to (I + AᵀA) e = Aᵀ(r_p − K(Q − B dθ)) of theirs.
The vectors of all rows are handled together, the systems one after another; rows that are done leave.

Source: Mehrotra, On the implementation of a primal–dual interior point method (SIAM J. Optim. 1992).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from simjax.rows import lapack
from simjax.rows.solvers.interior_terms import (
    CanonicalDesign,
    Point,
    Residuals,
    Terms,
    residuals_of,
    start,
    take,
    terms_of,
)

# Columns that add less than this, all together, to ρI + K D Kᵀ are left out of it. More would be faster, but rows whose
# penalty is 1e-11 of their target are then not solved.
_NEGLIGIBLE = 1e-9
_PROXIMAL = 1e-9  # curvature about the last point that an unpenalised coordinate gets
_EXACT_RIDGE = 1e-13  # ρ of the system under exact matching, relative to its largest entry
_AIM = 0.2  # by how much a corrector tries to lengthen the step
_STEP = 0.995  # share of the way to the boundary
_SHORT = 1e-5  # a step below this ends the row
_LONG = 0.9  # a step of this length needs no corrector
_LATE = 1.0  # relative gap from which on systems are so badly conditioned that their solutions are refined
_NEAR = 1e-4  # a gap below this that does not fall any more has met rounding
_IDLE = 2  # steps without a clear fall of it after which the row ends
_CORRECTORS = 2


class InteriorPoint(NamedTuple):
    """Where each row ended.

    Attributes:
      weights: w, (R, d): small where they should be zero.
      dual: y, (R, r).
      multiplier: θ of the ball, (R,); 0 without one.
      gap: relative gap by the method's own account, not proved, (R,); inf for a row that never took a step.
      iterations: Newton steps taken, (R,).
    """

    weights: np.ndarray
    dual: np.ndarray
    multiplier: np.ndarray
    gap: np.ndarray
    iterations: np.ndarray


def solve(
    transpose: np.ndarray,
    gram: np.ndarray | None,
    targets: np.ndarray,
    slope: np.ndarray,
    curvature: np.ndarray,
    knot: np.ndarray,
    bound: tuple[np.ndarray, np.ndarray | None, np.ndarray] | None = None,
    support: np.ndarray | None = None,
    *,
    box: tuple[np.ndarray, np.ndarray] | None = None,
    exact: bool = False,
    tol: float = 1e-8,
    max_iterations: int = 30,
    offset: np.ndarray | None = None,
) -> InteriorPoint:
    """Solve rows in canonical units to a relative gap of about `tol`.

    Args:
      transpose: Kᵀ, (d, r), of norm one, contiguous.
      gram: KᵀK, (d, d), which makes systems smaller than r possible; None without.
      targets: t, (R, r).
      slope, curvature, knot: c, a and b, (R or 1, d).
      bound: (ω, δ, κ) of shapes (R or 1, d), (R, d) or None, and (R,); κ = inf for a row without a ball.
      support: boolean (R, d); None for all.
      box: (l, u), (R, d) each, which hold zero where the ball has weight and outside of the support.
      exact: whether Kw = t is demanded.
      tol: relative gap at which a row is done.
      max_iterations: of Newton steps.
      offset: what no weights can explain, ‖t'‖² − ‖t‖², (R,): ½ of it counts to the objective. None for 0.
    """
    rows, width = targets.shape[0], transpose.shape[0]
    answer = InteriorPoint(
        np.zeros((rows, width)), targets.copy(), np.zeros(rows), np.full(rows, np.inf), np.zeros(rows, int)
    )
    if rows == 0:
        return answer
    design = CanonicalDesign(transpose, gram, np.einsum("ij,ij->i", transpose, transpose), exact)
    least = None if box is None else np.clip(np.zeros((rows, width)), *box)
    targets = targets if least is None else targets - design.apply(least)
    terms = terms_of(targets, slope, curvature, knot, bound, box, support, width, offset)
    point = start(design, terms)
    number = np.arange(rows)
    length = np.ones(rows)
    idle = np.zeros(rows, int)  # steps since the gap last fell
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for iteration in range(max_iterations + 1):
            residuals = residuals_of(design, terms, point)
            gap = np.where(np.isfinite(residuals.gap), residuals.gap, np.inf)
            better = gap < answer.gap[number]
            clear = gap < 0.5 * answer.gap[number]
            keep = number[better]
            answer.weights[keep] = point.weights[better]
            answer.dual[keep] = point.dual[better]
            answer.multiplier[keep] = point.theta[better]
            answer.gap[keep] = gap[better]
            idle = np.where(clear | (answer.gap[number] > _NEAR), 0, idle + 1)
            done = (gap <= tol) | (idle > _IDLE) | (length < _SHORT) | ~np.isfinite(gap)
            if iteration == max_iterations or done.all():
                break
            if done.any():
                left = ~done
                number, idle = number[left], idle[left]
                terms, point, residuals = take(terms, left), take(point, left), take(residuals, left)
            answer.iterations[number] += 1
            point, length = _newton_step(design, terms, point, residuals)
    return answer if least is None else answer._replace(weights=answer.weights + least)


# --- The method ----------------------------------------------------------------------------------------------------


def _newton_step(design: CanonicalDesign, terms: Terms, point: Point, residuals: Residuals) -> tuple[Point, np.ndarray]:
    """The point after a predictor and a corrector, and the length of the step, (R,)."""
    signs, x, z, room, lid = terms.signs, point.parts, point.slack, point.room, point.lid
    bounded = None if terms.top is None else np.isfinite(terms.top)
    ratio = z / x
    if terms.bend is not None:
        ratio += terms.bend
    if bounded is not None:
        ratio += np.where(bounded, lid / room, 0.0)
    inverse = 1.0 / ratio  # 1/Θ
    if terms.present is not None:
        inverse *= terms.present
    spread = inverse.sum(axis=1)  # D
    loose_inverse = np.zeros(0)
    if terms.free is not None:
        loose_inverse = np.where(terms.free, 1.0 / (terms.free_bend + _PROXIMAL), 0.0)
        spread = spread + loose_inverse
    system = _factor(design, spread, residuals.gap < _LATE)

    limited, normal = terms.limited, terms.normal
    unit = np.where(limited, point.theta, 1.0)
    if normal is not None:
        leaned = inverse * normal
        tip = np.sum(signs * leaned, axis=1)  # B
        weight = np.einsum("ijk,ijk->i", leaned, normal)
        if terms.tilt is not None:
            tip = tip + loose_inverse * terms.tilt
            weight = weight + np.sum(loose_inverse * terms.tilt**2, axis=1)
        tip_dual, tip_slopes = _solved(design, system, spread, -tip, np.zeros_like(point.dual))
        # ω̂ᵀ of the response to dθ is W + BᵀKᵀdy, whose terms cancel where D is large; as a sum of squares they do not.
        share = np.where(spread > 0.0, tip / np.where(spread > 0.0, spread, 1.0), 0.0)
        stiffness = np.maximum(weight - np.sum(tip * share, axis=1), 0.0) + point.gauge / unit
        stiffness += np.sum(spread * (share - tip_slopes) ** 2, axis=1)
        stiffness += (0.0 if design.exact else 1.0) * np.sum(tip_dual**2, axis=1)

    def direction(pair, upper, gauge):
        push = pair / x - residuals.stationarity
        if bounded is not None:
            push -= np.where(bounded, upper / room, 0.0)
        moved = inverse * push
        wanted = np.sum(signs * moved, axis=1)
        if terms.free is not None:
            loose_moved = -loose_inverse * residuals.loose
            wanted = wanted + loose_moved
        dual, slopes = _solved(design, system, spread, wanted, residuals.equations)
        theta = np.zeros(len(x))
        if normal is not None:
            left = np.sum(share * (wanted + spread * slopes), axis=1)
            left += np.einsum("ijk,ijk->i", normal, moved) - np.sum(share * wanted, axis=1)
            if terms.tilt is not None:
                left = left + np.sum(terms.tilt * loose_moved, axis=1)
            theta = np.where(limited, (left + gauge / unit - residuals.bound) / stiffness, 0.0)
            slopes = slopes + theta[:, None] * tip_slopes
            dual = dual + theta[:, None] * tip_dual
        dx = inverse * (signs * slopes[:, None]) + moved
        if normal is not None:
            dx -= theta[:, None, None] * leaned
        dz = (pair - z * dx) / x
        dg = point.lid
        if bounded is not None:
            dg = np.where(bounded, (upper + lid * dx) / room, 0.0)
        dloose = point.loose
        if terms.free is not None:
            dloose = loose_inverse * slopes + loose_moved
            if terms.tilt is not None:
                dloose -= theta[:, None] * loose_inverse * terms.tilt
        if terms.present is not None:
            dz *= terms.present
        ds = np.where(limited, (gauge - point.gauge * theta) / unit, 0.0)
        return dx, dz, dg, dloose, dual, theta, ds

    def lengths(dx, dz, dg, dloose, dual, theta, ds):
        primal, dual = _longest(x, dx), _longest(z, dz)
        if bounded is not None:
            primal = np.minimum(primal, _longest(room, -dx, bounded))
            dual = np.minimum(dual, _longest(lid, dg, bounded))
        if normal is not None:
            primal = np.minimum(primal, _longest(point.gauge[:, None], ds[:, None]))
            dual = np.minimum(dual, _longest(unit[:, None], theta[:, None]))
        if not (design.exact and terms.bend is None and terms.free is None):
            primal = dual = np.minimum(primal, dual)
        return primal, dual

    pairs = x * z if terms.present is None else x * z * terms.present
    caps = np.zeros(0) if bounded is None else np.where(bounded, lid * np.where(bounded, room, 1.0), 0.0)
    gauge = np.where(limited, point.gauge * point.theta, 0.0)
    step = direction(-pairs, -caps, -gauge)
    dx, dz, dg, _, _, theta, ds = step
    primal, dual = (np.minimum(length, 1.0) for length in lengths(*step))
    p, q = primal[:, None, None], dual[:, None, None]
    ahead = (x + p * dx) * (z + q * dz)
    if terms.present is not None:
        ahead *= terms.present
    total, now = ahead.sum(axis=(1, 2)), pairs.sum(axis=(1, 2)) + gauge
    if bounded is not None:
        total += np.sum(np.where(bounded, (np.where(bounded, room, 0.0) - p * dx) * (lid + q * dg), 0.0), axis=(1, 2))
        now = now + caps.sum(axis=(1, 2))
    if normal is not None:
        total += np.where(limited, (point.gauge + primal * ds) * (point.theta + dual * theta), 0.0)
    centre = np.clip(total / np.maximum(now, 1e-300), 0.0, 1.0) ** 3 * residuals.average
    wanted = centre[:, None, None]
    pair = wanted - pairs - dx * dz
    if terms.present is not None:
        pair *= terms.present
    upper = caps if bounded is None else np.where(bounded, wanted - caps + dx * dg, 0.0)
    pull = np.where(limited, centre - gauge - ds * theta, 0.0)
    step = direction(pair, upper, pull)
    reach = lengths(*step)
    # Gondzio's correctors: products that a longer step would leave far from μ are drawn towards it.
    better = np.minimum(*reach) < _LONG
    for _ in range(_CORRECTORS):
        if not better.any():
            break
        p, q = (np.minimum(1.0, length + _AIM)[:, None, None] for length in reach)
        pair = pair + _outlying((x + p * step[0]) * (z + q * step[1]), wanted)
        if terms.present is not None:
            pair *= terms.present
        trial = direction(pair, upper, pull)
        longer = lengths(*trial)
        better = better & (np.minimum(*longer) > np.minimum(*reach) + 0.1 * _AIM)
        reach = tuple(np.where(better, new, old) for new, old in zip(longer, reach))
        step = tuple(np.where(better.reshape((-1,) + (1,) * (new.ndim - 1)), new, old) for new, old in zip(trial, step))
    dx, dz, dg, dloose, dy, theta, ds = step
    primal, dual = (np.minimum(_STEP * length, 1.0) for length in reach)
    good = system.good & np.isfinite(dx).all(axis=(1, 2)) & np.isfinite(theta)
    primal, dual = np.where(good, primal, 0.0), np.where(good, dual, 0.0)

    def moved(value, change, length):
        shape = (-1,) + (1,) * (value.ndim - 1)
        return value + np.where(good.reshape(shape), change, 0.0) * length.reshape(shape)

    parts = moved(x, dx, primal)
    present = 1.0 if terms.present is None else terms.present
    weights = np.sum(signs * parts * present, axis=1)
    loose = point.loose
    if terms.free is not None:
        loose = moved(loose, dloose, primal)
        weights = weights + loose
    stepped = Point(
        parts=parts,
        slack=moved(z, dz, dual),
        room=room if bounded is None else moved(room, -dx, primal),
        lid=lid if bounded is None else moved(lid, dg, dual),
        loose=loose,
        weights=weights,
        dual=moved(point.dual, dy, dual),
        gauge=moved(point.gauge, ds, primal),
        theta=moved(point.theta, theta, dual),
    )
    return stepped, np.where(good, np.minimum(primal, dual), -1.0)


def _outlying(products: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """What brings products x z below 0.1 μ or above 10 μ to there, by no more than 10 μ."""
    return np.maximum(np.clip(products, 0.1 * wanted, 10.0 * wanted) - products, -10.0 * wanted)


def _longest(value, change, where=None) -> np.ndarray:
    """The longest step that keeps value + step × change ≥ 0, (R,)."""
    rate = -change / value
    if where is not None:
        rate = np.where(where, rate, 0.0)
    rate = rate.reshape(len(rate), -1).max(axis=1)
    return 1.0 / np.maximum(rate, 1e-12)


# --- The systems -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _System:
    factors: list
    good: np.ndarray  # (R,)
    refine: np.ndarray  # whether its solutions are worth a refinement, (R,)


def _factor(design: CanonicalDesign, spread: np.ndarray, refine: np.ndarray) -> _System:
    """Cholesky factors of ρI + K D Kᵀ or of I + AᵀA, whichever is the cheaper, for each row."""
    factors: list[tuple | None] = []
    good, columns = np.ones(len(spread), bool), None
    width, rank = design.transpose.shape
    for row, scale in enumerate(spread):
        weight = scale * design.squares
        if design.exact:
            kept = np.flatnonzero(weight > 0.0)
        else:
            kept = np.flatnonzero(weight > _NEGLIGIBLE / width)
        kept = kept if kept.size else np.zeros(1, int)
        count = kept.size
        root = np.sqrt(scale[kept])
        narrow = not design.exact and 2.0 * count**3 / 3.0 < count * rank**2 + 2.0 * rank**3 / 3.0
        if narrow and design.gram is not None:
            matrix = np.multiply(design.gram, root) if count == width else design.gram[kept[:, None], kept] * root
            matrix *= root[:, None]
        else:
            narrow = False
            if columns is None:
                columns = np.empty_like(design.transpose)
            if count == width:
                scaled = np.multiply(design.transpose, root[:, None], out=columns)
            else:
                scaled = np.take(design.transpose, kept, axis=0, out=columns[:count], mode="clip")
                scaled *= root[:, None]
            matrix = scaled.T @ scaled
        diagonal = np.diag_indices(len(matrix))
        matrix[diagonal] += _EXACT_RIDGE * matrix[diagonal].max() if design.exact else 1.0
        good[row] = lapack.cholesky_in_place(matrix)
        factors.append((matrix, kept if narrow else None, root) if good[row] else None)
    return _System(factors, good, refine)


def _solved(
    design: CanonicalDesign, system: _System, spread: np.ndarray, wanted: np.ndarray, equations: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(dy, Kᵀdy) with dw = Q + D Kᵀdy and ρ dy = r_p − K dw, for Q = `wanted` and r_p = `equations`."""
    right = equations - design.apply(wanted)
    dual, slopes = _substituted(design, system, right)
    if not system.refine.any():
        return dual, slopes
    # The system may have left columns out, and its condition is that of D: one refinement.
    error = right - design.apply(spread * slopes) - (0.0 if design.exact else dual)
    change, bend = _substituted(design, system, error)
    refine = system.refine[:, None]
    return dual + np.where(refine, change, 0.0), slopes + np.where(refine, bend, 0.0)


def _substituted(design: CanonicalDesign, system: _System, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The solution of (ρI + K D Kᵀ) y = `right`, (R, r), and Kᵀy; 0 where there is no factor."""
    narrow = [factor is not None and factor[1] is not None for factor in system.factors]
    any_narrow = any(narrow)
    pulled = design.slopes(right) if any_narrow else right
    inward = np.zeros((len(right), len(design.squares))) if any_narrow else right
    dual, known = np.zeros_like(right), []
    for row, factor in enumerate(system.factors):
        if factor is None:
            continue
        matrix, kept, root = factor
        if kept is None:
            dual[row] = lapack.cholesky_solve(matrix[None], right[row][None])[0]
        else:
            inner = lapack.cholesky_solve(matrix[None], (root * pulled[row, kept])[None])[0]
            inward[row, kept] = root * inner
            known.append((row, kept, inner / root))  # the digits that Kᵀy would lose where D is large
    if any_narrow:
        dual[narrow] = (right - design.apply(inward))[narrow]
    slopes = design.slopes(dual)
    for row, kept, values in known:
        slopes[row, kept] = values
    return dual, slopes
