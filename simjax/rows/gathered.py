"""Cholesky factors of one Gram matrix on the columns of each row, and what is orthogonal to these columns.

G_JJ is k × k whatever the number of samples, so that a row with a pattern J of its own costs k³/3, where a QR
factorisation of its columns costs 2mk². It squares the condition number: patterns for which that is too much are told,
and are for the QR factorisation (`simjax.rows._qr`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from simjax.rows import lapack

# A pass leaves ε/rcond of what it was to remove; below this a few passes would not do.
_LEAST_RCOND = 1e-11
_PASSES = 4
# Rounding of s_j = φ_jᵀy is 1e-13 √m ‖φ_j‖ ‖y‖ to the certificate; passes end well inside of it.
_ENOUGH = 1e-14
_ROUNDED = 1e-16  # a product of rounded numbers has no less: what is below needs no pass at all
_NEGLIGIBLE = 5e-14
_CANCELLED = 1e-12
_BLOCK = 64  # rows of a matrix that are gathered while they stay in the cache
# What the factors of a tile take at most, for each thread; but a few rows always, which share products with the design.
_BYTES, _ROWS = 2**25, 4


@dataclasses.dataclass(frozen=True)
class _Group:
    """Rows with one pattern: their numbers, the columns J, the factor of D⁻¹ (G_JJ + diag) D⁻¹, and 1/D."""

    rows: np.ndarray
    columns: np.ndarray
    factor: np.ndarray
    scale: np.ndarray


@dataclasses.dataclass(frozen=True)
class GatheredFactors:
    """Factors of G_JJ + diag(q_J) for each row's J, one for all rows with the same J and q.

    Attributes:
      good: rows whose matrix is far enough from singular, (R,); `solve` gives zeros for the others.
    """

    groups: list[_Group]
    good: np.ndarray

    @classmethod
    def of(cls, gram: np.ndarray, members: np.ndarray, diagonal: np.ndarray | None = None) -> GatheredFactors:
        """Those of G (d, d) on `members` (R, d), with `diagonal` q (broadcasting against (R, d)) added.

        Columns with G_jj + q_j = 0 are left out: they are zero.
        """
        width = gram.shape[0]
        extra = np.zeros((1, width)) if diagonal is None else diagonal
        squares = np.diagonal(gram) + extra
        members = members & (squares > 0.0)
        own = extra.shape[0] > 1
        groups, good = [], np.ones(members.shape[0], dtype=bool)
        for rows in _equal_rows(members, extra if own else None):
            first = rows[0]
            columns = np.flatnonzero(members[first])
            if columns.size == 0:
                continue
            row = first if own else 0
            scale = 1.0 / np.sqrt(np.broadcast_to(squares[row], width)[columns])
            factor = _factor(gram, columns, scale)
            if factor is None:
                good[rows] = False
            else:
                groups.append(_Group(rows, columns, factor, scale))
        return cls(groups, good)

    def solve(self, right: np.ndarray) -> np.ndarray:
        """(G_JJ + diag)⁻¹ times the entries J of each row of `right`, (R, d); zero outside J."""
        answer = np.zeros_like(right)
        for group in self.groups:
            if group.rows.size == 1:
                row = group.rows[0]
                found = lapack.cholesky_solve(group.factor[None], (right[row, group.columns] * group.scale)[None])
                answer[row, group.columns] = found[0] * group.scale
            else:
                index = np.ix_(group.rows, group.columns)
                found = lapack.cholesky_solve(group.factor[None], (right[index] * group.scale).T[None])
                answer[index] = found[0].T * group.scale
        return answer


def _factor(gram: np.ndarray, columns: np.ndarray, scale: np.ndarray) -> np.ndarray | None:
    """The factor of D⁻¹ (G_JJ + diag(q)) D⁻¹, or None if that is nearly singular; q is in the scale 1/D alone."""
    count = columns.size
    matrix, norm = np.empty((count, count)), 0.0
    for start in range(0, count, _BLOCK):
        rows = slice(start, start + _BLOCK)
        part = gram[columns[rows]].take(columns, axis=1, out=matrix[rows], mode="clip")
        part *= scale[rows, None]
        part *= scale
        part.reshape(-1)[start :: count + 1] = 1.0
        norm = max(norm, float(np.abs(part).sum(axis=1).max()))
    usable = lapack.cholesky_in_place(matrix) and lapack.reciprocal_condition(matrix, norm) > _LEAST_RCOND
    return matrix if usable else None


def _equal_rows(members: np.ndarray, diagonal: np.ndarray | None) -> Iterator[np.ndarray]:
    """The numbers of rows that are the same in `members` and in `diagonal`, group by group."""
    keys: dict[bytes, list[int]] = {}
    packed = np.packbits(members, axis=1)
    for row, key in enumerate(packed):
        whole = key.tobytes() if diagonal is None else key.tobytes() + diagonal[row].tobytes()
        keys.setdefault(whole, []).append(row)
    return (np.array(rows) for rows in keys.values())


def row_tiles(members: np.ndarray) -> list[np.ndarray]:
    """Row numbers in tiles whose factors fit the memory set aside, rows of one pattern next to each other."""
    order = np.lexsort(np.packbits(members, axis=1).T)
    size = 8 * members.sum(axis=1)[order].astype(np.int64) ** 2
    most = max(_BYTES, _ROWS * int(size.max(initial=0)))
    return np.split(order, np.flatnonzero(np.diff(np.cumsum(size) // most)) + 1)


def project_out(
    design: Any, gram: np.ndarray, supports: np.ndarray, duals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each y made orthogonal to the columns of its row: y − Φ_J (G_JJ)⁻¹ Φ_Jᵀ y, until only rounding is left.

    The products with Φ are made for all rows at once. Where hardly anything is left of y, that is rounding: y = 0.

    Args:
      design: Φ, (m, d), or a `SparseDesign`.
      gram: G = ΦᵀΦ, (d, d).
      supports: J, boolean (R, d).
      duals: y, (R, m).

    Returns:
      the projections, (R, m); and the rows for which they hold, |φ_jᵀy| ≤ 5e-14 √m ‖φ_j‖ ‖y‖, (R,). The others are
      ill-conditioned and left as they were.
    """
    projected, good = np.array(duals, dtype=np.float64), np.ones(supports.shape[0], dtype=bool)
    reach = np.sqrt(design.shape[0] * np.maximum(np.diagonal(gram), 0.0))
    limit = _ROUNDED * reach * np.linalg.norm(projected, axis=1, keepdims=True)
    open_ = np.flatnonzero(np.any(supports & (np.abs(projected @ design) > limit), axis=1))
    for rows in (open_[tile] for tile in row_tiles(supports[open_])):
        if rows.size:
            factors = GatheredFactors.of(gram, supports[rows])
            projected[rows], good[rows] = orthogonal(design, gram, factors, supports[rows], projected[rows])
    return projected, good


