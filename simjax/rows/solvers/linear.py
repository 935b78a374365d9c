"""Batched dense systems on the active coordinates of each row, gathered into blocks of one size."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from simjax._typing import Array
from simjax.rows import lapack
from simjax.rows.arrays import matmul, namespace, pytree


@pytree()
@dataclasses.dataclass(frozen=True)
class Gram:
    """G = KᵀK, as a matrix (d, d), or, where that would be too large, as K (r, d)."""

    matrix: Array | None
    factor: Array | None

    def block(self, index: Array) -> Array:
        """G_JJ for the coordinates J = `index` of each row, (R, k) → (R, k, k)."""
        if self.matrix is not None:
            return self.matrix[index[:, :, None], index[:, None, :]]
        xp = namespace(self.factor)
        columns = xp.moveaxis(self.factor[:, index], 0, 1)  # type: ignore[index]
        return matmul(columns.transpose(0, 2, 1), columns)


class GatheredSystem(NamedTuple):
    """G_JJ of each row's active coordinates J."""

    matrix: Array  # (R, k, k), identity outside the active coordinates
    inside: Array  # (R, k), which of the k gathered coordinates are active
    chosen: Array  # (R, k), the coordinates

    def pick(self, values: Array) -> Array:
        """The active entries of (R, d) values, zero elsewhere, (R, k)."""
        xp = namespace(values)
        picked = xp.take_along_axis(values, self.chosen, axis=1)
        return xp.where(self.inside, picked, xp.zeros_like(picked))

    def scatter(self, values: Array, width: int) -> Array:
        """(R, k) values back to (R, width), zero where nothing was gathered."""
        xp = namespace(values)
        values = xp.where(self.inside, values, 0.0)
        row = xp.arange(values.shape[0])[:, None]
        zeros = xp.zeros((values.shape[0], width), values.dtype)
        if xp is np:
            zeros[row, self.chosen] = values
            return zeros
        return zeros.at[row, self.chosen].set(values)


def gather_system(gram: Gram, member: Array, diagonal: Array, size: int) -> GatheredSystem:
    """G_JJ + diag(diagonal_J) for each row's J = `member`, (R, d), in blocks of `size` ≥ |J|."""
    xp = namespace(member)
    # The members come first, in order; `size` entries hold them all.
    index: Any
    if xp is np:
        index = np.argsort(~member, axis=1, kind="stable")[:, :size]
    else:
        from jax import lax

        index = lax.top_k(member.astype(np.float32), size)[1]
    inside = xp.take_along_axis(member, index, axis=1)
    block = gram.block(index)
    system = GatheredSystem(block, inside, index)
    diagonal = xp.where(inside, system.pick(xp.broadcast_to(diagonal, member.shape)), 1.0)
    flags = inside.astype(block.dtype)
    block = block * flags[:, :, None]
    if xp is np:
        block *= flags[:, None, :]
        block.reshape(len(block), -1)[:, :: inside.shape[1] + 1] += diagonal
        return system._replace(matrix=block)
    matrix = block * flags[:, None, :] + xp.eye(inside.shape[1], dtype=block.dtype) * diagonal[:, None, :]
    return system._replace(matrix=matrix)


def cholesky(matrix: Array) -> Array:
    """Lower Cholesky factors of symmetric (R, k, k) matrices; NaN where one is not positive definite."""
    xp = namespace(matrix)
    return lapack.cholesky(np.asarray(matrix)) if xp is np else xp.linalg.cholesky(matrix, symmetrize_input=False)


def cholesky_solve(factor: Array, right: Array) -> Array:
    """Solve with the factors (R, k, k) for right-hand sides (R, k), or several of each row, (R, k, j)."""
    if namespace(factor) is np:
        return lapack.cholesky_solve(np.asarray(factor), np.asarray(right))
    from jax import lax

    columns = right if right.ndim == 3 else right[:, :, None]
    half = lax.linalg.triangular_solve(factor, columns, left_side=True, lower=True)
    return lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True).reshape(right.shape)


def solve_small(matrix: Array, right: Array) -> Array:
    """Solve symmetric positive definite systems (R, k, k) of a few unknowns, (R, k); NaN where one is singular."""
    if namespace(matrix) is not np:
        return cholesky_solve(cholesky(matrix), right)
    try:
        return np.linalg.solve(matrix, right[..., None])[..., 0]
    except np.linalg.LinAlgError:  # of one row: the others must not suffer
        return cholesky_solve(cholesky(matrix), right).astype(matrix.dtype)
