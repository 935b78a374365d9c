"""Statistics of samples: compressed, they are the same problem."""

import re
import tracemalloc

import numpy as np
import pytest
from helpers import generator
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from streams import filled

from simjax import SufficientStatistics


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(1, 60),
    width=st.integers(1, 12),
    rows=st.integers(1, 4),
    size=st.integers(1, 25),
    rank=st.integers(1, 12),
    keep=st.integers(1, 12),
)
def test_the_loss_is_the_same_for_all_weights(seed, m, width, rows, size, rank, keep):
    rng = generator(seed)
    columns = np.geomspace(1.0, 1e-6, width)
    design = rng.normal(size=(m, rank)) @ rng.normal(size=(rank, width)) * columns
    targets = rng.normal(size=(m, rows))
    statistics = filled(design, targets, size)
    keep = min(keep, width)
    small, small_targets = statistics.compressed(keep)
    assert statistics.m == m
    assert small.shape == (len(small), keep)
    assert len(small) <= min(m, keep, rank) + 1
    assert not small[-1].any()
    for scale in (0.0, 1.0, 100.0):
        weights = scale * rng.normal(size=(keep, rows)) / columns[:keep, None]
        loss = np.linalg.norm(targets - design[:, :keep] @ weights, axis=0)
        size_of = np.linalg.norm(targets, axis=0) + np.linalg.norm(design[:, :keep], axis=0) @ np.abs(weights)
        assert np.all(np.abs(np.linalg.norm(small_targets - small @ weights, axis=0) - loss) <= 1e-14 * size_of)


def test_a_small_residual_keeps_its_digits():
    """‖t − Φw‖ = 1e-8 ‖t‖: all digits of it are below the rounding of ΦᵀΦ and ‖t‖²."""
    rng = generator(0)
    design, weights = rng.normal(size=(2000, 20)), rng.normal(size=(20, 3))
    targets = design @ weights
    targets += 1e-8 * rng.normal(size=targets.shape)
    loss = np.sum((targets - design @ weights) ** 2, axis=0)
    small, small_targets = filled(design, targets, 100).compressed()
    assert_allclose(np.sum((small_targets - small @ weights) ** 2, axis=0), loss, rtol=1e-6)
    quadratic = np.sum(weights * (design.T @ design @ weights - 2.0 * design.T @ targets), axis=0)
    assert np.max(np.abs(quadratic + np.sum(targets**2, axis=0) - loss) / loss) > 0.1


def test_dependent_columns_stay_dependent_over_many_batches():
    """A column that repeats others must not come back as a direction of its own, made of 500 batches' rounding."""
    rng = generator(0)
    part = rng.normal(size=(1500, 6))
    design = np.concatenate([part, part @ rng.normal(size=(6, 3)), np.zeros((1500, 1))], axis=1)
    small, _ = filled(design, rng.normal(size=(1500, 2)), 3).compressed()
    assert small.shape == (7, 10)
    assert_array_equal(small[:, -1], 0.0)
    singular = np.linalg.svd(small, compute_uv=False)
    assert np.all(singular[6:] <= 1e-15 * singular[0])


def test_a_zero_row_and_a_zero_design():
    design, targets = generator(0).normal(size=(30, 4)), np.zeros((30, 2))
    targets[:, 0] = design[:, 1]
    small, small_targets = filled(design, targets).compressed()
    assert_array_equal(small_targets[:, 1], 0.0)
    assert abs(small_targets[-1, 0]) <= 1e-14 * np.linalg.norm(targets[:, 0])
    small, small_targets = filled(np.zeros((30, 4)), design[:, :2]).compressed()
    assert_array_equal(small, np.zeros((1, 4)))
    assert_allclose(small_targets[0], np.linalg.norm(design[:, :2], axis=0), rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32, bool])
def test_batches_of_any_real_type(dtype):
    rng = generator(0)
    design, targets = (rng.uniform(0, 4, size=(50, k)).astype(dtype) for k in (5, 2))
    exact = filled(design.astype(np.float64), targets.astype(np.float64))
    for one, other in zip(filled(design, targets).compressed(), exact.compressed()):
        assert one.dtype == np.float64
        assert_array_equal(one, other)


def test_a_refused_batch_leaves_the_statistics_alone():
    rng = generator(0)
    statistics = filled(rng.normal(size=(20, 3)), rng.normal(size=(20, 2)))
    before = statistics.compressed()
    bad = rng.normal(size=(5000, 2))
    bad[-1, 0] = np.nan
    for design, targets, match in (
        (np.ones((5000, 3)), bad, "targets must be finite"),
        (np.full((4, 3), np.inf), np.ones((4, 2)), "design must be finite"),
        (np.ones((4, 2)), np.ones((4, 2)), "design must have width = 3 columns"),
        (np.ones((4, 3)), np.ones((4, 3)), re.escape("targets must be (4, 2)")),
        (np.ones((4, 3)), np.ones((5, 2)), re.escape("targets must be (4, 2)")),
        (np.ones(3), np.ones((1, 2)), "design must be a 2-D array"),
        (np.ones((0, 3)), np.ones((0, 2)), "design must not be empty"),
    ):
        with pytest.raises(ValueError, match=match):
            statistics.update(design, targets)
    with pytest.raises(TypeError, match="design must be an array of real numbers"):
        statistics.update([["a", "b", "c"]], np.ones((1, 2)))
    assert statistics.m == 20
    for one, other in zip(before, statistics.compressed()):
        assert_array_equal(one, other)


def test_a_design_without_rows():
    design = generator(0).normal(size=(30, 4))
    statistics = SufficientStatistics(4, 0)
    statistics.update(design[:20])
    statistics.update(design[20:], sample_weight=np.full(10, 2.0))
    small, targets = statistics.compressed()
    assert targets.shape == (5, 0)
    twice = np.concatenate([design, design[20:]])
    assert_allclose(small.T @ small, twice.T @ twice, atol=1e-13)
    with pytest.raises(ValueError, match=re.escape("targets must be (30, 0)")):
        statistics.update(design, design)


def test_bad_sizes():
    with pytest.raises(ValueError, match="width"):
        SufficientStatistics(0, 1)
    with pytest.raises(TypeError, match="rows"):
        SufficientStatistics(1, 1.0)
    with pytest.raises(ValueError, match="rows"):
        SufficientStatistics(1, -1)
    statistics = SufficientStatistics(3, 1)
    with pytest.raises(ValueError, match="nothing to compress"):
        statistics.compressed()
    statistics.update(np.ones((2, 3)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="width must be at most 3"):
        statistics.compressed(4)


def test_memory_does_not_grow_with_the_samples():
    """200,000 samples of 20 + 3 numbers are 37 MB."""
    rng = generator(0)
    statistics = SufficientStatistics(20, 3)
    tracemalloc.start()
    try:
        for _ in range(50):
            statistics.update(rng.random((4000, 20)), rng.random((4000, 3)))
        statistics.compressed()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert statistics.m == 200_000
    assert peak < 5e6
