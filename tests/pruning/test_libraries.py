"""What is wrong with a network or its inputs is said alike in Flax NNX, Flax Linen and PyTorch; nothing is changed."""

import itertools

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import generator
from numpy.testing import assert_allclose, assert_array_equal

import simjax

LIBRARIES = ("nnx", "linen", "torch")
SIZES = (6, 10, 8, 3)
INPUTS = generator(0).normal(size=(60, SIZES[0])).astype(np.float32)


def weights_of(sizes, seed=1):
    """Matrices (out, in) and biases (out,)."""
    rng = generator(seed)
    return [(rng.normal(size=(b, a)) / np.sqrt(a), 0.1 * rng.normal(size=b)) for a, b in itertools.pairwise(sizes)]


class Nnx:
    """Linear layers with a function between them."""

    def __init__(self, weights, between="relu", dtype="float32"):
        function, parts = {"relu": nnx.relu, "log": jnp.log}[between], []
        for matrix, bias in weights:
            layer = nnx.Linear(*matrix.shape[::-1], param_dtype=dtype, use_bias=bias is not None, rngs=nnx.Rngs(0))
            layer.kernel[...] = jnp.asarray(matrix.T, dtype)
            if bias is not None:
                layer.bias[...] = jnp.asarray(bias, dtype)
            parts += [layer, function]
        self.network, self.named = nnx.Sequential(*parts[:-1]), {}
        self.names = [f"layers.{2 * k}" for k in range(len(weights))]

    def values(self, network=None):
        layers = (self.network if network is None else network).layers[::2]
        return [[np.asarray(part[...]) for part in (each.kernel.T, each.bias) if part is not None] for each in layers]

    def outputs(self, network, inputs):
        return np.asarray(network(inputs))

    norm = staticmethod(lambda: (nnx.LayerNorm(SIZES[0], rngs=nnx.Rngs(0)), {}, "LayerNorm"))
    nothing = staticmethod(lambda: (nnx.Sequential(nnx.relu), {}))


class Linen:
    """The same of Linen, whose weights are apart."""

    def __init__(self, weights, between="relu", dtype="float32"):
        function, parts = {"relu": linen.relu, "log": jnp.log}[between], []
        self.names = [f"layers_{2 * k}" for k in range(len(weights))]
        for matrix, bias in weights:
            parts += [linen.Dense(len(matrix), use_bias=bias is not None, param_dtype=dtype), function]
        self.network = linen.Sequential(parts[:-1])
        made = [{"kernel": matrix.T} | ({} if bias is None else {"bias": bias}) for matrix, bias in weights]
        params = jax.tree.map(lambda array: jnp.asarray(array, dtype), dict(zip(self.names, made)))
        self.named = {"variables": {"params": params}}

    def values(self, network=None):
        params = (self.named["variables"] if network is None else network)["params"]
        layers = [params[name] for name in self.names]
        return [
            [np.asarray(part) for part in (each["kernel"].T, each.get("bias")) if part is not None] for each in layers
        ]

    def outputs(self, network, inputs):
        return np.asarray(self.network.apply(network, inputs))

    @staticmethod
    def norm():
        norm = linen.LayerNorm()
        return norm, {"variables": norm.init(jax.random.key(0), INPUTS)}, "the network itself"

    nothing = staticmethod(lambda: (linen.Sequential([linen.relu]), {"variables": {"params": {}}}))


class Torch:
    """The same of PyTorch."""

    def __init__(self, weights, between="relu", dtype="float32"):
        import torch

        class Log(torch.nn.Module):
            def forward(self, x):
                return torch.log(x)

        kind, parts = {"relu": torch.nn.ReLU, "log": Log}[between], []
        for matrix, bias in weights:
            layer = torch.nn.Linear(*matrix.shape[::-1], bias=bias is not None)
            with torch.no_grad():
                for parameter, values in zip(layer.parameters(), (matrix, bias)):
                    parameter.copy_(torch.as_tensor(values))
            parts += [layer, kind()]
        self.network, self.named = torch.nn.Sequential(*parts[:-1]).to(getattr(torch, dtype)), {}
        self.names = [f"{2 * k}" for k in range(len(weights))]

    def values(self, network=None):
        layers = (self.network if network is None else network)[::2]
        return [[part.detach().float().numpy().copy() for part in each.parameters()] for each in layers]

    def outputs(self, network, inputs):
        import torch

        with torch.no_grad():
            return network(torch.as_tensor(inputs)).numpy()

    @staticmethod
    def norm():
        import torch

        return torch.nn.LayerNorm(SIZES[0]), {}, "LayerNorm"

    @staticmethod
    def nothing():
        import torch

        return torch.nn.Sequential(torch.nn.ReLU()), {}


@pytest.fixture(params=LIBRARIES)
def library(request):
    if request.param == "torch":
        pytest.importorskip("torch")
    return {"nnx": Nnx, "linen": Linen, "torch": Torch}[request.param]


def prune(made, inputs=INPUTS, sparsity=0.5, **settings):
    return simjax.prune(made.network, inputs, sparsity, **made.named, **settings)


def assert_same(values, expected):
    for one, other in zip(values, expected, strict=True):
        for left, right in zip(one, other, strict=True):
            assert_array_equal(left, right)


