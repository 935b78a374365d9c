"""Checks of arguments: each error names the argument, what was got and what was expected."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def float_array(name: str, value: Any, *, infinite: bool = False) -> np.ndarray:
    """`value` as a finite float64 array (with `infinite`, +inf is allowed too), or an error that names it.

    Raises:
      TypeError: if it is not made of real numbers.
      ValueError: if an entry is NaN or infinite.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a rectangular array of real numbers, got a ragged one.") from error
    if array.dtype.kind not in "fiub" and not _is_extended_float(array):
        raise TypeError(f"{name} must be an array of real numbers, got dtype {array.dtype}.")
    array = array.astype(np.float64)
    if infinite:
        if np.any(np.isnan(array)):
            raise ValueError(f"{name} must not contain NaN.")
    elif not np.all(np.isfinite(array)):
        bad = int(np.size(array) - np.count_nonzero(np.isfinite(array)))
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite entries of {array.size}.")
    return array


def _is_extended_float(array: np.ndarray) -> bool:
    """bfloat16 and friends: NumPy sees them as void types that convert to float."""
    return array.dtype.name.startswith(("bfloat16", "float8"))


def matrix(name: str, value: Any) -> np.ndarray:
    """`value` as a finite float64 matrix with at least one row and one column."""
    array = float_array(name, value)
    if array.ndim != 2:
        raise ValueError(f"{name} must be a 2-D array, got {array.ndim}-D with shape {array.shape}.")
    if 0 in array.shape:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}.")
    return array


def nonnegative_parameter(name: str, value: Any) -> np.ndarray:
    """`value` as a finite array of at most two dimensions with entries ≥ 0."""
    array = float_array(name, value)
    if array.ndim > 2:
        raise ValueError(f"{name} must be a scalar, (d,) or (rows, d), got shape {array.shape}.")
    if np.any(array < 0.0):
        raise ValueError(f"{name} must be >= 0, got {array.min():g}.")
    return array


def positive_scalar(name: str, value: Any, *, below: float = math.inf) -> float:
    """`value` as a float in (0, below)."""
    expected = "a positive number" if below == math.inf else f"a number in (0, {below:g})"
    if value is None or isinstance(value, str):
        raise TypeError(f"{name} must be {expected}, got {value!r}.")
    array = float_array(name, value)
    if array.ndim != 0 or not 0.0 < float(array) < below:
        raise ValueError(f"{name} must be {expected}, got {value!r}.")
    return float(array)


def positive_integer(name: str, value: Any) -> int:
    """`value` as an int ≥ 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")
    return int(value)


def choice(name: str, value: Any, valid: Iterable[str], *, synonyms: Mapping[str, str] | None = None) -> str:
    """`value` if it is one of the valid names, else an error that lists them, and says which is close to it.

    Args:
      synonyms: what others call some of the names, in small letters.
    """
    names = tuple(valid)
    if value not in names:
        said = str(value).casefold().replace("-", "_").replace(" ", "_")
        close = [synonyms[said]] if synonyms and said in synonyms else difflib.get_close_matches(said, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name} must be one of {', '.join(map(repr, names))}; got {value!r}.{hint}")
    return value


def checked_labels(labels: Any, m: int, classes: int) -> np.ndarray:
    """`labels` as an integer vector of m class indices below `classes`.

    Raises:
      ValueError: another length, or an index out of range.
      TypeError: not whole numbers.
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels must be whole numbers, got dtype {array.dtype}.")
    if array.shape != (m,):
        raise ValueError(f"labels has shape {array.shape}, expected ({m},): one per sample.")
    if array.size and (array.min() < 0 or array.max() >= classes):
        raise ValueError(f"labels must lie in 0 … {classes - 1}, got {array.min()} … {array.max()}.")
    return array
