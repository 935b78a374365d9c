"""The equations that hold on the active set of each row, and their linear system: for polishing and for derivatives.

With the signs σ of the nonzero weights J, which of them are beyond the knot (bent), and whether the ball binds, a
solution satisfies

    σ(c − 2ab [bent]) + 2a [bent] w + θn − Φᵀy = 0  on J,      w = 0, or its bound of a box,  elsewhere
    nᵀw = κ  where the ball binds,  θ = 0  elsewhere           n = σω + δ
    y = 2λ(t − Φw),  or, under exact matching,  Φw = t

which is linear in (w, θ), or (w, y, θ), and smooth in everything else: the implicit function theorem gives the
derivatives of a solution with respect to Φ, t, λ, c, a, b, ω, δ, κ, l and u, as long as the active set stays what it
is.

With groups h'(w) is β_g w/‖w_g‖ on the groups that are not zero, where h'' = (β_g/‖w_g‖)(I − w_g w_gᵀ/‖w_g‖²), and the
linear equations are those of a step of Newton's.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simjax.rows.arrays import equally_varying, fori_loop, matmul, rounding_unit
from simjax.rows.boxed import box_of, unboxed
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.problem import RowProblem
from simjax.rows.solvers.linear import Gram, gather_system

_BINDS = 1e-6  # relative slack of the ball below which it is taken to bind
_SMALLEST_SYSTEM = 32
_NEWTON_STEPS = 6  # of a polish with groups, whose equations are not linear
_SYSTEM_BYTES = 2**26  # of the systems of the rows that are solved at once
_SLACK = 1e-3  # of √ε: what is left of equations that the active columns cannot meet, relative to ‖Φ‖²


class Point(NamedTuple):
    """Weights (R, d), dual point (R, m) (None unless matching is exact) and multiplier of the ball (R, 1)."""

    weights: Any
    dual: Any
    theta: Any


class ActiveSet(NamedTuple):
    """What is taken for known of a solution, row by row."""

    member: Any  # (R, d), weights that are neither zero nor on a bound
    sign: Any  # (R, d), of all weights
    bent: Any  # (R, d), which of them are beyond the knot
    binds: Any  # (R, 1), whether the ball binds
    above: Any  # (R, d), weights on the upper bound of their box
    below: Any  # (R, d), and on the lower one
    size: Any = None  # (R, d), the norm of each weight's group, where there are groups; 1 for one that is zero
    unit: Any = None  # (R, d), the weights divided by it


def active_set(problem: RowProblem, weights: Any, pull: Any = None) -> ActiveSet:
    """That of given weights (R, d).

    Args:
      pull: Φᵀy (R, d); a weight of zero on a bound of zero is held by that where this exceeds the penalty's slope.
    """
    penalty, box = unboxed(problem.penalty), box_of(problem.penalty)
    sign = jnp.sign(weights)
    binds = jnp.zeros((weights.shape[0], 1), dtype=bool)
    if problem.bound is not None:
        bound = problem.bound
        slack = _BINDS * jnp.sum(jnp.abs(bound.normal(sign) * weights), axis=1, keepdims=True)
        binds = jnp.isfinite(bound.radius) & (bound.norm(weights) >= bound.radius - slack)
    member = weights != 0.0
    held_by_none = jnp.zeros_like(member), jnp.zeros_like(member)
    if isinstance(penalty, GroupPenalty):
        norms = penalty.norms(weights)
        size = penalty.to_columns(jnp.where(norms > 0.0, norms, 1.0))
        # A weight of a group that is not zero may be zero by chance; only where the ball binds it has to be.
        moves = penalty.to_columns(norms > 0.0)
        moves = moves if problem.bound is None else moves & ~(binds & problem.bound.sees)
        moves = moves if problem.support is None else moves & problem.support
        return ActiveSet(member | moves, sign, jnp.zeros_like(member), binds, *held_by_none, size, weights / size)
    above, below = held_by_none
    if box is not None:
        above, below = weights == box.upper, weights == box.lower
        member = member & ~above & ~below
        held = (jnp.zeros_like(weights), jnp.zeros_like(weights)) if pull is None else (pull, -pull)
        above, below = (
            side & ((weights != 0.0) | (force > penalty.slope)) for side, force in zip((above, below), held)
        )
    return ActiveSet(member, sign, member & (jnp.abs(weights) > penalty.knot), binds, above, below)


def _held(problem: RowProblem, active: ActiveSet) -> Any:
    """What weights outside of J are, (R, d)."""
    box = box_of(problem.penalty)
    if box is None:
        return jnp.zeros_like(active.sign)
    return jnp.where(active.above, box.upper, jnp.where(active.below, box.lower, 0.0))


def _bend(problem: RowProblem, active: ActiveSet) -> Any:
    """The diagonal of the penalty's second derivative, 2a, or β_g/‖w_g‖ before its other part, (R, d)."""
    penalty = unboxed(problem.penalty)
    if isinstance(penalty, GroupPenalty):
        return jnp.where(active.member, penalty.to_columns(penalty.level) / active.size, 0.0)
    return jnp.where(active.bent, 2.0 * penalty.curvature, 0.0)


