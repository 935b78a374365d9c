"""Projections onto patterns: the best of all supports that are allowed."""

import itertools

import numpy as np
from helpers import generator
from hypothesis import given, settings
from hypothesis import strategies as st

from simjax.pruning.patterns import Pattern


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(["unstructured", "1:2", "2:4", "3:4", "rows"]),
    sparsity=st.sampled_from([0.0, 0.25, 0.5, 0.7, 0.9]),
    ties=st.booleans(),
)
def test_the_projection_is_the_best_support_that_is_allowed(seed, name, sparsity, ties):
    """Against all supports of 3 × 4 weights; with many equal scores, too."""
    scores = generator(seed).integers(0, 4, (3, 4)).astype(float) if ties else generator(seed).random((3, 4))
    if ":" in name:
        n, m = map(int, name.split(":"))
        sparsity = max(sparsity, 1.0 - n / m)
    pattern = Pattern.make(name, sparsity, (3, 4))
    support = pattern.project(scores)
    assert support.dtype == bool
    bits = np.array(list(itertools.product([False, True], repeat=12))).reshape(-1, 3, 4)
    if name == "rows":
        allowed = np.all(bits == bits[:, :, :1], axis=(1, 2)) & (bits[:, :, 0].sum(axis=1) <= pattern.kept)
    else:
        allowed = bits.sum(axis=(1, 2)) <= pattern.kept
    if ":" in name:
        allowed &= np.all(bits.reshape(len(bits), -1, m).sum(axis=2) <= n, axis=1)
    assert allowed[np.all(bits == support, axis=(1, 2))].all()
    assert np.isclose(scores[support].sum(), (bits[allowed] * scores).sum(axis=(1, 2)).max())
    assert support.sum() == bits[allowed].sum(axis=(1, 2)).max()


def test_sparsities_that_are_whole_numbers_of_weights_are_met():
    for count in range(1, 40):
        for kept in range(1, count + 1):
            assert Pattern.make("unstructured", 1.0 - kept / count, (1, count)).kept == kept
