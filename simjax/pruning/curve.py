"""What sparsity costs a layer, and how a budget of weights is shared out between layers by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from simjax._checks import float_array
from simjax._typing import ArrayLike
from simjax._values import Value
from simjax.pruning.cardinality import CardinalityProblem
from simjax.pruning.patterns import Pattern, checked_sparsity
from simjax.pruning.problem import LayerProblem
from simjax.pruning.statistics import LayerStatistics
from simjax.rows.options import SolveOptions
from simjax.rows.solve import solve_problem

SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_STEPS = 100  # of ADMM: half a per cent more error than with those of `prune_layer`, in a quarter of the time


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ErrorCurve(Value):
    """What sparsity costs a layer.

    Attributes:
      sparsity: shares of zeros, rising, (k,).
      error: ‖T − XWᵀ − 1bᵀ‖², the sum over all samples, (k,); never falling.
      size: ‖T − 1b₀ᵀ‖², against which errors are relative.
      weights: how many weights the layer has.
      worst_gap: the largest relative duality gap of all rows of all refits.

    Examples:
      >>> import numpy as np
      >>> from simjax.pruning.curve import error_curve
      >>> rng = np.random.default_rng(0)
      >>> inputs, weight = rng.normal(size=(50, 8)), rng.normal(size=(3, 8))
      >>> curve = error_curve(inputs, weight, sparsities=(0.25, 0.5, 0.75))
      >>> curve.weights, bool(np.all(np.diff(curve.relative_error) > 0)), curve.worst_gap <= 1e-6
      (24, True, True)
    """

    sparsity: np.ndarray
    error: np.ndarray
    size: float
    weights: int
    worst_gap: float

    @property
    def relative_error(self) -> np.ndarray:
        """(k,), as `PrunedLayer.relative_error`."""
        return self.error / self.size if self.size > 0.0 else np.zeros_like(self.error)


def error_curve(
    inputs: ArrayLike | LayerStatistics,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    targets: ArrayLike | None = None,
    sparsities: Sequence[float] = SPARSITIES,
    tol: float = SolveOptions.tol,
) -> ErrorCurve:
    """The error of a layer at several sparsities, unstructured, each refitted and certified as by `prune_layer`.

    Supports are found in a quarter of the steps, from one eigendecomposition: the curve is for comparing layers.

    Args:
      inputs, weight, bias, targets, tol: as in `prune_layer`.
      sparsities: shares of zeros in [0, 1), rising.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.

    Examples:
      >>> import numpy as np
      >>> from simjax.pruning.curve import error_curve
      >>> rng = np.random.default_rng(0)
      >>> inputs, weight = rng.normal(size=(50, 8)), rng.normal(size=(3, 8))
      >>> error_curve(inputs, weight, sparsities=(0.25, 0.5)).sparsity.tolist()
      [0.25, 0.5]
    """
    shares = np.array([checked_sparsity(share) for share in float_array("sparsities", sparsities).ravel()])
    if shares.size == 0 or np.any(np.diff(shares) <= 0.0):
        raise ValueError(f"sparsities must be rising numbers in [0, 1), got {sparsities!r}.")
    options = SolveOptions(tol=tol)
    problem = LayerProblem.make(inputs, weight, bias, targets)
    ready = CardinalityProblem.make(problem)
    errors, gaps = [], []
    for share in shares:
        pattern = Pattern.make("unstructured", float(share), problem.weight.shape)
        solution = solve_problem(problem.rows(ready.support(pattern, _STEPS)), options)
        errors.append(float(solution.certificate.objective.sum()))
        gaps.append(float(solution.certificate.relative_gap.max()))
    # A support with fewer weights that happens to be better shows that the one before it was not the best.
    never_falling = np.minimum.accumulate(np.array(errors)[::-1])[::-1]
    return ErrorCurve(shares, never_falling, float(problem.size.sum()), problem.weight.size, max(gaps))


def allocate(curves: Sequence[ErrorCurve], sparsity: Any, weights: ArrayLike | None = None) -> np.ndarray:
    """Sparsities of layers (k,) with the least sum of relative errors for the wanted share of zeros over all of them.

        min Σ_l ω_l e_l(s_l)    s.t.    Σ_l N_l s_l = s Σ_l N_l

    with e_l the lower convex hull of the relative errors of layer l: straight between its corners, so that the pieces
    of all hulls, taken in the order of what a zero costs in them, are the solution. A sum of relative errors weighs all
    layers alike; what an error does to the network's own task, only the network can say.

    Args:
      curves: e_l, and how many weights N_l each layer has.
      sparsity: s, in [0, 1).
      weights: ω ≥ 0, (k,); None means ones.

    Raises:
      TypeError, ValueError: for a sparsity outside of [0, 1), or beyond the last points of the curves; for weights that
        are negative or not as many as curves.

    Examples:
      >>> import numpy as np
      >>> from simjax.pruning.curve import allocate, error_curve
      >>> rng = np.random.default_rng(0)
      >>> inputs, weight = rng.normal(size=(50, 8)), rng.normal(size=(3, 8))
      >>> curves = [error_curve(inputs, W) for W in (weight, weight * (np.arange(8) % 2))]  # half is zero already
      >>> sparsities = allocate(curves, 0.5)
      >>> bool(sparsities[1] >= 0.5 >= sparsities[0]), bool(np.isclose(sparsities.mean(), 0.5))
      (True, True)
    """
    wanted = checked_sparsity(sparsity)
    omega = np.ones(len(curves)) if weights is None else float_array("weights", weights)
    if omega.shape != (len(curves),) or np.any(omega < 0.0):
        raise ValueError(f"weights must be ({len(curves)},) with entries >= 0, one for each curve, got {weights!r}.")
    total = sum(curve.weights for curve in curves)
    pieces: list[tuple[float, int, float]] = []  # cost of a zero, layer, share of its zeros
    found = np.zeros(len(curves))
    for number, curve in enumerate(curves):
        shares, errors = _hull(np.append(0.0, curve.sparsity), np.append(0.0, omega[number] * curve.relative_error))
        lengths = np.diff(shares)
        pieces += [(cost / curve.weights, number, length) for cost, length in zip(np.diff(errors) / lengths, lengths)]
    left = wanted * total
    for _, number, length in sorted(pieces, key=lambda piece: piece[0]):
        taken = min(length, left / curves[number].weights)
        found[number] += taken
        left -= taken * curves[number].weights
    if left > 1e-9 * total:
        raise ValueError(f"sparsity must not exceed what the curves reach, {1.0 - (left / total + 1.0 - wanted):.3g}.")
    return found


def _hull(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the lower convex hull of points with rising x, of equal ones the lowest."""
    corners: list[tuple[float, float]] = []
    for point in sorted(zip(x.tolist(), y.tolist())):
        if corners and point[0] == corners[-1][0]:
            continue
        while len(corners) > 1 and _turns_down(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    return np.array([corner[0] for corner in corners]), np.array([corner[1] for corner in corners])


def _turns_down(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
