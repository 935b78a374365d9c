"""A solve that is stopped goes on from its checkpoint, to the same bits; nothing else's folder is touched."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import inspect
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import sparse_rows
from numpy.testing import assert_array_equal

import simjax
from simjax.rows import fingerprint as fingerprints
from simjax.rows.attempts import Start
from simjax.rows.engines import choose
from simjax.rows.memory import bytes_per_row
from simjax.rows.options import SolveOptions
from simjax.rows.problem import row_problem
from simjax.rows.solution import Solution, dense_rows

M, WIDTH, ROWS = 30, 20, 40
MEMORY = 10 * bytes_per_row((M, WIDTH))  # four blocks of ten rows
DESIGN, TARGETS = sparse_rows(M, WIDTH, ROWS)
STATED: dict[str, Any] = {"penalty": simjax.L1(0.5), "max_memory": MEMORY}


def solve(folder: Path | None, **changed: Any) -> Solution:
    arguments = {"design": DESIGN, "targets": TARGETS, **STATED, "checkpoint": folder, **changed}
    return simjax.solve_rows(arguments.pop("design"), arguments.pop("targets"), **arguments)


def assert_same(found: Solution, wanted: Solution) -> None:
    """Bit for bit."""
    for name in ("data", "indices", "indptr"):
        assert getattr(found.weights, name).tobytes() == getattr(wanted.weights, name).tobytes()
    for field in dataclasses.fields(wanted.certificate):
        assert getattr(found.certificate, field.name).tobytes() == getattr(wanted.certificate, field.name).tobytes()
    for name in ("status", "passes", "newton_steps", "polished"):
        assert_array_equal(getattr(found, name), getattr(wanted, name))


def blocks_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("block-*.safetensors"))


# ---- going on ----------------------------------------------------------------------------------------------


def test_only_what_is_missing_or_damaged_is_solved_again(tmp_path: Path, solves: list[int]) -> None:
    wanted = solve(tmp_path / "whole")
    assert solves == [10, 10, 10, 10]
    assert len(blocks_in(tmp_path / "whole")) == 4
    plain = solve(None)
    assert_array_equal(dense_rows(plain.weights), dense_rows(wanted.weights))
    assert_array_equal(plain.certificate.gap, wanted.certificate.gap)
    solves.clear()
    assert_same(solve(tmp_path / "whole"), wanted)
    assert solves == []
    first, second, third, _ = blocks_in(tmp_path / "whole")
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    contents = bytearray(third.read_bytes())
    contents[-5] ^= 1  # of the right length, and wrong
    third.write_bytes(contents)
    assert_same(solve(tmp_path / "whole"), wanted)
    assert solves == [10, 10, 10]


def test_progress_counts_the_rows_that_were_there(tmp_path: Path) -> None:
    solve(tmp_path / "folder")
    seen: list[simjax.Progress] = []
    solve(tmp_path / "folder", progress=seen.append)
    assert [(told.solved, told.rows, told.stage) for told in seen] == [(k, 40, "checkpoint") for k in (10, 20, 30, 40)]


def test_without_max_memory_blocks_do_not_follow_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = solve(tmp_path / "folder", max_memory=None)
    assert isinstance(wanted.weights, np.ndarray)
    monkeypatch.setattr("simjax.rows.memory.free_memory", lambda: 1.0)
    found = solve(tmp_path / "folder", max_memory=None)
    assert_array_equal(found.weights, wanted.weights)


# ---- what a checkpoint is of -------------------------------------------------------------------------------

# For every argument another value, which must be told from the one before.
OTHER: dict[str, Any] = {
    "design": DESIGN + 1e-15,
    "targets": np.where(np.arange(ROWS) == ROWS - 1, np.nextafter(TARGETS, 9.0), TARGETS),
    "loss_weight": 2.0,
    "penalty": simjax.L1(0.25),
    "constraint": simjax.L1Ball(0.9),
    "support": np.arange(WIDTH) > 0,
    "matching": "exact",
    "sample_weight": np.where(np.arange(len(DESIGN)) == 0, 2.0, 1.0),
    "fit_intercept": True,
    "solver": "admm",
    "engine": "jax",
    "precision": "float64",
    "tol": 1e-7,
    "max_iters": 999,
    "mesh": jax.make_mesh((1,), ("rows",)),
    "max_memory": 2 * MEMORY,
    "history": True,
}


ARGUMENTS = ("loss_weight", "penalty", "constraint", "support", "sample_weight", "fit_intercept")


def refusal(tmp_path: Path, **changed: Any) -> str:
    """What a folder says that was begun with the arguments above."""
    if not (tmp_path / "folder").exists():
        solve(tmp_path / "folder")
    with pytest.raises(ValueError, match="what differs") as caught:
        solve(tmp_path / "folder", **changed)
    return str(caught.value).split("what differs: ")[1].removesuffix(". Give the same arguments, or another folder.")


def test_every_argument_is_tried_or_said_to_have_no_effect() -> None:
    """Fails for an argument that is added, until it is listed in one of the two."""
    assert set(inspect.signature(simjax.solve_rows).parameters) == set(OTHER) | fingerprints.WITHOUT_EFFECT
    names = {field.name for field in dataclasses.fields(SolveOptions)}
    assert names <= set(OTHER) | fingerprints.WITHOUT_EFFECT


@pytest.mark.parametrize("name", OTHER)
def test_what_differs_is_named_and_nothing_else(name: str, tmp_path: Path) -> None:
    found = refusal(tmp_path, **{name: OTHER[name]})
    wanted = {"targets": "targets of rows 30 to 39", "mesh": "engine, mesh"}.get(name, name)
    assert re.sub(r" \([^)]* there, [^)]* here\)", "", found) == wanted


def test_what_differs_at_once_is_named_together(tmp_path: Path) -> None:
    targets, design = OTHER["targets"], OTHER["design"]
    assert refusal(tmp_path, tol=1e-7, targets=targets) == "tol (1e-06 there, 1e-07 here), targets of rows 30 to 39"
    assert refusal(tmp_path, tol=1e-7, design=design) == "tol (1e-06 there, 1e-07 here), design"
    assert refusal(tmp_path, loss_weight=2.0, design=design) == "loss_weight (1.0 there, 2.0 here)"
    assert refusal(tmp_path, targets=TARGETS[:, :-1]) == "rows (40 there, 39 here)"
    assert refusal(tmp_path, penalty=simjax.Ridge(0.5)) == "penalty"


def mark(**changed: Any) -> fingerprints.Fingerprint:
    options = {field.name for field in dataclasses.fields(SolveOptions)}
    arguments = {"design": DESIGN, "targets": TARGETS, **STATED, **changed}
    solve_options = SolveOptions(**{name: value for name, value in arguments.items() if name in options})
    stated = row_problem(**{name: value for name, value in arguments.items() if name not in options})
    given = {name: value for name, value in arguments.items() if name in ARGUMENTS}
    return fingerprints.fingerprint(stated, solve_options, choose(solve_options), 10, given)


def test_a_box_is_the_constraint() -> None:
    nonnegative, unit = mark(constraint=simjax.Box(0.0, np.inf)), mark(constraint=simjax.Box(0.0, 1.0))
    assert nonnegative.differences(mark()) == ["constraint"] == unit.differences(nonnegative)


def test_what_has_no_effect_is_not_looked_at(tmp_path: Path) -> None:
    without = {"progress": print, "checkpoint": tmp_path, "executor": ThreadPoolExecutor, "shard": (1, 2)}
    assert mark(**without).differences(mark()) == []
    assert mark(engine="numpy").differences(mark()) == []  # as "auto" is here


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (0.5, np.float64(0.5), 0.25),
        (np.float32(0.5), jax.numpy.asarray(0.5), 0),
        ([0.5, 0.25], np.array([0.5, 0.25]), [0.25, 0.5]),
        (simjax.L1(0.5), simjax.L1(np.array(0.5)), simjax.ElasticNet(0.5, 0.0)),
        (simjax.L1Ball(0.9), simjax.L1Ball(0.9), simjax.L1Ball(0.9, size=3)),
        (True, True, 1.0),
        ("l1", "l1", "ridge"),
        (("support",), ["support"], None),
    ],
)
def test_an_argument_is_told_by_its_value(one: Any, same: Any, other: Any) -> None:
    def stated(value: Any) -> dict[str, str]:
        problem, options = row_problem(DESIGN, TARGETS, penalty=simjax.L1(0.5)), SolveOptions()
        return fingerprints.fingerprint(problem, options, choose(options), 10, {"value": value}).digests

    assert stated(one) == stated(same) != stated(other)


def test_values_are_told_apart() -> None:
    values = [None, "", "None", 0, 0.0, -0.0, False, (), (0,), ((0,),), [None], {"a": 1}, {"b": 1}, np.zeros(0)]
    values += [np.zeros(2), np.zeros(2, dtype=np.float32), np.zeros((1, 2)), np.array([0.0, -0.0]), Start(1, 2)]  # type: ignore[arg-type]
    assert len({fingerprints.digest(value) for value in values}) == len(values)
    with pytest.raises(TypeError, match="has no fingerprint"):
        fingerprints.digest(object())
    with pytest.raises(TypeError, match="dtype object"):
        fingerprints.digest(np.array([object()]))


# ---- refusals ----------------------------------------------------------------------------------------------


def test_another_problem_is_refused_and_its_folder_left_alone(tmp_path: Path) -> None:
    solve(tmp_path / "folder")
    before = {file.name: file.read_bytes() for file in (tmp_path / "folder").iterdir()}
    refusal(tmp_path, tol=1e-7, targets=2.0 * TARGETS)
    assert {file.name: file.read_bytes() for file in (tmp_path / "folder").iterdir()} == before


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="new or empty folder"):
        solve(tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file"):
        solve(tmp_path / "notes.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_whole_block_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    solve(tmp_path / "one")
    solve(tmp_path / "two", tol=1e-7)
    shutil.copy(blocks_in(tmp_path / "two")[1], blocks_in(tmp_path / "one")[1])
    with pytest.raises(ValueError, match=r"block-000001\.safetensors belongs to another checkpoint"):
        solve(tmp_path / "one")


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    solve(tmp_path / "folder")
    about = tmp_path / "folder" / "checkpoint.json"
    about.write_text(about.read_text()[:-9])
    with pytest.raises(ValueError, match=r"checkpoint\.json is not a usable checkpoint"):
        solve(tmp_path / "folder")


class Own(simjax.Penalty):
    def value(self, weights: Any) -> Any:
        return jax.numpy.abs(weights)

    def prox(self, points: Any, step: Any) -> Any:
        return jax.numpy.sign(points) * jax.numpy.maximum(jax.numpy.abs(points) - step, 0.0)

    def conjugate(self, slopes: Any) -> Any:
        return jax.numpy.where(jax.numpy.abs(slopes) > 1.0, jax.numpy.inf, 0.0)


def test_a_penalty_of_ones_own_and_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint cannot be used with a penalty of your own, Own"):
        solve(tmp_path / "folder", penalty=Own())
    with pytest.raises(TypeError, match="checkpoint must be a folder's path or None, got int"):
        solve(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="checkpoint must be a folder's path"):
        solve("")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# ---- stopped -----------------------------------------------------------------------------------------------


def test_no_room_is_said_and_loses_nothing(tmp_path: Path, solves: list[int]) -> None:
    wanted = solve(tmp_path / "whole")
    sizes = [file.stat().st_size for file in blocks_in(tmp_path / "whole")]
    limits, stopped = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "stopped"
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(told: simjax.Progress) -> None:
        if len(blocks_in(stopped)) == 2:  # from the third block on, files may not become as large
            resource.setrlimit(resource.RLIMIT_FSIZE, (min(sizes) // 2, limits[1]))

    try:
        with pytest.raises(OSError, match=r"block 3 of 4 could not be written .* blocks are whole") as caught:
            solve(stopped, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert sorted(file.name for file in stopped.iterdir()) == [
        "block-000000.safetensors",
        "block-000001.safetensors",
        "checkpoint.json",
    ]
    solves.clear()
    assert_same(solve(stopped), wanted)
    assert solves == [10, 10]


def test_a_disk_that_cannot_take_what_it_took_loses_nothing(
    tmp_path: Path, solves: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where space is given out late, a full disk shows when the file is flushed, not when it is written."""
    wanted, stopped, plain = solve(tmp_path / "whole"), tmp_path / "stopped", os.fsync

    def full(number: int) -> None:
        if len(blocks_in(stopped)) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(number)

    said = r"block 3 of 4 could not be written \(No space left on device\)"
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=said) as caught:
        solve(stopped)
    monkeypatch.setattr("os.fsync", plain)
    assert caught.value.errno == errno.ENOSPC
    assert len(blocks_in(stopped)) == 2
    solves.clear()
    assert_same(solve(stopped), wanted)
    assert solves == [10, 10]


