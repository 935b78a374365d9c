"""`simjax verify`."""

from __future__ import annotations

from typing import Annotated

import simjax
from simjax._extras import needs
from simjax.app import display, reports
from simjax.app.arguments import Json, Model, States, load_states, one_of
from simjax.app.exits import exit_by, reporting
from simjax.rows.oracles.interface import ORACLES

with needs("cli", "typer", "the command simjax"):
    import typer


def verify(
    model: Model,
    states: States,
    oracle: Annotated[str, one_of(ORACLES, "The interior-point solver to ask.")] = "clarabel",
    rows: Annotated[int, typer.Option(help="How many rows to solve again.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the random choice of rows.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes over which the oracle spreads the rows.")] = 1,
    as_json: Json = False,
) -> None:
    """Have an independent solver solve a random sample of a fitted model's rows again, and compare."""
    with reporting():
        loaded, collected = simjax.ImplicitModel.load(model), load_states(states)
        found = simjax.verify_model(loaded, collected, oracle, rows, seed=seed, workers=workers)
        if as_json:
            display.print_json(reports.verification_report(found))
        else:
            display.print_verification(found)
        exit_by(found.ok, "Rows that say NO are not, or the oracle disagrees.")
