"""The deep equilibrium single-index model: its conservation law, its flow, and descent to the global minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose
from scipy.integrate import solve_ivp

import simjax
from simjax.implicit.activations import LEAKY_SLOPE
from simjax.nn import SingleIndexDEQ

P, M = 4, 60
SLOPES = {"identity": 1.0, "leaky_relu": LEAKY_SLOPE}  # γ


def module_of(a, b, activation):
    graph, state = nnx.split(SingleIndexDEQ(len(b), activation=activation))
    module = nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), state))
    module.a[...], module.b[...] = jnp.asarray(a), jnp.asarray(b)
    return module


def problem(activation, seed=0):
    """Samples of a model with the index θ*, a start (a, b), and ∇ of ½ mean (ŷ − y)² in both, through the module."""
    rng = np.random.default_rng(seed)
    inputs, truth = rng.normal(size=(M, P)), rng.normal(size=P)
    targets = np.asarray(module_of(0.0, truth, activation)(inputs))
    graph, _ = nnx.split(module_of(0.0, truth, activation))

    def loss(a, b):
        state = nnx.State({"a": nnx.Param(a), "b": nnx.Param(b)})
        return 0.5 * jnp.mean((nnx.merge(graph, state)(inputs) - targets) ** 2)

    start = 0.3, rng.normal(size=P)
    return inputs, truth, start, jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def invariant(a, b):
    return (1.0 - a) ** 2 + b @ b


def flow(slopes, start, times, rtol=1e-12):
    """(a, b) after gradient flow for each of these times."""

    def velocity(_, vector):
        _, (a, b) = slopes(vector[0], vector[1:])
        return -np.concatenate([[a], b])

    begin = np.concatenate([[start[0]], start[1]])
    found = solve_ivp(velocity, (0.0, times[-1]), begin, t_eval=times, method="DOP853", rtol=rtol, atol=0.1 * rtol)
    return [(vector[0], vector[1:]) for vector in found.y.T]


@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "tanh"])
def test_gradient_flow_conserves_a_sphere(activation):
    with jax.enable_x64(True):
        _, _, start, slopes = problem(activation)
        (a, b), *_ = flow(slopes, start, [4.0])
    assert np.abs(b - start[1]).max() > 0.1  # it did move
    assert invariant(a, b) == pytest.approx(invariant(*start), abs=1e-9)


def test_in_the_index_it_is_the_flow_of_the_sphere_s_metric():
    """dθ/dt = −(1 + ‖θ‖²)(I + θθᵀ)∇L(θ)/c."""
    with jax.enable_x64(True):
        _, _, (a, b), slopes = problem("leaky_relu")
        _, (slope_a, slope_b) = slopes(a, b)
        theta, radius = b / (1.0 - a), invariant(a, b)
        moved = -np.asarray(slope_b) / (1.0 - a) - b * float(slope_a) / (1.0 - a) ** 2
        in_index = np.asarray(slope_b) * (1.0 - a)  # ∂L/∂b = ∇L(θ)/(1 − a)
    metric = (1.0 + theta @ theta) * (np.eye(P) + np.outer(theta, theta)) / radius
    assert_allclose(moved, -metric @ in_index, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", sorted(SLOPES))
@pytest.mark.parametrize("seed", range(2))
def test_gradient_flow_falls_at_least_at_the_linear_rate(activation, seed):
    """L(t) ≤ L(0) exp(−2γ⁴λ_min²t/(cλ_max)), at every time."""
    times = np.linspace(0.5, 10.0, 12)
    with jax.enable_x64(True):
        inputs, _, start, slopes = problem(activation, seed)
        losses = np.array([float(slopes(a, b)[0]) for a, b in flow(slopes, start, times, rtol=1e-8)])
        first = float(slopes(*start)[0])
    eigenvalues = np.linalg.eigvalsh(inputs.T @ inputs / M)
    rate = 2.0 * SLOPES[activation] ** 4 * eigenvalues[0] ** 2 / (invariant(*start) * eigenvalues[-1])
    assert np.all(losses <= first * np.exp(-rate * times) * (1.0 + 1e-9))
    assert losses[-1] < 0.1 * first


@pytest.mark.parametrize("activation", sorted(SLOPES))
def test_gradient_descent_reaches_the_global_minimum_with_small_steps(activation):
    steps, eta = 3000, 0.1
    with jax.enable_x64(True):
        _, truth, start, slopes = problem(activation)

        def step(carry, _):
            a, b, added = carry
            loss, (slope_a, slope_b) = slopes(a, b)
            added = added + eta**2 * (slope_a**2 + slope_b @ slope_b)
            return (a - eta * slope_a, b - eta * slope_b, added), loss

        begin = jnp.asarray(start[0]), jnp.asarray(start[1]), jnp.zeros(())
        (a, b, added), losses = jax.lax.scan(step, begin, length=steps)
        a, b, added, losses = (np.asarray(x) for x in (a, b, added, losses))
    assert_allclose(b / (1.0 - a), truth, atol=1e-8)
    assert losses[-1] < 1e-16 * losses[0]
    assert np.all(np.diff(losses) <= 1e-18)
    # What the discretisation adds to the conserved quantity, exactly.
    assert invariant(a, b) == pytest.approx(invariant(*start) + added, rel=1e-12)
    # Linear convergence: the loss falls by about the same factor over equal times, until rounding.
    logs = np.log(losses[200:1000:200])
    assert np.all(np.diff(logs) < -1.0)


def test_descent_follows_the_flow_the_closer_the_smaller_its_steps():
    with jax.enable_x64(True):
        _, _, start, slopes = problem("identity")
        (a, b), *_ = flow(slopes, start, [2.0])
        away = []
        for eta in (0.002, 0.001):
            at = start
            for _ in range(round(2.0 / eta)):
                _, (slope_a, slope_b) = slopes(*at)
                at = at[0] - eta * float(slope_a), at[1] - eta * np.asarray(slope_b)
            away.append(np.hypot(at[0] - a, np.linalg.norm(at[1] - b)))
    assert 1.8 < away[0] / away[1] < 2.2


def test_the_module_says_what_it_is():
    module = SingleIndexDEQ(P, activation="tanh")
    module.a[...] = 0.5
    inputs = np.random.default_rng(0).normal(size=(7, P)).astype(np.float32)
    theta = np.asarray(module.index())
    assert_allclose(theta, 2.0 * np.asarray(module.b[...]), rtol=1e-6)
    assert_allclose(module(inputs)[:, 0], np.tanh(inputs @ theta), rtol=1e-5, atol=1e-6)
    assert module(inputs[0]).shape == (1,)
    assert module.conserved() == pytest.approx(0.25 + float(jnp.sum(module.b[...] ** 2)), rel=1e-6)
    states = module.states(inputs)
    z = np.asarray(module.equilibrium(inputs).x)
    assert_allclose(states.activations, z, rtol=1e-5, atol=1e-6)
    # Its state is linear in itself and the inputs: an exact row of an implicit model, which a fit finds.
    result = simjax.fit(states, "l1", alpha=1e-8, support="full")
    assert result.converged


def test_a_singular_model_is_reported():
    module = SingleIndexDEQ(P)
    module.a[...] = 1.0
    inputs = np.ones((2, P), np.float32)
    assert np.isnan(module(inputs)).all()
    assert not module.equilibrium(inputs).report.converged.any()
    with pytest.raises(RuntimeError, match="not found"):
        module.states(inputs)


def test_inputs_are_taken_as_by_every_network():
    module = SingleIndexDEQ(P)
    for call in (module, module.equilibrium):
        with pytest.raises(ValueError, match=r"inputs must have shape \(m, 4\), or \(4,\) for one sample, got \("):
            call(jnp.ones((2, 3)))
        with pytest.raises(TypeError, match="inputs must be float32 or float64, got "):
            call(jnp.ones((2, P), jnp.bfloat16))
    assert_allclose(module(np.ones((2, P), int)), module(np.ones((2, P), np.float32)))
    assert module.equilibrium(np.ones(P, np.float32)).x.shape == (1,)


@pytest.mark.parametrize(("arguments", "error"), [((0,), ValueError), ((2.5,), TypeError)])
def test_bad_sizes(arguments, error):
    with pytest.raises(error, match="p must be"):
        SingleIndexDEQ(*arguments)


def test_an_unknown_activation():
    with pytest.raises(ValueError, match="activation"):
        SingleIndexDEQ(2, activation="gelu")