def orthogonal(
    design: Any, gram: np.ndarray, factors: GatheredFactors, supports: np.ndarray, duals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`project_out` for factors that are at hand."""
    reach = np.sqrt(design.shape[0] * np.maximum(np.diagonal(gram), 0.0))
    size = np.linalg.norm(duals, axis=1, keepdims=True)
    new, good = np.where(factors.good[:, None], duals, 0.0), factors.good.copy()
    open_ = supports.any(axis=1) & good
    for _ in range(_PASSES + 1):
        slopes = np.where(supports, new @ design, 0.0)
        left = np.linalg.norm(new, axis=1, keepdims=True)
        cancelled = left <= _CANCELLED * size
        new = np.where(cancelled & open_[:, None], 0.0, new)
        off = np.max(np.abs(slopes) - _ENOUGH * reach * left, axis=1) > 0.0
        open_ = open_ & off & ~cancelled[:, 0]
        if not open_.any():  # one more, for what is left is as large as it may be
            new = new - factors.solve(np.where((good & ~cancelled[:, 0])[:, None], slopes, 0.0)) @ design.T
            break
        change = factors.solve(np.where(open_[:, None], slopes, 0.0))
        new = new - change @ design.T
    else:
        good &= ~(np.max(np.abs(slopes) - _NEGLIGIBLE * reach * left, axis=1) > 0.0)
    return np.where(good[:, None], new, duals), good
