"""Warnings that point at the line of the user's from which simjax was called."""

from __future__ import annotations

import sys
import warnings
from typing import Any

_HALF_PRECISIONS = ("float16", "bfloat16")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """`warnings.warn`, blamed on the innermost caller outside of simjax, however deep in it the warning is raised."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def warn_of_half_precision(name: str, given: Any) -> None:
    """A warning where an array of states has too few digits for a fit of it to be near the network."""
    dtype = str(getattr(given, "dtype", "")).removeprefix("torch.")
    if dtype in _HALF_PRECISIONS:
        warn(
            f"{name} is of dtype {dtype}, which keeps two or three digits: a fit is certified for the numbers given, "
            "and is no nearer to the network than they are. Collect states in float32 or float64."
        )


def _is_ours(module: str) -> bool:
    return module == "simjax" or module.startswith("simjax.")
