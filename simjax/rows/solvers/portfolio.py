"""Which method runs when: the single methods by name, and the portfolio behind solver="auto".

auto:  one linear solve where the objective is quadratic; ADMM on all rows; an active-set polish of each row whose signs
have settled, from which ADMM goes on where that is better than its own point; semismooth Newton for those on which both
stall. Each stage only sees the rows that are still open; rows without penalty and ball only see the linear solve.

What decides between them is what they cost: for a row with k active coordinates of d and a design of rank r, a pass is
4dr flops in large products, a polish or a Newton step at least k³/3 in small factorisations: up to hundreds of passes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from simjax.rows.conjugate import flat_coordinates
from simjax.rows.penalties import PiecewisePenalty
from simjax.rows.solvers import admm, newton, proximal_gradient
from simjax.rows.solvers.canonical import CanonicalRows, feasible, judge
from simjax.rows.solvers.devices import device_count, over_rows, replicate
from simjax.rows.solvers.factor import Factorisation, gram_matrix
from simjax.rows.solvers.iterate import CHECK_EVERY, FirstOrder, Scoreboard, bucket, padded
from simjax.rows.solvers.linear import Gram
from simjax.rows.solvers.polish import polish

Array = Any

SOLVERS = ("auto", "admm", "proximal_gradient")

_SETTLED = 3  # signs that may have changed since the last check for a polish to be worth its price
_PROMISING = 3e-2  # the gap below which it is at the first check, when nothing is known of the signs before
_HANDOVER = 16 * CHECK_EVERY  # passes after which the rows still open go to Newton's method
_NEWTON_STEPS = 200  # Newton steps a row gets before first-order passes have another try
_REGROUP = 12  # Newton steps after which the rows still open are put into batches anew
_CPU_BLOCK_BYTES = 2**22  # of a batch of systems: what a cache holds; the rows of a batch are factorised in turn
_ACCELERATOR_BLOCK_BYTES = 2**28
_GRAM_BYTES = 2**30  # a larger KᵀK is not kept


def run(
    solver: str,
    factorisation: Factorisation,
    rows: CanonicalRows,
    board: Scoreboard,
    max_iters: int,
    *,
    mesh: Mesh | None = None,
    start: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Bring the rows of `board` to its tolerance, or spend `max_iters` passes on those that resist.

    Args:
      mesh: the devices to spread the rows over.
      start: weights (R, d) and dual points (R, r) to begin from.
    """
    stage = _Stages(replicate(mesh, factorisation), rows, board, mesh)
    if not rows.exact:  # w = 0, or what the ball asks for instead, with the targets as dual point
        stage.offer(board.open, np.asarray(feasible(rows, board.weights)), board.dual)
    if board.open.size == 0:
        return
    begin = None if start is None else stage.begin(*start)
    if solver == "auto":
        _auto(stage, max_iters, begin)
    else:
        method = {"admm": admm, "proximal_gradient": proximal_gradient}[solver]
        first_order = FirstOrder(method, stage.factorisation, rows, mesh)
        if begin is not None:
            first_order.restart(np.arange(board.gap.size), *begin)
        first_order.run(board, max_iters)


def refine(
    factorisation: Factorisation, samples: Factorisation, rows: CanonicalRows, board: Scoreboard, guess: np.ndarray
) -> None:
    """Polish weights (R, d) with systems of one factorisation and residuals of another, `Design.itself`.

    Each refinement step of a polish begins with its residual: that is where the digits come from, the systems only have
    to be near.
    """
    stage = _Stages(samples, rows, board, None)
    stage.gram = _Stages(factorisation, rows, board, None).gram
    everything = np.arange(board.gap.size)
    stage.offer(everything, guess, np.zeros_like(board.dual))
    stage.polish(everything, guess)


def _auto(stage: _Stages, max_iters: int, begin: tuple[np.ndarray, np.ndarray] | None) -> None:
    board, rows = stage.board, stage.rows
    stage.closed_form()
    if begin is not None:
        begin = stage.polish_start(*begin)
    first_order = FirstOrder(admm, stage.factorisation, rows, stage.mesh)
    if begin is not None:
        first_order.restart(np.arange(board.gap.size), *begin)
    signs = _Signs.of(board)
    passes, handover = 0, _HANDOVER
    while passes < max_iters and board.open.size:
        stretch = min(CHECK_EVERY, max_iters - passes)
        first_order.run(board, stretch)
        passes += stretch
        stage.polish_settled(first_order, signs)
        if passes >= handover and board.open.size:
            stage.newton(first_order)
            handover = 4 * passes


