"""Blocks of rows solved by the workers of an executor: the same answers, nothing lost, and errors that say where."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import ByHand, NonnegativeL1, generator, sparse_rows
from numpy.testing import assert_array_equal
from threadpoolctl import threadpool_info

import simjax
from simjax.rows import worker
from simjax.rows.attempts import RowBlock, Start
from simjax.rows.memory import bytes_per_row
from simjax.rows.options import SolveOptions
from simjax.rows.pool import Pool, SharingExecutor
from simjax.rows.problem import row_problem
from simjax.rows.solution import Solution, dense_rows
from simjax.rows.solve import solve_problem
from simjax.rows.solvers import factor

M, WIDTH, ROWS = 30, 20, 40
MEMORY = 10 * bytes_per_row((M, WIDTH))  # four blocks of ten rows
DESIGN, TARGETS = sparse_rows(M, WIDTH, ROWS)
STATED: dict[str, Any] = {"penalty": simjax.L1(0.5), "max_memory": MEMORY}


def solve(**changed: Any) -> Solution:
    return simjax.solve_rows(DESIGN, TARGETS, **{**STATED, **changed})


def assert_same(found: Solution, wanted: Solution) -> None:
    """Bit for bit."""
    assert dense_rows(found.weights).tobytes() == dense_rows(wanted.weights).tobytes()
    for field in dataclasses.fields(wanted.certificate):
        assert getattr(found.certificate, field.name).tobytes() == getattr(wanted.certificate, field.name).tobytes()
    for name in ("status", "passes", "newton_steps", "polished"):
        assert_array_equal(getattr(found, name), getattr(wanted, name))


def processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with processes() as made:
        yield made


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process solves on one thread, as a worker does: what a tile holds decides the last bits."""
    monkeypatch.setattr("simjax.rows.engines.numpy_engine.cores", lambda: 1)


class Elsewhere(Executor):
    """Runs in this process what could as well run on another machine: all of it is pickled, and no file is seen."""

    def __init__(self) -> None:
        self.sent: list[int] = []  # bytes of each task

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.sent.append(len(pickle.dumps(args)))
        try:
            future.set_result(pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(args))))))
        except Exception as error:
            future.set_exception(error)
        return future


