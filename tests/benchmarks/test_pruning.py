"""The peers of `prune_layer`, each against its own definition."""

import itertools
import json

import numpy as np
import pytest
from helpers import generator
from numpy.testing import assert_allclose, assert_array_equal

from benchmarks import pruning, refit
from benchmarks.pruning_peers import PEERS, alps, best_exchange, row_by_row, sparsegpt, sparseswaps, wanda
from simjax import LayerStatistics
from simjax.pruning.patterns import Pattern


def layer(outputs=4, width=8, samples=50):
    rng = generator(0)
    inputs = rng.normal(size=(samples, width)) @ rng.normal(size=(width, width))
    return inputs, rng.normal(size=(outputs, width))


def error(inputs, weight, found):
    return np.sum((inputs @ (weight - found).T) ** 2)


@pytest.mark.parametrize("name", ["unstructured", "2:4"])
@pytest.mark.parametrize("peer", list(PEERS))
def test_a_peer_returns_a_support_of_the_pattern(peer, name):
    inputs, weight = layer()
    pattern = Pattern.make(name, 0.5, weight.shape)
    found = PEERS[peer](inputs.T @ inputs, weight, pattern)
    assert np.count_nonzero(found) == 16
    if name == "2:4":
        assert_array_equal(np.count_nonzero(found.reshape(-1, 4), axis=1), 2)


def test_sparsegpt_makes_up_for_a_weight_by_those_on_its_right():
    """Without damping, zeros in the first column alone leave the best weights without it."""
    inputs, weight = layer()
    weight[:, 0] = 1e-3 * weight[:, 0]
    pattern = Pattern.make("unstructured", 1.0 / 8.0, weight.shape)
    found = sparsegpt(inputs.T @ inputs, weight, pattern, damping=0.0)
    assert_array_equal(found == 0.0, np.arange(8) == np.zeros((4, 1)))
    best = np.linalg.lstsq(inputs[:, 1:], inputs @ weight.T, rcond=None)[0].T
    assert_allclose(found[:, 1:], best, atol=1e-9)


@pytest.mark.parametrize("name", ["unstructured", "2:4"])
def test_swaps_end_where_no_swap_gains(name):
    inputs, weight = layer()
    gram, pattern = inputs.T @ inputs, Pattern.make(name, 0.5, weight.shape)
    found = sparseswaps(gram, weight, pattern)
    assert error(inputs, weight, found) < error(inputs, weight, wanda(gram, weight, pattern))
    for row in range(4):
        kept, dropped = np.flatnonzero(found[row]), np.flatnonzero(found[row] == 0.0)
        for j, i in itertools.product(kept, dropped):
            if name == "2:4" and j // 4 != i // 4:
                continue
            other = found[row].copy()
            other[j], other[i] = 0.0, weight[row, i]
            assert error(inputs, weight[row], other) >= error(inputs, weight[row], found[row]) * (1.0 - 1e-9)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_the_best_exchange_is_the_best_of_all(block):
    """What cannot be the best is left out; of the rest none is overlooked."""
    rng = generator(1)
    for kept, limit in ((rng.random(30) < 0.5, 0.0), (rng.random(30) < 0.2, -2.0), (rng.random(30) < 0.5, -1e3)):
        joint, dropped, restored = rng.normal(size=(30, 30)), rng.normal(size=30), rng.normal(size=30)
        changes = np.where(kept[:, None] & ~kept, dropped[:, None] + restored - joint, np.inf)
        found = best_exchange(kept, joint, dropped, restored, dropped - joint.max(axis=1), limit, block)
        best = tuple(int(k) for k in np.unravel_index(changes.argmin(), changes.shape))
        assert found == (best if changes.min() < limit else None)
    nothing = np.zeros(30, dtype=bool)
    assert best_exchange(~nothing, joint, dropped, restored, dropped - 9.0, 0.0) is None
    assert best_exchange(nothing, joint, dropped, restored, dropped - 9.0, 0.0) is None


def test_alps_is_nearer_than_the_scores_and_scores_are_row_by_row():
    inputs, weight = layer()
    gram, pattern = inputs.T @ inputs, Pattern.make("unstructured", 0.5, weight.shape)
    assert error(inputs, weight, alps(gram, weight, pattern)) < error(inputs, weight, wanda(gram, weight, pattern))
    assert_array_equal(row_by_row(np.abs(weight), pattern).sum(axis=1), 4)


def test_records_and_their_table():
    inputs, weight = layer()
    bias = np.arange(4.0)
    statistics = LayerStatistics(8)
    statistics.update(inputs)
    for zeros in ("0.5", "2:4"):
        found = list(pruning.records(statistics, statistics, weight, bias, zeros, ["Wanda", "auto"]))
        assert [record["certified"] for record in found] == [4, 4]
        assert found[1]["refitted"] == pytest.approx(found[1]["calibration"], rel=1e-9)
        wanted = error(inputs, weight, PEERS["Wanda"](inputs.T @ inputs, weight, Pattern.make(
            "2:4" if zeros == "2:4" else "unstructured", 0.5, weight.shape)))  # fmt: skip
        assert found[0]["as_it_is"] == pytest.approx(wanted / np.sum((inputs @ weight.T) ** 2), rel=1e-9)
        assert found[0]["refitted"] < found[0]["as_it_is"]
        json.dumps(found)
    table = pruning.report([{"matrix": "0.query", **record} for record in found])
    assert table.splitlines()[0] == "| matrix | zeros | Wanda | auto |"
    assert f"{found[0]['as_it_is']:.3g} → {found[0]['refitted']:.3g}" in table
    assert pruning.certified(found) == "8 of 8 refitted rows are certified at a relative gap of 1e-6."


def test_the_refit_is_counted():
    record = refit.measure(32, 5)
    assert record["certified"] == 5
    assert record["flops"] == 5 * 16**3 / 3
    assert refit.report([record])[2].startswith("| 32 | 5 | 16 | 5 |")


def test_the_cost_on_paper_is_by_the_same_count():
    assert refit.flops_of([(5, 32, 2)]) == 2 * 5 * 16**3 / 3
    # 8 billion parameters but for the embeddings.
    assert sum(outputs * inputs * count for outputs, inputs, count in refit.MAPS_8B) == pytest.approx(7e9, rel=0.01)
    record = {"width": 4096, "rows": 512, "cpu_seconds": 60.0, "gflops_per_cpu_second": 10.0, "cores": 2}
    told = refit.on_paper([record])
    assert "take 8 minutes of one core" in told
    assert "is 2e+16 flops" in told
    assert "273 hours on 2 such cores" in told
