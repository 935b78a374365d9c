"""What the stages of a run cost: wall time, and how much of it XLA compiled."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import jax


class Stage(NamedTuple):
    """Wall time of a stage, and how much of it XLA compiled."""

    seconds: float
    compile_seconds: float


def total(stages: Mapping[str, Stage]) -> Stage:
    """All stages together."""
    return Stage(*(sum(column) for column in zip((0.0, 0.0), *stages.values())))


@contextmanager
def spending(stages: dict[str, Stage], name: str) -> Iterator[None]:
    """Puts what is spent inside into `stages`."""
    began, known = time.perf_counter(), len(_compilations())
    yield
    stages[name] = Stage(time.perf_counter() - began, sum(_compilations()[known:]))


@functools.cache
def _compilations() -> list[float]:
    """The seconds of every compilation by XLA in this process since the first call of this function; it grows."""
    found: list[float] = []

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)
    return found
