"""Which method runs when: the single methods by name, and the portfolio behind solver="auto".

auto:  one linear solve where the objective is quadratic; ADMM on all rows; an active-set polish of each row whose signs
have settled, from which ADMM goes on where that is better than its own point; an interior-point method with crossover
for those that have not settled after a bounded number of passes. Each stage only sees the rows that are still open;
rows without penalty and ball only see the linear solve.

Passes are in float32 where that is enough; every judgement, polish and interior point is in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from simjax.rows.answers import RowAnswers
from simjax.rows.boxed import box_of, piecewise
from simjax.rows.conjugate import flat_coordinates
from simjax.rows.engines import Engine
from simjax.rows.engines.numpy_engine import NumpyEngine
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.progress import Reporter
from simjax.rows.solvers import admm
from simjax.rows.solvers.canonical import CanonicalRows
from simjax.rows.solvers.dual_newton import InvertibleGram, invertible_gram
from simjax.rows.solvers.factor import Factorisation
from simjax.rows.solvers.first_order import CHECK_EVERY, FirstOrder, first_order_method, judged_points
from simjax.rows.solvers.linear import Gram
from simjax.rows.solvers.polish import Signs
from simjax.rows.solvers.tiles import (
    by_augmented_lagrangian,
    by_dual_newton,
    by_interior_point,
    gram_of,
    on_working_sets,
    polished,
)
from simjax.rows.solvers.working_set import Columns

_EXACT = 1e-12  # a gap that no polish need lower
_RANK_OF_A_CHECK, _CHECKS, _FEW_ROWS = 50, (2, 16), 4  # see `Stages.handover`
_LARGEST_RANK = 3000  # beyond, a system of a second-order method takes longer than thousands of passes
# The least eigenvalue of KᵀK for Newton's method on the dual: from least squares, and from where so many passes came.
_FOR_NO_START, _FOR_A_START, _WARM = 1e-9, 1e-11, 2 * CHECK_EVERY
_NEWTON_ARRAYS = 40  # of a row in Newton's method on the dual, of d numbers each
_SYSTEM_BYTES = 2**30  # a support with a larger system is left as it is: that of an early pass on a wide design
_PILOT = 8  # rows on which working sets are tried before all others
_ROUNDING_AT_MOST = 1e-4  # a larger gap is more than rounding, whatever a method says of its active set


def run(
    solver: str,
    engine: Engine,
    factorisation: Factorisation,
    rows: CanonicalRows,
    board: RowAnswers,
    max_iters: int,
    reporter: Reporter,
    *,
    single: bool,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    impossible: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Bring the rows of `board` to its tolerance, or spend `max_iters` passes on those that resist.

    Args:
      single: whether first-order passes may be in float32.
      start: weights (R, d) and dual points (R, r) to begin from.
      impossible: which of some rows, (k,), are proved to have no solution; asked once, of what is open by then.
    """
    stage = Stages(engine, factorisation, rows, board, reporter, impossible=impossible)
    if not rows.exact:  # w = 0, or what the ball asks for instead, with the targets as dual point
        stage.offer(board.open, board.weights, board.dual)
    if board.open.size == 0:
        return
    if start is not None:
        start = stage.offer(np.arange(board.count), *start)
    if solver == "auto":
        _auto(stage, max_iters, start, single)
    else:
        first_order = stage.first_order(first_order_method(solver), np.float64)
        if start is not None:
            first_order.restart(np.arange(board.count), *start)
        handover = max_iters if impossible is None else min(stage.handover, max_iters)
        first_order.run(board, handover, reporter)
        stage.give_up()
        first_order.run(board, max_iters - handover, reporter)


def sparse(
    engine: Engine,
    factorisation: Factorisation,
    rows: CanonicalRows,
    board: RowAnswers,
    start: np.ndarray | None,
    reporter: Reporter,
) -> None:
    """Working sets, if they are what solves most of a few rows; as far as they go.

    Args:
      start: weights (R, d) to begin from.
    """
    columns = Columns.of((factorisation.basis * factorisation.singular_values).T)
    pilot = np.unique(np.linspace(0, board.count - 1, _PILOT).astype(int))
    widths = (board.weights.shape[1], board.dual.shape[1], None)
    by_row = (rows, board.weights if start is None else start)
    for index in (pilot, np.setdiff1d(np.arange(board.count), pilot)):
        if index.size:
            found = engine.collect(on_working_sets, (columns,), by_row, index, widths=widths, tol=board.tol)
            solved = board.offer(index, *found)
            board.report(reporter, "working_sets")
            if np.count_nonzero(solved) <= 0.5 * solved.size:
                return


