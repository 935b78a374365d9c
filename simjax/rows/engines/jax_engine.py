"""JAX: the same functions compiled, on any of its devices, the rows spread over those of a mesh.

One program serves any number of open rows: it gathers a fixed number of them, calls the function, scatters the result,
and repeats that as often as the rows at work need, a number that it is told. Sizes are padded to a coarse grid, so that
a problem of another size near it compiles nothing. Rows are independent: on a mesh each device runs the program on its
own rows, with a copy of the design, and no device waits for another.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from simjax.rows.arrays import data_fields, register_pytrees, settings_of_its_own

_TILE_CPU, _TILE_ACCELERATOR = 64, 1024  # rows that are worked on at once
_BYTES_CPU, _BYTES_ACCELERATOR = 2**23, 2**29  # of the systems of a tile
_WHOLE_SYSTEMS = 384  # widths up to which systems are solved whole, whatever their active coordinates
# What padding holds where zero would not do.
_FILLS = {"radius": np.inf} | dict.fromkeys(("singular_values", "point_scale", "value_scale", "dual_scale", "rho"), 1.0)


def padded_size(size: int) -> int:
    """The next of 16, 32, 48, 64, 96, 128, 192, …: at most half as much again as `size`, from 32 on."""
    step = 16
    while size > 3 * step:
        step *= 2
    return next(step * k for k in (1, 2, 3) if size <= step * k)


class JaxEngine:
    """Implements `Engine`.

    Args:
      mesh: devices to spread the rows over, or None for JAX's default device.
      reason: why it was chosen, for a person.
    """

    name = "jax"

    def __init__(self, mesh: Mesh | None = None, reason: str = "as asked") -> None:
        register_pytrees()
        # Whatever the types of its axes, arrays carry no sharding in their types here.
        self.mesh = None if mesh is None else Mesh(mesh.devices, mesh.axis_names)
        self.devices = 1 if mesh is None else mesh.size
        self.reason = reason

    @functools.cached_property
    def backend(self) -> str:
        """The platform; asked for when work begins, for it is then that JAX takes hold of devices."""
        return jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform

    @property
    def _on_cpu(self) -> bool:
        return self.backend == "cpu"

    def describe(self) -> str:
        devices = f"{self.devices} devices" if self.devices > 1 else "1 device"
        return f"jax, {devices} ({self.backend}): {self.reason}"

    @contextmanager
    def session(self) -> Iterator[None]:
        with settings_of_its_own():
            yield

    def system_sizes(self, active: np.ndarray, width: int) -> np.ndarray:
        """One size for all, so that one program is compiled: everything, or what holds the most active of them."""
        size = padded_size(width)
        if size > _WHOLE_SYSTEMS:
            size = min(size, max(_WHOLE_SYSTEMS, padded_size(int(active.max(initial=1)))))
        return np.full(active.shape, size)

    def share(self, tree: Any) -> Any:
        return self._put(_padded(tree, None), lambda _: PartitionSpec())

    def spread(self, tree: Any) -> Any:
        rows = max(np.shape(leaf)[0] for leaf in jax.tree.leaves(tree))
        return self._put(_padded(tree, (rows, self._padded_rows(rows))), self._row_spec)

    def collect(
        self,
        function: Callable,
        shared: tuple,
        by_row: tuple,
        index: np.ndarray,
        *,
        widths: tuple[int | None, ...],
        row_bytes: int = 0,
        **static: Any,
    ) -> tuple:
        by_row = tuple(_in_double(tree) if _placed(tree) else self.spread(tree) for tree in by_row)
        found = self._run(function, shared, by_row, None, index, row_bytes, static)
        host = tuple(np.asarray(x)[index] for x in found)
        return tuple(x if width is None else x[:, :width] for x, width in zip(host, widths))

    def update(
        self, state: Any, function: Callable, shared: tuple, by_row: tuple, index: np.ndarray, **static: Any
    ) -> Any:
        return self._run(function, shared, by_row, state, index, 0, static)

    def _run(self, *arguments: Any) -> Any:
        program, operands = self.prepared(*arguments)
        return program(*operands)

    def prepared(
        self,
        function: Callable,
        shared: tuple,
        by_row: tuple,
        state: Any,
        index: np.ndarray,
        row_bytes: int,
        static: dict[str, Any],
    ) -> tuple[Any, tuple]:
        """The compiled function behind `collect` (state None) and `update`, and what it is called with."""
        rows = max(leaf.shape[0] for leaf in jax.tree.leaves(by_row)) // self.devices
        tile = _TILE_CPU if self._on_cpu else _TILE_ACCELERATOR
        if row_bytes:
            tile = int(np.clip((_BYTES_CPU if self._on_cpu else _BYTES_ACCELERATOR) // row_bytes, 4, tile))
        tile = min(tile, rows)
        whole = any(getattr(tree, "indivisible", False) for tree in by_row)
        # Every device gets the numbers of its own rows, filled up by one that is none, and how many tiles they make.
        length = -(-rows // tile) * tile
        numbers, tiles = np.full((self.devices, length), rows, np.int32), np.zeros(self.devices, np.int32)
        for device in range(self.devices):
            own = index[(index >= device * rows) & (index < (device + 1) * rows)] - device * rows
            numbers[device, : own.size], tiles[device] = own, -(-own.size // tile)
        program = _program(function, tuple(sorted(static.items())), tile, whole, state is None, self.mesh)
        return program, (shared, by_row, state, numbers.reshape(-1), tiles)

    def _padded_rows(self, rows: int) -> int:
        return self.devices * padded_size(-(-rows // self.devices))

    def _put(self, tree: Any, spec: Callable[[Any], PartitionSpec]) -> Any:
        mesh = self.mesh
        if mesh is None:
            return jax.tree.map(jax.device_put, tree)
        return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec(x))), tree)

    def _row_spec(self, array: Any) -> PartitionSpec:
        return _row_spec(self.mesh, array)


def _row_spec(mesh: Mesh | None, array: Any) -> PartitionSpec:
    return PartitionSpec() if mesh is None or np.shape(array)[0] == 1 else PartitionSpec(mesh.axis_names)


@functools.lru_cache(maxsize=256)
def _program(
    function: Callable, static: tuple, tile: int, whole: bool, stateless: bool, mesh: Mesh | None
) -> Callable[..., Any]:
    """The compiled loop over tiles of `function`: of (shared, by_row, state, numbers, tiles)."""
    # A compiled function inside the compiled loop is traced once, however often the loop is.
    compiled = jax.jit(functools.partial(_called, function, dict(static)))

    def local(shared: tuple, by_row: tuple, state: Any, numbers: Any, tiles: Any) -> Any:
        def call(*trees: Any) -> Any:
            return compiled(shared, trees)

        rows = max(leaf.shape[0] for leaf in jax.tree.leaves(by_row))
        every = by_row if stateless else (*by_row, state)
        if whole:  # the user's penalty has to see its rows as they were given
            found = call(*every)
            at_work = jnp.zeros(rows + 1, dtype=bool).at[numbers].set(True)[:rows]
            if stateless:
                return found
            return jax.tree.map(lambda old, new: jnp.where(_as_column(at_work, old), new, old), state, found)

        def taken(tree: Any, index: Any) -> Any:
            take = getattr(tree, "take_rows", None)
            return take(index) if take is not None else jax.tree.map(lambda x: x[index], tree)

        def one_tile(k: Any, into: Any) -> Any:
            index = lax.dynamic_slice(numbers, (k * tile,), (tile,))
            trees = by_row if stateless else (*by_row, into)
            found = call(*(taken(tree, index) for tree in trees))
            return jax.tree.map(lambda all_rows, new: all_rows.at[index].set(new, mode="drop"), into, found)

        if stateless:
            first = jax.eval_shape(call, *(taken(tree, numbers[:tile]) for tree in by_row))
            state = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), first)
        return lax.fori_loop(0, tiles[0], one_tile, state)

    local.__name__ = function.__name__.lstrip("_")  # what compilations and profiles are logged by
    if mesh is None:
        return jax.jit(local)

    def sharded(shared: tuple, by_row: tuple, state: Any, numbers: Any, tiles: Any) -> Any:
        spec, everywhere = PartitionSpec(mesh.axis_names), PartitionSpec()
        by_rows = functools.partial(jax.tree.map, functools.partial(_row_spec, mesh))
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(jax.tree.map(lambda _: everywhere, shared), by_rows(by_row), by_rows(state), spec, spec),
            out_specs=spec,
            check_vma=False,
        )(shared, by_row, state, numbers, tiles)

    return jax.jit(sharded)


def _called(function: Callable, options: dict[str, Any], shared: tuple, trees: tuple) -> Any:
    return function(*shared, *trees, **options)


def _as_column(flags: Any, like: Any) -> Any:
    return flags.reshape(flags.shape + (1,) * (like.ndim - 1))


def _in_double(tree: Any) -> Any:
    """The tree in float64: what is collected is, and so one program serves passes in float32 as well."""
    if all(leaf.dtype != np.float32 for leaf in jax.tree.leaves(tree)):
        return tree
    return _cast_to_double(tree)


@jax.jit
def _cast_to_double(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(np.float64), tree)


def _placed(tree: Any) -> bool:
    return all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))


def _padded(tree: Any, rows: tuple[int, int] | None, name: str = "") -> Any:
    """Host arrays padded to the grid, where they have several entries; in rows from and to the numbers given."""
    if tree is None:
        return None
    if isinstance(tree, tuple):
        return tuple(_padded(part, rows, name) for part in tree)
    fields = data_fields(tree)
    if fields is not None:
        padded = {field: _padded(getattr(tree, field), rows, field) for field in fields}
        if hasattr(tree, "size") and isinstance(tree.size, int):  # of a ball: coordinates beyond it have no weight
            padded["size"] = padded_size(tree.size)
        return dataclasses.replace(tree, **padded)
    array = np.asarray(tree)
    sizes = [padded_size(size) if size > 1 else size for size in array.shape]
    if rows is not None:
        sizes[0] = rows[1] if array.shape[0] == rows[0] else 1
    grown = [(0, new - old) for new, old in zip(sizes, array.shape)]
    return np.pad(array, grown, constant_values=_FILLS.get(name, 0)) if any(g for _, g in grown) else array
