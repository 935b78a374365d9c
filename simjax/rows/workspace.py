"""A design made ready for solves: whatever is solved over it shares what is made here."""

from __future__ import annotations

import functools

import numpy as np

from simjax._typing import Array
from simjax.rows.arrays import column_norms, namespace
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.penalties import Penalty
from simjax.rows.problem import RowProblem, RowSource
from simjax.rows.solvers.factor import FactoredDesign


def balancing_scale(design: Array, penalty: Penalty | None = None) -> Array:
    """(d,), ‖φ_j‖^½ over its geometric mean; 1 for a column of zeros.

    The columns of a group of the penalty share the mean of theirs: ‖w_g‖ is no norm of w_g in other units otherwise.
    """
    xp = namespace(design)
    norms = column_norms(design)
    positive = norms > 0.0
    logarithm = xp.where(positive, 0.5 * xp.log(xp.where(positive, norms, 1.0)), 0.0)
    mean = xp.sum(logarithm) / xp.maximum(xp.sum(positive), 1)
    relative = xp.where(positive, logarithm - mean, 0.0)
    if isinstance(penalty, GroupPenalty):
        members = penalty.sums(positive[None, :].astype(relative.dtype))
        relative = penalty.to_columns(penalty.sums(relative[None, :]) / xp.maximum(members, 1.0))[0]
    return xp.exp(relative)


class Workspace:
    """A design with balanced columns, and its factorisations, each made when it is first needed.

    The weights are measured as w̃_j = ‖φ_j‖^½ w_j: of the exponents from 0 to 1, with which first-order passes need very
    different numbers of passes, one half is best or near it on all problems measured (docs/performance.md).

    Args:
      design: Φ, (m, d), in float64, as in `RowProblem`.
      penalty: whose groups share a scale, where it has groups.

    Attributes:
      column_scale: (d,), `balancing_scale` of the design.
      scaled: Φ with its columns divided by it.
    """

    def __init__(self, design: np.ndarray, penalty: Penalty | None = None) -> None:
        self.design = design
        self.column_scale = np.asarray(balancing_scale(design, penalty))
        self.scaled = FactoredDesign(design, self.column_scale)
        self._of_groups: dict[bytes, Workspace] = {}

    def for_penalty(self, penalty: Penalty) -> Workspace:
        """The workspace whose scale this penalty can be measured in: itself, or, for groups, one that knows them."""
        if not isinstance(penalty, GroupPenalty):
            return self
        groups = np.asarray(penalty.labels).tobytes()
        if groups not in self._of_groups:
            self._of_groups[groups] = Workspace(self.design, penalty)
        return self._of_groups[groups]

    @functools.cached_property
    def gram(self) -> np.ndarray:
        """ΦᵀΦ, (d, d), of the design as it was given."""
        return self.design.T @ self.design

    def check(self, problem: RowProblem | RowSource) -> None:
        """Raise a ValueError if the problem has another design."""
        same = self.design is problem.design
        if isinstance(self.design, np.ndarray) and isinstance(problem.design, np.ndarray):
            same = same or np.array_equal(self.design, problem.design)
        if not same:
            raise ValueError("workspace was made for another design than that of the problem.")
