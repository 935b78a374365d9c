"""Fits and paths that go on from a checkpoint: each of their solves has a folder of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
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


# A fit of 2,000 rows in blocks of twenty, in a process of its own that adds a line to a file for each block it begins.
PROGRAM = """
import sys, time
import numpy as np, simjax
from simjax.rows.attempts import RowBlock
from simjax.rows.memory import bytes_per_row
folder, log, wait = sys.argv[1], sys.argv[2], float(sys.argv[3])
rng, m, n, p, q = np.random.default_rng(0), 30, 1980, 40, 20
Z = rng.normal(size=(m, n))
states = simjax.States(rng.normal(size=(m, p)), Z, np.maximum(Z, 0.0), rng.normal(size=(m, q)))
plain = RowBlock.solve
def counting(self, start):
    with open(log, "a") as file:
        file.write(f"{self.problem.count}\\n")
    time.sleep(wait)
    return plain(self, start)
RowBlock.solve = counting
memory = 20 * bytes_per_row((m, n + p))
found = simjax.fit(states, "l1", alpha=1.0, tol=1e-3, fit_intercept=True, max_memory=memory, checkpoint=folder)
A, certificate = found.model.A, found.certificate
arrays = {"data": A.data, "indices": A.indices, "b": found.model.b, "dual": certificate.dual, "gap": certificate.gap}
np.savez(log + ".npz", **arrays, status=found.status)
"""


def start(folder: Path, log: Path, wait: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(log), str(wait)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def begun(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.slow
def test_killed_at_ten_random_moments_a_fit_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    blocks, kills, rng = 100, 10, np.random.default_rng()
    whole, stopped = tmp_path / "all", tmp_path / "log"
    assert start(tmp_path / "whole", whole, 0.0).wait() == 0
    assert begun(whole) == blocks
    for _ in range(kills):
        before = begun(stopped)
        process = start(tmp_path / "stopped", stopped, 0.05)  # which makes the run long enough for all of them
        while begun(stopped) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.4))
        assert process.poll() is None, "it ended before it was killed"
        process.kill()
        process.wait()
    assert start(tmp_path / "stopped", stopped, 0.0).wait() == 0
    with np.load(f"{stopped}.npz") as ours, np.load(f"{whole}.npz") as theirs:
        for name in theirs.files:
            assert ours[name].tobytes() == theirs[name].tobytes()
    assert blocks <= begun(stopped) <= blocks + kills  # the block in work, each time
