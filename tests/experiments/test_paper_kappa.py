"""The experiment on κ, on a small network and made-up records."""

import json

import numpy as np
import pytest
from flax import nnx

import simjax
from experiments import __main__ as command
from experiments import kappa
from experiments.kappa import KAPPAS, READINGS, TIMED, Case
from simjax.datasets import find_newsgroups
from simjax.nn import MLP

pytestmark = pytest.mark.slow  # `make test` is for the library


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 6))
    return Case(MLP((6, 5, 4, 3), rngs=nnx.Rngs(0)), inputs, inputs[:20], rng.integers(0, 3, 20))


@pytest.fixture(scope="module")
def states(given):
    return simjax.collect_states(given.network, given.inputs)


def record(dataset="fashion-mnist", seed=0, what="sweep", reading="ball", share=1.0, scale=1.0):
    sizes = {"nonzeros_A": 50, "nonzeros_B": 100, "nonzeros_C": 20, "nonzeros_D": 0}
    if what == "sweep":
        times = {"warm_seconds": 1.0, "cold_seconds": 2.0 * scale, "warm_passes": 100, "cold_passes": 300}
        accuracies = {"accuracy": 0.5, "refitted_accuracy": 0.6, "largest_row": 0.1}
        points = [{"kappa": value, **sizes, **times, **accuracies} for value in KAPPAS]
    else:
        times = {"seconds": 8.0 * share * scale, "passes": 100}
        points = [{"kappa": value, **sizes, **times, "accuracy": 0.5 + 0.1 * share} for value in TIMED]
    return {
        **{"dataset": dataset, "seed": seed, "what": what, "reading": reading, "share": share, "samples": 100},
        **{"n": 9, "p": 6, "q": 3, "baseline_nonzeros": 200, "baseline_accuracy": 0.8, "points": points},
        **{"rows": 24, "rows_certified": 24, "worst_relative_gap": 1e-7, "wall_seconds": 60.0, "quick": False},
        **{"cpu": "one", "cores": 2, "device": "cpu", "python": "3.11", "versions": {"jax": "0"}},
        **{"commit": "0" * 40, "changed_since": False, "date": "2026-01-01"},
    }


def all_records():
    records = []
    for dataset in kappa.DATASETS:
        for seed, scale in ((0, 1.0), (1, 2.0)):
            records += [record(dataset, seed, reading=reading, scale=scale) for reading in READINGS]
            records += [record(dataset, seed, "samples", "stacked_ball", share, scale) for share in kappa.SHARES]
    return records


@pytest.mark.parametrize("reading", READINGS)
def test_what_is_bounded(reading, states):
    """The rows solve P(κ): feasible, and no step of a projected gradient of ½‖Ma − z‖² leads anywhere."""
    bound = 0.1
    result = simjax.fit(states, kappa=bound, **kappa.arguments(states, reading))
    assert result.converged
    assert not np.any(result.model.D)
    weights = np.asarray(result.weights)[: states.n]
    assert kappa.largest_row(result.model, reading) == pytest.approx(bound)
    free = np.abs(weights[:, states.n :]).sum(axis=1).max()
    assert (free > bound) == (reading == "ball")
    design = np.concatenate([states.activations, states.inputs], axis=1)
    support = kappa.arguments(states, reading)["support"][: states.n]
    gradient = design.T @ (design @ weights.T - states.preactivations) * support.T  # (d, n), where weights may be
    assert not np.any(weights[~support])
    if reading == "feedforward":
        assert not np.any(np.tril(result.model.A))
    seen = slice(0, states.n if reading == "ball" else None)
    # Optimality on ‖a‖₁ ≤ κ: −gᵀa = κ ‖g‖∞; on free coordinates g = 0.
    tight = bound * np.abs(gradient[seen]).max(axis=0)
    np.testing.assert_allclose(-np.einsum("dn,nd->n", gradient[seen], weights[:, seen]), tight, rtol=1e-3, atol=1e-3)
    if reading == "ball":
        assert np.abs(gradient[states.n :]).max() < 1e-3 * np.abs(design.T @ states.preactivations).max()


def test_a_sweep(states, given):
    found = kappa.sweep(states, "stacked_ball", (0.05, 0.5), given)
    assert found["rows"] == found["rows_certified"] == (2 + 1) * 12  # 0.5 from scratch too
    few, many = found["points"]
    assert few["nonzeros_A"] + few["nonzeros_B"] < many["nonzeros_A"] + many["nonzeros_B"]
    assert (few["largest_row"], many["largest_row"]) == (pytest.approx(0.05), pytest.approx(0.5))
    assert few["nonzeros_D"] == many["nonzeros_D"] == 0
    assert many["warm_seconds"] > 0
    assert many["cold_seconds"] > 0
    assert "warm_seconds" not in few
    assert "warm_seconds" not in kappa.sweep(states, "ball", (0.5,), given)["points"][0]


