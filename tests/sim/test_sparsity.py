"""A wanted sparsity: alpha is found on the path, and the fit is the one that this alpha gives."""

import numpy as np
import pytest
from helpers import generator
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import simjax
from simjax.nn import MLP
from simjax.rows.sparsity_search import search_alpha


@pytest.fixture(scope="module")
def states():
    return simjax.collect_states(MLP((8, 12, 6, 3)), generator(0).normal(size=(80, 8)))


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("l1", {}),
        ("perspective", {"mu": 1e-2, "reduction": "mean"}),
        ("elastic_net", {"mu": 1e-3, "refit": "support"}),
        ("l1", {"kappa": None, "support": "architecture"}),
    ],
)
@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_alpha_is_found_and_reported(states, objective, options, sparsity):
    result = simjax.fit(states, objective, sparsity=sparsity, **options)
    assert result.converged
    reached = result.settings["sparsity"]
    assert reached["of"] == states.baseline.nonzeros
    assert reached["reached"] == result.model.sparsity(states.baseline.nonzeros)
    assert sparsity <= reached["reached"] <= sparsity + 0.02
    assert f"sparsity {reached['reached']:.4f}" in result.summary()
    again = simjax.fit(states, objective, alpha=result.settings["alpha"], **options)
    assert_allclose(again.certificate.objective, result.certificate.objective, rtol=2e-6)


def test_without_a_baseline_all_weights_count(states):
    plain = simjax.States(states.inputs, states.preactivations, states.activations, states.outputs)
    result = simjax.fit(plain, "l1", sparsity=0.9)
    assert result.settings["sparsity"]["of"] == (18 + 3) * (18 + 8)
    assert 0.9 <= result.settings["sparsity"]["reached"] <= 0.92


def test_a_model_of_a_wanted_sparsity_is_saved_and_verified(states, tmp_path):
    result = simjax.fit(states, "l1", sparsity=0.5)
    result.model.save(tmp_path / "model.safetensors")
    model = simjax.ImplicitModel.load(tmp_path / "model.safetensors")
    assert model.metadata["fit"]["sparsity"] == result.settings["sparsity"]
    assert simjax.verify_model(model, states, rows=2).ok


def test_streamed_states(states):
    streamed = simjax.stream_states([states])
    one, other = (simjax.fit(s, "l1", sparsity=0.5) for s in (states, streamed))
    assert_allclose(other.settings["alpha"], one.settings["alpha"], rtol=0.1)
    assert 0.5 <= other.settings["sparsity"]["reached"] <= 0.52


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sparsity": 1.0}, ValueError, r"sparsity must be a number in \[0, 1\)"),
        ({"sparsity": -0.5}, ValueError, r"sparsity must be a number in \[0, 1\)"),
        ({"sparsity": np.nan}, ValueError, "sparsity must be finite"),
        ({"sparsity": "most"}, TypeError, "sparsity must be an array of real numbers"),
        ({"sparsity": 0.5, "alpha": 1e-3}, ValueError, "either alpha or sparsity.* got both"),
        ({"sparsity": 0.5, "objective": simjax.L1(1.0)}, ValueError, "sparsity must be None with a penalty object"),
        ({"sparsity": 0.5, "objective": "ridge"}, ValueError, "sparsity cannot be met, as no alpha makes all weights"),
        ({"sparsity": 0.5, "matching": "exact"}, ValueError, "sparsity cannot be met under matching='exact'"),
        ({"sparsity": 0.5, "constraint": simjax.LowRank(2)}, ValueError, "sparsity must be None for constraint=Low"),
    ],
)
def test_bad_arguments_are_named(states, arguments, error, message):
    with pytest.raises(error, match=message):
        simjax.fit(states, **{"objective": "l1", **arguments})


@hypothesis_settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), most=st.integers(0, 120), slack=st.integers(0, 5), steady=st.booleans())
def test_the_search_takes_the_densest_point_that_is_allowed(seed, most, slack, steady):
    """Nonzeros that come one by one as α falls; or that also go again now and then."""
    rng = generator(seed)
    entries = np.cumprod(rng.uniform(1.01, 1.2, size=100))
    counts: dict[float, int] = {}

    def solve(alpha, near):
        assert near is None or counts[near] <= most
        counts[alpha] = int(np.sum(entries > alpha))
        if not steady and 0 < counts[alpha] < 100:
            counts[alpha] += int(rng.integers(-2, 3))
        return counts[alpha], alpha

    alpha, found = search_alpha(solve, 1.01 * entries.max(), most, slack)
    assert alpha == found
    assert counts[alpha] == max(count for count in counts.values() if count <= most)
    assert len(counts) <= 31
    if steady:
        assert min(most, 100) - slack <= counts[alpha] <= most
