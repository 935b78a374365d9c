"""Fixed points: answers known in advance, rates, reports, derivatives, transforms."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from simjax.implicit.equilibrium import average_step, eliminate_diagonal, equilibrium, fixed_point
from simjax.implicit.loop import METHODS, Solver

ACTIVATIONS = ("relu", "leaky_relu", "tanh", "sigmoid", "identity")
PHI = {
    "relu": jax.nn.relu,
    "leaky_relu": lambda z: jnp.where(z >= 0, z, 0.01 * z),
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "identity": lambda z: z,
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def ball_matrix(rng, n, kappa):
    """A with every row's absolute sum equal to kappa."""
    A = rng.normal(size=(n, n))
    return kappa * A / np.abs(A).sum(axis=1, keepdims=True)


def metzler_matrix(rng, n, gamma, eta):
    """A with μ_η(A) ≤ gamma and very negative diagonals (the NEMON form)."""
    T = rng.normal(size=(n, n))
    return gamma * np.eye(n) + T * eta[:, None] / eta - np.diag(np.abs(T).sum(axis=1))


def weighted_mu(A, eta):
    W = A * eta / eta[:, None]
    return np.max(np.diag(W) + np.abs(W).sum(axis=1) - np.abs(np.diag(W)))


def problem(rng, m=7, n=6, p=4, kappa=0.8):
    A, B = ball_matrix(rng, n, kappa), rng.normal(size=(n, p))
    return A, B, rng.normal(size=(m, p)), rng.normal(size=n)


def unrolled(A, B, u, b, phi, steps=400):
    x0 = jnp.zeros((u.shape[0], A.shape[0]))
    return jax.lax.scan(lambda x, _: (phi(x @ A.T + u @ B.T + b), None), x0, length=steps)[0]


# ---- the right answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_method_solves_the_equation(method, name):
    A, B, u, b = problem(np.random.default_rng(0))
    x, report = equilibrium(A, B, u, b, activation=name, method=method, tol=1e-13)
    assert report.converged.all()
    assert_allclose(x, unrolled(A, B, u, b, PHI[name]), rtol=0, atol=1e-11)
    residual = np.abs(PHI[name](x @ A.T + u @ B.T + b) - x).max(axis=1)
    assert_allclose(report.residual, residual / np.maximum(1, np.abs(x).max(axis=1)), rtol=0, atol=1e-15)


def test_linear_equilibrium_is_a_linear_solve():
    A, B, u, b = problem(np.random.default_rng(1))
    x, _ = equilibrium(A, B, u, b, activation="identity", tol=1e-13)
    assert_allclose(x, np.linalg.solve(np.eye(6) - A, B @ u.T + b[:, None]).T, rtol=0, atol=1e-11)


