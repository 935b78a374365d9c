"""Proofs that a row under exact matching has no solution: rays of its dual, for the certificate to verify.

Three ways to be infeasible, three rays. Inconsistent equations: the part of t outside the range of the columns in the
support. A ball too small: with v the smallest ball norm of any solution of Φw = t, the y that proves v > κ. A box too
small, with a ball or without: y = t − Φw for the w inside with the least ‖t − Φw‖, for which yᵀΦv ≤ yᵀΦw = yᵀt − ‖y‖²
for every v inside. The norm of a Metzler row counts one coordinate with its sign and is no penalty, so that only the
first kind is proved of such rows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from simjax.rows.arrays import column_norms
from simjax.rows.boxed import box_of
from simjax.rows.certificate import infeasibility_margin
from simjax.rows.penalties import PiecewisePenalty
from simjax.rows.problem import RowProblem

# Inconsistent equations count as such from this relative residual on, that is, above the feasibility asked for.
RESIDUAL_TOL = 1e-8
# The margin a ray must have: above the rounding of the products that verify it.
MARGIN_TOL = 1e-12


def inconsistency_rays(problem: RowProblem) -> np.ndarray:
    """T minus its projection on the columns in the support, (R, m); zero where that is below `RESIDUAL_TOL`."""
    rays = np.zeros((problem.count, problem.design.shape[0]))
    support = problem.support
    if support is None:
        support = np.ones((problem.count, problem.width), dtype=bool)
    patterns, which = np.unique(support, axis=0, return_inverse=True)
    norms = column_norms(problem.design)
    for number, pattern in enumerate(patterns):
        rows = np.flatnonzero(which.reshape(-1) == number)
        columns = problem.design[:, pattern] / np.where(norms > 0.0, norms, 1.0)[pattern]
        left, singular, _ = np.linalg.svd(columns, full_matrices=False)
        basis = left[:, singular > 1e-13 * singular.max(initial=0.0)]
        residual = problem.targets[:, rows].T
        size = np.linalg.norm(residual, axis=1, keepdims=True)
        for _ in range(2):  # a second pass removes the rounding of the first
            residual = residual - (residual @ basis) @ basis.T
        inconsistent = np.linalg.norm(residual, axis=1, keepdims=True) > RESIDUAL_TOL * size
        rays[rows] = np.where(inconsistent, residual, 0.0)
    return rays


def smallest_ball(problem: RowProblem) -> RowProblem:
    """Min Σ ω_j|w_j| s.t. Φw = t, w in the support: its optimum is the smallest κ for which the row is feasible."""
    assert problem.bound is not None
    slope = np.where(np.isfinite(problem.bound.radius), problem.bound.omega, 0.0)
    zero = np.zeros((1, 1))
    return dataclasses.replace(problem, penalty=PiecewisePenalty(slope, zero, zero), bound=None)


def nearest_fit(problem: RowProblem) -> RowProblem:
    """Min ½‖t − Φw‖², w in box, ball and support: its dual point y is t − Φw, 0 where the row is feasible."""
    box = box_of(problem.penalty)
    assert box is not None
    aimless = dataclasses.replace(box, base=PiecewisePenalty(*np.zeros((3, 1, 1))))
    return dataclasses.replace(
        problem, penalty=aimless, matching="penalty", loss_weight=np.full_like(problem.loss_weight, 0.5)
    )


def proved(problem: RowProblem, rays: np.ndarray) -> np.ndarray:
    """Which rays the certificate accepts, (R,)."""
    return infeasibility_margin(problem, rays) > MARGIN_TOL
