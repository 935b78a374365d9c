"""Tables 2 and 3 and Figure 4 of the paper, and the baselines they share: what is measured and what is written."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from flax import nnx
from matplotlib import image

import simjax
from experiments import __main__ as command
from experiments import baselines, robustness
from experiments.baselines import measures
from experiments.experiment import Settings, at_sparsity
from simjax.datasets import Dataset
from simjax.implicit.model import ImplicitModel
from simjax.nn import MLP

pytestmark = pytest.mark.slow  # `make test` is for the library

P, Q = 784, 10  # the sizes of the network are the paper's


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Ten noisy clusters in place of Fashion-MNIST, and a cache of their own."""
    rng = np.random.default_rng(0)
    centres = rng.random((Q, P))
    labels = rng.integers(0, Q, 700)
    inputs = np.clip(0.5 * centres[labels] + 0.5 * rng.random((700, P)), 0, 1)
    data = Dataset("fashion-mnist", inputs[:640], labels[:640], inputs[640:], labels[640:], tuple("abcdefghij"))
    baselines._data.cache_clear()
    monkeypatch.setattr(baselines, "_data", lambda: data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        baselines,
        "RECIPES",
        {
            "well-trained": {"epochs": 3, "batch_size": 64, "learning_rate": 2e-3},
            "weak": {"epochs": 1, "batch_size": 64, "learning_rate": 1e-2},
        },
    )
    robustness._baseline.cache_clear()
    yield data
    robustness._baseline.cache_clear()


# --- Baselines ---------------------------------------------------------------------------------------------------


def test_a_seed_changes_weights_and_samples_and_is_repeated_exactly(tiny, tmp_path):
    network, split = baselines.baseline("weak", 0, held_out=40, cache=tmp_path)
    again, same = baselines.baseline("weak", 0, held_out=40, cache=tmp_path)
    other, shuffled = baselines.baseline("weak", 1, held_out=40, cache=tmp_path)
    first, second, third = (np.asarray(net.layers[0].kernel[...]) for net in (network, again, other))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - third).max() > 0.1
    np.testing.assert_array_equal(split.train_inputs, same.train_inputs)
    assert not np.array_equal(split.train_labels, shuffled.train_labels)
    assert (len(split.train_labels), len(split.validation_labels), len(split.test_labels)) == (600, 40, 60)
    everything = np.concatenate([split.train_inputs, split.validation_inputs])
    np.testing.assert_array_equal(np.sort(everything[:, 0]), np.sort(tiny.train_inputs[:, 0]))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert network.export().nonzeros == 52_896


def test_standardised_inputs_and_their_unit(tiny, tmp_path):
    _, pixels = baselines.baseline("weak", 0, cache=tmp_path)
    _, split = baselines.baseline("weak", 0, standardised=True, cache=tmp_path)
    np.testing.assert_allclose(split.test_inputs / split.unit + baselines.MEAN, pixels.test_inputs, atol=1e-12)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("arguments", [{"kind": "strong"}, {"kind": "weak", "held_out": 600}])
def test_impossible_baselines_are_refused(tiny, tmp_path, arguments):
    with pytest.raises(ValueError, match=r"kind|held_out"):
        baselines.baseline(**{"seed": 0, "cache": tmp_path, **arguments})


def test_gradient_descent_is_what_it_says(tiny):
    network, reference = (MLP((P, 4, Q), rngs=nnx.Rngs(0)) for _ in range(2))
    inputs, labels = tiny.train_inputs[:64], tiny.train_labels[:64]  # one batch: the order does not matter
    baselines.descend(network, inputs, labels, epochs=2, batch_size=64, learning_rate=0.1, seed=0)
    W1, W2 = (np.asarray(layer.kernel[...], np.float64) for layer in reference.layers)
    for _ in range(2):
        X = np.maximum(inputs @ W1, 0)
        Y = X @ W2
        share = np.exp(Y - Y.max(axis=1, keepdims=True))
        error = (share / share.sum(axis=1, keepdims=True) - np.eye(Q)[labels]) / 64
        W1, W2 = W1 - 0.1 * inputs.T @ ((error @ W2.T) * (X > 0)), W2 - 0.1 * X.T @ error
    np.testing.assert_allclose(network.layers[0].kernel[...], W1, atol=1e-5)
    np.testing.assert_allclose(network.layers[1].kernel[...], W2, atol=1e-5)


