"""The command line: `simjax demo | fit | merge | path | prune | evaluate | predict | show | verify | doctor`.

Results go to standard output, as tables or with --json as JSON and nothing else; progress, warnings and errors go to
standard error. How a command ends is in `simjax.app.exits`; each command is a module of `simjax.app.commands`.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import simjax
from simjax._extras import needs
from simjax.app.commands.demo import demo
from simjax.app.commands.doctor import doctor
from simjax.app.commands.evaluate import evaluate
from simjax.app.commands.fit import fit
from simjax.app.commands.merge import merge
from simjax.app.commands.path import path
from simjax.app.commands.predict import predict
from simjax.app.commands.prune import prune
from simjax.app.commands.show import show
from simjax.app.commands.verify import verify
from simjax.app.exits import EPILOG, INTERNAL_ERROR

with needs("cli", "typer", "the command simjax"):
    import typer

# Without rich's boxes, which cut long lists of choices in the middle of a word.
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, epilog=EPILOG)
for command in (demo, fit, merge, path, prune, evaluate, predict, show, verify, doctor):
    app.command(short_help=command.__doc__)(command)  # whole: by itself typer cuts it


def main() -> int:
    """Runs the command that the process was started with, and leaves with its exit code."""
    for stream in (sys.stdout, sys.stderr):  # where ‖A‖∞ cannot be encoded, it is not worth an error
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        _keep_compiled_code()
        app()
    except Exception:  # not to leave with 1, which means something else
        traceback.print_exc()
    return INTERNAL_ERROR  # app itself never returns


def _keep_compiled_code() -> None:
    """Keep compiled code in the user's cache from one command to the next, unless JAX was told where already.

    A global setting, which is for a program to make and never for a library: this is the program.
    """
    import jax  # here: not needed to say what the command line can do

    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "simjax" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"simjax {simjax.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """State-driven implicit models with a certificate for every row."""
