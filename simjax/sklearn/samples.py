"""What is common to the estimators: their samples and their constraint."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import _check_sample_weight, validate_data

from simjax.rows.constraints import Box, Constraint, Free, L1Ball


def samples_of(model: Any, X: Any, y: Any, sample_weight: Any) -> tuple[Any, np.ndarray, np.ndarray | None]:
    """X (n, d), y (n,) or (n, k) and the sample weights, as scikit-learn checks them, in float64."""
    X, y = validate_data(
        model, X, y, accept_sparse=("csr", "csc", "coo"), dtype=np.float64, multi_output=True, y_numeric=True
    )
    y = np.asarray(y, dtype=np.float64)
    if sample_weight is not None:
        sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    return X, y, sample_weight


def total_weight(X: Any, sample_weight: np.ndarray | None) -> float:
    """Σv, the number of samples where they have no weights.

    Raises:
      ValueError: if all weights are zero.
    """
    if sample_weight is None:
        return float(X.shape[0])
    total = float(sample_weight.sum())
    if total == 0.0:
        raise ValueError("sample_weight must not be zero for every sample.")
    return total


def constraint_of(constraint: Constraint | None, positive: bool) -> Constraint | None:
    """The constraint, with weights ≥ 0 in addition where `positive`.

    Raises:
      TypeError, ValueError: naming constraint.
    """
    if not positive:
        return constraint
    if constraint is None or isinstance(constraint, Free):
        return Box(0.0, np.inf)
    if isinstance(constraint, L1Ball):
        return Box(0.0, np.inf, ball=constraint)
    if not isinstance(constraint, Constraint):
        raise TypeError(f"constraint must be an L1Ball, a Box or None, got {type(constraint).__name__}.")
    raise ValueError(f"constraint must be an L1Ball or None with positive=True, got {type(constraint).__name__}.")
