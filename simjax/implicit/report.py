"""How a fixed-point iteration ended."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simjax._typing import Array
from simjax._values import compared_by_identity


class EquilibriumWarning(UserWarning):
    """The fixed-point iteration did not reach its tolerance for some samples.

    Examples:
      >>> import warnings, simjax
      >>> model = simjax.ImplicitModel(A=[[0.5]], B=[[1.0]], C=[[2.0]], D=[[0.0]])
      >>> with warnings.catch_warnings():
      ...     warnings.simplefilter("error", simjax.EquilibriumWarning)  # a sample that misses ends the program
      ...     outputs = model.predict([[1.0]])
    """


@compared_by_identity
class EquilibriumInfo(NamedTuple):
    """How the iteration went, per sample; scalars when there is one sample without a batch axis.

    Attributes:
      converged: (m,) bool, which samples met the tolerance.
      residual: (m,) max|f(x) − x| / max(1, max|x|) at the last iterate x, for the map f whose fixed point is sought; of
        `ImplicitModel.equilibrium` the size max|x⁺ − x| / (α max(1, max|x⁺|)) of the last step, in float64.
      iterations: (m,) int32, updates made from the initial guess; of `ImplicitModel.equilibrium` the passes made over
        the batch, an int.

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.5]], B=[[1.0]], C=[[2.0]], D=[[0.0]])
      >>> states, info = model.equilibrium([[1.0], [-1.0]], return_info=True)
      >>> info.converged
      array([ True,  True])
    """

    converged: Array
    residual: Array
    iterations: Array | int


def not_converged(info: EquilibriumInfo, tol: float, norm: float) -> str:
    """What is to be said of samples that did not converge, and of ‖A‖∞ = `norm`."""
    failed = ~np.asarray(info.converged)
    finite = np.asarray(info.residual)[failed & np.isfinite(info.residual)]
    worst = f"worst last step {finite.max():.2e}" if finite.size else "all of them diverged"
    return (
        f"{failed.sum()} of {failed.size} samples did not reach an equilibrium to tol = {tol:g} in "
        f"{info.iterations} passes ({worst}; ‖A‖∞ = {norm:.4g}). Try more max_iters or a "
        f"larger tol; with ‖A‖∞ ≥ 1 there may be no equilibrium: fit with a kappa below 1."
    )
