"""Every implicit network on tiny data: what is measured, what is counted, what is written."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from flax import nnx

from benchmarks import records
from experiments import networks
from simjax.implicit.model import ImplicitModel
from simjax.robustness import certified_radii, optimal_weights, sampled_lipschitz
from simjax.states.states import States

pytestmark = pytest.mark.slow

P, Q = 6, 3


@functools.cache
def untrained(name):
    """A small baseline, with its states on some inputs."""
    module = networks.BASELINES[name](P, 9, Q, nnx.Rngs(3))
    return module, module.states(np.random.default_rng(2).normal(size=(12, P)))


@pytest.mark.parametrize("name", ["NEMON", "MonDEQ", "GEQ"])
def test_no_stated_rate_is_broken(name):
    module, states = untrained(name)
    found = networks.count_iterations(module, states.baseline, states.inputs)
    assert found["name"] == {"GEQ": "Picard", "MonDEQ": "forward–backward"}.get(name, "averaged")
    assert 0.0 < found["factor"] < 1.0
    assert 1 < found["averaged"] <= found["predicted"]
    assert found["anderson"] is not None


def test_a_factor_of_zero_is_one_iteration():
    linear, states = untrained("LinearDEQ")
    found = networks.count_iterations(linear, states.baseline, states.inputs)
    assert found == {"name": "averaged", "factor": 0.0, "predicted": 1, "averaged": 1, "anderson": 1}
    diverging = ImplicitModel([[2.0]], [[1.0]], [[1.0]], [[0.0]], "identity")
    assert networks.count_iterations(linear, diverging, states.inputs[:, :1]) is None


@pytest.mark.parametrize("name", ["NEMON", "MonDEQ", "LinearDEQ", "GEQ"])
def test_own_bounds_hold_and_certify(name):
    module, states = untrained(name)
    labels = np.random.default_rng(3).integers(0, Q, 12)
    norm, bound = networks.own_bound(module, states)
    share = networks.share_certified(states, labels, norm, bound)
    assert share <= networks.share_correct(states.outputs, labels)
    if name == "GEQ":
        assert norm == "l2"
        return
    assert sampled_lipschitz(states.baseline, states.inputs, norm) <= bound * (1 + 1e-9)
    radii = certified_radii(states.baseline, states.inputs, labels, norm=norm, lipschitz=bound)
    by_bound = np.mean(radii > networks.EPSILON * (1.0 if norm == "inf" else P**0.5))
    elementwise = 0.0
    if optimal_weights(states.baseline.A) is not None:
        elementwise = np.mean(certified_radii(states.baseline, states.inputs, labels) > networks.EPSILON)
    assert max(by_bound, elementwise) <= share <= by_bound + elementwise


def test_how_a_baseline_comes_into_the_ball():
    states = untrained("NEMON")[1]
    outside = ImplicitModel([[-3.0, 0.5], [0.5, -3.0]], np.ones((2, 1)), np.eye(2), np.zeros((2, 1)))
    x = np.maximum(outside.B, 0).T / 3.5  # x = relu(−2.5x + u) at u = 1
    strong = States([[1.0]], x, x, x, baseline=outside)
    for given, remedy in ((strong, "diagonal elimination"), (untrained("GEQ")[1], "relaxed matching")):
        found, inside, options = networks.into_ball(given)
        assert found == remedy
        assert options == {"rescale": "none"}
        assert inside is given or inside.baseline.well_posedness <= 0.99
    assert networks.into_ball(states)[0] in ("none needed", "diagonal elimination")


def test_a_record_and_its_tables(tiny):
    settings = networks.Amount(epochs=8, samples=40, alphas=(1e-3,), tests=30)
    record = networks.measure("MLP", 0, settings)
    record |= {"quick": True, **records.place()}
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["test_accuracy"] > 0.5
    assert record["remedy"] == "layer by layer"
    assert 0.3 < record["fits"][0]["zeros"] < 1.0
    assert all(fit["rows_certified"] == fit["rows"] == 12 for fit in record["fits"])
    assert all(fit["certified"] <= fit["test_accuracy"] for fit in record["fits"])
    models, iterations = networks.models_table([record]), networks.iterations_table([record])
    assert models[2].startswith("| MLP |")
    assert iterations[2].startswith("| MLP | averaged |")
    for lines in (models, iterations):
        assert len({line.count("|") for line in lines}) == 1
        assert "\n".join(lines) in networks.section([record])
    without = networks.iterations_table([{**record, "iterations": None}])
    assert without[2].count("|") == iterations[2].count("|")
    assert "none with a stated rate" in without[2]