# --- Measures ----------------------------------------------------------------------------------------------------


def difference_model(p=100):
    """Outputs (0, Σ_j u_j) where the sum is positive: the gradient of the loss has one sign on every pixel."""
    return ImplicitModel(A=np.zeros((1, 1)), B=np.ones((1, p)), C=[[0.0], [1.0]], D=np.zeros((2, p)))


def test_accuracies_under_attack_are_those_of_a_hand_computation():
    # Sample k has Σu = s_k > 0, of class 1: output 1 wins while the sum is positive. All pixels attacked by ε lower it
    # by 100 ε = 0.4 and 0.8, half of them by 0.2 and 0.4.
    sums = np.array([0.1, 0.3, 0.5, 0.9])
    inputs = np.tile(sums[:, None] / 100, (1, 100))
    found = measures(difference_model(), inputs, np.ones(4, dtype=int), seed=0)
    assert found["clean"] == 1.0
    assert found["fgsm_half"] == [0.75, 0.5]
    assert found["fgsm"] == [0.5, 0.25]
    assert found["pgd"] == [0.5, 0.25]
    assert found["certified"] == [0.5, 0.25]


def test_the_unit_of_the_inputs_scales_the_attack():
    inputs = np.tile(np.array([0.1, 0.3, 0.5, 0.9])[:, None] / 100, (1, 100))
    labels = np.ones(4, dtype=int)
    plain = measures(difference_model(), inputs, labels, 0, attacks=("fgsm",))
    doubled = measures(difference_model(), 2 * inputs, labels, 0, unit=2.0, attacks=("fgsm",))
    assert plain == doubled
    assert set(plain) == {"clean", "fgsm", "certified"}


def test_the_attacked_pixels_follow_the_seed():
    rng = np.random.default_rng(0)
    model = ImplicitModel(A=np.zeros((1, 1)), B=rng.random((1, 100)), C=[[0.0], [1.0]], D=np.zeros((2, 100)))
    inputs, labels = rng.uniform(0.0, 0.008, (300, 100)), np.ones(300, dtype=int)
    one, same, other = (
        measures(model, inputs, labels, seed, attacks=("fgsm_half",), certificates=False) for seed in (0, 0, 1)
    )
    assert one == same
    assert one["fgsm_half"] != other["fgsm_half"]


def test_a_network_and_its_implicit_form_measure_alike(tiny):
    network = MLP((P, 4, Q), rngs=nnx.Rngs(0))
    arguments = (tiny.test_inputs, tiny.test_labels, 0)
    assert measures(network, *arguments, few=10) == measures(network.export(), *arguments, few=10)


def test_an_unknown_attack_is_refused():
    with pytest.raises(ValueError, match="attacks"):
        measures(difference_model(), np.ones((1, 100)), np.ones(1, dtype=int), 0, attacks=("noise",))


# --- The experiment ----------------------------------------------------------------------------------------------


def test_the_uniform_rule_divides_every_layer_by_the_largest_norm():
    network = MLP((P, 6, 5, Q), rngs=nnx.Rngs(0))
    inputs = np.random.default_rng(0).random((7, P))
    states = robustness.uniformly_scaled(network, inputs, gamma=1.25)
    exact = simjax.collect_states(network, inputs)
    largest = max(np.abs(np.asarray(layer.kernel[...], np.float64)).sum(axis=0).max() for layer in network.layers)
    np.testing.assert_allclose(states.outputs, exact.outputs / (1.25 * largest) ** 3, rtol=1e-9)
    assert states.baseline.well_posedness <= 0.8


