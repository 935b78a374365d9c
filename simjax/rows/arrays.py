"""One source for NumPy and JAX: which of the two the arrays of a call belong to.

The functions of `rows` are written against the names that `numpy` and `jax.numpy` share. JAX is never imported here: an
array can only be JAX's where somebody has imported it already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from simjax.rows.sparse_design import SparseDesign

T = TypeVar("T")

_waiting: list[Callable[[], Any]] = []
_leaves: dict[type, tuple[str, ...]] = {}


def namespace(*arrays: Any) -> ModuleType:
    """`jax.numpy` if any of the arrays is JAX's (a traced one is, too), otherwise `numpy`."""
    jax = sys.modules.get("jax")
    if jax is not None and any(isinstance(array, jax.Array) for array in arrays):
        return jax.numpy
    return np


def matmul(left: Any, right: Any) -> Any:
    """`left @ right`; on accelerators in the full precision of its operands, which is not JAX's default."""
    xp = namespace(left, right)
    return left @ right if xp is np else xp.matmul(left, right, precision="highest")


def norms(vectors: Any) -> Any:
    """‖x‖ of each row, with the axis kept, (R, 1)."""
    xp = namespace(vectors)
    if xp is np:
        return np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]
    return xp.linalg.norm(vectors, axis=-1, keepdims=True)


def column_norms(matrix: Any) -> Any:
    """‖φ_j‖ of the columns of a matrix, (d,); in NumPy without a temporary of its size."""
    if isinstance(matrix, SparseDesign):
        return matrix.column_norms()
    xp = namespace(matrix)
    if xp is not np:
        return xp.linalg.norm(matrix, axis=0)
    return np.sqrt(np.einsum("ij,ij->j", matrix, matrix))


def largest(matrix: Any) -> float:
    """max |φ_ij| of a NumPy matrix, likewise; 0 without entries. Of a sparse design, max ‖φ_j‖, which is no less."""
    if isinstance(matrix, SparseDesign):
        return float(matrix.column_norms().max())
    return float(max(matrix.max(initial=0.0), -matrix.min(initial=0.0)))


def while_loop(condition: Callable, body: Callable, carry: Any, xp: ModuleType) -> Any:
    """`carry` after as many calls of `body` as `condition` asks for: a Python loop for NumPy, one of JAX's for JAX."""
    if xp is not np:
        from jax import lax

        return lax.while_loop(condition, body, equally_varying(carry))
    while condition(carry):
        carry = body(carry)
    return carry


def equally_varying(carry: Any) -> Any:
    """The tree of JAX arrays, each of which may differ from device to device wherever one of them does.

    Within `shard_map`, that is part of an array's type, and a loop that begins with a constant has to end with one.
    """
    import jax

    leaves, structure = jax.tree.leaves(carry), jax.tree.structure(carry)
    types = [getattr(jax.typeof(leaf), "manual_axis_type", None) for leaf in leaves]
    varying = [frozenset() if each is None else each.varying for each in types]
    every = frozenset().union(*varying)
    if not every:
        return carry

    def widened(leaf: Any, axes: Any) -> Any:
        missing = tuple(sorted(every - axes))
        if not missing or np.result_type(leaf) == jax.dtypes.float0:  # a tangent of an integer is nothing
            return leaf
        return jax.lax.pcast(leaf, missing, to="varying")

    return jax.tree.unflatten(structure, map(widened, leaves, varying))


def fori_loop(count: int, body: Callable, carry: Any, xp: ModuleType) -> Any:
    """`carry` after `body(i, carry)` for i = 0 … count − 1."""
    if xp is not np:
        from jax import lax

        return lax.fori_loop(0, count, body, equally_varying(carry))
    for i in range(count):
        carry = body(i, carry)
    return carry


def cond(choice: Any, yes: Callable, no: Callable, xp: ModuleType, *operands: Any) -> Any:
    """`yes(*operands)` or `no(*operands)`, whichever is chosen, and only that."""
    if xp is not np:
        from jax import lax

        return lax.cond(choice, yes, no, *operands)
    return yes(*operands) if choice else no(*operands)


def of_both(function: Callable, first: Any, second: Any, xp: ModuleType) -> tuple[Any, Any]:
    """`function` of each of two arrays of one shape, which JAX compiles once."""
    if xp is not np:
        from jax import lax

        found = lax.map(function, xp.stack([first, second]))
        return found[0], found[1]
    return function(first), function(second)


def with_slot(array: Any, value: Any, slot: Any, xp: ModuleType) -> Any:
    """`array` (R, k, d) with array[:, slot] = value; NumPy's is changed in place."""
    if xp is not np:
        from jax import lax

        return lax.dynamic_update_slice_in_dim(array, value[:, None], slot, axis=1)
    array[:, slot] = value
    return array


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
        _leaves[cls] = tuple(leaves)
        _await_jax(lambda tree: tree.register_dataclass(cls, data_fields=leaves, meta_fields=list(static)))
        return cls

    return register


def pytree_of(leaves: tuple[str, ...], static: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """A decorator that makes a class with a constructor of its own a pytree, as soon as JAX is there.

    Its leaves are what the constructor was told. It is put together without the constructor: leaves may be traced,
    axes for `vmap`, or no numbers at all.
    """

    def register(cls: type[T]) -> type[T]:
        def flatten(instance: T) -> tuple[list[Any], tuple]:
            return [getattr(instance, name) for name in leaves], tuple(getattr(instance, name) for name in static)

        def unflatten(settings: tuple, values: Any) -> T:
            instance = object.__new__(cls)
            instance.__dict__.update(zip(leaves, values))
            instance.__dict__.update(zip(static, settings))
            return instance

        _await_jax(lambda tree: tree.register_pytree_node(cls, flatten, unflatten))
        return cls

    return register


def _await_jax(register: Callable[[Any], Any]) -> None:
    _waiting.append(lambda: register(sys.modules["jax"].tree_util))
    offer_pytrees()


def offer_pytrees() -> None:
    """Make the classes that wait for JAX pytrees, if it is there by now."""
    if _waiting and "jax" in sys.modules:
        register_pytrees()


def register_pytrees() -> None:
    """Make the classes that wait for it pytrees. Whoever hands them to JAX calls this first."""
    import jax.tree_util  # noqa: F401

    while _waiting:
        _waiting.pop(0)()


@contextlib.contextmanager
def settings_of_its_own() -> Iterator[None]:
    """Double precision in JAX, and none of the settings by which a user makes it strict with code of his own."""
    import jax

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        stack.enter_context(jax.debug_nans(False))
        stack.enter_context(jax.debug_infs(False))
        stack.enter_context(jax.transfer_guard("allow"))
        yield


def data_fields(value: Any) -> tuple[str, ...] | None:
    """The fields of a dataclass made by `pytree` that are leaves or trees; None for anything else."""
    return _leaves.get(type(value))


def tree_map(function: Callable, *trees: Any) -> Any:
    """`jax.tree.map` for tuples and the classes made by `pytree`, without JAX; None is a tree without leaves."""
    first = trees[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        parts = [tree_map(function, *each) for each in zip(*trees)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    names = data_fields(first)
    if names is None:
        return function(*trees)
    return dataclasses.replace(
        first, **{name: tree_map(function, *(getattr(tree, name) for tree in trees)) for name in names}
    )