def test_a_disk_that_is_really_full_loses_nothing(tmp_path: Path, solves: list[int]) -> None:
    wanted, disk = solve(tmp_path / "whole"), tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small disk may not be mounted here")
    try:

        def fill(told: simjax.Progress) -> None:
            if len(blocks_in(disk / "fit")) == 2 and not (disk / "filler").exists():
                with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
                    while True:
                        filler.write(bytes(2**16))

        with pytest.raises(OSError, match=r"block 3 of 4 could not be written \(No space left on device\)") as caught:
            solve(disk / "fit", progress=fill)
        assert caught.value.errno == errno.ENOSPC
        assert len(blocks_in(disk / "fit")) == 2
        assert [file.name for file in (disk / "fit").iterdir() if file.name.endswith(".part")] == []
        (disk / "filler").unlink()
        solves.clear()
        assert_same(solve(disk / "fit"), wanted)
        assert solves == [10, 10]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# A process of its own that says in a file which blocks it begins, and from the `first` line of that file on waits after
# each, so that it can be stopped there.
PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored, by inheritance
import numpy as np, simjax
from simjax.rows.attempts import RowBlock
from simjax.rows.memory import bytes_per_row
folder, log, rows, wait, block = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
first = int(sys.argv[6])
rng = np.random.default_rng(0)
design = rng.normal(size=(60, 40))
targets = design @ (rng.normal(size=(40, rows)) * (rng.random((40, rows)) < 0.2)) + 0.1 * rng.normal(size=(60, rows))
plain = RowBlock.solve
def counting(self, start):
    with open(log, "a") as file:
        file.write(f"{self.problem.count}\\n")
    if sum(1 for _ in open(log)) >= first:
        time.sleep(wait)
    return plain(self, start)
