"""Fits of streamed states are the fits in memory, and a second pass over the samples proves them."""

import dataclasses

import numpy as np
import pytest
from helpers import ByHand, generator
from numpy.testing import assert_allclose, assert_array_equal
from streams import arrays_of, collect, in_batches, noisy

import simjax
from simjax import recertify, stream_states


@pytest.fixture(scope="module")
def states():
    return collect()


@pytest.fixture(scope="module")
def streamed(states):
    return stream_states(in_batches(states))


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
