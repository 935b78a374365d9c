"""`prune` on all convolutions of a ResNet: its peers, its measures, and what the page says of its records."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.records import read
from experiments import __main__ as command
from experiments import prune_resnet
from experiments.cifar import PRINTED
from experiments.experiment import Settings
from experiments.prune_resnet import DENSE, EVALUATE, GLOBAL, LARGEST, LAYER, TITLES, Source, Work
from simjax.nn import ResNet


@pytest.fixture(scope="module")
def network():
    made = ResNet(blocks=1, width=2, classes=4, rngs=nnx.Rngs(3))
    made.eval()
    return made


@pytest.fixture(scope="module")
def source(network):
    """Random images, a third of which are for calibration."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 32, 32, 3)).astype(np.uint8)
    small, labels = rng.normal(size=(20, 8, 8, 3)).astype(np.float32), rng.integers(0, 4, 20)
    recipe = {"resolution": 8, "width": 2, "epochs": 0.0}
    return Source(network, recipe, images, 20, (small[:10], labels[:10]), (small[10:], labels[10:]))


@pytest.fixture
def given(source, monkeypatch):
    """These images in the place of CIFAR-100."""
    monkeypatch.setattr(prune_resnet.datasets, "load_cifar100", lambda: None)
    monkeypatch.setattr(prune_resnet, "trained_source", lambda data, *, quick: source)


def kernels(network):
    return [np.asarray(layer.kernel[...]) for layer in (*network.convolutions, network.classifier)]


def made_up(method, target, seed=0, lost=0.0):
    """A record whose accuracies are 0.5 less `lost`."""
    found = {
        "method": method,
        "target": target,
        "seed": seed,
        "samples": 1000,
        "test_images": 100,
        "held_out_images": 50,
        "recipe": {"resolution": 8, "width": 16, "epochs": 4.0},
        "parameters": 2000,
        "convolution_zeros": target,
        "classifier_zeros": target / 2,
        "zeros": 0.9 * target,
        "test_accuracy": 0.5 - lost,
        "held_out_accuracy": 0.5 - lost,
        "test_accuracy_renormalised": 0.5 - lost / 2,
        "cpu_seconds": 2.0,
        "rows": 8 if method in prune_resnet.PRUNED else 0,
        "rows_certified": 8 if method in prune_resnet.PRUNED else 0,
        "worst_relative_gap": 0.0,
        "errors": {},
        "ways": {},
    }
    if method == EVALUATE:
        found |= {"ways": {"error curves": 0.48, "even": 0.45}, "chosen": "error curves"}
    return found


@pytest.fixture
def records(monkeypatch):
    monkeypatch.setattr(prune_resnet, "places", lambda records: ["here"])
    return [
        made_up(DENSE, 0.0),
        made_up(GLOBAL, 0.5, lost=0.001),
        made_up(GLOBAL, 0.7, lost=0.004),
        made_up(GLOBAL, 0.7, seed=1, lost=0.008),
        made_up(GLOBAL, 0.9, lost=0.1),
        made_up("ALPS", 0.5, lost=0.2),
        made_up(EVALUATE, 0.7, lost=0.02),
    ]


# ---- methods and measures --------------------------------------------------------------------------------


def test_zeros_are_counted_among_parameters(network):
    assert prune_resnet.zeros(network)["zeros"] == 0.0
    sparse = nnx.clone(network)
    sparse.convolutions[0].kernel[...] = jnp.zeros_like(sparse.convolutions[0].kernel[...])
    sparse.classifier.kernel[...] = sparse.classifier.kernel[...].at[0].set(0.0)
    found = prune_resnet.zeros(sparse)
    stem, rest = 3 * 3 * 3 * 2, 3 * 3 * (2 * 2 * 2 + 2 * 4 + 4 * 4 + 4 * 8 + 8 * 8)
    biases = 2 * 3 + 4 * 2 + 8 * 2 + 4
    assert found["convolution_zeros"] == pytest.approx(stem / (stem + rest))
    assert found["classifier_zeros"] == pytest.approx(1 / 8)
    assert found["zeros"] == pytest.approx((stem + 4) / (stem + rest + 8 * 4 + biases))
    assert found["layer_zeros"]["convolutions.0"] == 1.0
    assert found["layer_zeros"]["convolutions.1"] == 0.0


