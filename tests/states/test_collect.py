"""collect_states: the states of anyone's Flax network, of all layers or of the last."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from simjax.nn import MLP
from simjax.states.collect import collect_states
from simjax.states.states import States

WEIGHTS = [np.random.default_rng(1).standard_normal(shape) for shape in ((6, 5), (4, 6), (3, 4), (2, 3))]
BIASES = [np.random.default_rng(2).standard_normal(len(W)) for W in WEIGHTS]
U = np.random.default_rng(3).standard_normal((20, 5))


def make(activation="relu", biases=None, inputs=U):
    return States.from_layers(WEIGHTS, biases, activation, inputs)


def nnx_reference(layers, activation, inputs):
    """States from the layers' own parameters, in NumPy float64."""
    weights = [np.float64(layer.kernel[...]).T for layer in layers]
    biases = [None if layer.bias is None else np.float64(layer.bias[...]) for layer in layers]
    return States.from_layers(weights, biases, activation, inputs)


def assert_same(found, expected):
    np.testing.assert_allclose(found.preactivations, expected.preactivations, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.activations, expected.activations, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.outputs, expected.outputs, rtol=1e-12, atol=1e-12)
    assert (found.activation, found.layer_sizes) == (expected.activation, expected.layer_sizes)
    np.testing.assert_allclose(found.baseline(found.inputs), found.outputs, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (nnx.relu, "relu"),
        (lambda z: jnp.maximum(z, 0), "relu"),
        (nnx.leaky_relu, "leaky_relu"),
        (jnp.tanh, "tanh"),
        (jax.nn.sigmoid, "sigmoid"),
        (lambda z: z, "identity"),
    ],
)
@pytest.mark.parametrize("use_bias", [False, True])
def test_nnx_sequential(function, name, use_bias):
    rngs = nnx.Rngs(0)
    a, b, c = (nnx.Linear(i, o, use_bias=use_bias, rngs=rngs) for i, o in ((5, 7), (7, 4), (4, 2)))
    network = nnx.Sequential(a, function, b, nnx.Dropout(0.5, rngs=rngs), function, c)
    assert_same(collect_states(network, U), nnx_reference([a, b, c], name, U))