def test_picard_cycles_where_the_averaged_step_converges():
    """A = [[−3, ½], [½, −3]], b = (1, 2): μ∞ = −2.5, Picard has period 2, x* = (20/63, 34/63)."""
    A, B, u, b = np.array([[-3, 0.5], [0.5, -3]]), np.zeros((2, 1)), np.zeros((1, 1)), np.array([1.0, 2.0])
    orbit = [equilibrium(A, B, u, b, method="picard", max_iters=k, unconverged="keep").x[0] for k in (100, 101, 102)]
    assert_array_equal(orbit[0], orbit[2])
    assert np.abs(orbit[0] - orbit[1]).max() > 0.5
    cycling = equilibrium(A, B, u, b, method="picard")
    assert not cycling.report.converged[0]
    assert cycling.report.iterations[0] == 1000
    assert jnp.isnan(cycling.x).all()
    for method in ("averaged", "anderson"):
        x, report = equilibrium(A, B, u, b, method=method, tol=1e-13)
        assert report.converged[0]
        assert_allclose(x[0], [20 / 63, 34 / 63], rtol=0, atol=1e-13)
    assert average_step(A) == 0.25


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), gamma=st.sampled_from([-2.0, -0.3, 0.0, 0.5, 0.9]))
def test_averaged_iteration_contracts_at_the_stated_rate(seed, gamma):
    """In ‖·‖_η each step shrinks the error by 1 − α*(1 − μ⁺), so the iteration count is bounded too."""
    rng = np.random.default_rng(seed)
    n, eta = 5, np.exp(rng.normal(size=5))
    A, B, u, b = (
        metzler_matrix(rng, n, gamma, eta),
        rng.normal(size=(n, 3)),
        rng.normal(size=(4, 3)),
        rng.normal(size=n),
    )
    mu = weighted_mu(A, eta)
    assert mu <= gamma + 1e-12
    rate = 1 - float(average_step(A)) * (1 - max(mu, 0))
    exact, report = equilibrium(A, B, u, b, method="averaged", tol=1e-14, max_iters=20000)
    assert report.converged.all()

    def error(x):
        return np.max(np.abs(x - exact) / eta, axis=1)

    before = error(np.zeros((4, n)))
    for k in (1, 3, 10):
        x = equilibrium(A, B, u, b, method="averaged", max_iters=k, unconverged="keep").x
        assert np.all(error(x) <= rate**k * before + 1e-11)
    # The residual is at most (1 + ‖A‖_η)‖error‖_η max η; it is below tol after the k that makes this so.
    tol = 1e-8
    norm = np.max(np.abs(A * eta / eta[:, None]).sum(axis=1))
    start = (1 + norm) * eta.max() * np.maximum(before, 1e-300)
    k = np.ceil(np.log(tol / start) / np.log(rate))
    iterations = equilibrium(A, B, u, b, method="averaged", tol=tol, max_iters=20000).report.iterations
    assert np.all(iterations <= np.maximum(k, 0))


def test_anderson_needs_far_fewer_iterations_on_a_slow_problem():
    rng = np.random.default_rng(2)
    A, B, u = (
        np.abs(ball_matrix(rng, 30, 0.99)),
        np.abs(rng.normal(size=(30, 3))),
        np.abs(rng.normal(size=(5, 3))),
    )
    slow = equilibrium(A, B, u, method="averaged", max_iters=5000)
    fast = equilibrium(A, B, u, method="anderson")
    assert slow.report.converged.all()
    assert fast.report.converged.all()
    assert 20 * fast.report.iterations.max() < slow.report.iterations.min()
    assert_allclose(fast.x, slow.x, rtol=1e-7)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_anderson_converges_wherever_the_averaged_iteration_does(seed):
    rng = np.random.default_rng(seed)
    A = metzler_matrix(rng, 6, 0.3, np.exp(rng.normal(size=6)))
    B, u = rng.normal(size=(6, 3)), rng.normal(size=(4, 3))
    one = equilibrium(A, B, u, method="averaged", tol=1e-12, max_iters=20000)
    two = equilibrium(A, B, u, method="anderson", tol=1e-12, max_iters=20000)
    assert one.report.converged.all()
    assert two.report.converged.all()
    assert_allclose(two.x, one.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["relu", "identity"])
