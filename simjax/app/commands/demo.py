"""`simjax demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from simjax._extras import needs
from simjax.app import display, interrupts
from simjax.app.arguments import Force, Json, one_of
from simjax.app.exits import exit_by, reporting
from simjax.app.recipes import OBJECTIVES, RECIPES

with needs("cli", "typer", "the command simjax"):
    import typer


def demo(
    dataset: Annotated[str, one_of(RECIPES, "What to train the baseline on.")] = "digits",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything made.")] = Path("demo-output"),
    samples: Annotated[int | None, typer.Option(help="Samples to collect states on (default: by data set).")] = None,
    objective: Annotated[str, one_of(OBJECTIVES, "Penalty.")] = "perspective",
    alpha: Annotated[float | None, typer.Option(help="Its weight (default: by data set).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the baseline and the choice of samples.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A short run, to see that everything works.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a network, fit a certified sparse implicit model to it, evaluate, save and draw both."""
    with reporting() as saved:
        with interrupts.leaving():
            from simjax.app.demo import run_demo  # here: the other commands need no pictures

        with display.Display(saved) as observer:
            report = run_demo(
                output,
                dataset,
                samples=samples,
                objective=objective,
                alpha=alpha,
                seed=seed,
                quick=quick,
                overwrite=force,
                observer=observer,
            )
        if as_json:
            display.print_json(report.results | {"files": {name: str(path) for name, path in report.files.items()}})
        else:
            display.print_demo(report)
        exit_by(report.converged)
