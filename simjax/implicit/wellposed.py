"""When x = φ(Ax + Bu + b) has one solution for every u, and the changes of scale that show it.

With slopes of φ in [0, 1] each of these is enough, and weaker than the one before:

    ‖A‖∞ < 1        λ_pf(|A|) < 1        μ_η(A) < 1 for some η > 0

⌈A⌉ is the Metzler majorant (a_ii signed, off-diagonal |a_ij|); μ_η(A) = max_i a_ii + Σ_{j≠i} |a_ij| η_j/η_i is the
measure of A in the norm max|x_i|/η_i (Jafarpour et al., "Robust implicit networks via non-Euclidean contractions",
2021).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigs, splu

from simjax._checks import float_array, matrix
from simjax._typing import ArrayLike, Weights
from simjax.implicit.activations import activation as find_activation

# Above this size an irreducible block's Perron eigenvalue comes from ARPACK, not from all its eigenvalues.
_ALL_EIGENVALUES_UP_TO = 1000


# ---- ⌈A⌉ and its measure ----------------------------------------------------------------------------------


def metzler(A: ArrayLike) -> np.ndarray:
    """⌈A⌉, the Metzler majorant: the diagonal signed, the other entries in absolute value.

    Examples:
      >>> import simjax
      >>> simjax.robustness.metzler([[-2.0, -1.0], [0.5, 0.3]])
      array([[-2. ,  1. ], [ 0.5,  0.3]])
    """
    M = matrix("A", A)
    if M.shape[0] != M.shape[1]:
        raise ValueError(f"A must be square, got shape {M.shape}.")
    return np.abs(M) + np.diag(np.minimum(np.diag(M), 0.0) * 2.0)


def matrix_measure(A: ArrayLike, eta: ArrayLike | None = None) -> float:
    """μ_η(A) = max_i a_ii + Σ_{j≠i} |a_ij| η_j/η_i; below 1 the model is well-posed.

    Args:
      A: (n, n).
      eta: (n,) positive weights; None is ones.

    Raises:
      ValueError: A that is not square or not finite, weights that do not fit or are not positive.

    Examples:
      >>> import simjax
      >>> simjax.robustness.matrix_measure([[-2.0, -1.0], [0.5, 0.3]])  # max(-2 + 1, 0.3 + 0.5)
      0.8
    """
    majorant = metzler(A)
    weights = np.ones(len(majorant)) if eta is None else positive_weights("eta", eta, len(majorant))
    return float(np.max(majorant @ weights / weights))


def optimal_weights(A: ArrayLike) -> np.ndarray | None:
    """η* = (I − ⌈A⌉)⁻¹1 > 0, for which μ_{η*}(A) = 1 − 1/max η*; None if μ_η(A) < 1 for no η.

    Such weights exist if and only if the spectral abscissa of ⌈A⌉ is below one. What is returned is
    checked: it is positive and its measure, computed in float64, is below one.

    Examples:
      >>> import simjax
      >>> A = [[0.0, 2.0], [0.0, 0.0]]  # ‖A‖∞ = 2, and yet well-posed
      >>> eta = simjax.robustness.optimal_weights(A)
      >>> simjax.robustness.matrix_measure(A, eta) < 1
      True
    """
    majorant = metzler(A)
    try:
        eta = np.linalg.solve(np.eye(len(majorant)) - majorant, np.ones(len(majorant)))
    except np.linalg.LinAlgError:
        return None
    well_posed = np.all(np.isfinite(eta)) and np.all(eta > 0.0) and np.all(majorant @ eta < eta)
    return eta if well_posed else None


def positive_weights(name: str, value: ArrayLike, size: int) -> np.ndarray:
    """`value` as `size` positive numbers.

    Raises:
      ValueError: another shape, not positive or not finite.
      TypeError: not real numbers.
    """
    array = float_array(name, value)
    if array.shape != (size,) or np.any(array <= 0.0):
        raise ValueError(f"{name} must be {size} positive numbers, got shape {array.shape}: {value!r:.60}.")
    return array


# ---- λ_pf(|A|) and its scale -------------------------------------------------------------------------------


def perron_eigenvalue(M: Weights) -> float:
    """λ_pf(M), the spectral radius of M ≥ 0: the largest over its strongly connected blocks.

    Splitting first matters for accuracy: the eigenvalues of a nilpotent matrix, all 0, come out of a general
    eigenvalue routine as large as eps^(1/n).
    """
    graph = sp.csr_array(M)
    count, label = connected_components(graph, directed=True, connection="strong")
    largest = float(graph.diagonal().max())  # blocks of a single state
    sizes = np.bincount(label, minlength=count)
    for block in np.flatnonzero(sizes > 1):
        members = np.flatnonzero(label == block)
        largest = max(largest, _irreducible_perron(graph[members][:, members]))
    return largest


def _irreducible_perron(block: sp.csr_array) -> float:
    if block.shape[0] <= _ALL_EIGENVALUES_UP_TO:
        return float(np.max(np.linalg.eigvals(block.toarray()).real))
    values = eigs(block, k=1, which="LR", v0=np.ones(block.shape[0]), return_eigenvectors=False)
    return float(values.real.max())


def perron_scale(M: Weights) -> np.ndarray:
    """The s = (I − M)⁻¹ 1 of an M ≥ 0; s > 0 with s − Ms > 0 exists only if λ_pf(M) < 1: its own proof.

    Raises:
      ValueError: λ_pf(M) ≥ 1.
    """
    ones = np.ones(M.shape[0])
    s: np.ndarray
    try:
        if sp.issparse(M):
            s = splu(sp.csc_array(sp.eye_array(M.shape[0]) - M)).solve(ones)
        else:
            s = np.linalg.solve(np.eye(M.shape[0]) - M, ones)
    except (np.linalg.LinAlgError, RuntimeError):  # exactly singular
        s = np.full(M.shape[0], np.nan)
    if not (np.all(s > 0) and np.all(s - M @ s > 0)):
        raise ValueError(
            f"rescaled() needs λ_pf(|A|) < 1, but it is {perron_eigenvalue(M):.6g}: "
            f"no change of scale brings ‖A‖∞ below 1."
        )
    return s


def checked_scale(scale: ArrayLike, n: int, activation: str) -> np.ndarray:
    """`scale` as n positive numbers by which states with this activation may be multiplied.

    Raises:
      ValueError: another shape, not positive and finite, or φ not positively homogeneous.
    """
    if not find_activation(activation).positively_homogeneous:
        raise ValueError(
            f"rescaling needs φ(s·z) = s·φ(z) for s > 0, which activation {activation!r} does not satisfy; "
            f"relu, leaky_relu and identity do."
        )
    s = float_array("scale", scale)
    if s.shape != (n,):
        raise ValueError(f"scale has shape {s.shape}, expected ({n},): one factor per state.")
    if not np.all(s > 0):
        raise ValueError(f"scale must be positive everywhere, got a smallest entry of {s.min():g}.")
    return s
