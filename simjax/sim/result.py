"""`FitResult`: a fitted model and the proof of every one of its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simjax._typing import Weights
from simjax._values import Value, html_facts, html_table, text_table
from simjax.implicit.model import ImplicitModel
from simjax.implicit.wellposed import matrix_measure
from simjax.rows.certificate import Certificate
from simjax.rows.history import History, joined_histories
from simjax.rows.solution import INDENT, SHOWN, Solution, certified_rows, numbered, table_of_rows
from simjax.rows.status import Status
from simjax.rows.verify import Verification, joined, sample_rows


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CertifiedBlock(Value):
    """Rows of a fit and the solve that certifies them."""

    solution: Solution
    rows: np.ndarray  # their numbers in the fit, (k,)
    numbers: np.ndarray  # their numbers in the solve, (k,)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FitResult(Value):
    """A fitted model and the proof of every one of its rows.

    Attributes:
      model: the implicit model (A, B, C, D), in the units in which ‖A‖∞ ≤ kappa holds.
      certificate: one entry per row, (n + q,): the n rows of (A B) first, then the q rows of (C D).
      status: (n + q,), strings; see `Status`.
      weights: (n + q, d), the rows as they were solved, in the units of the fit (d = n + p, + 1 with a penalised
        intercept); CSR, like the model, where `max_memory` was given and only allowed for blocks of rows.
      intercept: (n + q,), the free intercepts of the rows in these units, b and c of the model; None without.
      solutions: the solves in the order they ran; the last one to touch a row is the one certified here. None of a
        fit that was merged: they ran elsewhere.
      settings: the arguments of the fit, as stored in the model's metadata.
      sources: for each block of rows, the solve that certifies them, their numbers here, and their numbers there.
      factors: L (n, r) and R (n, r) with A = L Rᵀ, in the units of the model, of a fit of low rank; otherwise None.

    Examples:
      >>> import numpy as np, simjax
      >>> rng = np.random.default_rng(0)
      >>> weights = [rng.normal(size=shape) for shape in ((4, 3), (2, 4))]  # of a network 3-4-2
      >>> states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(50, 3)))
      >>> result = simjax.fit(states, "l1", alpha=0.1)
      >>> result.model.nonzeros <= 42, result.certificate.relative_gap.shape, result.settings["kappa"]
      (True, (6,), 0.99)
    """

    model: ImplicitModel
    certificate: Certificate
    status: np.ndarray
    weights: Weights
    intercept: np.ndarray | None
    solutions: tuple[Solution, ...]
    settings: dict[str, Any]
    sources: tuple[CertifiedBlock, ...] = ()
    factors: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def converged(self) -> bool:
        """Whether every row is certified to the tolerance."""
        return bool(np.all(self.status == Status.SOLVED))

    @property
    def history(self) -> History | None:
        """The gap of every row at every check of the solve that certifies it, where `history=True` asked for it."""
        parts, rows = [], []
        for source in self.sources:
            if source.solution.history is None:
                return None
            parts.append(source.solution.history.take(source.numbers))
            rows.append(source.rows)
        whole = joined_histories(parts)
        return None if whole is None else whole.take(np.argsort(np.concatenate(rows)))

    @property
    def seconds(self) -> float:
        """Wall time of all solves, compilation included."""
        return sum(solution.seconds for solution in self.solutions)

    def _told(self) -> str:
        model, certified = self.model, certified_rows(self.status, self.settings["tol"], self.certificate)
        return f"n={model.n}, p={model.p}, q={model.q}, nonzeros={model.nonzeros}, {certified}"

    def _repr_html_(self) -> str:
        facts = html_facts(self.summary().splitlines(), INDENT)
        return facts + html_table(*self._cells(SHOWN)) if self._names else facts

    @property
    def _names(self) -> Mapping[str, Sequence[str] | None]:
        """What the model was told of names, by "inputs", "states" and "outputs"."""
        return (self.model.metadata or {}).get("names") or {}

    @property
    def row_names(self) -> tuple[str, ...]:
        """Of the n + q rows: the names of states and outputs where they came as frames, otherwise x[0] … and y[0] …"""
        states, outputs = self._names.get("states"), self._names.get("outputs")
        n, q = self.model.n, self.model.q
        return (*(states or numbered("x", n)), *(outputs or numbered("y", q)))

    @property
    def column_names(self) -> tuple[str, ...]:
        """Of the d weights of a row: those of states and inputs, u[0] … without, and 1 for a penalised intercept."""
        n, p = self.model.n, self.model.p
        names = (*(self._names.get("states") or numbered("x", n)), *(self._names.get("inputs") or numbered("u", p)))
        return names + ("1",) * (self.weights.shape[1] - n - p)

    def table(self) -> str:
        """A line for each row of the fit, as `Solution.table`; weights in the units of the fit."""
        return text_table(*self._cells(), (3, 6, 7, 8))

    def _cells(self, most: int | None = None) -> tuple[list[str], list[list[str]]]:
        return table_of_rows(self.weights, self.certificate, self.status, self.row_names, self.column_names, most)

    def verify(self, oracle: str = "clarabel", rows: int = 16, *, seed: int = 0, workers: int = 1) -> Verification:
        """Have an interior-point oracle solve a random sample of the n + q rows again, and compare.

        Args:
          oracle: "clarabel" or "mosek".
          rows: how many rows; all of them if there are fewer.
          seed: of the sample.
          workers: processes over which the oracle spreads the rows.

        Raises:
          OracleUnavailable: if the oracle's package or licence is missing.
          ValueError: of a fit that was merged, which has no samples.
        """
        if not self.sources:
            raise ValueError("a merged fit has no samples to verify it on: use verify_model(result.model, states).")
        numbers = sample_rows(self.status.size, rows, seed)
        parts = []
        for source in self.sources:
            mine = np.flatnonzero(np.isin(source.rows, numbers))
            if mine.size:
                there = source.numbers[mine]
                first = int(source.rows[mine[0]] - there[0])
                parts.append(source.solution.verify_numbers(there, oracle=oracle, workers=workers, first=first))
        return joined(parts)

    def summary(self) -> str:
        """A few lines for a person: the model, what ran, how many rows are certified, and how well."""
        model = self.model
        total = (model.n + model.q) * (model.n + model.p + int(model.b is not None))
        parts = [
            f"model           n={model.n}, p={model.p}, q={model.q}, activation {model.activation}",
            f"nonzeros        {model.nonzeros} of {total}",
            f"well-posedness  ‖A‖∞ = {model.well_posedness:.6f}",
        ]
        found = self.settings.get("sparsity")
        if found is not None:
            parts[1] += f", sparsity {found['reached']:.4f} of {found['of']} by alpha = {self.settings['alpha']:.4g}"
        if self.factors is not None:
            L, _ = self.factors
            parts.insert(1, f"low rank        A = L Rᵀ, rank {L.shape[1]}, {np.count_nonzero(L)} nonzeros in L; the")
            parts[1] += " certificates of (A B) are those of L and B for this R"
        if self.settings["constraint"] == "metzler" and self.settings["eta"] is None:
            parts[-1] += f", μ∞(A) = {matrix_measure(model.to_dense().A):.6f}"
        if not self.solutions:
            parts.append(f"rows            {certified_rows(self.status, self.settings['tol'], self.certificate)}")
        for number, solution in enumerate(self.solutions, start=1):
            if len(self.solutions) > 1:
                parts.append(f"-- solve {number} of {len(self.solutions)}")
            parts.append(solution.summary())
        return "\n".join(parts)
