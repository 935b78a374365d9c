"""Rows over worker processes: Algorithm 1 of the SIM paper, as its Appendix B runs it.

The design lies in shared memory, once; a worker is sent one row at a time and sends back the answer. A worker
that is killed costs the row it had in hand another attempt, and nobody else anything.

Workers are spawned, not forked: a fork copies the locks of JAX's threads in whatever state they are. Like
every program that spawns, a script then needs its `if __name__ == "__main__":`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from simjax.rows.oracles.answer import RowAnswer, solve_row
from simjax.rows.oracles.conic_row import ConicRow, SharedDesign
from simjax.rows.oracles.interface import NONFINITE, oracle_module

# A row that takes its worker down with it this often is given up; so is the run if no worker ever starts.
_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class RowSettings:
    """How rows are solved: the oracle's name, its tolerance and the conic form."""

    oracle: str
    tol: float
    form: str

    def solve(self, design: SharedDesign, row: ConicRow) -> RowAnswer:
        return solve_row(design, row, oracle_module(self.oracle).solve_conic, self.tol, self.form)


def solve_here(
    design: np.ndarray, rows: Iterable[ConicRow], settings: RowSettings, done: Callable[[], None]
) -> list[RowAnswer]:
    """The answers in this process, one row after the other; `done` is called after each."""
    shared, answers = SharedDesign(design), []
    for row in rows:
        answers.append(settings.solve(shared, row))
        done()
    return answers


def solve_in_processes(
    design: np.ndarray,
    rows: Sequence[ConicRow],
    settings: RowSettings,
    workers: int,
    done: Callable[[], None],
) -> list[RowAnswer]:
    """The answers by `workers` processes, in the order of `rows`; `done` is called after each.

    Raises:
      RuntimeError: if the workers cannot be started.
      OSError: if the shared memory is too small for the design.
      Exception: whatever a row raises in a worker.
    """
    check_may_start_workers(workers)
    memory = _reserved(design.nbytes)
    pool = _Pool(rows, (memory.name, design.shape, settings), done)
    try:
        _view(memory, design.shape)[...] = design
        while pool.unanswered:
            pool.staff(min(workers, pool.unanswered))
            pool.hand_out()
            pool.collect()
        return [pool.answers[number] for number in range(len(rows))]
    finally:
        pool.close()
        memory.close()
        memory.unlink()


def check_may_start_workers(workers: int) -> None:
    """Raises a RuntimeError where this process is itself a worker that may not have any."""
    if workers > 1 and multiprocessing.current_process().daemon:
        raise RuntimeError(
            f"workers must be 1 here, got {workers}: this process is a worker of multiprocessing, a daemon, and may "
            "not start others. concurrent.futures.ProcessPoolExecutor makes workers that may."
        )


def _reserved(size: int) -> SharedMemory:
    """Shared memory that is there, not only promised: a page that cannot be had would end the process by a signal."""
    memory = SharedMemory(create=True, size=size)
    place = Path("/dev/shm") / memory.name
    try:
        if place.exists():  # Linux; elsewhere it is reserved on creation
            with place.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        memory.close()
        memory.unlink()
        free = shutil.disk_usage(place.parent).free
        raise OSError(
            error.errno,
            f"workers > 1 share the design in {place.parent}, which has {free / 2**20:.1f} MiB free of the "
            f"{size / 2**20:.1f} MiB needed ({error.strerror}): make it larger (Docker: --shm-size), or pass workers=1",
        ) from error
    return memory


class _Worker:
    """A process, the connection to it, and the number of the row it has in hand."""

    def __init__(self, arguments: tuple) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()  # so that the death of the process is the end of the connection
        self.ready = False
        self.row: int | None = None

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()
        self.process.close()


class _Pool:
    """The workers, the rows that wait for one, and the answers so far."""

    def __init__(self, rows: Sequence[ConicRow], arguments: tuple, done: Callable[[], None]) -> None:
        self.rows, self.arguments, self.done = rows, arguments, done
        self.workers: list[_Worker] = []
        self.answers: dict[int, RowAnswer] = {}
        self.waiting = deque(range(len(rows)))
        self.attempts = [0] * len(rows)
        self.false_starts = 0

    @property
    def unanswered(self) -> int:
        return len(self.rows) - len(self.answers)

    def staff(self, size: int) -> None:
        """Start workers until there are `size` of them."""
        while len(self.workers) < size:
            self.workers.append(_Worker(self.arguments))

    def hand_out(self) -> None:
        """Give every idle worker a row."""
        for worker in self.workers:
            if worker.ready and worker.row is None and self.waiting:
                worker.row = self.waiting.popleft()
                self.attempts[worker.row] += 1
                with contextlib.suppress(OSError):  # it has just died: `collect` will hear of it
                    worker.connection.send(self.rows[worker.row])

    def collect(self) -> None:
        """Wait for news from the workers: ready, an answer, an error, or the end of one."""
        by_connection = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection)):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            if isinstance(message, Exception):
                raise message
            if isinstance(message, RowAnswer):
                self._answer(worker.row, message)
            worker.ready, worker.row, self.false_starts = True, None, 0

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()

    def _answer(self, number: int | None, answer: RowAnswer) -> None:
        assert number is not None
        self.answers[number] = answer
        self.done()

    def _bury(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.stop()
        if not worker.ready:
            self.false_starts += 1
            if self.false_starts >= _ATTEMPTS:
                raise RuntimeError(
                    f"{_ATTEMPTS} worker processes ended before they could start: a script that asks for "
                    "workers > 1 must do so under `if __name__ == '__main__':`, and there must be memory "
                    "enough for them."
                )
        elif worker.row is not None and self.attempts[worker.row] < _ATTEMPTS:
            self.waiting.append(worker.row)
        elif worker.row is not None:
            row = self.rows[worker.row]
            nothing = RowAnswer(
                weights=np.zeros(row.slope.size),
                dual=np.zeros(row.target.size),
                status=NONFINITE,
                solver_status=f"its worker was killed {_ATTEMPTS} times",
            )
            self._answer(worker.row, nothing)


def _view(memory: SharedMemory, shape: tuple[int, int]) -> np.ndarray:
    return np.ndarray(shape, np.float64, buffer=memory.buf)


def _work(connection: Connection, memory_name: str, shape: tuple[int, int], settings: RowSettings) -> None:
    """What a worker process does: say that it is ready, then answer rows until it is told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    threadpool_limits(1)  # the workers are the parallelism
    memory = SharedMemory(memory_name)
    matrix = _view(memory, shape)
    matrix.flags.writeable = False
    design = SharedDesign(matrix)
    connection.send(None)
    with contextlib.suppress(EOFError):  # the parent is gone
        while True:
            row = connection.recv()
            try:
                connection.send(settings.solve(design, row))
            except Exception as error:
                connection.send(error)  # the parent raises it
