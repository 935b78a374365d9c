"""RowAnswers: the best that is known of every row, filled in place from the first pass to the certificate."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from simjax.rows.progress import Reporter


@dataclasses.dataclass
class RowAnswers:
    """Weights, dual points and gaps of rows, in whatever units they are being solved, and what they cost.

    Attributes:
      weights: w, (R, d).
      dual: y, (R, r).
      gap: relative gap, (R,); inf where nothing is known.
      tol: the gap at which a row is solved.
      passes, newton_steps: spent on each row, (R,).
      polished: rows that the active-set polish solved, (R,).
      given_up: rows that nothing more is tried on, (R,).
      settled: rows whose active set its own equations confirm, (R,): what is left of their gap is rounding.
    """

    weights: np.ndarray
    dual: np.ndarray
    gap: np.ndarray
    tol: float
    passes: np.ndarray
    newton_steps: np.ndarray
    polished: np.ndarray
    given_up: np.ndarray
    settled: np.ndarray

    @classmethod
    def empty(cls, rows: int, width: int, equations: int, tol: float) -> RowAnswers:
        """Nothing known: weights and dual points 0, gaps inf."""
        return cls(
            weights=np.zeros((rows, width)),
            dual=np.zeros((rows, equations)),
            gap=np.full(rows, np.inf),
            tol=tol,
            passes=np.zeros(rows, dtype=int),
            newton_steps=np.zeros(rows, dtype=int),
            polished=np.zeros(rows, dtype=bool),
            given_up=np.zeros(rows, dtype=bool),
            settled=np.zeros(rows, dtype=bool),
        )

    @property
    def count(self) -> int:
        """R."""
        return self.gap.size

    @property
    def open(self) -> np.ndarray:
        """Numbers of the rows that have not reached the tolerance and still may."""
        return np.flatnonzero(~(self.gap <= self.tol) & ~self.given_up & ~self.settled)

    def offer(self, index: np.ndarray, weights: Any, dual: Any, gap: Any) -> np.ndarray:
        """Keep what is better than before for the rows `index`, (k,); which of them are now solved."""
        gap = np.asarray(gap, dtype=np.float64)
        # A gap of 1 is what y = 0 proves of anything: among such, the latest weights are the better guess.
        better = (gap < self.gap[index]) | ((gap == self.gap[index]) & (gap >= 1.0))
        if better.any():
            chosen = index[better]
            self.weights[chosen] = np.asarray(weights)[better]
            self.dual[chosen] = np.asarray(dual)[better]
            self.gap[chosen] = gap[better]
        return self.gap[index] <= self.tol

    def add_costs(self, index: np.ndarray, other: RowAnswers) -> None:
        """Count what `other`, the answers to the rows `index`, took."""
        self.passes[index] += other.passes
        self.newton_steps[index] += other.newton_steps
        self.polished[index] |= other.polished

    def report(self, reporter: Reporter, stage: str) -> None:
        """Tell how far these rows are."""
        reporter.note(self.gap, self.passes)
        solved = int(np.count_nonzero(self.gap <= self.tol))
        reporter(solved, float(self.gap.max(initial=0.0)), int(self.passes.max(initial=0)), stage)