def refine(
    engine: Engine,
    factorisation: Factorisation,
    samples: Factorisation,
    rows: CanonicalRows,
    board: RowAnswers,
    guess: np.ndarray,
    reporter: Reporter,
) -> None:
    """Polish weights (R, d) with systems of one factorisation and residuals of another, `FactoredDesign.itself`.

    Each refinement step of a polish begins with its residual: that is where the digits come from, the systems only have
    to be near.
    """
    unit = float(factorisation.scale) / float(samples.scale)
    stage = Stages(engine, samples, rows, board, reporter, lambda: gram_of(factorisation, unit))
    everything = np.arange(board.count)
    stage.offer(everything, guess, np.zeros_like(board.dual))
    stage.augmented_lagrangian()
    stage.polish(everything, guess)


def _auto(stage: Stages, max_iters: int, start: tuple[np.ndarray, np.ndarray] | None, single: bool) -> None:
    _passes(stage, max_iters, start, single)
    stage.finish()


def _passes(stage: Stages, max_iters: int, start: tuple[np.ndarray, np.ndarray] | None, single: bool) -> None:
    board = stage.board
    stage.closed_form()
    stage.dual_newton(None if start is None else start[0], _FOR_NO_START)
    if start is not None:  # where it is better, from the solution of this problem on the signs of that point
        stage.polish(board.open, start[0])
        start = board.weights, board.dual
    if board.open.size == 0:
        return
    first_order = stage.first_order(admm, np.float32 if single else np.float64)
    if start is not None:
        first_order.restart(np.arange(board.count), *start)
    signs = Signs.of(board, stage.host[1])
    passes, again = 0, 0
    while passes < max_iters and board.open.size:
        stretch = min(CHECK_EVERY, max_iters - passes)
        first_order.run(board, stretch, stage.reporter)
        passes += stretch
        stage.polish_settled(first_order, signs)
        if passes == _WARM:
            stage.dual_newton(first_order.weights, _FOR_A_START)
        if board.open.size and passes >= (again or stage.handover):
            stage.augmented_lagrangian()
            stage.interior_point()
            if not again:
                stage.give_up()
            again = 8 * passes
            if first_order.dtype == np.float32 and board.open.size:  # what resists gets passes in full precision
                first_order = stage.first_order(admm, np.float64)
                first_order.restart(board.open, board.weights, board.dual)


