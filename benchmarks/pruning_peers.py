"""Peers of `prune_layer` by their published algorithms: each takes H, W₀ and a pattern and returns sparse weights.

H = XᵀX of the calibration samples, (in, in); W₀, (out, in). All in float64, and none of them touches the bias.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg

from simjax.pruning.patterns import Pattern

Peer = Callable[[np.ndarray, np.ndarray, Pattern], np.ndarray]


def magnitude(gram: np.ndarray, weight: np.ndarray, pattern: Pattern) -> np.ndarray:
    """The largest weights of the layer. Han, Pool, Tran, Dally, Learning both weights and connections (2015)."""
    return np.where(pattern.project(np.abs(weight)), weight, 0.0)


def wanda(gram: np.ndarray, weight: np.ndarray, pattern: Pattern) -> np.ndarray:
    """The largest |w_j| ‖x_j‖ of each row. Sun, Liu, Bair, Kolter, A simple and effective pruning approach (2024)."""
    return np.where(row_by_row(np.abs(weight) * np.sqrt(np.diagonal(gram)), pattern), weight, 0.0)


def sparsegpt(
    gram: np.ndarray, weight: np.ndarray, pattern: Pattern, *, damping: float = 0.01, block: int = 128
) -> np.ndarray:
    """Columns from left to right; what a pruned weight takes away is made up for by those on its right.

    With U the upper Cholesky factor of H⁻¹, the saliency of a weight is w²/U_jj². The mask of a block of columns is
    chosen when the block is reached, of n:m when the group is. Frantar, Alistarh, SparseGPT (2023), Algorithm 1, with
    the damping and block of its published code.
    """
    width = weight.shape[1]
    weight, gram = weight.copy(), gram.copy()
    dead = np.diagonal(gram) == 0.0
    gram[dead, dead], weight[:, dead] = 1.0, 0.0
    gram[np.diag_indices(width)] += damping * np.mean(np.diagonal(gram))
    inverse = scipy.linalg.cho_solve((scipy.linalg.cholesky(gram, lower=True), True), np.eye(width))
    upper = scipy.linalg.cholesky(inverse, lower=False)
    share = 1.0 - pattern.kept / weight.size
    for start in range(0, width, block):
        stop = min(start + block, width)
        part, factor = weight[:, start:stop], upper[start:stop, start:stop]
        errors, zero = np.zeros_like(part), np.zeros(part.shape, dtype=bool)
        if pattern.group is None:
            saliency = part**2 / np.diagonal(factor) ** 2
            count = round(share * part.size)
            zero.reshape(-1)[np.argsort(saliency, axis=None, kind="stable")[:count]] = True
        for j in range(stop - start):
            if pattern.group is not None and j % pattern.group[1] == 0:
                n, m = pattern.group
                saliency = part[:, j : j + m] ** 2 / np.diagonal(factor)[j : j + m] ** 2
                np.put_along_axis(zero[:, j : j + m], np.argsort(saliency, axis=1)[:, : m - n], True, axis=1)
            kept = np.where(zero[:, j], 0.0, part[:, j])
            errors[:, j] = (part[:, j] - kept) / factor[j, j]
            part[:, j:] -= np.outer(errors[:, j], factor[j, j:])
            part[:, j] = kept
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return weight


def alps(gram: np.ndarray, weight: np.ndarray, pattern: Pattern, *, damping: float = 0.01) -> np.ndarray:
    """ADMM on the number of weights, with ρ growing as its support settles, and conjugate gradients on the support.

    Meng, Behdin, Wang, Mazumder, ALPS (2024), Algorithm 1 with its printed scheme: ρ₀ = 0.1, every three steps ρ grows
    by 1.3, 1.2 or 1.1 as more than 0.1, more than 0.005 or a smaller share of the support has changed, and it ends when
    none has; columns scaled to norm one; ten steps of projected conjugate gradients.
    """
    norms = np.sqrt(np.diagonal(gram))
    unit = np.where(norms > 0.0, norms, 1.0)
    scaled = gram / unit / unit[:, None]
    scaled[np.diag_indices(len(scaled))] += damping
    values, basis = np.linalg.eigh(scaled)
    dense = weight * norms
    pull = dense @ scaled
    copy, dual, rho = dense.copy(), np.zeros_like(dense), 0.1
    support = pattern.project(np.abs(dense))
    for step in range(300):
        free = ((pull - dual + rho * copy) @ basis / (values + rho)) @ basis.T
        moved = free + dual / rho
        new = pattern.project(np.abs(moved))
        copy = np.where(new, moved, 0.0)
        dual = dual + rho * (free - copy)
        if step % 3 == 2:
            changed = np.count_nonzero(new != support) / max(pattern.kept, 1)
            support = new
            if changed == 0.0:
                break
            rho *= 1.3 if changed > 0.1 else 1.2 if changed > 0.005 else 1.1
    return _conjugate_gradients(scaled, pull, np.where(support, copy, 0.0), support) / unit


def _conjugate_gradients(
    gram: np.ndarray, pull: np.ndarray, weight: np.ndarray, support: np.ndarray, steps: int = 10
) -> np.ndarray:
    """Steps on ½ tr WHWᵀ − tr W Bᵀ over the support, all rows as one, preconditioned by the diagonal of H."""
    residual = np.where(support, pull - weight @ gram, 0.0)
    scaled = residual / np.diagonal(gram)
    direction, size = scaled, float(np.sum(residual * scaled))
    for _ in range(steps):
        curved = direction @ gram
        curvature = float(np.sum(direction * curved))
        if curvature <= 0.0:
            break
        length = size / curvature
        weight = weight + length * direction
        residual = residual - length * np.where(support, curved, 0.0)
        scaled = residual / np.diagonal(gram)
        new = float(np.sum(residual * scaled))
        direction, size = scaled + (new / size) * direction, new
    return weight


def sparseswaps(gram: np.ndarray, weight: np.ndarray, pattern: Pattern, *, most: int = 100) -> np.ndarray:
    """The mask of `wanda`, bettered by exchanging a kept for a dropped weight of a row, without changing any weight.

    The error of a mask is qᵀHq with q the dropped weights; dropping j and keeping i changes it by
    2w_j(Hq)_j + w_j²H_jj − 2w_i(Hq)_i + w_i²H_ii − 2w_i w_j H_ij, and the best exchange of a row is made until none
    gains. Zimmer, Roux, Wagner, Hendrych, Pokutta, SparseSwaps (2025), arXiv 2512.10922.
    """
    support = row_by_row(np.abs(weight) * np.sqrt(np.diagonal(gram)), pattern)
    apart = np.eye(weight.shape[1], dtype=bool)  # where two weights must not change places
    if pattern.group is not None:
        group = np.arange(weight.shape[1]) // pattern.group[1]
        apart |= group[:, None] != group
    for row, kept in zip(weight, support):
        both = 2.0 * row[:, None] * gram * row
        alone = np.diagonal(both) / 2.0
        joint = np.where(apart, -np.inf, both)  # 2w_i w_j H_ij where they may
        least = alone - joint.max(axis=1)  # of a dropped weight, but for what depends on the mask
        slope, gain = both[:, ~kept].sum(axis=1), -1e-12 * np.sum(both)
        for _ in range(most):
            pair = best_exchange(kept, joint, alone + slope, alone - slope, least + slope, gain)
            if pair is None:
                break
            slope += both[pair[0]] - both[pair[1]]
            kept[list(pair)] = False, True
    return np.where(support, weight, 0.0)


def best_exchange(
    kept: np.ndarray,
    joint: np.ndarray,
    dropped: np.ndarray,
    restored: np.ndarray,
    least: np.ndarray,
    limit: float,
    block: int = 16,
) -> tuple[int, int] | None:
    """The kept j and other i with the least dropped_j + restored_i − joint_ji, if that is below `limit`.

    Args:
      kept: (d,), boolean.
      joint: (d, d).
      dropped, restored: (d,).
      least: no more than dropped_j − joint_ji for any i, (d,): who cannot be the best is left out.
      limit: what is wanted.
      block: so many j at once.
    """
    pair, others = None, np.where(kept, np.inf, restored)
    inside = np.flatnonzero(kept)
    inside = inside[np.argsort(least[inside])]
    for start in range(0, inside.size, block):
        some = inside[start : start + block]
        if not least[some[0]] + others.min() < limit:
            break
        change = others - joint[some]
        partner = change.argmin(axis=1)
        values = dropped[some] + change[np.arange(some.size), partner]
        first = int(values.argmin())
        if values[first] < limit:
            limit, pair = values[first], (int(some[first]), int(partner[first]))
    return pair


PEERS: dict[str, Peer] = {
    "magnitude": magnitude,
    "Wanda": wanda,
    "SparseSwaps": sparseswaps,
    "SparseGPT": sparsegpt,
    "ALPS": alps,
}


def row_by_row(scores: np.ndarray, pattern: Pattern) -> np.ndarray:
    """The support of the pattern with the same number of weights in each row."""
    if pattern.group is not None:
        return pattern.project(scores)
    count = pattern.kept // scores.shape[0]
    support = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(support, np.argsort(-scores, axis=1, kind="stable")[:, :count], True, axis=1)
    return support
