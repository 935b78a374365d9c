"""Biases of fitted models: free by default where the network has them, penalised only where that is asked for."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import generator
from numpy.testing import assert_allclose, assert_array_equal

import simjax

N, P, Q, M = 9, 4, 2, 60


def biased_states(m: int = M) -> simjax.States:
    rng = generator(0)
    weights = [rng.normal(size=shape) / 2 for shape in ((5, P), (4, 5), (Q, 4))]
    biases = [np.full(5, 0.5), np.full(4, -0.3), np.array([10.0, -7.0])]
    return simjax.States.from_layers(weights, biases, "relu", rng.normal(size=(m, P)))


@pytest.fixture(scope="module")
def states() -> simjax.States:
    return biased_states()


def arrays_of(states: simjax.States) -> dict[str, Any]:
    names = ("inputs", "preactivations", "activations", "outputs", "activation", "layer_sizes")
    return {name: getattr(states, name) for name in names}


def test_auto_goes_by_what_is_known_of_the_network(states: simjax.States, tmp_path) -> None:
    assert states.has_biases is True
    bare = simjax.States(**arrays_of(states))
    told = simjax.States(**arrays_of(states), has_biases=True)
    assert bare.has_biases is None
    for some, expected in ((states, True), (bare, False), (told, True)):
        some.save(tmp_path / "states.npz", overwrite=True)
        assert simjax.States.load(tmp_path / "states.npz").has_biases is some.has_biases
        doubt = pytest.warns(UserWarning, match="seems to have biases") if some is bare else nullcontext()
        with doubt:
            fitted = simjax.fit(some, "l1", alpha=0.01)
        assert fitted.settings["fit_intercept"] is expected
        assert (fitted.model.b is not None) == (fitted.intercept is not None) == expected
    with pytest.raises(TypeError, match="has_biases must be True or False, got 'yes'"):
        simjax.States(**arrays_of(states), has_biases="yes")


def test_free_biases_are_the_means_where_all_weights_are_zero(states: simjax.States) -> None:
    options: dict[str, Any] = {"alpha": 1e6, "rescale": "none"}
    free = simjax.fit(states, "l1", **options)
    assert_allclose(free.model.c, states.outputs.mean(axis=0))
    assert_allclose(free.model.b, states.preactivations.mean(axis=0))
    penalised = simjax.fit(states, "l1", fit_intercept="penalised", **options)
    assert not np.any(penalised.model.c)
    # Said with a zero of its own, as for a column of ones.
    zero_last = np.append(np.full(N + P, 1e6), 0.0)
    said = simjax.fit(states, "l1", fit_intercept=True, **{**options, "alpha": zero_last})
    assert_array_equal(said.model.c, free.model.c)
    explicit = simjax.fit(states, "l1", fit_intercept="penalised", **{**options, "alpha": zero_last})
    assert_allclose(explicit.model.c, free.model.c, rtol=1e-6)
    with pytest.raises(ValueError, match="alpha must be 0 in its last column"):
        simjax.fit(states, "l1", fit_intercept=True, alpha=np.ones(N + P + 1))


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.01},
        {"alpha": 0.01, "units": "rescaled", "kappa": 0.5, "reduction": "mean"},
        {"alpha": 0.05, "refit": ("support", "outputs")},
        {"matching": "exact", "support": "feedforward", "kappa": None},
        {"alpha": 0.01, "constraint": simjax.LowRank(3)},
    ],
    ids=["plain", "rescaled", "refits", "exact", "low rank"],
)
def test_fits_with_free_biases_are_verified(states: simjax.States, tmp_path, options: dict[str, Any]) -> None:
    fitted = simjax.fit(states, "l1", **options)
    assert fitted.converged
    assert fitted.verify(rows=4).ok
    fitted.model.save(tmp_path / "model.safetensors")
    loaded = simjax.ImplicitModel.load(tmp_path / "model.safetensors")
    assert_array_equal(loaded.b, fitted.model.b)
    if "constraint" not in options:
        assert simjax.verify_model(loaded, states, rows=4).ok
        off = simjax.ImplicitModel(
            loaded.A, loaded.B, loaded.C, loaded.D, loaded.activation, loaded.b + 1.0, loaded.c, loaded.metadata
        )
        assert not simjax.verify_model(off, states, rows=N + Q).ok


def test_weights_of_two_are_samples_given_twice(states: simjax.States) -> None:
    times = generator(1).integers(0, 3, M)
    repeated = states.subset(np.repeat(np.arange(M), times))
    options: dict[str, Any] = {"alpha": 1e-3, "tol": 1e-12, "reduction": "mean"}
    one = simjax.fit(states, "l1", sample_weight=times, **options)
    other = simjax.fit(repeated, "l1", **options)
    assert_allclose(one.weights, other.weights, rtol=1e-10, atol=1e-10)
    assert_allclose(one.intercept, other.intercept, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="model was fitted with arrays or objects for sample_weight"):
        simjax.verify_model(one.model, states)


@pytest.mark.parametrize("objective", ["l1", "least_squares"])
def test_streamed_states_have_weights_and_free_biases(states: simjax.States, objective: str) -> None:
    times = generator(2).integers(0, 3, M).astype(float)
    parts = [states.subset(np.arange(start, min(start + 25, M))) for start in range(0, M, 25)]
    streamed = simjax.stream_states(iter(parts), sample_weight=times)
    options: dict[str, Any] = {"tol": 1e-10, "reduction": "mean", "support": "hollow"}
    if objective == "l1":
        options["alpha"] = 1e-3
    whole, fitted = (
        simjax.fit(states, objective, sample_weight=times, **options),
        simjax.fit(streamed, objective, **options),
    )
    assert fitted.converged
    assert_allclose(fitted.certificate.objective, whole.certificate.objective, rtol=1e-7, atol=1e-12)
    proved = simjax.recertify(fitted, iter(parts), sample_weight=times)
    assert_allclose(proved.objective, whole.certificate.objective, rtol=1e-7, atol=1e-12)
    if objective == "l1":
        assert_allclose(fitted.intercept, whole.intercept, rtol=1e-6, atol=1e-8)
        assert proved.relative_gap.max() <= 1e-6
    with pytest.raises(ValueError, match="sample_weight must be None for streamed states"):
        simjax.fit(streamed, "l1", sample_weight=times)
    with pytest.raises(ValueError, match=f"each of the {M} samples, got {M + 1}"):
        simjax.stream_states(iter(parts), sample_weight=np.ones(M + 1))
    with pytest.raises(ValueError, match=f"each sample, got {M - 1}"):
        simjax.stream_states(iter(parts), sample_weight=np.ones(M - 1))


def test_an_intercept_of_another_kind_is_refused(states: simjax.States) -> None:
    with pytest.raises(ValueError, match="fit_intercept must be True, False, 'auto' or 'penalised', got 1"):
        simjax.fit(states, "l1", fit_intercept=1)  # type: ignore[arg-type]


def test_a_penalty_object_may_say_that_the_free_intercept_is_free(states: simjax.States) -> None:
    d, rows = states.n + states.p, states.n + states.q
    alpha = generator(3).random((rows, d)) * 1e-2
    zeros = np.zeros((rows, 1))
    expected = simjax.fit(states, simjax.L1(alpha), fit_intercept=True)
    found = simjax.fit(states, simjax.L1(np.append(alpha, zeros, axis=1)), fit_intercept=True)
    assert_array_equal(found.weights, expected.weights)
    mu = np.append(np.full(d, 1e-3), 1.0)  # of a coordinate without α it says nothing
    one = simjax.fit(states, simjax.Perspective(np.append(alpha[0], 0.0), mu), fit_intercept=True)
    other = simjax.fit(states, simjax.Perspective(alpha[0], 1e-3), fit_intercept=True)
    assert_allclose(one.weights, other.weights, atol=1e-12)
    with pytest.raises(
        ValueError, match=r"objective.slope must be 0 in its last column, objective.slope\[..., n \+ p\]"
    ):
        simjax.fit(states, simjax.L1(np.full(d + 1, 0.1)), fit_intercept=True)
    with pytest.raises(ValueError, match=r"objective.slope must be .* got shape"):
        simjax.fit(states, simjax.L1(np.full(d + 1, 0.1)), fit_intercept=False)
    with pytest.raises(ValueError, match=rf"objective.slope must be .*\({d + 1},\).* d = n \+ p \+ 1; got"):
        simjax.fit(states, simjax.Ridge(np.full(d, 0.1)), fit_intercept="penalised")
    with pytest.raises(ValueError, match=r"penalty parameters must be scalars"):
        simjax.solve_rows(np.eye(3), np.eye(3), penalty=simjax.L1(np.ones(4)), fit_intercept=True)


def test_a_penalty_of_ones_own_for_another_width_is_named() -> None:
    class Own:
        def value(self, weights):
            return jnp.abs(weights) * jnp.ones(4)

        def prox(self, points, step):
            return points

        def conjugate(self, slopes):
            return slopes

    with pytest.raises(ValueError, match=r"penalty Own must take weights of shape \(2, 3\)"):
        simjax.solve_rows(np.eye(3), np.ones((3, 2)), penalty=Own(), fit_intercept=True)
