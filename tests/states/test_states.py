"""States: validation, subsets, rescaling and files."""

import io
import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from simjax.implicit.activations import ACTIVATIONS
from simjax.implicit.model import ImplicitModel
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
    with pytest.warns(UserWarning, match="activations is of dtype bfloat16"):
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
        ("inputs", U.astype(str).astype(object), TypeError, "inputs must be"),
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
