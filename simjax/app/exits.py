"""How a command ends: exit statuses, one line for what went wrong, and what was saved before an interrupt."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simjax._extras import needs
from simjax.app import display, interrupts
from simjax.app.interrupts import INTERRUPTED
from simjax.rows.oracles.interface import OracleUnavailable

with needs("cli", "typer", "the command simjax"):
    import typer

NOT_CERTIFIED = 1
BAD_INPUT = 2
INTERNAL_ERROR = 3
PIPE_CLOSED = 128 + 13  # as a shell reports SIGPIPE
EPILOG = (
    f"Exit status: 0 for success, {NOT_CERTIFIED} where rows are not certified or disagree, {BAD_INPUT} for bad input, "
    f"{INTERNAL_ERROR} for an error of simjax itself, {INTERRUPTED} after an interrupt, {PIPE_CLOSED} where the reader "
    "of a pipe went away."
)
_BAD_INPUT_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, ModuleNotFoundError, OracleUnavailable)


@contextmanager
def reporting() -> Iterator[list[Path]]:
    """Shows bad input as one line and exit code 2, and the library's warnings as one line each.

    Yields a list to which a command adds what it has saved, or where it saves on the way, for an interrupt to name.
    """
    saved: list[Path] = []
    with interrupts.raised(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield saved
        except KeyboardInterrupt:
            display.say_interrupted([path for path in saved if path.is_file() or any(path.glob("*"))])
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _forget_standard_output()
            raise typer.Exit(PIPE_CLOSED) from None
        except _BAD_INPUT_ERRORS as error:
            display.say_error(f"{error} Pass --force to overwrite." if isinstance(error, FileExistsError) else error)
            raise typer.Exit(BAD_INPUT) from error
        finally:
            for warning in caught:
                display.say_warning(warning.message)


def exit_by(right: bool, said: str = "What was computed is saved all the same.") -> None:
    """Leaves with `NOT_CERTIFIED`, and says so, unless every row is certified, and agrees where it was compared."""
    if not right:
        display.say_not_certified(said)
        raise typer.Exit(NOT_CERTIFIED)


def _forget_standard_output() -> None:
    """Nobody reads it any more, and what is left in its buffer shall not be an error when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
