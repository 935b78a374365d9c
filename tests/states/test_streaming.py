"""Streaming: compressed samples are the same problem, fits from them are the same fits, and a second pass agrees."""

import dataclasses
import re
import tracemalloc

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import ByHand, generator
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import simjax
from simjax import StreamedStates, SufficientStatistics, recertify, stream_states
from simjax.nn import MLP


def collect(m=300, *, use_bias=False, seed=0):
    """States of 5 + 7 hidden units on 10 inputs."""
    network = MLP((10, 7, 5, 3), use_bias=use_bias, rngs=nnx.Rngs(seed))
    if use_bias:
        for _, layer in nnx.iter_graph(network):
            if isinstance(layer, nnx.Linear):
                layer.bias[...] = 0.1 * jax.numpy.arange(layer.out_features, dtype=np.float32)
    return simjax.collect_states(network, generator(seed).random((m, 10)))


def in_batches(states, size=64):
    return (states.subset(np.arange(i, min(i + size, states.m))) for i in range(0, states.m, size))


def arrays_of(states):
    return states.inputs, states.preactivations, states.activations, states.outputs


def noisy(states, noise):
    """The same states with outputs that no weights explain, and without their baseline."""
    outputs = states.outputs + noise * generator(1).normal(size=states.outputs.shape)
    return simjax.States(states.inputs, states.preactivations, states.activations, outputs)


def filled(design, targets, size=7):
    statistics = SufficientStatistics(design.shape[1], targets.shape[1])
    for start in range(0, len(design), size):
        statistics.update(design[start : start + size], targets[start : start + size])
    return statistics


def assert_same_problem(one, other):
    """Two pairs of design and targets have the same inner products of columns."""
    one, other = np.hstack(one), np.hstack(other)
    norms = np.linalg.norm(other, axis=0)
    assert np.all(np.abs(one.T @ one - other.T @ other) <= 1e-12 * norms[:, None] * norms)


@pytest.fixture(scope="module")
def states():
    return collect()


@pytest.fixture(scope="module")
def streamed(states):
    return stream_states(in_batches(states))


# --- Compression -------------------------------------------------------------------------------------------------


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


def test_bad_sizes():
    with pytest.raises(ValueError, match="width"):
        SufficientStatistics(0, 1)
    with pytest.raises(TypeError, match="rows"):
        SufficientStatistics(1, 1.0)
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


# --- Streamed states ---------------------------------------------------------------------------------------------


def test_streamed_states_know_what_states_know(states, streamed):
    for name in ("m", "n", "p", "q", "activation", "layer_sizes"):
        assert getattr(streamed, name) == getattr(states, name)
    assert_array_equal(streamed.baseline.A, states.baseline.A)
    assert repr(streamed) == repr(states).replace("States", "StreamedStates")
    assert "m=300" in repr(streamed.statistics)
    for kappa in (0.99, 0.3, None):
        assert_array_equal(streamed.scaling("auto", kappa), states.scaling("auto", kappa))
    with pytest.raises(ValueError, match="kappa"):
        streamed.scaling("inner", 2.0)
    design = np.hstack([states.activations, states.inputs, np.ones((states.m, 1))])
    for intercept in (False, True):
        part = design[:, : states.n + states.p + intercept]
        rank = np.linalg.matrix_rank(part)
        assert streamed.compressed(intercept)[0].shape == (rank + 1, part.shape[1])
    assert rank < part.shape[1]  # units that are always on or always off


def test_rescaled_streams_are_streams_of_rescaled_states(states, streamed):
    scale = np.linspace(0.5, 2.0, states.n)
    one, other = streamed.rescaled(scale), stream_states(in_batches(states.rescaled(scale)))
    assert_allclose(one.baseline.A, other.baseline.A)
    for intercept in (False, True):
        assert_same_problem(one.compressed(intercept), other.compressed(intercept))
    with pytest.raises(ValueError, match="scale"):
        streamed.rescaled(-scale)


def test_a_generator_is_gone_through_once(states):
    seen = []

    def batches():
        for batch in in_batches(states, 100):
            seen.append(batch.m)
            yield batch

    stream = batches()
    assert stream_states(stream).m == 300
    assert seen == [100, 100, 100]
    assert next(stream, None) is None


def test_whatever_the_batches_the_problem_is_the_same(states, streamed):
    for batches in ([states], in_batches(states, 1), list(in_batches(states, 299))):
        assert_same_problem(stream_states(batches).compressed(), streamed.compressed())