def made_up(seeds=(0, 1, 2)):
    """Records whose accuracy falls by a point for each 10 % of sparsity, L1 a point above perspective."""
    records = []
    attacked = {"clean": 0.85, "fgsm_half": [0.8, 0.75], "fgsm": [0.7, 0.6], "pgd": [0.7, 0.5], "certified": [0.1, 0.0]}
    common = {"cpu": "cpu", "cores": 2, "device": "cpu", "python": "3.11", "versions": {"simjax": "0"}}
    common |= {
        "commit": "c",
        "changed_since": False,
        "date": "2026-01-01T00:00:00",
        "quick": False,
        "wall_seconds": 6.0,
    }
    fit = {"rows": 122, "rows_certified": 122, "worst_relative_gap": 1e-7, **common}
    for job in robustness.jobs(Settings(seeds)):
        for keys in job.keys:
            if keys["part"] == "baseline":
                records.append({**keys, **attacked, **common, "nonzeros": 52_896})
                continue
            number = [record["objective"] for record in records].count(keys["objective"])
            sparse = 0.1 + 0.1 * (number % 8)
            level = 0.8 - 0.1 * sparse + 0.01 * (keys["objective"] == "l1") + 1e-3 * keys["seed"]
            moved = {**attacked, "fgsm_half": [level, level - 0.05]}
            records.append({**keys, **fit, **moved, "sparsity": sparse, "nonzeros": 1})
    return records


def test_jobs_have_the_keys_of_the_records_they_make_and_no_two_the_same():
    jobs = list(robustness.jobs(Settings((0, 1))))
    keys = [tuple(entry[key] for key in robustness.KEYS) for job in jobs for entry in job.keys]
    assert len(set(keys)) == len(keys)
    assert {key[1] for key in keys if key[0] == "table" and key[-1] == 0} == set(robustness.READINGS)
    assert {key[1] for key in keys if key[0] == "table" and key[-1] == 1} == set(robustness.REPEATED)


def test_the_page_says_what_the_records_say():
    text = robustness.section(made_up())
    assert "All " in text
    assert "rows behind these numbers are certified" in text
    tables = [
        list(lines) for table, lines in itertools.groupby(text.splitlines(), lambda line: line[:1] == "|") if table
    ]
    for table in tables:  # as many cells in every line
        assert len({line.count("|") for line in table}) == 1
    assert "| weak | 3 | 85.0 ± 0.0 | 80.0 ± 0.0 | 75.0 ± 0.0 |" in text
    line = next(line for line in text.splitlines() if line.startswith("| 100 | 0.1 | 0.01 |"))
    assert "| 77 |" in line  # printed
    assert "| 57.2 |" in line


def test_accuracy_at_a_sparsity_is_read_from_a_line_between_models_of_one_seed():
    records = [
        {"seed": seed, "sparsity": sparse, "fgsm_half": [0.8 - 0.1 * sparse + 0.01 * seed]}
        for seed in (0, 1)
        for sparse in (0.6, 0.2)
    ]
    first = robustness.under_attack(0)
    np.testing.assert_allclose(at_sparsity(records, 0.5, first), [0.75, 0.76])
    assert at_sparsity(records, 0.7, first) == []


def test_the_distance_leaves_out_what_is_not_known():
    assert robustness._distance([(10.0, 13.0), (20.0, 16.0), (5.0, None)]) == "3.5"
    assert robustness._distance([(5.0, None)]) == "–"


def test_the_picture_is_drawn(tmp_path):
    drawn = robustness.pictures(made_up())
    assert list(drawn) == ["robustness"]
    drawn["robustness"].savefig(tmp_path / "picture.png", dpi=60)
    assert image.imread(tmp_path / "picture.png").std() > 0.01
    labels = {line.get_label() for line in drawn["robustness"].axes[0].lines}
    assert "baseline, under the same attack" in labels


def test_a_quick_run_from_end_to_end(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "QUICK_SAMPLES", 30)
    monkeypatch.setattr(baselines, "QUICK_TEST", 40)
    monkeypatch.setattr(robustness, "FEW", 20)
    command.main(["robustness", "--quick", "--folder", str(tmp_path)])
    records = command.read(tmp_path / "robustness.json")
    assert {record["part"] for record in records} == {"baseline", "table", "path"}
    fits = [record for record in records if record["part"] != "baseline"]
    assert all(record["rows_certified"] == record["rows"] == 122 for record in fits)
    assert all(record["well_posedness"] <= 0.99 * (1 + 1e-9) for record in fits)
    ridge = next(record for record in fits if record["case"] == "literal")
    assert ridge["sparsity"] < -0.8  # formula (10) as printed is dense
    assert (tmp_path / "paper-robustness.png").is_file()
    assert "Table 2" in (tmp_path / "robustness.md").read_text()