@pytest.mark.parametrize("gamma", [-1.0, 0.0, 0.6])
def test_diagonal_elimination_keeps_the_states(name, gamma):
    rng = np.random.default_rng(3)
    A, B, u, b = (
        metzler_matrix(rng, 8, gamma, np.ones(8)),
        rng.normal(size=(8, 3)),
        rng.normal(size=(6, 3)),
        np.ones(8),
    )
    hollow, scaled, bias = eliminate_diagonal(A, B, b)
    assert_array_equal(np.diag(hollow), 0)
    assert np.abs(hollow).sum(axis=1).max() < 1
    x = equilibrium(A, B, u, b, activation=name, tol=1e-13, method="averaged", max_iters=20000)
    y = equilibrium(hollow, scaled, u, bias, activation=name, tol=1e-13, method="picard")
    assert x.report.converged.all()
    assert y.report.converged.all()
    assert y.report.iterations.max() < x.report.iterations.max()
    assert_allclose(y.x, x.x, rtol=0, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_diagonal_elimination_preserves_well_posedness(seed):
    """‖Ã‖∞ < 1 ⇔ μ∞(A) < 1 whenever the diagonal is below one."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(4, 4)) * 0.6
    np.fill_diagonal(A, np.minimum(np.diag(A), 0.9))
    hollow, _, _ = eliminate_diagonal(A, A)
    assert (np.abs(hollow).sum(axis=1).max() < 1) == (weighted_mu(A, np.ones(4)) < 1)


def test_diagonal_elimination_is_wrong_for_leaky_relu():
    A, B, u, b = np.array([[-3.0]]), np.ones((1, 1)), -np.ones((1, 1)), np.zeros(1)
    hollow, scaled, bias = eliminate_diagonal(A, B, b)
    one = equilibrium(A, B, u, b, activation="leaky_relu").x
    two = equilibrium(hollow, scaled, u, bias, activation="leaky_relu").x
    assert abs(one - two).max() > 1e-3


# ---- the report ------------------------------------------------------------------------------------------


def test_each_sample_stops_on_its_own():
    """A sample's result does not depend on the company it is in."""
    A, B, u, b = problem(np.random.default_rng(4), kappa=0.95)
    u = u * np.logspace(-3, 3, 7)[:, None]
    for method in METHODS:
        x, report = equilibrium(A, B, u, b, method=method)
        assert len(set(np.asarray(report.iterations))) > 1
        for k in range(7):
            alone = equilibrium(A, B, u[k], b, method=method)
            assert alone.report.iterations.shape == ()
            assert alone.report.iterations == report.iterations[k]
            size = max(1.0, float(np.abs(x[k]).max()))  # to which rounding and tolerance are relative
            assert_allclose(alone.x, x[k], rtol=1e-12, atol=1e-12 * size)


@pytest.mark.parametrize("method", METHODS)
def test_an_unconverged_sample_is_nan_and_reported_inside_jit(method):
    A, B, u = np.array([[2.0]]), np.ones((1, 1)), np.array([[1.0], [-1.0]])  # no equilibrium; x = 0
    x, report = jax.jit(lambda u: equilibrium(A, B, u, method=method, step=1.0, max_iters=30))(u)
    assert_array_equal(report.converged, [False, True])
    assert_array_equal(report.iterations, [30, 0])
    assert_array_equal(jnp.isnan(x[:, 0]), [True, False])
    kept = equilibrium(A, B, u, method=method, step=1.0, max_iters=30, unconverged="keep")
    assert_array_equal(kept.report.converged, [False, True])
    assert jnp.isfinite(kept.x).all()
    if method != "anderson":
        assert kept.x[0, 0] == 2.0**30 - 1


def test_overflow_and_nan_inputs_are_reported_not_iterated():
    A, B = np.array([[100.0]]), np.ones((1, 1))
    x, report = equilibrium(A, B, np.array([[1.0], [np.nan], [-1.0]]), method="picard")
    assert_array_equal(report.converged, [False, False, True])
    assert report.iterations[0] < 300
    assert report.iterations[1] == 0
    assert_array_equal(jnp.isnan(x[:, 0]), [True, True, False])


def test_initial_guess_changes_the_work_not_the_answer():
    A, B, u, b = problem(np.random.default_rng(5))
    x, report = equilibrium(A, B, u, b, tol=1e-12)
    warm = equilibrium(A, B, u, b, x0=x, tol=1e-12)
    assert_array_equal(warm.report.iterations, 0)
    assert report.iterations.min() > 0
    far = equilibrium(A, B, u, b, x0=np.full(x.shape, 50.0), tol=1e-12)
    assert_allclose(far.x, x, rtol=0, atol=1e-10)


# ---- derivatives -----------------------------------------------------------------------------------------


def loss_of(name, method, target, **kwargs):
    def loss(A, B, u, b):
        x = equilibrium(A, B, u, b, activation=name, method=method, tol=1e-13, **kwargs).x
        return jnp.sum((x - target) ** 2 * jnp.arange(1.0, x.shape[1] + 1))

    return loss


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_gradient_matches_finite_differences_and_the_unrolled_iteration(method, name):
    rng = np.random.default_rng(6)
    arguments, target = problem(rng, m=3, n=5, p=2), rng.normal(size=(3, 5))
    loss = loss_of(name, method, target)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*arguments)

    def slow(A, B, u, b):
        return jnp.sum((unrolled(A, B, u, b, PHI[name], 150) - target) ** 2 * jnp.arange(1.0, 6.0))

    by_unrolling = jax.jit(jax.grad(slow, argnums=(0, 1, 2, 3)))(*arguments)
    fast = jax.jit(loss)
    for k, (value, reference) in enumerate(zip(gradient, by_unrolling)):
        assert_allclose(value, reference, rtol=1e-8, atol=1e-8)
        assert np.abs(value).max() > 1e-3
        direction = rng.normal(size=arguments[k].shape)
        moved = [fast(*arguments[:k], arguments[k] + h * direction, *arguments[k + 1 :]) for h in (1e-5, -1e-5)]
        assert_allclose((moved[0] - moved[1]) / 2e-5, np.sum(value * direction), rtol=1e-6, atol=1e-6)