# ---- the same answers --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_thread")
def test_processes_give_the_bits_of_one_process(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    wanted = solve()
    seen: list[simjax.Progress] = []
    found = solve(executor=pool, progress=seen.append)
    assert_same(found, wanted)
    assert found.engine == "numpy, 1 thread a block: in the workers of ProcessPoolExecutor"
    with_history = solve(executor=pool, history=True).history
    assert with_history is not None
    assert_array_equal(with_history.gap[-1], wanted.certificate.relative_gap)
    assert [(told.solved, told.rows, told.stage) for told in seen] == [(k, 40, "executor") for k in (10, 20, 30, 40)]
    stated = {"matching": "exact", "fit_intercept": True, "constraint": simjax.L1Ball(50.0, size=7), "solver": "admm"}
    small = {"design": DESIGN[:8], "targets": TARGETS[:8], **STATED, **stated}
    assert_same(simjax.solve_rows(**small, executor=pool), simjax.solve_rows(**small))


@pytest.mark.usefixtures("one_thread")
def test_a_start_goes_along(pool: ProcessPoolExecutor) -> None:
    problem, first = row_problem(DESIGN, TARGETS, penalty=simjax.L1(0.5)), solve()
    start = Start(dense_rows(first.weights), first.certificate.dual)
    options = SolveOptions(max_memory=MEMORY, solver="admm")
    wanted = solve_problem(problem, options, start=start)
    assert wanted.passes.max() == 0
    assert_same(solve_problem(problem, dataclasses.replace(options, executor=pool), start=start), wanted)


@pytest.mark.usefixtures("one_thread")
def test_a_checkpoint_goes_on_with_and_without_an_executor(
    pool: ProcessPoolExecutor, tmp_path: Path, solves: list[int]
) -> None:
    wanted = solve(checkpoint=tmp_path / "whole", executor=pool)
    assert solves == []
    assert_same(solve(checkpoint=tmp_path / "whole"), wanted)
    assert solves == []
    for number in (1, 3):
        (tmp_path / "whole" / f"block-{number:06d}.safetensors").unlink()
    seen: list[simjax.Progress] = []
    assert_same(solve(checkpoint=tmp_path / "whole", executor=pool, progress=seen.append), wanted)
    assert [told.stage for told in seen] == ["checkpoint", "checkpoint", "executor", "executor"]

    shards = tmp_path / "shards"
    for k in (1, 2):  # of which each has two blocks
        part = solve(checkpoint=shards, shard=(k, 2), executor=pool)
        assert (part.first, len(part.status)) == (20 * (k - 1), 20)
    assert_same(solve(checkpoint=shards), wanted)

    def never() -> Executor:
        raise AssertionError

    assert_same(solve(checkpoint=tmp_path / "whole", executor=never), wanted)  # nobody is needed


def test_threads_solve_too_and_the_users_settings_stay() -> None:
    before = threadpool_info()
    wanted = solve()
    with ThreadPoolExecutor(3) as threads:
        found = solve(executor=threads)
        assert threads.submit(len, "it is still open").result() == 16
    np.testing.assert_allclose(found.weights.toarray(), wanted.weights.toarray(), rtol=0.0, atol=1e-9)
    assert found.converged
    assert threadpool_info() == before
    assert not worker._workspaces


def test_threads_wait_for_one_factorisation_and_do_not_make_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    plain = factor.in_samples

    def slow(design: Any) -> Any:
        made.append(1)
        time.sleep(0.2)
        return plain(design)

    monkeypatch.setattr(factor, "in_samples", slow)
    design = factor.FactoredDesign(DESIGN)
    with ThreadPoolExecutor(3) as threads:
        found = [future.result() for future in [threads.submit(design.itself) for _ in range(3)]]
    assert len(made) == 1
    assert all(design.is_itself(each) for each in found)


def test_without_max_memory_a_block_is_256_rows_for_each_thread(solves: list[int]) -> None:
    targets = np.concatenate([TARGETS] * 15, axis=1)
    for threads, blocks in ((1, [200] * 3), (2, [300] * 2)):
        solves.clear()
        with ThreadPoolExecutor(1) as one:
            found = simjax.solve_rows(DESIGN, targets, penalty=simjax.L1(0.5), executor=Pool(one, threads=threads))
        assert solves == blocks
        assert isinstance(found.weights, np.ndarray)
        assert found.engine.startswith(f"numpy, {threads} thread")


@pytest.mark.usefixtures("one_thread")
def test_a_path_with_refits_uses_one_executor_for_all_its_solves() -> None:
    rng = generator(30)
    weights = [rng.normal(size=(9, 6)) / 3, rng.normal(size=(8, 9)) / 3, rng.normal(size=(3, 8))]
    states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(40, 6)))
    stated: dict[str, Any] = {"alphas": [0.5, 0.05], "refit": ("support", "outputs")}
    stated["max_memory"] = 9 * bytes_per_row((40, 23))
    made: list[Elsewhere] = []

    def make() -> Elsewhere:
        made.append(Elsewhere())
        return made[-1]

    wanted = simjax.path(states, "l1", **stated)
    found = simjax.path(states, "l1", **stated, executor=make)
    assert len(made) == 1
    for ours, theirs in zip(found.fits, wanted.fits, strict=True):
        assert_array_equal(ours.model.to_dense().A, theirs.model.to_dense().A)
        assert_array_equal(ours.certificate.dual, theirs.certificate.dual)
    assert_array_equal(
        simjax.fit(states, "l1", alpha=0.05, executor=make, max_memory=stated["max_memory"]).weights.toarray(),
        simjax.fit(states, "l1", alpha=0.05, max_memory=stated["max_memory"]).weights.toarray(),
    )
    assert len(made) == 2


# ---- where the design is -----------------------------------------------------------------------------------


def test_a_worker_that_sees_no_file_is_sent_the_design_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_workspaces", worker.OrderedDict())
    monkeypatch.setattr(worker, "_mapped", lambda path: None)
    executor = Elsewhere()
    assert solve(executor=executor).converged
    with_design = [sent for sent in executor.sent if sent > DESIGN.nbytes + TARGETS[:, :10].nbytes]
    assert (len(executor.sent), len(with_design)) == (4 + 4, 1)  # the first four only asked for the design
    executor.sent.clear()
    assert solve(executor=executor).converged  # another call, another design
    assert sum(sent > DESIGN.nbytes + TARGETS[:, :10].nbytes for sent in executor.sent) == 1


