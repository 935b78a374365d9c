"""Residual networks: the network in Flax, its layers as states and as an implicit model, and its file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import simjax
from simjax.nn import ResNet, resnet

IMAGES = np.random.default_rng(0).normal(size=(5, 8, 8, 3))


@pytest.fixture(scope="module")
def network():
    """One block a stage, with running statistics and normalisation unlike the initial ones."""
    made = ResNet(blocks=1, width=2, classes=4, rngs=nnx.Rngs(1))
    rng = np.random.default_rng(2)
    for norm in made.norms:
        for variable in (norm.mean, norm.bias):
            variable[...] = jnp.asarray(rng.normal(size=variable.shape), jnp.float32)
        for variable in (norm.var, norm.scale):
            variable[...] = jnp.asarray(rng.uniform(0.5, 2.0, variable.shape), jnp.float32)
    made.classifier.bias[...] = jnp.asarray([0.1, -0.2, 0.3, 0.0])
    made.eval()
    return made


def test_defaults_are_resnet_20_with_the_states_that_it_is_known_for():
    made = ResNet()
    assert made.depth == 19
    sizes = [int(np.prod(made._shape(layer, (32, 32)))) for layer in range(19)]
    assert sizes == [16384] * 7 + [8192] * 6 + [4096] * 6
    assert sum(sizes) == 188_416
    kernels = 9 * (3 * 16 + 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2)
    trained = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(made, nnx.Param)))
    assert trained == kernels + 2 * (7 * 16 + 6 * 32 + 6 * 64) + 6500
    assert made.parameters_of() == kernels + (7 * 16 + 6 * 32 + 6 * 64) + 6500  # folded: one bias a channel
    assert made.parameters_of(2) == 2 * (9 * 64**2 + 64) + 6500


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 6, 7, None])
def test_states_and_export_are_the_network(network, layers):
    states, model = network.states(IMAGES, layers), network.export(layers, (8, 8))
    chosen = [128, 128, 128, 64, 64, 32, 32][7 - (layers or 7) :]  # 8×8×2, 4×4×4 and 2×2×8
    assert states.layer_sizes == tuple(chosen)
    logits = network(jnp.asarray(IMAGES, jnp.float32))
    np.testing.assert_allclose(states.outputs, logits, atol=2e-4)
    np.testing.assert_allclose(model(states.inputs), states.outputs, atol=1e-10)
    np.testing.assert_array_equal(network.inputs(IMAGES, layers), states.inputs)
    found = states.inputs @ model.B.T + states.activations @ model.A.T + model.b
    np.testing.assert_allclose(found, states.preactivations, atol=1e-10)
    mask = simjax.rows.constraints.feedforward_support(states.layer_sizes, states.p)
    assert not np.any((model.A.toarray() != 0) & ~mask[:, : states.n])


def test_what_feeds_the_first_layer_are_the_inputs(network):
    whole = network.states(IMAGES)
    layers = whole.layer_slices()  # last layer first
    np.testing.assert_allclose(whole.inputs, IMAGES.reshape(5, -1))
    block = network.states(IMAGES, 2)
    np.testing.assert_allclose(block.inputs, whole.activations[:, layers[2]], atol=1e-4)
    second = network.states(IMAGES, 1)  # the end of a block also sees what the block began with
    expected = np.hstack([whole.activations[:, layers[1]], whole.activations[:, layers[2]]])
    np.testing.assert_allclose(second.inputs, expected, atol=1e-4)


def test_a_convolution_as_a_matrix():
    kernel, x = np.zeros((3, 3, 1, 1)), np.arange(16.0)
    kernel[0, 2] = 2.0  # what lies one row above and one column to the right, doubled
    out = (resnet._convolution_matrix(kernel, (4, 4, 1), 1) @ x).reshape(4, 4)
    np.testing.assert_array_equal(out[0], 0.0)
    np.testing.assert_array_equal(out[1:, :3], 2.0 * x.reshape(4, 4)[:3, 1:])
    np.testing.assert_array_equal(out[:, 3], 0.0)
    kernel[:] = 0.0
    kernel[1, 1] = 1.0
    strided = resnet._convolution_matrix(kernel, (4, 4, 1), 2) @ x
    np.testing.assert_array_equal(strided, [0.0, 2.0, 8.0, 10.0])


def test_training_mode_uses_batch_statistics():
    made = ResNet(1, 2, 3)
    before = np.asarray(made.norms[0].mean[...])
    made(jnp.asarray(IMAGES, jnp.float32))
    assert not np.array_equal(before, made.norms[0].mean[...])


def test_fit_of_the_last_block(network):
    images = np.random.default_rng(3).normal(size=(12, 8, 8, 3))
    states = network.states(images, 2)
    result = simjax.fit(
        states, "l1", alpha=1e-3, kappa=None, support="feedforward", reduction="mean", fit_intercept=True
    )
    assert result.converged
    fitted = result.model(states.inputs)
    assert np.abs(fitted - states.outputs).max() < 0.2 * np.abs(states.outputs).max()


def test_file(network, tmp_path):
    path = tmp_path / "network.safetensors"
    network.save(path)
    again = ResNet.load(path)
    np.testing.assert_array_equal(again(jnp.float32(IMAGES)), network(jnp.float32(IMAGES)))
    with pytest.raises(FileExistsError):
        network.save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="truncated"):
        ResNet.load(path)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda net: net.states(IMAGES, 8), r"layers must be in 1 … 7, got 8"),
        (lambda net: net.states(IMAGES, 0), "layers"),
        (lambda net: net.states(IMAGES[:, :, :, :2]), r"images must be \(m, height, width, 3\)"),
        (lambda net: net.states(IMAGES[:, :6]), "multiples of 4"),
        (lambda net: net.states(np.where(IMAGES > 2, np.nan, IMAGES)), "images"),
        (lambda net: ResNet(0), "blocks"),
        (lambda net: ResNet(width=-1), "width"),
    ],
)
def test_bad_input(network, call, match):
    with pytest.raises(ValueError, match=match):
        call(network)
