"""`simjax fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import simjax
from simjax._extras import needs
from simjax.app import display, reports
from simjax.app.arguments import (
    DEFAULT_ALPHA,
    Checkpoint,
    Force,
    Json,
    States,
    check_output,
    fit_arguments,
    load_states,
    shard_of,
    with_fit_options,
)
from simjax.app.exits import exit_by, reporting
from simjax.app.saving import save_fit

with needs("cli", "typer", "the command simjax"):
    import typer


@with_fit_options
def fit(
    states: States,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="MODEL.safetensors", help="Where to save the model; not with --shard."),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help=f"Weight of the penalty (default: {DEFAULT_ALPHA}).")] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Find alpha instead: for so much fewer weights than the network has, a share in [0, 1)."),
    ] = None,
    mu: Annotated[
        float | None, typer.Option(help="Second weight of perspective and elastic_net (default: alpha).")
    ] = None,
    checkpoint: Checkpoint = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Solve shard K of N alone, into the checkpoint; then: simjax merge."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Fit an implicit model to saved states and certify every row of it."""
    with reporting() as saved:
        if shard is not None:
            part = shard_of(shard, output, checkpoint)
        elif output is not None:
            check_output(output, force, read=(states,))
        else:
            raise ValueError("--output MODEL.safetensors is needed: where to save the model.")
        weights = {name: value for name, value in (("alpha", alpha), ("sparsity", sparsity)) if value is not None}
        if shard is not None and sparsity is not None:
            raise ValueError("--sparsity is for a whole fit: find its alpha there, and give that to the shards.")
        arguments = {**weights, "mu": mu, "checkpoint": checkpoint, **fit_arguments(options)}
        loaded = load_states(states)
        if checkpoint is not None:
            saved.append(checkpoint)
        with display.Display(saved) as observer:
            if output is not None:
                observer.stage("Fit")
                result = simjax.fit(loaded, progress=observer.rows, **arguments)
            else:
                observer.stage(f"Shard {shard}")
                solution = simjax.fit_shard(loaded, shard=part, progress=observer.rows, **arguments)
        if output is not None:
            save_fit(result, loaded.baseline, output, saved, str(states), force=force, as_json=as_json)
            exit_by(result.converged)
            return
        report = reports.shard_report(solution, str(shard), str(checkpoint))
        if as_json:
            display.print_json(report)
        else:
            display.print_shard(f"Shard {shard} of the fit to {states}", report)
        exit_by(solution.converged)
