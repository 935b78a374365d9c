"""`simjax evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np

import simjax
from simjax import datasets
from simjax._checks import checked_labels, matrix
from simjax._extras import needs
from simjax._files import read_arrays
from simjax.app import display
from simjax.app.arguments import Json, Model, one_of
from simjax.app.exits import reporting

with needs("cli", "typer", "the command simjax"):
    import typer


def evaluate(
    model: Model,
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA.npz",
            help="The arrays inputs (m, p) and labels (m,), outputs (m, q) or both: whole numbers from 0, and what a "
            "network gives for these inputs. A file of States.save will do.",
        ),
    ] = None,
    dataset: Annotated[str | None, one_of(datasets.LOADERS, "A data set's test samples instead.")] = None,
    as_json: Json = False,
) -> None:
    """Hold a saved model's outputs against labels, for its accuracy, or against a network's outputs, for its error."""
    with reporting():
        if (data is None) == (dataset is None):
            raise ValueError("evaluate needs either a file DATA.npz or --dataset, one of the two.")
        loaded = simjax.ImplicitModel.load(model)
        inputs, labels, outputs = _samples_of_file(data) if data is not None else _samples_of(str(dataset))
        predicted = loaded.predict(inputs)
        report: dict[str, Any] = {
            "model": str(model),
            "data": str(data) if data is not None else dataset,
            "samples": len(predicted),
        }
        if labels is not None:
            report["accuracy"] = float(np.mean(predicted.argmax(axis=1) == checked_labels(labels, *predicted.shape)))
        if outputs is not None:
            report |= _against(outputs, predicted)
        report |= {"nonzeros": loaded.nonzeros, "well_posedness": loaded.well_posedness}
        if as_json:
            display.print_json(report)
        else:
            display.print_evaluation(f"{model} on {report['data']}", report)


def _samples_of(dataset: str) -> tuple[Any, Any, None]:
    found = datasets.load(dataset)
    return found.test_inputs, found.test_labels, None


def _samples_of_file(path: Path) -> tuple[Any, Any, Any]:
    """Inputs, and labels and outputs if they are there."""
    arrays = read_arrays(path)
    if "inputs" not in arrays or not arrays.keys() & {"labels", "outputs"}:
        raise ValueError(
            f"{path} must hold the array inputs, and labels or outputs or both; it holds {', '.join(arrays) or 'none'}."
        )
    return arrays["inputs"], arrays.get("labels"), arrays.get("outputs")


def _against(outputs: Any, predicted: np.ndarray) -> dict[str, float]:
    """Beside a network's outputs Y: ‖Ŷ − Y‖ / ‖Y‖, and the share of samples with the same largest output."""
    Y = matrix("outputs", outputs)
    if Y.shape != predicted.shape:
        raise ValueError(f"outputs has shape {Y.shape}, the model gives {predicted.shape} for these inputs.")
    size = float(np.linalg.norm(Y))
    report = {"relative_error": float(np.linalg.norm(predicted - Y)) / size if size > 0.0 else float("nan")}
    if Y.shape[1] > 1:
        report["agreement"] = float(np.mean(predicted.argmax(axis=1) == Y.argmax(axis=1)))
    return report
