"""One source for NumPy and JAX: which of the two the arrays of a call belong to.

The functions of `rows` are written against the names that `numpy` and `jax.numpy` share. JAX is never imported here: an
array can only be JAX's where somebody has imported it already.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np


def namespace(*arrays: Any) -> ModuleType:
    """`jax.numpy` if any of the arrays is JAX's (a traced one is, too), otherwise `numpy`."""
    jax = sys.modules.get("jax")
    if jax is not None and any(isinstance(array, jax.Array) for array in arrays):
        return jax.numpy
    return np
