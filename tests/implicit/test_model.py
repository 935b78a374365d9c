"""ImplicitModel: prediction, counts, well-posedness, rescaling, storage and files."""

import json
from itertools import pairwise

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import scipy.sparse as sp

from simjax.implicit.activations import ACTIVATIONS, Activation, activation
from simjax.implicit.model import ImplicitModel
from simjax.implicit.report import EquilibriumWarning

HOMOGENEOUS = ("relu", "leaky_relu", "identity")


def layers(rng, sizes, bias=False):
    weights = [rng.standard_normal((b, a)) / np.sqrt(a) for a, b in pairwise(sizes)]
    return weights, [rng.standard_normal(b) for b in sizes[1:]] if bias else None


def forward(weights, biases, name, U):
    """Outputs and stacked states of a layered network, written out with nothing of the library but φ."""
    X, states = U, []
    for k, W in enumerate(weights):
        Z = X @ W.T + (0 if biases is None else biases[k])
        X = np.asarray(ACTIVATIONS[name].host(Z))
        states.insert(0, X)
    return Z, np.hstack(states[1:])


def contraction(rng, n=12, p=5, q=3, norm=0.9, name="relu", bias=True):
    A = rng.standard_normal((n, n))
    A *= norm / np.abs(A).sum(axis=1, keepdims=True)
    B, C, D = (rng.standard_normal(shape) for shape in ((n, p), (q, n), (q, p)))
    b, c = (rng.standard_normal(n), rng.standard_normal(q)) if bias else (None, None)
    return ImplicitModel(A, B, C, D, name, b, c)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# ---- activations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_jax_and_numpy_agree_and_homogeneity_is_as_declared(name, rng):
    phi, z = activation(name), rng.standard_normal(1000) * 3
    with jax.enable_x64(True):
        traced = np.asarray(jax.jit(phi)(z))
        slopes = np.asarray(jax.vmap(jax.grad(phi))(z))
    np.testing.assert_allclose(phi.host(z), traced, rtol=1e-15, atol=1e-15)
    assert np.all((slopes >= 0) & (slopes <= 1))
    deviation = np.abs(phi.host(0.3 * z) - 0.3 * phi.host(z)).max()
    assert (deviation < 1e-14) == phi.positively_homogeneous


def test_activation_lookup():
    assert activation(ACTIVATIONS["tanh"]) is ACTIVATIONS["tanh"]
    with pytest.raises(ValueError, match=r"'gelu' is unknown; valid names are 'relu', 'leaky_relu', 'tanh'"):
        activation("gelu")
    with pytest.raises(ValueError, match="'relu' is unknown"):
        activation(Activation("relu", np.abs, np.abs, True))
    with pytest.raises(TypeError, match="must be a name"):
        activation(np.tanh)


# ---- equilibrium and outputs -----------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["dense", "csr"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(5, 4, 3), (6, 7, 5, 4, 1), (1, 1, 1)])
def test_layered_network_is_exact(name, bias, storage, sizes, rng):
    weights, biases = layers(rng, sizes, bias)
    U = rng.standard_normal((9, sizes[0]))
    Y, X = forward(weights, biases, name, U)
    model = ImplicitModel.from_layers(weights, biases, name, storage=storage)
    states, info = model.equilibrium(U, return_info=True)
    np.testing.assert_allclose(model(U), Y, atol=1e-13)
    np.testing.assert_allclose(states, X, atol=1e-13)
    assert model.storage == storage
    assert info.converged.all()
    assert info.residual.max() == 0.0
    assert info.iterations <= len(sizes) - 1  # one pass a hidden layer, and one that confirms
    assert model.perron_eigenvalue == 0.0
    assert not np.tril(model.to_dense().A).any()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_equilibrium_satisfies_its_equation(name, rng):
    model, U = contraction(rng, name=name), rng.standard_normal((20, 5))
    X, info = model.equilibrium(U, tol=1e-12, return_info=True)
    residual = X - ACTIVATIONS[name].host(X @ model.A.T + U @ model.B.T + model.b)
    assert info.converged.all()
    assert info.converged.shape == info.residual.shape == (20,)
    assert np.all(np.abs(residual).max(axis=1) <= 1e-12 * np.maximum(1, np.abs(X).max(axis=1)))
    np.testing.assert_allclose(model(U), X @ model.C.T + U @ model.D.T + model.c, atol=1e-8)


