"""The methods as an engine runs them on a tile of rows: what all rows share, then what is of each row."""

from __future__ import annotations

from typing import Any

import numpy as np

from simjax.rows.boxed import box_of, unboxed
from simjax.rows.solvers import augmented_lagrangian, dual_newton, interior_point
from simjax.rows.solvers.canonical import CanonicalRows, judged_inside
from simjax.rows.solvers.crossover import crossover
from simjax.rows.solvers.factor import Factorisation
from simjax.rows.solvers.linear import Gram
from simjax.rows.solvers.polish import polish
from simjax.rows.solvers.working_set import Columns, RowTerms, solve_sparse_rows

_GRAM_BYTES = 2**30  # a larger KᵀK is not kept


def on_working_sets(columns: Columns, rows: Any, start: np.ndarray, *, tol: float) -> tuple:
    bound, penalty = rows.bound, rows.penalty
    found = solve_sparse_rows(
        columns,
        rows.targets,
        RowTerms(
            penalty.slope,
            penalty.curvature,
            penalty.knot,
            None if bound is None else bound.omega,
            None if bound is None else bound.radius,
            rows.support,
        ),
        start=start if start.any() else None,
        tol=tol,
    )
    return found.weights, found.residuals, found.gap


def by_dual_newton(
    shared: dual_newton.InvertibleGram, factorisation: Factorisation, rows: Any, start: np.ndarray | None
) -> tuple:
    bound, penalty = rows.bound, rows.penalty
    limit = None if bound is None else (bound.omega, bound.radius[:, 0])
    terms = rows.targets, penalty.slope, penalty.curvature, penalty.knot, limit, rows.support
    weights, steps, ended = dual_newton.solve(shared, *terms, start)
    return (*judged_inside(factorisation, rows, weights, None), steps, ended)


def by_interior_point(
    transpose: np.ndarray, gram: np.ndarray | None, factorisation: Factorisation, rows: Any, *, tol: float
) -> tuple:
    """Interior point and crossover: weights, dual points, gaps, and the steps each row took."""
    bound, penalty, box = rows.bound, unboxed(rows.penalty), box_of(rows.penalty)
    shape = rows.targets.shape[0], transpose.shape[0]
    stated = (
        transpose,
        gram,
        rows.targets,
        penalty.slope,
        penalty.curvature,
        penalty.knot,
        None if bound is None else (bound.omega, bound.tilt, bound.radius[:, 0]),
        rows.support,
    )
    limits = None if box is None else (np.broadcast_to(box.lower, shape), np.broadcast_to(box.upper, shape))
    start = interior_point.solve(*stated, box=limits, exact=rows.exact, tol=0.1 * tol, offset=rows.offset[:, 0])

    def judged(index: np.ndarray, weights: np.ndarray, dual: np.ndarray) -> tuple:
        return judged_inside(factorisation, rows.take_rows(index), weights, dual)

    return (*crossover(*stated, start, judged, box=limits, exact=rows.exact, tol=tol), start.iterations)


def by_augmented_lagrangian(
    factorisation: Factorisation,
    gram: Gram,
    rows: CanonicalRows,
    start: tuple[np.ndarray, np.ndarray],
    *,
    tol: float,
) -> tuple:
    """Weights, dual points, gaps, and the Newton steps each row took, from weights and dual points to begin with."""

    def judged(index: np.ndarray, weights: np.ndarray, dual: np.ndarray) -> tuple:
        return judged_inside(factorisation, rows.take_rows(index), weights, dual)

    return augmented_lagrangian.solve(factorisation, gram, rows, *start, judged, tol=tol)


def gram_of(factorisation: Factorisation, unit: float = 1.0) -> Gram:
    """KᵀK = V S² Vᵀ of K times `unit`; K itself where d² numbers are too many."""
    factor = (np.asarray(factorisation.basis) * (unit * np.asarray(factorisation.singular_values))).T
    if 8 * factor.shape[1] ** 2 > _GRAM_BYTES:
        return Gram(None, factor)
    return Gram(factor.T @ factor, None)


def polished(factorisation: Factorisation, gram: Gram, rows: CanonicalRows, guess: tuple, *, size: int) -> tuple:
    return (polish(factorisation, gram, rows, guess[0], size=size),)