def _normal(problem: RowProblem, active: ActiveSet) -> Any:
    """n where the weights are not zero and the ball binds, (R, d)."""
    if problem.bound is None:
        return jnp.zeros_like(active.sign)
    return jnp.where((active.sign != 0.0) & active.binds, problem.bound.normal(active.sign), 0.0)


def residual_dual(problem: RowProblem, weights: Any) -> Any:
    """2λ(t − Φw), (R, m)."""
    return 2.0 * problem.loss_weight[:, None] * (problem.targets.T - matmul(weights, problem.design.T))


def _gradient(problem: RowProblem, active: ActiveSet, weights: Any) -> Any:
    """h'(w) on J, (R, d)."""
    penalty = unboxed(problem.penalty)
    bend = _bend(problem, active)
    if isinstance(penalty, GroupPenalty):
        return bend * weights
    return active.sign * (penalty.slope - bend * penalty.knot) + bend * weights


def equations(problem: RowProblem, active: ActiveSet, point: Point) -> Point:
    """By how much a point misses each of the equations above."""
    weights, dual, theta = point
    slopes = matmul(residual_dual(problem, weights) if dual is None else dual, problem.design)
    stationarity = _gradient(problem, active, weights) + theta * _normal(problem, active) - slopes
    upper = jnp.where(active.member, stationarity, weights - _held(problem, active))
    misfit = None if dual is None else matmul(weights, problem.design.T) - problem.targets.T
    if problem.bound is None:
        return Point(upper, misfit, theta)
    radius = jnp.where(active.binds, problem.bound.radius, 0.0)
    excess = jnp.sum(_normal(problem, active) * weights, axis=1, keepdims=True) - radius
    return Point(upper, misfit, jnp.where(active.binds, excess, theta))


def multiplier(problem: RowProblem, active: ActiveSet, point: Point) -> Any:
    """The θ that meets the equations of J best, (R, 1)."""
    normal = jnp.where(active.member, _normal(problem, active), 0.0)
    dual = residual_dual(problem, point.weights) if point.dual is None else point.dual
    left = matmul(dual, problem.design) - _gradient(problem, active, point.weights)
    square = jnp.sum(normal**2, axis=1, keepdims=True)
    return jnp.sum(normal * left, axis=1, keepdims=True) / jnp.where(square > 0.0, square, 1.0)


def solve(problem: RowProblem, active: ActiveSet, gram: Any, right: Point, wanted: Any) -> Point:
    """The change of (w, y, θ) by which the left-hand sides of the equations change as `right` says.

    The system is symmetric in (w, −y, θ). It is a linear function of `right`, and JAX may transpose it.

    Args:
      gram: ΦᵀΦ, (d, d), or None under exact matching.
      wanted: (R,), rows whose change is asked for; that of others may be anything.
    """
    weight = 2.0 * problem.loss_weight[:, None]
    bend, normal, member = _bend(problem, active), _normal(problem, active), active.member
    penalty: Any = problem.penalty
    design, exact = problem.design, problem.exact
    if box_of(problem.penalty) is not None:  # what weights outside of J move by is known, and moves all else
        moved = jnp.where(member, 0.0, right.weights)
        image = matmul(moved, design.T)
        pushed = right.weights if exact else right.weights - jnp.where(member, weight * matmul(image, design), 0.0)
        left = None if right.dual is None else right.dual - image
        right = Point(pushed, left, right.theta - jnp.sum(normal * moved, axis=1, keepdims=True))
    normal = jnp.where(member, normal, 0.0)
    # What the equations of active columns that are too few cannot meet is met as well as it can be.
    slack = _SLACK * rounding_unit(design) ** 0.5 * jnp.sum(design**2) / design.shape[1]

    width = design.shape[1]

    def product(change: Any) -> Any:
        weights, turned, theta = change[:, :width], change[:, width:-1], change[:, -1:]
        inside = jnp.where(member, weights, 0.0)
        image = matmul(inside, design.T)
        slopes = matmul(turned, design) if exact else weight * matmul(image, design)
        if active.unit is not None:
            slopes = slopes - bend * active.unit * penalty.to_columns(penalty.sums(active.unit * inside))
        upper = jnp.where(member, slopes + bend * inside + normal * theta, weights)
        below = jnp.sum(normal * inside, axis=1, keepdims=True)
        middle = [image - slack * turned] if exact else []
        return jnp.concatenate([upper, *middle, jnp.where(active.binds, below, theta)], axis=1)

    def solved(_: Any, right: Any) -> Any:
        parts = bend, normal, member, active.binds, jnp.zeros_like(bend) if active.unit is None else active.unit
        return _dense_solve(problem, parts, gram, slack, right, wanted)

    # One array, for all of it has to be linear where JAX transposes.
    stacked = jnp.concatenate([part for part in right if part is not None], axis=1)
    change = lax.custom_linear_solve(product, stacked, solved, symmetric=True)
    return Point(change[:, :width], -change[:, width:-1] if exact else None, change[:, -1:])


