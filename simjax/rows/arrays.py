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

_waiting: list[Callable[[], None]] = []


def namespace(*arrays: Any) -> ModuleType:
    """`jax.numpy` if any of the arrays is JAX's (a traced one is, too), otherwise `numpy`."""
    jax = sys.modules.get("jax")
    if jax is not None and any(isinstance(array, jax.Array) for array in arrays):
        return jax.numpy
    return np


def while_loop(condition: Callable[[T], Any], body: Callable[[T], T], carry: T, xp: ModuleType) -> T:
    """`carry = body(carry)` while `condition(carry)`: at once in NumPy, as one traced loop in JAX."""
    if xp is not np:
        return sys.modules["jax"].lax.while_loop(condition, body, carry)
    while condition(carry):
        carry = body(carry)
    return carry


def row_sums(weights: Any, values: Any) -> Any:
    """Σ_j ω_j v_j of each row, (rows, 1); ω is (1 or rows, d). In NumPy without a temporary of that size."""
    xp = namespace(weights, values)
    if xp is not np:
        return xp.sum(weights * values, axis=1, keepdims=True)
    if weights.shape[0] == 1:
        return values @ weights.T
    return np.einsum("ij,ij->i", *np.broadcast_arrays(weights, values))[:, None]


def rounding_unit(array: Any) -> float:
    """ε of the array's precision: the spacing of its numbers next to one."""
    return float(np.finfo(array.dtype).eps)


def smallest_divisor(array: Any) -> float:
    """A number below this counts as zero where it divides: 1/(4a) would overflow, or a be flushed to zero."""
    return max(1e-300, float(np.finfo(array.dtype).tiny)) if np.dtype(array.dtype).kind == "f" else 0.0


def pytree(*static: str) -> Callable[[type[T]], type[T]]:
    """A decorator that makes a dataclass a pytree of JAX, as soon as JAX is there; `static` fields are no leaves."""

    def register(cls: type[T]) -> type[T]:
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        leaves = [name for name in names if name not in static]
        _await_jax(lambda tree: tree.register_dataclass(cls, data_fields=leaves, meta_fields=list(static)))
        return cls

    return register


def pytree_like(restored: type) -> Callable[[type[T]], type[T]]:
    """A decorator for a subclass of a dataclass with another constructor: its leaves make up a `restored` again."""
    names = [field.name for field in dataclasses.fields(restored)]

    def register(cls: type[T]) -> type[T]:
        def flatten(instance: T) -> tuple[list[Any], None]:
            return [getattr(instance, name) for name in names], None

        _await_jax(lambda tree: tree.register_pytree_node(cls, flatten, lambda _, leaves: restored(*leaves)))
        return cls

    return register


def _await_jax(register: Callable[[Any], Any]) -> None:
    _waiting.append(lambda: register(sys.modules["jax"].tree_util))
    if "jax" in sys.modules:
        register_pytrees()


def register_pytrees() -> None:
    """Make the classes that wait for it pytrees. Whoever hands them to JAX calls this first."""
    import jax  # noqa: F401

    while _waiting:
        _waiting.pop(0)()
