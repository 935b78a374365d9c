"""What a warning advises about rows that missed their tolerance."""

from __future__ import annotations

import numpy as np
import pytest

import simjax


def test_a_row_that_stalled_is_not_told_to_take_more_passes():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(50, 6))
    X = np.concatenate([X, X + 1e-6 * rng.normal(size=X.shape)], axis=1)
    targets = rng.normal(size=(50, 1))
    with pytest.warns(simjax.ConvergenceWarning, match="more passes would gain nothing") as caught:
        solution = simjax.solve_rows(X, targets, penalty=simjax.L1(1e-9), tol=1e-12)
    assert solution.passes[0] < 20_000
    assert solution.status.tolist() == ["STALLED"]
    assert "max_iters" not in str(caught[0].message)