def test_gradient_where_picard_diverges():
    """The adjoint uses the averaged step too, so it converges with the forward iteration."""
    rng = np.random.default_rng(7)
    A = metzler_matrix(rng, 5, 0.0, np.exp(rng.normal(size=5)))
    B, u, b, target = (
        rng.normal(size=(5, 2)),
        rng.normal(size=(3, 2)),
        rng.normal(size=5),
        rng.normal(size=(3, 5)),
    )
    loss = jax.jit(loss_of("tanh", "averaged", target, max_iters=20000))
    direction = rng.normal(size=A.shape)
    slope = np.sum(jax.grad(loss)(A, B, u, b) * direction)
    moved = [loss(A + h * direction, B, u, b) for h in (1e-5, -1e-5)]
    assert_allclose((moved[0] - moved[1]) / 2e-5, slope, rtol=1e-6)


def test_forward_mode_agrees_with_reverse_mode():
    rng = np.random.default_rng(8)
    A, B, u, b = problem(rng, m=2, n=4, p=3)

    def solve(A, u):
        return equilibrium(A, B, u, b, activation="sigmoid", method="averaged", tol=1e-13).x

    forward = jax.jit(jax.jacfwd(solve, (0, 1)))(A, u)
    reverse = jax.jit(jax.jacrev(solve, (0, 1)))(A, u)
    for one, two in zip(forward, reverse):
        assert_allclose(one, two, rtol=0, atol=1e-10)
        assert np.abs(one).max() > 1e-3


def test_jacobian_is_the_formula():
    """dx/du = (I − SA)⁻¹SB with S = diag φ′(z)."""
    A, B, u, b = problem(np.random.default_rng(9), m=1)
    x, _ = equilibrium(A, B, u, b, activation="tanh", tol=1e-13)
    S = np.diag(1 - np.asarray(x[0]) ** 2)
    jacobian = jax.jit(jax.jacrev(lambda v: equilibrium(A, B, v, b, activation="tanh", tol=1e-13).x))(u[0])
    assert_allclose(jacobian, np.linalg.solve(np.eye(6) - S @ A, S @ B), rtol=0, atol=1e-11)


@pytest.mark.slow
def test_second_derivatives():
    rng = np.random.default_rng(10)
    A, B, u, b = problem(rng, m=1, n=3, p=2)

    def value(v):
        return jnp.sum(equilibrium(A, B, v, b, activation="tanh", tol=1e-14, method="averaged").x ** 3)

    reference = jax.hessian(lambda v: jnp.sum(unrolled(A, B, v[None], b, jnp.tanh, 60) ** 3))(u[0])
    for derivative in (jax.hessian(value), jax.jacrev(jax.jacrev(value))):
        assert_allclose(jax.jit(derivative)(u[0]), reference, rtol=0, atol=1e-8)


def test_derivatives_of_an_unconverged_sample_are_nan_and_the_others_are_not():
    A, B, u = np.array([[2.0]]), np.ones((1, 1)), np.array([[1.0], [-1.0]])

    def solve(u):
        return equilibrium(A, B, u, method="picard", max_iters=30).x

    gradient = jax.grad(lambda u: solve(u).sum())(u)
    assert_array_equal(jnp.isnan(gradient[:, 0]), [True, False])
    tangent = jax.jvp(solve, (u,), (np.ones_like(u),))[1]
    assert_array_equal(jnp.isnan(tangent[:, 0]), [True, False])


