"""How the gaps of rows fell, check by check."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from simjax._values import Value
from simjax.rows.arrays import pytree


@pytree()
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class History(Value):
    """The relative gap of each row at each check of a solve, K of them, in the order in which they were made.

    A check is whenever the rows at work were judged: every 63 passes of a first-order method, after each other way to
    solve them, and whenever answers were certified. The rows that were not at work stay as they were. Before the last
    check a gap is what the solver proved in its own coordinates, or what the certificate said; the last one is that of
    the certificate that is returned.

    Attributes:
      gap: relative gap of the best answer until then, (K, R), float64; inf where nothing was known, and in the end for
        rows that are infeasible.
      passes: over the design, of each row until then, (K, R).

    Examples:
      >>> import numpy as np, simjax
      >>> solution = simjax.solve_rows(np.eye(2), [[3.0], [1.0]], penalty=simjax.L1(1.0), history=True)
      >>> solution.history.gap.shape == solution.history.passes.shape
      True
    """

    gap: np.ndarray
    passes: np.ndarray

    def _told(self) -> str:
        checks, rows = self.gap.shape
        return f"{checks} checks of {rows} rows"

    def take(self, index: np.ndarray) -> History:
        """That of the rows in `index`."""
        return History(self.gap[:, index], self.passes[:, index])


def joined_histories(parts: Sequence[History]) -> History | None:
    """The histories of rows side by side, those that end earlier as they ended; None where there are none."""
    if not parts:
        return None
    most = max(part.gap.shape[0] for part in parts)
    kept = [np.minimum(np.arange(most), part.gap.shape[0] - 1) for part in parts]
    return History(
        np.concatenate([part.gap[numbers] for part, numbers in zip(parts, kept)], axis=1),
        np.concatenate([part.passes[numbers] for part, numbers in zip(parts, kept)], axis=1),
    )


class Checks:
    """Takes down the checks of one block of rows.

    Args:
      rows: how many there are.
    """

    def __init__(self, rows: int) -> None:
        self._gap, self._passes = np.full(rows, np.inf), np.zeros(rows, dtype=int)
        self._taken: list[tuple[np.ndarray, np.ndarray]] = []

    def note(self, index: np.ndarray, gap: np.ndarray, passes: np.ndarray) -> None:
        """One check, of the rows `index`, (k,); a gap that is not known leaves the one before."""
        self._gap[index] = np.where(np.isinf(gap), self._gap[index], gap)
        self._passes[index] = passes
        self._taken.append((self._gap.copy(), self._passes.copy()))

    def history(self, gap: np.ndarray, passes: np.ndarray) -> History:
        """All of them, and the gaps (R,) that are returned as the last."""
        last = self._taken[-1] if self._taken else None
        if last is None or not (np.array_equal(last[0], gap) and np.array_equal(last[1], passes)):
            self._taken.append((gap.copy(), passes.copy()))
        gaps, counts = zip(*self._taken)
        return History(np.array(gaps), np.array(counts))