class Stages:
    """The steps of the portfolio on one batch of rows.

    Args:
      factorisation, rows: in float64, on the host.
      make_gram: makes the KᵀK of the systems; None means that of `factorisation`.
    """

    def __init__(
        self,
        engine: Engine,
        factorisation: Factorisation,
        rows: CanonicalRows,
        board: RowAnswers,
        reporter: Reporter,
        make_gram: Callable[[], Gram] | None = None,
        impossible: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.make_gram = make_gram or (lambda: gram_of(factorisation))
        self.engine, self.board, self.reporter, self.impossible = engine, board, reporter, impossible
        self.host = factorisation, rows
        self.shared, self.rows = engine.share(factorisation), engine.spread(rows)
        self.widths = (board.weights.shape[1], board.dual.shape[1], None)

    @functools.cached_property
    def host_gram(self) -> Gram:
        """KᵀK, made when the first system needs it."""
        return self.make_gram()

    @functools.cached_property
    def gram(self) -> Gram:
        """KᵀK where the engine works."""
        return self.engine.share(self.host_gram)

    def first_order(self, method: ModuleType, dtype: Any) -> FirstOrder:
        """A first-order method at its start, in numbers of the given type."""
        host, placed, exactly = self.host, (self.shared, self.rows), (self.shared, self.rows)
        if dtype != np.float64:
            host = host[0].astype(dtype), host[1].astype(dtype)
            placed = self.engine.share(host[0]), self.engine.spread(host[1])
        state = self.engine.spread(method.start(*host))
        return FirstOrder(method, self.engine, *placed, state, exactly, self.board)

    @property
    def has_polish(self) -> bool:
        """Whether there are KKT equations to solve: not under exact matching, nor for a penalty of the user's own."""
        return not self.host[1].exact and piecewise(self.host[1].penalty) is not None

    def closed_form(self) -> None:
        """Ridge regression and least squares: one linear solve, right wherever the ball turns out not to bind.

        The polish of the full support is that solve: with slopes zero there are no signs to guess.
        """
        rows = self.host[1]
        penalty: Any = piecewise(rows.penalty)
        if not self.has_polish or np.any(penalty.slope) or np.any(penalty.knot):
            return
        guess = np.full(self.board.weights.shape, 1e-100)
        if rows.support is not None:
            guess = guess * rows.support
        self.polish(self.board.open, guess)
        # Where nothing at all is said of the weights, passes end no better than this.
        self.board.given_up = np.all(flat_coordinates(rows.penalty, rows.bound, guess.shape) | (guess == 0.0), axis=1)

    @functools.cached_property
    def inverse(self) -> InvertibleGram | None:
        """KᵀK and its inverse, where it has one that the engine can use."""
        bound, boxed = self.host[1].bound, box_of(self.host[1].penalty) is not None
        if (
            self.engine.name != "numpy"
            or not self.has_polish
            or boxed
            or (bound is not None and bound.tilt is not None)
        ):
            return None
        return invertible_gram(self.host[0], lambda: self.systems[1])

    def dual_newton(self, start: np.ndarray | None, least: float) -> None:
        """Newton's method on the dual from weights (R, d), where no eigenvalue of KᵀK, of norm one, is below `least`.

        On a few rows first, for a trial.
        """
        board, (factorisation, rows), index = self.board, self.host, self.board.open
        if index.size == 0 or factorisation.singular_values[-1] ** 2 < least or self.inverse is None:
            return
        shared, by_row = self.inverse, (rows, start)
        few = np.unique(np.linspace(0, index.size - 1, _PILOT).astype(int))
        for part in (index[few], np.delete(index, few)):
            if part.size:
                *found, steps, ended = self.engine.collect(
                    by_dual_newton,
                    (shared, factorisation),
                    by_row,
                    part,
                    widths=(*self.widths, None, None),
                    row_bytes=8 * _NEWTON_ARRAYS * self.widths[0],
                )
                solved = board.offer(part, *found)
                board.newton_steps[part] += steps
                board.settled[part] = ended & (found[2] <= _ROUNDING_AT_MOST)
                board.polished[part] |= solved
                board.report(self.reporter, "dual_newton")
                if np.count_nonzero(solved) <= 0.5 * solved.size:
                    return

    def offer(self, index: np.ndarray, weights: np.ndarray, dual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Make weights (R, d) of the rows `index` feasible, judge and offer them; all weights and dual points then."""
        by_row = (self.rows, self.engine.spread((weights, dual)))
        found = self.engine.collect(judged_points, (self.shared,), by_row, index, widths=self.widths)
        self.board.offer(index, *found)
        weights, dual = weights.copy(), dual.copy()
        weights[index], dual[index] = found[0], found[1]
        return weights, dual

    def polish_settled(self, first_order: FirstOrder, signs: Signs) -> None:
        """Polish the open rows with settled signs; those it improves without solving them go on from there."""
        board, index = self.board, self.board.open
        if index.size == 0 or not self.has_polish:
            return
        chosen = index[signs.settled(index, first_order.weights[index], first_order.gap[index])]
        weights, dual, gap = self.polish(chosen, first_order.weights)
        better = (gap < first_order.gap[chosen]) & ~(gap <= board.tol)
        first_order.restart(chosen[better], weights, dual)
        board.report(self.reporter, "polish")

    def polish(self, index: np.ndarray, guess: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Polish the rows `index` from the `guess` (R, d), and offer the result to the board.

        Returns:
          Weights (R, d) and dual points (R, r) that hold the result in these rows, and its gaps (k,).
        """
        weights, dual = guess.copy(), np.zeros_like(self.board.dual)
        gap = np.full(index.size, np.inf)
        if index.size == 0 or not self.has_polish:
            return weights, dual, gap
        active = np.count_nonzero(guess[index], axis=1)
        placed = self.engine.spread((guess,))
        sizes = self.engine.system_sizes(active, guess.shape[1])
        for size in np.unique(sizes[8.0 * sizes.astype(float) ** 2 <= _SYSTEM_BYTES]):
            part = index[sizes == size]
            shared, by_row, row_bytes = (self.shared, self.gram), (self.rows, placed), 8 * int(size) ** 2
            (weights[part],) = self.engine.collect(
                polished, shared, by_row, part, widths=self.widths[:1], row_bytes=row_bytes, size=int(size)
            )
        # What the residual proves is enough; compiled, a dual point too many is cheaper than one program more.
        other = None if self.engine.name == "numpy" else self.board.dual
        points = self.engine.spread((weights, other))
        found = self.engine.collect(judged_points, (self.shared,), (self.rows, points), index, widths=self.widths)
        weights[index], dual[index], gap = found
        before = self.board.gap[index] <= self.board.tol
        self.board.polished[index] |= self.board.offer(index, weights[index], dual[index], gap) & ~before
        return weights, dual, gap

    def give_up(self) -> None:
        """Spend nothing more on rows that are proved to have no solution."""
        index = self.board.open
        if self.impossible is not None and index.size:
            self.board.given_up[index] |= self.impossible(index)

    def finish(self) -> None:
        """Polish what passes have solved: where their signs are right, it is exact to rounding, whatever the tile."""
        board = self.board
        rest = np.flatnonzero((board.gap <= board.tol) & (board.gap > _EXACT) & ~board.polished)
        self.polish(rest, board.weights)

    @property
    def handover(self) -> int:
        """Passes after which the rows still open go to the interior-point method: what it costs, in passes, by flops.

        A pass is 4dr flops, an interior-point step about r²d, and a row needs some fifteen of them. But a pass of a few
        rows takes as long as one of `_FEW_ROWS`.
        """
        width, rank = self.widths[:2]
        share = min(self.board.open.size / _FEW_ROWS, 1.0)
        return CHECK_EVERY * int(np.clip(share * min(rank, width) // _RANK_OF_A_CHECK, *_CHECKS))

    @functools.cached_property
    def systems(self) -> tuple[np.ndarray, Any]:
        """Kᵀ (d, r), contiguous, and KᵀK, on the host."""
        factorisation = self.host[0]
        transpose = np.asarray(factorisation.basis) * np.asarray(factorisation.singular_values)
        return transpose, self.host_gram.matrix

    def augmented_lagrangian(self) -> None:
        """With groups, Newton's method on augmented Lagrangians for the open rows; on the host, whatever the engine."""
        board, engine = self.board, NumpyEngine()
        index = board.open[np.count_nonzero(board.weights[board.open], axis=1) <= _LARGEST_RANK]
        if index.size == 0 or self.host[1].exact or not isinstance(self.host[1].penalty, GroupPenalty):
            return
        with engine.session():
            *found, steps = engine.collect(
                by_augmented_lagrangian,
                (self.host[0], self.host_gram),
                (self.host[1], (board.weights, board.dual)),
                index,
                widths=(*self.widths, None),
                tol=board.tol,
            )
        board.newton_steps[index] += steps
        board.offer(index, *found)
        board.report(self.reporter, "augmented_lagrangian")

    def interior_point(self) -> None:
        """The rows that passes have not settled, in a bounded number of steps; on the host, whatever the engine."""
        board, index, rank = self.board, self.board.open, self.widths[1]
        if piecewise(self.host[1].penalty) is None or rank > _LARGEST_RANK:
            return
        engine = NumpyEngine()
        with engine.session():
            shared, row_bytes = (*self.systems, self.host[0]), 8 * rank * rank
            *found, steps = engine.collect(
                by_interior_point,
                shared,
                (self.host[1],),
                index,
                widths=(*self.widths, None),
                row_bytes=row_bytes,
                tol=board.tol,
            )
        board.newton_steps[index] += steps
        board.offer(index, *found)
        board.report(self.reporter, "interior_point")
