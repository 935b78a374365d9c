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


def warn_of_half_precision(**given: Any) -> None:
    """A warning where arrays or lists of them, by name, have too few digits for a fit to be near their origin."""
    first = {name: value[0] if isinstance(value, list | tuple) and value else value for name, value in given.items()}
    kinds = {name: str(getattr(value, "dtype", "")).removeprefix("torch.") for name, value in first.items()}
    coarse = [name for name, kind in kinds.items() if kind in _HALF_PRECISIONS]
    if coarse:
        warn(
            f"{', '.join(coarse)} {'are' if len(coarse) > 1 else 'is'} of dtype {kinds[coarse[0]]}, which keeps two or "
            "three digits: a fit is certified for the numbers given, and is no nearer to the truth than they are. "
            "Compute them in float32 or float64."
        )


def _is_ours(module: str) -> bool:
    return module == "simjax" or module.startswith("simjax.")
