"""What a solver asks of the engine that runs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np


class Engine(Protocol):
    """Runs functions of rows. Rows are independent, so that it may cut them into tiles as it likes.

    Trees are tuples, dataclasses made by `simjax.rows.arrays.pytree`, or arrays.
    """

    name: str
    devices: int  # over which rows are spread

    def describe(self) -> str:
        """Which it is, on what it runs and why, for a person."""

    def session(self) -> AbstractContextManager[None]:
        """What must hold around all calls: number types, threads, settings that are the user's own elsewhere."""

    def share(self, tree: Any) -> Any:
        """The arrays of `tree`, which all rows see, where the engine works."""

    def spread(self, tree: Any) -> Any:
        """The arrays of `tree`, with a row for each row, where the engine works."""

    def system_sizes(self, active: np.ndarray, width: int) -> np.ndarray:
        """The size in which to solve systems of `active` (k,) unknowns out of `width`: few different ones."""

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
        """The arrays that `function(*shared, *by_row, **static)` returns for the rows `index` (k,), each (k, …).

        Args:
          function: of trees; returns a tuple of arrays with an entry for each row.
          shared: from `share`.
          by_row: trees from `spread`, or host arrays with an entry for each row, of all rows.
          widths: of the arrays, without the padding that the engine works with; None for one number a row.
          row_bytes: what the function keeps for each row, where that is more than some vectors.
          static: its keyword arguments, which are no arrays.
        """

    def update(
        self, state: Any, function: Callable, shared: tuple, by_row: tuple, index: np.ndarray, **static: Any
    ) -> Any:
        """`state`, a tree by rows, with the rows `index` replaced by `function(*shared, *by_row, state, **static)`.

        The given state must not be used again.
        """
