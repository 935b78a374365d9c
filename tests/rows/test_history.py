"""The gaps of rows, check by check: they end in the certificate, through engines, blocks, checkpoints and fits."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import sparse_rows
from numpy.testing import assert_array_equal

import simjax
from simjax.rows.history import Checks, History, joined_histories

L1: dict[str, Any] = {"penalty": simjax.L1(0.5), "history": True}


def check(history: History | None, found: simjax.Solution | simjax.FitResult) -> History:
    """What holds of every history; and itself."""
    assert history is not None
    assert history.gap.dtype == np.float64
    assert history.gap.shape == history.passes.shape
    assert history.gap.shape[1] == found.status.size
    assert_array_equal(history.gap[-1], found.certificate.relative_gap)
    assert np.all(np.diff(history.passes, axis=0) >= 0)
    assert not np.any(np.isnan(history.gap))
    return history


def test_none_by_default() -> None:
    assert simjax.solve_rows(*sparse_rows(30), penalty=simjax.L1(0.5)).history is None


@pytest.mark.parametrize(
    ("solver", "engine"),
    [("auto", "numpy"), ("admm", "numpy"), ("proximal_gradient", "numpy"), ("auto", "jax"), ("admm", "jax")],
)
def test_it_ends_in_the_certificate(solver: str, engine: str) -> None:
    found = simjax.solve_rows(*sparse_rows(30), solver=solver, engine=engine, tol=1e-9, **L1)
    history = check(found.history, found)
    assert_array_equal(history.passes[-1], found.passes)
    if solver != "auto":  # a check every 63 passes
        steps = np.unique(history.passes)
        assert_array_equal(np.diff(steps), 63)
        assert len(steps) >= 2
        # Within the passes the best gap never rises.
        assert np.all(np.diff(history.gap[:-1], axis=0) <= 0.0)
    assert np.all(history.gap[0] >= history.gap[-1] - 1e-14)  # rounding, where it ends at the first check


@pytest.mark.parametrize(
    "options",
    [
        {"penalty": simjax.NoPenalty()},
        {"penalty": simjax.L1(0.5), "constraint": simjax.L1Ball(0.2)},
        {"penalty": simjax.L1(0.5), "solver": "clarabel"},
        {"penalty": simjax.L1(0.01), "loss_weight": 1e6},
    ],
    ids=["least squares", "ball", "oracle", "next to no penalty"],
)
def test_every_way_to_solve_has_one(options: dict[str, Any]) -> None:
    found = simjax.solve_rows(*sparse_rows(30), history=True, **options)
    check(found.history, found)


def test_infeasible_and_trivial_rows() -> None:
    design, targets = sparse_rows(30)
    with pytest.warns(simjax.ConvergenceWarning):
        found = simjax.solve_rows(design, targets, matching="exact", **L1)
    assert np.all(np.isinf(check(found.history, found).gap[-1]))
    found = simjax.solve_rows(design, 0.0 * targets, **L1)
    assert not np.any(check(found.history, found).gap)


def test_blocks_checkpoints_and_what_is_copied(tmp_path: Path) -> None:
    design, targets = sparse_rows(30, rows=40)
    options = {**L1, "solver": "admm", "max_memory": 9e4}
    whole = simjax.solve_rows(design, targets, solver="admm", **L1)
    first = simjax.solve_rows(design, targets, checkpoint=tmp_path / "kept", **options)
    again = simjax.solve_rows(design, targets, checkpoint=tmp_path / "kept", **options)
    history = check(first.history, first)
    assert_array_equal(check(again.history, again).gap, history.gap)
    assert_array_equal(again.history.passes, history.passes)
    assert_array_equal(np.unique(history.passes), np.unique(whole.history.passes))
    with ThreadPoolExecutor(2) as executor:
        spread = simjax.solve_rows(design, targets, executor=executor, **options)
    assert_array_equal(check(spread.history, spread).passes, history.passes)
    with pytest.raises(ValueError, match=r"history \(True there, False here\)"):
        simjax.solve_rows(design, targets, checkpoint=tmp_path / "kept", **{**options, "history": False})
    assert repr(history) == f"History({len(history.gap)} checks of 40 rows)"
    assert_array_equal(pickle.loads(pickle.dumps(first)).history.gap, history.gap)
    placed = jax.device_put(simjax.solve_rows(design, targets, fit_intercept=True, **L1))
    assert placed.history.gap.shape[1] == 40
    assert placed.intercept.shape == (40,)


@pytest.mark.parametrize("refit", [None, "support", "outputs", ("support", "outputs")])
def test_a_fit_has_that_of_the_solves_that_certify_its_rows(refit: Any) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 3))
    preactivations = inputs @ rng.normal(size=(3, 5))
    activations = np.maximum(preactivations, 0.0)
    states = simjax.States(inputs, preactivations, activations, activations @ rng.normal(size=(5, 2)))
    result = simjax.fit(states, "l1", alpha=0.01, refit=refit, history=True)
    check(result.history, result)
    assert simjax.fit(states, "l1", alpha=0.01, refit=refit).history is None
    path = simjax.path(states, "l1", alphas=[0.1, 0.01], history=True)
    for one in path.fits:
        check(one.history, one)


def test_what_is_taken_down() -> None:
    checks = Checks(3)
    checks.note(np.array([0, 2]), np.array([0.5, np.inf]), np.array([63, 63]))
    checks.note(np.array([2]), np.array([0.25]), np.array([126]))
    history = checks.history(np.array([0.5, 0.0, 0.25]), np.array([63, 0, 126]))
    inf = np.inf
    assert_array_equal(history.gap, [[0.5, inf, inf], [0.5, inf, 0.25], [0.5, 0.0, 0.25]])
    assert_array_equal(history.passes, [[63, 0, 63], [63, 0, 126], [63, 0, 126]])
    short = Checks(1).history(np.array([0.125]), np.array([5]))
    both = joined_histories([history, short])
    assert both is not None
    assert_array_equal(both.gap[:, 3], [0.125] * 3)
    assert_array_equal(both.take(np.array([3, 0])).passes, [[5, 63]] * 3)
    assert joined_histories([]) is None


def test_history_is_asked_for_by_true() -> None:
    with pytest.raises(TypeError, match="history must be True or False, got 1"):
        simjax.solve_rows(*sparse_rows(30), penalty=simjax.L1(0.5), history=1)  # type: ignore[arg-type]
