"""How a fixed-point iteration ended."""

from __future__ import annotations

from typing import NamedTuple

from simjax._typing import Array
from simjax._values import compared_by_identity


class EquilibriumWarning(UserWarning):
    """The fixed-point iteration did not reach its tolerance for some samples."""


@compared_by_identity
class EquilibriumInfo(NamedTuple):
    """How the iteration went, per sample; scalars when there is one sample without a batch axis.

    Attributes:
      converged: (m,) bool, which samples met the tolerance.
      residual: (m,) max|f(x) − x| / max(1, max|x|) at the last iterate x, for the map f whose fixed point is sought; of
        `ImplicitModel.equilibrium` the size max|x⁺ − x| / (α max(1, max|x⁺|)) of the last step, in float64.
      iterations: (m,) int32, updates made from the initial guess; of `ImplicitModel.equilibrium` the passes made over
        the batch, an int.
    """

    converged: Array
    residual: Array
    iterations: Array | int
