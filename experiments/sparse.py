"""Ways to sparse models that several experiments share: adaptive weights, and magnitude pruning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import simjax
from benchmarks.problems import KAPPA
from simjax.implicit.model import ImplicitModel
from simjax.states.states import States

# The penalty of the first fit, whose weights say how much each weight pays in the second.
FIRST_ALPHA, FIRST_TOL, EPSILON = 1e-4, 1e-3, 0.05


def relative_weights(states: States, objective: str, **options: Any) -> np.ndarray:
    """Adaptive weights, at most 1, from a coarse first fit: a weight found large pays little in the next."""
    options = {"kappa": KAPPA, "reduction": "mean", "support": "hollow", **options}
    first = simjax.fit(states, objective, alpha=FIRST_ALPHA, tol=FIRST_TOL, **options)
    return EPSILON * simjax.adaptive_weights(first, epsilon=EPSILON)


def pruned(model: ImplicitModel, nonzeros: int) -> ImplicitModel:
    """The model with only its `nonzeros` largest weights, over A, B, C and D together."""
    matrices: dict[str, Any] = {name: getattr(model.to_dense(), name) for name in "ABCD"}
    sizes_of_weights = np.sort(np.concatenate([np.abs(M).ravel() for M in matrices.values()]))
    if not 1 <= nonzeros <= sizes_of_weights.size:
        raise ValueError(f"nonzeros must be in 1 … {sizes_of_weights.size}, got {nonzeros}.")
    least = sizes_of_weights[-nonzeros]
    kept: dict[str, Any] = {name: np.where(np.abs(M) >= least, M, 0.0) for name, M in matrices.items()}
    return replace(model, **kept)
