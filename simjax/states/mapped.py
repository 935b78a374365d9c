"""States in files: looked at part by part, so that who needs some of the rows of a fit reads no more than these."""

from __future__ import annotations

import dataclasses
import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from simjax._checks import matrix
from simjax._files import usable
from simjax._typing import ArrayLike
from simjax.implicit.model import ImplicitModel
from simjax.states.sampled import SampledStates
from simjax.states.samples import check_activations
from simjax.states.states import ARRAYS, States

_SAMPLE = 64  # samples that are read to see what the states are
_ABOUT, _BASELINE = "states.json", "baseline.safetensors"
_KNOWN = ("activation", "layer_sizes", "has_biases")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MappedStates(SampledStates):
    """The states of a baseline network in arrays that are never read whole: memory maps, above all of .npy files.

    `fit` and `fit_shard` accept them in the place of `States`. What is read is the inputs and activations, of which the
    design of all rows is made, and of preactivations and outputs the columns of the rows that are solved, a block at a
    time. What is read is checked as in `States`; the baseline is checked on the first 64 samples.

    Attributes:
      sample: the first samples.
      arrays: the four arrays by name.
      scale: s, (n,): the states are z' = s z, x' = s x of those in the arrays; None for ones.

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> states = simjax.collect_states(MLP((3, 5, 2)), np.random.default_rng(0).normal(size=(30, 3)))
      >>> arrays = states.inputs, states.preactivations, states.activations, states.outputs  # or paths of .npy files
      >>> simjax.fit(simjax.MappedStates.from_arrays(*arrays), "l1", alpha=0.1).converged
      True
    """

    sample: States
    arrays: dict[str, Any]
    scale: np.ndarray | None = None

    @classmethod
    def from_arrays(
        cls,
        inputs: Any,
        preactivations: Any,
        activations: Any,
        outputs: Any,
        *,
        activation: str = "relu",
        layer_sizes: tuple[int, ...] | None = None,
        baseline: ImplicitModel | None = None,
        has_biases: bool | None = None,
    ) -> MappedStates:
        """The states in these arrays.

        Args:
          inputs, preactivations, activations, outputs: as in `States`, of any real type: the path of a .npy file, which
            is mapped, or anything with a shape that gives arrays when sliced, such as np.memmap or an HDF5 data set.
          activation, layer_sizes, baseline, has_biases: as in `States`.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: a file that is no .npy of numbers, shapes that do not fit, or as `States`, for the first samples.
          TypeError: as `States`.
        """
        given = (inputs, preactivations, activations, outputs)
        arrays = {name: _mapped(name, value) for name, value in zip(ARRAYS, given, strict=True)}
        few: dict[str, Any] = {name: np.asarray(array[:_SAMPLE]) for name, array in arrays.items()}
        sample = States(**few, activation=activation, layer_sizes=layer_sizes, baseline=baseline, has_biases=has_biases)
        samples = arrays["inputs"].shape[0]
        for name, array in arrays.items():
            if array.shape[0] != samples:
                raise ValueError(
                    f"{name} has {array.shape[0]} rows, but inputs has m = {samples}: expected one row per sample."
                )
        return cls(sample, arrays)

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> MappedStates:
        """The states in a folder with inputs.npy, preactivations.npy, activations.npy and outputs.npy.

        They are those of a ReLU network, unless states.json says otherwise: an object with activation, layer_sizes and
        has_biases, each of which may be left out. A model in baseline.safetensors is the baseline.

        Raises:
          FileNotFoundError: there is no such folder, or one of the four files is missing.
          ValueError, TypeError: as `from_arrays`, or a file that is not what it should be.
        """
        folder = Path(folder)
        paths = [folder / f"{name}.npy" for name in ARRAYS]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} is no folder of states: {', '.join(missing)} is not there.")
        known: dict[str, Any] = {}
        if (folder / _ABOUT).is_file():
            with usable(folder / _ABOUT, "description of states"):
                known = dict(json.loads((folder / _ABOUT).read_text(encoding="utf-8")))
                unknown = sorted(set(known) - set(_KNOWN))
                if unknown:
                    raise ValueError(f"it may have {', '.join(_KNOWN)}, got {', '.join(unknown)}")
        if (folder / _BASELINE).is_file():
            known["baseline"] = ImplicitModel.load(folder / _BASELINE)
        with usable(folder, "folder of states"):
            return cls.from_arrays(*paths, **known)

    @property
    def m(self) -> int:
        """Number of samples."""
        return self.arrays["inputs"].shape[0]

    @property
    def inputs(self) -> np.ndarray:
        """U (m, p), read."""
        return matrix("inputs", self.arrays["inputs"][:])

    @property
    def activations(self) -> np.ndarray:
        """X (m, n), read, and in the units of these states."""
        found = matrix("activations", self.arrays["activations"][:])
        return found if self.scale is None else found * self.scale

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """The columns of [Z Y] with the numbers `rows` (k,), (m, k), read and checked, in the units of these states."""
        found = np.empty((self.m, rows.size))
        hidden = rows < self.n
        if hidden.any():
            numbers = rows[hidden]
            found[:, hidden] = columns("preactivations", self.arrays["preactivations"], numbers)
            x = columns("activations", self.arrays["activations"], numbers)
            check_activations(found[:, hidden], x, self.activation)
            if self.scale is not None:
                found[:, hidden] *= self.scale[numbers]
        if not hidden.all():
            found[:, ~hidden] = columns("outputs", self.arrays["outputs"], rows[~hidden] - self.n)
        return found

    def rescaled(self, scale: ArrayLike) -> MappedStates:
        """These states with z′ = s·z and x′ = s·x; as `States.rescaled`."""
        sample, factors = self.sample.rescaled(scale), np.asarray(scale, dtype=np.float64)
        return MappedStates(sample, self.arrays, factors if self.scale is None else factors * self.scale)


def columns(name: str, array: Any, numbers: np.ndarray) -> np.ndarray:
    """Columns of an array in float64, checked; neighbours as one slice, which is all that is read of a map."""
    if numbers[-1] - numbers[0] == numbers.size - 1 and np.all(np.diff(numbers) == 1):
        return matrix(name, array[:, int(numbers[0]) : int(numbers[-1]) + 1])
    return matrix(name, array[:, numbers])


def _mapped(name: str, value: Any) -> Any:
    if isinstance(value, str | PathLike):
        path = Path(value)
        if not path.is_file():
            raise FileNotFoundError(f"{name}: {path} is not a file.")
        try:
            value = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{name}: {path} is not a .npy file of numbers that can be mapped: {error}") from error
    shape = getattr(value, "shape", None)
    if shape is None or len(shape) != 2 or not hasattr(value, "__getitem__"):
        got = type(value).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(f"{name} must be a path or a 2-D array that can be sliced, got {got}.")
    if 0 in shape:
        raise ValueError(f"{name} must not be empty, got shape {tuple(shape)}.")
    return value
