"""Verification by an independent solver: re-solve a random sample of rows with an interior-point oracle and compare."""

from __future__ import annotations

import dataclasses

import numpy as np

from simjax._checks import positive_integer
from simjax._values import Value, html_table, text_table
from simjax.rows import oracles
from simjax.rows.certificate import Certificate, certify, infeasibility_margin
from simjax.rows.problem import RowProblem, objective_floor
from simjax.rows.status import Status

_NOT_FEASIBLE = 1e-6  # an answer that violates a row by more than this, relatively, is none


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Verification(Value):
    """Rows beside what an oracle says of them; one entry per row.

    Attributes:
      oracle: the solver that was asked.
      rows: the numbers of the rows.
      objective: P of simjax's weights.
      oracle_objective: P of the oracle's weights, by the same formula.
      difference: (P − P_oracle) / scale, with the scale of the relative gap.
      relative_gap: what the better of the row's own dual point and the oracle's proves of the weights.
      oracle_gap: what the certificate proves of the oracle's answer.
      agrees: whether the row is feasible to 1e-6 and |difference| within what the two gaps and the oracle's
        infeasibility allow; or the row is
        called infeasible, its ray proves it, and the oracle says so too or found no feasible point.

    Examples:
      >>> import numpy as np, simjax
      >>> solution = simjax.solve_rows(np.eye(2), [[3.0, 0.2], [1.0, 0.1]], penalty=simjax.L1(1.0))
      >>> verification = solution.verify(oracle="clarabel")  # needs the extra oracles
      >>> verification.ok, verification.rows
      (True, array([0, 1]))
    """

    oracle: str
    rows: np.ndarray
    objective: np.ndarray
    oracle_objective: np.ndarray
    difference: np.ndarray
    relative_gap: np.ndarray
    oracle_gap: np.ndarray
    agrees: np.ndarray

    @property
    def ok(self) -> bool:
        """Whether every row agrees."""
        return bool(np.all(self.agrees))

    def table(self) -> str:
        """The comparison as plain text, a line per row."""
        return text_table(*self._cells(), (6, 16, 16, 11, 9, 10))

    def _repr_html_(self) -> str:
        return html_table(*self._cells())

    def _told(self) -> str:
        return f"{int(np.count_nonzero(self.agrees))} of {self.rows.size} rows agree with {self.oracle}"

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        columns = zip(
            self.rows, self.objective, self.oracle_objective, self.difference, self.relative_gap, self.oracle_gap
        )
        rows = [
            [f"{row}", f"{own:.9e}", f"{other:.9e}", f"{difference:.1e}", f"{gap:.1e}", f"{oracle_gap:.1e}"]
            + ([] if agrees else ["DISAGREES"])
            for (row, own, other, difference, gap, oracle_gap), agrees in zip(columns, self.agrees)
        ]
        return ["row", "objective", self.oracle, "difference", "gap", "oracle gap"], rows


def sample_rows(count: int, rows: int, seed: int) -> np.ndarray:
    """`rows` different row numbers of `count`, sorted; all of them if there are no more."""
    rows = positive_integer("rows", rows)
    return np.sort(np.random.default_rng(seed).permutation(count)[:rows])


def verify_rows(
    problem: RowProblem,
    weights: np.ndarray,
    certificate: Certificate,
    status: np.ndarray,
    numbers: np.ndarray,
    *,
    oracle: str = "clarabel",
    workers: int = 1,
    tol: float = 1e-6,
    intercept: np.ndarray | None = None,
) -> Verification:
    """Have an oracle solve `problem` and compare; all arguments hold one entry per row of `problem`.

    Args:
      numbers: what to call the rows in the table.
      tol: the relative difference that is always allowed: what the rows were asked to be solved to.
      intercept: of the rows, where they have one, (R,).

    Raises:
      OracleUnavailable: if the oracle's package or licence is missing.
    """
    answer = oracles.solve(problem, oracle=oracle, workers=workers)
    judged = certify(problem, answer.weights, [answer.duals])
    found = certify(problem, weights, [certificate.dual, answer.duals], intercept=intercept)
    objective = found.objective
    scale = np.maximum(np.maximum(np.abs(objective), np.abs(judged.objective)), objective_floor(problem))
    difference = (objective - judged.objective) / np.where(scale > 0.0, scale, 1.0)
    # An oracle's weights violate the constraints a little, which lets their objective fall below the optimum.
    slack = 10.0 * judged.infeasibility
    allowed = tol + np.minimum(judged.relative_gap, 1e-4) + np.minimum(slack, 1e-4)
    # A row called infeasible needs its ray checked, and an oracle that says so too or that found no feasible point.
    claimed = status == Status.INFEASIBLE
    proved = claimed & (infeasibility_margin(problem, certificate.dual) > 0.0) if claimed.any() else claimed
    oracle_infeasible = np.asarray(answer.status) == Status.INFEASIBLE
    both_infeasible = proved & (oracle_infeasible | (judged.infeasibility > _NOT_FEASIBLE))
    feasible = found.infeasibility <= _NOT_FEASIBLE
    either_infeasible = claimed | oracle_infeasible
    return Verification(
        oracle=oracle,
        rows=numbers,
        objective=np.where(both_infeasible, np.inf, objective),
        oracle_objective=np.where(both_infeasible, np.inf, judged.objective),
        difference=np.where(both_infeasible, 0.0, difference),
        relative_gap=found.relative_gap,
        oracle_gap=judged.relative_gap,
        agrees=both_infeasible | (~either_infeasible & feasible & (np.abs(difference) <= allowed)),
    )


def joined(parts: list[Verification]) -> Verification:
    """Several verifications by one oracle as one, in the order of their row numbers."""
    order = np.argsort(np.concatenate([part.rows for part in parts]))
    merged = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])[order]
        for field in dataclasses.fields(Verification)
        if field.name != "oracle"
    }
    return Verification(oracle=parts[0].oracle, **merged)
