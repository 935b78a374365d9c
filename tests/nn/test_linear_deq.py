"""Linear DEQ: the direct solution, and what gradient flow and gradient descent conserve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose
from scipy.integrate import solve_ivp

from simjax.nn.linear_deq import LinearDEQ

P_IN, N, Q_OUT, M = 3, 4, 2, 20


def problem(seed=0):
    rng = np.random.default_rng(seed)
    parameters = (0.2 * rng.normal(size=(N, N)), rng.normal(size=(N, P_IN)), rng.normal(size=(Q_OUT, N)))
    return parameters, rng.normal(size=(M, P_IN)), rng.normal(size=(M, Q_OUT))


def gradient_function(U, Y, phi=None):
    """∇ of a loss that is not quadratic, Σ log cosh(ŷ − y)/m, in (A, B, C); with φ by differentiating an iteration."""

    def outputs(A, B, C):
        if phi is None:
            z = jnp.linalg.solve(jnp.eye(N) - A, B @ U.T)
        else:
            z = jax.lax.fori_loop(0, 200, lambda _, z: phi(A @ z + B @ U.T), jnp.zeros((N, M)))
        return (C @ z).T

    def loss(parameters):
        return jnp.sum(jnp.log(jnp.cosh(outputs(*parameters) - Y))) / M

    return jax.jit(jax.grad(loss))


def invariants(A, B, C):
    P = np.eye(N) - A
    return P @ P.T + B @ B.T, P.T @ P + C.T @ C


def flow(gradient, parameters, time):
    """The parameters after gradient flow for that time, to 1e-12."""
    shapes = [part.shape for part in parameters]
    splits = np.cumsum([part.size for part in parameters])[:-1]

    def unpack(vector):
        return [part.reshape(shape) for part, shape in zip(np.split(vector, splits), shapes)]

    def velocity(_, vector):
        return -np.concatenate([np.asarray(g).ravel() for g in gradient(tuple(unpack(vector)))])

    start = np.concatenate([part.ravel() for part in parameters])
    return unpack(solve_ivp(velocity, (0, time), start, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1])


def test_gradient_flow_conserves_both_matrices():
    parameters, U, Y = problem()
    with jax.enable_x64(True):
        end = flow(gradient_function(U, Y), parameters, 3.0)
    assert max(np.abs(a - b).max() for a, b in zip(parameters, end)) > 0.3  # it did move
    for before, after in zip(invariants(*parameters), invariants(*end)):
        assert np.abs(after - before).max() < 1e-9
    rows_before, rows_after = (np.diag(invariants(*x)[0]) for x in (parameters, end))
    assert_allclose(rows_after, rows_before, rtol=0, atol=1e-9)  # each row (P_i, B_i) stays on a sphere


def test_gradient_flow_of_a_tanh_model_does_not():
    parameters, U, Y = problem()
    with jax.enable_x64(True):
        end = flow(gradient_function(U, Y, jnp.tanh), parameters, 1.0)
    for before, after in zip(invariants(*parameters), invariants(*end)):
        assert np.abs(after - before).max() > 1e-3


def test_gradient_descent_adds_the_squares_of_its_gradients():
    """PPᵀ + BBᵀ = initial + η²Σ(G_PG_Pᵀ + G_BG_Bᵀ) exactly: drift is positive semidefinite and O(η)."""
    parameters, U, Y = problem()
    drifts = []
    with jax.enable_x64(True):
        gradient = gradient_function(U, Y)
        for eta, steps in ((0.02, 100), (0.01, 200)):
            A, B, C = parameters
            added = [np.zeros((N, N)), np.zeros((N, N))]
            for _ in range(steps):
                G_A, G_B, G_C = (np.asarray(g) for g in gradient((A, B, C)))
                added[0] += eta**2 * (G_A @ G_A.T + G_B @ G_B.T)  # G_P = −G_A
                added[1] += eta**2 * (G_A.T @ G_A + G_C.T @ G_C)
                A, B, C = A - eta * G_A, B - eta * G_B, C - eta * G_C
            for before, after, extra in zip(invariants(*parameters), invariants(A, B, C), added):
                assert_allclose(after, before + extra, rtol=0, atol=1e-13)
                assert np.linalg.eigvalsh(after - before)[0] >= -1e-13
            drifts.append(np.linalg.norm(added[0]))
    assert 1.9 < drifts[0] / drifts[1] < 2.2


@pytest.mark.parametrize("seed", range(10))
def test_conditioning_follows_from_the_law(seed):
    """σ_min(P)² ≥ λ_min(PPᵀ + BBᵀ)/(1 + ‖P⁻¹B‖₂²), at every point."""
    rng = np.random.default_rng(seed)
    P, B = rng.normal(size=(N, N)), rng.normal(size=(N, P_IN))
    bound = np.linalg.eigvalsh(P @ P.T + B @ B.T)[0] / (1 + np.linalg.norm(np.linalg.solve(P, B), 2) ** 2)
    assert np.linalg.svd(P)[1][-1] ** 2 >= bound * (1 - 1e-12)


def test_the_module_reports_what_is_conserved_and_solves_directly():
    parameters, U, _ = problem()
    with jax.enable_x64(True):
        graph, state = nnx.split(LinearDEQ(P_IN, N, Q_OUT))
        module = nnx.merge(graph, jax.tree.map(lambda a: a.astype(jnp.float64), state))
        for name, value in zip("ABC", parameters):
            getattr(module, name)[...] = jnp.asarray(value)
        outputs = np.asarray(module(jnp.asarray(U)))
    A, B, C = parameters
    assert_allclose(outputs, (C @ np.linalg.solve(np.eye(N) - A, B @ U.T)).T, rtol=0, atol=1e-12)
    for found, expected in zip(module.conserved(), invariants(*parameters)):
        assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_it_starts_well_conditioned():
    for matrix in LinearDEQ(P_IN, N, Q_OUT).conserved():
        assert np.linalg.eigvalsh(matrix)[0] >= 1 - 1e-12


def test_a_singular_model_is_reported():
    module = LinearDEQ(P_IN, N, Q_OUT)
    module.A[...] = jnp.eye(N)
    result = module.equilibrium(jnp.ones((2, P_IN)))
    assert not result.report.converged.any()
    assert jnp.isnan(result.x).all()
    with pytest.raises(RuntimeError, match="equilibria of 2 of 2 samples"):
        module.states(np.ones((2, P_IN)))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="q must be at least 1"):
        LinearDEQ(3, 4, 0)
    with pytest.raises(ValueError, match=r"inputs must have shape \(m, 3\)"):
        LinearDEQ(3, 4, 2).states(np.ones((2, 2)))
