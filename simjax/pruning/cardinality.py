"""Supports of a given number of weights, by ADMM: not convex, so that nothing is claimed of the support.

    min ½‖(W − Ŵ) H^½‖²   s.t.   D = W,  D in the pattern          H = ΦᵀΦ with its columns normalised, HŴᵀ = ΦᵀT

    W ← (ΦᵀT + ρ(D − U))(H + ρI)⁻¹,    D ← the nearest allowed to W + U,    U ← U + W − D,    ρ slowly growing

One eigendecomposition of H serves all ρ, so that a step is two products with its eigenvectors. While ρ is small weights
move freely between the rows of a layer; what it grows to, fixes the support.

Source: Meng, Behdin, Wang, Mazumder, ALPS: Improved optimization for highly sparse one-shot pruning for large language
models (2024), Algorithm 1, whose ρ grows faster and from less.
"""

from __future__ import annotations

import numpy as np

from simjax.pruning.patterns import Pattern
from simjax.pruning.problem import LayerProblem

# ρ, with columns of norm one, and by how much it grows every few steps: measured in docs/pruning.md.
_RHO, _GROWTH, _EVERY, _STEPS = 0.01, 1.04, 3, 400


def cardinality_support(problem: LayerProblem, pattern: Pattern) -> np.ndarray:
    """A support (out, in) in the pattern, found in float32: what is done with it is decided in float64."""
    norms = np.sqrt(np.diagonal(problem.gram))
    unit = np.where(norms > 0.0, norms, 1.0)
    values, basis = np.linalg.eigh(problem.gram / unit / unit[:, None])
    spectrum = np.maximum(values, 0.0).astype(np.float32)
    basis = basis.astype(np.float32)
    pull = (problem.correlations / unit).astype(np.float32) @ basis
    copy = (problem.weight * norms).astype(np.float32)
    copy = np.where(pattern.project(np.abs(copy)), copy, 0.0)
    dual, rho = np.zeros_like(copy), np.float32(_RHO)
    for step in range(_STEPS):
        weight = ((pull + rho * ((copy - dual) @ basis)) / (spectrum + rho)) @ basis.T
        weight += dual
        support = pattern.project(np.abs(weight))
        copy = np.where(support, weight, np.float32(0.0))
        dual = weight - copy
        if step % _EVERY == _EVERY - 1:
            rho = rho * np.float32(_GROWTH)
            dual /= np.float32(_GROWTH)
    return support & (norms > 0.0)
