"""Batched dense systems on the active coordinates of each row, gathered into blocks of one size."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = Any


class Gram(NamedTuple):
    """G = KᵀK, as a matrix (d, d), or, where that would be too large, as K (r, d)."""

    matrix: Any  # an array or None
    factor: Any

    def all(self) -> Array:
        """G, (d, d)."""
        return _product(self.factor) if self.factor is not None else self.matrix

    def block(self, index: Array) -> Array:
        """G_JJ for the coordinates J = `index`, (k,)."""
        if self.factor is not None:
            return _product(jnp.take(self.factor, index, axis=1))
        return jnp.take(jnp.take(self.matrix, index, axis=0), index, axis=1)


def _product(factor: Array) -> Array:
    return jnp.matmul(factor.T, factor, precision="highest")


class GatheredSystem(NamedTuple):
    """G_JJ of each row's active coordinates J."""

    matrix: Array  # (R, k, k), identity outside the active coordinates
    inside: Array  # (R, k), which of the k gathered coordinates are active
    chosen: Array | None  # (R, k), the coordinates; None where nothing was gathered because k = d

    def pick(self, values: Array) -> Array:
        """The active entries of (R, d) values, zero elsewhere, (R, k)."""
        if self.chosen is not None:
            values = jnp.take_along_axis(values, self.chosen, axis=1)
        return jnp.where(self.inside, values, 0.0)


def gather_system(gram: Gram, member: Array, diagonal: Array, size: int) -> GatheredSystem:
    """G_JJ + diag(diagonal_J) for each row's J = `member`, (R, d), in blocks of `size` ≥ |J|."""
    rows, width = member.shape
    if size >= width:
        index, inside = None, member
        block = jnp.broadcast_to(gram.all(), (rows, width, width))
    else:
        # The members come first, in order; `size` entries hold them all. On a CPU a sort takes twenty times as long.
        index = lax.top_k(member.astype(jnp.float32), size)[1]
        inside = jnp.take_along_axis(member, index, axis=1)
        block = jax.vmap(gram.block)(index)
    system = GatheredSystem(block, inside, index)
    diagonal = jnp.where(inside, system.pick(jnp.broadcast_to(diagonal, member.shape)), 1.0)
    pair = inside[:, :, None] & inside[:, None, :]
    matrix = jnp.where(pair, block, 0.0) + jnp.eye(inside.shape[1], dtype=block.dtype) * diagonal[:, None, :]
    return system._replace(matrix=matrix)


def scatter(system: GatheredSystem, values: Array, width: int) -> Array:
    """(R, k) values back to (R, width), zero where nothing was gathered."""
    values = jnp.where(system.inside, values, 0.0)
    if system.chosen is None:
        return values
    row = jnp.arange(values.shape[0])[:, None]
    return jnp.zeros((values.shape[0], width), values.dtype).at[row, system.chosen].set(values)


def cholesky(matrix: Array) -> Array:
    """Lower Cholesky factors of symmetric (R, k, k) matrices; NaN where one is not positive definite."""
    return jnp.linalg.cholesky(matrix, symmetrize_input=False)


def cholesky_solve(factor: Array, right: Array) -> Array:
    """Solve with the factors (R, k, k) for right-hand sides (R, k), or several of each row, (R, k, j)."""
    columns = right if right.ndim == 3 else right[:, :, None]
    half = lax.linalg.triangular_solve(factor, columns, left_side=True, lower=True)
    return lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True).reshape(right.shape)
