"""A design made ready for solves: whatever is solved over it shares what is made here."""

from __future__ import annotations

import functools

import numpy as np

from simjax._typing import Array
from simjax.rows.arrays import column_norms, namespace
from simjax.rows.problem import RowProblem, RowSource
from simjax.rows.solvers.factor import FactoredDesign


def balancing_scale(design: Array) -> Array:
    """(d,), ‖φ_j‖^½ over its geometric mean; 1 for a column of zeros."""
    xp = namespace(design)
    norms = column_norms(design)
    positive = norms > 0.0
    logarithm = xp.where(positive, 0.5 * xp.log(xp.where(positive, norms, 1.0)), 0.0)
    mean = xp.sum(logarithm) / xp.maximum(xp.sum(positive), 1)
    return xp.where(positive, xp.exp(logarithm - mean), 1.0)


class Workspace:
    """A design with balanced columns, and its factorisations, each made when it is first needed.

    The weights are measured as w̃_j = ‖φ_j‖^½ w_j: of the exponents from 0 to 1, with which first-order passes need very
    different numbers of passes, one half is best or near it on all problems measured (docs/performance.md).

    Args:
      design: Φ, (m, d), in float64, as in `RowProblem`.

    Attributes:
      column_scale: (d,), `balancing_scale` of the design.
      scaled: Φ with its columns divided by it.
    """

    def __init__(self, design: np.ndarray) -> None:
        self.design = design
        self.column_scale = np.asarray(balancing_scale(design))
        self.scaled = FactoredDesign(design / self.column_scale)

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
