"""OptEq: the equilibrium solves the stated optimisation problem; the prior-selecting iteration finds its minimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import nnls

from simjax.implicit.activations import ACTIVATIONS
from simjax.nn.opteq import OptEq, select_fixed_point
from simjax.robustness.lipschitz import lipschitz_bounds, monotonicity, sampled_lipschitz

SEEDS = st.integers(0, 10**6)


def random_opteq(rng, p=4, n=6, q=3, **kwargs):
    graph, state = nnx.split(OptEq(p, n, q, **kwargs))
    return nnx.merge(graph, jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), state))


def nonnegative_minimiser(A, c):
    """Argmin over s ≥ 0 of ½sᵀ(I − A)s − cᵀs, as nonnegative least squares in the Cholesky factor of I − A."""
    factor = np.linalg.cholesky(np.eye(len(c)) - A)
    return nnls(factor.T, np.linalg.solve(factor, c))[0]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_the_equilibrium_is_the_minimiser(layers, seed):
    """The s of argmin ½sᵀ(I − A)s − (Bu + b)ᵀs over s ≥ 0: for one layer A = WWᵀ, for two A is block cyclic.

    For two layers this is argmin φ₁(z₁) + φ₂(z₂) + ½‖z₁ − z₂‖² written in s: φ_l(z) + ½‖z‖² is the least of
    ½‖s‖² − cᵀs over s ≥ 0 with z = W_lᵀs, and ½‖z₁ − z₂‖² − ½‖z₁‖² − ½‖z₂‖² = −s₁ᵀW₁W₂ᵀs₂.
    """
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        module = random_opteq(rng, layers=layers, d=4)
        U = rng.normal(size=(8, 4))
        states, model = module.states(U), module.export()
        W = [np.asarray(w) for w in module.bounded_weights()]
    assert_allclose(model.A, model.A.T, rtol=0, atol=1e-14)
    blocks = (
        [[W[0] @ W[0].T]] if layers == 1 else [[np.zeros((3, 3)), W[0] @ W[1].T], [W[1] @ W[0].T, np.zeros((3, 3))]]
    )
    assert_allclose(model.A, np.block(blocks), rtol=0, atol=1e-14)
    for u, s in zip(U, states.activations):
        assert_allclose(s, nonnegative_minimiser(model.A, model.B @ u + model.b), rtol=0, atol=1e-8)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_unit_layer_is_firmly_nonexpansive(activation):
    """‖Δf‖² ≤ ⟨Δf, Δz⟩: f is the prox of a convex function."""
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        module = random_opteq(rng, norm_bound=1.0, activation=activation)
        f = module.layer(jnp.asarray(rng.normal(size=(50, 4))))
        z, w = (jnp.asarray(3 * rng.normal(size=(50, 6))) for _ in range(2))
        difference = f(z) - f(w)
        inner = jnp.sum(difference * (z - w), axis=1)
        assert jnp.all(jnp.sum(difference**2, axis=1) <= inner * (1 + 1e-12))
        assert jnp.min(inner) > 0


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, layers=st.sampled_from([1, 2, 3]), bound=st.sampled_from([0.5, 0.95]))
def test_every_parameter_contracts_and_is_lipschitz(seed, layers, bound):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        module = random_opteq(rng, layers=layers, norm_bound=bound)
        norms = [np.linalg.norm(W, 2) for W in module.bounded_weights()]
    model = module.export()
    assert max(norms) <= bound * (1 + 1e-12)
    assert np.linalg.norm(model.A, 2) <= bound**2 * (1 + 1e-12)
    assert monotonicity(model.A) >= 1 - bound**2 - 1e-12
    limit = module.lipschitz_l2()
    assert limit <= np.linalg.norm(model.C, 2) * np.linalg.norm(model.B, 2) / (1 - bound**2) * (1 + 1e-9)
    inner = np.linalg.norm(model.B, 2) / (1 - max(norms) ** 2)
    for s in [*rng.integers(0, 2, (20, 6)), *rng.random((20, 6))]:
        J = np.linalg.solve(np.eye(6) - s[:, None] * model.A, s[:, None] * model.B)
        assert np.linalg.norm(J, 2) <= inner * (1 + 1e-9)
        assert np.linalg.norm(model.C @ J, 2) <= limit * (1 + 1e-9)
    assert lipschitz_bounds(model).monotone_l2 <= limit * (1 + 1e-9)


def test_sampled_constant_is_below_the_bound():
    module = OptEq(4, 6, 3)
    assert (
        sampled_lipschitz(module.export(), np.random.default_rng(2).normal(size=(50, 4)), "l2") <= module.lipschitz_l2()
    )


@pytest.mark.parametrize("layers", [1, 3])
def test_the_layer_map_fixes_z_and_gives_the_outputs(layers):
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        module = random_opteq(rng, layers=layers, d=5)
        U = rng.normal(size=(7, 4))
        states = module.states(U)
        W = module.bounded_weights()[0]
        z = jnp.asarray(states.activations[:, : len(W)]) @ W
        assert_allclose(module.layer(jnp.asarray(U))(z), z, rtol=0, atol=1e-9)
        assert_allclose(z @ module.C[...].T + module.c[...], states.outputs, rtol=0, atol=1e-9)


def test_prior_selects_the_nearest_of_many_fixed_points():
    """W with orthonormal rows: Fix f = {Wᵀs: s ≥ 0}, and argmin ½‖z − a‖² over it is Wᵀrelu(Wa).

    The error halves when iterations double if tμ ≥ 1; for tμ = ½ it only falls like 1/√k.
    """
    rng = np.random.default_rng(4)
    W = np.linalg.qr(rng.normal(size=(6, 3)))[0].T
    a = rng.normal(size=(10, 6))
    expected = np.maximum(a @ W.T, 0) @ W
    with jax.enable_x64(True):
        graph, state = nnx.split(OptEq(1, 3, 1, d=6, norm_bound=1.0))
        module = nnx.merge(graph, jax.tree.map(lambda x: jnp.zeros(x.shape), state))
        module.W[0][...] = jnp.asarray(W)
        f = module.layer(jnp.zeros((10, 1)))
        start = rng.normal(size=(10, 6))
        for step, ratio in ((1.0, 0.5), (0.5, 0.5**0.5)):
            errors = []
            for iterations in (1000, 2000, 4000):
                z = select_fixed_point(f, start, lambda z: z - a, step=step, iterations=iterations)
                errors.append(np.abs(z - expected).max())
            assert_allclose(np.array(errors[1:]) / np.array(errors[:-1]), ratio, rtol=0.05)
            assert errors[-1] < (1e-3 if step == 1.0 else 0.05)
    assert np.abs(expected - a).max() > 0.5
    plain = rng.normal(size=(10, 6))
    assert np.abs(np.maximum(plain @ W.T, 0) @ W - expected).max() > 0.5  # without the prior it depends on the start


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OptEq(4, 6, 3, layers=4), "layers must divide n = 6"),
        (lambda: OptEq(4, 6, 3, norm_bound=1.1), r"norm_bound must be in \(0, 1\]"),
        (lambda: OptEq(4, 6, 3, d=0), "d must be at least 1"),
        (lambda: OptEq(4, 6, 3, activation="gelu"), "activation 'gelu'"),
        (lambda: select_fixed_point(lambda z: z, np.ones((1, 1)), lambda z: z, step=0.0), "step must be a positive"),
        (
            lambda: select_fixed_point(lambda z: z, np.ones((1, 1)), lambda z: z, step=1.0, iterations=0),
            "iterations must be at least 1",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_bound_at_norm_one_is_infinite():
    with jax.enable_x64(True):
        module = random_opteq(np.random.default_rng(5), norm_bound=1.0)
        assert module.lipschitz_l2() > 1e12
