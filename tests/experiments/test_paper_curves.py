"""The paper's Figures 2 and 3 on Fashion-MNIST: what is read from the records and what is drawn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from flax import nnx
from matplotlib import image

from benchmarks.records import write
from experiments import __main__ as command
from experiments import curves
from experiments.baselines import Split
from experiments.experiment import Settings, at_sparsity
from simjax.nn import MLP

pytestmark = pytest.mark.slow  # `make test` is for the library


def made_up(seeds=(0, 1)):
    """Records in which α decides the sparsity, and a model loses a point for each 10 % of it above 40 %."""
    common = {"cpu": "cpu", "cores": 2, "device": "cpu", "python": "3.11", "versions": {"simjax": "0"}}
    common |= {
        "commit": "c",
        "changed_since": False,
        "date": "2026-01-01T00:00:00",
        "quick": False,
        "wall_seconds": 6.0,
    }
    common |= {"rows": 122, "rows_certified": 122, "worst_relative_gap": 1e-7}
    records = []
    for job in curves.jobs(Settings(seeds)):
        for position, keys in enumerate(job.keys):
            sparse = 0.9 - 0.15 * position - 0.1 * (keys["penalty"] == "perspective")
            drop = 0.1 * max(0.0, sparse - 0.4) + 1e-3 * keys["seed"]
            records.append({**keys, **common, "sparsity": sparse, "drop": drop, "nonzeros": 1, "accuracy": 0.88 - drop})
    return records


def test_jobs_have_keys_of_their_own():
    keys = [tuple(entry[key] for key in curves.KEYS) for job in curves.jobs(Settings((0, 1))) for entry in job.keys]
    assert len(set(keys)) == len(keys)


def test_all_penalties_have_the_slope_of_l1_at_zero():
    for penalty in curves.PENALTIES.values():
        slope = 1.0 if penalty.mu_ratio is None else 2.0 * np.sqrt(penalty.mu_ratio)
        assert penalty.scale * slope == pytest.approx(1.0)


def test_what_is_lost_at_a_sparsity_and_what_is_free():
    records = [{"seed": 0, "sparsity": x, "drop": y} for x, y in ((0.6, 0.02), (0.2, -0.001), (0.4, 0.001))]
    assert at_sparsity(records, 0.5, lambda record: record["drop"]) == pytest.approx([0.0105])
    assert at_sparsity(records, 0.7, lambda record: record["drop"]) == []
    assert curves.free_sparsity(records) == [0.4]
    assert curves.free_sparsity(records[:1]) == []


def test_the_page_says_what_the_records_say():
    text = curves.section(made_up())
    lines = text.splitlines()
    for first, second in itertools.pairwise(lines):
        if first[:1] == second[:1] == "|":
            assert first.count("|") == second.count("|")
    recipe = curves.RECIPES["recommended"]
    line = next(line for line in lines if line.startswith(f"| {recipe.alphas[0]:g} | 90.0 ± 0.0 | 5.05 ± 0.07 |"))
    assert "| 80.0 ± 0.0 | 4.05 ± 0.07 |" in line
    assert "rows behind these numbers are certified" in text
    assert "| 20,000 |" in text


def test_the_pictures_are_drawn(tmp_path):
    drawn = curves.pictures(made_up())
    assert list(drawn) == ["curves-trade-off", "curves-samples"]
    for name, figure in drawn.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=60)
        assert image.imread(tmp_path / f"{name}.png").std() > 0.01
        assert {"L1", "baseline"} <= {text.get_text() for text in figure.legends[0].get_texts()}


def test_a_quick_run_from_end_to_end(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    inputs, labels = rng.random((60, 20)), rng.integers(0, 4, 60)
    split = Split(inputs, labels, inputs[:0], labels[:0], inputs[:20], labels[:20], 1.0)
    network = MLP((20, 6, 5, 4), rngs=nnx.Rngs(0))
    monkeypatch.setattr(curves, "_baseline", lambda seed, quick: (network, split))
    monkeypatch.setattr(curves, "QUICK_SAMPLES", (15, 40))
    command.main(["curves", "--quick", "--folder", str(tmp_path)])
    records = command.read(tmp_path / "curves.json")
    assert {record["part"] for record in records} == {"trade-off", "samples"}
    for record in records:
        assert record["rows_certified"] == record["rows"] == 15
        assert record["sparsity"] == pytest.approx(1 - record["nonzeros"] / network.export().nonzeros)
        assert record["drop"] == pytest.approx(record["baseline_accuracy"] - record["accuracy"])
    # What was interrupted is taken up: only the records that are not there are made.
    records.pop(-1)
    write(tmp_path / "curves.json", records)
    stamps = [record["date"] for record in records]
    command.main(["curves", "--quick", "--missing", "--folder", str(tmp_path)])
    again = command.read(tmp_path / "curves.json")
    assert len(again) == len(records) + 1
    assert [record["date"] for record in again[:-1]] == stamps
    assert (tmp_path / "curves.md").is_file()
    assert (tmp_path / "paper-curves-trade-off.png").is_file()
