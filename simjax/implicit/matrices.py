"""Dense or CSR: the matrices A, B, C, D of a model, what is made of them and what they make of states and inputs."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
import scipy.sparse as sp

from simjax._checks import float_array, matrix
from simjax._typing import Weights

Storage = Literal["dense", "csr"]


class Parts(Protocol):
    """What the functions below need of an `ImplicitModel`, which is built on them: A, B, C, D, b, c and the sizes."""

    @property
    def A(self) -> Any: ...

    @property
    def B(self) -> Any: ...

    @property
    def C(self) -> Any: ...

    @property
    def D(self) -> Any: ...

    @property
    def b(self) -> np.ndarray | None: ...

    @property
    def c(self) -> np.ndarray | None: ...

    @property
    def n(self) -> int: ...

    @property
    def q(self) -> int: ...

    def to_dense(self) -> Any: ...


# ---- what a model makes of states and inputs ---------------------------------------------------------------


def drive(model: Parts, U: np.ndarray) -> np.ndarray:
    """UBᵀ + b, (m, n): what inputs U (m, p) add to every pass of the iteration."""
    product = U @ model.B.T
    return product if model.b is None else product + model.b


def preactivations(model: Parts, X: np.ndarray, U: np.ndarray) -> np.ndarray:
    """Z = XAᵀ + UBᵀ + b, (m, n), for states X (m, n) and inputs U (m, p)."""
    Z = X @ model.A.T + U @ model.B.T
    return Z if model.b is None else Z + model.b


def outputs(model: Parts, X: np.ndarray, U: np.ndarray) -> np.ndarray:
    """Ŷ = XCᵀ + UDᵀ + c, (m, q), for states X (m, n) and inputs U (m, p)."""
    Y = X @ model.C.T + U @ model.D.T
    return Y if model.c is None else Y + model.c


def model_rows(model: Parts, *, intercept: bool) -> np.ndarray:
    """[A B; C D] as an array, (n + q, n + p), with `intercept` (b; c) as one more column."""
    parts = model.to_dense()
    rows = np.concatenate([np.hstack([parts.A, parts.B]), np.hstack([parts.C, parts.D])])
    if not intercept:
        return rows
    b, c = (np.zeros(k) if v is None else v for v, k in ((parts.b, parts.n), (parts.c, parts.q)))
    return np.concatenate([rows, np.concatenate([b, c])[:, None]], axis=1)


# ---- dense or CSR ------------------------------------------------------------------------------------------


def is_sparse(M: Any) -> bool:
    """Whether M is a matrix of scipy.sparse, of any format."""
    return sp.issparse(M)


def dense(M: Weights) -> np.ndarray:
    """M as a NumPy array."""
    return M.toarray() if sp.issparse(M) else M


def count_nonzero(M: Weights) -> int:
    """Entries of M that are exactly nonzero."""
    return int(M.count_nonzero() if sp.issparse(M) else np.count_nonzero(M))


def scaled(M: Weights, left: np.ndarray | None, right: np.ndarray | None) -> Weights:
    """diag(left) M diag(right); None stands for the identity."""
    if sp.issparse(M):
        product: Any = M if left is None else sp.diags_array(left) @ M
        return sp.csr_array(product if right is None else product @ sp.diags_array(right))
    product = M if left is None else left[:, None] * M
    return product if right is None else product * right


def assembled(shape: tuple[int, int], blocks: list[tuple[int, int, np.ndarray]], storage: Storage) -> Weights:
    """A zero matrix with (first row, first column, block) placed in it."""
    if storage == "dense":
        M = np.zeros(shape)
        for row, column, block in blocks:
            M[row : row + block.shape[0], column : column + block.shape[1]] = block
        return M
    parts = [(row, column, sp.coo_array(block)) for row, column, block in blocks]
    empty = np.zeros(0, dtype=int)
    rows = np.concatenate([empty, *(row + part.coords[0] for row, _, part in parts)])
    columns = np.concatenate([empty, *(column + part.coords[1] for _, column, part in parts)])
    values = np.concatenate([np.zeros(0), *(part.data for *_, part in parts)])
    return sp.csr_array((values, (rows, columns)), shape=shape)


# ---- checks ------------------------------------------------------------------------------------------------


def checked_matrix(value: Any, name: str, sparse: bool) -> Weights:
    """`value` as a finite float64 matrix, read-only; CSR if it is sparse or `sparse` says so.

    Raises:
      ValueError: not two-dimensional, empty, NaN or inf.
      TypeError: not real numbers.
    """
    if not is_sparse(value):
        array = _read_only(matrix(name, value))
        return sp.csr_array(array) if sparse else array
    if value.ndim != 2 or 0 in value.shape:
        raise ValueError(f"{name} must be two-dimensional and not empty, got shape {value.shape}.")
    csr = sp.csr_array(value, copy=True)  # a copy: cleaning up must not touch the caller's matrix
    csr.data = float_array(name, csr.data)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return csr


def checked_bias(value: Any, name: str, size: int) -> np.ndarray | None:
    """`value` as a finite float64 vector (size,), read-only; None stays None.

    Raises:
      ValueError: another shape, NaN or inf.
      TypeError: not real numbers.
    """
    if value is None:
        return None
    array = float_array(name, value)
    if array.shape != (size,):
        raise ValueError(f"{name} has shape {array.shape}, expected ({size},).")
    return _read_only(array)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