RowBlock.solve = counting
memory = block * bytes_per_row(design.shape)
found = simjax.solve_rows(design, targets, penalty=simjax.L1(0.5), max_memory=memory, checkpoint=folder)
np.savez(log + ".npz", weights=found.weights.toarray(), dual=found.certificate.dual, gap=found.certificate.gap)
"""


def run(folder: Path, log: Path, rows: int, wait: float, block: int, first: int = 0) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(log), str(rows), str(wait), str(block), str(first)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def begun(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def assert_same_file(found: Path, wanted: Path) -> None:
    with np.load(f"{found}.npz") as ours, np.load(f"{wanted}.npz") as theirs:
        for name in theirs.files:
            assert ours[name].tobytes() == theirs[name].tobytes()


def test_killed_interrupted_and_terminated_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    rows, block = 80, 8
    whole = run(tmp_path / "whole", tmp_path / "all", rows, 0.0, block)
    for stop, number in ((signal.SIGKILL, 3), (signal.SIGINT, 5), (signal.SIGTERM, 7)):
        process = run(tmp_path / "stopped", tmp_path / "log", rows, 60.0, block, number)
        until = time.monotonic() + 60.0
        while begun(tmp_path / "log") < number and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(stop)
        assert process.wait(timeout=60) != 0
    assert run(tmp_path / "stopped", tmp_path / "log", rows, 0.0, block).wait(timeout=60) == 0
    assert whole.wait(timeout=60) == 0
    assert_same_file(tmp_path / "log", tmp_path / "all")
    assert rows // block <= begun(tmp_path / "log") <= rows // block + 3  # the block in work, each time


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    rows, block, rng = 2000, 20, np.random.default_rng()
    assert run(tmp_path / "whole", tmp_path / "all", rows, 0.0, block).wait() == 0
    kills = 0
    while kills < 10:
        before = begun(tmp_path / "log")
        process = run(tmp_path / "stopped", tmp_path / "log", rows, 0.02, block)
        while begun(tmp_path / "log") == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.3))
        assert process.poll() is None, "it ended before it was killed"
        process.kill()
        process.wait()
        kills += 1
    assert run(tmp_path / "stopped", tmp_path / "log", rows, 0.0, block).wait() == 0
    assert_same_file(tmp_path / "log", tmp_path / "all")
    assert rows // block <= begun(tmp_path / "log") <= rows // block + 10