def test_csr_equals_dense(rng):
    dense = contraction(rng)
    dense = ImplicitModel(dense.A * (rng.random((12, 12)) < 0.3), dense.B, dense.C, dense.D, b=dense.b, c=dense.c)
    csr, U = dense.to_csr(), rng.standard_normal((20, 5))
    assert (csr.storage, dense.storage, csr.to_dense().storage) == ("csr", "dense", "dense")
    assert isinstance(csr.A, sp.csr_array)
    np.testing.assert_allclose(csr(U), dense(U), atol=1e-13)
    np.testing.assert_allclose(csr.equilibrium(U), dense.equilibrium(U), atol=1e-13)
    np.testing.assert_array_equal(csr.to_dense().A, dense.A)
    assert csr.nonzeros == dense.nonzeros
    assert csr.well_posedness == pytest.approx(dense.well_posedness, abs=1e-15)
    assert csr.perron_eigenvalue == pytest.approx(dense.perron_eigenvalue, abs=1e-12)
    np.testing.assert_allclose(csr.rescaled().to_dense().A, dense.rescaled().A, atol=1e-13)


def test_sparse_arguments_are_copied_and_cleaned(rng):
    A = sp.coo_matrix(([1.0, 2.0, 0.0], ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    model = ImplicitModel(A, np.ones((2, 1)), np.ones((1, 2)), np.zeros((1, 1)))
    assert model.storage == "csr"
    assert model.A.nnz == 1
    assert model.A[0, 1] == 3.0
    assert A.nnz == 3
    assert model.nonzeros == 5


@pytest.mark.parametrize("storage", ["dense", "csr"])
def test_unconverged_samples_are_reported(storage):
    # x₁ = relu(u₁ − 3 x₂), x₂ = relu(u₂ − 3 x₁): the iteration cycles unless u ≤ 0, where x = 0 at once.
    model = ImplicitModel([[0, -3], [-3, 0]], np.eye(2), np.eye(2), np.zeros((2, 2)))
    model = model.to_csr() if storage == "csr" else model
    U = np.array([[1.0, 2.0], [-1.0, -1.0], [2.0, 1.0]])
    with pytest.warns(EquilibriumWarning, match=r"2 of 3 samples .* 50 passes \(worst last step .*max_iters"):
        model.equilibrium(U, max_iters=50)
    with pytest.warns(EquilibriumWarning, match="2 of 3 samples"):
        model(U)
    X, info = model.equilibrium(U, max_iters=50, return_info=True)  # the report replaces the warning
    assert info.converged.tolist() == [False, True, False]
    assert info.iterations == 50
    assert info.residual[1] == 0.0
    assert info.residual[0] > 0.1
    assert X.shape == (3, 2)


@pytest.mark.parametrize("storage", ["dense", "csr"])
def test_a_negative_diagonal_is_averaged(storage):
    # μ∞(A) = −2.5: plain iteration has period two, the averaged one finds (20, 34)/63.
    model = ImplicitModel([[-3, 0.5], [0.5, -3]], np.eye(2), np.eye(2), np.zeros((2, 2)))
    model = model.to_csr() if storage == "csr" else model
    X, info = model.equilibrium([[1.0, 2.0]], tol=1e-14, return_info=True)
    assert info.converged.all()
    np.testing.assert_allclose(X, [[20 / 63, 34 / 63]], atol=1e-13)


@pytest.mark.parametrize("storage", ["dense", "csr"])
def test_divergence_stops_early_and_is_reported(storage):
    model = ImplicitModel([[1e200]], [[1.0]], [[1.0]], [[0.0]])
    model = model.to_csr() if storage == "csr" else model
    _, info = model.equilibrium([[1.0]], return_info=True)
    assert not info.converged.any()
    assert info.iterations < 10
    with pytest.warns(EquilibriumWarning, match="1 of 1 samples .*diverged"):
        model([[1.0]])


def test_loose_tolerance_takes_fewer_passes(rng):
    model, U = contraction(rng, norm=0.99, name="identity"), rng.standard_normal((4, 5))
    _, tight = model.equilibrium(U, return_info=True)
    _, loose = model.equilibrium(U, tol=1e-3, return_info=True)
    assert loose.iterations < tight.iterations
    assert tight.residual.max() <= 1e-10 < loose.residual.max() <= 1e-3


def test_accuracy(rng):
    model, U = contraction(rng), rng.standard_normal((8, 5))
    labels = model(U).argmax(axis=1)
    assert model.accuracy(U, labels) == 1.0
    labels[:2] = (labels[:2] + 1) % 3
    assert model.accuracy(U, labels) == 0.75


# ---- counts and well-posedness ---------------------------------------------------------------------------


def test_nonzeros_sparsity_and_repr():
    model = ImplicitModel([[0.0, -0.0], [1, 0]], [[1.0], [0]], [[0, 3]], [[0]], b=[0, 1], c=[2])
    assert model.nonzeros == 5
    assert model.sparsity(20) == 0.75
    assert model.sparsity(4) == -0.25
    assert (model.n, model.p, model.q) == (2, 1, 1)
    assert repr(model) == ("ImplicitModel(n=2, p=1, q=1, activation='relu', nonzeros=5, storage='dense', biased)")
    for bad, kind in ((0, ValueError), (-3, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(kind, match="baseline_nonzeros"):
            model.sparsity(bad)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_perron_eigenvalue_of_known_matrices(n, rng):
    # |A| = S (ρ/n · 11ᵀ) S⁻¹ has the single nonzero eigenvalue ρ, whatever the signs of A.
    s = rng.uniform(0.1, 10, n)
    signs = rng.choice([-1.0, 1.0], (n, n))
    A = signs * (0.7 / n) * s[:, None] / s[None, :]
    model = ImplicitModel(A, np.ones((n, 1)), np.ones((1, n)), np.zeros((1, 1)))
    assert model.perron_eigenvalue == pytest.approx(0.7, rel=1e-12)
    assert model.well_posedness == pytest.approx(np.abs(A).sum(axis=1).max(), rel=1e-14)


def test_perron_eigenvalue_of_large_and_reducible_matrices(rng):
    n = 1200  # beyond the size up to which all eigenvalues are computed
    block = rng.random((n, n)) * (rng.random((n, n)) < 0.02)
    block[np.arange(n), np.arange(-1, n - 1)] = 0.1  # a cycle through all states
    A = sp.block_diag([sp.csr_array(block), np.triu(np.ones((5, 5)), 1), [[0.25]]], format="csr")
    size = A.shape[0]
    model = ImplicitModel(A, np.ones((size, 1)), np.ones((1, size)), np.zeros((1, 1)))
    x = np.ones(n)
    for _ in range(200):
        x = block @ x
        x /= np.abs(x).max()
    ratios = (block @ x) / x  # Collatz–Wielandt: min and max enclose the eigenvalue
    assert ratios.max() - ratios.min() < 1e-9
    assert model.perron_eigenvalue == pytest.approx(ratios.max(), rel=1e-9)


# ---- rescaling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["dense", "csr"])
@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_rescaled_keeps_outputs_and_has_the_promised_norm(name, storage, rng):
    n = 20
    A = np.abs(rng.standard_normal((n, n)))
    s = rng.uniform(0.1, 10, n)
    A = 0.8 * A / np.max(np.linalg.eigvals(A).real) * s[:, None] / s * rng.choice([-1.0, 1.0], (n, n))
    model = ImplicitModel(
        A, rng.standard_normal((n, 4)), rng.standard_normal((3, n)), rng.standard_normal((3, 4)), name,
        rng.standard_normal(n), rng.standard_normal(3),
    )  # fmt: skip
    assert model.perron_eigenvalue == pytest.approx(0.8, rel=1e-9)
    assert model.well_posedness > 1  # so there is something to rescale
    U = rng.standard_normal((15, 4))
    rescaled = (model.to_csr() if storage == "csr" else model).rescaled()
    scale = np.linalg.solve(np.eye(n) - np.abs(A), np.ones(n))
    assert rescaled.well_posedness == pytest.approx(1 - 1 / scale.max(), abs=1e-12)
    assert rescaled.well_posedness < 1
    assert rescaled.nonzeros == model.nonzeros
    reference = model.equilibrium(U, tol=1e-14, max_iters=10_000)
    np.testing.assert_allclose(rescaled.equilibrium(U, tol=1e-14) * scale, reference, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(rescaled(U), model(U), atol=1e-10 * np.abs(model(U)).max())


def test_the_printed_rescaling_has_no_bound(rng):
    # The paper prints S A S⁻¹ for s = (I − |A|)⁻¹ 1: well-posed A exist for which that norm is above 1.
    A = np.array([[0.0, 5.0], [0.1, 0.0]])
    model = ImplicitModel(A, np.eye(2), np.eye(2), np.zeros((2, 2)))
    s = np.linalg.solve(np.eye(2) - A, np.ones(2))
    assert model.perron_eigenvalue < 1
    assert model.scaled(s).well_posedness > 1
    assert model.rescaled().well_posedness < 1


def test_rescaled_layered_network_and_biases(rng):
    weights, biases = layers(rng, (30, 20, 15, 10, 5), bias=True)
    model = ImplicitModel.from_layers([4 * W for W in weights], biases)
    U = rng.standard_normal((10, 30))
    assert model.well_posedness > 1
    assert model.rescaled().well_posedness < 1
    np.testing.assert_allclose(model.rescaled()(U), model(U), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("storage", ["dense", "csr"])
@pytest.mark.parametrize(
    ("A", "eigenvalue"),
    [([[0.0, 2.0], [2.0, 0.0]], "2"), ([[1.0, 0.0], [0.0, 0.0]], "1"), ([[0.0, 1.0], [-1.0, 0.0]], "1")],
)
def test_rescaled_needs_a_perron_eigenvalue_below_one(A, eigenvalue, storage):
    model = ImplicitModel(A, np.eye(2), np.eye(2), np.zeros((2, 2)))
    model = model.to_csr() if storage == "csr" else model
    with pytest.raises(ValueError, match=rf"λ_pf\(\|A\|\) < 1, but it is {eigenvalue}:"):
        model.rescaled()


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_rescaling_needs_positive_homogeneity(name, rng):
    model = contraction(rng, name=name)
    with pytest.raises(ValueError, match=f"'{name}' does not satisfy"):
        model.rescaled()
    with pytest.raises(ValueError, match=f"'{name}' does not satisfy"):
        model.scaled(np.ones(model.n))


@pytest.mark.parametrize("storage", ["dense", "csr"])
def test_scaled(storage, rng):
    model, U, s = contraction(rng), rng.standard_normal((6, 5)), rng.uniform(0.5, 2, 12)
    scaled = (model.to_csr() if storage == "csr" else model).scaled(s)
    assert scaled.storage == storage
    np.testing.assert_allclose(scaled.equilibrium(U), s * model.equilibrium(U), atol=1e-8)
    np.testing.assert_allclose(scaled(U), model(U), atol=1e-8)
    for bad, message in (
        (np.ones(3), r"shape \(3,\), expected \(12,\)"),
        (np.zeros(12), "positive"),
        (-s, "positive"),
    ):
        with pytest.raises(ValueError, match=message):
            model.scaled(bad)


# ---- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("storage", ["dense", "csr"])
def test_round_trip(storage, bias, rng, tmp_path):
    model = contraction(rng, bias=bias, name="leaky_relu")
    settings = {"objective": "l1", "alpha": [1e-3, 0.5], "support": None}
    model = ImplicitModel(model.A, model.B, model.C, model.D, model.activation, model.b, model.c, settings)
    model = model.to_csr() if storage == "csr" else model
    path = tmp_path / "m.safetensors"
    model.save(path)
    loaded = ImplicitModel.load(str(path))
    assert (loaded.storage, loaded.activation, loaded.metadata) == (storage, "leaky_relu", settings)
    for name in "ABCD":
        np.testing.assert_array_equal(getattr(loaded.to_dense(), name), getattr(model.to_dense(), name))
    for name in "bc":
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))
    with safetensors.safe_open(path, "numpy") as file:
        header = file.metadata()
    assert header["format"] == "simjax-implicit-model"
    assert header["format_version"] == "1"
    assert header["simjax_version"]
    assert json.loads(header["shapes"]) == {"A": [12, 12], "B": [12, 5], "C": [3, 12], "D": [3, 5]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]  # no temporary file is left


def test_save_never_overwrites_unasked(rng, tmp_path):
    path, model = tmp_path / "m.safetensors", contraction(rng)
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=r"m\.safetensors exists"):
        model.save(path)
    assert path.read_text() == "precious"
    model.save(path, overwrite=True)
    assert ImplicitModel.load(path).n == model.n
    with pytest.raises(FileNotFoundError, match="folder"):
        model.save(tmp_path / "nowhere" / "m.safetensors")
    with pytest.raises(IsADirectoryError):
        model.save(tmp_path, overwrite=True)


def test_damaged_and_foreign_files(rng, tmp_path):
    model = contraction(rng).to_csr()
    good, bad = tmp_path / "good", tmp_path / "bad"
    model.save(good)
    content = good.read_bytes()

    def refused(match):
        with pytest.raises(ValueError, match=match) as caught:
            ImplicitModel.load(bad)
        assert str(bad) in str(caught.value)

    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        bad.write_bytes(content[:length])
        refused("truncated or foreign")
    bad.write_bytes(b"PK\x03\x04 something else entirely" * 20)
    refused("truncated or foreign")
    safetensors.numpy.save_file({"A": np.eye(2)}, bad)
    refused("not a simjax-implicit-model")

    with safetensors.safe_open(good, "numpy") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    changes = [
        (tensors, header | {"format_version": "2"}, "format version '2'"),
        (tensors, header | {"activation": "gelu"}, "'gelu' is unknown"),
        (tensors, header | {"shapes": "[]"}, "not a usable simjax model"),
        (tensors, header | {"storage": "coo"}, "its storage is 'coo', expected 'dense' or 'csr'"),
        (tensors, header | {"metadata": "{"}, "not a usable simjax model"),
        (tensors | {"A.indices": tensors["A.indices"] + 1000}, header, "not a usable simjax model"),
        (tensors | {"B.data": np.full_like(tensors["B.data"], np.nan)}, header, "B must be finite"),
        (tensors | {"c": np.ones(7)}, header, r"c has shape \(7,\)"),
        ({name: t for name, t in tensors.items() if name != "C.data"}, header, "'C.data' is missing"),
        (tensors, {key: value for key, value in header.items() if key != "storage"}, "'storage' is missing"),
    ]
    for changed_tensors, changed_header, match in changes:
        safetensors.numpy.save_file(changed_tensors, bad, metadata=changed_header)
        refused(match)
    with pytest.raises(FileNotFoundError, match="no such file"):
        ImplicitModel.load(tmp_path / "absent")


# ---- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"A": np.ones((2, 3))}, ValueError, r"A has shape \(2, 3\), expected \(2, 2\)"),
        ({"B": np.ones((3, 1))}, ValueError, r"B has shape \(3, 1\), expected \(2, 1\)"),
        ({"C": np.ones((1, 3))}, ValueError, r"C has shape \(1, 3\), expected \(1, 2\)"),
        ({"D": np.ones((1, 2))}, ValueError, r"D has shape \(1, 2\), expected \(1, 1\)"),
        ({"A": np.ones(4)}, ValueError, "A must be"),
        ({"A": np.zeros((0, 0))}, ValueError, "A must not be empty"),
        ({"D": [[np.nan]]}, ValueError, "D must be finite"),
        ({"B": sp.csr_array([[np.inf], [1.0]])}, ValueError, "B must be finite"),
        ({"B": sp.csr_array([[1j], [1.0]])}, TypeError, "B must be"),
        ({"C": np.array([["a", "b"]])}, TypeError, "C must be"),
        ({"A": np.array([[None, 1], [1, 1]])}, TypeError, "A must be"),
        ({"b": np.ones(3)}, ValueError, r"b has shape \(3,\), expected \(2,\)"),
        ({"c": [np.inf]}, ValueError, "c must be finite"),
        ({"activation": "swish"}, ValueError, "'swish' is unknown"),
        ({"metadata": [1]}, TypeError, "metadata must be a mapping"),
        ({"metadata": {"x": object()}}, TypeError, "metadata must hold only what JSON can"),
        ({"metadata": {"x": float("nan")}}, TypeError, "metadata must hold only what JSON can"),
    ],
)
def test_bad_construction(change, kind, match):
    good = {"A": np.zeros((2, 2)), "B": np.ones((2, 1)), "C": np.ones((1, 2)), "D": np.ones((1, 1))}
    with pytest.raises(kind, match=match):
        ImplicitModel(**(good | change))


def test_bad_layers():
    ones = np.ones
    with pytest.raises(ValueError, match="at least one hidden"):
        ImplicitModel.from_layers([ones((2, 2))])
    with pytest.raises(ValueError, match=r"weights\[1\] takes 3 inputs, but weights\[0\] gives 2"):
        ImplicitModel.from_layers([ones((2, 4)), ones((1, 3))])
    with pytest.raises(ValueError, match=r"biases must hold .* got 1 for 2"):
        ImplicitModel.from_layers([ones((2, 4)), ones((1, 2))], [ones(2)])
    with pytest.raises(ValueError, match=r"biases\[1\] has shape \(2,\)"):
        ImplicitModel.from_layers([ones((2, 4)), ones((1, 2))], [None, ones(2)])
    with pytest.raises(ValueError, match="storage must be"):
        ImplicitModel.from_layers([ones((2, 4)), ones((1, 2))], storage="coo")


def test_one_bias_may_be_missing(rng):
    weights, biases = layers(rng, (4, 3, 2), bias=True)
    U = rng.standard_normal((5, 4))
    expected, _ = forward(weights, [biases[0], np.zeros(2)], "relu", U)
    np.testing.assert_allclose(ImplicitModel.from_layers(weights, [biases[0], None])(U), expected, atol=1e-14)


def test_bad_inputs_and_settings(rng):
    model, U = contraction(rng), rng.standard_normal((4, 5))
    cases = [
        (lambda: model(U[:, :4]), ValueError, "inputs has 4 columns, the model expects p = 5"),
        (lambda: model(U[0]), ValueError, "inputs must be"),
        (lambda: model(U[:0]), ValueError, "inputs must not be empty"),
        (lambda: model(np.where(U > 0, np.nan, U)), ValueError, "inputs must be finite"),
        (lambda: model(U.astype(str)), TypeError, "inputs must be"),
        (lambda: model.equilibrium(U, tol=0), ValueError, "tol must be"),
        (lambda: model.equilibrium(U, tol=np.nan), ValueError, "tol must be"),
        (lambda: model.equilibrium(U, max_iters=0), ValueError, "max_iters must be"),
        (lambda: model.equilibrium(U, max_iters=1.5), TypeError, "max_iters must be"),
        (lambda: model.accuracy(U, [0, 1, 2]), ValueError, r"labels has shape \(3,\), expected \(4,\)"),
        (lambda: model.accuracy(U, [0, 1, 2, 3]), ValueError, r"labels must lie in 0 … 2"),
        (lambda: model.accuracy(U, [0.0, 1, 2, 1]), TypeError, "labels must be whole numbers"),
    ]
    for call, kind, match in cases:
        with pytest.raises(kind, match=match):
            call()


def test_models_share_no_memory_and_cannot_be_changed(rng):
    A = np.zeros((1, 1))
    settings = {"alpha": [1]}
    model = ImplicitModel(A, A, A, A, metadata=settings)
    A[0, 0] = 5
    settings["alpha"].append(2)
    assert model.A[0, 0] == 0
    assert model.metadata == {"alpha": [1]}
    with pytest.raises(ValueError, match="read-only"):
        model.A[0, 0] = 1
    with pytest.raises(AttributeError):
        model.A = A


def test_no_global_state(rng):
    model = contraction(rng)
    before = jax.config.jax_enable_x64, np.geterr()
    model.rescaled()(np.float32(rng.standard_normal((3, 5))))
    model.to_csr()(rng.standard_normal((3, 5)))
    assert (jax.config.jax_enable_x64, np.geterr()) == before
    assert not jax.config.jax_enable_x64
    assert model(rng.standard_normal((3, 5))).dtype == np.float64
