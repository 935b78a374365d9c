"""`simjax path`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import simjax
from simjax._extras import needs
from simjax._files import atomic_file, check_target, make_folder
from simjax.app import display, interrupts, reports
from simjax.app.arguments import Checkpoint, Force, Json, States, fit_arguments, load_states, place_of, with_fit_options
from simjax.app.exits import exit_by, reporting

with needs("cli", "typer", "the command simjax"):
    import typer


@with_fit_options
def path(
    states: States,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Save every model here, with path.json and the picture path.png."
        ),
    ] = None,
    alpha: Annotated[
        list[float] | None, typer.Option(help="A weight of the penalty; repeatable. Without, a grid of them.")
    ] = None,
    points: Annotated[
        int | None, typer.Option(help="Of the grid, which begins where all weights are zero (default: 20).")
    ] = None,
    ratio: Annotated[float | None, typer.Option(help="Of the grid's last alpha to its first (default: 0.001).")] = None,
    mu_ratio: Annotated[
        float | None, typer.Option(help="Second weight of perspective and elastic_net over alpha (default: 1).")
    ] = None,
    checkpoint: Checkpoint = None,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Fit models from the sparsest to the densest, each begun where the one before ended, and certify all of them."""
    with reporting() as saved:
        arguments = fit_arguments(options)
        loaded = load_states(states)
        if output is not None:
            with interrupts.leaving():
                from simjax.plotting import plot_path  # here: needs matplotlib, which the table does not

            _check_folder(output, force)
        if checkpoint is not None:
            saved.append(checkpoint)
        with display.Display(saved) as observer:
            observer.stage("Path")
            found = simjax.path(
                loaded,
                alphas=alpha or None,
                points=points,
                ratio=ratio,
                mu_ratio=mu_ratio,
                progress=observer.rows,
                checkpoint=checkpoint,
                **arguments,
            )
        report = {"states": str(states), **reports.path_report(found, loaded)}
        if output is not None:
            output = place_of(output, found.converged) if any(output.iterdir()) else output
            output.mkdir(exist_ok=True)
            saved.append(output)
            for fit, told in zip(found.fits, report["models"], strict=True):
                fit.model.save(output / told["model"], overwrite=force)
            picture = io.BytesIO()
            plot_path(found).savefig(picture, format="png")
            for name, content in (("path.json", reports.json_text(report).encode()), ("path.png", picture.getvalue())):
                with atomic_file(output / name, force) as file:
                    file.write(content)
        if as_json:
            display.print_json(report)
        else:
            display.print_path(f"Path of {states}", report, None if output is None else str(output))
        exit_by(
            found.converged,
            "What was computed is saved all the same." if output else "Nothing is saved without --output.",
        )


def _check_folder(folder: Path, force: bool) -> None:
    """Makes the folder, and refuses before a long computation what saving would refuse after it."""
    make_folder(folder)
    there = sorted(file.name for file in (*folder.glob("model-*.safetensors"), *folder.glob("path.*")))
    if there and not force:
        raise FileExistsError(f"{folder} already holds {there[0]} and {len(there) - 1} more files of a path.")
    for name in ("path.json", "path.png"):
        check_target(folder / name, overwrite=force)