def test_fits_to_samples(states, given):
    found = kappa.cold(states.subset(30), given)
    assert [point["kappa"] for point in found["points"]] == list(TIMED)
    assert found["samples"] == 30
    assert found["rows"] == found["rows_certified"] == 3 * 12
    alone = simjax.fit(states.subset(30), kappa=0.5, **kappa.arguments(states, "stacked_ball"))
    assert found["points"][1]["accuracy"] == alone.model.accuracy(given.test_inputs, given.test_labels)
    assert all(0 < point["seconds"] < 60 for point in found["points"])


def test_sparsity_by_hand():
    mine = record()
    point = mine["points"][0]
    assert kappa.sparsity(mine, point, "baseline") == pytest.approx(1 - 170 / 200)
    assert kappa.sparsity(mine, point, "entries") == pytest.approx(1 - 170 / (12 * 15))


def test_speed_ups_by_hand():
    samples = [entry for entry in all_records() if entry["what"] == "samples" and entry["dataset"] == "20newsgroups"]
    np.testing.assert_allclose(kappa.speed_ups(samples, 0.5, 0.2), [5.0, 5.0])
    assert kappa.speed_ups(samples, 0.5, 0.25) == []


def test_the_page_and_pictures():
    records = all_records()
    page = kappa.section(records)
    assert "All 768 rows behind these numbers are certified" in page  # 2 · 2 · (3 + 5) records of 24 rows
    assert (
        "| ‖a‖₁ ≤ κ, b free | 0.1 | 50.0 ± 0.0 | 60.0 ± 0.0 | 15.0 ± 0.0 | 5.6 ± 0.0 | 50, 100, 20 | 87.2 | 93.3 |"
        in page
    )
    # Warm start: 2 and 4 times faster, 3 times fewer passes; 20 % of the samples: 5 times.
    assert "| 0.5 | 3.0 ± 1.4 | 3.0 ± 0.0 | 2.0 | 5.0 ± 0.0 | 7.8 |" in page
    figures = kappa.pictures(records)
    assert set(figures) == {"kappa-sweep", "kappa-samples"}
    for figure in figures.values():
        figure.draw_without_rendering()
        assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)


def test_printed_numbers_are_complete():
    for table in (kappa.PRINTED, kappa.PRINTED_SPEED, kappa.PRINTED_DENSE, kappa.PRINTED_SHARES):
        assert set(table) == set(kappa.DATASETS.values())
    for column in kappa.DATASETS.values():
        assert tuple(kappa.PRINTED[column]) == KAPPAS
        assert tuple(kappa.PRINTED_SPEED[column]) == TIMED


def test_lemma_2_of_the_framework_does_not_hold():
    """It bounds g(0) = ‖argmin_a ½‖Ma − z‖²‖₁ by ‖Mᵀz‖/m; even the largest norm, ℓ1, on the right is too small."""
    rng = np.random.default_rng(0)
    m, d = 40, 8
    violations = 0
    for _ in range(20):
        design, targets = rng.normal(size=(m, d)), rng.normal(size=(m, 1))
        solution = simjax.solve_rows(design, targets, loss_weight=0.5, penalty=simjax.NoPenalty())
        assert solution.converged
        violations += np.abs(solution.weights).sum() > np.abs(design.T @ targets).sum() / m
    assert violations > 0
    # By hand: M = (½), z = (1), m = 1 has a = 2, and Mᵀz/m = ½.
    solution = simjax.solve_rows(np.array([[0.5]]), np.array([[1.0]]), loss_weight=0.5, penalty=simjax.NoPenalty())
    assert solution.weights[0, 0] == pytest.approx(2.0)


@pytest.mark.skipif(find_newsgroups() is None, reason="20 Newsgroups is not on this machine")
def test_quick_run(tmp_path):
    command.main(["kappa", "--quick", "--folder", str(tmp_path)])
    records = json.loads((tmp_path / "kappa.json").read_text())["records"]
    assert {entry["reading"] for entry in records} == set(READINGS)
    assert all(entry["rows"] == entry["rows_certified"] for entry in records)
    assert (tmp_path / "paper-kappa-sweep.png").is_file()
