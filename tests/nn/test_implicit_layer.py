"""The contract of all implicit modules, and the plain layer and the recurrent network in particular."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits

from simjax.implicit.activations import activation
from simjax.implicit.equilibrium import equilibrium
from simjax.implicit.loop import Solver
from simjax.implicit.model import ImplicitModel
from simjax.nn.base import ImplicitModule, spectral_norm
from simjax.nn.geq import GEQ
from simjax.nn.implicit import ImplicitLayer, ImplicitRNN
from simjax.nn.lben import LBEN, amplify, cascade, orthogonal_rows, sandwich, sll
from simjax.nn.linear_deq import LinearDEQ
from simjax.nn.mondeq import MonDEQ
from simjax.nn.nemon import NEMON
from simjax.nn.opteq import OptEq
from simjax.nn.training import train


def lipschitz_network(p, n, q):
    """A sandwich layer, a residual layer and a sandwich layer as one LBEN with identity states."""
    rng = np.random.default_rng(0)
    first = sandwich(*orthogonal_rows(rng.normal(size=(n, n)), rng.normal(size=(n, p))))
    last = sandwich(*orthogonal_rows(rng.normal(size=(q, q)), rng.normal(size=(q, n))))
    network = cascade(cascade(first, sll(rng.normal(size=(n, n)))), last)
    return LBEN.from_form(amplify(network, 10.0), solver=Solver(method="averaged"))


MODULES = {
    "layer": ImplicitLayer,
    "nemon": lambda p, n, q: NEMON(p, n, q, gamma=0.5, direct=True),
    "nemon-tanh": lambda p, n, q: NEMON(p, n, q, activation="tanh"),
    "mondeq": MonDEQ,
    "mondeq-tiers": lambda p, n, q: MonDEQ(p, n, q, m=0.5, tiers=(n // 2, n - n // 2)),
    "lben": lambda p, n, q: LBEN(p, n, q, gamma=5.0),
    "lben-network": lipschitz_network,
    "opteq": OptEq,
    "opteq-2": lambda p, n, q: OptEq(p, n, q, layers=2, activation="leaky_relu"),
    "linear": LinearDEQ,
    "geq": GEQ,
}
LINEAR = [name for name in MODULES if name != "geq"]


def shaken(name, p=4, n=6, q=3):
    """The module with every parameter moved, so that nothing is zero by initialisation."""
    module = MODULES[name](p, n, q)
    rng = np.random.default_rng(1)
    graph, state = nnx.split(module)
    return nnx.merge(graph, jax.tree.map(lambda a: a + jnp.asarray(0.2 * rng.normal(size=a.shape), a.dtype), state))


def digits(m=None):
    U, labels = load_digits(return_X_y=True)
    return U[:m] / 16.0, labels[:m]


# ---- the contract ----------------------------------------------------------------------------------------


@functools.cache
def solved(name):
    module, U = shaken(name), 3.0 * np.random.default_rng(2).normal(size=(150, 4))
    return module, U, module.states(U)


@pytest.mark.parametrize("name", MODULES)
def test_states_are_exact_and_those_of_the_call(name):
    module, U, states = solved(name)
    phi = activation(states.activation).host
    assert_array_equal(states.activations, phi(states.preactivations))
    outputs = np.asarray(module(jnp.asarray(U, jnp.float32)))
    assert outputs.dtype == np.float32
    assert_allclose(outputs, states.outputs, rtol=0, atol=2e-3 * np.abs(states.outputs).max())
    with pytest.raises(ValueError, match=r"inputs must have shape \(m, 4\)"):
        module.states(U[:, :3])


@pytest.mark.parametrize("name", ["layer", "nemon", "mondeq", "linear"])
def test_float32_parameters_serve_float64_inputs(name):
    module, U, states = solved(name)
    with jax.enable_x64(True):
        outputs = module(jnp.asarray(U))
    assert outputs.dtype == jnp.float64
    assert_allclose(outputs, states.outputs, rtol=0, atol=1e-5 * np.abs(states.outputs).max())


@pytest.mark.parametrize("name", LINEAR)
def test_exported_model_solved_otherwise_has_the_native_states(name):
    module, U, states = solved(name)
    model = module.export()
    assert isinstance(module, ImplicitModule)
    assert states.baseline is not None
    with jax.enable_x64(True):
        x, report = equilibrium(model.A, model.B, U, model.b, activation=model.activation, tol=1e-12, max_iters=20000)
    assert report.converged.all()
    X, biases = np.asarray(x), [0.0 if bias is None else bias for bias in (model.b, model.c)]
    assert_allclose(X, states.activations, rtol=0, atol=1e-8)
    assert_allclose(X @ model.A.T + U @ model.B.T + biases[0], states.preactivations, rtol=0, atol=1e-8)
    assert_allclose(X @ model.C.T + U @ model.D.T + biases[1], states.outputs, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", LINEAR)
def test_least_squares_on_the_states_recovers_the_matrices(name):
    """Every state row is Z = [A B b][X; U; 1] exactly, so m > n + p generic samples determine it."""
    module, U, states = solved(name)
    model = module.export()
    design = np.hstack([states.activations, U, np.ones((len(U), 1))])
    solution, *_ = np.linalg.lstsq(design, states.preactivations, rcond=None)
    assert_allclose(design @ solution, states.preactivations, rtol=0, atol=1e-9)
    # Where states depend on each other linearly only the fit is determined.
    if name not in ("linear", "lben-network"):
        bias = np.zeros(model.n) if model.b is None else model.b
        assert_allclose(solution.T, np.hstack([model.A, model.B, bias[:, None]]), rtol=0, atol=1e-7)


def test_a_model_without_a_linear_form_has_no_export():
    module = shaken("geq")
    assert not hasattr(module, "export")
    assert module.states(np.zeros((2, 4))).baseline is None


def iterations(states, method):
    """The most that any sample needs."""
    model = states.baseline
    with jax.enable_x64(True):
        report = equilibrium(model.A, model.B, states.inputs, model.b, method=method, max_iters=10_000).report
    assert report.converged.all()
    return int(report.iterations.max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layer", "nemon", "mondeq", "lben-network", "opteq", "geq", "linear"])
def test_each_model_learns_the_digits_and_is_then_a_baseline(name):
    U, labels = digits()
    module = MODULES[name](64, 24, 10)
    train(module, U[:1400], labels[:1400], epochs=6, batch_size=100, learning_rate=1e-2)
    states = module.states(U[1400:])
    assert np.mean(states.outputs.argmax(axis=1) == labels[1400:]) > (0.7 if name == "geq" else 0.8)
    if name in ("layer", "nemon", "opteq"):  # μ_η(A) < 1: the averaged iteration converges on the export as it is
        assert iterations(states, "anderson") < iterations(states, "averaged")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mondeq", "opteq-2", "geq"])
def test_gradients_of_parameters_match_finite_differences(name):
    with jax.enable_x64(True):
        graph, state = nnx.split(shaken(name))
        state = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), state)
        u = jnp.asarray(np.random.default_rng(5).normal(size=(3, 4)))
        direction = jax.tree.map(lambda a: jnp.asarray(np.random.default_rng(a.size).normal(size=a.shape)), state)

        def loss(t):
            moved = jax.tree.map(lambda a, d: a + t * d, state, direction)
            return jnp.sum(nnx.merge(graph, moved)(u) ** 2)

        slope = jax.jit(jax.grad(loss))(0.0)
        compiled = jax.jit(loss)
        assert_allclose((compiled(1e-5) - compiled(-1e-5)) / 2e-5, slope, rtol=1e-5)
        assert abs(slope) > 1e-3


def test_spectral_norm_has_a_gradient_also_for_repeated_singular_values():
    with jax.enable_x64(True):
        W = jnp.asarray(np.random.default_rng(6).normal(size=(5, 3)))
        assert_allclose(spectral_norm(W), np.linalg.norm(W, 2), rtol=1e-12)
        u, _, v = np.linalg.svd(W)
        assert_allclose(jax.grad(spectral_norm)(W), np.outer(u[:, 0], v[0]), rtol=0, atol=1e-10)
        gradient = jax.grad(spectral_norm)(2.0 * jnp.eye(3))
        assert_allclose(jnp.trace(gradient), 1.0, rtol=1e-12)
        assert spectral_norm(jnp.zeros((2, 3))) == 0.0


# ---- the plain layer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_parameterised_layer_is_in_the_ball_and_keeps_what_is(scale):
    layer = ImplicitLayer(4, 6, 3, kappa=0.9)
    free = scale * np.random.default_rng(7).normal(size=(6, 6))
    layer.A[...] = jnp.asarray(free, jnp.float32)
    A = layer.export().A
    norms = np.abs(A).sum(axis=1)
    assert norms.max() <= 0.9 * (1 + 1e-12)
    if scale == 0.01:
        assert_allclose(A, free, rtol=1e-6)
    else:
        assert_allclose(norms, 0.9, rtol=1e-12)


@pytest.mark.slow
def test_projection_after_each_step_of_a_compiled_training_loop():
    U, labels = (jnp.asarray(part) for part in digits(200))
    U = U.astype(jnp.float32)
    layer = ImplicitLayer(64, 16, 10, kappa=0.5, constraint="projected")
    layer.A[...] = jnp.asarray(np.random.default_rng(8).normal(size=(16, 16)), jnp.float32)
    far = np.asarray(layer.A[...])
    layer.project()
    near = np.asarray(layer.A[...])
    assert np.abs(near).sum(axis=1).max() <= 0.5 * (1 + 1e-5)
    for row, projected in zip(far, near):  # the variational inequality of a projection
        for vertex in 0.5 * np.vstack([np.eye(16), -np.eye(16)]):
            assert (row - projected) @ (vertex - projected) <= 1e-5
    optimizer = nnx.Optimizer(layer, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        def loss(layer):
            return optax.softmax_cross_entropy_with_integer_labels(layer(U), labels).mean()

        value, gradient = nnx.value_and_grad(loss)(layer)
        optimizer.update(layer, gradient)
        layer.project()
        return value

    losses = []
    for _ in range(10):
        losses.append(float(step(layer, optimizer)))
        assert np.abs(np.asarray(layer.A[...])).sum(axis=1).max() <= 0.5 * (1 + 1e-5)
    assert losses[-1] < 0.7 * losses[0]
    assert layer.export().nonzeros < layer.A.size + layer.B.size + layer.C.size + layer.D.size  # A became sparse


def sparse_model(rng, n=6, p=4, q=3):
    A = rng.normal(size=(n, n)) * (rng.random((n, n)) < 0.4)
    A *= 0.8 / np.maximum(np.abs(A).sum(axis=1, keepdims=True), 0.8)
    B, C, D = (rng.normal(size=s) * (rng.random(s) < 0.5) for s in ((n, p), (q, n), (q, p)))
    return ImplicitModel(A, B, C, D, "relu", b=rng.normal(size=n))


@pytest.mark.parametrize("constraint", ["parameterised", "projected"])
def test_a_model_survives_the_way_to_flax_and_back(constraint):
    model = sparse_model(np.random.default_rng(9))
    with jax.enable_x64(True):
        layer = model.to_csr().to_flax(constraint=constraint)
        back = layer.export()
    for name in ("A", "B", "C", "D", "b"):
        assert_allclose(getattr(back, name), getattr(model, name), rtol=0, atol=1e-15)
    assert_array_equal(back.c, 0)
    single = model.to_flax(constraint=constraint)
    assert single.A.dtype == jnp.float32
    U = np.random.default_rng(10).normal(size=(8, 4))
    assert_allclose(single(jnp.asarray(U, jnp.float32)), model(U), rtol=0, atol=1e-3)


def test_fine_tuning_keeps_the_support_if_asked():
    rng = np.random.default_rng(11)
    model = sparse_model(rng)
    U, labels = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    nonzeros = {}
    for keep in (True, False):
        layer = model.to_flax(keep_support=keep)
        report = train(layer, U, labels, epochs=5, batch_size=20, learning_rate=1e-2)
        assert report.losses[-1] < report.losses[0]
        tuned = layer.export()
        nonzeros[keep] = tuned.nonzeros
        if keep:
            for name in "ABCD":
                assert_array_equal(getattr(tuned, name) != 0, getattr(model, name) != 0)
            assert np.abs(tuned.A - model.A).max() > 1e-3
    assert nonzeros[False] > nonzeros[True]


def test_a_layer_whose_equilibrium_does_not_exist_says_so():
    layer = ImplicitLayer(1, 1, 1, constraint="projected", solver=Solver(max_iters=50))
    layer.A[...] = jnp.array([[2.0]])
    layer.B[...] = jnp.array([[1.0]])
    u = jnp.array([[1.0], [-1.0]])
    report = layer.equilibrium(u).report
    assert_array_equal(report.converged, [False, True])
    assert_array_equal(jnp.isnan(layer(u)[:, 0]), [True, False])
    with pytest.raises(RuntimeError, match="equilibria of 1 of 2 samples were not found"):
        layer.states(u)


def test_linen_users_wrap_the_layer():
    wrapped = nnx.bridge.to_linen(ImplicitLayer, 4, 6, 3)
    u = jnp.asarray(np.random.default_rng(12).normal(size=(5, 4)), jnp.float32)
    variables = wrapped.init(jax.random.key(0), u)
    assert variables["params"]["A"].shape == (6, 6)
    value = jax.jit(lambda v: jnp.sum(wrapped.apply(v, u) ** 2))
    gradient = jax.grad(value)(variables)
    assert np.abs(gradient["params"]["A"]).max() > 0


# ---- the recurrent network -------------------------------------------------------------------------------


def test_recurrent_network_is_its_cell_applied_in_time():
    network = ImplicitRNN(3, 5, 2, hidden=4)
    u = np.asarray(np.random.default_rng(13).normal(size=(6, 7, 3)), np.float32)
    expected, h = [], np.zeros((6, 4), np.float32)
    for t in range(7):
        h = np.asarray(network.cell(jnp.concatenate([u[:, t], h], axis=1)))
        expected.append(np.asarray(network.readout(jnp.asarray(h))))
    assert_allclose(network(jnp.asarray(u)), np.stack(expected, axis=1), rtol=0, atol=1e-5)
    assert network.cell.export().well_posedness <= 0.99 * (1 + 1e-12)


@pytest.mark.slow
def test_recurrent_network_learns_digits_row_by_row():
    U, labels = digits(600)

    class Last(nnx.Module):
        def __init__(self):
            self.network = ImplicitRNN(8, 16, 10, hidden=16)

        def __call__(self, u):
            return self.network(u.reshape(-1, 8, 8))[:, -1]

    model = Last()
    report = train(model, U, labels, epochs=6, batch_size=50, learning_rate=1e-2)
    assert report.accuracies[-1] > 0.6


# ---- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ImplicitLayer(0, 3, 2), "p must be at least 1"),
        (lambda: ImplicitLayer(4, 3, 2, kappa=1.0), r"kappa must be a number in \(0, 1\)"),
        (lambda: ImplicitLayer(4, 3, 2, activation="gelu"), "activation 'gelu'"),
        (lambda: ImplicitLayer(4, 3, 2, constraint="hoped"), "constraint must be one of"),
        (
            lambda: ImplicitModel([[0.9]], [[1]], [[1]], [[0]]).to_flax(kappa=0.5),
            "kappa = 0.5",
        ),
        (lambda: ImplicitRNN(3, 5, 2, hidden=0), "hidden must be at least 1"),
        (lambda: ImplicitRNN(3, 5, 2, hidden=4)(jnp.zeros((2, 3))), r"u must have shape \(m, time, 3\)"),
        (lambda: ImplicitRNN(3, 5, 2, hidden=4)(jnp.zeros((2, 7, 2))), r"u must have shape \(m, time, 3\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_types_are_named():
    with pytest.raises(TypeError, match="n must be an integer"):
        ImplicitLayer(4, 3.0, 2)
