"""`simjax merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import simjax
from simjax._extras import needs
from simjax.app.arguments import Force, Json, check_output
from simjax.app.exits import exit_by, reporting
from simjax.app.saving import save_fit

with needs("cli", "typer", "the command simjax"):
    import typer


def merge(
    checkpoint: Annotated[Path, typer.Argument(metavar="FOLDER", help="The --checkpoint of all shards of a fit.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="MODEL.safetensors", help="Where to save the model.")
    ],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make the model of a fit whose shards are all finished; those that are not are named."""
    with reporting() as saved:
        check_output(output, force)
        result = simjax.merge(checkpoint)
        save_fit(result, None, output, saved, str(checkpoint), force=force, as_json=as_json)
        exit_by(result.converged)