class SlicedOnly:
    """An array that cannot be taken whole, as a data set in a file: slices only, and it keeps count."""

    def __init__(self, array):
        self.array, self.shape, self.read = array, array.shape, []

    def __getitem__(self, part):
        assert isinstance(part, slice)
        values = self.array[part]
        self.read.append(len(values))
        return values


def test_arrays_are_read_batch_by_batch(states, streamed):
    arrays = [SlicedOnly(array) for array in arrays_of(states)]
    read = StreamedStates.from_arrays(*arrays, layer_sizes=states.layer_sizes, baseline=states.baseline, batch_size=128)
    assert all(array.read == [128, 128, 44] for array in arrays)
    assert read.layer_sizes == states.layer_sizes
    assert_same_problem(read.compressed(), streamed.compressed())


def test_memory_maps_of_several_types(tmp_path):
    rng = generator(0)
    inputs = rng.integers(0, 4, size=(90, 4)).astype(np.uint8)
    preactivations = rng.normal(size=(90, 3)).astype(np.float32)
    arrays = {
        "inputs": inputs,
        "preactivations": preactivations,
        "activations": np.maximum(preactivations, 0.0),
        "outputs": rng.normal(size=(90, 2)),
    }
    mapped = {}
    for name, array in arrays.items():
        mapped[name] = np.memmap(tmp_path / name, dtype=array.dtype, mode="w+", shape=array.shape)
        mapped[name][:] = array
    read = StreamedStates.from_arrays(**mapped, batch_size=40)
    whole = stream_states([simjax.States(**arrays)])
    assert_same_problem(read.compressed(True), whole.compressed(True))
    lists = StreamedStates.from_arrays(**{name: array.tolist() for name, array in arrays.items()})
    assert (lists.m, lists.n, lists.p, lists.q) == (90, 3, 4, 2)


def test_batches_that_do_not_belong_together(states):
    first = states.subset(50)
    unknown = dataclasses.replace(first, baseline=None)
    no_layers = dataclasses.replace(unknown, layer_sizes=None)
    other_layers = dataclasses.replace(unknown, layer_sizes=(5, 7))
    fewer = simjax.States(first.inputs[:, :4], first.preactivations, first.activations, first.outputs)
    for one, two, match in (
        (first, unknown, "batch 1 has another baseline"),
        (first, collect(20, seed=1), "batch 1 has another baseline"),
        (unknown, no_layers, "layer_sizes"),
        (unknown, other_layers, "layer_sizes"),
        (no_layers, fewer, "batch 1 has p = 4, batch 0 has 10"),
    ):
        with pytest.raises(ValueError, match=match):
            stream_states([one, two])
    with pytest.raises(ValueError, match="at least one batch"):
        stream_states([])
    with pytest.raises(TypeError, match=r"batches must be an iterable of simjax\.States, got States"):
        stream_states(first)
    with pytest.raises(TypeError, match="got ndarray as batch 1"):
        stream_states([first, first.inputs])


def test_bad_arrays(states):
    U, Z, X, Y = arrays_of(states)
    nan, wrong = U.copy(), X.copy()
    nan[200, 3], wrong[299, 0] = np.nan, 7.0
    for arrays, options, match in (
        ((nan, Z, X, Y), {"batch_size": 100}, "samples 200 … 299: inputs must be finite"),
        ((U, Z, wrong, Y), {"batch_size": 100}, "samples 200 … 299: activations must be φ"),
        ((U[:-1], Z, X, Y), {}, "preactivations has 300 rows, but inputs has m = 299"),
        ((U, Z, X, Y[:, 0]), {}, "outputs must be a 2-D array"),
        ((U[:0], Z[:0], X[:0], Y[:0]), {}, "inputs must not be empty"),
        ((U, Z, X, Y), {"batch_size": 0}, "batch_size"),
        ((U, Z, X, Y), {"activation": "cube"}, "cube"),
        ((U, Z, X, Y), {"layer_sizes": (1, 2)}, "layer_sizes"),
    ):
        with pytest.raises(ValueError, match=match):
            StreamedStates.from_arrays(*arrays, **options)


# --- Fits --------------------------------------------------------------------------------------------------------


N, P, Q = 12, 10, 3