def test_accuracy(source):
    images, labels = source.test
    found = np.asarray(source.network(jnp.asarray(images))).argmax(axis=1)
    assert prune_resnet.accuracy(source.network, images, labels) == np.mean(found == labels)
    assert prune_resnet.accuracy(source.network, images, found) == 1.0


def test_renormalised_takes_the_statistics_of_the_images(source):
    images, network = source.calibration(0), source.network
    before = np.asarray(network.norms[0].mean[...])
    found = prune_resnet.renormalised(network, images)
    entered = np.asarray(network.convolutions[0](jnp.asarray(images)))
    np.testing.assert_allclose(found.norms[0].mean[...], entered.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.norms[0].var[...], entered.var(axis=(0, 1, 2)), rtol=1e-4)
    np.testing.assert_array_equal(network.norms[0].mean[...], before)
    assert not np.allclose(found.norms[0].mean[...], before)
    for mine, own in zip(kernels(found), kernels(network), strict=True):
        np.testing.assert_array_equal(mine, own)
    twice = found(jnp.asarray(images))  # in evaluation mode, a second call changes nothing
    np.testing.assert_array_equal(found(jnp.asarray(images)), twice)


def test_the_largest_weights_of_all_layers_stay(source):
    sparse = prune_resnet.largest(source.network, source.calibration(0), 0.7)
    own, kept = (np.concatenate([kernel.ravel() for kernel in kernels(n)]) for n in (source.network, sparse))
    assert np.count_nonzero(kept) == int(0.3 * own.size + 1e-6)
    np.testing.assert_array_equal(kept[kept != 0.0], own[kept != 0.0])
    assert np.abs(own[kept == 0.0]).max() <= np.abs(own[kept != 0.0]).min()


@pytest.mark.slow
def test_peers_prune_every_layer_by_what_it_sees(source, given):
    maps, statistics, seconds = Work(quick=True).seen(0)
    assert seconds > 0.0
    images = jnp.asarray(source.calibration(0))
    entered = []
    classifier = source.network.classifier
    spy = nnx.clone(source.network)
    spy.classifier = lambda x: entered.append(x) or classifier(x)
    spy(images)
    design, _ = statistics["classifier"].compressed()
    expected = np.asarray(entered[0], np.float64)
    np.testing.assert_allclose(design.T @ design, expected.T @ expected, rtol=1e-4, atol=1e-4)
    sparse = prune_resnet.by_peer(maps, statistics, "ALPS", 0.8)
    less = prune_resnet.by_peer(maps, statistics, "magnitude", 0.5)  # from the trained weights, not from those before
    for mine, other, own in zip(kernels(sparse), kernels(less), kernels(source.network), strict=True):
        assert np.count_nonzero(mine) <= int(0.2 * own.size + 1e-6)
        assert np.count_nonzero(other) == int(0.5 * own.size + 1e-6)
        np.testing.assert_array_equal(other[other != 0.0], own[other != 0.0])
    np.testing.assert_array_equal(sparse.classifier.bias[...], source.network.classifier.bias[...])


# ---- what is run -----------------------------------------------------------------------------------------


def test_jobs_differ_and_begin_with_the_network_itself():
    found = prune_resnet.order(Settings(seeds=(0, 1, 2)))
    assert len(set(found)) == len(found)
    assert found[0] == (DENSE, 0.0, 0)
    assert {(GLOBAL, target, 0) for target in prune_resnet.TARGETS} <= set(found)
    assert {seed for method, _, seed in found if method == LAYER} == {0, 1, 2}
    assert {method for method, _, _ in found} == set(TITLES)
    assert {method for method, _, _ in prune_resnet.order(Settings(seeds=(0,), quick=True))} == set(TITLES)


