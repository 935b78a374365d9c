"""Bringing a baseline into the ball: the identities behind it, and what is said where it cannot be done."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import simjax
from simjax.implicit.equilibrium import equilibrium
from simjax.implicit.model import ImplicitModel
from simjax.nn import NEMON
from simjax.rescaling import (
    diagnose,
    eliminate_diagonal,
    feasible,
    rescaled_by_measure,
    spectral_abscissa,
)
from simjax.robustness import matrix_measure, metzler, optimal_weights

SEEDS = st.integers(0, 10**6)


def model_of(A, rng, activation="relu", p=3, q=2):
    n = len(A)
    B, C, D = rng.normal(size=(n, p)), rng.normal(size=(q, n)), rng.normal(size=(q, p))
    return ImplicitModel(A, B, C, D, activation, b=rng.normal(size=n), c=rng.normal(size=q))


def contracting(rng, n=6, slack=0.5):
    """A with an abscissa of ⌈A⌉ below one and, as a rule, everything else above: a random scale hides its measure."""
    A = rng.normal(size=(n, n))
    A += np.diag(1.0 - slack - np.diag(metzler(A)) - (np.abs(A).sum(axis=1) - np.abs(np.diag(A))))
    scale = np.exp(2.0 * rng.normal(size=n))
    return A * scale / scale[:, None]


def states_of(model, U):
    """The model's own states, by an iteration that needs μ_η(A) < 1 alone."""
    with jax.enable_x64(True):
        x, report = equilibrium(
            model.A, model.B, U, model.b, activation=model.activation, tol=1e-14, max_iters=50_000, unconverged="keep"
        )
    assert np.asarray(report.residual).max() < 1e-12
    Z = np.asarray(x) @ model.A.T + U @ model.B.T + model.b
    X = {"relu": lambda z: np.maximum(z, 0), "identity": lambda z: z, "tanh": np.tanh}[model.activation](Z)
    return simjax.States(U, Z, X, X @ model.C.T + U @ model.D.T + model.c, model.activation, baseline=model)


# ---- the identities --------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_rescaling_by_eta_makes_the_measure_one_minus_one_over_its_largest_entry(seed):
    rng = np.random.default_rng(seed)
    A = contracting(rng)
    eta = optimal_weights(A)
    assert np.linalg.norm(A, np.inf) > 1
    scaled = rescaled_by_measure(model_of(A, rng, "leaky_relu"))
    assert_allclose(matrix_measure(scaled.A), 1 - 1 / eta.max(), rtol=0, atol=1e-10)
    assert_allclose(scaled.A, A * eta / eta[:, None], rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_without_negative_diagonal_it_is_the_norm_and_the_rescaling_of_the_model(seed):
    rng = np.random.default_rng(seed)
    A = np.triu(rng.normal(size=(6, 6)), 1) + 0.5 * np.diag(rng.random(6))
    model = model_of(A, rng)
    scaled, known = rescaled_by_measure(model), model.rescaled()
    s = np.linalg.solve(np.eye(6) - np.abs(A), np.ones(6))
    assert_allclose(scaled.well_posedness, 1 - 1 / s.max(), rtol=0, atol=1e-10)
    for name in ("A", "B", "C", "D", "b", "c"):
        assert_allclose(getattr(scaled, name), getattr(known, name), rtol=1e-10, atol=1e-12)


def test_the_printed_orientation_has_no_such_norm():
    rng = np.random.default_rng(0)
    A = np.triu(3 * rng.normal(size=(6, 6)), 1)
    s = np.linalg.solve(np.eye(6) - np.abs(A), np.ones(6))
    assert np.linalg.norm(A * s / s[:, None], np.inf) < 1
    assert np.linalg.norm(A / s * s[:, None], np.inf) > 1


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("seed", range(3))
def test_elimination_keeps_states_and_rescaling_divides_them(activation, seed):
    rng = np.random.default_rng(seed)
    model, U = model_of(contracting(rng), rng, activation), rng.normal(size=(25, 3))
    states = states_of(model, U)
    own = states_of(eliminate_diagonal(model), U)
    scale = np.abs(states.activations).max()
    assert_allclose(own.activations, states.activations, rtol=0, atol=1e-10 * scale)
    assert_allclose(own.outputs, states.outputs, rtol=0, atol=1e-10 * scale)
    hollow = eliminate_diagonal(states)
    assert_array_equal(hollow.activations, states.activations)
    assert_allclose(hollow.preactivations, own.preactivations, rtol=0, atol=1e-10 * np.abs(own.preactivations).max())
    assert_array_equal(np.diag(hollow.baseline.A), 0)
    divided = rescaled_by_measure(states)
    assert_allclose(divided.activations * optimal_weights(model.A), states.activations, rtol=1e-12, atol=1e-12)
    assert_allclose(states_of(divided.baseline, U).outputs, states.outputs, rtol=0, atol=1e-10 * scale)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, slack=st.sampled_from([-0.5, -0.01, 0.01, 0.5]))
