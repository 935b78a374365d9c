"""Rows as the interior-point method sees them: sums of nonnegative parts, their residuals, and where it starts."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np
from scipy.linalg import lapack

from simjax.rows.problem import CANONICAL_FLOOR

_FEASIBILITY_FACTOR = 1e3  # as in `canonical.relative_gap`
# The start: ridge of the first guess, share of the slopes that costs count as at least, share of the dual domain that y
# takes up, and how much larger than the guess the parts are.
_RIDGE, _LEAST_COST, _DUAL_SHARE, _ROOM = 0.01, 1e-4, 0.5, 30.0

T = TypeVar("T", "Terms", "Point", "Residuals")


@dataclasses.dataclass(frozen=True)
class CanonicalDesign:
    transpose: np.ndarray  # Kᵀ, (d, r)
    gram: np.ndarray | None
    squares: np.ndarray  # ‖K_j‖², (d,)
    exact: bool

    def apply(self, weights: np.ndarray) -> np.ndarray:
        return weights @ self.transpose

    def slopes(self, dual: np.ndarray) -> np.ndarray:
        return dual @ self.transpose.T


@dataclasses.dataclass(frozen=True)
class Terms:
    """The rows as sums of parts; arrays are (R, parts, d) unless said otherwise."""

    targets: np.ndarray  # (R, r)
    offset: np.ndarray  # (R,)
    cost: np.ndarray
    bend: np.ndarray | None  # 2a of the parts beyond the knot; None for no curvature at all
    top: np.ndarray | None  # upper bounds, inf where there is none; None for no bounds at all
    present: np.ndarray | None  # 1.0 or 0.0: whether there is such a part; None for all
    normal: np.ndarray | None  # ω + σδ; None without a ball
    radius: np.ndarray  # κ, (R,); 1 without a ball
    limited: np.ndarray  # whether there is a ball, (R,)
    free: np.ndarray | None  # which coordinates are not split, (R, d); None for none
    free_bend: np.ndarray  # their curvature 2a, (R, d)
    tilt: np.ndarray | None  # δ of the free ones, (R, d)

    @property
    def signs(self) -> np.ndarray:
        return np.array([1.0, -1.0] * (self.cost.shape[1] // 2))[:, None]


@dataclasses.dataclass(frozen=True)
class Point:
    parts: np.ndarray  # x, (R, parts, d); 1 where there is no such part
    slack: np.ndarray  # z
    room: np.ndarray  # v; empty where no part has an upper bound
    lid: np.ndarray  # g, likewise
    loose: np.ndarray  # weights of the coordinates that are not split, (R, d), or (R, 0) if there are none
    weights: np.ndarray  # w, (R, d)
    dual: np.ndarray  # y, (R, r)
    gauge: np.ndarray  # s, (R,)
    theta: np.ndarray  # (R,)


@dataclasses.dataclass(frozen=True)
class Residuals:
    equations: np.ndarray  # t − Kw − ρy, (R, r)
    stationarity: np.ndarray  # (R, parts, d)
    loose: np.ndarray  # (R, d) or (R, 0)
    bound: np.ndarray  # κ − ω̂ᵀx − s, (R,)
    average: np.ndarray  # μ, (R,)
    gap: np.ndarray  # (R,)


def take(value: T, index: np.ndarray) -> T:
    """The rows in `index` of a dataclass of arrays."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        array = getattr(value, field.name)
        changed[field.name] = None if array is None else array[index]
    return dataclasses.replace(value, **changed)


