"""States: validation, subsets, rescaling, files, and collection from anyone's Flax network."""

import io
import json
import pickle

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from simjax.implicit.activations import ACTIVATIONS
from simjax.implicit.model import ImplicitModel
from simjax.nn import MLP
from simjax.states.collect import collect_states
from simjax.states.states import States

WEIGHTS = [np.random.default_rng(1).standard_normal(shape) for shape in ((6, 5), (4, 6), (3, 4), (2, 3))]
BIASES = [np.random.default_rng(2).standard_normal(len(W)) for W in WEIGHTS]
U = np.random.default_rng(3).standard_normal((20, 5))


def make(activation="relu", biases=None, inputs=U):
    return States.from_layers(WEIGHTS, biases, activation, inputs)


def plain(states, **changes):
    """The same arrays without what is known of the network."""
    names = ("inputs", "preactivations", "activations", "outputs")
    return {name: getattr(states, name) for name in names} | {"activation": states.activation} | changes


# ---- construction ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [None, BIASES])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_from_layers_is_the_network(activation, biases):
    states, phi = make(activation, biases), ACTIVATIONS[activation].host
    b1, b2, b3, b4 = biases or [0.0] * 4
    Z1 = U @ WEIGHTS[0].T + b1
    Z2 = phi(Z1) @ WEIGHTS[1].T + b2
    Z3 = phi(Z2) @ WEIGHTS[2].T + b3
    np.testing.assert_allclose(states.preactivations, np.hstack([Z3, Z2, Z1]), atol=1e-13)
    np.testing.assert_array_equal(states.activations, phi(states.preactivations))
    np.testing.assert_allclose(states.outputs, phi(Z3) @ WEIGHTS[3].T + b4, atol=1e-13)
    assert (states.m, states.n, states.p, states.q) == (20, 13, 5, 2)
    assert states.layer_sizes == (6, 4, 3)
    assert states.layer_slices() == (slice(0, 3), slice(3, 7), slice(7, 13))
    np.testing.assert_allclose(states.baseline(U), states.outputs, atol=1e-13)
    assert "m=20, n=13, p=5, q=2, activation=" in repr(states)


def test_arrays_are_float64_copies_that_cannot_be_written():
    Z = np.array([[1, -2], [3, 4]], dtype=np.int32)
    X = jnp.asarray(np.maximum(Z, 0), dtype=jnp.bfloat16)
    states = States(inputs=[[1], [2]], preactivations=Z, activations=X, outputs=np.float32([[0.5], [0.1]]))
    for name in ("inputs", "preactivations", "activations", "outputs"):
        assert getattr(states, name).dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            getattr(states, name)[0, 0] = 1
    Z[0, 0] = 100
    assert states.preactivations[0, 0] == 1
    assert states.outputs[1, 0] == np.float32(0.1)
    with pytest.raises(AttributeError):
        states.inputs = Z
    with pytest.raises(ValueError, match="layer_sizes is unknown"):
        states.layer_slices()


def test_float32_states_pass_and_another_activation_does_not():
    for activation in ACTIVATIONS:
        arrays = {k: v if k == "activation" else np.float32(v) for k, v in plain(make(activation)).items()}
        assert States(**arrays).n == 13
    with pytest.raises(ValueError, match=r"φ\(preactivations\) with φ = 'relu', but they differ by up to"):
        States(**plain(make("leaky_relu"), activation="relu"))


def test_deviation_is_reported_relative_to_scale():
    Z = np.array([[1000.0, -1.0]])
    States([[1.0]], Z, [[1000.009, 0.0]], [[1.0]])
    with pytest.raises(ValueError, match=r"differ by up to 0\.02 \(allowed 0\.01\)"):
        States([[1.0]], Z, [[1000.02, 0.0]], [[1.0]])