def test_the_hollow_matrix_is_in_the_ball_if_and_only_if_the_measure_is_below_one(seed, slack):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(5, 5)) - np.diag(3 * rng.random(5))
    A += (1 - slack - matrix_measure(A)) * np.eye(5)  # μ∞(A) = 1 − slack
    if np.diag(A).max() >= 1:
        return
    hollow = eliminate_diagonal(model_of(A, rng))
    assert (hollow.well_posedness < 1) == (slack > 0)
    assert (hollow.perron_eigenvalue < 1) == (spectral_abscissa(A) < 1)


def test_without_its_diagonal_a_model_keeps_its_equilibrium_and_needs_fewer_passes():
    model = ImplicitModel([[-3, 0.5], [0.5, -3]], [[0], [0]], np.eye(2), [[0], [0]], b=[1, 2])
    hollow = eliminate_diagonal(model)
    assert hollow.well_posedness == pytest.approx(0.125, abs=1e-15)
    assert_allclose(hollow.equilibrium([[0.0]], tol=1e-15), [[20 / 63, 34 / 63]], rtol=0, atol=1e-14)
    passes = [each.equilibrium([[0.0]], return_info=True)[1].iterations for each in (hollow, model)]
    assert passes[0] <= passes[1]


def test_sparse_models_stay_sparse():
    rng = np.random.default_rng(1)
    model = model_of(contracting(rng) * ((rng.random((6, 6)) < 0.6) | np.eye(6, dtype=bool)), rng)
    for function in (eliminate_diagonal, rescaled_by_measure, feasible):
        dense, sparse = function(model), function(model.to_csr())
        assert sparse.storage == "csr"
        for name in "ABCD":
            assert sp.issparse(getattr(sparse, name))
            assert_allclose(getattr(sparse, name).toarray(), getattr(dense, name), rtol=1e-12, atol=1e-14)


def test_the_abscissa_of_known_matrices():
    rng = np.random.default_rng(2)
    A = rng.normal(size=(7, 7)) - 2 * np.eye(7)
    assert_allclose(spectral_abscissa(A), np.linalg.eigvals(metzler(A)).real.max(), rtol=0, atol=1e-12)
    assert spectral_abscissa(np.triu(A, 1)) == 0.0
    assert_allclose(spectral_abscissa([[-3, 0.5], [-0.5, -3]]), -2.5, rtol=0, atol=1e-14)


# ---- the choice ------------------------------------------------------------------------------------------

STRONG = [[-3.0, 0.5], [0.5, -3.0]]  # μ∞ = −2.5
UPPER = [[0.0, 40.0], [0.0, 0.0]]  # λ_pf = 0
BOTH = [[-30.0, 40.0], [0.1, -0.5]]  # μ∞ = 10, and |A| is of no help
BEYOND = [[0.0, 2.0], [2.0, 0.0]]


@pytest.mark.parametrize(
    ("A", "activation", "remedies"),
    [
        ([[0.5, 0.4], [0.1, 0.2]], "tanh", ("none needed",)),
        (
            STRONG,
            "relu",
            ("diagonal elimination", "diagonal elimination and rescaling", "measure row", "relaxed matching"),
        ),
        (UPPER, "relu", ("rescaling", "diagonal elimination and rescaling", "measure row", "relaxed matching")),
        (UPPER, "leaky_relu", ("rescaling", "measure row", "relaxed matching")),
        (BOTH, "identity", ("diagonal elimination and rescaling", "measure row", "relaxed matching")),
        (BOTH, "leaky_relu", ("measure row", "relaxed matching")),
        (BOTH, "tanh", ("measure row", "relaxed matching")),
        (STRONG, "tanh", ("measure row", "relaxed matching")),
        (BEYOND, "relu", ("relaxed matching",)),
        ([[1.5]], "relu", ("relaxed matching",)),
    ],
)
def test_what_applies(A, activation, remedies):
    rng = np.random.default_rng(3)
    model, U = model_of(np.array(A), rng, activation), rng.normal(size=(10, 3))
    found = diagnose(model)
    assert found.remedies == remedies
    if remedies[0] in ("measure row", "relaxed matching"):
        with pytest.raises(ValueError, match="no equivalent model with ‖A‖∞ ≤ kappa was found"):
            feasible(model)
        return
    near = feasible(model)
    assert near.well_posedness <= 0.99 * (1 + 1e-12)
    if activation in ("relu", "identity"):
        assert_allclose(near(U), states_of(model, U).outputs, rtol=0, atol=1e-9)
    if remedies[0] == "none needed":
        assert near is model