def terms_of(targets, slope, curvature, knot, bound, box, support, width, offset) -> Terms:
    """The parts of w, or of w − p with the point p of a box that is next to zero, of which `targets` are K p short."""
    rows = targets.shape[0]
    shape = (rows, width)
    slope, curvature, knot = (np.broadcast_to(x, shape) for x in (slope, curvature, knot))
    omega = tilt = None
    radius, limited = np.ones(rows), np.zeros(rows, bool)
    if bound is not None:
        limited = np.isfinite(bound[2])
        radius = np.where(limited, bound[2], 1.0)
        omega = np.where(limited[:, None], bound[0], 0.0)
        tilt = None if bound[1] is None else np.where(limited[:, None], bound[1], 0.0)
    offset = np.zeros(rows) if offset is None else offset
    beyond, room = slope, None  # the cost of a part beyond the knot, and how large both parts may be, (R, 2, d)
    if box is not None:
        least = np.clip(np.zeros(shape), *box)
        size = np.abs(least)
        room = np.stack(
            [np.where(least < 0.0, 0.0, box[1] - least), np.where(least > 0.0, 0.0, least - box[0])], axis=1
        )
        excess = np.maximum(size - knot, 0.0)
        offset = offset + 2.0 * np.sum(slope * size + curvature * excess**2, axis=1)
        beyond, knot = slope + 2.0 * curvature * excess, np.maximum(knot - size, 0.0)
    allowed = np.ones(shape, bool) if support is None else support
    bent = (curvature > 0.0) & (knot > 0.0)
    free = allowed & (slope == 0.0) & ~bent
    free = free if omega is None else free & (omega == 0.0)
    free = free if room is None else free & np.isinf(room).all(axis=1)
    split = allowed & ~free
    pieces = 2 if bool((bent & split).any()) else 1

    def both(values):
        return np.repeat(values[:, None], 2, axis=1)

    cost = both(beyond)
    bend = both(2.0 * curvature) if curvature.any() else None
    present = both(split) if room is None else both(split) & (room > 0.0)
    top = room
    if pieces == 2:
        below = present & both(bent)
        limit = both(knot) if room is None else np.minimum(both(knot), room)
        above, rest = present, np.full_like(limit, np.inf)
        if room is not None:
            rest = np.where(below, room - limit, room)
            above = present & (rest > 0.0)
        cost = np.concatenate([cost, both(slope)], axis=1)
        bend = np.concatenate([bend, np.zeros_like(bend)], axis=1)
        present = np.concatenate([above, below], axis=1)
        top = np.concatenate([rest, np.where(below, limit, np.inf)], axis=1)
    if top is not None:
        top = np.where(present, top, np.inf)
    present = None if present.all() else present
    normal = None
    if omega is not None:
        signed = np.zeros(1) if tilt is None else np.stack([tilt, -tilt], axis=1)
        normal = np.concatenate([both(omega) + signed] * pieces, axis=1)
        if present is not None:
            normal = normal * present
    any_free = bool(free.any())
    return Terms(
        targets=targets,
        offset=offset,
        cost=cost,
        bend=bend,
        top=top,
        present=None if present is None else present.astype(float),
        normal=normal,
        radius=radius,
        limited=limited,
        free=free if any_free else None,
        free_bend=np.where(free, 2.0 * curvature, 0.0),
        tilt=np.where(free, tilt, 0.0) if any_free and tilt is not None else None,
    )


def start(design: CanonicalDesign, terms: Terms) -> Point:
    """A centred point: x z = μ for every pair. Its size is that of the ridge solution, which all rows share."""
    transpose = design.transpose
    rank = transpose.shape[1]
    system = transpose.T @ transpose / _RIDGE
    system[np.diag_indices(rank)] += 1.0
    factor = np.linalg.cholesky(system)
    dual = lapack.dpotrs(factor, terms.targets.T, lower=1)[0].T
    slopes = design.slopes(dual)
    ridge = slopes / _RIDGE
    size = np.maximum(np.abs(ridge).mean(axis=1), 1e-3 / np.sqrt(ridge.shape[1]))[:, None, None]
    # y as far as it stays among the multipliers of L1, and z no smaller than a share of them
    pull = np.abs(slopes).max(axis=1)
    marginal = terms.cost if terms.bend is None else terms.cost + terms.bend * size
    level = np.minimum(np.maximum(marginal.mean(axis=(1, 2)), _LEAST_COST * pull), pull + 1e-300)
    shrink = level / np.maximum(pull, 1e-300) * _DUAL_SHARE
    dual, slopes = dual * shrink[:, None], slopes * shrink[:, None]
    pull = np.maximum(level, 1e-12)[:, None, None]
    signs = terms.signs
    slack = np.maximum(terms.cost - signs * slopes[:, None], 0.0) + pull
    average = _ROOM * size * pull
    parts = average / slack
    if terms.top is not None:
        parts = np.minimum(parts, 0.5 * terms.top)
    present = np.ones(1) if terms.present is None else terms.present
    if terms.present is not None:
        parts, slack = np.where(present > 0.0, parts, 1.0), np.where(present > 0.0, slack, 1.0)
    average = average[:, 0, 0]
    weights = np.sum(signs * parts * present, axis=1)
    gauge = np.ones_like(average)
    if terms.normal is not None:
        used = np.sum(terms.normal * parts, axis=(1, 2))
        gauge = np.maximum(terms.radius - used, 0.1 * np.abs(terms.radius) + 0.1 * np.abs(used) + 1e-300)
    room = lid = np.zeros((len(parts), 0, 0))
    if terms.top is not None:
        room = terms.top - parts
        lid = np.where(np.isfinite(room), average[:, None, None] / room, 0.0)
    return Point(
        parts=parts,
        slack=slack,
        room=room,
        lid=lid,
        loose=np.zeros((len(parts), 0)) if terms.free is None else np.zeros_like(weights),
        weights=weights,
        dual=dual,
        gauge=np.where(terms.limited, gauge, 1.0),
        theta=np.where(terms.limited, average / gauge, 0.0),
    )


