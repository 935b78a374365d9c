"""The main job in one call: from a data set to a trained network to a certified sparse implicit model.

`run_demo` trains a baseline, collects its states, solves and certifies every row, evaluates the model and a short
path of others, saves them and draws the pictures. Nothing here prints: progress goes to an `Observer`.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from simjax import datasets
from simjax._checks import choice, positive_integer
from simjax.fit import FitResult, fit
from simjax.model import atomic_file, package_version
from simjax.nn import MLP, RECOMMENDED, train
from simjax.plotting import plot_gaps, plot_sparsity_pattern, plot_trade_off
from simjax.solvers.iterate import Progress
from simjax.states import States, collect_states


@dataclass(frozen=True)
class Recipe:
    """What the demo does with a data set unless told otherwise.

    Attributes:
        sizes: of the baseline's layers, from the inputs to the outputs.
        samples: how many training samples to collect states on.
        alpha: the penalty's weight, for the mean loss.
    """

    sizes: tuple[int, ...]
    samples: int
    alpha: float


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "digits": Recipe(sizes=(64, 32, 16, 10), samples=1000, alpha=1e-4),
        "fashion-mnist": Recipe(sizes=(784, 64, 32, 16, 10), samples=2000, alpha=1e-4),
    }
)
# The path of models for the picture of accuracy against sparsity: alpha times these.
_PATH = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_QUICK_PATH = (1.0, 10.0)
_QUICK_SAMPLES, _QUICK_EPOCHS = 200, 3

_FILES = MappingProxyType(
    {
        "network": "baseline.safetensors",
        "states": "states.npz",
        "model": "model.safetensors",
        "results": "results.json",
        "pattern": "sparsity.png",
        "gaps": "gaps.png",
        "trade_off": "trade_off.png",
    }
)


class Observer:
    """Is told how the demo goes; this one does nothing."""

    def stage(self, title: str) -> None:
        """A new stage begins."""

    def epoch(self, epoch: int, epochs: int, loss: float, accuracy: float) -> None:
        """An epoch of the baseline's training is over."""

    def rows(self, progress: Progress) -> None:
        """A solve has come so far."""


@dataclass(frozen=True)
class PathPoint:
    """One model of the path; accuracies and sparsity are fractions."""

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
