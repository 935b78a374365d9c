"""What `solve_rows` returns: the weights of every row and what is proved about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from simjax._typing import Weights
from simjax._values import Value, html_facts, html_table, text_table
from simjax.rows.arrays import pytree_of
from simjax.rows.certificate import Certificate
from simjax.rows.history import History
from simjax.rows.oracles.interface import ORACLES
from simjax.rows.problem import RowProblem, RowSource
from simjax.rows.status import Status
from simjax.rows.verify import Verification, sample_rows, verify_rows

_LARGEST, SHOWN = 3, 20  # weights of a row, and rows, that a table shows
INDENT = 16  # where the lines of a summary go on after their first word


def dense_rows(weights: Weights) -> np.ndarray:
    """Rows of weights as an array, whether they are kept as one or as CSR."""
    return weights if isinstance(weights, np.ndarray) else weights.toarray()


def table_of_rows(
    weights: Weights,
    certificate: Certificate,
    status: np.ndarray,
    row_names: Sequence[str],
    column_names: Sequence[str],
    most: int | None = None,
) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table with a line for each row, or for the first `most` of them."""
    cells = []
    for row in range(status.size)[:most]:
        own = dense_rows(weights[[row]])[0]
        used = np.flatnonzero(own)
        first = used[np.argsort(-np.abs(own[used]), kind="stable")[:_LARGEST]]
        told = ", ".join(f"{column_names[j]} {own[j]:+.3g}" for j in first) + (", …" if used.size > _LARGEST else "")
        cells.append([row_names[row], str(status[row]), f"{certificate.relative_gap[row]:.1e}", f"{used.size}", told])
    return ["row", "status", "gap", "nonzeros", "largest weights"], cells


def numbered(letter: str, count: int) -> tuple[str, ...]:
    """Names for what has none: letter[0], letter[1], …"""
    return tuple(f"{letter}[{k}]" for k in range(count))