def test_a_worker_that_sees_the_file_is_sent_its_rows_and_the_file_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_workspaces", worker.OrderedDict())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    executor, wide = Elsewhere(), np.random.default_rng(0).normal(size=(M, 400))
    simjax.solve_rows(
        wide, TARGETS, penalty=simjax.L1(0.5), max_memory=10 * bytes_per_row(wide.shape), executor=executor
    )
    assert len(executor.sent) == 4
    assert max(executor.sent) < 8 * M * 10 + 4000 < wide.nbytes
    assert list(tmp_path.iterdir()) == []


def test_an_executor_that_shares_is_asked_to_once_for_each_design() -> None:
    class Sharing(Elsewhere, SharingExecutor):
        def __init__(self) -> None:
            super().__init__()
            self.shared: list[np.ndarray] = []

        def share(self, array: np.ndarray) -> Any:
            self.shared.append(array)
            return array

    with Pool(Sharing()) as pool:
        problem = row_problem(DESIGN, TARGETS, penalty=simjax.L1(0.5))
        for _ in range(2):
            assert solve_problem(problem, SolveOptions(max_memory=MEMORY, executor=pool)).converged
        assert len(pool.executor.shared) == 1  # type: ignore[attr-defined]
        assert solve(executor=pool).converged  # another array
        assert len(pool.executor.shared) == 2  # type: ignore[attr-defined]


def test_no_room_for_the_design_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=r"could not be written for the workers of executor .*TMPDIR") as caught:
        solve(executor=Elsewhere())
    assert caught.value.errno == 28


# ---- what goes wrong ---------------------------------------------------------------------------------------


def be_killed_once(died: str) -> None:
    """In a worker: the third block kills whoever solves it first."""
    plain = RowBlock.solve

    def dying(block: RowBlock, start: Start | None) -> np.ndarray:
        if np.array_equal(block.problem.targets, TARGETS[:, 20:30]) and not Path(died).exists():
            Path(died).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(block, start)

    RowBlock.solve = dying  # type: ignore[method-assign]