def _dense_solve(problem: RowProblem, parts: tuple, gram: Any, slack: Any, right: Any, wanted: Any) -> Any:
    """Gaussian elimination on the members of each row, some rows at a time, in the smallest of a few sizes."""
    rows, width = right.shape[0], problem.design.shape[1]
    sizes = [width]
    while sizes[0] > 2 * _SMALLEST_SYSTEM:
        sizes.insert(0, -(-sizes[0] // 2))
    tile = int(np.clip(_SYSTEM_BYTES // (right.dtype.itemsize * right.shape[1] ** 2), 1, rows))
    tiles = -(-rows // tile)
    by_row = (*parts, 2.0 * problem.loss_weight[:, None], right, wanted)
    filled = jax.tree.map(lambda x: jnp.pad(x, ((0, tiles * tile - rows), *((0, 0),) * (x.ndim - 1))), by_row)
    split = jax.tree.map(lambda x: x.reshape(tiles, tile, *x.shape[1:]), filled)

    def of_tile(arrays: tuple) -> Any:
        most = jnp.max(jnp.where(arrays[-1], jnp.sum(arrays[2], axis=1), -1))
        eliminated = functools.partial(_eliminated, problem, gram, slack)
        branches: list[Any] = [lambda arrays: arrays[-2], *(functools.partial(eliminated, size) for size in sizes)]
        number = jnp.where(most < 0, 0, 1 + sum((most > size).astype(np.int32) for size in sizes[:-1]))
        return lax.switch(number, branches, arrays)

    return lax.map(of_tile, split).reshape(tiles * tile, -1)[:rows]


def _eliminated(problem: RowProblem, gram: Any, slack: Any, size: int, arrays: tuple) -> Any:
    """The change of a tile of rows whose members fit into systems of `size`."""
    bend, normal, member, binds, unit_of_group, weight, right, _ = arrays
    design, exact = problem.design, problem.exact
    width = design.shape[1]
    upper, below, last = right[:, :width], right[:, width:-1], right[:, -1:]
    dtype = upper.dtype
    if exact:
        system = gather_system(Gram(jnp.zeros((design.shape[1],) * 2, dtype), None), member, bend, size)
        block = system.matrix
    else:
        # Rows share the Gram matrix, each times its own 2λ.
        system = gather_system(Gram(gram, None), member, jnp.zeros_like(bend), size)
        hessian = jnp.where(system.inside[:, :, None], weight[:, :, None] * system.matrix, system.matrix)
        block = hessian + jnp.eye(size, dtype=dtype) * system.pick(bend)[:, None, :]
    if isinstance(problem.penalty, GroupPenalty):
        own, turned = problem.penalty.labels[0][system.chosen], system.pick(unit_of_group)
        same = own[:, :, None] == own[:, None, :]
        curved = system.pick(bend)[:, :, None] * turned[:, :, None] * turned[:, None, :]
        block = block - jnp.where(same, curved, 0.0)
    parts = [block]
    if exact:
        columns = jnp.moveaxis(design[:, system.chosen], 0, 1) * system.inside[:, None, :].astype(dtype)
        parts += [columns]
    edge = system.pick(normal)[:, None, :]
    lower = jnp.concatenate([*parts[1:], edge], axis=1)
    corner = jnp.zeros((lower.shape[0], lower.shape[1], lower.shape[1]), dtype)
    diagonal = jnp.concatenate(
        [jnp.broadcast_to(-slack, (lower.shape[0], below.shape[1])), (~binds).astype(dtype)], axis=1
    )
    corner = corner + jnp.eye(lower.shape[1], dtype=dtype) * diagonal[:, None, :]
    left = jnp.concatenate([block, lower], axis=1)
    matrix = jnp.concatenate([left, jnp.concatenate([lower.transpose(0, 2, 1), corner], axis=1)], axis=2)
    # Symmetric scaling: by the diagonal, or where that is zero by the largest entry.
    unit = jnp.sqrt(jnp.maximum(jnp.abs(jnp.diagonal(matrix, axis1=1, axis2=2)), 0.0))
    unit = jnp.where(unit > 0.0, unit, 1.0)
    # The ridge keeps the elimination finite where a solution is not unique, and picks one of least norm.
    inner = _ridge(dtype) * (jnp.arange(matrix.shape[1]) < size).astype(dtype) * unit**2
    matrix = matrix + jnp.eye(matrix.shape[1], dtype=dtype) * inner[:, None, :]
    scaled = matrix / (unit[:, :, None] * unit[:, None, :])
    largest = jnp.max(jnp.abs(scaled), axis=2)
    unit = unit * jnp.where(largest > 0.0, largest, 1.0)
    scaled = matrix / (unit[:, :, None] * unit[:, None, :])
    picked = jnp.concatenate([system.pick(upper), below, last], axis=1) / unit
    found = jnp.linalg.solve(scaled, picked[:, :, None])[:, :, 0] / unit
    inside = jnp.where(member, system.scatter(found[:, :size], width), upper)
    return jnp.concatenate([inside, found[:, size:]], axis=1)


def _ridge(dtype: Any) -> float:
    """Relative to the diagonal: 1e-11 in float64, 1e-5 in float32."""
    return float(jnp.finfo(dtype).eps) ** 0.7


def polish(problem: RowProblem, gram: Any, weights: Any, dual: Any, wanted: Any, steps: int = 3) -> tuple[Any, Any]:
    """The solution of the equations on the active set of given weights (R, d), and its dual point.

    The steps after the first take the rounding out of it. Where the guess is right it is exact to rounding; if not, the
    gap says so.

    Args:
      wanted: (R,), rows to polish; the others are returned as they are.
    """
    known = active_set(problem, weights)
    exact, linear = problem.exact, problem.penalty.separable
    point = Point(weights, dual if exact else None, jnp.zeros((weights.shape[0], 1), weights.dtype))

    def step(_: Any, point: Point) -> Point:
        active = known if linear else active_set(problem, point.weights)
        change = solve(problem, active, gram, equations(problem, active, point), wanted)
        return jax.tree.map(jnp.subtract, point, change)

    found = fori_loop(steps if linear else _NEWTON_STEPS, step, point, jnp)
    good = wanted[:, None] & jnp.isfinite(found.weights).all(axis=1, keepdims=True)
    weights = jnp.where(good, found.weights, weights)
    return weights, jnp.where(good, found.dual if exact else residual_dual(problem, weights), dual)


def tangents(problem: RowProblem, tangent: Any, weights: Any, dual: Any) -> tuple[Any, Any]:
    """How a solution (R, d) and its dual point (R, m) move with the problem, by the implicit function theorem."""
    # Under `shard_map` JAX cannot lower a linear solve within which an array is told to vary.
    problem, weights, dual = equally_varying((problem, weights, dual))
    active = active_set(problem, weights, matmul(dual, problem.design))
    point = Point(weights, dual if problem.exact else None, None)
    point = point._replace(theta=multiplier(problem, active, point))
    # A mask has no derivative.
    moving, motion = equally_varying(tuple(dataclasses.replace(tree, support=None) for tree in (problem, tangent)))
    _, drift = jax.jvp(lambda problem: equations(problem, active, point), (moving,), (motion,))
    gram = None if problem.exact else matmul(problem.design.T, problem.design)
    every = jnp.ones(weights.shape[0], dtype=bool)
    change = solve(problem, active, gram, jax.tree.map(jnp.negative, drift), every)
    if problem.exact:
        return change.weights, change.dual
    return change.weights, jax.jvp(residual_dual, (moving, weights), (motion, change.weights))[1]