@pytree_of(
    ("weights", "intercept", "certificate", "passes", "newton_steps", "polished", "history"),
    ("problem", "status", "solver", "engine", "seconds", "tol", "first", "row_names", "column_names"),
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Solution(Value):
    """Weights of every row and what is proved about them.

    A pytree of its numbers: `jax.device_put` places weights, certificate and counts, and all else stays as it is.
    Hand its arrays to compiled functions, not the whole: what stays is part of what they are compiled for.

    Attributes:
      problem: the rows that were solved; with weights of the samples or an intercept, V^½(Φ − 1φ̄ᵀ) and V^½(T − 1t̄ᵀ).
      weights: (R, d), float64; CSR where `max_memory` only allowed for blocks of rows.
      intercept: (R,), or None where none was asked for.
      certificate: one entry per row.
      status: (R,), strings; see `Status`.
      solver: the solver that ran.
      passes: passes over the design that each row took, (R,).
      newton_steps: steps of Newton's method on the dual or of the interior-point method that each row took, (R,).
      polished: whether the active-set polish certified the row, (R,).
      engine: what it ran on, and why.
      seconds: wall time of the solve, compilation included.
      tol: the relative gap that was asked for.
      history: the gap of every row at every check, where `history=True` asked for it; otherwise None.
      first: the number of the first of these rows among those of all shards; 0 where there are none.
      row_names: of the rows, (R,), where targets were a frame or a series with a name; otherwise None.
      column_names: of the weights, (d,), where the design was a frame; otherwise None.

    Examples:
      >>> import numpy as np, simjax
      >>> solution = simjax.solve_rows(np.eye(2), [[3.0, 0.2], [1.0, 0.1]], penalty=simjax.L1(1.0))
      >>> solution.status, solution.weights  # a row for each column of the targets
      (array(['SOLVED', 'SOLVED'], dtype='<U13'), array([[2.5, 0.5], [0. , 0. ]]))
    """

    problem: RowProblem | RowSource
    weights: Weights
    intercept: np.ndarray | None
    certificate: Certificate
    status: np.ndarray
    solver: str
    passes: np.ndarray
    newton_steps: np.ndarray
    polished: np.ndarray
    engine: str
    seconds: float
    tol: float
    history: History | None = None
    first: int = 0
    row_names: tuple[str, ...] | None = None
    column_names: tuple[str, ...] | None = None

    @property
    def converged(self) -> bool:
        """Whether every row is certified to the tolerance."""
        return bool(np.all(self.status == Status.SOLVED))

    def _told(self) -> str:
        certified = certified_rows(self.status, self.tol, self.certificate)
        return f"{self.status.size} rows of {self.problem.width} weights, solver={self.solver!r}, {certified}"

    def _repr_html_(self) -> str:
        facts = html_facts(self.summary().splitlines(), INDENT)
        named = self.row_names is not None or self.column_names is not None
        return facts + html_table(*self._cells(SHOWN)) if named else facts

    def table(self) -> str:
        """A line for each row: its name, status, relative gap, how many nonzeros it has, and its largest weights."""
        return text_table(*self._cells(), (3, 6, 7, 8))

    def _cells(self, most: int | None = None) -> tuple[list[str], list[list[str]]]:
        rows = self.row_names or tuple(map(str, range(self.first, self.first + self.status.size)))
        columns = self.column_names or numbered("w", self.problem.width)
        return table_of_rows(self.weights, self.certificate, self.status, rows, columns, most)

    def verify(self, oracle: str = "clarabel", rows: int = 16, *, seed: int = 0, workers: int = 1) -> Verification:
        """Have an interior-point oracle solve a random sample of rows again, and compare.

        Args:
          oracle: "clarabel" or "mosek".
          rows: how many rows; all of them if there are fewer.
          seed: of the sample.
          workers: processes over which the oracle spreads the rows.

        Raises:
          OracleUnavailable: if the oracle's package or licence is missing.
        """
        numbers = sample_rows(self.status.size, rows, seed)
        return self.verify_numbers(numbers, oracle=oracle, workers=workers, first=self.first)

    def verify_numbers(self, numbers: np.ndarray, *, oracle: str, workers: int, first: int = 0) -> Verification:
        """`verify` for given rows, which the table calls `first` + their number."""
        return verify_rows(
            self.problem.take(numbers),
            dense_rows(self.weights[numbers]),
            self.certificate.take(numbers),
            self.status[numbers],
            first + numbers,
            oracle=oracle,
            workers=workers,
            tol=self.tol,
            intercept=None if self.intercept is None else self.intercept[numbers],
        )

    def _explained(self) -> str:
        """Which methods the solver has put to use, and on how many rows."""
        if self.solver in ORACLES:
            return "interior-point method, row by row"
        if self.solver != "auto":
            return "as asked"
        newton, polished = self.newton_steps > 0, self.polished
        first_order = ~(newton | polished)
        methods = (
            (first_order & (self.passes == 0), "by working sets or linear systems, without a pass"),
            (first_order & (self.passes > 0), "by ADMM"),
            (polished & ~newton, "by active-set polish, their signs having settled"),
            (newton, "by Newton's method on the dual or an interior point"),
        )
        counts = [(np.count_nonzero(rows), how) for rows, how in methods]
        return ", ".join(f"{count} rows {how}" for count, how in counts if count)

    def summary(self) -> str:
        """A few lines for a person: what ran, how many rows are certified, and how well."""
        rows = self.status.size
        solved = int(np.count_nonzero(self.status == Status.SOLVED))
        feasible = self.status != Status.INFEASIBLE
        certificate = self.certificate.take(feasible)
        lines = [
            f"solver          {self.solver}: {self._explained()}",
            f"engine          {self.engine}",
            f"rows            {solved} of {rows} certified at relative gap {self.tol:g}",
            f"worst gap       {certificate.relative_gap.max(initial=0.0):.2e} relative",
            f"infeasibility   {certificate.infeasibility.max(initial=0.0):.2e} worst",
            f"passes          {int(self.passes.max(initial=0))} at most, {int(np.median(self.passes))} median",
            f"time            {self.seconds:.2f} s, compilation included",
        ]
        if not feasible.all():
            lines.insert(2, f"infeasible      {np.count_nonzero(~feasible)} rows, proved by a dual ray each")
        return "\n".join(lines)


def certified_rows(status: np.ndarray, tol: float, certificate: Certificate) -> str:
    """How many rows are certified, and how well, in a few words."""
    solved = int(np.count_nonzero(status == Status.SOLVED))
    worst = certificate.relative_gap.max(initial=0.0)
    return f"{solved} of {status.size} rows certified at relative gap {tol:g}, worst {worst:.1e}"
