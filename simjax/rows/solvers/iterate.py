"""The common loop: advance a batch of rows, certify it, freeze what is finished, compact the rest.

Every method offers the same functions (`start`, `restart`, `advance`, `point`), so this loop is written once. The best
weights of each row so far are kept in a `Scoreboard`; a row whose gap is small enough leaves the batch at once.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from simjax.rows.solvers.canonical import CanonicalRows, judge
from simjax.rows.solvers.devices import device_count, over_rows, spread
from simjax.rows.solvers.factor import Factorisation

Array = Any

CHECK_EVERY = 63  # passes between two certificates: three rounds of ADMM


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a progress callback is told.

    Attributes:
      rows: how many rows there are.
      solved: how many have reached the tolerance.
      worst_gap: the largest relative gap.
      passes: passes over the design so far (Newton steps are not passes).
      seconds: since the solve began.
      stage: what is running, e.g. "admm", "polish", "newton".
    """

    rows: int
    solved: int
    worst_gap: float
    passes: int
    seconds: float
    stage: str


ProgressCallback = Callable[[Progress], None]


class Scoreboard:
    """Best weights, dual point and relative gap of every row so far, in canonical units."""

    def __init__(
        self, factorisation: Factorisation, rows: CanonicalRows, tol: float, progress: ProgressCallback | None
    ) -> None:
        count, width = rows.targets.shape[0], factorisation.basis.shape[0]
        self.tol = tol
        self.weights = np.zeros((count, width))
        self.dual = np.array(rows.targets)
        self.gap = np.full(count, np.inf)
        self.passes = np.zeros(count, dtype=int)
        self.newton_steps = np.zeros(count, dtype=int)
        self.polished = np.zeros(count, dtype=bool)
        self.given_up = np.zeros(count, dtype=bool)  # rows that nothing in this run can improve
        self._progress = progress
        self._start = time.perf_counter()

    @property
    def open(self) -> np.ndarray:
        """Indices of the rows that have not reached the tolerance and still may."""
        return self.open_among(np.arange(self.gap.size))

    def open_among(self, index: np.ndarray) -> np.ndarray:
        """Positions in `index` of the rows that are open."""
        return np.flatnonzero(~(self.gap[index] <= self.tol) & ~self.given_up[index])

    def offer(self, index: np.ndarray, weights: Array, dual: Array, gap: Array) -> np.ndarray:
        """Keep what is better than before; returns which of `index` are now solved."""
        gap = np.asarray(gap)[: index.size]
        # A gap of 1 is what y = 0 proves of anything: among such, the latest weights are the better guess.
        better = (gap < self.gap[index]) | ((gap == self.gap[index]) & (gap >= 1.0))
        if better.any():
            chosen = index[better]
            self.weights[chosen] = np.asarray(weights)[: index.size][better]
            self.dual[chosen] = np.asarray(dual)[: index.size][better]
            self.gap[chosen] = gap[better]
        return self.gap[index] <= self.tol

    def report(self, stage: str) -> None:
        if self._progress is not None:
            self._progress(
                Progress(
                    rows=self.gap.size,
                    solved=int(np.count_nonzero(self.gap <= self.tol)),
                    worst_gap=float(self.gap.max(initial=0.0)),
                    passes=int(self.passes.max(initial=0)),
                    seconds=time.perf_counter() - self._start,
                    stage=stage,
                )
            )


def bucket(count: int, limit: int, devices: int = 1) -> int:
    """The batch size for `count` rows: 8, 32, 64, 128, … up to `limit`, so that few shapes are ever compiled.

    With more devices than one it is rounded up to a multiple of them.
    """
    size = 8
    while size < count:
        size = max(2 * size, 32)
    return -(-min(size, limit) // devices) * devices


def padded(index: np.ndarray, size: int) -> np.ndarray:
    """`index` filled up to `size` by repeating its first entry."""
    return np.concatenate([index, np.full(size - index.size, index[0])]) if index.size < size else index


@jax.jit
def _gathered(tree: Any, index: Array) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


class FirstOrder:
    """A first-order method on the rows still open, resumable between stages.

    Attributes:
      index: (batch,) which row each batch entry is; entries from `count` on are padding.
      weights, gap: (count, d) and (count,), what the last check of those rows found.
    """

    def __init__(
        self, method: ModuleType, factorisation: Factorisation, rows: CanonicalRows, mesh: Mesh | None = None
    ) -> None:
        self.method = method
        self.mesh = mesh
        self.factorisation = factorisation
        self.all_rows = rows
        self.count = rows.targets.shape[0]
        devices = device_count(mesh)
        self.index = padded(np.arange(self.count), -(-self.count // devices) * devices)
        self.rows = rows if self.index.size == self.count and mesh is None else self._take(self.index)
        self.state = self._call(method.start, self.rows)
        self.weights = np.zeros((self.count, factorisation.basis.shape[0]))
        self.gap = np.full(self.count, np.inf)

    def run(self, board: Scoreboard, passes: int) -> None:
        """Up to `passes` more passes on the rows still open, certifying every `CHECK_EVERY`."""
        done = 0
        while done < passes and self._compact(board):
            stretch = min(CHECK_EVERY, passes - done)
            self.state = self._call(self.method.advance, self.rows, self.state, passes=stretch)
            done += stretch
            index = self.index[: self.count]
            board.passes[index] += stretch
            z, y = self.method.point(self.state)
            found = self._call(judge, self.rows, z, jnp.zeros_like(self.rows.targets) if y is None else y)
            weights, dual, gap = (np.asarray(x)[: self.count] for x in (z, *found))
            self.weights, self.gap = weights, gap
            board.offer(index, weights, dual, gap)
            board.report(self.method.__name__.rpartition(".")[2])

    def restart(self, chosen: np.ndarray, weights: np.ndarray, dual: np.ndarray) -> None:
        """Go on from given weights (k, d) and dual points (k, r) in the batch entries `chosen`, (k,)."""
        if chosen.size == 0:
            return
        size = self.index.size
        mask = np.zeros(size, dtype=bool)
        new_weights, new_dual = np.zeros((size, weights.shape[1])), np.zeros((size, dual.shape[1]))
        mask[chosen], new_weights[chosen], new_dual[chosen] = True, weights, dual
        self.state = self._call(self.method.restart, self.state, mask, new_weights, new_dual)

    def _call(self, function: Callable, *by_row: Any, **static: Any) -> Any:
        return over_rows(self.mesh, function, (self.factorisation,), by_row, **static)

    def _take(self, index: np.ndarray) -> CanonicalRows:
        return spread(self.mesh, self.all_rows.take(index))

    def _compact(self, board: Scoreboard) -> bool:
        """Drop the solved rows once that makes the batch smaller; False if none is left."""
        index = self.index[: self.count]
        open_ = board.open_among(index)
        if open_.size == 0:
            return False
        size = bucket(open_.size, self.index.size, device_count(self.mesh))
        if size < self.index.size:
            keep = padded(open_, size)
            if self.mesh is None:
                self.state = _gathered(self.state, keep)
            else:  # by way of the host, so that no device program has to exchange rows
                self.state = spread(self.mesh, jax.tree.map(lambda x: np.asarray(x)[keep], self.state))
            self.index, self.count = self.index[keep], open_.size
            self.rows = self._take(self.index)
        return True
