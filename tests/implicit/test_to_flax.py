"""From a sparse model to a Flax layer and back: the same model, trainable end to end, and a baseline again."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import simjax
from simjax.implicit.loop import Solver
from simjax.implicit.model import ImplicitModel
from simjax.nn import MLP, ImplicitLayer, train

EXACT = Solver(method="averaged", tol=1e-13)
FAST = Solver(method="averaged")
MATRICES = ("A", "B", "C", "D", "b", "c")


def sparse_model(rng, n=7, p=4, q=3, activation="relu", bias=True, norm=0.9):
    """A model with ‖A‖∞ = norm, more than half of whose weights are zero."""
    A = rng.normal(size=(n, n)) * (rng.random((n, n)) < 0.5)
    A[0, 1] = 1.0
    A *= norm / np.abs(A).sum(axis=1).max()
    B, C, D = (rng.normal(size=shape) * (rng.random(shape) < 0.4) for shape in ((n, p), (q, n), (q, p)))
    biases = {"b": rng.normal(size=n), "c": rng.normal(size=q)} if bias else {}
    return ImplicitModel(A, B, C, D, activation, **biases)


@functools.cache
def fitted():
    """A sparse model fitted to the states of a small untrained network, with these states."""
    inputs = np.random.default_rng(0).normal(size=(60, 4))
    states = simjax.collect_states(MLP((4, 6, 5, 3), rngs=nnx.Rngs(0)), inputs)
    # A simple solver, for the sake of its short compilation.
    return simjax.fit(states, "l1", alpha=1e-2, reduction="mean", solver="admm", tol=1e-3).model, states


@pytest.mark.parametrize(
    ("activation", "constraint", "keep_support", "bias"),
    [
        ("relu", "parameterised", True, True),
        ("relu", "projected", False, False),
        ("tanh", "parameterised", False, False),
        ("leaky_relu", "projected", True, True),
    ],
)
def test_the_way_to_flax_and_back_gives_the_same_model(activation, constraint, keep_support, bias):
    rng = np.random.default_rng(1)
    model, U = sparse_model(rng, activation=activation, bias=bias), rng.normal(size=(20, 4))
    with jax.enable_x64(True):
        layer = model.to_flax(constraint=constraint, keep_support=keep_support, solver=EXACT)
        outputs = np.asarray(layer(jnp.asarray(U)))
        back = layer.export()
    for name in MATRICES:
        if getattr(model, name) is None:
            assert getattr(back, name) is None
        else:
            assert_allclose(getattr(back, name), getattr(model, name), rtol=0, atol=1e-12)
    assert back.activation == activation
    assert back.nonzeros == model.nonzeros
    expected = model.equilibrium(U, tol=1e-14) @ model.C.T + U @ model.D.T + (0 if model.c is None else model.c)
    assert_allclose(outputs, expected, rtol=0, atol=1e-11)
    assert_allclose(back(U), model(U), rtol=0, atol=1e-12)


def test_a_model_at_the_bound_survives():
    model = sparse_model(np.random.default_rng(2), norm=0.99)
    with jax.enable_x64(True):
        back = model.to_flax(kappa=0.99).export()
    assert model.well_posedness == pytest.approx(0.99, abs=1e-15)
    assert_allclose(back.A, model.A, rtol=0, atol=1e-12)


def test_a_sparse_model_and_one_with_a_single_bias():
    rng = np.random.default_rng(3)
    model = sparse_model(rng, bias=False).to_csr()
    model = ImplicitModel(model.A, model.B, model.C, model.D, b=rng.normal(size=7))
    with jax.enable_x64(True):
        back = model.to_flax().export()
    assert model.storage == "csr"
    for name in "ABCD":
        assert_allclose(getattr(back, name), getattr(model, name).toarray(), rtol=0, atol=1e-12)
    assert_allclose(back.b, model.b, rtol=0, atol=1e-12)
    assert_array_equal(back.c, 0)


@pytest.mark.slow
def test_a_fitted_model_is_fine_tuned_end_to_end_with_optax():
    """One compiled step of an optimiser of one's own; zeros stay zero, ‖A‖∞ stays below κ, the loss falls."""
    model, states = fitted()
    U, wanted = jnp.asarray(states.inputs, jnp.float32), jnp.asarray(states.outputs, jnp.float32)
    layer = model.to_flax(keep_support=True, solver=FAST)
    assert layer.A.dtype == jnp.float32  # outside x64
    assert_allclose(layer.export().A, model.A, rtol=1e-6)
    optimizer = nnx.Optimizer(layer, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        value, gradient = nnx.value_and_grad(lambda layer: jnp.mean((layer(U) - wanted) ** 2))(layer)
        optimizer.update(layer, gradient)
        return value

    losses = [float(step(layer, optimizer)) for _ in range(60)]
    assert losses[0] == pytest.approx(np.mean((model(states.inputs) - states.outputs) ** 2), rel=1e-3)
    assert losses[-1] < 0.5 * losses[0]
    tuned = layer.export()
    for name in "ABCD":
        assert_array_equal(getattr(tuned, name)[getattr(model, name) == 0], 0)
    assert tuned.well_posedness <= 0.99 * (1 + 1e-12)
    assert tuned.nonzeros == model.nonzeros < layer.A.size
    error = np.mean((tuned(states.inputs) - states.outputs) ** 2)
    assert error < 0.5 * losses[0]


@pytest.mark.slow
def test_without_keep_support_training_fills_the_zeros():
    model, states = fitted()
    layer = model.to_flax(solver=FAST)
    labels = states.outputs.argmax(axis=1)
    train(layer, states.inputs, labels, epochs=2, batch_size=20, learning_rate=1e-2)
    assert layer.export().nonzeros > 2 * model.nonzeros


def test_a_trained_layer_is_a_baseline():
    """Its states come from its own export, and a fit to them whose penalty vanishes finds its weights again."""
    model, states = fitted()
    layer = model.to_flax(keep_support=True, solver=FAST)
    labels = states.outputs.argmax(axis=1)
    train(layer, states.inputs, labels, epochs=3, batch_size=20, learning_rate=1e-2)
    own = simjax.collect_states(layer, states.inputs)
    assert_array_equal(own.baseline.A, layer.export().A)
    assert_allclose(own.outputs, own.baseline(states.inputs), rtol=0, atol=1e-9)
    again = simjax.fit(own, "least_squares", rescale="none", kappa=0.99)
    assert again.converged
    reproduced = again.model(states.inputs)
    assert_allclose(reproduced, own.outputs, rtol=0, atol=1e-6)
    assert np.abs(own.outputs - states.outputs).max() > 1e-3  # training moved it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kappa": 0.5}, r"‖A‖∞ ≤ kappa = 0\.5, it has 0\.9"),
        ({"kappa": 1.0}, r"kappa must be a number in \(0, 1\)"),
        ({"kappa": np.nan}, "kappa must be finite"),
        ({"constraint": "hoped"}, "constraint must be one of"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sparse_model(np.random.default_rng(6)).to_flax(**arguments)


def test_importing_models_imports_no_flax():
    code = "import sys, simjax.implicit.model; sys.exit('flax' in sys.modules or 'simjax.nn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert isinstance(sparse_model(np.random.default_rng(7)).to_flax(), ImplicitLayer)
