"""The inputs of `prune`, as batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

_BATCH = 256  # samples that a network is run on at once, where they come as one array


class Batches:
    """The inputs as batches, as often as they are asked for.

    Raises:
      TypeError, ValueError: neither an array with samples nor batches, or batches that come once only.
    """

    def __init__(self, inputs: Any, *, again: bool) -> None:
        self._array: Any = None
        self._batches: Iterable[Any] = ()
        self.samples = 0
        if hasattr(inputs, "shape") and hasattr(inputs, "dtype"):
            if len(inputs.shape) < 2 or inputs.shape[0] == 0:
                raise ValueError(f"inputs must be (samples, …) with at least one sample, got shape {inputs.shape}.")
            self._array = inputs
            self.first = inputs[: min(_BATCH, 32)]
            return
        if not isinstance(inputs, Iterable) or isinstance(inputs, str | bytes | dict):
            raise TypeError(f"inputs must be an array (samples, …) or batches, got {type(inputs).__name__}.")
        if isinstance(inputs, Iterator):
            if again:
                raise ValueError(
                    "inputs must be an array or batches that can be run through again, such as a list, got a "
                    "generator: it serves propagate='original' with allocation='layer' alone."
                )
            inputs = list(inputs)
        self._batches = inputs
        self.first = next(iter(inputs), None)
        if self.first is None:
            raise ValueError("inputs must have at least one batch, got none.")
        _check_batch(self.first)

    def digest(self) -> str:
        """SHA-256 of all batches."""
        total = hashlib.sha256()
        for batch in self:
            total.update(f"{batch.dtype} {tuple(batch.shape)} ".encode())
            if hasattr(batch, "detach"):  # PyTorch's, wherever it is; NumPy has not all of its types
                batch = batch.detach().cpu()
                batch = batch.double() if batch.is_floating_point() else batch
            array = np.ascontiguousarray(batch)
            total.update(array.reshape(-1).view(np.uint8).data)
        return total.hexdigest()

    def __iter__(self) -> Iterator[Any]:
        self.samples = 0
        parts = self._batches
        if self._array is not None:
            parts = (self._array[k : k + _BATCH] for k in range(0, self._array.shape[0], _BATCH))
        for part in parts:
            _check_batch(part)
            self.samples += part.shape[0]
            yield part


def _check_batch(batch: Any) -> None:
    """Raises TypeError for what is no array, such as a pair of inputs and labels."""
    if not (hasattr(batch, "shape") and hasattr(batch, "dtype") and len(batch.shape) > 0):
        raise TypeError(f"inputs must be batches that are arrays (samples, …), got a {type(batch).__name__}.")
