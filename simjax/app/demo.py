"""The main job in one call: from a data set to a trained network to a certified sparse implicit model.

`run_demo` trains a baseline, collects its states, solves and certifies every row, evaluates the model and a
short path of others, saves them and draws the pictures. Nothing here prints: progress goes to an `Observer`.
"""

from __future__ import annotations

import io
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from simjax import datasets
from simjax._checks import choice, positive_integer, positive_scalar
from simjax._files import atomic_file, check_target, make_folder
from simjax._version import __version__
from simjax.app.observer import Observer
from simjax.app.page import results_page
from simjax.app.recipes import OBJECTIVES, RECIPES, Recipe
from simjax.app.reports import json_number, json_text
from simjax.implicit.model import ImplicitModel
from simjax.nn import MLP, RECOMMENDED, train
from simjax.plotting import plot_gaps, plot_sparsity_pattern, plot_trade_off
from simjax.rows.status import Status
from simjax.sim.adaptive import adaptive_weights
from simjax.sim.fit import fit
from simjax.sim.path import path
from simjax.sim.result import FitResult
from simjax.states.collect import collect_states
from simjax.states.states import States

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Natural units, a hollow A, and a loss that does not grow with m; everything else as `fit` has it.
_FIT: Mapping[str, Any] = MappingProxyType({"reduction": "mean", "support": "hollow"})
# The first fit, which only says which weights are large.
_FIRST_ALPHA, _FIRST_TOL, _EPSILON = 1e-4, 1e-3, 0.05
# The other models in the picture of accuracy against sparsity: alpha times these.
_PATH = (0.2, 2.0, 5.0, 10.0, 30.0)
_QUICK_PATH = (10.0,)
_QUICK_SAMPLES, _QUICK_EPOCHS = 200, 5

_FILES = MappingProxyType(
    {
        "network": "baseline.safetensors",
        "states": "states.npz",
        "model": "model.safetensors",
        "results": "results.json",
        "pattern": "sparsity.png",
        "gaps": "gaps.png",
        "trade_off": "trade_off.png",
        "page": "results.html",
    }
)


@dataclass(frozen=True)
class PathPoint:
    """One model of the path. Accuracy is on the test samples; it and the sparsity are fractions."""

    alpha: float
    sparsity: float
    accuracy: float
    nonzeros: int
    rows_certified: int


@dataclass(frozen=True)
class DemoReport:
    """What a demo made.

    Attributes:
      states: the states fitted.
      result: the fit, with the model and its certificate.
      path: the models of the path, by increasing alpha.
      results: everything measured, as in results.json.
      files: what was written, by purpose.
    """

    states: States
    result: FitResult
    path: tuple[PathPoint, ...]
    results: dict[str, Any]
    files: dict[str, Path]

    @property
    def converged(self) -> bool:
        """Whether every row of the model, and of every model of the path, is certified."""
        rows = self.result.status.size
        return self.result.converged and all(point.rows_certified == rows for point in self.path)


