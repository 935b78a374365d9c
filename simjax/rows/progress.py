"""What a progress callback is told while rows are solved."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np

from simjax.rows.history import Checks


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a progress callback is told.

    Attributes:
      rows: how many rows there are.
      solved: how many have reached the tolerance.
      worst_gap: the largest relative gap.
      passes: passes over the design so far (Newton steps are not passes).
      seconds: since the solve began.
      stage: what is running, e.g. "admm", "polish", "interior_point"; "certified", "executor" or "checkpoint" where a
        block is done, by itself, by a worker, or before.

    Examples:
      >>> import numpy as np, simjax
      >>> told = []
      >>> solution = simjax.solve_rows(np.eye(2), [[3.0], [1.0]], penalty=simjax.L1(1.0), progress=told.append)
      >>> told[-1].solved, told[-1].rows
      (1, 1)
    """

    rows: int
    solved: int
    worst_gap: float
    passes: int
    seconds: float
    stage: str


ProgressCallback = Callable[[Progress], None]


class Reporter:
    """Tells a callback how far all rows of a solve are, whichever of them are being worked on.

    Args:
      callback: or None, for whom nothing is done.
      rows: how many rows the solve has.

    Attributes:
      done: rows that are no longer worked on; whoever works on a part of the rows counts the others here.
      checks: takes down the checks of the block at work, or None.
    """

    def __init__(self, callback: ProgressCallback | None, rows: int) -> None:
        self.callback, self.rows, self.done = callback, rows, 0
        self.checks: Checks | None = None
        self._index, self._spent = np.arange(0), np.zeros(0, dtype=int)
        self._began = time.perf_counter()

    @contextlib.contextmanager
    def only(self, index: np.ndarray, spent: np.ndarray) -> Iterator[None]:
        """While only the rows `index` of the block are worked on, (k,).

        Args:
          spent: passes that each row of the block has taken before, (R,).
        """
        before, others = (self._index, self._spent), spent.size - index.size
        self._index, self._spent = index, spent[index].copy()
        self.done += others
        try:
            yield
        finally:
            self.done -= others
            self._index, self._spent = before

    def note(self, gap: np.ndarray, passes: np.ndarray) -> None:
        """A check of the rows at work: relative gaps (k,), and passes since they are."""
        if self.checks is not None:
            self.checks.note(self._index, gap, self._spent + passes)

    def __call__(self, solved: int, worst_gap: float, passes: int, stage: str) -> None:
        """`solved` of the rows at work have reached the tolerance."""
        if self.callback is not None:
            seconds = time.perf_counter() - self._began
            self.callback(Progress(self.rows, self.done + solved, worst_gap, passes, seconds, stage))
