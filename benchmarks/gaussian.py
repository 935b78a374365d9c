"""Sparse rows over Gaussian designs, and a script that solves some of them: `python -m benchmarks.gaussian`.

It imports what that script needs and no more, so that its process can be timed from its start.
"""

from __future__ import annotations

import numpy as np

import simjax

# Samples, columns, rows, nonzeros of each truth, α for λ = ½.
SPARSE = ((200, 300, 50, 9, 10.0), (1000, 5000, 40, 40, 40.0), (2000, 1000, 100, 25, 60.0))


def sparse_rows(m: int, d: int, rows: int, nonzeros: int) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian design (m, d) and targets (m, rows) of sparse truths with noise."""
    rng = np.random.default_rng(0)
    design, truth = rng.normal(size=(m, d)), np.zeros((rows, d))
    for row in truth:
        row[rng.choice(d, nonzeros, replace=False)] = rng.normal(size=nonzeros)
    return design, design @ truth.T + 0.1 * rng.normal(size=(m, rows))


if __name__ == "__main__":
    *shape, alpha = SPARSE[0]
    solution = simjax.solve_rows(*sparse_rows(*shape), loss_weight=0.5, penalty=simjax.L1(alpha))
    assert solution.converged
    print(solution.summary())
