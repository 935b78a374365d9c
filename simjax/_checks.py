"""Checks of arguments: each error names the argument, what was got and what was expected."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import scipy.sparse

from simjax._frames import column_names, frame_array, is_frame, is_series
from simjax._objects import numbers_of_objects


def plain_array(name: str, value: Any) -> np.ndarray:
    """`value` as an array of NumPy's that stands for all of it, or an error that names it.

    Object arrays of real numbers become float64, frames and series as `frame_array` says; PyTorch's tensors are taken
    off their graph and device.

    Raises:
      TypeError: traced by JAX, sparse, nothing that can be read as an array, or a frame with a column of other things
        than numbers.
      ValueError: masked or missing entries, a ragged array, numbers beyond float64.
    """
    _refuse_what_arrays_lose(name, value)
    if is_frame(value) or is_series(value):
        return frame_array(name, value)
    try:
        array = np.asarray(_off_its_graph(value))
    except Exception as error:  # anyone's __array__ runs here
        if isinstance(error, ValueError) and isinstance(value, list | tuple):
            raise ValueError(f"{name} must be a rectangular array of real numbers, got a ragged one.") from error
        raise TypeError(
            f"{name} must be an array of real numbers, got a {type(value).__name__} that cannot be read as one: {error}"
        ) from error
    return numbers_of_objects(name, array) if array.dtype.kind == "O" else array


def float_array(name: str, value: Any, *, infinite: bool = False) -> np.ndarray:
    """`value` as a finite float64 array (with `infinite`, +inf is allowed too), or an error that names it.

    Raises:
      TypeError: if it is not made of real numbers, or as `plain_array`.
      ValueError: if an entry is NaN, infinite or masked.
    """
    array = plain_array(name, value)
    if array.dtype.kind not in "fiub" and not _is_extended_float(array):
        got = repr(value) if isinstance(value, str) else f"dtype {array.dtype}"
        raise TypeError(f"{name} must be an array of real numbers, got {got}.")
    with np.errstate(over="ignore"):  # a long double that overflows is refused as infinite
        array = array.astype(np.float64)
    if infinite:
        if np.any(np.isnan(array)):
            raise ValueError(f"{name} must not contain NaN.")
    elif not np.all(np.isfinite(array)):
        finite = np.isfinite(array)
        bad, where = int(np.count_nonzero(~finite)), ""
        if is_frame(value):
            labels = [label for label, good in zip(column_names(value) or (), finite.all(axis=0)) if not good]
            where = f", in column{'s' if len(labels) > 1 else ''} {', '.join(map(repr, labels[:5]))}"
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite entries of {array.size}{where}.")
    return array


def refuse_masked(name: str, value: Any) -> None:
    """An error where entries are masked, in an array or in a list of them: NumPy and JAX would drop the mask.

    Raises:
      ValueError: if any is.
    """
    if isinstance(value, list | tuple):
        for part in value:
            if isinstance(part, list | tuple | np.ma.MaskedArray):
                refuse_masked(name, part)
    elif np.ma.is_masked(value):
        count = int(np.count_nonzero(np.ma.getmaskarray(value)))
        raise ValueError(
            f"{name} has {count} masked entries of {np.size(value)}, which are not supported: drop or fill them."
        )


def _refuse_what_arrays_lose(name: str, value: Any) -> None:
    refuse_masked(name, value)
    if scipy.sparse.issparse(value):
        raise TypeError(f"{name} must be a dense array, got a scipy.sparse {type(value).__name__}: pass its toarray().")
    refuse_traced(name, value)


def refuse_traced(name: str, *values: Any) -> None:
    """An error where JAX is tracing any of the values that make up an argument.

    Raises:
      TypeError: if it is.
    """
    if any(map(is_traced, values)):
        raise TypeError(
            f"{name} is traced by JAX, inside jit, grad or vmap, where its numbers are not known: call this function "
            "outside of them. What can be traced are simjax.functional, simjax.equilibrium and the layer of "
            "model.to_flax()."
        )


def is_traced(value: Any) -> bool:
    """Whether JAX is tracing the value, so that nothing can be asked of its entries."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def _off_its_graph(value: Any) -> Any:
    """A tensor of PyTorch's, of whatever float precision, on the host and without gradient; all else as it is."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return value.double() if value.is_floating_point() else value


def _is_extended_float(array: np.ndarray) -> bool:
    """bfloat16 and friends: NumPy sees them as void types that convert to float."""
    return array.dtype.name.startswith(("bfloat16", "float8"))


def matrix(name: str, value: Any) -> np.ndarray:
    """`value` as a finite float64 matrix with at least one row and one column."""
    array = float_array(name, value)
    if array.ndim != 2:
        remedy = f": as one column, {name}[:, None]; as one row, {name}[None]." if array.ndim == 1 else "."
        raise ValueError(f"{name} must be a 2-D array, got {array.ndim}-D with shape {array.shape}{remedy}")
    if 0 in array.shape:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}.")
    return array


def nonnegative_parameter(name: str, value: Any) -> Any:
    """`value` as a finite array of at most two dimensions with entries ≥ 0; of a traced one only the dimensions."""
    array = 1.0 * value if is_traced(value) else float_array(name, value)
    if array.ndim > 2:
        raise ValueError(f"{name} must be a scalar, (d,) or (rows, d), got shape {array.shape}.")
    if not is_traced(array) and np.any(array < 0.0):
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


def nonnegative_scalar(name: str, value: Any, *, most: float = math.inf) -> float:
    """`value` as a finite float in [0, most]."""
    expected = "a number >= 0" if most == math.inf else f"a number in [0, {most:g}]"
    if value is None or isinstance(value, str):
        raise TypeError(f"{name} must be {expected}, got {value!r}.")
    array = float_array(name, value)
    if array.ndim != 0 or not 0.0 <= float(array) <= most:
        raise ValueError(f"{name} must be {expected}, got {value!r}.")
    return float(array)


def boolean(name: str, value: Any) -> bool:
    """`value` as a bool, which it has to be."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


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
    array = plain_array("labels", labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels must be whole numbers, got dtype {array.dtype}.")
    if array.shape != (m,):
        raise ValueError(f"labels has shape {array.shape}, expected ({m},): one per sample.")
    if array.size and (array.min() < 0 or array.max() >= classes):
        raise ValueError(f"labels must lie in 0 … {classes - 1}, got {array.min()} … {array.max()}.")
    return array
