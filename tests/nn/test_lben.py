"""LBEN: the LMI holds by construction, and for the layers and cascades that are special cases of it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from simjax.nn.lben import (
    LBEN,
    amplify,
    aol,
    cascade,
    cpl,
    mondeq_form,
    orthogonal_rows,
    sandwich,
    sll,
)
from simjax.nn.mondeq import MonDEQ
from simjax.robustness import certified_radii, lipschitz_lmi, sampled_lipschitz

SEEDS = st.integers(0, 10**6)


def random_lben(rng, p=4, n=6, q=3, **kwargs):
    graph, state = nnx.split(LBEN(p, n, q, **kwargs))
    return nnx.merge(graph, jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), state))


def relu(z):
    return np.maximum(z, 0)


def layers(rng, p=4, h=6, q=3):
    """Each special case with the function it is: (form, function of rows)."""
    K, b, weights = rng.normal(size=(h, p)), rng.normal(size=h), np.exp(rng.normal(size=h))
    T = np.abs(K @ K.T) @ weights / weights
    norm = np.linalg.norm(K, 2) ** 2
    P = rng.normal(size=(h, p))
    t = np.abs(P.T @ P).sum(axis=1)
    G, H = orthogonal_rows(rng.normal(size=(h, q)), rng.normal(size=(h, p)))
    psi = np.exp(rng.normal(size=h))
    return {
        "sll": (sll(K, b, weights), lambda x: x - relu(x @ K.T + b) @ (2 * K.T / T).T),
        "cpl": (cpl(K, b), lambda x: x - 2 / norm * relu(x @ K.T + b) @ K),
        "aol": (aol(P, b), lambda x: relu(x @ (P / np.sqrt(t)).T + b)),
        "sandwich": (
            sandwich(G, H, psi, b),
            lambda x: np.sqrt(2) * (psi * relu(np.sqrt(2) * x @ H.T / psi + b)) @ G,
        ),
    }


LAYERS = ("sll", "cpl", "aol", "sandwich")


def jacobian(model, s):
    inner = np.linalg.solve(np.eye(model.n) - s[:, None] * model.A, s[:, None] * model.B)
    return model.C @ inner + model.D


# ---- the parameterisation --------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, gamma=st.sampled_from([0.1, 1.0, 20.0]))
def test_the_slack_of_the_lmi_is_what_the_parameters_say(seed, gamma):
    """2Λ − ΛW − WᵀΛ − γ⁻¹(CᵀC + ΛUUᵀΛ) = 2(VᵀV + εI)."""
    with jax.enable_x64(True):
        module = random_lben(np.random.default_rng(seed), gamma=gamma, epsilon=0.1)
        V = np.asarray(module.V[...])
        form, model = module.form(), module.export()
    expected = 2 * (V.T @ V + 0.1 * np.eye(6))
    assert_allclose(form.slack(), expected, rtol=0, atol=1e-12 * max(1, np.abs(form.weights[:, None] * form.W).max()))
    assert_allclose(module.weights(), form.weights)
    scale = np.abs(form.weights[:, None] * form.W).max()
    assert lipschitz_lmi(model, module.weights(), gamma) >= -1e-12 * scale
    J = [jacobian(model, np.array(s)) for s in itertools.product([0.0, 1.0], repeat=6)]
    assert max(np.linalg.norm(j, 2) for j in J) <= gamma * (1 + 1e-9)


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_inverse_map(seed):
    with jax.enable_x64(True):
        form = random_lben(np.random.default_rng(seed), gamma=2.0).form()
        back = LBEN.from_form(form).form()
    for name in ("W", "U", "C", "weights", "b", "c", "gamma"):
        scale = max(1, np.abs(getattr(form, name)).max())
        assert_allclose(getattr(back, name), getattr(form, name), rtol=0, atol=1e-11 * scale)


@pytest.mark.slow
def test_the_sampled_constant_is_below_gamma_and_certifies_radii():
    rng = np.random.default_rng(0)
    module = LBEN(4, 8, 3, gamma=0.7)
    model, U = module.export(), rng.normal(size=(40, 4))
    assert module.lipschitz_l2() == 0.7
    assert sampled_lipschitz(model, U, "l2") <= 0.7
    outputs = module.states(U).outputs
    labels = outputs.argmax(axis=1)
    radii = certified_radii(model, U, labels, norm="l2", lipschitz=0.7)
    top = np.sort(outputs, axis=1)
    assert_allclose(radii, (top[:, -1] - top[:, -2]) / (np.sqrt(2) * 0.7), rtol=1e-6)
    for _ in range(20):
        direction = rng.normal(size=U.shape)
        moved = U + 0.99 * radii[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        assert_array_equal(module.states(moved).outputs.argmax(axis=1), labels)


# ---- special cases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("seed", range(5))
def test_special_cases_satisfy_the_lmi(name, seed):
    """The least eigenvalue is ≥ −4e-13, with an identity state for x and, exported, with D = I instead."""
    rng = np.random.default_rng(seed)
    form, function = layers(rng)[name]
    assert form.gamma == 1.0
    assert np.linalg.eigvalsh(form.slack())[0] >= -4e-13
    with jax.enable_x64(True):
        module = LBEN.from_form(form)
        model, weights, U = module.export(), module.weights(), rng.normal(size=(10, 4))
        states = module.states(U)
    assert lipschitz_lmi(model, weights, 1.0) >= -4e-13
    assert_allclose(states.outputs, function(U), rtol=0, atol=1e-9)
    J = np.stack([jacobian(model, s) for s in [*rng.integers(0, 2, (60, 6)), *rng.random((60, 6))]])
    assert np.linalg.norm(J, 2, axis=(1, 2)).max() <= 1 + 1e-12


def test_the_table_of_special_cases():
    rng = np.random.default_rng(1)
    K, q = rng.normal(size=(6, 4)), np.exp(rng.normal(size=6))
    T = np.abs(K @ K.T) @ q / q
    G, H = orthogonal_rows(rng.normal(size=(6, 3)), rng.normal(size=(6, 4)))
    psi = np.exp(rng.normal(size=6))
    norm = np.linalg.norm(K, 2) ** 2
    t = np.abs(K.T @ K).sum(axis=1)
    rows = [
        (sll(K, q=q), K, -2 * K.T / T, np.eye(4), 2 / T),
        (cpl(K), K, -2 * K.T / norm, np.eye(4), np.full(6, 2 / norm)),
        (aol(K), K / np.sqrt(t), np.eye(6), np.zeros((6, 4)), np.ones(6)),
        (
            sandwich(G, H, psi),
            np.sqrt(2) * H / psi[:, None],
            np.sqrt(2) * G.T * psi,
            np.zeros((3, 4)),
            psi**2,
        ),
    ]
    for form, B, C, D, weights in rows:
        with jax.enable_x64(True):
            module = LBEN.from_form(form)
            model = module.export()
        assert_allclose(model.A, 0, rtol=0, atol=1e-13)
        for found, expected in ((model.B, B), (model.C, C), (model.D, D), (module.weights(), weights)):
            assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    assert_allclose(sandwich(G, H, psi).slack(), 0, rtol=0, atol=1e-13)  # no slack at all


def test_a_mondeq_is_an_lben_with_its_own_constant():
    rng = np.random.default_rng(2)
    module = MonDEQ(4, 6, 3, m=0.7)
    form = mondeq_form(module)
    assert_allclose(form.gamma, module.lipschitz_l2(), rtol=1e-12)
    assert np.linalg.eigvalsh(form.slack())[0] >= -4e-13
    with jax.enable_x64(True):
        same = LBEN.from_form(form)
        U = rng.normal(size=(10, 4))
        assert_allclose(same.states(U).outputs, module.states(U).outputs, rtol=0, atol=1e-8)
    assert lipschitz_lmi(module.export(), form.weights, form.gamma) >= -4e-13


# ---- cascades --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [*LAYERS, "mondeq"])
@pytest.mark.parametrize("second", [*LAYERS, "mondeq"])
def test_cascades_satisfy_the_lmi_with_the_product_of_the_constants(first, second):
    """Λ = blkdiag(γ₂Λ₁, Λ₂/γ₁) and γ = γ₁γ₂."""
    rng = np.random.default_rng(3)
    one = mondeq_form(MonDEQ(4, 6, 3)) if first == "mondeq" else layers(rng)[first][0]
    size = one.C.shape[0]
    two = mondeq_form(MonDEQ(size, 5, 2)) if second == "mondeq" else layers(rng, p=size)[second][0]
    for factor in (1.0, 7.0):
        both = cascade(amplify(one, factor), two)
        assert both.gamma == pytest.approx(factor * one.gamma * two.gamma, rel=1e-12)
        assert np.linalg.eigvalsh(both.slack())[0] >= -1e-12 * np.abs(both.weights).max()


def test_a_network_of_lipschitz_layers_is_one_lben():
    """Three layers and a gain: outputs are the composition, the constant is the product, and it trains on."""
    rng = np.random.default_rng(4)
    (first, f), (second, g) = layers(rng)["sandwich"], layers(rng, p=3, h=5)["sll"]
    third, h = layers(rng, p=3, h=4)["aol"]
    network = amplify(cascade(cascade(first, second), third), 5.0)
    assert network.gamma == 5.0
    assert network.identity.sum() == 3
    with jax.enable_x64(True):
        module = LBEN.from_form(network)
        U = rng.normal(size=(12, 4))
        states = module.states(U)
        model = module.export()
        assert model.n == 6 + 5 + 4
        assert_allclose(states.outputs, 5 * h(g(f(U))), rtol=0, atol=1e-9)
        assert lipschitz_lmi(model, module.weights(), 5.0) >= -1e-12 * module.weights().max()
        # training moves it off the network's structure, but never off its constant
        graph, state = nnx.split(module)
        moved = nnx.merge(graph, jax.tree.map(lambda a: a + 0.3 * jnp.asarray(rng.normal(size=a.shape)), state))
        model = moved.export()
        assert np.abs(np.tril(model.A)).max() > 0.1
        assert lipschitz_lmi(model, moved.weights(), 5.0) >= -1e-11 * moved.weights().max()
    J = [jacobian(model, s) for s in [*rng.integers(0, 2, (100, 15)), *rng.random((100, 15))]]
    assert max(np.linalg.norm(j, 2) for j in J) <= 5 * (1 + 1e-9)


# ---- errors ----------------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    rng = np.random.default_rng(5)
    K = rng.normal(size=(6, 4))
    form = aol(K)
    cases = [
        (lambda: LBEN(4, 6, 3, gamma=0.0), "gamma must be a positive"),
        (lambda: LBEN(4, 6, 3, epsilon=-1.0), "epsilon must be a positive"),
        (lambda: LBEN(4, 0, 3), "n must be at least 1"),
        (lambda: LBEN.from_form(form._replace(gamma=0.5)), "form must satisfy its LMI with gamma = 0.5"),
        (lambda: LBEN.from_form(form._replace(weights=-form.weights)), "form.weights must be positive"),
        (lambda: LBEN.from_form(form._replace(b=np.zeros(2))), r"form.b must have shape \(6,\)"),
        (lambda: LBEN.from_form(form._replace(W=np.zeros((5, 5)))), "form must have W"),
        (
            lambda: LBEN.from_form(form._replace(identity=np.ones(6, bool))),
            "form.identity must be 6 booleans",
        ),
        (lambda: sll(np.zeros((2, 3))), "K must have no zero row"),
        (lambda: sll(K, q=-np.ones(6)), "q must be positive"),
        (lambda: sll(K, b=np.zeros(4)), r"b must have shape \(6,\)"),
        (lambda: aol(np.zeros((2, 3))), "P must have no zero column"),
        (lambda: sandwich(K, K), "GGᵀ"),
        (lambda: sandwich(np.eye(2), np.eye(3)), "same number of rows"),
        (lambda: orthogonal_rows(np.ones((3, 1)), np.ones((3, 1))), "full row rank"),
        (lambda: cascade(form, form), "first has 6 outputs, second has 4 inputs"),
        (lambda: amplify(form, -1.0), "factor must be a positive"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="module must be a MonDEQ"):
        mondeq_form(LBEN(4, 6, 3))
    with pytest.raises(TypeError, match="form must be a LipschitzForm"):
        LBEN.from_form(K)
