"""`simjax predict`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np

import simjax
from simjax._extras import needs
from simjax._files import atomic_file, read_arrays
from simjax.app import display
from simjax.app.arguments import Force, Json, Model, check_output
from simjax.app.exits import reporting

with needs("cli", "typer", "the command simjax"):
    import typer


def predict(
    model: Model,
    inputs: Annotated[Path, typer.Argument(metavar="INPUTS.npz", help="With the array inputs (m, p).")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUTPUTS.npz", help="Where to save the array outputs (m, q)."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Compute a saved model's outputs; without --output, print them: a line for each sample, commas between numbers."""
    with reporting() as saved:
        if output is not None:
            check_output(output, force, ".npz", read=(model, inputs))
        loaded = simjax.ImplicitModel.load(model)
        arrays = read_arrays(inputs)
        if "inputs" not in arrays:
            raise ValueError(f"{inputs} must hold the array inputs; it holds {', '.join(arrays) or 'none'}.")
        outputs = loaded.predict(arrays["inputs"])
        if output is not None:
            _save(output, outputs, force)
            saved.append(output)
        if as_json:
            display.print_json({"model": str(model), "inputs": str(inputs), **_where(outputs, output)})
        elif output is None:
            display.print_numbers(outputs)
        else:
            display.print_prediction(f"{model} on {inputs}", _where(outputs, output))


def _save(path: Path, outputs: np.ndarray, force: bool) -> None:
    contents = io.BytesIO()
    np.savez(contents, outputs=outputs)
    with atomic_file(path, force) as file:
        file.write(contents.getvalue())


def _where(outputs: np.ndarray, output: Path | None) -> dict[str, Any]:
    """The outputs, or the file that has them."""
    kept = outputs.tolist() if output is None else str(output)
    return {"samples": outputs.shape[0], "q": outputs.shape[1], "outputs": kept}
