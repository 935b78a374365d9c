"""MonDEQ: strong monotonicity by construction, splittings that agree, their rate and derivatives, the bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from simjax.implicit.loop import Solver
from simjax.nn.mondeq import SPLITTINGS, MonDEQ, solve_monotone
from simjax.robustness.lipschitz import lipschitz_bounds, monotonicity, sampled_lipschitz


def random_mondeq(rng, p=4, n=6, q=3, scale=1.0, **kwargs):
    graph, state = nnx.split(MonDEQ(p, n, q, **kwargs))
    return nnx.merge(graph, jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape)), state))


def monotone_matrix(rng, n, m):
    P, Q = rng.normal(size=(2, n, n)) / np.sqrt(n)
    return (1 - m) * np.eye(n) - P.T @ P + Q - Q.T


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    m=st.sampled_from([0.05, 1.0, 3.0]),
    tiers=st.sampled_from([None, (2, 4), (1, 2, 3)]),
    scale=st.sampled_from([0.1, 2.0]),
)
def test_every_parameter_is_strongly_monotone(seed, m, tiers, scale):
    with jax.enable_x64(True):
        model = random_mondeq(np.random.default_rng(seed), m=m, tiers=tiers, scale=scale).export()
    assert monotonicity(model.A) >= m - 1e-12 * max(1, np.abs(model.A).max())


def test_tiers_have_the_published_blocks():
    """W_ii = (1−m)I − A_iiᵀA_ii − A_{i+1,i}ᵀA_{i+1,i} + B_ii − B_iiᵀ, W_{i+1,i} = −2A_{i+1,i+1}ᵀA_{i+1,i}, else 0."""
    with jax.enable_x64(True):
        module = random_mondeq(np.random.default_rng(0), m=0.5, tiers=(2, 1, 3))
        W, P, Q = module.export().A, np.asarray(module.P[...]), np.asarray(module.Q[...])
    edges = [slice(0, 2), slice(2, 3), slice(3, 6)]
    for i, rows in enumerate(edges):
        diagonal = (
            0.5 * np.eye(rows.stop - rows.start) - P[rows, rows].T @ P[rows, rows] + Q[rows, rows] - Q[rows, rows].T
        )
        if i < 2:
            below = edges[i + 1]
            diagonal -= P[below, rows].T @ P[below, rows]
            assert_allclose(W[below, rows], -2 * P[below, below].T @ P[below, rows], rtol=0, atol=1e-12)
        assert_allclose(W[rows, rows], diagonal, rtol=0, atol=1e-12)
    assert_array_equal(W[:2, 2:], 0)
    assert_array_equal(W[2, 3:], 0)
    assert_array_equal(W[3:, :2], 0)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), m=st.sampled_from([0.3, 1.0]))
def test_splittings_agree_for_every_step(seed, m):
    rng = np.random.default_rng(seed)
    W, drive = monotone_matrix(rng, 5, m), rng.normal(size=(4, 5))
    with jax.enable_x64(True):
        W, drive = jnp.asarray(W), jnp.asarray(drive)
        solver = Solver(tol=1e-12, max_iters=100_000)
        plain = Solver(tol=1e-12, max_iters=100_000, method="picard")
        found = [
            solve_monotone(W, drive, splitting="forward_backward", solver=plain),
            solve_monotone(W, drive, splitting="forward_backward", solver=solver, m=m),
            *(solve_monotone(W, drive, solver=plain, alpha=alpha) for alpha in (0.1, 1.0, 10.0)),
            solve_monotone(W, drive, solver=solver),
        ]
    W, drive = np.asarray(W), np.asarray(drive)
    for z, report in found:
        assert report.converged.all()
        assert_allclose(z, found[0].x, rtol=0, atol=1e-8)
        z = np.asarray(z)
        assert_allclose(np.maximum(z @ W.T + drive, 0), z, rtol=0, atol=1e-8)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.3, 1.0, 1.7]))
def test_forward_backward_contracts_at_the_stated_rate(seed, share):
    """Each step shrinks ‖z − z*‖₂ by √(1 − 2αm + α²L²), for 0 < α < 2m/L²."""
    rng = np.random.default_rng(seed)
    W, drive = monotone_matrix(rng, 4, 1.0), rng.normal(size=(3, 4))
    m, L = monotonicity(W), np.linalg.norm(np.eye(4) - W, 2)
    alpha = share * m / L**2
    rate = np.sqrt(1 - 2 * alpha * m + alpha**2 * L**2)
    assert rate < 1
    with jax.enable_x64(True):
        exact = np.asarray(
            solve_monotone(jnp.asarray(W), jnp.asarray(drive), solver=Solver(tol=1e-13, max_iters=10**5)).x
        )
        error = np.linalg.norm(exact, axis=1)
        for k in (1, 5, 20):
            solver = Solver(method="picard", max_iters=k, unconverged="keep")
            z = solve_monotone(
                jnp.asarray(W), jnp.asarray(drive), splitting="forward_backward", alpha=alpha, solver=solver
            ).x
            assert np.all(np.linalg.norm(z - exact, axis=1) <= rate**k * error + 1e-9)


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_gradient_is_the_formula(splitting):
    """λ = (I − WᵀS)⁻¹g, and ∂/∂drive = Sλ, ∂/∂W = Σ Sλ zᵀ."""
    rng = np.random.default_rng(1)
    W, drive, g = monotone_matrix(rng, 5, 0.5), rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    with jax.enable_x64(True):
        solver = Solver(tol=1e-13, max_iters=10**5)

        def loss(W, drive):
            return jnp.sum(solve_monotone(W, drive, splitting=splitting, solver=solver).x * g)

        by_W, by_drive = jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(W), jnp.asarray(drive))
        z = np.asarray(solve_monotone(jnp.asarray(W), jnp.asarray(drive), solver=solver).x)
    S = z @ W.T + drive > 0
    adjoint = np.stack([s * np.linalg.solve(np.eye(5) - W.T * s, v) for s, v in zip(S, g)])
    assert_allclose(by_drive, adjoint, rtol=0, atol=1e-9)
    assert_allclose(by_W, adjoint.T @ z, rtol=0, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_lipschitz_bound(seed):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        module = random_mondeq(rng, m=0.5)
    model = module.export()
    jacobians, inner = [], []
    for s in [*rng.integers(0, 2, size=(40, 6)), *rng.random((40, 6))]:
        inner.append(np.linalg.solve(np.eye(6) - s[:, None] * model.A, s[:, None] * model.B))
        jacobians.append(model.C @ inner[-1])
    assert max(np.linalg.norm(J, 2) for J in inner) <= np.linalg.norm(model.B, 2) / 0.5
    bound = module.lipschitz_l2()
    assert max(np.linalg.norm(J, 2) for J in jacobians) <= bound
    assert lipschitz_bounds(model).monotone_l2 <= bound * (1 + 1e-9)


def test_sampled_constant_of_the_module_is_below_its_bound():
    module = MonDEQ(4, 6, 3)
    assert (
        sampled_lipschitz(module.export(), np.random.default_rng(2).normal(size=(50, 4)), "l2") <= module.lipschitz_l2()
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MonDEQ(4, 6, 3, m=0.0), "m must be a positive"),
        (lambda: MonDEQ(4, 6, 3, tiers=(2, 3)), "tiers must sum to n = 6"),
        (lambda: MonDEQ(4, 6, 3, tiers=(6, 0)), "tiers must be at least 1"),
        (lambda: MonDEQ(4, 6, 3, splitting="douglas"), "splitting must be one of"),
        (lambda: solve_monotone(jnp.eye(2), jnp.ones((1, 2)), splitting="x"), "splitting must be one of"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
