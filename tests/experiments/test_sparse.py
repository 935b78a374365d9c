"""Ways to sparse models that several experiments share."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import sparse
from simjax.implicit.model import ImplicitModel


def test_pruning_keeps_the_largest_weights():
    rng = np.random.default_rng(1)
    A, B, C, D = (rng.normal(size=shape) for shape in ((3, 3), (3, 2), (2, 3), (2, 2)))
    small = sparse.pruned(ImplicitModel(A, B, C, D), 7)
    assert small.nonzeros == 7
    everything = np.abs(np.concatenate([M.ravel() for M in (A, B, C, D)]))
    kept = np.concatenate([getattr(small, name).ravel() for name in "ABCD"])
    assert np.abs(kept[kept != 0]).min() > np.sort(everything)[-8]
    with pytest.raises(ValueError, match=r"nonzeros must be in 1 … 25, got 26"):
        sparse.pruned(small, 26)
