"""Ctrl-C, heard wherever it comes.

While modules are imported, an exception may end in somebody's C++ code, which drops it or aborts the process: there is
nothing to be saved or tidied up yet, and the process leaves at once. While a command runs, the exception is raised, so
that half-written files and worker processes are tidied up; where it was dropped, the next step of progress raises it
again.
"""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 128 + 2  # as a shell reports SIGINT
NOTHING_SAVED = "Interrupted; nothing saved."


class _Then(enum.Enum):
    """What an interrupt does."""

    LEAVE = enum.auto()
    RAISE = enum.auto()
    PASS = enum.auto()


_then = _Then.PASS
_dropped = False


def listen() -> None:
    """From now on an interrupt leaves at once, unless the process ignores it, as one in a shell's background does."""
    global _then
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _hear)
        _then = _Then.LEAVE


@contextmanager
def raised() -> Iterator[None]:
    """While a command runs; after that all is done, and an interrupt comes too late."""
    global _then
    _then = _Then.RAISE
    try:
        yield
    finally:
        _then = _Then.PASS


@contextmanager
def leaving() -> Iterator[None]:
    """While a command imports more."""
    global _then
    before, _then = _then, _Then.LEAVE
    try:
        yield
    finally:
        _then = before


def check() -> None:
    """Raises an interrupt that was dropped.

    Raises:
      KeyboardInterrupt: there was one.
    """
    if _dropped:
        raise KeyboardInterrupt


def _hear(number: int, frame: FrameType | None) -> None:
    global _dropped
    if _then is _Then.LEAVE:
        os.write(2, f"{NOTHING_SAVED}\n".encode())
        os._exit(INTERRUPTED)
    if _then is _Then.RAISE:
        _dropped = True
        raise KeyboardInterrupt
