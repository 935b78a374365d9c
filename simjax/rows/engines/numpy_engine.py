"""NumPy on the CPU: tiles of rows over threads, with one thread of BLAS for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from simjax.rows.arrays import tree_map
from simjax.rows.container import cores
from simjax.rows.threads import one_thread_each

_TILE = 64  # rows whose working arrays a core's cache holds
_FEW = 16  # rows from which on a second thread pays
_BYTES = 2**22  # of the systems of a tile, likewise


def thread_count() -> int:
    """Processors that this process may use."""
    return cores()


class NumpyEngine:
    """Implements `Engine`.

    Args:
      reason: why it was chosen, for a person.
      threads: that it uses; None means one for each processor of this process.
    """

    name = "numpy"
    devices = 1

    def __init__(self, reason: str = "as asked", threads: int | None = None) -> None:
        self.threads = thread_count() if threads is None else threads
        self.reason = reason
        self._pool: ThreadPoolExecutor | None = None

    def describe(self) -> str:
        return f"numpy, {self.threads} thread{'s' if self.threads > 1 else ''}: {self.reason}"

    @contextmanager
    def session(self) -> Iterator[None]:
        with one_thread_each(), np.errstate(all="ignore"), ThreadPoolExecutor(self.threads) as pool:
            self._pool = pool
            try:
                yield
            finally:
                self._pool = None

    def share(self, tree: Any) -> Any:
        return tree

    def spread(self, tree: Any) -> Any:
        return tree

    def system_sizes(self, active: np.ndarray, width: int) -> np.ndarray:
        # Exact sizes would do; a common one for rows near each other saves calls.
        return np.minimum(-(-np.maximum(active, 1) // 16) * 16, width)

    def collect(
        self,
        function: Callable,
        shared: tuple,
        by_row: tuple,
        index: np.ndarray,
        *,
        widths: tuple[int | None, ...],
        row_bytes: int = 0,
        **static: Any,
    ) -> tuple:
        def of_tile(tile: np.ndarray) -> tuple:
            return function(*shared, *(_taken(tree, tile) for tree in by_row), **static)

        most = int(np.clip(_BYTES // row_bytes, 1, _TILE)) if row_bytes else _TILE
        parts = self._over_tiles(of_tile, index, most)
        return tuple(np.concatenate(each) for each in zip(*parts))

    def update(
        self, state: Any, function: Callable, shared: tuple, by_row: tuple, index: np.ndarray, **static: Any
    ) -> Any:
        def of_tile(tile: np.ndarray) -> None:
            picked = (*(_taken(tree, tile) for tree in by_row), _taken(state, tile))

            def put(into: np.ndarray, new: np.ndarray) -> np.ndarray:
                into[tile] = new
                return into

            tree_map(put, state, function(*shared, *picked, **static))

        self._over_tiles(of_tile, index)
        return state

    def _over_tiles(self, function: Callable, index: np.ndarray, most: int = _TILE) -> list:
        """`function` of each tile, the tiles as equal as can be and their number a multiple of that of the threads."""
        count = -(-index.size // most)
        if most < _TILE or index.size > _FEW:
            count = min(-(-count // self.threads) * self.threads, max(index.size, 1))
        tiles = np.array_split(index, count)

        # A context is a thread's own: NumPy's error state is set in each.
        def quiet(tile: np.ndarray) -> Any:
            with np.errstate(all="ignore"):
                return function(tile)

        if count == 1 or self.threads == 1 or self._pool is None:
            return [quiet(tile) for tile in tiles]
        return list(self._pool.map(quiet, tiles))


def _taken(tree: Any, index: np.ndarray) -> Any:
    """The rows `index` of a tree: by its own `take` where it has one that knows more than its arrays do."""
    take = getattr(tree, "take_rows", None)
    return take(index) if take is not None else tree_map(lambda array: array[index], tree)
