"""The baseline MLP and its training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

from simjax.datasets import load_digits
from simjax.implicit.activations import ACTIVATIONS
from simjax.nn import MLP, RECOMMENDED, accuracy, train
from simjax.states.collect import collect_states

U = np.random.default_rng(0).standard_normal((12, 6))


def blobs(m=300, seed=0):
    """Three classes around three corners of a cube: easy, not trivial."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, m)
    return rng.standard_normal((m, 6)) * 0.3 + np.eye(6)[labels], labels


def parameters(network):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(network, nnx.Param))]


# ---- the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_states_and_export_are_the_network(activation, use_bias):
    network = MLP((6, 5, 4, 3), activation, use_bias, nnx.Rngs(1))
    if use_bias:
        for k, layer in enumerate(network.layers):
            layer.bias[...] = jnp.arange(layer.bias.shape[0]) - k / 2
    states, model = network.states(U), network.export()
    assert states.layer_sizes == (5, 4)
    assert (model.b is not None) == use_bias
    np.testing.assert_allclose(network(jnp.float32(U)), states.outputs, atol=1e-5)  # the network is float32
    np.testing.assert_allclose(model(U), states.outputs, atol=1e-13)
    with jax.enable_x64(True):
        exact = network(jnp.asarray(U))
        assert exact.dtype == jnp.float64
        np.testing.assert_allclose(exact, states.outputs, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(collect_states(network, U).activations, states.activations)


def test_defaults_are_the_papers_network():
    network = MLP()
    assert network.sizes == (784, 64, 32, 16, 10)
    assert sum(leaf.size for leaf in parameters(network)) == 52_896
    assert network.activation == "relu"
    np.testing.assert_array_equal(parameters(network)[0], parameters(MLP())[0])  # no shared random state
    assert not np.array_equal(parameters(network)[0], parameters(MLP(rngs=nnx.Rngs(1)))[0])


@pytest.mark.parametrize("sizes", [(4, 3), (4, 0, 3), (4.0, 2.0, 3.0), [[4, 2, 3]], "abc", ()])
def test_bad_sizes(sizes):
    with pytest.raises(ValueError, match="sizes must be at least three positive whole numbers"):
        MLP(sizes)


def test_bad_network_arguments():
    with pytest.raises(ValueError, match="'gelu' is unknown"):
        MLP((4, 3, 2), "gelu")
    network = MLP((6, 5, 3))
    with pytest.raises(ValueError, match="inputs has 5 columns, the network expects 6"):
        network.states(U[:, :5])
    network.layers[1].kernel[...] = jnp.full((5, 3), jnp.nan)
    with pytest.raises(ValueError, match=r"weights\[1\] must be finite"):
        network.states(U)
    with pytest.raises(ValueError, match=r"weights\[1\] must be finite"):
        network.export()


@pytest.mark.parametrize("use_bias", [False, True])
def test_round_trip(use_bias, tmp_path):
    network, path = MLP((6, 5, 3), "tanh", use_bias, nnx.Rngs(4)), tmp_path / "network.safetensors"
    network.save(path)
    loaded = MLP.load(path)
    assert (loaded.sizes, loaded.activation, loaded.use_bias) == ((6, 5, 3), "tanh", use_bias)
    for saved, read in zip(parameters(network), parameters(loaded), strict=True):
        np.testing.assert_array_equal(saved, read)
        assert saved.dtype == read.dtype == np.float32
    np.testing.assert_array_equal(loaded.states(U).outputs, network.states(U).outputs)
    with pytest.raises(FileExistsError, match="exists"):
        network.save(path)
    network.save(path, overwrite=True)


def test_damaged_and_foreign_files(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    MLP((6, 5, 3)).save(good)
    MLP((6, 5, 3)).export().save(tmp_path / "model")
    content = good.read_bytes()
    with safetensors.safe_open(good, "numpy") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    fewer = {name: tensor for name, tensor in tensors.items() if "1" not in name}
    cases = [
        (content[:-1], "truncated or foreign"),
        (b"", "truncated or foreign"),
        ((tmp_path / "model").read_bytes(), "not a simjax-mlp"),
        (
            safetensors.numpy.save(tensors, header | {"sizes": "[6, 4, 3]"}),
            r"layers\.0\.kernel has shape \(6, 5\)",
        ),
        (safetensors.numpy.save(tensors, header | {"sizes": "[6, 3]"}), "at least three"),
        (safetensors.numpy.save(tensors, header | {"use_bias": "true"}), r"layers\.0\.bias' is missing"),
        (safetensors.numpy.save(tensors, header | {"format_version": "7"}), "format version '7'"),
        (safetensors.numpy.save(fewer, header), r"layers\.1\.kernel' is missing"),
    ]
    for data, match in cases:
        bad.write_bytes(data)
        with pytest.raises(ValueError, match=match) as caught:
            MLP.load(bad)
        assert str(bad) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        MLP.load(tmp_path / "absent")


# ---- training --------------------------------------------------------------------------------------------


def test_training_learns_and_reports():
    inputs, labels = blobs()
    network, calls = MLP((6, 16, 3)), []
    before = accuracy(network, inputs, labels)
    report = train(
        network, inputs, labels, epochs=20, batch_size=32, learning_rate=1e-2,
        validation=blobs(seed=1), callback=lambda *call: calls.append(call),
    )  # fmt: skip
    assert report.losses.shape == report.accuracies.shape == report.validation_accuracies.shape == (20,)
    assert report.losses[-1] < 0.5 * report.losses[0]
    assert accuracy(network, inputs, labels) > max(before, 0.9)
    assert report.validation_accuracies[-1] == accuracy(network, *blobs(seed=1))
    assert report.seconds > 0
    assert calls == [(k + 1, 20, report.losses[k], report.accuracies[k]) for k in range(20)]
    logits = network(jnp.float32(inputs))
    assert accuracy(network, inputs, labels) == np.mean(np.argmax(np.asarray(logits), axis=1) == labels)
    assert train(network, inputs, labels, epochs=1).validation_accuracies is None


def test_first_step_is_adamw():
    # One batch with all samples, one epoch: one step of AdamW, whose first update is sign-like.
    inputs, labels = blobs(m=30)
    network, reference = MLP((6, 4, 3)), MLP((6, 4, 3))
    rate, decay = 1e-3, 0.1

    def loss(state):
        logits = nnx.merge(graph, state)(jnp.float32(inputs))
        return -jax.nn.log_softmax(logits)[jnp.arange(30), labels].mean()

    graph, state = nnx.split(reference)
    gradient = jax.grad(loss)(state)
    expected = jax.tree.map(lambda w, g: w - rate * (g / (jnp.abs(g) + 1e-8) + decay * w), state, gradient)
    train(network, inputs, labels, epochs=1, batch_size=30, learning_rate=rate, weight_decay=decay)
    for found, wanted in zip(parameters(network), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_training_is_deterministic_for_a_seed():
    inputs, labels = blobs()
    results = []
    for seed in (0, 0, 1):
        network = MLP((6, 8, 3))
        train(network, inputs, labels, epochs=3, seed=seed)
        results.append(parameters(network))
    for first, second in zip(results[0], results[1], strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(results[0][0], results[2][0])


def test_training_leaves_global_state_alone():
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    inputs, labels = blobs()
    train(MLP((6, 8, 3)), inputs, labels, epochs=1)
    assert not jax.config.jax_enable_x64
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_any_nnx_module_can_be_trained():
    inputs, labels = blobs()
    rngs = nnx.Rngs(0)
    network = nnx.Sequential(nnx.Linear(6, 16, rngs=rngs), nnx.relu, nnx.Linear(16, 3, rngs=rngs))
    train(network, inputs, labels, epochs=20, batch_size=32, learning_rate=1e-2)
    assert accuracy(network, inputs, labels) > 0.9


def test_divergence_is_an_error_and_keeps_the_network():
    inputs, labels = blobs()
    network = MLP((6, 8, 3))
    before = parameters(network)
    with pytest.raises(FloatingPointError, match="smaller learning_rate"):
        train(network, inputs, labels, epochs=5, learning_rate=1e30)
    for old, new in zip(before, parameters(network), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"inputs": np.zeros((300, 4))}, ValueError, "inputs with 4 columns do not fit the network"),
        ({"inputs": np.zeros(300)}, ValueError, "inputs must be"),
        ({"inputs": np.full((300, 6), np.nan)}, ValueError, "inputs must be finite"),
        ({"labels": np.zeros(5, int)}, ValueError, r"labels has shape \(5,\), expected \(300,\)"),
        ({"labels": np.full(300, 3)}, ValueError, "labels must lie in 0 … 2"),
        ({"labels": np.zeros(300)}, TypeError, "labels must be whole numbers"),
        ({"epochs": 0}, ValueError, "epochs must be"),
        ({"epochs": 1.5}, TypeError, "epochs must be"),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
        ({"batch_size": 301}, ValueError, "batch_size must be at most the number of samples 300, got 301"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be"),
        ({"learning_rate": np.nan}, ValueError, "learning_rate must be"),
        ({"weight_decay": -1}, ValueError, "weight_decay must be"),
        ({"validation": (np.zeros((3, 6)), [0, 1])}, ValueError, "labels has shape"),
        ({"network": "MLP"}, TypeError, "network must be a Flax NNX module, got str"),
        (
            {"network": nnx.Sequential(nnx.Linear(6, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)))},
            TypeError,
            "no variables but parameters",
        ),
    ],
)
def test_bad_training_arguments(change, kind, match):
    inputs, labels = blobs()
    arguments = {"network": MLP((6, 4, 3)), "inputs": inputs, "labels": labels, "epochs": 1} | change
    with pytest.raises(kind, match=match):
        train(**arguments)


def test_digits_reach_95_percent():
    data, network = load_digits(), MLP((64, 32, 16, 10))
    train(network, data.train_inputs, data.train_labels, **RECOMMENDED["digits"])
    found = accuracy(network, data.test_inputs, data.test_labels)
    assert found >= 0.95
    assert network.export().accuracy(data.test_inputs, data.test_labels) == pytest.approx(found, abs=1 / 300)
