"""Fits and paths that go on from a checkpoint: each of their solves has a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import generator
from numpy.testing import assert_array_equal

import simjax
from simjax.rows.memory import bytes_per_row
from simjax.rows.solution import dense_rows

MEMORY = 9 * bytes_per_row((40, 23))  # the 20 rows of a fit in three blocks


@pytest.fixture(scope="module")
def states() -> simjax.States:
    rng = generator(30)
    weights = [rng.normal(size=(9, 6)) / 3, rng.normal(size=(8, 9)) / 3, rng.normal(size=(3, 8))]
    return simjax.States.from_layers(weights, None, "relu", rng.normal(size=(40, 6)))


def assert_same(found: simjax.FitResult, wanted: simjax.FitResult) -> None:
    for theirs, ours in zip(wanted.solutions, found.solutions, strict=True):
        assert_array_equal(dense_rows(ours.weights), dense_rows(theirs.weights))
        assert_array_equal(ours.certificate.dual, theirs.certificate.dual)
        assert_array_equal(ours.certificate.gap, theirs.certificate.gap)
    assert_array_equal(found.model.to_dense().A, wanted.model.to_dense().A)


def test_a_fit_with_refits_goes_on(states: simjax.States, tmp_path: Path, solves: list[int]) -> None:
    arguments: dict[str, Any] = {"alpha": 0.05, "refit": ("support", "outputs"), "max_memory": MEMORY}
    wanted = simjax.fit(states, "l1", **arguments, checkpoint=tmp_path / "fit")
    plain = simjax.fit(states, "l1", **arguments)
    assert_array_equal(plain.model.to_dense().A, wanted.model.to_dense().A)
    folders = sorted(file.name for file in (tmp_path / "fit").iterdir())
    assert folders == ["outputs", "rows", "support"]
    solves.clear()
    (tmp_path / "fit" / "support" / "block-000001.safetensors").unlink()
    assert_same(simjax.fit(states, "l1", **arguments, checkpoint=str(tmp_path / "fit")), wanted)
    assert solves == [7]
    with pytest.raises(
        ValueError, match=r"fit/rows is that of another problem .* differs: alpha \(0\.05 there, 0\.06 here\)\. Give"
    ):
        simjax.fit(states, "l1", **{**arguments, "alpha": 0.06}, checkpoint=tmp_path / "fit")


def test_a_path_goes_on(states: simjax.States, tmp_path: Path, solves: list[int]) -> None:
    arguments: dict[str, Any] = {"alphas": [0.5, 0.05], "max_memory": MEMORY, "checkpoint": tmp_path / "path"}
    wanted = simjax.path(states, "l1", **arguments)
    assert sorted(file.name for file in (tmp_path / "path").iterdir()) == ["fit-000", "fit-001"]
    solves.clear()
    (tmp_path / "path" / "fit-001" / "rows" / "block-000002.safetensors").write_bytes(b"")
    again = simjax.path(states, "l1", **arguments)
    assert solves == [6]
    for theirs, ours in zip(wanted.fits, again.fits, strict=True):
        assert_same(ours, theirs)


def test_low_rank_goes_on(states: simjax.States, tmp_path: Path, solves: list[int]) -> None:
    arguments: dict[str, Any] = {"constraint": simjax.LowRank(2), "alpha": 0.05, "checkpoint": tmp_path / "fit"}
    wanted = simjax.fit(states, "l1", **arguments)
    assert sorted(file.name for file in (tmp_path / "fit").iterdir()) == ["low-rank", "rows"]
    solves.clear()
    again = simjax.fit(states, "l1", **arguments)
    assert solves == []
    assert_array_equal(again.weights, wanted.weights)
    assert_array_equal(again.certificate.dual, wanted.certificate.dual)