@pytest.mark.slow
def test_quick_run(source, given, tmp_path):
    arguments = ["prune-resnet", "--quick", "--folder", str(tmp_path)]
    command.main(arguments)
    records = {record["method"]: record for record in read(tmp_path / "prune-resnet.json")}
    assert set(records) == set(TITLES)
    for method, record in records.items():
        assert record["rows_certified"] == record["rows"]
        assert (record["rows"] > 0) == (method in prune_resnet.PRUNED)
    weights = sum(kernel.size for kernel in kernels(source.network))
    for method in (GLOBAL, LARGEST):
        assert records[method]["zeros"] >= np.floor(0.5 * weights) / source.network.parameters_of() - 0.01
    assert len(set(records[GLOBAL]["layer_zeros"].values())) > 1
    assert records[EVALUATE]["held_out_accuracy"] == max(records[EVALUATE]["ways"].values())
    assert records[DENSE]["test_accuracy"] == prune_resnet.accuracy(source.network, *source.test)
    before = (tmp_path / "prune-resnet.json").read_text()
    command.main([*arguments, "--missing"])
    assert (tmp_path / "prune-resnet.json").read_text() == before
    assert json.loads(before)["records"][0]["quick"]
    assert (tmp_path / "paper-prune-resnet.png").is_file()


# ---- the page --------------------------------------------------------------------------------------------


def test_the_sparsest_within_what_may_be_lost(records):
    mine = records[1:5]
    assert prune_resnet.sparsest(records[0], mine, 0.2)["target"] == 0.5
    assert prune_resnet.sparsest(records[0], mine, 1.0)["target"] == 0.7
    assert prune_resnet.sparsest(records[0], mine, 0.05) is None


def test_section(records):
    text = prune_resnet.section(records)
    for method, setting, drop, sparse in PRINTED:
        assert f"| {method} | {setting} | {drop:+.1f} | {sparse:.1f} |" in text
    assert f"| **here**, {TITLES[GLOBAL]} | at most 0.2 points on held-out images | -0.10 |  | 45.0 |" in text
    assert f"| **here**, {TITLES[GLOBAL]} | at most 1 points on held-out images | -0.40 |  | 63.0 |" in text
    assert "| **here**, ALPS, each layer | at most 1 points on held-out images | – |  | none |" in text
    both = "-0.60 ± 0.28 | -0.60 ± 0.28 | -0.30 ± 0.14 | 16 of 16 | 2.0 |"
    assert f"| 70 % | {TITLES[GLOBAL]} | 2 | 70.0 ± 0.0 | 35.0 ± 0.0 | 63.0 ± 0.0 | {both}" in text
    assert "| 70 % | error curves | -2.00 | kept |" in text
    assert "| 70 % | even | -5.00 |  |" in text
    assert "All 40 rows behind these numbers are certified" in text
    assert "was not run" in prune_resnet.section(records[:-1])


def test_pictures(records, tmp_path):
    figure = prune_resnet.pictures(records)[prune_resnet.NAME]
    figure.savefig(tmp_path / "picture.png")
    left, right = figure.axes
    for axes, factor in ((left, 1.0), (right, 0.5)):
        drawn = {line.get_label(): line for line in axes.lines}
        line = drawn[TITLES[GLOBAL].replace("`", "")]
        np.testing.assert_allclose(line.get_xdata(), [45.0, 63.0, 81.0])
        np.testing.assert_allclose(line.get_ydata(), [-0.1 * factor, -0.6 * factor, -10.0 * factor])
        printed = {c.get_label(): c.get_offsets() for c in axes.collections if "Table 1" in c.get_label()}
        points = np.array([(sparse, drop) for name, _, drop, sparse in PRINTED if name == "SIM"])
        np.testing.assert_allclose(printed["SIM, printed in Table 1"], points)
        assert len(printed) == 4


def test_the_experiment_is_registered():
    assert command.find("prune-resnet") is prune_resnet.EXPERIMENT
    assert "prune-resnet" in command.NAMES
