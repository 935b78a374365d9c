"""Networks made sparse: what is read, what comes back, what is claimed, and what is left alone."""

import itertools

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import simjax
from simjax import plotting
from simjax.pruning.networks.linear_map import LinearMap
from simjax.pruning.networks.nnx_network import NnxNetwork


def samples(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def chain(sizes=(6, 10, 8, 3), seed=0):
    rngs = nnx.Rngs(seed)
    layers = [nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)]
    parts = [part for layer in layers for part in (layer, nnx.relu)]
    return nnx.Sequential(*parts[:-1])


class Everything(nnx.Module):
    """Convolutions with strides, dilation, padding and groups, normalisation, attention, dropout."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 2), strides=(2, 1), padding="SAME", rngs=rngs)
        self.grouped = nnx.Conv(4, 4, (2, 2), feature_group_count=2, kernel_dilation=2, padding="CIRCULAR", rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.grouped(nnx.relu(self.conv(x))))
        x = self.attention(x.reshape(x.shape[0], -1, 4))
        return self.out(self.drop(x).mean(axis=1))


def everything_of(network):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(network, nnx.Not(nnx.RngState))))


def assert_same_trees(left, right):
    jax.tree.map(assert_array_equal, left, right)


def test_without_zeros_a_network_is_what_it_was_and_the_one_passed_in_always():
    network, inputs = Everything(nnx.Rngs(0)), samples(40, 6, 4, 2)
    before = everything_of(network)
    result = simjax.prune(network, inputs, sparsity=0.0)
    assert_same_trees(everything_of(network), before)
    assert not network.drop.deterministic
    assert type(result.network) is Everything
    assert not result.network.drop.deterministic  # the modes of the one passed in
    assert result.converged
    assert set(result.layers) == {
        "conv", "grouped", "attention.query", "attention.key", "attention.value", "attention.out", "out",
    }  # fmt: skip
    assert len(result.layers["grouped"].parts) == 2
    assert next(iter(result.layers)) == "conv"
    assert list(result.layers)[-1] == "out"
    assert "norm (BatchNorm)" in result.others
    network.eval(), result.network.eval()
    assert_allclose(result.network(inputs), network(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["conv", "grouped"])
def test_a_convolution_is_a_linear_map_of_its_patches(name):
    network = NnxNetwork(Everything(nnx.Rngs(1)), samples(5, 6, 4, 2))
    seen = {}
    network.run(samples(5, 6, 4, 2), [name], lambda layer, rows: seen.setdefault(layer, rows()))
    linear = network.maps[name]
    groups = zip(seen[name], linear.weight, linear.bias)
    outputs = np.concatenate([rows @ weight.T + bias for rows, weight, bias in groups], axis=1)
    module = Everything(nnx.Rngs(1))
    module.eval()
    x = jnp.asarray(samples(5, 6, 4, 2))
    given = module.conv(x) if name == "conv" else module.grouped(nnx.relu(module.conv(x)))
    assert_allclose(outputs, np.asarray(given).reshape(-1, given.shape[-1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("propagate", "correction"), [*(("pruned", c) for c in (0, 0.25, 0.5, 1)), ("original", None)])
def test_every_layer_is_prune_layer_of_what_it_sees(propagate, correction):
    network, inputs = chain(), samples(300, 6)
    how = {} if correction in (None, 0.5) else {"correction": correction}  # the half is what it is by default
    result = simjax.prune(network, inputs, 0.5, propagate=propagate, **how)
    assert result.converged
    assert result.samples == 300
    weights = [np.asarray(network.layers[k].kernel[...], np.float64).T for k in (0, 2, 4)]
    biases = [np.asarray(network.layers[k].bias[...], np.float64) for k in (0, 2, 4)]
    pruned = [np.asarray(result.network.layers[k].kernel[...], np.float64).T for k in (0, 2, 4)]
    given, now = inputs.astype(np.float64), inputs.astype(np.float64)
    for k, part in enumerate(result.layers.values()):
        aim = now if correction is None else now + correction * (given - now)
        targets = aim @ weights[k].T + biases[k]
        alone = simjax.prune_layer(now, weights[k], biases[k], targets=targets, sparsity=0.5)
        assert part.sparsity >= 0.5
        assert_allclose(part.relative_error, alone.relative_error, rtol=1e-3)
        assert_allclose(pruned[k], part.parts[0].weight, rtol=1e-6, atol=1e-7)
        assert part.worst_gap <= 1e-6
        given = np.maximum(given @ weights[k].T + biases[k], 0.0)
        if propagate == "pruned":
            bias = np.asarray(result.network.layers[2 * k].bias[...], np.float64)
            now = np.maximum(now @ pruned[k].T + bias, 0.0)
        else:
            now = given


def test_batches_are_as_good_as_an_array_and_a_generator_serves_where_one_run_is_enough():
    network, inputs = chain(), samples(90, 6)
    whole = simjax.prune(network, inputs, 0.6)
    parts = simjax.prune(network, [inputs[:40], inputs[40:]], 0.6)
    assert parts.samples == 90
    for one, other in zip(whole.layers.values(), parts.layers.values()):
        assert_allclose(one.relative_error, other.relative_error, rtol=1e-6)
    once = simjax.prune(network, (x for x in (inputs[:40], inputs[40:])), 0.6, propagate="original")
    assert once.samples == 90
    with pytest.raises(ValueError, match="run through again"):
        simjax.prune(network, (x for x in (inputs,)), 0.6)


def test_zeros_are_shared_out_by_what_they_cost():
    network, inputs = chain((6, 40, 8, 3)), samples(300, 6)
    network.layers[2].kernel[...] *= jnp.asarray(samples(40, 8, seed=3) > 0.9)  # most of it is zero already
    result = simjax.prune(network, inputs, 0.5, allocation="global")
    assert result.sparsity >= 0.5 - 1e-9
    assert result.layers["layers.2"].sparsity > 0.7
    assert result.layers["layers.0"].sparsity < 0.5
    assert all(len(layer.curves) == 1 for layer in result.layers.values())


def test_a_choice_of_layers_patterns_and_a_callback():
    network, inputs, told = chain((8, 8, 8, 3)), samples(100, 8), []
    result = simjax.prune(network, inputs, pattern="2:4", layers=lambda name: name != "layers.4", progress=told.append)
    assert list(result.layers) == ["layers.0", "layers.2"]
    assert result.left_out == ("layers.4",)
    assert "layers.4" in result.summary()
    assert [(each.layer, each.done, each.layers) for each in told] == [("layers.0", 1, 2), ("layers.2", 2, 2)]
    kernel = np.asarray(result.network.layers[2].kernel[...]).T.reshape(8, 2, 4)
    assert (np.count_nonzero(kernel, axis=2) <= 2).all()
    assert_array_equal(result.network.layers[4].kernel[...], network.layers[4].kernel[...])
    figure = plotting.plot_prune(result)
    assert len(figure.axes) == 2


def test_a_module_called_twice_is_one_layer_and_a_shared_parameter_is_left_alone():
    class Twice(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(4, 4, rngs=rngs)
            self.tied, self.other = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
            self.other.kernel = self.tied.kernel

        def __call__(self, x):
            return self.other(self.tied(self.layer(nnx.relu(self.layer(x)))))

    result = simjax.prune(Twice(nnx.Rngs(0)), samples(50, 4), 0.5)
    assert list(result.layers) == ["layer"]
    assert result.layers["layer"].parts[0].solution.problem.count == 4
    assert {"tied (Linear)", "other (Linear)"} <= set(result.others)


@pytest.mark.slow
def test_linen_variables_come_back_with_the_same_call():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train=True):
            x = linen.relu(linen.Conv(3, (3,), strides=2)(x))
            x = linen.BatchNorm(use_running_average=not train)(x)
            x = linen.DenseGeneral((2, 2))(x).reshape(x.shape[0], -1)
            return linen.Dense(2)(linen.Dropout(0.5, deterministic=not train)(x))

    network, inputs = Net(), samples(60, 8, 2)
    variables = network.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, inputs[:2])
    before = jax.tree.map(np.asarray, variables)
    same = simjax.prune(network, inputs, sparsity=0.0, variables=variables)
    assert_allclose(
        network.apply(same.network, inputs, train=False), network.apply(variables, inputs, train=False), rtol=1e-4,
        atol=1e-5,
    )  # fmt: skip
    result = simjax.prune(network, inputs, 0.5, variables=variables)
    assert_same_trees(jax.tree.map(np.asarray, variables), before)
    assert set(result.layers) == {"Conv_0", "DenseGeneral_0", "Dense_0"}
    assert result.others == ("BatchNorm_0",)
    assert np.count_nonzero(result.network["params"]["Dense_0"]["kernel"]) <= result.layers["Dense_0"].weights // 2
    with pytest.raises(ValueError, match="variables"):
        simjax.prune(network, inputs, 0.5)


def test_half_precision_stays_half_precision():
    network = nnx.Linear(4, 3, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    result = simjax.prune(network, samples(40, 4), 0.5)
    assert result.network.kernel.dtype == jnp.bfloat16
    assert result.converged


@pytest.mark.parametrize("committed", [False, True])
def test_weights_are_committed_to_a_device_only_where_they_were(committed):
    network = chain()
    if committed:
        graph, state = nnx.split(network)
        network = nnx.merge(graph, jax.device_put(state, jax.devices()[0]))
    result = simjax.prune(network, samples(40, 6), 0.5)
    assert {leaf.committed for leaf in jax.tree.leaves(nnx.state(result.network))} == {committed}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"network": object()}, TypeError, "network must be"),
        ({"sparsity": 1.0}, ValueError, "layer 'layers.0': sparsity"),
        ({"sparsity": np.nan}, ValueError, "sparsity"),
        ({"layers": "layers.0"}, TypeError, "layers must be a sequence"),
        ({"layers": []}, ValueError, "layers chooses none"),
        ({"pattern": "3:5"}, ValueError, "layer 'layers.0': pattern"),
        ({"pattern": "rows", "allocation": "global"}, ValueError, "pattern must be 'unstructured'"),
        ({"method": "magnitude"}, ValueError, "method"),
        ({"propagate": "both"}, ValueError, "propagate"),
        ({"correction": 1.5}, ValueError, r"correction must be a number in \[0, 1\], got 1.5"),
        ({"correction": -0.5}, ValueError, "correction must be"),
        ({"correction": np.nan}, ValueError, "correction must be"),
        ({"correction": "half"}, TypeError, "correction must be"),
        ({"correction": 0.5, "propagate": "original"}, ValueError, "correction needs propagate='pruned'"),
        ({"allocation": "even"}, ValueError, "allocation"),
        ({"tol": 0.0}, ValueError, "tol"),
        ({"inputs": []}, ValueError, "inputs must have at least one batch"),
        ({"inputs": 3.0}, TypeError, "inputs must be an array"),
        ({"variables": {"params": {}}}, ValueError, "variables"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"network": chain(), "inputs": samples(20, 6), "sparsity": 0.5} | change
    with pytest.raises(error, match=message):
        simjax.prune(**arguments)


# --- PyTorch -----------------------------------------------------------------------------------------------------


def test_a_torch_network():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0)),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 4, 2, dilation=2, groups=2, padding="same"),
        torch.nn.Flatten(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(36, 5),
    )
    inputs = samples(50, 2, 6, 4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    same = simjax.prune(network, inputs, sparsity=0.0).network
    result = simjax.prune(network, torch.as_tensor(inputs), 0.5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert result.network.training
    assert list(result.layers) == ["0", "3", "6"]
    assert result.converged
    assert "1 (BatchNorm2d)" in result.others
    network.eval(), same.eval()
    with torch.no_grad():
        assert_allclose(same(torch.as_tensor(inputs)), network(torch.as_tensor(inputs)), rtol=1e-4, atol=1e-5)
    assert int((result.network[6].weight != 0).sum()) <= 90


def test_values_are_told_in_one_line():
    result = simjax.prune(chain(), samples(30, 6), 0.5)
    assert "\n" not in repr(result)
    assert "<table>" in result._repr_html_()
    assert isinstance(result.certificate["layers.0"][0], simjax.Certificate)
    assert LinearMap(np.zeros((1, 2, 3)), None).groups == 1
