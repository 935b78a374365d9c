"""Frames of pandas, polars and their like, known by what they offer: neither is imported, nor needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simjax._objects import numbers_of_objects


def is_frame(value: Any) -> bool:
    """Whether it has named columns of types of their own, as a DataFrame has."""
    return hasattr(value, "columns") and hasattr(value, "dtypes") and hasattr(value, "to_numpy")


def is_series(value: Any) -> bool:
    """Whether it is one column with a name, as a Series is."""
    offers = all(hasattr(value, name) for name in ("name", "dtype", "to_numpy"))
    return offers and not is_frame(value) and len(getattr(value, "shape", ())) == 1


def column_names(value: Any) -> tuple[str, ...] | None:
    """The names of a frame's columns, or of a series, as text; None for anything else."""
    if is_frame(value):
        return tuple(" ".join(map(str, label)) if isinstance(label, tuple) else str(label) for label in value.columns)
    if is_series(value) and value.name not in (None, ""):
        return (str(value.name),)
    return None


def frame_array(name: str, value: Any) -> np.ndarray:
    """The numbers of a frame (m, d), or of a series (m,): booleans where all are, otherwise float64.

    Raises:
      TypeError: a column that does not hold numbers; the message has its name and type.
      ValueError: a missing entry or NaN, likewise.
    """
    if is_series(value):
        return _column(name, "" if value.name is None else repr(value.name), value)
    columns = [
        _column(name, f"column {label!r}", column) for label, column in zip(column_names(value) or (), _columns(value))
    ]
    return np.stack(columns, axis=1) if columns else np.zeros(tuple(value.shape))


def check_same_index(**given: Any) -> None:
    """An error where two of these frames or series have indices that differ: their rows do not belong together.

    Raises:
      ValueError: naming both.
    """
    indexed = {name: value for name, value in given.items() if _has_index(value)}
    for name, value in list(indexed.items())[1:]:
        first = next(iter(indexed))
        index, other = indexed[first].index, value.index
        if len(index) != len(other) or index.equals(other):
            continue  # lengths are told elsewhere
        got = "the same one in another order" if set(index) == set(other) else "another one"
        raise ValueError(
            f"{name} must have the index of {first}, got {got}: their rows would be matched by place. Align it, "
            f"{name}.loc[{first}.index], or drop both indices, reset_index(drop=True)."
        )


def check_names(name: str, value: Any, expected: Sequence[str] | None, of: str = "the fit") -> None:
    """An error where the columns of a frame are not those expected, in their order; anything without names passes.

    Raises:
      ValueError: naming the first that differs.
    """
    names = column_names(value) if is_frame(value) else None
    if names is None or expected is None or len(names) != len(expected):
        return
    for place, (got, wanted) in enumerate(zip(names, expected)):
        if got != wanted:
            raise ValueError(
                f"{name} must have the columns of {of}, in its order: column {place} is {got!r}, not {wanted!r}."
            )


def _has_index(value: Any) -> bool:
    return (is_frame(value) or is_series(value)) and hasattr(getattr(value, "index", None), "equals")


def _columns(frame: Any) -> list[Any]:
    """The columns as series, by number: names may be there twice."""
    count = frame.shape[1]
    return [frame.iloc[:, k] for k in range(count)] if hasattr(frame, "iloc") else [frame[:, k] for k in range(count)]


def _column(name: str, label: str, column: Any) -> np.ndarray:
    where = f"{name} has {label}" if label.startswith("column") else f"{name}{f' ({label})' if label else ''} is"
    missing = np.asarray(column.isna() if hasattr(column, "isna") else column.is_null(), dtype=bool)
    array = np.asarray(column.to_numpy())
    if array.dtype.kind == "f":
        missing = missing | np.isnan(array)

    kept = array[~missing]
    text = str(column.dtype).casefold() in ("category", "enum", "categorical")
    if kept.dtype.kind == "O" and not text:
        try:
            kept = numbers_of_objects(name, kept)
        except TypeError:
            text = True
    if text or kept.dtype.kind not in "fiub":
        raise TypeError(f"{where} of dtype {column.dtype}, expected real numbers: encode it, or leave it out.")
    if missing.any():
        raise ValueError(
            f"{where} with {np.count_nonzero(missing)} missing or NaN entries of {missing.size}: drop or fill them."
        )
    return kept if kept.dtype.kind == "b" else kept.astype(np.float64)
