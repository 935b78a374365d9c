"""`simjax fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import simjax
from simjax._extras import needs
from simjax.app import display, reports
from simjax.app.arguments import (
    DEFAULT_ALPHA,
    Alpha,
    Checkpoint,
    Force,
    Json,
    States,
    check_output,
    fit_arguments,
    place_of,
    with_fit_options,
)
from simjax.app.exits import exit_by, reporting

with needs("cli", "typer", "the command simjax"):
    import typer


@with_fit_options
def fit(
    states: States,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="MODEL.safetensors", help="Where to save the model.")
    ],
    alpha: Alpha = DEFAULT_ALPHA,
    mu: Annotated[
        float | None, typer.Option(help="Second weight of perspective and elastic_net (default: alpha).")
    ] = None,
    checkpoint: Checkpoint = None,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Fit an implicit model to saved states and certify every row of it."""
    with reporting() as saved:
        check_output(output, force)
        arguments = fit_arguments(options)
        loaded = simjax.States.load(states)
        if checkpoint is not None:
            saved.append(checkpoint)
        with display.Display(saved) as observer:
            observer.stage("Fit")
            result = simjax.fit(loaded, alpha=alpha, mu=mu, progress=observer.rows, checkpoint=checkpoint, **arguments)
        place = place_of(output, result.converged)
        result.model.save(place, overwrite=force)
        saved.append(place)
        report = reports.fit_report(result, loaded, place)
        if as_json:
            display.print_json(report)
        else:
            display.print_fit(f"Implicit model of {states}", report)
        exit_by(result.converged)