@dataclasses.dataclass
class _Signs:
    """The signs of each row's weights at the last check and at the last polish, (R, d), as −1, 0, 1; 2 for unknown."""

    checked: np.ndarray
    polished: np.ndarray

    @classmethod
    def of(cls, board: Scoreboard) -> _Signs:
        unknown = np.full(board.weights.shape, 2, dtype=np.int8)
        return cls(unknown, unknown.copy())

    def settled(self, index: np.ndarray, weights: np.ndarray, gap: np.ndarray) -> np.ndarray:
        """Which of the rows `index` are worth a polish now; remembers them as polished."""
        signs = np.sign(weights).astype(np.int8)
        first = self.checked[index, 0] == 2
        changes = np.count_nonzero(signs != self.checked[index], axis=1)
        fresh = np.any(signs != self.polished[index], axis=1)
        worth = fresh & np.where(first, gap <= _PROMISING, changes <= _SETTLED)
        self.checked[index] = signs
        self.polished[index[worth]] = signs[worth]
        return worth


@dataclasses.dataclass
class _Stages:
    """The steps of the portfolio on one batch of rows."""

    factorisation: Factorisation
    rows: CanonicalRows
    board: Scoreboard
    mesh: Mesh | None

    @functools.cached_property
    def gram(self) -> Gram:
        """KᵀK = V S² Vᵀ, made when the first system needs it; K itself where d² numbers are too many."""
        basis, singular = np.asarray(self.factorisation.basis), np.asarray(self.factorisation.singular_values)
        factor = (basis * singular).T
        if 8 * factor.shape[1] ** 2 > _GRAM_BYTES:
            return Gram(None, jax.device_put(factor))
        return Gram(jax.device_put(gram_matrix(factor)), None)

    @property
    def has_polish(self) -> bool:
        """Whether there are KKT equations to solve: not under exact matching, nor for a penalty of the user's own."""
        return not self.rows.exact and isinstance(self.rows.penalty, PiecewisePenalty)

    def begin(self, weights: np.ndarray, dual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Make a starting point feasible, offer it to the board, and return it."""
        weights = np.asarray(feasible(self.rows, weights))
        self.offer(np.arange(self.board.gap.size), weights, dual)
        return weights, dual

    def polish_start(self, weights: np.ndarray, dual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A starting point, or, where it is better, the solution of this problem on the signs of that point."""
        self.polish(self.board.open, weights[self.board.open])
        return self.board.weights.copy(), self.board.dual.copy()

    def closed_form(self) -> None:
        """Ridge regression and least squares: one linear solve, right wherever the ball turns out not to bind.

        The polish of the full support is that solve: with slopes zero there are no signs to guess.
        """
        penalty = self.rows.penalty
        if not self.has_polish or np.any(np.asarray(penalty.slope)) or np.any(np.asarray(penalty.knot)):
            return
        count, width = self.board.weights.shape
        support = self.rows.support
        guess = np.full((count, width), 1e-100) if support is None else 1e-100 * np.asarray(support)
        self.polish(self.board.open, guess[self.board.open])
        # Where nothing at all is said of the weights, passes end no better than this.
        self.board.given_up = np.all(
            np.asarray(flat_coordinates(self.rows.penalty, self.rows.ball, guess.shape)) | (guess == 0.0), axis=1
        )

    def polish_settled(self, first_order: FirstOrder, signs: _Signs) -> None:
        """Polish the open rows with settled signs; those it improves without solving them go on from there."""
        board = self.board
        index = first_order.index[: first_order.count]
        open_ = board.open_among(index)
        if open_.size == 0 or not self.has_polish:
            return
        chosen = open_[signs.settled(index[open_], first_order.weights[open_], first_order.gap[open_])]
        weights, dual, gap = self.polish(index[chosen], first_order.weights[chosen])
        better = (gap < first_order.gap[chosen]) & ~(gap <= board.tol)
        first_order.restart(chosen[better], weights[better], dual[better])
        board.report("polish")

    def polish(self, index: np.ndarray, guess: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Polish the rows `index` from the `guess` (k, d) of each, offer the result to the board, and return it."""
        weights = np.array(guess)
        dual, gap = np.zeros((index.size, self.board.dual.shape[1])), np.full(index.size, np.inf)
        if index.size == 0 or not self.has_polish:
            return weights, dual, gap
        active = np.count_nonzero(guess, axis=1)
        for size, block, count in self._blocks(np.arange(index.size), active):
            by_row = (self.rows.take(index[block]), guess[block])
            found = over_rows(self.mesh, polish, (self.factorisation, self.gram), by_row, size=size)
            weights[block[:count]] = np.asarray(found)[:count]
        dual, gap, solved = self.offer(index, weights, dual)
        self.board.polished[index] |= solved
        return weights, dual, gap

    def offer(
        self, index: np.ndarray, weights: np.ndarray, dual: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Judge weights (k, d) of the rows `index` and offer them to the board: dual points, gaps, which are solved."""
        every = padded(np.arange(index.size), bucket(index.size, self.board.gap.size, device_count(self.mesh)))
        by_row = (self.rows.take(index[every]), weights[every], dual[every])
        found = over_rows(self.mesh, judge, (self.factorisation,), by_row)
        dual, gap = (np.asarray(x)[: index.size] for x in found)
        return dual, gap, self.board.offer(index, weights, dual, gap)

    def newton(self, first_order: FirstOrder) -> None:
        """Semismooth Newton on the open rows, from the best weights so far."""
        board = self.board
        rho = np.ones((board.gap.size, 1))
        rho[first_order.index] = np.asarray(first_order.state.rho)
        index = board.open
        state = newton.start(
            board.weights[index],
            board.dual[index],
            board.gap[index],
            10.0 / rho[index],
            exact=self.rows.exact,
        )
        # Rows need different numbers of steps and systems of different sizes: they are batched anew now and then.
        fields = [np.array(x) for x in jax.tree.leaves(state)]
        structure = jax.tree.structure(state)
        for _ in range(0, _NEWTON_STEPS, _REGROUP):
            pending = board.open_among(index)
            if pending.size == 0:
                break
            active = jax.tree.unflatten(structure, fields).active
            for size, block, count in self._blocks(pending, active):
                by_row = (
                    self.rows.take(index[block]),
                    jax.tree.unflatten(structure, [x[block] for x in fields]),
                    np.asarray(board.tol),
                )
                shared = (self.factorisation, self.gram)
                part = over_rows(self.mesh, newton.advance, shared, by_row, size=size, max_steps=_REGROUP)
                for field, new in zip(fields, jax.tree.leaves(part)):
                    field[block[:count]] = np.asarray(new)[:count]
            now = jax.tree.unflatten(structure, fields)
            board.offer(index, now.best_weights, now.best_dual, now.best_gap)
            board.report("newton")
        board.newton_steps[index] += jax.tree.unflatten(structure, fields).steps

    def _blocks(self, positions: np.ndarray, active: np.ndarray) -> list[tuple[int, np.ndarray, int]]:
        return _blocks(positions, active, self.board.weights.shape[1], device_count(self.mesh))


def _system_size(active: int, width: int) -> int:
    """A block size that holds `active` coordinates: 48, 80, 112, 176, 272, 400, 592, …, or everything.

    Odd multiples of 16: matrices whose rows lie a large power of two apart evict one another from the cache, which
    makes a factorisation of size 512 take twice as long as one of size 528.
    """
    size = 48
    while size < active:
        size = 3 * size // 2 // 32 * 32 + 16
    return min(size, width)


def _blocks(positions: np.ndarray, active: np.ndarray, width: int, devices: int) -> list[tuple[int, np.ndarray, int]]:
    """Positions grouped by system size: (size, a padded batch of a fixed number of rows for that size, how many)."""
    limit = _CPU_BLOCK_BYTES if jax.default_backend() == "cpu" else _ACCELERATOR_BLOCK_BYTES
    blocks = []
    sizes = np.array([_system_size(int(active[i]), width) for i in positions], dtype=int)
    for size in np.unique(sizes):
        members = positions[sizes == size]
        members = members[np.argsort(active[members], kind="stable")]
        batch = -(-int(np.clip(limit // (8 * size * size), 4, 64)) // devices) * devices
        for i in range(0, members.size, batch):
            block = members[i : i + batch]
            blocks.append((int(size), padded(block, batch), block.size))
    return blocks
