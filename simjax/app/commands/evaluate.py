"""`simjax evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

import simjax
from simjax import datasets
from simjax.app import display
from simjax.app.arguments import Json, Model, one_of
from simjax.app.exits import reporting


def evaluate(
    model: Model,
    dataset: Annotated[str, one_of(datasets.LOADERS, "Whose test samples to classify.")],
    as_json: Json = False,
) -> None:
    """Classify the test samples of a data set with a saved model."""
    with reporting():
        loaded = simjax.ImplicitModel.load(model)
        data = datasets.load(dataset)
        report: dict[str, Any] = {
            "model": str(model),
            "dataset": dataset,
            "samples": len(data.test_labels),
            "accuracy": loaded.accuracy(data.test_inputs, data.test_labels),
            "nonzeros": loaded.nonzeros,
            "well_posedness": loaded.well_posedness,
        }
        if as_json:
            display.print_json(report)
        else:
            display.print_evaluation(f"{model} on {dataset}", report)
