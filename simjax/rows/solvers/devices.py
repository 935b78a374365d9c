"""Rows spread over the devices of a mesh.

Rows are independent: each device runs the same program, loops included, on its own rows and a copy of the design, and
no device waits for another (the compiled programs contain no collective operation).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Array = Any


def automatic(mesh: Any) -> Mesh | None:
    """The devices of a mesh, whatever the types of its axes, as a mesh whose arrays carry no sharding in their types.

    Raises:
      TypeError: if `mesh` is neither a `jax.sharding.Mesh` nor None.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh or None, got {type(mesh).__name__}.")
    return Mesh(mesh.devices, mesh.axis_names)


def device_count(mesh: Mesh | None) -> int:
    """The number of devices that rows are spread over."""
    return 1 if mesh is None else mesh.size


def replicate(mesh: Mesh | None, tree: Any) -> Any:
    """A copy of every array on every device of the mesh."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def spread(mesh: Mesh | None, tree: Any) -> Any:
    """Every array of one entry per row cut into equal parts, one for each device; the rows must be a multiple."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, _row_spec(mesh, x))), tree)


def over_rows(mesh: Mesh | None, function: Callable, shared: tuple, by_row: tuple, **static: Any) -> Any:
    """`function(*shared, *by_row, **static)`, on every device for its own rows.

    Args:
      function: jit-compiled, with one entry per row in everything it returns.
      shared: what all rows see, e.g. the factorisation.
      by_row: trees of arrays with one entry per row; scalars and arrays with a leading 1 count as shared.
      static: its static arguments.
    """
    if mesh is None:
        return function(*shared, *by_row, **static)
    return row_program(mesh, function, shared, by_row, **static)(*shared, *by_row)


def row_program(mesh: Mesh, function: Callable, shared: tuple, by_row: tuple, **static: Any) -> Any:
    """What `over_rows` runs: the jit-compiled function of `shared` and `by_row`."""
    shared_specs = jax.tree.map(lambda _: PartitionSpec(), shared)
    row_specs = jax.tree.map(lambda x: _row_spec(mesh, x), by_row)
    leaves, structure = jax.tree.flatten((*shared_specs, *row_specs), is_leaf=_is_spec)
    return _program(mesh, function, tuple(leaves), structure, tuple(sorted(static.items())))


# Working arrays of a row: the window of ADMM's path and its differences, and some more, of length d; targets, residuals
# and duals of length m.
_ARRAYS_OF_D = 40
_ARRAYS_OF_M = 8


def bytes_per_row(shape: tuple[int, int]) -> int:
    """What the working arrays of a row take for a design of shape (m, d)."""
    m, d = shape
    return 8 * (_ARRAYS_OF_D * d + _ARRAYS_OF_M * m)


def row_blocks(rows: int, shape: tuple[int, int], max_memory: float | None, devices: int = 1) -> list[np.ndarray]:
    """Row numbers in blocks of equal size whose working arrays fit into `max_memory` bytes on each device.

    Args:
      shape: (m, d) of the design, which itself does not count.
      max_memory: None means half of what is free, and eight rows at least.

    Raises:
      ValueError: if not even eight rows fit.
    """
    each = bytes_per_row(shape)
    if max_memory is None:
        max_memory = max(free_memory() / 2, 8 * each)
    fit = int(max_memory * devices // each)
    if fit < min(rows, 8):
        raise ValueError(
            f"max_memory must allow for eight rows, {8 * each / 2**20:.0f} MiB for a design of shape {shape}, "
            f"got {max_memory / 2**20:.0f} MiB."
        )
    count = -(-rows // fit)
    size = -(-rows // count)
    return [np.arange(i, min(i + size, rows)) for i in range(0, rows, size)]


def free_memory() -> float:
    """Bytes that the default device has free; those of the machine where the device does not say."""
    statistics = jax.devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return float(statistics["bytes_limit"] - statistics.get("bytes_in_use", 0))
    try:  # what Linux would find for a new process, caches given up
        with open("/proc/meminfo") as file:
            available = next(line for line in file if line.startswith("MemAvailable:"))
        return 1024.0 * float(available.split()[1])
    except (OSError, StopIteration):
        return 0.5 * float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


@functools.lru_cache(maxsize=256)
def _program(mesh: Mesh, function: Callable, leaves: tuple, structure: Any, static: tuple) -> Any:
    return jax.jit(
        jax.shard_map(
            functools.partial(function, **dict(static)),
            mesh=mesh,
            in_specs=jax.tree.unflatten(structure, leaves),
            out_specs=PartitionSpec(mesh.axis_names),
            check_vma=False,
        )
    )


def _row_spec(mesh: Mesh, array: Any) -> PartitionSpec:
    shape = np.shape(array)
    return PartitionSpec() if not shape or shape[0] == 1 else PartitionSpec(mesh.axis_names)


def _is_spec(value: Any) -> bool:
    return isinstance(value, PartitionSpec)
