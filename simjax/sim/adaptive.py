"""Penalty weights from a first fit: the adaptive lasso."""

from __future__ import annotations

import numpy as np

from simjax._checks import float_array, positive_scalar
from simjax._typing import ArrayLike
from simjax.implicit.matrices import model_rows
from simjax.implicit.model import ImplicitModel
from simjax.rows.solution import dense_rows
from simjax.sim.result import FitResult


def adaptive_weights(
    source: FitResult | ImplicitModel | ArrayLike, *, epsilon: float = 0.05, exponent: float = 1.0
) -> np.ndarray:
    """Penalty weights 1/(|W| + ε)^exponent from a first fit or from the baseline's own weights.

    Large entries pay little, zero entries pay most: `fit(states, alpha=1e-3 * adaptive_weights(…))`.

    Args:
      source: a `FitResult` (its rows, in the units of the fit), an `ImplicitModel` such as `states.baseline`, whose
        biases do not count, or an array (n + q, d).
      epsilon: ε > 0, in the units of the weights.
      exponent: > 0.

    Returns:
      (n + q, d).

    Raises:
      TypeError, ValueError: for anything else.

    Source: Zou, The adaptive lasso and its oracle properties (2006).

    Examples:
      >>> import simjax
      >>> simjax.adaptive_weights([[0.95, 0.0]], epsilon=0.05)  # an entry that is large pays little
      array([[ 1., 20.]])
    """
    epsilon, exponent = positive_scalar("epsilon", epsilon), positive_scalar("exponent", exponent)
    if isinstance(source, FitResult):
        weights = dense_rows(source.weights)
    elif isinstance(source, ImplicitModel):
        weights = model_rows(source, intercept=False)
    else:
        weights = float_array("source", source)
    if weights.ndim != 2:
        raise ValueError(f"source must be a FitResult, an ImplicitModel or an (n + q, d) array, got {weights.ndim}-D.")
    return 1.0 / (np.abs(weights) + epsilon) ** exponent
