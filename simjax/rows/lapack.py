"""LAPACK's Cholesky factorisation, called so that other threads run meanwhile.

SciPy's own wrappers of these routines keep Python's lock while they run, which leaves one core at work however many
threads factorise; NumPy's release it but solve no triangular systems. ctypes releases it, too, and takes the routines
from where SciPy offers them to compiled code.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg.cython_lapack

_INT, _TRIANGLE = ctypes.c_int, b"L"


def cholesky(matrix: np.ndarray) -> np.ndarray:
    """Factors of symmetric (R, k, k) float64 matrices, for `cholesky_solve`; NaN where one is not positive definite.

    Each holds Lᵀ in the triangle above its diagonal; what is below is meaningless.
    """
    factors = np.array(matrix, dtype=np.float64, order="C")
    for factor in factors:
        if not cholesky_in_place(factor):
            factor[:] = np.nan
    return factors


def cholesky_in_place(matrix: np.ndarray) -> bool:
    """Put the factor of one contiguous (k, k) float64 matrix in its place; whether there is one."""
    n, info = _INT(len(matrix)), _INT(0)
    if len(matrix):  # LAPACK sees rows as columns, and a symmetric matrix as it is; OpenBLAS is fastest on "L"
        _routine("dpotrf", 5)(_TRIANGLE, ctypes.byref(n), _place(matrix), ctypes.byref(n), ctypes.byref(info))
    return info.value == 0


def reciprocal_condition(factor: np.ndarray, norm: float) -> float:
    """An estimate of 1/(‖M‖₁ ‖M⁻¹‖₁) from the factor (k, k) of a matrix M and ‖M‖₁; k > 0."""
    n, size, answer, info = _INT(len(factor)), ctypes.c_double(norm), ctypes.c_double(0.0), _INT(0)
    work, more = np.empty(3 * len(factor)), np.empty(len(factor), dtype=np.intc)
    places = (_place(factor), ctypes.byref(n), ctypes.byref(size), ctypes.byref(answer), _place(work), _place(more))
    _routine("dpocon", 9)(_TRIANGLE, ctypes.byref(n), *places, ctypes.byref(info))
    return answer.value


def cholesky_solve(factors: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solutions for right-hand sides (R, k), or several of each row, (R, k, j), with the factors of `cholesky`."""
    several = right.ndim == 3
    solution = np.array(right.transpose(0, 2, 1) if several else right, dtype=np.float64, order="C")
    size = factors.shape[-1]
    if size:
        potrs = _routine("dpotrs", 8)
        n, columns, info = _INT(size), _INT(solution.shape[1] if several else 1), _INT(0)
        for factor, vector in zip(factors, solution):
            potrs(
                _TRIANGLE,
                ctypes.byref(n),
                ctypes.byref(columns),
                _place(factor),
                ctypes.byref(n),
                _place(vector),
                ctypes.byref(n),
                ctypes.byref(info),
            )
    return solution.transpose(0, 2, 1) if several else solution


def _place(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


@functools.cache
def _routine(name: str, arguments: int) -> Callable[..., Any]:
    offered: dict[str, Any] = dict(scipy.linalg.cython_lapack.__pyx_capi__)
    capsule = offered[name]
    pointer, label = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_GetName
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    label.restype, label.argtypes = ctypes.c_char_p, [ctypes.py_object]
    kinds = [ctypes.c_char_p] + [ctypes.c_void_p] * (arguments - 1)
    return ctypes.CFUNCTYPE(None, *kinds)(pointer(capsule, label(capsule)))
