"""`prune` with a folder of finished layers: it goes on where it was stopped, and takes nothing that is not its own."""

from __future__ import annotations

import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import simjax
from simjax.pruning import layer as pruning_layer
from tests.helpers import generator


def network() -> nnx.Module:
    widths = [(6, 12), (12, 8), (8, 3)]
    layers = [nnx.Linear(*width, rngs=nnx.Rngs(number)) for number, width in enumerate(widths)]
    return nnx.Sequential(layers[0], nnx.relu, layers[1], nnx.relu, layers[2])


INPUTS = generator(0).normal(size=(80, 6)).astype(np.float32)


@pytest.fixture
def searched(monkeypatch):
    """The shapes of the layers whose support was searched for."""
    found = []
    make = pruning_layer.CardinalityProblem.make

    def told(problem):
        found.append(problem.weight.shape)
        return make(problem)

    monkeypatch.setattr(pruning_layer.CardinalityProblem, "make", told)
    return found


def assert_same(one: simjax.PrunedNetwork, other: simjax.PrunedNetwork) -> None:
    """To the bit."""
    assert list(one.layers) == list(other.layers)
    for name, layer in one.layers.items():
        for part, like in zip(layer.parts, other.layers[name].parts, strict=True):
            for field in ("weight", "bias", "support", "row_errors"):
                assert_array_equal(getattr(part, field), getattr(like, field))
            assert_array_equal(part.certificate.dual, like.certificate.dual)
            assert_array_equal(part.certificate.gap, like.certificate.gap)


@pytest.mark.parametrize("propagate", ["pruned", "original"])
def test_a_run_that_was_stopped_goes_on_to_the_same_result(tmp_path, searched, propagate):
    settings = {"sparsity": 0.6, "propagate": propagate}
    wanted = simjax.prune(network(), INPUTS, checkpoint=tmp_path / "whole", **settings)
    plain = simjax.prune(network(), INPUTS, **settings)
    for layer, like in zip(plain.layers.values(), wanted.layers.values(), strict=True):
        assert_allclose(layer.parts[0].weight, like.parts[0].weight, atol=1e-9)
    searched.clear()

    def stop(told: simjax.PruneProgress) -> None:
        if told.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simjax.prune(network(), INPUTS, checkpoint=tmp_path / "stopped", progress=stop, **settings)
    assert searched == [(12, 6), (8, 12)]
    found = simjax.prune(network(), INPUTS, checkpoint=tmp_path / "stopped", **settings)
    assert searched == [(12, 6), (8, 12), (3, 8)]  # what was done is not done again
    assert_same(found, wanted)
    assert_same(simjax.prune(network(), INPUTS, checkpoint=tmp_path / "stopped", **settings), wanted)
    assert len(searched) == 3


def test_a_file_that_was_cut_off_is_made_again(tmp_path, searched):
    wanted = simjax.prune(network(), INPUTS, checkpoint=tmp_path, sparsity=0.6)
    support = sorted(tmp_path.glob("layer-*/support.safetensors"))[1]
    block = sorted(tmp_path.glob("layer-*/rows/block-*.safetensors"))[2]
    for file in (support, block):
        file.write_bytes(file.read_bytes()[:-5])
    searched.clear()
    assert_same(simjax.prune(network(), INPUTS, checkpoint=tmp_path, sparsity=0.6), wanted)
    assert searched == [(8, 12)]


def test_whole_rows_and_shares_of_zeros_by_a_metric(tmp_path, searched):
    rows = {"pattern": "rows", "sparsity": 0.5, "checkpoint": tmp_path / "rows"}
    assert_same(simjax.prune(network(), INPUTS, **rows), simjax.prune(network(), INPUTS, **rows))
    shared = {
        "sparsity": 0.6,
        "allocation": "global",
        "evaluate": lambda it: -float(np.square(np.asarray(it(INPUTS))).sum()),
        "checkpoint": tmp_path / "shared",
    }
    wanted = simjax.prune(network(), INPUTS, **shared)
    searched.clear()
    found = simjax.prune(network(), INPUTS, **shared)
    assert searched == [(12, 6), (8, 12), (3, 8)]  # for the error curves
    assert_same(found, wanted)
    assert found.evaluation.chosen == wanted.evaluation.chosen


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"inputs": INPUTS + 1e-3}, "inputs"),
        ({"sparsity": 0.7}, r"sparsity \(0.6 there, 0.7 here\)"),
        ({"propagate": "original"}, "propagate"),
        ({"correction": 1.0}, "correction"),
        ({"layers": lambda name: name != "layers.0"}, "network, layers"),
    ],
)
def test_the_folder_of_another_run_is_refused_and_left_as_it_is(tmp_path, change, named):
    arguments = {"network": network(), "inputs": INPUTS, "sparsity": 0.6, "checkpoint": tmp_path}
    simjax.prune(**arguments)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=f"what differs: {named}"):
        simjax.prune(**{**arguments, **change})
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="checkpoint must be a new or empty folder"):
        simjax.prune(network(), INPUTS, checkpoint=tmp_path)
    with pytest.raises(NotADirectoryError, match="checkpoint must be a folder"):
        simjax.prune(network(), INPUTS, checkpoint=tmp_path / "mine.txt")


@pytest.mark.parametrize("method", ["l1", "perspective"])
def test_the_search_of_a_penalty_is_done_again(tmp_path, method):
    arguments = {"sparsity": 0.6, "method": method, "checkpoint": tmp_path}
    wanted = simjax.prune(network(), INPUTS, **arguments)
    found = simjax.prune(network(), INPUTS, **arguments)
    assert_same(found, wanted)
    assert all(layer.parts[0].penalised is not None for layer in found.layers.values())
