"""The benchmarks of implicit networks on tiny data: what they measure, what they count, what they write."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from flax import nnx

import simjax
from benchmarks import against_implicit, baselines, records
from simjax.app.demo import Recipe
from simjax.datasets import Dataset
from simjax.implicit.model import ImplicitModel
from simjax.robustness.lipschitz import certified_radii, optimal_weights, sampled_lipschitz
from simjax.states.states import States

pytestmark = pytest.mark.slow

P, Q = 6, 3


@pytest.fixture
def tiny(monkeypatch):
    """Three clusters under the name of the digits, with a small network for them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, Q, 90)
    inputs = np.clip(0.5 + 0.3 * np.eye(P)[labels] + 0.1 * rng.normal(size=(90, P)), 0, 1)
    data = Dataset("digits", inputs[:60], labels[:60], inputs[60:], labels[60:], ("a", "b", "c"))
    for module in (against_implicit, baselines):
        monkeypatch.setattr(module.datasets, "load", lambda name: data)
        monkeypatch.setattr(module, "RECOMMENDED", {"digits": {"epochs": 8, "batch_size": 20, "learning_rate": 2e-2}})
    # One method instead of the portfolio, for the sake of its shorter compilation.
    monkeypatch.setattr(simjax, "fit", functools.partial(simjax.fit, solver="admm"))
    monkeypatch.setattr(against_implicit, "RECIPES", {"digits": Recipe((P, 5, 4, Q), samples=40, alpha=1e-3)})
    monkeypatch.setattr(against_implicit, "QUICK_SAMPLES", 40)
    monkeypatch.setattr(baselines, "STATES", 9)
    monkeypatch.setattr(baselines, "HIDDEN", (5, 4))
    return data


# --- SIM against implicit differentiation ------------------------------------------------------------------------


def test_both_ways_give_a_model_of_the_same_size_in_the_ball(tiny, monkeypatch):
    monkeypatch.setattr(against_implicit, "relative_weights", lambda states, objective: np.ones((12, 15)))
    sim = against_implicit.run("digits", "sim-tuned", 0, 0, quick=True)
    pruned = against_implicit.run("digits", "implicit-pruned", 0, sim["nonzeros"], quick=True)
    for record in (sim, pruned):
        assert (record["n"], record["p"], record["q"]) == (9, P, Q)
        assert record["well_posedness"] <= 0.99 * (1 + 1e-12)
        assert record["zeros"] == pytest.approx(1 - record["nonzeros"] / (12 * 15))
        assert record["peak_mebibytes"] >= record["before_mebibytes"] > 10
        assert record["gradient_mebibytes"] > 0
        assert record["seconds"] == pytest.approx(sum(stage["seconds"] for stage in record["stages"].values()))
        assert 0 < record["compile_seconds"] < record["seconds"]
        last, share = record["curve"][-1]
        assert last == pytest.approx(record["seconds"])
        assert share == pytest.approx(record["test_accuracy"], abs=0.04)
        assert record["seconds_to"]["0.97"] in (None, *(seconds for seconds, _ in record["curve"]))
    assert sim["rows_certified"] == sim["rows"] == 12
    assert 0 < sim["nonzeros"] == pruned["nonzeros"] < 12 * 15
    assert list(sim["stages"]) == ["baseline", "states", "fits", "tuning"]
    assert list(pruned["stages"]) == ["training", "tuning"]
    for record in (sim, pruned):  # no accuracy of another, larger model is in the curve
        assert len(record["curve"]) == against_implicit.QUICK_TUNING + (record is sim)
    text = against_implicit.section([sim, pruned])
    assert f"| SIM, its nonzeros tuned | 0 | {sim['seconds']:.1f} |" in text
    assert "| the same, pruned and tuned | 0 |" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {16}


def test_pruning_keeps_the_largest_weights():
    rng = np.random.default_rng(1)
    A, B, C, D = (rng.normal(size=shape) for shape in ((3, 3), (3, 2), (2, 3), (2, 2)))
    small = against_implicit.pruned(ImplicitModel(A, B, C, D), 7)
    assert small.nonzeros == 7
    everything = np.abs(np.concatenate([M.ravel() for M in (A, B, C, D)]))
    kept = np.concatenate([getattr(small, name).ravel() for name in "ABCD"])
    assert np.abs(kept[kept != 0]).min() > np.sort(everything)[-8]
    with pytest.raises(ValueError, match=r"nonzeros must be in 1 … 25, got 26"):
        against_implicit.pruned(small, 26)


def test_the_time_to_an_accuracy_is_that_of_the_first_point_that_has_it():
    curve = [(1.0, 0.5), (2.0, 0.9), (3.0, 0.8)]
    assert against_implicit.time_to(curve, 0.8) == 2.0
    assert against_implicit.time_to(curve, 0.95) is None


def test_records_take_the_place_of_their_like(tmp_path):
    file = tmp_path / "results" / "records.json"
    for value, seed in ((1, 0), (2, 1), (3, 0)):
        records.merge(file, {"name": "a", "seed": seed, "value": value}, ("name", "seed"))
    assert [record["value"] for record in json.loads(file.read_text())["records"]] == [3, 2]


