"""GEQ (a reconstruction): the equilibrium minimises its objective, the map contracts, influence is bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from simjax.implicit.equilibrium import equilibrium
from simjax.nn.geq import CURVATURE, GEQ


def random_geq(rng, p=4, n=5, q=3, **kwargs):
    graph, state = nnx.split(GEQ(p, n, q, **kwargs))
    return nnx.merge(graph, jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), state))


def parts(module):
    with jax.enable_x64(True):
        W, H = (np.asarray(part) for part in module.bounded_weights())
        return W, H, np.asarray(module.B[...]), np.asarray(module.b[...])


def layer_map(W, H, drive, gamma, s):
    z = s @ W
    r = drive - z @ H.T
    k = np.exp(-gamma * (r**2).sum(axis=-1, keepdims=True))
    return np.maximum((z + k * r @ H) @ W.T, 0)


@pytest.mark.parametrize("gamma", [0.02, 0.5])
def test_the_equilibrium_is_the_minimiser_from_every_start(gamma):
    """J(s) = ½‖s‖² − ½‖Wᵀs‖² − exp(−γ‖r‖²)/(2γ) over s ≥ 0, by L-BFGS-B."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        module = random_geq(rng, gamma=gamma)
        U = rng.normal(size=(3, 4))
        X = module.states(U).activations
    W, H, B, b = parts(module)
    for u, x in zip(U, X):
        drive = B @ u + b

        def objective(s, drive=drive):
            z = W.T @ s
            r = drive - H @ z
            k = np.exp(-gamma * r @ r)
            return 0.5 * s @ s - 0.5 * z @ z - k / (2 * gamma), s - W @ (z + k * H.T @ r)

        for _ in range(4):
            start = np.abs(rng.normal(size=5)) * 3
            options = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 5000}
            best = minimize(objective, start, jac=True, bounds=[(0, None)] * 5, method="L-BFGS-B", options=options)
            assert_allclose(best.x, x, rtol=0, atol=1e-7)


def test_the_curvature_constant_is_that_of_the_gaussian():
    """The Hessian of −exp(−γ‖r‖²)/(2γ) has the eigenvalues k and k(1 − 2γ‖r‖²), between −2e^(−3/2) and 1."""
    t = np.linspace(0, 20, 200_001)
    eigenvalues = np.exp(-t) * (1 - 2 * t)
    assert_allclose(eigenvalues.min(), -CURVATURE, rtol=0, atol=1e-9)
    assert eigenvalues.max() == 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), gamma=st.sampled_from([0.01, 0.3, 3.0]), q=st.sampled_from([0.3, 0.95]))
def test_the_map_contracts_and_influence_is_bounded(seed, gamma, q):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        module = random_geq(rng, gamma=gamma, contraction=q)
    W, H, *_ = parts(module)
    w, h = np.linalg.norm(W, 2), np.linalg.norm(H, 2)
    assert h <= 1 + 1e-12
    factor = w**2 * (1 + 0.4463 * h**2)
    assert factor <= q * (1 + 1e-4)
    drive, moved = rng.normal(size=(2, 50, 5)) * 5
    s, t = np.abs(rng.normal(size=(2, 50, 5))) * rng.choice([0.1, 10], size=(2, 50, 1))
    change = layer_map(W, H, drive, gamma, s) - layer_map(W, H, drive, gamma, t)
    assert np.all(np.linalg.norm(change, axis=1) <= factor * (1 + 1e-4) * np.linalg.norm(s - t, axis=1))
    r = np.concatenate([drive, 0.1 * moved, 100 * moved])
    k = np.exp(-gamma * (r**2).sum(axis=1))
    assert np.linalg.norm(k[:, None] * r, axis=1).max() <= 1 / np.sqrt(2 * np.e * gamma) * (1 + 1e-12)


def test_lipschitz_bound():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        module = random_geq(rng, gamma=0.3)
        u = jnp.asarray(rng.normal(size=(40, 4)))
        J = jax.jit(jax.vmap(jax.jacrev(lambda v: module(v[None])[0])))(u)
        sampled = np.linalg.norm(J, 2, axis=(1, 2)).max()
    assert 0 < sampled <= module.lipschitz_l2()


def test_a_flat_kernel_gives_an_opteq_with_linear_injection():
    """γ → 0: s = σ(W(I − HᵀH)Wᵀs + WHᵀ(Bu + b))."""
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        module = random_geq(rng, gamma=1e-9)
        U = rng.normal(size=(6, 4))
        X = module.states(U).activations
        W, H, B, b = parts(module)
        linear = equilibrium(W @ (np.eye(5) - H.T @ H) @ W.T, W @ H.T @ B, U, W @ H.T @ b, tol=1e-13)
    assert_allclose(X, linear.x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GEQ(4, 5, 3, gamma=0.0), "gamma must be a positive"),
        (lambda: GEQ(4, 5, 3, contraction=1.0), r"contraction must be a number in \(0, 1\)"),
        (lambda: GEQ(4, 5, 3, features=0), "features must be at least 1"),
        (lambda: GEQ(4, 5, 3, d=-1), "d must be at least 1"),
        (lambda: GEQ(4, 5, 3, activation="gelu"), "activation 'gelu'"),
        (lambda: GEQ(4, 5, 3).states(np.ones((2, 3))), r"inputs must have shape \(m, 4\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
