"""A dual point made feasible: moved or scaled to where g*(Φᵀy) is finite, so that it proves something.

Where h is flat and no ball binds, the point has to be orthogonal to the columns; where h has a bounded slope,
|s_j| ≤ c_j. A point that misses this is scaled, which costs nothing but its length, or, where c_j is next to nothing
against ‖φ_j‖‖y‖ and scaling would leave nothing of it, moved by the least change.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import scipy.linalg

from simjax.rows._qr import ColumnBasis
from simjax.rows.arrays import column_norms
from simjax.rows.conjugate import dual_scaling, flat_coordinates, nearest_in_domain, raised_tilt
from simjax.rows.gathered import project_out
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.own_penalty import traceable
from simjax.rows.penalties import soft
from simjax.rows.problem import RowProblem
from simjax.rows.sparse_design import SparseDesign, fits_as_array

_SWEEPS = 5
# What is left of a demand s_j = 0 after a projection, in units of √m ‖φ_j‖ ‖y‖; a hundred times what it mostly is.
ROUNDING = 1e-13
# The same of one product φ_jᵀy, in units of ‖φ_j‖ ‖y‖: how far inside its domain a slope is moved.
_FEW_PATTERNS = 4  # of flat columns, each of which costs a QR factorisation; more share one Gram matrix
_MARGIN = 4e-16
# Slopes whose domain is below this share of ‖φ_j‖ ‖y‖ are worth a projection.
_NARROW = 1e-6


@dataclasses.dataclass(frozen=True)
class DualPoints:
    """Points y that prove something, one a row.

    Attributes:
      dual: y, (R, m).
      slopes: s = Φᵀy, (R, d), with zeros where s_j = 0 is demanded and holds to rounding.
      scaling: by what y was multiplied, (R, 1).
    """

    dual: np.ndarray
    slopes: np.ndarray
    scaling: np.ndarray


def flat_of(problem: RowProblem) -> np.ndarray:
    """`flat_coordinates` of the rows of a problem, (R, d)."""
    penalty = traceable(problem.penalty)
    flat = flat_coordinates(penalty, problem.bound, (problem.count, problem.width), problem.support)
    return np.asarray(flat)


def scaled_points(problem: RowProblem, dual: np.ndarray) -> DualPoints:
    """The points, projected where the objective is flat or an unpenalised tilt demands it, and scaled elsewhere."""
    flat = flat_of(problem)
    dual = _project_onto_tilt(problem, project_out_flat(problem, dual, flat), flat)
    return _scaled(problem, dual, flat)


def projected_points(problem: RowProblem, dual: np.ndarray) -> DualPoints:
    """The points moved to where every |s_j| ≤ c_j by the least change, as far as some sweeps can; then as above."""
    flat = flat_of(problem)
    dual, members = _project_into_domain(problem, project_out_flat(problem, dual, flat), flat)
    return _scaled(problem, dual, flat | members)


def narrow_rows(problem: RowProblem, points: np.ndarray) -> np.ndarray:
    """Which rows have a slope outside of a domain that is next to nothing against ‖φ_j‖‖y‖, (R,)."""
    slopes = points @ problem.design
    nearest = nearest_in_domain(problem.penalty, problem.bound, slopes, problem.support)
    size = np.abs(nearest)
    if isinstance(problem.penalty, GroupPenalty):  # whose domain is as wide as the group's slopes are together
        size = np.asarray(problem.penalty.to_columns(problem.penalty.norms(nearest)))
    return np.any((nearest != slopes) & (size <= _NARROW * _reach(problem, points)), axis=1)


def _scaled(problem: RowProblem, dual: np.ndarray, moved: np.ndarray) -> DualPoints:
    penalty, bound, mask = problem.penalty, problem.bound, problem.support
    slopes = dual @ problem.design
    if moved.any() or (bound is not None and bound.tilt is not None):
        rounding = ROUNDING * np.sqrt(problem.design.shape[0]) * _reach(problem, dual)
        slopes = _raised(problem, slopes, rounding)
        nearest = nearest_in_domain(penalty, bound, slopes, mask)
        held = moved & (np.abs(nearest) <= rounding) & (np.abs(slopes - nearest) <= rounding)
        slopes = np.where(held, nearest, slopes)
    factor = np.asarray(dual_scaling(penalty, bound, slopes, mask))
    return DualPoints(factor * dual, factor * slopes, factor)


def _reach(problem: RowProblem, dual: np.ndarray) -> np.ndarray:
    """‖φ_j‖ ‖y‖, (R, d): no |s_j| is larger."""
    return np.linalg.norm(dual, axis=1, keepdims=True) * column_norms(problem.design)


def project_out_flat(problem: RowProblem, dual: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """The points made orthogonal to the columns that are `flat`, (R, d), in their row."""
    if not flat.any():
        return dual
    patterns, which = np.unique(flat, axis=0, return_inverse=True)
    which, done = which.reshape(-1), np.zeros(flat.shape[0], dtype=bool)
    if isinstance(problem.design, SparseDesign):
        dual, done = _project_out_sparse(problem.design, dual, flat)
    elif len(patterns) > _FEW_PATTERNS:
        dual, done = project_out(problem.design, problem.design.T @ problem.design, flat, dual)
    else:
        dual = dual.copy()
    if not fits_as_array(problem.design):
        return dual
    for k, pattern in enumerate(patterns):
        rows = (which == k) & ~done
        if pattern.any() and rows.any():
            basis = ColumnBasis.of(problem.design[:, pattern]).basis
            block = dual[rows]
            size = np.linalg.norm(block, axis=1, keepdims=True)
            for _ in range(2):  # a second pass removes the rounding of the first
                block = block - (block @ basis) @ basis.T
            # What is left after full cancellation is rounding: y = 0 is the only feasible point then.
            dual[rows] = np.where(np.linalg.norm(block, axis=1, keepdims=True) > 1e-12 * size, block, 0.0)
    return dual


def _project_out_sparse(design: SparseDesign, dual: np.ndarray, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`project_out` by the Gram matrix of the columns that any row has, where it is smaller than these as an array."""
    used = np.flatnonzero(flat.any(axis=0))
    if used.size > design.shape[0]:
        return dual.copy(), np.zeros(flat.shape[0], dtype=bool)
    columns = design.take_columns(used)
    return project_out(columns, columns.T @ columns, flat[:, used], dual)


