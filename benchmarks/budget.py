"""Steps one after the other within a limit of time that they keep themselves, each written down when it is done."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.records import Record, plain, write

_LEAST = 3.0  # seconds without which a step is not begun
_GRACE = 5.0  # seconds before the end at which a process that no signal reaches is ended


class OutOfTimeError(Exception):
    """A step has used its time."""


def run(
    steps: Sequence[tuple[str, float, Callable[[], Record]]],
    file: Path,
    limit: float,
    head: Record,
    *,
    began: float | None = None,
    end: Callable[[int], Any] = os._exit,
) -> list[Record]:
    """Run steps of (name, most seconds, function) and keep what each returns in `file`, with its seconds.

    A step that takes longer than its limit, or than what is left of the whole, is interrupted by a signal; where that
    reaches nothing, within a compiler for instance, the process is ended. What has been written is whole either way: a
    step at work is there with "unfinished", one interrupted with "cut", one that failed with "error", one never begun
    with "left_out".

    Args:
      limit: of all steps together, seconds.
      head: kept before all steps, as the first record.
      began: when the time began to run, by `time.monotonic`; None means now.
      end: ends the process with a status.
    """
    began = time.monotonic() if began is None else began
    records: list[Record] = [head]
    watch = threading.Timer(max(limit - (time.monotonic() - began), 0.0), end, (1,))
    watch.daemon = True
    watch.start()
    try:
        for name, most, function in steps:
            left = limit - _GRACE - (time.monotonic() - began)
            if left < _LEAST:
                records.append({"step": name, "left_out": "no time was left"})
                continue
            write(file, [plain(record) for record in [*records, {"step": name, "unfinished": True}]])
            start = time.monotonic()
            try:
                with _interrupted_after(min(most, left)):
                    found = function()
            except OutOfTimeError:
                found = {"cut": f"after {time.monotonic() - start:.1f} s"}
            except Exception as error:  # the other steps have still to be made
                found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-2000:]}
            records.append({"step": name, **found, "seconds": time.monotonic() - start})
    finally:
        watch.cancel()
        write(file, [plain(record) for record in records])
    return records


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    def interrupt(*_: Any) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
