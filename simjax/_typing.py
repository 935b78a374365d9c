"""Types of arrays in signatures; shapes stand in the docstrings."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import jax

# A design: an array, or a matrix of scipy.sparse.
MatrixLike: TypeAlias = ArrayLike | scipy.sparse.sparray | scipy.sparse.spmatrix
# What the functions shared by NumPy and JAX take and give.
Array: TypeAlias = Union[np.ndarray, "jax.Array"]
# Rows of weights: an array, or CSR.
Weights: TypeAlias = np.ndarray | scipy.sparse.csr_array

__all__ = ["Array", "ArrayLike", "MatrixLike", "Weights"]
