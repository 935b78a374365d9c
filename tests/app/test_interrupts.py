"""Ctrl-C, in processes of their own: signal handlers are global."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import os, signal
from simjax.app import interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)
def dropped(step):
    try: step()
    except BaseException: pass
"""


def run(program: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-c", BEGIN + program], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("interrupts.listen(); dropped(interrupt); print('went on')", (130, "", "Interrupted; nothing saved.\n")),
        (
            "interrupts.listen()\nwith interrupts.raised():\n  with interrupts.leaving(): dropped(interrupt)",
            (130, "", "Interrupted; nothing saved.\n"),
        ),
        (
            "interrupts.listen()\nwith interrupts.raised():\n  try: interrupt()\n"
            "  except KeyboardInterrupt: print('heard')",
            (0, "heard\n", ""),
        ),
        (
            "interrupts.listen()\nwith interrupts.raised():\n  dropped(interrupt)\n  print('dropped', flush=True)\n"
            "  try: interrupts.check()\n  except KeyboardInterrupt: print('heard')",
            (0, "dropped\nheard\n", ""),
        ),
        ("interrupts.listen()\nwith interrupts.raised(): pass\ninterrupt(); print('done')", (0, "done\n", "")),
        (
            "signal.signal(signal.SIGINT, signal.SIG_IGN); interrupts.listen(); interrupt(); print('ignored')",
            (0, "ignored\n", ""),
        ),
    ],
    ids=["imports", "more imports", "raised", "dropped", "too late", "ignored"],
)
def test_an_interrupt_is_heard(program: str, expected: tuple[int, str, str]) -> None:
    assert run(program) == expected
