"""Plain least squares by LAPACK, for rows left open by the batched solve, which squares the condition number."""

from __future__ import annotations

import numpy as np

from simjax._qr import ColumnBasis
from simjax.problem import RowProblem

_REFINEMENTS = 2


def least_squares(problem: RowProblem) -> np.ndarray:
    """min ‖t − Φw‖² on the support of each row, (R, d): QR with column pivoting, one for each pattern of support.

    Columns that depend on others to rounding get zero weights.
    """
    design, targets = problem.design, problem.targets
    weights = np.zeros((problem.rows_count, problem.width))
    support = np.ones(weights.shape, dtype=bool) if problem.support is None else problem.support
    patterns, which = np.unique(support, axis=0, return_inverse=True)
    for k, pattern in enumerate(patterns):
        rows, columns = np.flatnonzero(which.reshape(-1) == k), np.flatnonzero(pattern)
        if columns.size == 0:
            continue
        found = ColumnBasis.of(design[:, columns])
        kept = columns[found.chosen]
        residual = targets[:, rows]
        for _ in range(_REFINEMENTS):
            weights[np.ix_(rows, kept)] += found.coefficients(residual).T
            residual = targets[:, rows] - design[:, kept] @ weights[np.ix_(rows, kept)].T
    return weights
