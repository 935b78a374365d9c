"""How many rows fit into memory at once."""

from __future__ import annotations

import ctypes
import sys

import numpy as np

from simjax.rows.container import memory_left

# Working arrays of a row: the window of ADMM's path and its differences, and some more, of length d; targets, residuals
# and duals of length m.
_ARRAYS_OF_D = 40
_ARRAYS_OF_M = 8

TASK_ROWS = 256  # that a worker of an executor is given at once for each of its threads
_KEPT = 2.0**28  # bytes of the working arrays of a block that is kept in a checkpoint


def bytes_per_row(shape: tuple[int, int]) -> int:
    """What the working arrays of a row take for a design of shape (m, d)."""
    m, d = shape
    return 8 * (_ARRAYS_OF_D * d + _ARRAYS_OF_M * m)


def row_blocks(
    rows: int, shape: tuple[int, int], max_memory: float | None, devices: int = 1, most: int | None = None
) -> list[np.ndarray]:
    """Row numbers in blocks of equal size whose working arrays fit into `max_memory` bytes on each device.

    Args:
      shape: (m, d) of the design, which itself does not count.
      max_memory: None means half of what is free, and eight rows at least.
      most: rows of a block, whatever the memory; None means any number.

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
    count = -(-rows // (fit if most is None else min(fit, most)))
    size = -(-rows // count)
    return [np.arange(i, min(i + size, rows)) for i in range(0, rows, size)]


def kept_block_memory(shape: tuple[int, int]) -> float:
    """What a block may take that is kept in a checkpoint: no matter of what is free, so that it is the same again."""
    return max(_KEPT, 8.0 * bytes_per_row(shape))


def free_memory() -> float:
    """Bytes that JAX's default device has free, where JAX is in use and says; otherwise those left to this process."""
    jax = sys.modules.get("jax")
    statistics = jax.local_devices()[0].memory_stats() if jax is not None else None
    if statistics and "bytes_limit" in statistics:
        return float(statistics["bytes_limit"] - statistics.get("bytes_in_use", 0))
    return memory_left()


def give_back_freed() -> None:
    """Return to the system what has been freed; nothing happens where the C library cannot.

    It keeps freed arrays for each of the threads that made them, and over solves of different sizes these add up to
    several times what is in use at once.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(ctypes.c_size_t(0))