def test_the_network_passed_in_stays_as_it_is_and_the_layers_are_the_same_in_all(library):
    made, reference = library(weights_of(SIZES)), Nnx(weights_of(SIZES))
    before = made.values()
    result, expected = prune(made), prune(reference)
    assert_same(made.values(), before)
    assert result.converged
    assert list(result.layers) == made.names
    for one, other in zip(result.layers.values(), expected.layers.values(), strict=True):
        assert_array_equal(one.parts[0].support, other.parts[0].support)
        assert_allclose(one.parts[0].weight, other.parts[0].weight, rtol=1e-3, atol=1e-5)
    for one, other in zip(made.values(result.network), reference.values(expected.network), strict=True):
        assert_allclose(one[0], other[0], rtol=1e-3, atol=1e-5)
        assert np.mean(one[0] == 0.0) >= 0.5
    outputs = made.outputs(result.network, INPUTS)
    assert_allclose(outputs, reference.outputs(expected.network, INPUTS), rtol=1e-3, atol=1e-4)


def test_inputs_that_are_zero_give_a_stated_and_certified_answer(library):
    made = library(weights_of(SIZES))
    result = prune(made, np.zeros((20, SIZES[0]), np.float32))
    assert result.converged
    first = result.layers[made.names[0]]
    assert first.relative_error == 0.0
    assert first.parts[0].unseen == SIZES[0]
    matrix, bias = made.values(result.network)[0]
    assert not matrix.any()
    assert_allclose(bias, made.values()[0][1], rtol=1e-6)
    nothing = np.zeros((1, SIZES[0]), np.float32)
    trained = made.named.get("variables", made.network)
    assert_allclose(made.outputs(result.network, nothing), made.outputs(trained, nothing), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("propagate", ["pruned", "original"])
def test_a_layer_behind_units_that_are_never_on_sees_only_zeros(library, propagate):
    weights = weights_of(SIZES)
    weights[0] = weights[0][0], np.full(SIZES[1], -100.0)
    made = library(weights)
    result = prune(made, propagate=propagate)
    assert result.converged
    behind = result.layers[made.names[1]]
    assert behind.relative_error == 0.0
    assert behind.parts[0].unseen == SIZES[1]
    assert not made.values(result.network)[1][0].any()
    assert_allclose(made.values(result.network)[1][1], weights[1][1], rtol=1e-6)


def test_activations_that_are_nan_name_the_layer_that_sees_them(library):
    made = library(weights_of(SIZES), between="log")  # of numbers below zero
    before = made.values()
    with pytest.raises(ValueError, match=rf"layer '{made.names[1]}': inputs must be finite, got \d+ NaN"):
        prune(made, layers=made.names[1:])
    assert_same(made.values(), before)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_not_finite_name_the_first_layer(library, value):
    made = library(weights_of(SIZES))
    inputs = INPUTS.copy()
    inputs[7, 2] = value
    before = made.values()
    with pytest.raises(ValueError, match=f"layer '{made.names[0]}': inputs must be finite, got 1 (NaN|inf)"):
        prune(made, inputs)
    assert_same(made.values(), before)


def test_inputs_of_another_width_are_refused_with_what_the_library_says(library):
    made = library(weights_of(SIZES))
    kind = type(made.network).__name__
    with pytest.raises(ValueError, match=rf"(?s)inputs could not be run through {kind}: \w+Error: .*[(x]7\b"):
        prune(made, INPUTS[:, [0, *range(SIZES[0])]])


def test_names_that_are_not_there_are_told_with_those_that_are(library):
    made = library(weights_of(SIZES))
    with pytest.raises(ValueError, match=r"layers has unknown names \['nowhere'\]; this network has") as told:
        prune(made, layers=[made.names[0], "nowhere"])
    assert all(repr(name) in str(told.value) for name in made.names)


def test_a_network_without_linear_layers_is_refused_with_what_it_has(library):
    norm, named, name = library.norm()
    with pytest.raises(ValueError, match=f"network has no linear layer.*; what has parameters is left alone: .*{name}"):
        simjax.prune(norm, INPUTS, 0.5, **named)
    nothing, named = library.nothing()
    with pytest.raises(ValueError, match=r"network has no linear layer, convolution or projection that is read\.$"):
        simjax.prune(nothing, INPUTS, 0.5, **named)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_half_precision_cannot_hold_is_an_error_that_names_the_layer(library, dtype):
    """Outputs are kept by one weight in place of two, which has to be as large as both."""
    made = library([(np.eye(2), None), (np.full((1, 2), 6e4), None)], dtype=dtype)
    inputs = np.repeat(np.linspace(0.0, 1e-2, 20)[:, None], 2, axis=1).astype(np.float32)
    before = made.values()
    if dtype == "bfloat16":
        result = prune(made, inputs, layers=made.names[1:])
        assert_allclose(np.sum(made.values(result.network)[1][0], dtype=np.float64), 1.2e5, rtol=1e-2)
    else:
        said = rf"layer '{made.names[1]}': its refitted weights or biases reach 1\.2e\+05, beyond what .*float16"
        with pytest.raises(ValueError, match=said):
            prune(made, inputs, layers=made.names[1:])
    assert_same(made.values(), before)