@pytest.mark.parametrize(
    ("name", "value", "kind", "match"),
    [
        ("inputs", U[:5], ValueError, "preactivations has 20 rows, but inputs has m = 5"),
        ("preactivations", np.zeros((7, 13)), ValueError, "preactivations has 7 rows, but inputs has m = 20"),
        ("activations", np.zeros((7, 13)), ValueError, "activations has 7 rows"),
        ("outputs", np.zeros((7, 2)), ValueError, "outputs has 7 rows"),
        (
            "preactivations",
            np.zeros((20, 4)),
            ValueError,
            r"preactivations has shape \(20, 4\) and activations",
        ),
        ("outputs", np.zeros(20), ValueError, "outputs must be a 2-D"),
        ("inputs", U[None], ValueError, "inputs must be a 2-D"),
        ("inputs", np.zeros((0, 5)), ValueError, r"inputs must not be empty, got shape \(0, 5\)"),
        ("inputs", np.zeros((20, 0)), ValueError, "inputs must not be empty"),
        ("activations", np.zeros((20, 0)), ValueError, "activations must not be empty"),
        ("outputs", np.zeros((20, 0)), ValueError, "outputs must not be empty"),
        ("inputs", np.where(U > 0, np.nan, U), ValueError, "inputs must be finite"),
        ("outputs", np.full((20, 2), np.inf), ValueError, "outputs must be finite"),
        ("inputs", U.astype(complex), TypeError, "inputs must be"),
        ("inputs", U.astype(str), TypeError, "inputs must be"),
        ("inputs", U.astype(object), TypeError, "inputs must be"),
        ("activation", "softplus", ValueError, "'softplus' is unknown; valid names are 'relu'"),
        ("activation", None, TypeError, "activation must be a name"),
        ("layer_sizes", (6, 4, 4), ValueError, r"layer_sizes \(6, 4, 4\) sum to 14, expected n = 13"),
        ("layer_sizes", (13, 0), ValueError, "layer_sizes must be positive whole numbers"),
        ("layer_sizes", (6.5, 6.5), ValueError, "layer_sizes must be positive whole numbers"),
        ("layer_sizes", (), ValueError, "layer_sizes must be positive whole numbers"),
        ("baseline", "a network", TypeError, "baseline must be an ImplicitModel or None, got str"),
        ("baseline", ImplicitModel([[0]], [[0]], [[0]], [[0]]), ValueError, "baseline has n, p, q = 1, 1, 1"),
        ("baseline", make("tanh").baseline, ValueError, "baseline has activation 'tanh', the states 'relu'"),
        (
            "baseline",
            make(biases=BIASES).baseline,
            ValueError,
            "does not produce these states: preactivations",
        ),
    ],
)
def test_bad_input_names_the_argument(name, value, kind, match):
    with pytest.raises(kind, match=match):
        States(**plain(make(), **{name: value}))


def test_outputs_must_be_the_baselines():
    with pytest.raises(ValueError, match="does not produce these states: outputs differ"):
        States(**plain(make(), baseline=make().baseline, outputs=make().outputs + 0.01))


def test_bad_layers():
    with pytest.raises(ValueError, match="inputs has 4 columns, the network expects 5"):
        make(inputs=U[:, :4])
    with pytest.raises(ValueError, match=r"weights\[2\] must be finite"):
        States.from_layers([*WEIGHTS[:2], WEIGHTS[2] * np.nan, WEIGHTS[3]], None, "relu", U)


# ---- subsets ---------------------------------------------------------------------------------------------