class Custom(nnx.Module):
    """Written by hand: dropout, a jitted part, layers not in the order of their use, images as inputs."""

    def __init__(self, rngs):
        self.last = nnx.Linear(4, 2, rngs=rngs)
        self.unused = nnx.Linear(3, 3, rngs=rngs)
        self.hidden = nnx.List([nnx.Linear(7, 4, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.first = nnx.Linear(6, 7, rngs=rngs)

    def __call__(self, images, train=True):
        x = self.first(images.reshape(len(images), -1))
        x = self.dropout(nnx.relu(x), deterministic=not train)
        return self.tail(x)

    @nnx.jit
    def tail(self, x):
        return self.last(nnx.relu(self.hidden[0](x)))


def test_any_nnx_module_that_is_a_chain_and_stays_untouched():
    network = Custom(nnx.Rngs(3))
    images = np.float32(np.random.default_rng(0).standard_normal((9, 2, 3)))
    before = jax.tree.map(np.array, nnx.state(network, nnx.Param))
    product = network.first.dot_general
    expected = nnx_reference([network.first, network.hidden[0], network.last], "relu", images.reshape(9, 6))
    assert_same(collect_states(network, images), expected)
    assert network.first.dot_general is product
    assert network.dropout.deterministic is False
    assert network.first.kernel.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, nnx.state(network, nnx.Param)))
    assert not jax.config.jax_enable_x64


class LinenNetwork(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.relu(linen.Dense(7, name="one")(x))
        x = linen.Dropout(0.5, deterministic=not train)(x)
        x = linen.relu(linen.Dense(4, name="two", use_bias=False)(x))
        return linen.Dense(2, name="three", dtype=jnp.float32)(x)


def test_linen_modules():
    network = LinenNetwork()
    variables = network.init(jax.random.key(0), U[:1], train=False)
    params = jax.tree.map(np.float64, variables["params"])
    weights = [params[name]["kernel"].T for name in ("one", "two", "three")]
    biases = [params["one"]["bias"], None, params["three"]["bias"]]
    assert_same(collect_states(network, U, variables=variables), States.from_layers(weights, biases, "relu", U))

    stack = linen.Sequential([linen.Dense(7), jnp.tanh, linen.Dense(3), jnp.tanh, linen.Dense(2)])
    variables = stack.init(jax.random.key(1), U[:1])
    params = jax.tree.map(np.float64, variables["params"])
    layers = [params[f"layers_{k}"] for k in (0, 2, 4)]
    expected = States.from_layers([p["kernel"].T for p in layers], [p["bias"] for p in layers], "tanh", U)
    assert_same(collect_states(stack, U, variables=variables), expected)


def test_own_states_method_is_used():
    class Own:
        def states(self, inputs):
            return make(inputs=inputs)

    class Wrong:
        def states(self, inputs):
            return np.zeros(3)

    np.testing.assert_array_equal(collect_states(Own(), U[:3]).inputs, U[:3])
    with pytest.raises(TypeError, match=r"network\.states\(inputs\) must return simjax\.States, got ndarray"):
        collect_states(Wrong(), U)
    with pytest.raises(ValueError, match="variables is for Flax Linen"):
        collect_states(Own(), U, variables={"params": {}})


def linear(inputs, outputs, **settings):
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(5), **settings)


class Skip(nnx.Module):
    def __init__(self):
        self.a, self.b, self.c = linear(5, 5), linear(5, 5), linear(5, 2)

    def __call__(self, x):
        hidden = nnx.relu(self.a(x))
        return self.c(hidden + nnx.relu(self.b(hidden)))


class Normalising(nnx.Module):
    def __init__(self):
        self.a, self.b = linear(5, 4), linear(4, 2)

    def __call__(self, x):
        return self.b(nnx.relu(self.a(x / 2)))


class Broken(nnx.Module):
    def __call__(self, x):
        raise RuntimeError("out of order")


NOT_UNDERSTOOD = r"between linear layers 1 and 2 is not understood\..* Accepted are chains of linear layers"


@pytest.mark.parametrize(
    ("network", "kind", "match"),
    [
        (nnx.Sequential(linear(5, 4), nnx.gelu, linear(4, 2)), TypeError, NOT_UNDERSTOOD),
        (
            nnx.Sequential(linear(5, 4), lambda z: nnx.leaky_relu(z, 0.2), linear(4, 2)),
            TypeError,
            NOT_UNDERSTOOD,
        ),
        (
            nnx.Sequential(linear(5, 4), nnx.LayerNorm(4, rngs=nnx.Rngs(0)), linear(4, 2)),
            TypeError,
            NOT_UNDERSTOOD,
        ),
        (nnx.Sequential(linear(5, 4), nnx.relu, linear(4, 2), nnx.softmax), TypeError, "must return logits"),
        (
            nnx.Sequential(linear(5, 4), nnx.relu, linear(4, 2), lambda y: y.argmax(1)),
            TypeError,
            "float32 or float64",
        ),
        (Skip(), TypeError, "between linear layers 2 and 3 is not understood"),
        (Normalising(), TypeError, "changes its inputs before the first linear layer"),
        (Broken(), TypeError, r"could not be run .* \(RuntimeError: out of order\)"),
        (nnx.Sequential(linear(3, 4), nnx.relu, linear(4, 2)), ValueError, "takes 3 numbers a sample; it received 5"),
        (nnx.Sequential(lambda x: x), TypeError, "ran no linear layer that is read"),
        (nnx.Sequential(linear(5, 4, dtype=jnp.bfloat16), nnx.relu, linear(4, 2)), TypeError, "got bfloat16"),
        (lambda x: x, TypeError, "network is a function, which is not understood"),
        (linear(5, 2), ValueError, "no hidden layer"),
        (
            nnx.Sequential(linear(5, 4), nnx.relu, linear(4, 3), nnx.tanh, linear(3, 2)),
            ValueError,
            "must share one activation, got relu, tanh",
        ),
        (
            nnx.Sequential(linear(5, 4), nnx.relu, linear(4, 3), linear(3, 2)),
            ValueError,
            "must share one activation, got relu, identity",
        ),
    ],
)
def test_networks_that_are_no_such_chain(network, kind, match):
    with pytest.raises(kind, match=match):
        collect_states(network, U)


def test_bad_variables_and_inputs():
    network = nnx.Sequential(linear(5, 4), nnx.relu, linear(4, 2))
    with pytest.raises(ValueError, match="an NNX module carries its own"):
        collect_states(network, U, variables={"params": {}})
    for variables in (None, {}, {"kernel": 1}):
        with pytest.raises(ValueError, match="variables must be a mapping with the key 'params'"):
            collect_states(LinenNetwork(), U, variables=variables)
    with pytest.raises(ValueError, match="inputs must be a 2-D"):
        collect_states(network, U[0])
    with pytest.raises(ValueError, match="inputs must be finite"):
        collect_states(network, U * np.nan)
    with pytest.raises(TypeError, match="inputs must be"):
        collect_states(network, U.astype(str))
    network.layers[0].kernel[...] = jnp.full((5, 4), jnp.nan)
    with pytest.raises(ValueError, match="computes NaN or infinite"):
        collect_states(network, U)


# --- Some layers only --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_bias", [False, True])
def test_the_last_layers_alone_give_the_same_states_and_outputs(use_bias):
    network = MLP((6, 5, 4, 3, 2), use_bias=use_bias)
    U = np.random.default_rng(0).normal(size=(9, 6))
    whole, last = collect_states(network, U), collect_states(network, U, layers=2)
    assert last.layer_sizes == (4, 3)
    np.testing.assert_array_equal(last.activations, whole.activations[:, :7])
    np.testing.assert_array_equal(last.inputs, whole.activations[:, 7:])
    np.testing.assert_array_equal(last.outputs, whole.outputs)
    np.testing.assert_allclose(last.baseline(last.inputs), whole.outputs, atol=1e-12)
    assert_same(collect_states(network, U, layers=3), whole)


def test_layers_are_those_there_are():
    U = np.ones((2, 6))
    network = MLP((6, 5, 4, 2))
    for layers, error in ((0, ValueError), (3, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="layers"):
            collect_states(network, U, layers=layers)

    class Own:
        def states(self, inputs):
            return network.states(inputs)

    with pytest.raises(TypeError, match=r"layers must be None: Own\.states"):
        collect_states(Own(), U, layers=1)


def test_a_flax_network_gives_its_last_layers_too():
    class Chain(nnx.Module):
        def __init__(self):
            self.layers = nnx.List(nnx.Linear(a, b, rngs=nnx.Rngs(a)) for a, b in ((6, 5), (5, 4), (4, 2)))

        def __call__(self, u):
            for layer in self.layers[:-1]:
                u = jax.nn.relu(layer(u))
            return self.layers[-1](u)

    U = np.random.default_rng(0).normal(size=(9, 6))
    whole, last = collect_states(Chain(), U), collect_states(Chain(), U, layers=1)
    np.testing.assert_array_equal(last.activations, whole.activations[:, :4])
    np.testing.assert_array_equal(last.inputs, whole.activations[:, 4:])