def run_demo(
    output: str | PathLike[str],
    dataset: str = "digits",
    *,
    samples: int | None = None,
    objective: str = "perspective",
    alpha: float | None = None,
    seed: int = 0,
    quick: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> DemoReport:
    """Train a baseline on `dataset`, fit an implicit model to it, and write both, the results and pictures.

    The penalty is adaptive: with the weights W of a first, coarse fit, an entry is penalised by alpha times
    ε / (|W_ij| + ε), so that large weights pay little and fewer of them do the same (`adaptive_weights`).

    Args:
      output: the folder to write to; it is made if it is not there.
      dataset: "digits" or "fashion-mnist".
      samples: how many training samples to collect states on; None is the recipe's number.
      objective: "perspective", "l1" or "elastic_net", as in `fit`.
      alpha: its weight, for the mean loss; None is the recipe's, which was chosen for "perspective".
      seed: of the baseline's weights, its training and the choice of samples.
      quick: a short training, few samples and a path of two models, to see that everything works.
      overwrite: replace files of an earlier demo.
      observer: is told how it goes.

    Returns:
      A `DemoReport`; its property `converged` says whether all rows are certified. Files are written when
      all is computed.

    Raises:
      FileExistsError: a file to be written exists and `overwrite` is False.
      ValueError, TypeError: arguments out of range; more samples than the data set has.
      FileNotFoundError: the data set is not there and could not be downloaded.
    """
    recipe = RECIPES[choice("dataset", dataset, RECIPES)]
    choice("objective", objective, OBJECTIVES)
    alpha_rule = "default" if alpha is None else "as asked"
    alpha = recipe.alpha if alpha is None else positive_scalar("alpha", alpha)
    samples = (_QUICK_SAMPLES if quick else recipe.samples) if samples is None else samples
    samples = positive_integer("samples", samples)
    files = _free_files(Path(output), overwrite)
    watch = _Stopwatch(Observer() if observer is None else observer)

    with watch("data", f"Loading {dataset}"):
        data = datasets.load(dataset)
        if samples > len(data.train_labels):
            raise ValueError(f"samples must be <= {len(data.train_labels)} for {dataset}, got {samples}.")
    with watch("training", "Training the baseline"):
        network = _trained_baseline(data, recipe, seed, quick, watch.observer)
    with watch("states", "Collecting states"):
        chosen = np.random.default_rng(seed).permutation(len(data.train_labels))[:samples]
        states = collect_states(network, data.train_inputs[chosen])
    path_alphas = [alpha * factor for factor in (_QUICK_PATH if quick else _PATH)]
    fits = _fits(states, objective, [alpha, *path_alphas], watch)
    result = fits[alpha]
    with watch("evaluation", "Evaluating"):
        points = tuple(_path_point(a, one, states, data) for a, one in sorted(fits.items()))
        results = _results(alpha, alpha_rule, result, points, states, data)
    with watch("pictures", "Drawing"):
        figures = {
            "pattern": plot_sparsity_pattern(result.model, _baseline(states), results["model"]["passes"]),
            "gaps": plot_gaps(result),
            "trade_off": plot_trade_off(points, results["baseline"]["test_accuracy"], alpha, f"{alpha_rule} α"),
        }
        pictures = {name: _png(figure) for name, figure in figures.items()}
    results = {
        "dataset": dataset,
        "samples": samples,
        "seed": seed,
        "quick": quick,
        **results,
        "seconds": watch.seconds,
        "environment": _environment(),
    }
    _write(files, overwrite, network, states, result, results, pictures, watch.observer)
    return DemoReport(states=states, result=result, path=points, results=results, files=files)


class _Stopwatch:
    """Announces stages and keeps their wall times."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, title: str) -> Iterator[None]:
        self.observer.stage(title)
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 3)


def _trained_baseline(data: datasets.Dataset, recipe: Recipe, seed: int, quick: bool, observer: Observer) -> MLP:
    network = MLP(recipe.sizes, rngs=nnx.Rngs(seed))
    settings = {**RECOMMENDED[data.name], **({"epochs": _QUICK_EPOCHS} if quick else {})}
    train(network, data.train_inputs, data.train_labels, seed=seed, callback=observer.epoch, **settings)
    return network


def _fits(states: States, objective: str, alphas: Sequence[float], watch: _Stopwatch) -> dict[float, FitResult]:
    """The fit for each alpha, all with the adaptive weights of one coarse fit."""
    progress = watch.observer.rows
    with watch("first_fit", "First fit, coarse"):
        first = fit(states, objective, alpha=_FIRST_ALPHA, tol=_FIRST_TOL, progress=progress, **_FIT)
    relative = _EPSILON * adaptive_weights(first, epsilon=_EPSILON)  # at most 1
    with watch("fits", f"Fits with {len(alphas)} alphas"):
        found = path(states, objective, alphas=alphas, alpha_weights=relative, progress=progress, **_FIT)
    return dict(zip(alphas, found.fits, strict=True))


def _path_point(alpha: float, result: FitResult, states: States, data: datasets.Dataset) -> PathPoint:
    return PathPoint(
        alpha=alpha,
        sparsity=result.model.sparsity(_baseline(states).nonzeros),
        accuracy=result.model.accuracy(data.test_inputs, data.test_labels),
        nonzeros=result.model.nonzeros,
        rows_certified=_certified(result),
    )


def _results(
    alpha: float,
    alpha_rule: str,
    result: FitResult,
    points: Sequence[PathPoint],
    states: States,
    data: datasets.Dataset,
) -> dict[str, Any]:
    """What was measured, as JSON values."""
    baseline, model, certificate = _baseline(states), result.model, result.certificate
    _, info = model.equilibrium(data.test_inputs, return_info=True)
    chosen = next(point for point in points if point.alpha == alpha)
    return {
        "fit": {
            **result.settings,
            "alpha": alpha,
            "alpha_rule": alpha_rule,
            "adaptive": {"first_alpha": _FIRST_ALPHA, "first_tol": _FIRST_TOL, "epsilon": _EPSILON},
        },
        "baseline": {
            "test_accuracy": baseline.accuracy(data.test_inputs, data.test_labels),
            "nonzeros": baseline.nonzeros,
        },
        "model": {
            "test_accuracy": chosen.accuracy,
            "nonzeros": chosen.nonzeros,
            "sparsity": chosen.sparsity,
            "well_posedness": model.well_posedness,
            "passes": info.iterations,
        },
        "rows": {
            "total": int(result.status.size),
            "certified": chosen.rows_certified,
            "worst_relative_gap": json_number(certificate.relative_gap.max()),
            "worst_infeasibility": json_number(certificate.infeasibility.max()),
            "seconds": round(result.seconds, 3),
        },
        "path": [asdict(point) for point in points],
    }


def _baseline(states: States) -> ImplicitModel:
    assert states.baseline is not None  # collect_states of an MLP always knows it
    return states.baseline


def _certified(result: FitResult) -> int:
    return int(np.count_nonzero(result.status == Status.SOLVED))


def _environment() -> dict[str, str]:
    device = jax.devices()[0]
    return {
        "simjax": __version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{device.platform}: {device.device_kind}",
    }


# ---- files -------------------------------------------------------------------------------------------------


def _free_files(folder: Path, overwrite: bool) -> dict[str, Path]:
    """The files to write in `folder`, which is made; an error if one is there that must not be replaced."""
    files = {purpose: folder / name for purpose, name in _FILES.items()}
    existing = [file.name for file in files.values() if file.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{folder} already holds {', '.join(existing)}; choose another folder.")
    make_folder(folder)
    for file in files.values():
        check_target(file, overwrite)
    return files


def _write(
    files: dict[str, Path],
    overwrite: bool,
    network: MLP,
    states: States,
    result: FitResult,
    results: dict[str, Any],
    pictures: dict[str, bytes],
    observer: Observer,
) -> None:
    contents = {
        "results": json_text(results).encode(),
        **pictures,
        "page": results_page(results, pictures).encode(),
    }
    saves: dict[str, Callable[[Path, bool], None]] = {
        "network": network.save,
        "states": states.save,
        "model": result.model.save,
        **{name: partial(_write_bytes, content) for name, content in contents.items()},
    }
    for name, save in saves.items():
        save(files[name], overwrite)
        observer.written(files[name])


def _write_bytes(content: bytes, path: Path, overwrite: bool) -> None:
    with atomic_file(path, overwrite) as file:
        file.write(content)


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
