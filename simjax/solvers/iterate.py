"""The common loop: advance a batch of rows, certify it, freeze what is finished, compact the rest.

Every method offers the same three functions (`start`, `advance`, `candidate`), so this loop is written once. The best
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

from simjax.solvers.canonical import CanonicalRows, relative_gap
from simjax.solvers.factor import Factorisation

Array = Any

CHECK_EVERY = 100  # passes between two certificates


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
        self.gap = np.array(_zero_gap(factorisation, rows)) if not rows.exact else np.full(count, np.inf)
        self.passes = np.zeros(count, dtype=int)
        self.newton_steps = np.zeros(count, dtype=int)
        self.polished = np.zeros(count, dtype=bool)
        self._progress = progress
        self._start = time.perf_counter()

    @property
    def open(self) -> np.ndarray:
        """Indices of the rows that have not reached the tolerance."""
        return np.flatnonzero(~(self.gap <= self.tol))

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


@jax.jit
def _zero_gap(factorisation: Factorisation, rows: CanonicalRows) -> Array:
    zero = jnp.zeros((rows.targets.shape[0], factorisation.basis.shape[0]), rows.targets.dtype)
    return relative_gap(factorisation, rows, zero, rows.targets)


def bucket(count: int, limit: int) -> int:
    """The batch size for `count` rows: 8, 32, 128, … up to `limit`, so that few shapes are ever compiled."""
    size = 8
    while size < count:
        size *= 4
    return min(size, limit)


def padded(index: np.ndarray, size: int) -> np.ndarray:
    """`index` filled up to `size` by repeating its first entry."""
    return np.concatenate([index, np.full(size - index.size, index[0])]) if index.size < size else index


class FirstOrder:
    """A first-order method on the rows still open, resumable between stages."""

    def __init__(self, method: ModuleType, factorisation: Factorisation, rows: CanonicalRows) -> None:
        self.method = method
        self.factorisation = factorisation
        self.all_rows = rows
        self.rows = rows
        self.index = np.arange(rows.targets.shape[0])  # which row each batch entry is; padding repeats one
        self.count = self.index.size
        self.state = method.start(factorisation, rows)

    def run(self, board: Scoreboard, passes: int) -> None:
        """Up to `passes` more passes on the rows still open, certifying every `CHECK_EVERY`."""
        done = 0
        while done < passes and self._compact(board):
            stretch = min(CHECK_EVERY, passes - done)
            self.state = self.method.advance(self.factorisation, self.rows, self.state, passes=stretch)
            done += stretch
            index = self.index[: self.count]
            board.passes[index] += stretch
            board.offer(index, *self.method.candidate(self.factorisation, self.rows, self.state))
            board.report(self.method.__name__.rpartition(".")[2])

    def latest(self) -> tuple[np.ndarray, Array]:
        """The rows of the batch and their present weights."""
        weights, _, _ = self.method.candidate(self.factorisation, self.rows, self.state)
        return self.index[: self.count], np.asarray(weights)[: self.count]

    def sigma(self, index: np.ndarray) -> np.ndarray:
        """10/ρ of the given rows of an ADMM batch, the scale at which Newton's method takes over."""
        sigma = np.full(self.all_rows.targets.shape[0], 10.0)
        sigma[self.index[: self.count]] = 10.0 / np.asarray(self.state.rho)[: self.count, 0]
        return sigma[index]

    def _compact(self, board: Scoreboard) -> bool:
        """Drop the solved rows once that makes the batch smaller; False if none is left."""
        index = self.index[: self.count]
        open_ = np.flatnonzero(~(board.gap[index] <= board.tol))
        if open_.size == 0:
            return False
        size = bucket(open_.size, self.index.size)
        if size < self.index.size:
            keep = padded(open_, size)
            self.state = jax.tree.map(lambda x: x[keep], self.state)
            self.index, self.count = self.index[keep], open_.size
            self.rows = self.all_rows.take(self.index)
        return True
