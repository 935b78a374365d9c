"""The CIFAR-100 experiment: its measures, its page and pictures, and the training of its network, on made-up data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from flax import nnx

from benchmarks.records import plain
from experiments import __main__ as command
from experiments import cifar, train_resnet
from experiments.cifar import PRINTED, Part, Variant, chosen_alpha, pruned_part
from experiments.experiment import Settings
from experiments.train_resnet import Recipe, augmented, held_out_part, pixels, trained, training_part
from simjax import datasets
from simjax.datasets import ImageDataset
from simjax.implicit.model import ImplicitModel
from simjax.nn import ResNet

pytestmark = pytest.mark.slow  # `make test` is for the library

TINY = Recipe(epochs=2, batch=16, learning_rate=0.05, schedule="linear", resolution=8, width=2)
VARIANT = Variant(TINY, samples=40, fewer=(20,), alphas=(1e-2, 1e-1))


@pytest.fixture(scope="module")
def data():
    """Four classes of images, each of its own colour."""
    rng = np.random.default_rng(0)
    colours = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [200, 200, 200]])

    def some(m):
        labels = rng.integers(0, 4, m)
        noise = rng.normal(0, 30, (m, 32, 32, 3))
        return np.clip(colours[labels][:, None, None] + noise, 0, 255).astype(np.uint8), labels

    return ImageDataset("tiny", *some(120), *some(40), ("red", "green", "blue", "grey"))


@pytest.fixture(scope="module")
def records(data, tmp_path_factory):
    """What a run makes with one seed, and the same with a few more nonzeros as that of another."""
    file = tmp_path_factory.mktemp("network") / "network.safetensors"
    found = list(cifar.measured(VARIANT, Settings(seeds=(0,)), data, file))
    found += [{**record, "seed": 1, "nonzeros": record["nonzeros"] + 10} for record in found[1:]]
    place = {**command.place(), "quick": True, "wall_seconds": 0.0}
    return [plain({**record, **place}) for record in found]


# ---- training --------------------------------------------------------------------------------------------


def test_training_stops_and_goes_on_where_it_stopped(data, tmp_path):
    told, recipe = [], TINY._replace(epochs=0.5)
    whole = trained(recipe, data, tmp_path / "whole.safetensors", tell=told.append)
    assert [(progress.step, progress.steps) for progress in told] == [(3, 3)]  # of 0.5 · 108 / 16 = 3.4
    assert not (tmp_path / "whole.training").exists()
    about = json.loads((tmp_path / "whole.json").read_text())
    assert about["recipe"] == recipe._asdict()
    assert (about["samples"], about["steps"]) == (108, 3)  # twelve of the 120 images are held out
    file = tmp_path / "piecewise.safetensors"
    for piece in range(2):
        assert trained(recipe, data, file, minutes=0.0) is None, piece  # one step each
    with pytest.raises(ValueError, match="remove it first"):
        trained(recipe._replace(batch=8), data, file)
    again = trained(recipe, data, file, minutes=0.0)
    images = jnp.asarray(pixels(data.test_images, 8))
    np.testing.assert_allclose(again(images), whole(images), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ResNet.load(file)(images), again(images))


def test_training_learns(data, tmp_path):
    network = trained(TINY._replace(epochs=12.0), data, tmp_path / "network.safetensors")
    found = network(jnp.asarray(pixels(data.test_images, 8))).argmax(axis=1)
    assert np.mean(np.asarray(found) == data.test_labels) > 0.9


def test_held_out_images_are_no_training_images(data):
    images, labels = training_part(data)
    held_images, held_labels = held_out_part(data)
    np.testing.assert_array_equal(np.concatenate([images, held_images]), data.train_images)
    np.testing.assert_array_equal(np.concatenate([labels, held_labels]), data.train_labels)
    assert len(held_labels) == 12


def test_pixels():
    images = np.zeros((1, 32, 32, 3), np.uint8)
    images[0, :4, 4:8, 1] = 255
    images[0, 0, 0, 0] = 16
    small = pixels(images, 8) * np.array(train_resnet.DEVIATION) + np.array(train_resnet.MEAN)
    assert pixels(images, 8).dtype == np.float32
    assert small.shape == (1, 8, 8, 3)
    assert small[0, 0, 1, 1] == pytest.approx(1.0)
    assert small[0, 0, 0, 0] == pytest.approx(1 / 255, abs=1e-6)  # the mean of 16 pixels
    np.testing.assert_allclose(small[0, 1:], 0.0, atol=1e-6)
    assert pixels(images).shape == (1, 32, 32, 3)
    with pytest.raises(ValueError, match=r"resolution must be one of \(32, 16, 8\), got 5"):
        pixels(images, 5)


def test_augmented_images_are_shifted_mirrored_and_cut():
    images = 1.0 + jnp.arange(64.0).reshape(1, 8, 8, 1) + jnp.zeros((200, 1, 1, 1))
    found = np.asarray(augmented(images, jax.random.key(0)))[..., 0]
    original = np.asarray(images[0, ..., 0])
    seen = set()
    for image in found:
        fits = []
        for mirrored in (False, True):
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    padded = np.pad(original, 1)[1 + down : 9 + down, 1 + right : 9 + right]
                    expected = padded[:, ::-1] if mirrored else padded
                    differs = image != expected
                    rows, columns = np.nonzero(differs)
                    if rows.size == 0 or (np.ptp(rows) < 2 and np.ptp(columns) < 2 and not image[differs].any()):
                        fits.append((mirrored, down, right))
        assert fits  # each is the original but for at most a square of side 2, which is 0
        seen.update(fits)
    assert len(seen) == 18


# ---- measures --------------------------------------------------------------------------------------------


def test_chosen_alpha():
    path = [{"alpha": a, "held_out_accuracy": s} for a, s in ((0.1, 0.5), (0.2, 0.499), (0.4, 0.485), (0.8, 0.1))]
    assert chosen_alpha(path, 0.5, 1.0) == 0.2
    assert chosen_alpha(path, 0.5, 2.0) == 0.4
    assert chosen_alpha(path, 0.9, 1.0) == 0.1  # none is good enough: the best one


def test_pruning_takes_the_smallest_weights_of_the_network():
    model = ImplicitModel(
        A=sp.csr_array([[0.0, 3.0], [0.0, 0.0]]),
        B=sp.csr_array([[0.5, 0.0], [0.5, -2.0]]),
        C=sp.csr_array([[0.25, 0.6]]),  # of a classifier with weights 1.0 and 2.4, over four pixels
        D=sp.csr_array((1, 2)),
        b=np.array([0.1, 0.0]),
        c=np.array([0.2]),
    )
    assert model.nonzeros == 8
    kept = pruned_part(model, 7, 4)
    assert kept.nonzeros == 6  # both copies of 0.5 go together
    np.testing.assert_array_equal(kept.B.toarray(), [[0, 0], [0, -2]])
    np.testing.assert_array_equal(kept.C.toarray(), [[0.25, 0.6]])
    kept = pruned_part(model, 4, 4)
    assert kept.A.nnz == 1
    np.testing.assert_array_equal(kept.C.toarray(), [[0.0, 0.6]])
    assert kept.B.nnz == 0
    np.testing.assert_array_equal(kept.b, model.b)
    with pytest.raises(ValueError, match="at least the 2 biases, got 1"):
        pruned_part(model, 1, 4)


def test_the_part_is_the_network(data):
    network = ResNet(width=2, classes=4, rngs=nnx.Rngs(3))
    network.eval()
    part = Part.of(network, VARIANT, data)
    found = np.asarray(network(jnp.asarray(pixels(data.test_images, 8)))).argmax(axis=1)
    assert part.test_accuracy == np.mean(found == data.test_labels)
    assert len(part.held_out[1]) == 12
    assert part.parameters == network.parameters_of(2)
    assert pruned_part(part.model, part.model.nonzeros, part.pixels).nonzeros == part.model.nonzeros


# ---- records and page ------------------------------------------------------------------------------------


def test_records(records, data):
    assert records[0]["kind"] == "baseline"
    fits = records[1:]
    assert len(fits) == 2 * 2 * (2 + 1)
    assert len({tuple(record[key] for key in cifar.KEYS) for record in records}) == len(records)
    assert all(record["rows"] == record["rows_certified"] == 32 + 32 + 4 for record in fits)
    assert all(record["well_posedness"] <= 0.99 + 1e-12 for record in fits)
    for record in fits:
        if record["pruned_nonzeros"] is not None:
            assert record["pruned_nonzeros"] <= record["nonzeros"] < records[0]["unrolled"]
    for objective in cifar.OBJECTIVES:  # a larger alpha leaves fewer weights
        dense, sparse = (
            sum(r["nonzeros"] for r in fits if (r["kind"], r["objective"], r["alpha"]) == ("path", objective, alpha))
            for alpha in VARIANT.alphas
        )
        assert sparse < dense


def test_section(records):
    base = records[0]
    text = cifar.section(records)
    for method, setting, drop, sparse in PRINTED:
        assert f"| {method} | {setting} | {drop:+.1f} | {sparse:.1f} |" in text
    assert "All 816 rows behind these numbers are certified" in text
    mine = [r for r in records if (r["kind"], r["objective"], r["alpha"]) == ("path", "l1", 0.1)]
    shares = [100 * (1 - r["nonzeros"] / base["unrolled"]) for r in mine]
    assert f"{np.mean(shares):.1f} ± {np.std(shares, ddof=1):.1f}" in text
    assert "**1 of 816 rows behind these numbers are not certified**" in cifar.section(
        [*records[:-1], {**records[-1], "rows_certified": records[-1]["rows"] - 1}]
    )


def test_pictures(records, tmp_path):
    figures = cifar.pictures("cifar", records)
    assert set(figures) == {"cifar-trade-off", "cifar-samples"}
    for figure in figures.values():
        figure.savefig(tmp_path / "picture.png")
        for axes in figure.axes:
            assert axes.get_xlabel().endswith(("(%)", ")"))
    left = figures["cifar-trade-off"].axes[0]
    drawn = {container.get_label(): container for container in left.containers}
    xs = sorted(drawn[cifar.TITLES["l1"]].lines[0].get_xdata())
    mine = [r for r in records if (r["kind"], r["objective"]) == ("path", "l1")]
    means = [
        np.mean([100 * (1 - r["nonzeros"] / records[0]["unrolled"]) for r in mine if r["alpha"] == alpha])
        for alpha in VARIANT.alphas
    ]
    np.testing.assert_allclose(xs, sorted(means))


@pytest.mark.parametrize("name", ["cifar", "cifar-full"])
def test_experiments_are_registered(name):
    assert name in command.NAMES
    found = command.find(name)
    assert found.name == name
    assert found.keys == cifar.KEYS


def test_quick_run(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "load_cifar100", lambda: data)
    quick = cifar.QUICK.recipe._replace(width=2, batch=16)
    variant = Variant(TINY, quick=Variant(quick, samples=40, fewer=(20,), alphas=(1e-2, 1e-1)))
    small = cifar.experiment("cifar", "Title", variant)
    monkeypatch.setattr(command, "find", lambda name: small)
    command.main(["cifar", "--quick", "--folder", str(tmp_path)])
    assert "Table 1" in (tmp_path / "cifar.md").read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {"paper-cifar-trade-off.png", "paper-cifar-samples.png"}
    assert len(json.loads((tmp_path / "cifar.json").read_text())["records"]) == 1 + 2 * (2 + 1)