def test_an_unconverged_adjoint_gives_nan():
    """Started at the answer the forward pass is done at once; the adjoint has too few iterations."""
    A, B, u, b = problem(np.random.default_rng(11), kappa=0.99)
    x, _ = equilibrium(A, B, u, b, activation="tanh", tol=1e-14)

    def total(u, max_iters):
        return equilibrium(A, B, u, b, activation="tanh", method="averaged", x0=x, max_iters=max_iters).x.sum()

    gradient = jax.jit(jax.grad(total), static_argnums=1)
    assert jnp.isnan(gradient(u, 2)).all()
    enough = gradient(u, 1000)
    assert jnp.isfinite(enough).all()


def test_memory_does_not_grow_with_iterations():
    A, B, u, b = problem(np.random.default_rng(12), m=64, n=32)

    def temporary(solve, iterations):
        compiled = jax.jit(jax.grad(lambda A: solve(A, iterations).sum())).lower(A).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def implicit(A, iterations):
        return equilibrium(A, B, u, b, max_iters=iterations).x

    def stored(A, iterations):
        drive = u @ B.T + b
        return jax.lax.fori_loop(0, iterations, lambda _, x: jnp.tanh(x @ A.T + drive), jnp.zeros((64, 32)))

    assert temporary(implicit, 20) == temporary(implicit, 2000)
    assert temporary(stored, 2000) > 10 * temporary(stored, 20)  # the measure sees stored iterations


# ---- transforms ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["anderson", "averaged"])
def test_vmap_over_samples_and_over_models(method):
    rng = np.random.default_rng(13)
    A, B, u, b = problem(rng)

    def solve(A, v):
        return equilibrium(A, B, v, b, method=method, tol=1e-12).x

    batch = solve(A, u)
    assert_allclose(jax.vmap(solve, (None, 0))(A, u), batch, rtol=0, atol=1e-10)
    several = np.stack([ball_matrix(rng, 6, kappa) for kappa in (0.1, 0.5, 0.9)])
    together = jax.jit(jax.vmap(solve, (0, None)))(several, u)
    for k in range(3):
        assert_allclose(together[k], solve(several[k], u), rtol=0, atol=1e-10)
    per_sample = jax.vmap(jax.grad(lambda A, v: solve(A, v).sum()), (None, 0))(A, u)
    assert_allclose(per_sample.sum(axis=0), jax.grad(lambda A: solve(A, u).sum())(A), rtol=0, atol=1e-8)


def test_float32_stays_float32_and_nothing_global_changes():
    A, B, u, b = problem(np.random.default_rng(14))
    exact = equilibrium(A, B, u, b).x
    with jax.enable_x64(False):
        single = [jnp.asarray(a, jnp.float32) for a in (A, B, u, b)]
        x, report = equilibrium(*single)
        gradient = jax.grad(lambda A: equilibrium(A, *single[1:]).x.sum())(single[0])
        assert x.dtype == report.residual.dtype == gradient.dtype == jnp.float32
        assert report.converged.all()
        assert not jax.config.jax_enable_x64
    assert_allclose(x, exact, rtol=0, atol=1e-4)
    assert exact.dtype == jnp.float64


