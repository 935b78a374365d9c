"""`simjax show`."""

from __future__ import annotations

import simjax
from simjax.app import display, reports
from simjax.app.arguments import Json, Model
from simjax.app.exits import reporting


def show(model: Model, as_json: Json = False) -> None:
    """Say what is in a saved model: sizes, nonzeros, well-posedness and how it was fitted."""
    with reporting():
        loaded = simjax.ImplicitModel.load(model)
        report = reports.model_report(loaded)
        if as_json:
            display.print_json({"model": str(model), **report})
        else:
            display.print_model(str(model), report)