OPTIONS = {
    "defaults": {},
    "l1, feed-forward, intercept": {"objective": "l1", "support": "feedforward", "fit_intercept": True},
    "elastic net, full, rescaled, mean": {
        "objective": "elastic_net",
        "alpha": 1e-5,
        "support": "full",
        "units": "rescaled",
        "kappa": 0.5,
        "reduction": "mean",
    },
    "ridge, mask, no ball": {"objective": "ridge", "support": generator(3).random((N, N + P)) < 0.6, "kappa": None},
    "least squares, not rescaled": {"objective": "least_squares", "rescale": "none"},
    "debiased": {"objective": "l1", "alpha": 0.1, "refit": "support"},
    "a penalty of one's own": {"objective": ByHand(simjax.L1(0.3)), "rescale": "inner"},
    "weights per row": {"objective": "l1", "alpha": generator(2).uniform(1e-3, 1e-2, (N + Q, N + P))},
    "admm": {"objective": "l1", "alpha": 1e-2, "solver": "admm"},
    "exact": {"objective": "l1", "matching": "exact"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_a_fit_is_the_fit_in_memory(states, streamed, name):
    """And the pass over the samples says the same of it as `certify` does with the samples in memory."""
    options = OPTIONS[name]
    whole, fitted = simjax.fit(states, **options), simjax.fit(streamed, **options)
    assert fitted.converged
    assert fitted.settings == whole.settings
    problem = whole.solutions[-1].problem
    floor = 0.0 if problem.exact else 1e-12 * problem.loss_weight * np.sum(problem.targets**2, axis=0)
    if "refit" not in options:  # supports found by two solves may differ in weights that hardly matter
        one, other = whole.certificate, fitted.certificate
        size = np.maximum(one.objective, floor)
        assert np.all(np.abs(one.objective - other.objective) <= one.gap + other.gap + 1e-11 * size)
        problem_of_fit = problem
    else:
        problem_of_fit = dataclasses.replace(problem, support=fitted.solutions[-1].problem.support)
    # The same weights have the same objective on the samples themselves.
    again = simjax.certify(problem_of_fit, fitted.weights)
    size = np.maximum(again.objective, floor)
    assert np.all(np.abs(again.objective - fitted.certificate.objective) <= 1e-11 * size)
    assert fitted.certificate.dual.shape == (states.n + states.q, len(fitted.solutions[-1].problem.design))

    second = recertify(fitted, in_batches(states, 77))
    lifted = second.combination[:, :-1] @ problem.design.T + second.combination[:, -1:] * problem.targets.T
    in_memory = simjax.certify(problem_of_fit, fitted.weights, [lifted])
    assert np.all(second.gap >= 0.0)
    assert np.all(second.relative_gap <= 1e-6)
    for one, other in (
        (second.objective, in_memory.objective),
        (second.dual_objective, in_memory.dual_objective),
        (second.gap, in_memory.gap),
    ):
        assert np.all(np.abs(one - other) <= 1e-9 * size)
    assert_allclose(second.infeasibility, in_memory.infeasibility, atol=1e-12)


@pytest.mark.slow
def test_to_nine_digits_where_the_problem_has_them():
    """m = 2,000, d = 30, well-conditioned, with residuals."""
    rng = generator(4)
    inputs, preactivations = rng.normal(size=(2000, 18)), rng.normal(size=(2000, 12))
    states = simjax.States(inputs, preactivations, np.tanh(preactivations), rng.normal(size=(2000, 2)), "tanh")
    options = {"objective": "l1", "alpha": 1.0, "kappa": 0.3, "tol": 1e-10}
    whole, fitted = simjax.fit(states, **options), simjax.fit(stream_states(in_batches(states, 256)), **options)
    assert whole.converged
    assert fitted.converged
    assert_allclose(fitted.certificate.objective, whole.certificate.objective, rtol=1e-9)
    assert_allclose(fitted.weights, whole.weights, atol=1e-5)
    second = recertify(fitted, in_batches(states, 500))
    assert_allclose(second.dual_objective, whole.certificate.objective, rtol=1e-9)


@pytest.mark.parametrize("noise", [1e-6, 1e-3])
def test_a_second_pass_proves_least_squares_with_small_residuals(states, noise):
    """The dual point has to be orthogonal to the free columns, to the rounding of a small y, not of a large t."""
    changed = noisy(states, noise)
    fitted = simjax.fit(stream_states(in_batches(changed)), "least_squares", kappa=None)
    assert fitted.converged
    second = recertify(fitted, in_batches(changed, 50))
    assert np.max(second.relative_gap) <= 1e-6
    design = np.hstack([changed.activations, changed.inputs])
    best = np.linalg.lstsq(design, changed.outputs, rcond=1e-12)[0]
    loss = 0.1 * np.sum((changed.outputs - design @ best) ** 2, axis=0)
    assert_allclose(second.objective[-states.q :], loss, rtol=1e-6)
    assert_allclose(second.dual_objective[-states.q :], loss, rtol=1e-6)


@pytest.mark.slow
def test_a_second_pass_does_not_take_the_fit_at_its_word(states, streamed):
    """Other weights, or other data, get the gap they deserve."""
    fitted = simjax.fit(streamed, "l1", alpha=1e-2)
    worse = dataclasses.replace(fitted, weights=0.9 * fitted.weights)
    problem = simjax.fit(states, "l1", alpha=1e-2).solutions[-1].problem
    second = recertify(worse, [states])
    assert_allclose(second.objective, simjax.certify(problem, worse.weights).objective, rtol=1e-12)
    assert np.all(second.relative_gap > 1e-3)
    assert np.all(second.dual_objective <= fitted.certificate.objective)
    elsewhere = collect(200, seed=5)
    foreign = recertify(fitted, [dataclasses.replace(elsewhere, baseline=None)])
    optimum = simjax.fit(dataclasses.replace(elsewhere, baseline=None), "l1", alpha=1e-2, kappa=None)
    assert np.all(foreign.dual_objective[-3:] <= optimum.certificate.objective[-3:] * (1.0 + 1e-9))
    assert not np.any(foreign.relative_gap <= 1e-6)


@pytest.mark.slow
def test_recertify_serves_fits_in_memory_too(states):
    fitted = simjax.fit(states, "l1", alpha=1e-2)
    second = recertify(fitted, in_batches(states))
    assert np.max(second.relative_gap) <= 1e-6
    assert_allclose(second.objective, fitted.certificate.objective, rtol=1e-12)


def test_recertify_refuses_what_it_cannot_prove(states, streamed):
    fitted = simjax.fit(streamed, "l1", alpha=1e-2)
    with pytest.raises(TypeError, match="result must be a FitResult"):
        recertify(fitted.model, [states])
    with pytest.raises(ValueError, match="do not belong together"):
        recertify(fitted, [simjax.States(states.inputs[:, :3], *arrays_of(states)[1:])])
    with pytest.raises(ValueError, match="at least one batch"):
        recertify(fitted, [])
    with pytest.raises(ValueError, match="refit='outputs'"):
        recertify(simjax.fit(states, "l1", alpha=1e-2, refit="outputs"), [states])


def test_regenerated_outputs_need_the_inputs(streamed):
    for refit in ("outputs", ("support", "outputs")):
        with pytest.raises(ValueError, match="refit='outputs' needs the inputs of every sample"):
            simjax.fit(streamed, refit=refit)


def test_the_intercept_carries_the_biases():
    biased = collect(200, use_bias=True)
    fitted = simjax.fit(
        stream_states(in_batches(biased)), "least_squares", support="feedforward", kappa=None, fit_intercept=True
    )
    assert fitted.converged
    assert_allclose(fitted.model(biased.inputs), biased.outputs, atol=1e-9)


@pytest.mark.slow
def test_fewer_samples_than_coordinates_dead_units_and_constant_outputs():
    rng = generator(3)
    inputs = rng.random((9, 8))
    preactivations = inputs @ rng.normal(size=(8, 5))
    preactivations[:, 1] = -1.0 - inputs[:, 0]
    preactivations[:, 2] = 0.0
    states = simjax.States(inputs, preactivations, np.maximum(preactivations, 0.0), np.ones((9, 1)))
    fitted = simjax.fit(stream_states(in_batches(states, 4)), alpha=1e-2)
    assert fitted.converged
    assert not fitted.weights[2].any()
    assert_array_equal(fitted.certificate.objective[2], 0.0)
    assert np.max(recertify(fitted, in_batches(states, 5)).relative_gap) <= 1e-6


def test_oracles_and_saved_models_work_on_the_compressed_samples(states, streamed):
    pytest.importorskip("clarabel")
    fitted = simjax.fit(streamed, "l1", alpha=1e-2)
    assert fitted.verify(rows=3).ok
    assert simjax.verify_model(fitted.model, streamed, rows=3).ok
    assert simjax.verify_model(fitted.model, states, rows=3).ok
