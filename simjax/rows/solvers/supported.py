"""Rows without slopes, each on a support of its own: least squares and ridge by Cholesky factors of one Gram matrix.

min_w ½ ‖t − Kw‖² + Σ_j a_j w_j²,   w_j = 0 outside the support:      (G_JJ + 2 diag(a_J)) w_J = K_Jᵀt
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from simjax.rows.gathered import GatheredFactors, orthogonal, row_tiles

_PASSES = 4
_ENOUGH = 2e-15
_BALL_TOL = 1e-12


@dataclasses.dataclass(frozen=True)
class SupportedRows:
    """What came of R rows.

    Attributes:
      weights: w, (R, d), zero outside the support and where not `solved`.
      residuals: t − Kw, (R, m), orthogonal to the columns without curvature to the rounding of its own size.
      solved: rows far enough from singular, (R,); the others are for the QR factorisation.
      outside: solved rows whose answer violates the ball, so that it is not the constrained one, (R,).
    """

    weights: np.ndarray
    residuals: np.ndarray
    solved: np.ndarray
    outside: np.ndarray


def solve_supported_rows(
    design: np.ndarray,
    gram: np.ndarray,
    targets: np.ndarray,
    curvature: np.ndarray,
    support: np.ndarray | None = None,
    *,
    correlations: np.ndarray | None = None,
    omega: np.ndarray | None = None,
    tilt: np.ndarray | None = None,
    radius: np.ndarray | None = None,
    threads: int = 1,
) -> SupportedRows:
    """Solve rows whose penalty is a_j w_j² or nothing.

    Args:
      design: K, (m, d).
      gram: KᵀK, (d, d).
      targets: t, (R, m).
      curvature: a ≥ 0, broadcasting against (R, d).
      support: boolean (R, d), or None for all coordinates.
      correlations: Kᵀt, (R, d); made of the samples where None.
      omega, tilt, radius: a ball Σ ω|w| + δᵀw ≤ κ that the answers are checked against, not made to meet.
      threads: over which tiles of rows are spread; factors are made without the interpreter's lock.
    """
    shape = (targets.shape[0], design.shape[1])
    support = np.ones(shape, dtype=bool) if support is None else support
    curvature = np.reshape(curvature, (1,) * (2 - np.ndim(curvature)) + np.shape(curvature))
    curvature = np.broadcast_to(curvature, (curvature.shape[0], shape[1]))
    weights, residuals, solved = np.zeros(shape), np.array(targets, dtype=np.float64), np.ones(shape[0], dtype=bool)

    def solve_tile(rows: np.ndarray) -> None:
        own = curvature[rows] if curvature.shape[0] > 1 else curvature
        given = targets[rows] @ design if correlations is None else correlations[rows]
        weights[rows], residuals[rows], solved[rows] = _solve(design, gram, targets[rows], own, support[rows], given)

    tiles = row_tiles(support)  # whatever the threads, so that the answers are the same to the bit
    if threads == 1 or len(tiles) == 1:
        for rows in tiles:
            solve_tile(rows)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(solve_tile, tiles))
    outside = np.zeros(shape[0], dtype=bool)
    if radius is not None:
        norm = np.sum((0.0 if omega is None else omega) * np.abs(weights), axis=1)
        norm = norm if tilt is None else norm + np.sum(tilt * weights, axis=1)
        level = np.reshape(radius, -1)
        outside = solved & (norm - level > _BALL_TOL * np.abs(level))
    return SupportedRows(weights, residuals, solved, outside)


def _solve(
    design: np.ndarray,
    gram: np.ndarray,
    targets: np.ndarray,
    curvature: np.ndarray,
    support: np.ndarray,
    correlations: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(w, t − Kw, solved) of some rows; the residuals of the equations are those of the samples."""
    factors = GatheredFactors.of(gram, support, 2.0 * curvature)
    weights = factors.solve(correlations)
    reach = np.sqrt(np.maximum(np.diagonal(gram), 0.0)) * np.linalg.norm(targets, axis=1, keepdims=True)
    before = np.full(targets.shape[0], np.inf)
    for _ in range(_PASSES):
        residuals = targets - weights @ design.T
        missing = np.where(support & factors.good[:, None], residuals @ design - 2.0 * curvature * weights, 0.0)
        off = np.max(np.abs(missing) - _ENOUGH * reach, axis=1)
        open_ = (off > 0.0) & (off < 0.5 * before)  # rounding, or what the factor cannot resolve, stays
        if not open_.any():
            break
        before = off
        weights = weights + factors.solve(np.where(open_[:, None], missing, 0.0))
    residuals, good = targets - weights @ design.T, factors.good
    flat = support & (curvature == 0.0)
    if np.array_equal(flat, support):
        residuals, good = orthogonal(design, gram, factors, support, residuals)
    elif flat.any():
        part = GatheredFactors.of(gram, flat)
        residuals, orthogonal_too = orthogonal(design, gram, part, flat, residuals)
        good = good & orthogonal_too
    return np.where(good[:, None], weights, 0.0), np.where(good[:, None], residuals, targets), good