def test_rounding_alone_does_not_leave_the_ball():
    model = model_of(np.array([[0.5, 0.49 + 2e-16], [0.0, 0.1]]), np.random.default_rng(0))
    assert model.well_posedness > 0.99
    assert feasible(model) is model
    assert feasible(model, 0.98) is not model


def test_a_smaller_kappa_asks_for_more():
    A = np.array([[0.2, 3.0], [0.1, 0.2]])  # λ_pf = 0.2 + √0.3 = 0.748
    model = model_of(A, np.random.default_rng(4), "leaky_relu")
    assert feasible(model, 0.75).well_posedness <= 0.75
    assert model.rescaled().well_posedness > 0.75  # the theorem's own scale aims at one
    with pytest.raises(ValueError, match="no equivalent model"):
        feasible(model, 0.74)


def test_the_numbers_are_named():
    model = model_of(np.array(BOTH), np.random.default_rng(5), "tanh")
    found = diagnose(model, 0.9)
    assert found.norm == pytest.approx(70)
    assert found.measure == pytest.approx(10)
    assert found.perron == pytest.approx(np.abs(np.linalg.eigvals(np.abs(BOTH))).max())
    assert found.abscissa == pytest.approx(np.linalg.eigvals(metzler(BOTH)).real.max())
    assert found.hollow_norm is None
    with pytest.raises(ValueError) as error:
        feasible(model, 0.9)
    said = str(error.value)
    for number in ("‖A‖∞ = 70", "μ∞(A) = 10", f"λ_pf(|A|) = {found.perron:.6g}", f"⌈A⌉ = {found.abscissa:.6g}"):
        assert number in said
    assert "kappa = 0.9" in said
    assert "measure row: fit(..., constraint='metzler')" in said
    assert "relaxed matching: a fit" in said
    hollow = diagnose(model_of(np.array(BOTH), np.random.default_rng(5)), 0.9)
    assert hollow.hollow_norm == pytest.approx(40 / 31)
    assert hollow.hollow_perron == pytest.approx((40 / 31 * 0.1 / 1.5) ** 0.5)
    assert f"‖Ã‖∞ = {40 / 31:.6g}" in hollow.summary()


@pytest.mark.slow
def test_exact_matching_finds_a_nemon_that_the_ball_excludes():
    """With m > n + p + 1 samples only the baseline's own weights match: outside the ball, or inside once feasible."""
    with jax.enable_x64(True):
        module = NEMON(3, 4, 2, gamma=0.5)
        rng = np.random.default_rng(6)
        graph, state = nnx.split(module)
        module = nnx.merge(graph, jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), state))
    states = module.states(rng.normal(size=(24, 3)))
    design = np.hstack([states.activations, states.inputs, np.ones((24, 1))])
    only, *_ = np.linalg.lstsq(design, states.preactivations, rcond=None)
    assert_allclose(design @ only, states.preactivations, rtol=0, atol=1e-10)
    assert np.linalg.matrix_rank(design) == 8
    assert np.abs(only[:4]).sum(axis=0).max() == pytest.approx(diagnose(states).norm)
    assert diagnose(states).norm > 2
    near = feasible(states)
    assert near.baseline.well_posedness <= 0.99
    result = simjax.fit(near, "l1", matching="exact", rescale="none", fit_intercept=True)
    assert result.converged
    assert_allclose(result.model.A, near.baseline.A, rtol=0, atol=1e-6)
    assert_allclose(result.model(states.inputs), states.outputs, rtol=0, atol=1e-5)


# ---- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [diagnose, feasible, rescaled_by_measure, eliminate_diagonal])
def test_bad_subjects_are_named(function):
    with pytest.raises(TypeError, match=r"subject must be an ImplicitModel or simjax\.States, got ndarray"):
        function(np.eye(2))
    states = simjax.States([[1.0]], [[1.0]], [[1.0]], [[1.0]])
    with pytest.raises(ValueError, match="states must know their baseline"):
        function(states)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: diagnose(m, 1.0), r"kappa must be a number in \(0, 1\)"),
        (lambda m: feasible(m, np.nan), "kappa must be finite"),
        (lambda m: eliminate_diagonal(m), "'tanh' and max a_ii = 0.5"),
        (lambda m: rescaled_by_measure(m), "activation 'tanh' does not satisfy"),
        (lambda m: rescaled_by_measure(model_of(np.array(BEYOND), np.random.default_rng(0))), "below one, it is 2 "),
        (lambda m: eliminate_diagonal(model_of(np.eye(1), np.random.default_rng(0))), "max a_ii = 1"),
        (lambda m: spectral_abscissa([[1.0, 2.0]]), "A must be square"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(model_of(0.5 * np.eye(2), np.random.default_rng(0), "tanh"))