def test_a_page_keeps_what_is_outside_its_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x:begin -->\nold\n<!-- x:end -->\nafter\n")
    for _ in range(2):
        records.write_between(page, "<!-- x:begin -->", "<!-- x:end -->", "new\n")
        assert page.read_text() == "before\n<!-- x:begin -->\nnew\n<!-- x:end -->\nafter\n"
    with pytest.raises(ValueError, match="once each, in this order"):
        records.write_between(page, "<!-- y:begin -->", "<!-- x:end -->", "new")


def test_the_documentation_has_all_markers_once():
    page = against_implicit.PAGE.read_text(encoding="utf-8")
    for pair in ((against_implicit.BEGIN, against_implicit.END), baselines.MODELS, baselines.ITERATIONS):
        assert page.count(pair[0]) == page.count(pair[1]) == 1
        assert page.index(pair[0]) < page.index(pair[1])


# --- Baselines ---------------------------------------------------------------------------------------------------


@functools.cache
def untrained(name):
    """A small baseline, with its states on some inputs."""
    module = baselines.BASELINES[name](P, 9, Q, nnx.Rngs(3))
    return module, module.states(np.random.default_rng(2).normal(size=(12, P)))


@pytest.mark.parametrize("name", ["NEMON", "MonDEQ", "GEQ"])
def test_no_stated_rate_is_broken(name):
    module, states = untrained(name)
    found = baselines.count_iterations(module, states.baseline, states.inputs)
    assert found["name"] == {"GEQ": "Picard", "MonDEQ": "forward–backward"}.get(name, "averaged")
    assert 0.0 < found["factor"] < 1.0
    assert 1 < found["averaged"] <= found["predicted"]
    assert found["anderson"] is not None


def test_a_factor_of_zero_is_one_iteration():
    linear, states = untrained("LinearDEQ")
    found = baselines.count_iterations(linear, states.baseline, states.inputs)
    assert found == {"name": "averaged", "factor": 0.0, "predicted": 1, "averaged": 1, "anderson": 1}
    diverging = ImplicitModel([[2.0]], [[1.0]], [[1.0]], [[0.0]], "identity")
    assert baselines.count_iterations(linear, diverging, states.inputs[:, :1]) is None


@pytest.mark.parametrize("name", ["NEMON", "MonDEQ", "LinearDEQ", "GEQ"])
def test_own_bounds_hold_and_certify(name):
    module, states = untrained(name)
    labels = np.random.default_rng(3).integers(0, Q, 12)
    norm, bound = baselines.own_bound(module, states)
    share = baselines.share_certified(states, labels, norm, bound)
    assert share <= baselines.share_correct(states.outputs, labels)
    if name == "GEQ":
        assert norm == "l2"
        return
    assert sampled_lipschitz(states.baseline, states.inputs, norm) <= bound * (1 + 1e-9)
    radii = certified_radii(states.baseline, states.inputs, labels, norm=norm, lipschitz=bound)
    by_bound = np.mean(radii > baselines.EPSILON * (1.0 if norm == "inf" else P**0.5))
    elementwise = 0.0
    if optimal_weights(states.baseline.A) is not None:
        elementwise = np.mean(certified_radii(states.baseline, states.inputs, labels) > baselines.EPSILON)
    assert max(by_bound, elementwise) <= share <= by_bound + elementwise


def test_how_a_baseline_comes_into_the_ball():
    states = untrained("NEMON")[1]
    outside = ImplicitModel([[-3.0, 0.5], [0.5, -3.0]], np.ones((2, 1)), np.eye(2), np.zeros((2, 1)))
    x = np.maximum(outside.B, 0).T / 3.5  # x = relu(−2.5x + u) at u = 1
    strong = States([[1.0]], x, x, x, baseline=outside)
    for given, remedy in ((strong, "diagonal elimination"), (untrained("GEQ")[1], "relaxed matching")):
        found, inside, options = baselines.into_ball(given)
        assert found == remedy
        assert options == {"rescale": "none"}
        assert inside is given or inside.baseline.well_posedness <= 0.99
    assert baselines.into_ball(states)[0] in ("none needed", "diagonal elimination")


def test_a_record_and_its_tables(tiny):
    settings = baselines.Settings(epochs=8, samples=40, alphas=(1e-3,), tests=30)
    record = baselines.measure("MLP", 0, settings)
    record |= {"quick": True, **records.place()}
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["test_accuracy"] > 0.5
    assert record["remedy"] == "layer by layer"
    assert 0.3 < record["fits"][0]["zeros"] < 1.0
    assert all(fit["rows_certified"] == fit["rows"] == 12 for fit in record["fits"])
    assert all(fit["certified"] <= fit["test_accuracy"] for fit in record["fits"])
    models, iterations = baselines.models_section([record]), baselines.iterations_section([record])
    assert "| MLP |" in models
    assert "| MLP | averaged |" in iterations
    for text in (models, iterations):
        assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    without = baselines.iterations_section([{**record, "iterations": None}])
    assert "none with a stated rate" in without