def residuals_of(design: CanonicalDesign, terms: Terms, point: Point) -> Residuals:
    slopes = design.slopes(point.dual)
    equations = terms.targets - design.apply(point.weights) - (0.0 if design.exact else point.dual)
    signs, parts = terms.signs, point.parts
    cost = terms.cost * parts
    stationarity = terms.cost - signs * slopes[:, None] - point.slack
    pairs = parts * point.slack
    count = np.full(len(parts), float(parts[0].size))
    if terms.bend is not None:
        pushed = terms.bend * parts
        stationarity += pushed
        cost += 0.5 * pushed * parts
    bound = np.zeros(len(parts))
    if terms.normal is not None:
        stationarity += point.theta[:, None, None] * terms.normal
        bound = terms.radius - np.einsum("ijk,ijk->i", terms.normal, parts) - point.gauge
    if terms.top is not None:
        stationarity += point.lid
        pairs += np.where(point.lid > 0.0, point.lid * np.where(point.lid > 0.0, point.room, 1.0), 0.0)
        count += np.count_nonzero(np.isfinite(terms.top), axis=(1, 2))
    error = np.abs(stationarity) * parts
    if terms.present is not None:
        stationarity, pairs, cost, error = (x * terms.present for x in (stationarity, pairs, cost, error))
        count = count - (terms.present.size / len(parts) - terms.present.sum(axis=(1, 2)))
    total = pairs.sum(axis=(1, 2)) + np.where(terms.limited, point.gauge * point.theta, 0.0)
    objective = cost.sum(axis=(1, 2))
    error = error.sum(axis=(1, 2))
    loose = point.loose
    if terms.free is not None:
        loose = np.where(terms.free, terms.free_bend * point.loose - slopes, 0.0)
        if terms.tilt is not None:
            loose += point.theta[:, None] * terms.tilt
            bound = bound - np.sum(terms.tilt * point.loose, axis=1)
        objective += 0.5 * np.sum(terms.free_bend * point.loose**2, axis=1)
        reach = np.abs(point.loose) + np.abs(point.weights).max(axis=1, keepdims=True)
        error += np.sum(np.abs(loose) * reach, axis=1)
    bound = np.where(terms.limited, bound, 0.0)
    if not design.exact:
        objective += 0.5 * (np.sum((point.dual + equations) ** 2, axis=1) + terms.offset)
        error += np.linalg.norm(point.dual, axis=1) * np.linalg.norm(equations, axis=1) + 0.5 * np.sum(
            equations**2, axis=1
        )
    gap = total + error + point.theta * np.abs(bound)
    gap = gap / np.maximum(objective, 1e-300 if design.exact else CANONICAL_FLOOR)
    gap = np.maximum(gap, np.where(terms.limited, np.abs(bound) / (np.abs(terms.radius) + point.gauge), 0.0))
    if design.exact:
        gap = np.maximum(gap, _FEASIBILITY_FACTOR * np.linalg.norm(equations, axis=1))
    return Residuals(equations, stationarity, loose, bound, total / np.maximum(count + terms.limited, 1.0), gap)
