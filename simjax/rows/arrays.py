"""One source for NumPy and JAX: which of the two the arrays of a call belong to.

The functions of `rows` are written against the names that `numpy` and `jax.numpy` share. JAX is never imported here: an
array can only be JAX's where somebody has imported it already.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

_waiting: list[tuple[type, tuple[str, ...]]] = []


def namespace(*arrays: Any) -> ModuleType:
    """`jax.numpy` if any of the arrays is JAX's (a traced one is, too), otherwise `numpy`."""
    jax = sys.modules.get("jax")
    if jax is not None and any(isinstance(array, jax.Array) for array in arrays):
        return jax.numpy
    return np


def pytree(*static: str) -> Callable[[type[T]], type[T]]:
    """A decorator that makes a dataclass a pytree of JAX, as soon as JAX is there; `static` fields are no leaves."""

    def register(cls: type[T]) -> type[T]:
        _waiting.append((cls, static))
        if "jax" in sys.modules:
            register_pytrees()
        return cls

    return register


def register_pytrees() -> None:
    """Make the classes that wait for it pytrees. Whoever hands them to JAX calls this first."""
    import jax

    while _waiting:
        cls, static = _waiting.pop()
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        leaves = [name for name in names if name not in static]
        jax.tree_util.register_dataclass(cls, data_fields=leaves, meta_fields=list(static))
