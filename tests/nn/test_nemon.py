"""NEMON: the parameterisation is onto the weighted l∞ set, and the adjoint iteration contracts in its dual."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from simjax.implicit.equilibrium import average_step, equilibrium
from simjax.implicit.model import ImplicitModel
from simjax.nn.nemon import NEMON
from simjax.robustness import lipschitz_bounds, matrix_measure, optimal_weights, sampled_lipschitz

SEEDS = st.integers(0, 10**6)


def random_nemon(rng, p=4, n=6, q=3, scale=1.0, **kwargs):
    """A NEMON whose parameters are float64 draws."""
    module = NEMON(p, n, q, **kwargs)
    graph, state = nnx.split(module)
    return nnx.merge(graph, jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape)), state))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, gamma=st.sampled_from([-3.0, -0.5, 0.0, 0.5, 0.99]), scale=st.sampled_from([0.1, 1.0, 5.0]))
def test_every_parameter_is_well_posed(seed, gamma, scale):
    with jax.enable_x64(True):
        module = random_nemon(np.random.default_rng(seed), gamma=gamma, scale=scale)
    A, eta = module.export().A, module.weights()
    spread = max(1.0, np.abs(A).max()) * eta.max() / eta.min()
    assert matrix_measure(A, eta) <= gamma + 1e-13 * spread


def test_the_other_orientation_of_the_weights_is_not_well_posed():
    """A = [η]⁻¹T[η] − diag(|T|1), as one paper prints it, does not have μ_η(A) ≤ 0 in that paper's norm."""
    rng = np.random.default_rng(0)
    T, eta = rng.normal(size=(6, 6)), np.exp(2 * rng.normal(size=6))
    row_sums = np.diag(np.abs(T).sum(axis=1))
    assert matrix_measure(T * eta[:, None] / eta - row_sums, eta) <= 1e-9
    assert matrix_measure(T / eta[:, None] * eta - row_sums, eta) > 1


@settings(max_examples=12, deadline=None)
@given(seed=SEEDS, excess=st.sampled_from([0.0, 0.3]))
def test_the_parameterisation_is_onto(seed, excess):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(5, 5))
    A -= np.diag(np.abs(A).sum(axis=1) * rng.uniform(0.5, 3, 5))
    if optimal_weights(A) is None:
        return
    model = ImplicitModel(
        A, rng.normal(size=(5, 3)), rng.normal(size=(2, 5)), rng.normal(size=(2, 3)), b=rng.normal(size=5)
    )
    for eta in (None, np.exp(0.2 * rng.normal(size=5))):
        measure = matrix_measure(A, optimal_weights(A) if eta is None else eta)
        if measure + excess >= 1:
            continue
        with jax.enable_x64(True):
            module = NEMON.from_model(model, gamma=measure + excess, eta=eta)
            back = module.export()
        assert np.all(np.diag(np.asarray(module.T[...])) <= 1e-9)  # the half of the diagonal that the map uses
        for name in ("A", "B", "C", "D", "b"):
            assert_allclose(getattr(back, name), getattr(model, name), rtol=1e-10, atol=1e-10)


def test_relu_states_rescaled_by_the_weights_are_in_the_unweighted_set():
    with jax.enable_x64(True):
        module = random_nemon(np.random.default_rng(1), gamma=0.5)
    model, U = module.export(), np.random.default_rng(2).normal(size=(10, 4))
    plain = model.scaled(1 / module.weights())
    assert matrix_measure(plain.A) <= 0.5 + 1e-12
    assert matrix_measure(model.A) > 0.5  # only the weighted measure was bounded
    states = module.states(U)
    X = states.activations / module.weights()
    assert_allclose(np.maximum(X @ plain.A.T + U @ plain.B.T + plain.b, 0), X, rtol=0, atol=1e-9)


def test_a_nemon_need_not_be_in_the_ball_nor_converge_by_plain_iteration():
    with jax.enable_x64(True):
        module = random_nemon(np.random.default_rng(3), gamma=0.5)
    model, U = module.export(), np.random.default_rng(4).normal(size=(10, 4))
    assert model.well_posedness > 5
    with jax.enable_x64(True):
        plain = equilibrium(model.A, model.B, U, model.b, method="picard", max_iters=1000).report
    assert not plain.converged.all()
    states = module.states(U)
    Z = states.activations @ model.A.T + U @ model.B.T + model.b
    assert_allclose(np.maximum(Z, 0), states.activations, rtol=0, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, gamma=st.sampled_from([-1.0, 0.0, 0.7]))
def test_the_adjoint_iteration_contracts_in_the_dual_norm(seed, gamma):
    """λ ← (1 − α)λ + α(AᵀSλ + g) shrinks Σ η_i|λ_i| by 1 − α(1 − μ⁺) for α ≤ α* and any slopes S."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        module = random_nemon(rng, gamma=gamma)
        A, eta = module.export().A, module.weights()
        step = float(average_step(jnp.asarray(A)))
    factor = 1 - step * (1 - max(matrix_measure(A, eta), 0))
    for _ in range(20):
        s = rng.choice([0.0, 1.0, rng.random()], size=6)
        difference = rng.normal(size=6)
        after = (1 - step) * difference + step * A.T @ (s * difference)
        assert eta @ np.abs(after) <= factor * (eta @ np.abs(difference)) * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("gamma", [-0.5, 0.6])
def test_lipschitz_bound_and_penalty(activation, gamma):
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        module = random_nemon(rng, gamma=gamma, activation=activation, direct=True)
        graph, state = nnx.split(module)
        penalty, gradient = jax.value_and_grad(lambda state: nnx.merge(graph, state).lipschitz_penalty())(state)
    bound, model = module.lipschitz_inf(), module.export()
    bounds = lipschitz_bounds(model, module.weights())
    assert bounds.inf <= bounds.mu_weighted <= bound * (1 + 1e-9)
    assert sampled_lipschitz(model, rng.normal(size=(30, 4))) <= bounds.inf
    direct = np.abs(model.D).sum(axis=1).max()
    if gamma >= 0:
        assert float(penalty) + direct >= bound * (1 - 1e-9)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NEMON(4, 6, 3, gamma=1.0), "gamma must be a number below 1"),
        (lambda: NEMON(4, 6, 3, gamma=np.nan), "gamma must be finite"),
        (lambda: NEMON(4, -1, 3), "n must be at least 1"),
        (lambda: NEMON.from_model(ImplicitModel([[2.0]], [[1]], [[1]], [[0]])), "μ_η"),
        (lambda: NEMON.from_model(ImplicitModel([[0.5]], [[1]], [[1]], [[0]]), gamma=0.1), "gamma = 0.1"),
        (
            lambda: NEMON.from_model(ImplicitModel([[0.5]], [[1]], [[1]], [[0]]), eta=[-1.0]),
            "eta must be 1 positive",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_only_models_are_imported():
    with pytest.raises(TypeError, match="model must be an ImplicitModel"):
        NEMON.from_model(np.eye(3))
