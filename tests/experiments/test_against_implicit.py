"""SIM against implicit differentiation on tiny data: what is measured, and what is written."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.records import place
from experiments import against_implicit
from experiments.experiment import Settings

P, Q = 6, 3


@pytest.mark.slow
def test_both_ways_give_a_model_of_the_same_size_in_the_ball(tiny, monkeypatch):
    monkeypatch.setattr(against_implicit, "relative_weights", lambda states, objective: np.ones((12, 15)))
    sim = against_implicit.of_way("digits", "sim-tuned", 0, 0, quick=True)
    pruned = against_implicit.of_way("digits", "implicit-pruned", 0, sim["nonzeros"], quick=True)
    for record in (sim, pruned):
        assert (record["n"], record["p"], record["q"]) == (9, P, Q)
        assert record["well_posedness"] <= 0.99 * (1 + 1e-12)
        assert record["zeros"] == pytest.approx(1 - record["nonzeros"] / (12 * 15))
        assert record["peak_mebibytes"] >= record["before_mebibytes"] > 10
        assert record["gradient_mebibytes"] > 0
        assert record["seconds"] == pytest.approx(sum(stage["seconds"] for stage in record["stages"].values()))
        assert 0 < record["compile_seconds"] < record["seconds"]
        last, share = record["curve"][-1]
        assert last == pytest.approx(record["seconds"])
        assert share == pytest.approx(record["test_accuracy"], abs=0.04)
        assert record["seconds_to"]["0.97"] in (None, *(seconds for seconds, _ in record["curve"]))
    assert sim["rows_certified"] == sim["rows"] == 12
    assert 0 < sim["nonzeros"] == pruned["nonzeros"] < 12 * 15
    assert list(sim["stages"]) == ["baseline", "states", "fits", "tuning"]
    assert list(pruned["stages"]) == ["training", "tuning"]
    for record in (sim, pruned):  # no accuracy of another, larger model is in the curve
        assert len(record["curve"]) == against_implicit.QUICK_TUNING + (record is sim)
    text = against_implicit.section([{**record, **place()} for record in (sim, pruned)])
    assert f"| SIM, its nonzeros tuned | 0 | {sim['seconds']:.1f} |" in text
    assert "| the same, pruned and tuned | 0 |" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {16}


def test_pruning_keeps_as_many_weights_as_sim_and_records_are_those_of_the_job(monkeypatch):
    kept = {}

    def made(dataset, method, seed, nonzeros, *, quick):
        kept[method] = nonzeros
        return {"dataset": dataset, "method": method, "seed": seed, "nonzeros": 7 if method == "sim" else 99}

    monkeypatch.setattr(against_implicit, "in_own_process", made)
    (job,) = against_implicit.jobs(Settings((3,), quick=True))
    found = [{key: record[key] for key in against_implicit.EXPERIMENT.keys} for record in job.run()]
    assert found == list(job.keys)
    assert kept == {"sim": 0, "sim-tuned": 7, "implicit": 7, "implicit-pruned": 7}


def test_the_time_to_an_accuracy_is_that_of_the_first_point_that_has_it():
    curve = [(1.0, 0.5), (2.0, 0.9), (3.0, 0.8)]
    assert against_implicit.time_to(curve, 0.8) == 2.0
    assert against_implicit.time_to(curve, 0.95) is None