def _project_into_domain(problem: RowProblem, dual: np.ndarray, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y moved by the least change that brings the slopes outside of their domain a rounding's width inside it.

    The change is in the span of their columns and of the flat ones, whose slopes stay; a few sweeps catch those that
    leave their domain by it. Returns y and the coordinates that were moved, (R, d).
    """
    dual, members = dual.copy(), np.zeros(flat.shape, dtype=bool)
    if not fits_as_array(problem.design):
        return dual, members
    for _ in range(_SWEEPS):
        slopes = dual @ problem.design
        nearest = nearest_in_domain(problem.penalty, problem.bound, slopes, problem.support)
        reach = _reach(problem, dual)
        outside = ~flat & (np.abs(slopes - nearest) > np.where(members, _MARGIN * reach, 0.0))
        if not outside.any():
            break
        members |= outside
        wanted = soft(nearest, _MARGIN * reach) - slopes
        for row in np.flatnonzero(outside.any(axis=1)):
            chosen = np.flatnonzero(members[row] | flat[row])
            if chosen.size < dual.shape[1]:
                basis = ColumnBasis.of(problem.design[:, chosen])
                right = wanted[row, chosen[basis.chosen]] / basis.norms
                dual[row] += basis.basis @ scipy.linalg.solve_triangular(basis.triangle, right, trans="T")
    return dual, members


def _project_onto_tilt(problem: RowProblem, dual: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """y moved to where an unpenalised tilted coordinate allows what the others demand: s_i/δ_i ≥ (|s_j| − c_j)/ω_j.

    At an optimum these are equalities for all j in the support of w. The least change of y that gives i and the
    coordinates that demand more the same θ, and leaves the slopes of flat ones, is in the span of their columns; a few
    sweeps catch those that come to demand more by it.
    """
    bound = problem.bound
    if bound is None or bound.tilt is None:
        return dual
    penalty: Any = problem.penalty
    shape = (problem.count, problem.width)
    slope, straight = np.broadcast_to(penalty.slope, shape), ~np.broadcast_to(penalty.curved, shape)
    tilt, omegas = np.asarray(bound.tilt), np.broadcast_to(np.asarray(bound.omega), shape)
    tilted = (tilt > 0.0) & np.isfinite(bound.radius) & (slope == 0.0) & straight
    dual = dual.copy()
    for row in np.flatnonzero(tilted.any(axis=1)):
        own = int(np.argmax(tilted[row]))
        omega = omegas[row]
        others = (omega > 0.0) & straight[row]
        if problem.support is not None:
            others = others & problem.support[row]
        members = np.zeros_like(others)
        for _ in range(_SWEEPS):
            slopes = dual[row] @ problem.design
            theta = slopes[own] / tilt[row, own]
            demand = np.where(others, (np.abs(slopes) - slope[row]) / np.where(others, omega, 1.0), -np.inf)
            over = demand > theta
            if not over.any():
                break
            members = members | over
            chosen = np.flatnonzero(members)
            level = 0.5 * (theta + demand[chosen].max())
            wanted = np.sign(slopes[chosen]) * (slope[row, chosen] + omega[chosen] * level) - slopes[chosen]
            still = np.flatnonzero(flat[row])
            wanted = np.concatenate([wanted, [tilt[row, own] * level - slopes[own]], -slopes[still]])
            columns = problem.design[:, np.concatenate([chosen, [own], still])]
            dual[row] += np.linalg.lstsq(columns.T, wanted, rcond=1e-13)[0]
    return dual


def _raised(problem: RowProblem, slopes: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """The slopes, with an unpenalised tilted coordinate raised to what the others demand, if rounding can be why."""
    if problem.bound is None or problem.bound.tilt is None:
        return slopes
    raised = np.asarray(raised_tilt(problem.penalty, problem.bound, slopes, problem.support))  # type: ignore[arg-type]
    return np.where(raised - slopes <= rounding, raised, slopes)
