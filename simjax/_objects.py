"""Numbers in arrays of objects."""

from __future__ import annotations

import decimal
import numbers

import numpy as np


def numbers_of_objects(name: str, array: np.ndarray) -> np.ndarray:
    """An array of Python's own numbers in float64; strings are no numbers, whatever they spell.

    Raises:
      TypeError: if there is anything else in it.
      ValueError: for numbers beyond float64.
    """
    kinds = {type(entry) for entry in array.flat}
    strange = sorted(kind.__name__ for kind in kinds if not issubclass(kind, numbers.Real | decimal.Decimal | np.bool_))
    if strange:
        raise TypeError(f"{name} must be an array of real numbers, got dtype object with {', '.join(strange)} in it.")
    try:
        return array.astype(np.float64)
    except OverflowError as error:
        raise ValueError(f"{name} must be finite in float64: {error}.") from error
