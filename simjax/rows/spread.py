"""Blocks of rows solved by a pool of workers: handed out, collected, and handed out again where a worker died.

A block takes its own rows along, its targets above all; the design is with the workers (`pool`), and one that does not
have it, nor sees its file, is sent it with a block, once.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from typing import Any

import numpy as np

from simjax._warnings import warn
from simjax.rows import worker
from simjax.rows.attempts import Start
from simjax.rows.blocks import BlockAnswers
from simjax.rows.boxed import unboxed
from simjax.rows.options import SolveOptions
from simjax.rows.penalties import PiecewisePenalty
from simjax.rows.pool import Pool
from simjax.rows.problem import RowProblem
from simjax.rows.threads import one_thread_each
from simjax.rows.workspace import Workspace

# Of the blocks that are handed out and not answered: enough for all workers, and no more than memory holds.
_BLOCKS, _BYTES = 64, 2.0**30


@dataclasses.dataclass(frozen=True)
class Task:
    """A block that waits.

    Attributes:
      number: of the block.
      rows: their numbers, (k,).
      make: its problem and where to begin, made when it is its turn.
    """

    number: int
    rows: np.ndarray
    make: Callable[[], tuple[RowProblem, Start | None]]


def solve_by(
    pool: Pool,
    tasks: Sequence[Task],
    workspace: Workspace,
    options: SolveOptions,
    done: Callable[[int, BlockAnswers], None],
) -> None:
    """Have all tasks solved.

    Args:
      options: those of the worker.
      done: is told the number of each block and its answers, with weights as CSR, in the order in which they come in.

    Raises:
      TypeError: what cannot be pickled: a penalty, of which the message says so.
      RuntimeError: a block that could not be solved, whose rows it names; workers that died too often.
      OSError: no room for the design.
    """
    if not tasks:
        return
    with pool, one_thread_each():  # of this process, in which the workers may be threads
        if not pool.in_threads:
            _check_pickles(tasks[0])
        placed, removal = pool.place(workspace.design)
        if removal is not None and pool.in_threads:
            worker.keep(placed.token, workspace)
            removal.callback(worker.forget, placed.token)
        run = _Run(pool, deque(tasks), placed.design, options, done)
        try:
            while run.waiting or run.at_work:
                run.hand_out()
                run.collect()
        finally:
            for future in run.at_work:
                future.cancel()


class _Run:
    """The tasks that wait and those that are handed out."""

    def __init__(
        self,
        pool: Pool,
        waiting: deque[Task],
        design: np.ndarray,
        options: SolveOptions,
        done: Callable[[int, BlockAnswers], None],
    ) -> None:
        self.pool, self.waiting, self.design, self.options, self.done = pool, waiting, design, options, done
        self.at_work: dict[Future, Task] = {}
        # Workers that had no design and are not sent it yet; what is on its way to one; whether any has arrived.
        self.without: set[str] = set()
        self.shipments: set[Future] = set()
        self.arrived = False
        self.largest = 0  # bytes of a block
        self.breaks = 0  # executors that broke since a block was finished last

    def hand_out(self) -> None:
        """Submit as many tasks as may be out."""
        while self.waiting and len(self.at_work) < max(_BLOCKS, _BYTES // max(self.largest, 1)):
            if self.shipments and not (self.arrived or self.without):
                break  # whoever got a block now would only ask for the design, too
            task = self.waiting[0]
            block: worker.Block | bytes = worker.Block.make(*task.make(), self.options, self.pool.threads)
            if not self.pool.in_threads:
                block = pickle.dumps(block, protocol=5)
                self.largest = max(self.largest, len(block))
            placed = self.pool.place(self.design)[0]
            design = placed.design if self.without else placed.handle
            try:
                future = self.pool.executor.submit(worker.solve_block, placed.token, design, block)
            except BrokenExecutor as error:
                self._replace(error, [])
                continue
            if not isinstance(future, Future):
                raise TypeError(
                    f"executor must return futures of concurrent.futures, got {type(future).__name__} from "
                    f"{self.pool.name}."
                )
            self.at_work[future] = self.waiting.popleft()
            if self.without:
                self.without.pop()
                self.shipments.add(future)

    def collect(self) -> None:
        """Wait until blocks come back, or a worker's death is heard of."""
        broken: BrokenExecutor | None = None
        failed: tuple[Task, BaseException] | None = None
        lost: list[Task] = []
        done = wait(self.at_work, return_when=FIRST_COMPLETED).done if self.at_work else set()
        while done:
            for future in sorted(done, key=lambda future: self.at_work[future].number):
                task, shipped = self.at_work.pop(future), future in self.shipments
                self.shipments.discard(future)
                try:
                    found = future.result()
                except BrokenExecutor as error:
                    broken = error
                    lost.append(task)
                except (Exception, CancelledError) as error:
                    failed = failed or (task, error)
                else:
                    self.arrived |= shipped
                    self._take(task, found)
            # A broken executor answers all that it was given with that.
            done = wait(self.at_work).done if broken is not None else set()
        if failed is not None:  # raised once all that came back is taken
            task, reason = failed
            raise RuntimeError(
                f"{_words([task])} could not be solved in a worker of {self.pool.name}: "
                f"{type(reason).__name__}: {reason}"
            ) from reason
        if broken is not None:
            self._replace(broken, lost)

    def _take(self, task: Task, found: BlockAnswers | str) -> None:
        if isinstance(found, str):
            self.without.add(found)
            self.waiting.appendleft(task)
        else:
            self.breaks = 0
            self.done(task.number, found)

    def _replace(self, error: BrokenExecutor, lost: list[Task]) -> None:
        self.breaks += 1
        name = self.pool.name
        if self.breaks >= self.pool.attempts:
            raise RuntimeError(
                f"workers of {name} died {self.breaks} times with no block finished in between; "
                f"{_words([*lost, *self.waiting])} are not solved."
            ) from error
        if not self.pool.replace():
            raise RuntimeError(
                f"a worker of {name} died, which breaks it; {_words([*lost, *self.waiting])} are not solved. Give "
                "executor a function that makes one, e.g. lambda: ProcessPoolExecutor(...): then another is made, and "
                "they are solved again."
            ) from error
        why = str(error).partition("\n")[0]
        warn(f"a worker of {name} died ({why}): {_words(lost)} are solved again by another {name}.", RuntimeWarning)
        self.waiting.extend(lost)  # last: should one of them be the reason, the others are finished first


def _words(tasks: list[Task]) -> str:
    """The rows of tasks, as ranges."""
    numbers = np.sort(np.concatenate([task.rows for task in tasks])) if tasks else np.zeros(0, dtype=int)
    if numbers.size == 0:
        return "no rows"
    ranges = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return "rows " + ", ".join(f"{part[0]} to {part[-1]}" for part in ranges)


def _check_pickles(task: Task) -> None:
    penalty: Any = unboxed(task.make()[0].penalty)
    if isinstance(penalty, PiecewisePenalty):
        return
    try:
        pickle.dumps(penalty, protocol=5)
    except Exception as error:  # whatever its __reduce__ raises
        raise TypeError(
            f"executor sends penalty to its workers, and {type(penalty).__name__} cannot be pickled ({error}): define "
            "its class at the top of a module that they can import."
        ) from error
