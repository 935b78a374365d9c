"""The common loop of the first-order methods: advance the open rows, judge them, offer what was found.

Every method is a module with the same functions (`start`, `restart`, `advance`, `point`), so this loop is written once.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np

from simjax._typing import Array
from simjax.rows.answers import RowAnswers
from simjax.rows.engines import Engine
from simjax.rows.progress import Reporter
from simjax.rows.solvers.canonical import CanonicalRows, judged_inside
from simjax.rows.solvers.factor import Factorisation

CHECK_EVERY = 63  # passes between two certificates: three rounds of ADMM


def first_order_method(name: str) -> ModuleType:
    """The module of a first-order method."""
    return importlib.import_module(f"simjax.rows.solvers.{name}")


class FirstOrder:
    """A first-order method on rows, resumable between stages.

    Args:
      method: a module with the functions above.
      factorisation, rows: as the engine has them, in the number type of the passes.
      state: where the method starts, likewise.
      exactly: factorisation and rows in float64, for the judgement.

    Attributes:
      weights, gap: (R, d) and (R,), what the last check of each row found.
    """

    def __init__(
        self,
        method: ModuleType,
        engine: Engine,
        factorisation: Factorisation,
        rows: CanonicalRows,
        state: Any,
        exactly: tuple[Factorisation, CanonicalRows],
        board: RowAnswers,
    ) -> None:
        self.method, self.engine, self.factorisation, self.rows = method, engine, factorisation, rows
        self.state, self.exactly = state, exactly
        self.dtype = factorisation.basis.dtype
        self.weights = np.zeros_like(board.weights)
        self.gap = np.full(board.count, np.inf)

    def run(self, board: RowAnswers, passes: int, reporter: Reporter) -> None:
        """Up to `passes` more passes on the rows still open, judged every `CHECK_EVERY`."""
        done, widths = 0, (board.weights.shape[1], board.dual.shape[1], None)
        while done < passes and (index := board.open).size:
            stretch = min(CHECK_EVERY, passes - done)
            shared = self.factorisation, np.int32(stretch)
            self.state = self.engine.update(self.state, _advance, shared, (self.rows,), index, method=self.method)
            done += stretch
            board.passes[index] += stretch
            weights, dual, gap = self.engine.collect(
                judged_points, self.exactly[:1], (self.exactly[1], self.method.point(self.state)), index, widths=widths
            )
            self.weights[index], self.gap[index] = weights, gap
            board.offer(index, weights, dual, gap)
            board.report(reporter, self.method.__name__.rpartition(".")[2])

    def restart(self, index: np.ndarray, weights: np.ndarray, dual: np.ndarray) -> None:
        """Go on from given weights (R, d) and dual points (R, r) in the rows `index`."""
        if index.size:
            points = self.engine.spread((weights.astype(self.dtype), dual.astype(self.dtype)))
            self.state = self.engine.update(
                self.state, _restart, (self.factorisation,), (points,), index, method=self.method
            )


def _advance(factorisation: Factorisation, passes: int, rows: CanonicalRows, state: Any, *, method: ModuleType) -> Any:
    return method.advance(factorisation, rows, state, passes=passes)


def _restart(factorisation: Factorisation, points: tuple[Array, Array], state: Any, *, method: ModuleType) -> Any:
    return method.restart(factorisation, state, *points)


def judged_points(factorisation: Factorisation, rows: CanonicalRows, points: tuple[Array, Array | None]) -> tuple:
    """`judged_inside` of weights and dual points: the one program that judges, whoever found them."""
    return judged_inside(factorisation, rows, *points)