def test_rows_may_be_sharded_over_devices():
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    program = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from simjax.implicit.equilibrium import equilibrium
rng = np.random.default_rng(0)
A = rng.normal(size=(5, 5)); A *= 0.9 / np.abs(A).sum(1, keepdims=True)
A, B, u = (jnp.asarray(a, jnp.float32) for a in (A, rng.normal(size=(5, 3)), rng.normal(size=(8, 3))))
rows = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
loss = lambda A, u: (equilibrium(A, B, u).x ** 2).sum()
spread = jax.device_put(u, rows)
out = jax.jit(lambda u: equilibrium(A, B, u))(spread)
assert len(jax.devices()) == 4 and len(out.x.sharding.device_set) == 4, out.x.sharding
assert {s.data.shape for s in out.x.addressable_shards} == {(2, 5)}
np.testing.assert_allclose(out.x, equilibrium(A, B, u).x, atol=1e-5)
np.testing.assert_allclose(jax.jit(jax.grad(loss))(A, spread), jax.grad(loss)(A, u), rtol=1e-3, atol=1e-3)
"""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- the general core ------------------------------------------------------------------------------------


def cosine(params, x):
    return params["scale"] * jnp.cos(x) + params["shift"]


def test_fixed_point_of_any_row_map_with_a_pytree_of_parameters():
    params = {"scale": jnp.array(0.5), "shift": jnp.array([[0.0, 1.0], [2.0, -1.0]])}
    solver = Solver(tol=1e-14)
    x, report = fixed_point(cosine, params, jnp.zeros((2, 2)), solver=solver)
    assert report.converged.all()
    assert_allclose(x, 0.5 * np.cos(x) + params["shift"], rtol=0, atol=1e-13)
    gradient = jax.grad(lambda p: fixed_point(cosine, p, jnp.zeros((2, 2)), solver=solver).x.sum())(params)
    inverse = 1 / (1 + 0.5 * np.sin(x))
    assert_allclose(gradient["shift"], inverse, rtol=0, atol=1e-12)
    assert_allclose(gradient["scale"], np.sum(np.cos(x) * inverse), rtol=0, atol=1e-12)


def test_repeated_calls_compile_once():
    from simjax.implicit.equilibrium import _fixed_point

    A, B, u, b = problem(np.random.default_rng(15), m=9)
    equilibrium(A, B, u, b)
    compiled = _fixed_point._cache_size()
    equilibrium(0.5 * A, 2 * B, u + 1, b)
    assert _fixed_point._cache_size() == compiled


# ---- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": np.ones((2, 3))}, r"A must have shape \(n, n\)"),
        ({"B": np.ones((3, 2))}, r"B must have shape \(6, p\)"),
        ({"u": np.ones((7, 3))}, r"u must have shape \(m, 4\)"),
        ({"u": np.ones((7, 3, 4))}, "u must have shape"),
        ({"b": np.ones(5)}, r"b must have shape \(6,\)"),
        ({"x0": np.ones((7, 5))}, r"x0 must have shape \(7, 6\)"),
        ({"method": "newton"}, "method must be one of"),
        ({"activation": "gelu"}, "activation 'gelu'"),
        ({"tol": 0.0}, "tol must be a positive"),
        ({"tol": np.nan}, "tol must be finite"),
        ({"max_iters": 0}, "max_iters must be at least 1"),
        ({"memory": 0}, "memory must be at least 1"),
        ({"step": -0.5}, "step must be a positive"),
        ({"unconverged": "ignore"}, "unconverged must be one of"),
    ],
)
def test_bad_arguments_are_named(change, message):
    A, B, u, b = problem(np.random.default_rng(16))
    arguments = {"A": A, "B": B, "u": u, "b": b} | change
    with pytest.raises(ValueError, match=message):
        equilibrium(**arguments)


def test_bad_types_are_named():
    A, B, u, b = problem(np.random.default_rng(17))
    with pytest.raises(TypeError, match="A must be float32 or float64, got float16"):
        equilibrium(A.astype(np.float16), B, u, b)
    with pytest.raises(TypeError, match="u must be float32 or float64, got complex128"):
        equilibrium(A, B, u.astype(complex), b)
    with pytest.raises(TypeError, match="max_iters must be an integer"):
        equilibrium(A, B, u, b, max_iters=10.0)
    with pytest.raises(ValueError, match="x0 must have shape"):
        fixed_point(cosine, {}, jnp.zeros(3))
    with pytest.raises(ValueError, match="f must map"):
        fixed_point(lambda p, x: x[:, :1], {}, jnp.zeros((2, 3)))


def test_models_and_layers_report_alike():
    import simjax

    A, B, u, b = problem(np.random.default_rng(18))
    _, info = simjax.ImplicitModel(0.5 * A, B, np.eye(6), np.zeros((6, 4)), b=b).equilibrium(u, return_info=True)
    _, report = equilibrium(0.5 * A, B, u, b)
    assert type(info) is type(report) is simjax.EquilibriumInfo is simjax.equilibrium.Report
    assert info.converged.all()
    assert report.converged.all()


def test_integer_inputs_are_converted():
    x, report = equilibrium(np.zeros((2, 2)), np.eye(2), np.array([[1, 2]]))
    assert report.converged.all()
    assert_allclose(x, [[1.0, 2.0]], atol=1e-9)
