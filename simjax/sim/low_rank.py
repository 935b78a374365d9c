"""A = L Rᵀ of low rank: what is chosen once without a claim, and what stays convex.

A row of A = L Rᵀ is a = R l. For a given R (n, r) the rows are convex again, with l in the place of a,

    min_{l, b}  λ‖z − X R l − U b‖² + h(l, b)    s.t.  Σ_k ω_k |l_k| ≤ κ,     ω_k = ‖R_k‖₁, column by column

and certified like any others. ‖R l‖₁ ≤ Σ_k |l_k|‖R_k‖₁, so that the weighted ball implies ‖a‖₁ ≤ κ; it may be stricter.
Finding R and L together is not convex, and nothing is claimed of R: it comes from a fit without a limit on the rank, by
reduced-rank regression.

Source: the low-rank option of the torchidl package; Izenman, Reduced-rank regression for the multivariate linear model
(1975).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from simjax._checks import positive_integer


@dataclasses.dataclass(frozen=True)
class LowRank:
    """`fit(states, constraint=LowRank(rank))`: A = L Rᵀ with `rank` columns in L and R, and ‖A‖∞ ≤ kappa.

    Raises:
      TypeError, ValueError: for a rank that is not a positive integer.

    Examples:
      >>> import numpy as np, simjax
      >>> rng = np.random.default_rng(0)
      >>> weights = [rng.normal(size=shape) for shape in ((4, 3), (2, 4))]  # of a network 3-4-2
      >>> states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(50, 3)))
      >>> result = simjax.fit(states, alpha=1e-3, constraint=simjax.LowRank(1))
      >>> int(np.linalg.matrix_rank(result.model.A)) <= 1
      True
    """

    rank: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", positive_integer("rank", self.rank))


def reduced_rank_basis(A: np.ndarray, states: np.ndarray, rank: int) -> np.ndarray:
    """R (n, rank) of the L Rᵀ that comes closest to A on the states: min ‖(A − L Rᵀ)Xᵀ‖ over both.

    With A Xᵀ = P Σ Qᵀ it is L = P_r, R = Aᵀ P_r. The columns of R are scaled to ‖R_k‖₁ = 1.

    Args:
      A: (n, n).   states: X, (m, n), or any matrix with the same XᵀX.
    """
    left, _, _ = np.linalg.svd(A @ states.T, full_matrices=False)
    basis = A.T @ left[:, :rank]
    size = np.abs(basis).sum(axis=0)
    return basis / np.where(size > 0.0, size, 1.0)
