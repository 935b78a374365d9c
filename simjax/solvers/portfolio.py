"""Which method runs when: the single methods by name, and the portfolio behind solver="auto".

auto:  one linear solve where the objective is quadratic; ADMM on all rows; every 200 passes an active-set polish of the
rows still open; semismooth Newton for those on which both stall. Each stage only sees the rows that are still open.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from simjax.penalties import PiecewisePenalty
from simjax.solvers import admm, newton, proximal_gradient
from simjax.solvers.canonical import CanonicalRows
from simjax.solvers.factor import Factorisation
from simjax.solvers.iterate import FirstOrder, Scoreboard, padded
from simjax.solvers.polish import polish

Array = Any

SOLVERS = ("auto", "admm", "proximal_gradient")

_POLISH_EVERY = 200
_HANDOVER = 1000  # passes after which the rows still open go to Newton's method
_NEWTON_STEPS = 200  # Newton steps a row gets before first-order passes have another try
_BLOCK_BYTES = 2**25  # of the batched Newton and polish systems


def run(solver: str, factorisation: Factorisation, rows: CanonicalRows, board: Scoreboard, max_iters: int) -> None:
    """Bring the rows of `board` to its tolerance, or spend `max_iters` passes on those that resist."""
    if board.open.size == 0:
        return
    gram = _Gram(factorisation)
    if solver == "admm":
        FirstOrder(admm, factorisation, rows).run(board, max_iters)
    elif solver == "proximal_gradient":
        FirstOrder(proximal_gradient, factorisation, rows).run(board, max_iters)
    else:
        _auto(factorisation, gram, rows, board, max_iters)


def _auto(factorisation: Factorisation, gram: _Gram, rows: CanonicalRows, board: Scoreboard, max_iters: int) -> None:
    _closed_form(factorisation, gram, rows, board)
    first_order = FirstOrder(admm, factorisation, rows)
    attempted: dict[int, bytes] = {}
    passes, handover = 0, _HANDOVER
    while passes < max_iters and board.open.size:
        stretch = min(_POLISH_EVERY, max_iters - passes)
        first_order.run(board, stretch)
        passes += stretch
        _polish(factorisation, gram, rows, board, first_order, attempted)
        if passes >= handover and board.open.size:
            _newton(factorisation, gram, rows, board, first_order, max_steps=_NEWTON_STEPS)
            handover = 4 * passes


def _closed_form(factorisation: Factorisation, gram: _Gram, rows: CanonicalRows, board: Scoreboard) -> None:
    """Ridge regression and least squares: one linear solve, right wherever the ball turns out not to bind.

    The polish of the full support is that solve: with slopes zero there are no signs to guess.
    """
    penalty = rows.penalty
    quadratic = isinstance(penalty, PiecewisePenalty) and not np.any(penalty.slope) and not np.any(penalty.knot)
    if rows.exact or not quadratic:
        return
    count, width = board.weights.shape
    guess = np.full((count, width), 1e-100) if rows.support is None else 1e-100 * np.asarray(rows.support)
    for size, block in _blocks(board.open, np.count_nonzero(guess, axis=1), width):
        unique = np.unique(block, return_index=True)[1]
        result = polish(factorisation, gram.matrix, rows.take(block), jnp.asarray(guess[block]), size=size)
        solved = board.offer(block[unique], *(np.asarray(x)[unique] for x in result))
        board.polished[block[unique]] |= solved


def _polish(
    factorisation: Factorisation,
    gram: _Gram,
    rows: CanonicalRows,
    board: Scoreboard,
    first_order: FirstOrder,
    attempted: dict[int, bytes],
) -> None:
    """Polish the open rows, except those whose signs are the ones a polish has failed with before."""
    if rows.exact or not isinstance(rows.penalty, PiecewisePenalty):
        return
    index, weights = first_order.latest()
    fresh = []
    for position, row in enumerate(index):
        if not board.gap[row] <= board.tol:
            signs = np.packbits(np.concatenate([weights[position] > 0.0, weights[position] < 0.0])).tobytes()
            if attempted.get(int(row)) != signs:
                attempted[int(row)] = signs
                fresh.append(position)
    active = np.count_nonzero(weights, axis=1)
    for size, block in _blocks(np.array(fresh, dtype=int), active, weights.shape[1]):
        chosen = index[block]
        guess = jnp.asarray(weights[block])
        result = polish(factorisation, gram.matrix, rows.take(chosen), guess, size=size)
        unique = np.unique(chosen, return_index=True)[1]
        solved = board.offer(chosen[unique], *(np.asarray(x)[unique] for x in result))
        board.polished[chosen[unique]] |= solved
    board.report("polish")


def _newton(
    factorisation: Factorisation,
    gram: _Gram,
    rows: CanonicalRows,
    board: Scoreboard,
    first_order: FirstOrder,
    *,
    max_steps: int,
) -> None:
    """Semismooth Newton on the open rows, from the best weights so far."""
    open_ = board.open
    active = np.count_nonzero(board.weights[open_], axis=1)
    sigma = first_order.sigma(open_)
    for _, block in _blocks(np.arange(open_.size), active, board.weights.shape[1]):
        chosen = open_[block]
        part = rows.take(chosen)
        state = newton.start(
            jnp.asarray(board.weights[chosen]),
            jnp.asarray(board.dual[chosen]),
            jnp.asarray(board.gap[chosen]),
            jnp.asarray(sigma[block][:, None]),
            exact=rows.exact,
        )
        steps = 0
        while steps < max_steps:
            pending = ~(np.asarray(state.best_gap) <= board.tol)
            if not pending.any():
                break
            size = _system_size(int(np.asarray(state.active)[pending].max()), board.weights.shape[1])
            state = newton.advance(
                factorisation, gram.matrix, part, state, board.tol, size=size, max_steps=max_steps - steps
            )
            steps += int(state.steps)
        unique = np.unique(chosen, return_index=True)[1]
        board.newton_steps[chosen[unique]] += steps
        offer = (state.best_weights, state.best_dual, state.best_gap)
        board.offer(chosen[unique], *(np.asarray(x)[unique] for x in offer))
        board.report("newton")


@dataclasses.dataclass
class _Gram:
    """KᵀK = V S² Vᵀ, made when the first system needs it."""

    factorisation: Factorisation
    _matrix: Array = None

    @property
    def matrix(self) -> Array:
        if self._matrix is None:
            scaled = self.factorisation.basis * self.factorisation.singular_values
            self._matrix = jnp.matmul(scaled, scaled.T, precision="highest")
        return self._matrix


def _system_size(active: int, width: int) -> int:
    """The block size that holds `active` coordinates: 64, 128, 256, …, or everything."""
    size = 64
    while size < active:
        size *= 2
    return min(size, width)


def _blocks(positions: np.ndarray, active: np.ndarray, width: int) -> list[tuple[int, np.ndarray]]:
    """Positions grouped by system size, in padded batches of a fixed number of rows for each size."""
    blocks = []
    sizes = np.array([_system_size(int(active[i]), width) for i in positions], dtype=int)
    for size in np.unique(sizes):
        members = positions[sizes == size]
        members = members[np.argsort(active[members], kind="stable")]
        batch = int(np.clip(_BLOCK_BYTES // (8 * size * size), 8, 64))
        blocks += [(int(size), padded(members[i : i + batch], batch)) for i in range(0, members.size, batch)]
    return blocks
