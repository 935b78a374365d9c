"""Supports of a given number of weights, by ADMM: not convex, so that nothing is claimed of the support.

    min ½‖(W − Ŵ) H^½‖²   s.t.   D = W,  D in the pattern          H = ΦᵀΦ with its columns normalised, HŴᵀ = ΦᵀT

    W ← W₀ + (TᵀΦ − W₀H + ρ(D − U − W₀))(H + ρI)⁻¹,    D ← the nearest allowed to W + U,    U ← U + W − D,    ρ ← 1.03 ρ

One eigendecomposition of H serves all ρ, so that a step is two products with its eigenvectors. While ρ is small weights
move freely between the rows of a layer; what it grows to fixes the support.

Source: Meng, Behdin, Wang, Mazumder, ALPS: Improved optimization for highly sparse one-shot pruning for large language
models (2024), Algorithm 1, whose ρ begins at 0.1 and grows by 10 to 30 % where ours does by 3.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from simjax.pruning.patterns import Pattern
from simjax.pruning.problem import LayerProblem

# ρ, with columns of norm one, and by how much it grows every three steps; measured in docs/pruning.md.
_RHO, _GROWTH, _EVERY, _STEPS = 0.02, 1.03, 3, 400


@dataclasses.dataclass(frozen=True)
class CardinalityProblem:
    """A layer made ready for supports of any pattern and number of weights, in float32: what decides comes later.

    Attributes:
      spectrum, basis: the eigenvalues (in,) and eigenvectors (in, in) of H.
      pull: TᵀΦ − W₀H, zero where T is what the layer gives, (out, in).
      dense: W₀ in units in which the columns of Φ have norm one, (out, in), and scaled as `pull` is.
      norms: of the columns of Φ, (in,).
    """

    spectrum: np.ndarray
    basis: np.ndarray
    pull: np.ndarray
    dense: np.ndarray
    norms: np.ndarray

    @classmethod
    def make(cls, problem: LayerProblem) -> CardinalityProblem:
        norms = np.linalg.norm(problem.design, axis=0)
        unit = np.where(norms > 0.0, norms, 1.0)
        dense, pull = problem.weight * norms, problem.correlations / unit
        correlation = problem.gram / unit / unit[:, None]
        size = max(np.abs(dense).max(), np.abs(pull).max())
        values, basis = np.linalg.eigh(correlation)
        scale = 1.0 / size if size > 0.0 else 1.0  # nothing leaves the range of float32
        return cls(
            np.maximum(values, 0.0).astype(np.float32),
            basis.astype(np.float32),
            ((pull - dense @ correlation) * scale).astype(np.float32),
            (dense * scale).astype(np.float32),
            norms,
        )

    def support(self, pattern: Pattern, steps: int = _STEPS) -> np.ndarray:
        """A support (out, in) in the pattern.

        Args:
          steps: of ADMM; with fewer of them ρ grows the faster, from and to the same numbers.
        """
        growth = np.float32(_GROWTH ** (_STEPS / steps))
        copy = np.where(pattern.project(np.abs(self.dense)), self.dense, np.float32(0.0))
        dual, rho = np.zeros_like(copy), np.float32(_RHO)
        for step in range(steps):
            moved = self.pull + rho * (copy - dual - self.dense)
            weight = ((moved @ self.basis) / (self.spectrum + rho)) @ self.basis.T
            weight += self.dense + dual
            support = pattern.project(np.abs(weight))
            copy = np.where(support, weight, np.float32(0.0))
            dual = weight - copy
            if step % _EVERY == _EVERY - 1:
                rho = rho * growth
                dual /= growth
        return support & (self.norms > 0.0)
