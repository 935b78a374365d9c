"""Plain least squares by LAPACK, for rows left open by the batched solve, which squares the condition number."""

from __future__ import annotations

import numpy as np

from simjax.rows._qr import ColumnBasis
from simjax.rows.problem import RowProblem

_REFINEMENTS = 2


def least_squares(problem: RowProblem) -> tuple[np.ndarray, np.ndarray]:
    """min ‖t − Φw‖² on the support of each row: QR with column pivoting, one for each pattern of support.

    Returns:
      w, (R, d); columns that depend on others to rounding get zero weights. And t − Φw, (R, m), orthogonal to the
      columns to the rounding of its own size, which may be far below that of t.
    """
    design, targets = problem.design, problem.targets
    weights, residuals = np.zeros((problem.count, problem.width)), targets.T.copy()
    support = np.ones(weights.shape, dtype=bool) if problem.support is None else problem.support
    patterns, which = np.unique(support, axis=0, return_inverse=True)
    for k, pattern in enumerate(patterns):
        rows, columns = np.flatnonzero(which.reshape(-1) == k), np.flatnonzero(pattern)
        if columns.size == 0:
            continue
        found = ColumnBasis.of(design[:, columns])
        kept, residual = columns[found.chosen], targets[:, rows]
        for _ in range(_REFINEMENTS):
            weights[np.ix_(rows, kept)] += found.coefficients(residual).T
            residual = targets[:, rows] - design[:, kept] @ weights[np.ix_(rows, kept)].T
        residuals[rows] = (residual - found.basis @ (found.basis.T @ residual)).T
    return weights, residuals