@pytest.mark.usefixtures("one_thread")
def test_a_killed_worker_costs_its_blocks_another_try(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Executor:
        made.append(1)
        spawn, died = multiprocessing.get_context("spawn"), str(tmp_path / "died")
        return ProcessPoolExecutor(1, mp_context=spawn, initializer=be_killed_once, initargs=(died,))

    with pytest.warns(RuntimeWarning, match=r"a worker of ProcessPoolExecutor died .*20 to .* by another"):
        found = solve(executor=make)
    assert (len(made), (tmp_path / "died").exists()) == (2, True)
    assert_same(found, solve())


def test_an_executor_that_cannot_be_made_again_ends_with_an_error_and_the_checkpoint_stays(
    tmp_path: Path, solves: list[int]
) -> None:
    class Dying(Elsewhere):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            if len(self.sent) < 2:
                return super().submit(function, *args, **kwargs)
            future: Future[Any] = Future()
            future.set_exception(BrokenExecutor("gone"))
            return future

    with pytest.raises(RuntimeError, match=r"a worker of Dying died.*; rows 20 to 39 are not solved\. Give executor"):
        solve(executor=Dying(), checkpoint=tmp_path / "folder")
    assert solves == [10, 10]
    solves.clear()
    assert solve(checkpoint=tmp_path / "folder").converged
    assert solves == [10, 10]
    made: list[Dying] = []

    def make() -> Dying:
        made.append(Dying())
        return made[-1]

    with pytest.warns(RuntimeWarning, match="rows 20 to 39 are solved again by another Dying"):
        assert solve(executor=make).converged
    assert len(made) == 2


def test_workers_that_always_die_are_given_up() -> None:
    made: list[int] = []

    class Dead(Elsewhere):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            raise BrokenExecutor("never alive")

    def make() -> Dead:
        made.append(1)
        return Dead()

    for attempts in (1, 3):
        made.clear()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with pytest.raises(RuntimeError, match=rf"died {attempts} times .*; rows 0 to 39 are not solved"):
                solve(executor=Pool(make, attempts=attempts))
        assert len(made) == attempts == 1 + len(told)


def test_an_error_names_the_rows_and_what_came_back_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = RowBlock.solve

    def failing(block: RowBlock, start: Start | None) -> np.ndarray:
        if np.array_equal(block.problem.targets, TARGETS[:, 20:30]):
            raise ArithmeticError("mine")
        return plain(block, start)

    monkeypatch.setattr(RowBlock, "solve", failing)
    with pytest.raises(RuntimeError, match=r"rows 20 to 29 could not be .* of Elsewhere: ArithmeticError: mine") as it:
        solve(executor=Elsewhere(), checkpoint=tmp_path / "folder")
    assert isinstance(it.value.__cause__, ArithmeticError)
    assert len(list((tmp_path / "folder").glob("block-*"))) == 3


def test_a_penalty_that_cannot_be_sent_is_refused_before_any_work(pool: ProcessPoolExecutor) -> None:
    class Local(ByHand):
        pass

    with pytest.raises(TypeError, match="executor sends penalty to its workers, and Local cannot be pickled"):
        solve(penalty=Local(simjax.L1(0.5)), executor=pool, max_memory=None)
    with ThreadPoolExecutor(1) as threads:  # to which nothing is sent
        assert solve(penalty=Local(simjax.L1(0.5)), executor=threads, max_memory=None).converged


def test_what_is_no_executor_and_what_does_not_go_with_one() -> None:
    class Client:
        def submit(self) -> None: ...
        def get_executor(self) -> None: ...

    class Strange(Elsewhere):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            return 3

    with pytest.raises(TypeError, match=r"executor must be a concurrent.futures.Executor, .* got int\."):
        solve(executor=4)
    with pytest.raises(TypeError, match=r"got Client: give its get_executor\(\)\."):
        solve(executor=Client())
    with pytest.raises(TypeError, match=r"executor must be .* got str\."):
        solve(executor=lambda: "nobody")
    with pytest.raises(TypeError, match=r"executor must return futures of concurrent.futures, got int from Strange"):
        solve(executor=Strange())
    with pytest.raises(ValueError, match="workers must be 1 with an executor"):
        solve(executor=Elsewhere(), workers=2, solver="clarabel")
    with pytest.raises(ValueError, match="mesh must be None with an executor"):
        solve(executor=Elsewhere(), mesh=jax.make_mesh((1,), ("rows",)))
    with pytest.raises(TypeError, match="threads must be an integer"):
        Pool(Elsewhere(), threads=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="attempts must be at least 1"):
        Pool(Elsewhere(), attempts=0)


def test_a_forked_worker_is_not_asked_for_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_forked", worker.threading.Event())
    worker._forked.set()
    assert solve(executor=Elsewhere()).converged
    with pytest.raises(RuntimeError, match=r"rows 0 to 9 .* engine='jax' needs JAX, whose threads do not survive"):
        solve(executor=Elsewhere(), engine="jax")


@pytest.mark.slow
def test_a_penalty_of_ones_own_is_sent(pool: ProcessPoolExecutor) -> None:
    own = {"penalty": NonnegativeL1(0.5)}
    found, wanted = solve(executor=pool, **own), solve(**own)
    assert found.converged
    np.testing.assert_allclose(found.weights.toarray(), wanted.weights.toarray(), rtol=0.0, atol=1e-9)


FORKED = """
import multiprocessing, sys, numpy as np, simjax
from concurrent.futures import ProcessPoolExecutor
rng = np.random.default_rng(0)
design, targets = rng.normal(size=(30, 20)), rng.normal(size=(30, 100))
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    assert simjax.solve_rows(design, targets, penalty=simjax.L1(5.0), executor=pool).converged
    assert "jax" not in sys.modules
    try:
        simjax.solve_rows(design, targets, penalty=simjax.L1(5.0), executor=pool, engine="jax")
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.slow
def test_forked_workers_solve_by_numpy_and_refuse_jax() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert "needs JAX, whose threads do not survive a fork, and this worker was forked" in done.stdout, done.stderr
