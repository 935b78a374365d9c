"""The penalty weight at which a given number of weights are left, by a search along a path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_STEP = 4.0  # on the way down
_LEAST = 1e-8  # of the largest α: below it, nothing more is to be had
_SOLVES = 30
_NARROW = 1e-4  # a bracket of this relative width tells two points of a path apart no more
_INNER = 0.1  # share of the bracket by which a step stays away from its ends


def search_alpha(
    solve: Callable[[float, T | None], tuple[int, T]], largest: float, most: int, slack: int
) -> tuple[float, T]:
    """The solution with the most nonzeros, but at most `most`, that a path over α passes through.

    From the largest α downwards until there are too many; then between the last two, by the secant of the numbers over
    log α, kept inside. The number need not fall steadily with α, nor take every value: a point is always one of the
    path, whose weights are as they were solved.

    Args:
      solve: (α, the solution from which to start, or None) → (its number of nonzeros, the solution).
      largest: α > 0 at which there are at most `most`.
      most: how many nonzeros there may be.
      slack: how many fewer than that are near enough.

    Returns:
      α and the solution.
    """
    (count, found), upper = solve(largest, None), largest
    lower, above, best, densest = 0.0, 0, (largest, found), count
    for _ in range(_SOLVES):
        if most - slack <= count:
            break
        if lower == 0.0:
            alpha = upper / _STEP
            if alpha < _LEAST * largest:
                break
        elif upper <= lower * (1.0 + _NARROW):
            break
        else:
            share = min(max((most - count) / (above - count), _INNER), 1.0 - _INNER)
            alpha = math.exp(math.log(upper) + share * (math.log(lower) - math.log(upper)))
        number, solution = solve(alpha, found)
        if number > most:
            lower, above = alpha, number
            continue
        upper, count, found = alpha, number, solution
        if number >= densest:
            densest, best = number, (alpha, solution)
    return best
