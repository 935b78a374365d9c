"""Standard conic programs: data only, for any interior-point solver.

minimise ½ xᵀPx + qᵀx + constant    subject to    Gx + s = h,  s in a product of cones
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

ZERO, NONNEGATIVE, ROTATED = "zero", "nonnegative", "rotated"


class Cone(NamedTuple):
    """A factor of the product: {0}, the nonnegative orthant, or rotated, {2 x₀ x₁ ≥ ‖x₂…‖², x₀, x₁ ≥ 0}."""

    kind: str
    size: int


@dataclasses.dataclass(frozen=True)
class ConicProgram:
    """min ½xᵀPx + qᵀx + constant  s.t.  Gx + s = h,  s in the cones.

    Attributes:
      quadratic: P, (n, n), symmetric positive semidefinite.
      linear: q, (n,).
      constant: a number.
      matrix: G, (k, n); its rows come in the order of `cones`.
      offset: h, (k,).
      cones: the factors; zero before nonnegative before rotated.
    """

    quadratic: sparse.csc_array
    linear: np.ndarray
    constant: float
    matrix: sparse.csc_array
    offset: np.ndarray
    cones: tuple[Cone, ...]


# --- Sparse matrices from triplets -------------------------------------------------------------------------------

Triplets = tuple[np.ndarray, np.ndarray, np.ndarray]


def triplets(rows: Any, columns: Any, values: Any) -> Triplets:
    rows, columns, values = np.broadcast_arrays(rows, columns, values)
    return rows.ravel(), columns.ravel(), values.ravel()


def sparse_matrix(entries: list[Triplets], shape: tuple[int, int]) -> sparse.csc_array:
    nothing = triplets(np.zeros(0, dtype=int), np.zeros(0, dtype=int), np.zeros(0))
    rows, columns, values = (np.concatenate(parts) for parts in zip(nothing, *entries))
    matrix = sparse.csc_array((values, (rows, columns)), shape=shape)
    matrix.eliminate_zeros()
    return matrix


# --- A linear objective, for solvers that do not mix quadratic objectives and cones ------------------------------


def linear_objective(program: ConicProgram) -> ConicProgram:
    """The same program with ½xᵀPx replaced by one more variable τ and a last cone (τ, 1, Lx), P = LᵀL.

    2τ·1 ≥ ‖Lx‖² is τ ≥ ½xᵀPx. Points and multipliers of the new program begin with those of the old one.
    """
    root = _square_root(program.quadratic)
    if root.shape[0] == 0:
        return program
    size = program.linear.size
    tau = sparse.csc_array(([-1.0], ([0], [0])), shape=(root.shape[0] + 2, 1))
    padded = sparse.vstack([sparse.csc_array((2, size)), -root])
    matrix = sparse.block_array([[program.matrix, None], [padded, tau]], format="csc")
    return ConicProgram(
        quadratic=sparse.csc_array((size + 1, size + 1)),
        linear=np.append(program.linear, 1.0),
        constant=program.constant,
        matrix=matrix,
        offset=np.concatenate([program.offset, [0.0, 1.0], np.zeros(root.shape[0])]),
        cones=(*program.cones, Cone(ROTATED, root.shape[0] + 2)),
    )


def _square_root(quadratic: sparse.csc_array) -> sparse.csc_array:
    """L with P = LᵀL and no zero rows: of the diagonal entrywise, of what is coupled by its eigenvalues."""
    diagonal = quadratic.diagonal()
    off_diagonal = sparse.coo_array(quadratic - sparse.diags_array(diagonal))
    off_diagonal.eliminate_zeros()
    coupled = np.unique(off_diagonal.coords[0])
    alone = np.setdiff1d(np.flatnonzero(diagonal), coupled)
    values, vectors = np.linalg.eigh(quadratic.tocsr()[coupled][:, coupled].toarray())
    keep = values > np.finfo(np.float64).eps * values.size * values.max(initial=0.0)
    block = np.sqrt(values[keep])[:, None] * vectors[:, keep].T
    entries = [
        triplets(np.arange(alone.size), alone, np.sqrt(diagonal[alone])),
        triplets(alone.size + np.arange(len(block))[:, None], coupled, block),
    ]
    return sparse_matrix(entries, (alone.size + len(block), quadratic.shape[0]))
