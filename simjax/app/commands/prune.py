"""`simjax prune`."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from simjax._checks import choice
from simjax._extras import needs
from simjax._files import atomic_file, read_arrays
from simjax.app import display
from simjax.app.arguments import Force, Json, check_output, place_of
from simjax.app.exits import exit_by, reporting
from simjax.app.reports import json_number
from simjax.pruning.curve import error_curve
from simjax.pruning.layer import METHODS, prune_layer
from simjax.pruning.network_result import PrunedMap, PrunedNetwork
from simjax.pruning.passes import Curves, Shares, named, shared_out
from simjax.pruning.patterns import SPARSITY, Pattern
from simjax.pruning.prune import ALLOCATIONS
from simjax.pruning.weight_file import WeightFile
from simjax.rows.options import SolveOptions

with needs("cli", "typer", "the command simjax"):
    import typer


def prune(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS.safetensors",
            help="NAME.weight (out, in) and NAME.bias, as PyTorch has them, or NAME/kernel (in, out), as Flax.",
        ),
    ],
    inputs: Annotated[
        Path,
        typer.Argument(metavar="INPUTS.npz", help="For each layer to prune an array NAME (…, in): what enters it."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="SPARSE.safetensors", help="Where to save all weights.")
    ],
    sparsity: Annotated[
        float | None, typer.Option(help="Share of zeros, in [0, 1) (default: 0.8; with n:m, what that leaves zero).")
    ] = None,
    pattern: Annotated[str, typer.Option(help="unstructured, rows, or n:m such as 2:4.")] = "unstructured",
    method: Annotated[str, typer.Option(help=f"How supports are found: {', '.join(METHODS)}.")] = "auto",
    allocation: Annotated[
        str, typer.Option(help="layer: sparsity is that of each; global: of all together, by their error curves.")
    ] = "layer",
    tol: Annotated[float, typer.Option(help="Relative duality gap of each refitted row.")] = SolveOptions.tol,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw zeros and relative errors of the layers here.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make the layers of saved weights sparse by what enters them, refit and certify each row, and save all weights."""
    began = time.perf_counter()
    with reporting() as saved:
        check_output(output, force, read=(weights, inputs))
        if picture is not None:
            check_output(picture, force, ".png")
        share = SPARSITY if sparsity is None else sparsity
        choice("--method", method, METHODS)
        choice("--allocation", allocation, ALLOCATIONS)
        if allocation == "global" and pattern != "unstructured":
            raise ValueError(f"--pattern must be unstructured with --allocation global, got {pattern!r}.")
        file, seen = WeightFile.read(weights), read_arrays(inputs)
        layers = {name: file.layer(name) for name in seen}
        designs = {}
        for name, layer in layers.items():
            with named(name):
                designs[name] = _samples(seen[name], layer.weight.shape[1])
                Pattern.make(pattern, share, layer.weight.shape, stated=sparsity is not None)
        shares: Shares = {name: [share] for name in layers}
        curves: Curves = {}
        done: dict[str, PrunedMap] = {}
        with display.Display(saved) as observer:
            if allocation == "global":
                observer.stage("Error curves")
                curves = {
                    name: [error_curve(designs[name], it.weight, it.bias, tol=tol)] for name, it in layers.items()
                }
                shares = shared_out(curves, share)
            for name, layer in layers.items():
                observer.stage(f"Layer {len(done) + 1} of {len(layers)}: {name}")
                with named(name):
                    part = prune_layer(
                        designs[name],
                        layer.weight,
                        layer.bias,
                        sparsity=shares[name][0],
                        pattern=pattern,
                        method=method,
                        tol=tol,
                    )
                    file = file.replaced(layer, part.weight, part.bias)
                done[name] = PrunedMap(name, (part,), tuple(curves.get(name, ())))
        result = PrunedNetwork(
            network=file,
            layers=done,
            left_out=(),
            others=tuple(name for name in file.tensors if not any(name in layer.names for layer in layers.values())),
            samples=max(len(design) for design in designs.values()),
            seconds=time.perf_counter() - began,
        )
        place = place_of(output, result.converged)
        file.write(place, overwrite=force)
        saved.append(place)
        if picture is not None:
            _draw(result, picture, force)
            saved.append(picture)
        if as_json:
            display.print_json(_report(result, place))
        else:
            display.print_text(f"{result.summary()}\nsaved in {place}")
        exit_by(result.converged)


def _samples(array: np.ndarray, width: int) -> np.ndarray:
    """What enters a layer, (samples, in): all leading dimensions are samples.

    Raises:
      ValueError: it is not as wide as the layer.
    """
    if array.ndim < 2 or array.shape[-1] != width:
        raise ValueError(f"inputs must be (…, {width}), got shape {array.shape}.")
    return array.reshape(-1, width)


def _draw(result: PrunedNetwork, path: Path, force: bool) -> None:
    from simjax.plotting import plot_prune  # matplotlib is an extra

    contents = io.BytesIO()
    plot_prune(result).savefig(contents, format="png", dpi=160)
    with atomic_file(path, force) as file:
        file.write(contents.getvalue())


def _report(result: PrunedNetwork, place: Path) -> dict[str, Any]:
    """What was done, as JSON values."""
    layers = {
        name: {
            "weights": layer.weights,
            "sparsity": layer.sparsity,
            "relative_error": layer.relative_error,
            "rows": layer.rows,
            "rows_certified": layer.certified,
            "worst_relative_gap": json_number(layer.worst_gap),
        }
        for name, layer in result.layers.items()
    }
    return {
        "output": str(place),
        "sparsity": result.sparsity,
        "layers": layers,
        "left": list(result.others),
        "seconds": round(result.seconds, 3),
    }