def test_subset():
    states = make()
    np.testing.assert_array_equal(states.subset([3, 1, 3]).inputs, U[[3, 1, 3]])
    np.testing.assert_array_equal(states.subset(U[:, 0] > 0).outputs, states.outputs[U[:, 0] > 0])
    np.testing.assert_array_equal(states.subset(4).activations, states.activations[:4])
    drawn, again, other = (states.subset(8, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(drawn.inputs, again.inputs)
    assert not np.array_equal(drawn.inputs, other.inputs)
    rows = [int(np.flatnonzero((row == U).all(axis=1))[0]) for row in drawn.inputs]
    assert len(set(rows)) == 8  # without replacement, all from U
    np.testing.assert_array_equal(drawn.preactivations, states.preactivations[rows])
    assert drawn.baseline is not None
    assert drawn.layer_sizes == (6, 4, 3)


@pytest.mark.parametrize(
    ("chosen", "seed", "kind", "match"),
    [
        (0, None, ValueError, "must lie in 1 … m = 20"),
        (21, 0, ValueError, "must lie in 1 … m = 20"),
        ([20], None, ValueError, "all within 0 … 19"),
        ([-1], None, ValueError, "all within 0 … 19"),
        (np.zeros(20, bool), None, ValueError, "at least one sample"),
        (np.ones(19, bool), None, ValueError, r"has shape \(19,\)"),
        ([[1]], None, ValueError, r"has shape \(1, 1\)"),
        ([1, 2], 0, ValueError, "seed draws"),
        (3.0, None, TypeError, "indices_or_count must be"),
        ("3", None, TypeError, "indices_or_count must be"),
        (True, None, TypeError, "indices_or_count must be"),
    ],
)
def test_bad_subset(chosen, seed, kind, match):
    with pytest.raises(kind, match=match):
        make().subset(chosen, seed)


# ---- rescaling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [None, BIASES])
@pytest.mark.parametrize("kappa", [0.99, 0.5])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "identity"])
def test_inner_rescaling(activation, kappa, biases):
    states = make(activation, biases)
    s = states.scaling("inner", kappa)
    norms = [np.abs(W).sum(axis=1).max() for W in WEIGHTS]
    c2, c3 = kappa / norms[1], kappa / norms[2]
    assert min(norms) > 1
    np.testing.assert_allclose(s, np.repeat([c2 * c3, c2, 1.0], [3, 4, 6]), rtol=1e-15)
    rescaled = states.rescaled(s)
    assert rescaled.baseline.well_posedness <= kappa * (1 + 1e-15)
    np.testing.assert_array_equal(rescaled.outputs, states.outputs)
    np.testing.assert_allclose(rescaled.preactivations, s * states.preactivations, rtol=1e-15)
    np.testing.assert_allclose(rescaled.activations, s * states.activations, rtol=1e-15)
    np.testing.assert_allclose(rescaled.baseline(U), states.outputs, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(rescaled.baseline.equilibrium(U), rescaled.activations, atol=1e-13)
    np.testing.assert_array_equal(states.scaling("auto", kappa), s)


def test_layers_within_the_limit_are_left_alone():
    small = [WEIGHTS[0], 0.01 * WEIGHTS[1], np.zeros((3, 4)), WEIGHTS[3]]
    states = States.from_layers(small, None, "relu", U)
    np.testing.assert_array_equal(states.scaling("inner", 0.99), np.ones(13))
    single = States.from_layers([WEIGHTS[0], np.ones((1, 6))], None, "relu", U)
    np.testing.assert_array_equal(single.scaling("inner", 0.5), np.ones(6))


def test_scaling_of_unknown_networks():
    for states in (States(**plain(make())), make("tanh"), make("sigmoid")):
        np.testing.assert_array_equal(states.scaling("auto", 0.9), np.ones(13))
    np.testing.assert_array_equal(make().scaling("none"), np.ones(13))
    np.testing.assert_array_equal(make().scaling("inner", None), np.ones(13))
    np.testing.assert_array_equal(make().scaling(), make().scaling("inner", 0.99))
    with pytest.raises(ValueError, match="'inner' is not possible: activation 'tanh' is not positively"):
        make("tanh").scaling("inner")
    with pytest.raises(ValueError, match="not possible: layer_sizes is unknown"):
        States(**plain(make())).scaling("inner")
    with pytest.raises(ValueError, match="not possible: baseline is unknown"):
        States(**plain(make(), layer_sizes=(6, 4, 3))).scaling("inner")


def test_scaling_of_a_baseline_with_other_connections():
    A = make().baseline.A.copy()
    A[0, 12] = 0.5  # from the first hidden layer past the second
    baseline = ImplicitModel(A, make().baseline.B, make().baseline.C, make().baseline.D)
    X = baseline.equilibrium(U)
    Z = X @ baseline.A.T + U @ baseline.B.T
    states = States(U, Z, X, baseline(U), layer_sizes=(6, 4, 3), baseline=baseline)
    np.testing.assert_array_equal(states.scaling("auto"), np.ones(13))
    with pytest.raises(ValueError, match="other than from one hidden layer to the next"):
        states.scaling("inner")


def test_bad_scaling():
    with pytest.raises(ValueError, match="rescale must be one of 'auto', 'inner', 'none'; got 'outer'"):
        make().scaling("outer")
    for kappa in (0, 1, 1.5, -0.5, np.nan):
        with pytest.raises(ValueError, match="kappa must be"):
            make().scaling("inner", kappa)
    with pytest.raises(ValueError, match="'sigmoid' does not satisfy"):
        make("sigmoid").rescaled(np.ones(13))
    with pytest.raises(ValueError, match="scale must be positive"):
        make().rescaled(np.zeros(13))
    with pytest.raises(ValueError, match=r"scale has shape \(4,\), expected \(13,\)"):
        make().rescaled(np.ones(4))


# ---- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["dense", "csr"])
@pytest.mark.parametrize("known", [True, False])
def test_round_trip(known, storage, tmp_path):
    states = make("leaky_relu", BIASES)
    baseline = states.baseline.to_csr() if storage == "csr" else states.baseline
    states = States(**plain(states), layer_sizes=(6, 4, 3), baseline=baseline if known else None)
    path = tmp_path / "states.npz"
    states.save(path)
    loaded = States.load(str(path))
    for name in ("inputs", "preactivations", "activations", "outputs"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(states, name))
    assert (loaded.activation, loaded.layer_sizes) == ("leaky_relu", (6, 4, 3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["states.npz"]
    if not known:
        assert loaded.baseline is None
        return
    assert loaded.baseline.storage == storage
    np.testing.assert_array_equal(loaded.baseline.to_dense().A, baseline.to_dense().A)
    np.testing.assert_array_equal(loaded.baseline(U), baseline(U))
    np.testing.assert_array_equal(loaded.scaling(), states.scaling())


def test_save_never_overwrites_unasked(tmp_path):
    path = tmp_path / "states.npz"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=r"states\.npz exists"):
        make().save(path)
    assert path.read_text() == "precious"
    make().save(path, overwrite=True)
    assert States.load(path).m == 20


def test_a_failed_save_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full_disk)
    (tmp_path / "old.npz").write_text("precious")
    with pytest.raises(OSError, match="no space left"):
        make().save(tmp_path / "old.npz", overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.npz"]
    assert (tmp_path / "old.npz").read_text() == "precious"


class Exploit:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_damaged_pickled_and_foreign_files(tmp_path):
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    make().save(good)
    content = good.read_bytes()

    def refused(match):
        with pytest.raises(ValueError, match=match) as caught:
            States.load(bad)
        assert str(bad) in str(caught.value)

    for length in (0, 10, len(content) // 2, len(content) - 1):
        bad.write_bytes(content[:length])
        refused("truncated, pickled or foreign")
    damaged = bytearray(content)
    damaged[len(content) // 3] ^= 0xFF
    bad.write_bytes(bytes(damaged))
    refused("truncated, pickled or foreign")  # the archive's own checksum notices
    bad.write_bytes(pickle.dumps({"inputs": Exploit()}))
    refused("truncated, pickled or foreign")
    np.save(buffer := io.BytesIO(), np.array([Exploit()], dtype=object), allow_pickle=True)
    bad.write_bytes(buffer.getvalue())
    refused("truncated, pickled or foreign")
    np.savez(buffer := io.BytesIO(), about=np.array([Exploit()], dtype=object))
    bad.write_bytes(buffer.getvalue())
    refused("truncated, pickled or foreign")
    np.save(buffer := io.BytesIO(), U)
    bad.write_bytes(buffer.getvalue())
    refused("single array")
    bad.write_text("inputs,outputs\n1,2\n")
    refused("truncated, pickled or foreign")

    with np.load(good) as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"]))

    def changed(drop=(), **changes):
        np.savez(buffer := io.BytesIO(), **{k: v for k, v in (arrays | changes).items() if k not in drop})
        bad.write_bytes(buffer.getvalue())

    changed(drop=["about"])
    refused("format marker is missing")
    changed(about=np.array("[1]"))
    refused("format marker is missing")
    changed(about=U)
    refused("format marker is missing")
    changed(about=np.array(json.dumps(about | {"format_version": 99})))
    refused("format version 99")
    changed(about=np.array(json.dumps(about | {"activation": "tanh"})))
    refused("activations must be φ")
    changed(about=np.array(json.dumps({k: v for k, v in about.items() if k != "layer_sizes"})))
    refused("'layer_sizes' is missing")
    changed(about=np.array(json.dumps(about | {"baseline": 3})))
    refused("usable simjax states")
    changed(drop=["outputs"])
    refused("'outputs' is missing")
    changed(inputs=U * np.nan)
    refused("inputs must be finite")
    changed(**{"baseline.A": np.zeros((13, 13))})
    refused("does not produce these states")
    with pytest.raises(FileNotFoundError, match="no such file"):
        States.load(tmp_path / "absent.npz")


# ---- collection from Flax networks -----------------------------------------------------------------------


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


NOT_UNDERSTOOD = "between linear layers 1 and 2 is not understood. Accepted are chains of Flax"


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
        (nnx.Sequential(linear(3, 4), nnx.relu, linear(4, 2)), TypeError, "could not be run on its inputs"),
        (nnx.Sequential(lambda x: x), TypeError, "ran no Flax Linear or Dense"),
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
