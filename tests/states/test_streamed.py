"""Streamed states: what they know, what they refuse, and the same problem whatever the batches."""

import dataclasses

import numpy as np
import pytest
from helpers import generator
from numpy.testing import assert_allclose, assert_array_equal
from streams import arrays_of, assert_same_problem, collect, in_batches

import simjax
from simjax import StreamedStates, stream_states


@pytest.fixture(scope="module")
def states():
    return collect()


@pytest.fixture(scope="module")
def streamed(states):
    return stream_states(in_batches(states))


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
