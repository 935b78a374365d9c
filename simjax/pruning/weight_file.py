"""Weights in a safetensors file of anyone's: its layers read and replaced by name, all else kept as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from simjax._files import atomic_file
from simjax.pruning.networks.linear_map import narrowed

# As the format names them.
_TYPES: dict[str, Any] = {
    **{f"F{8 * size}": f"f{size}" for size in (2, 4, 8)},
    **{f"I{8 * size}": f"i{size}" for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": f"u{size}" for size in (1, 2, 4, 8)},
    "BOOL": "?",
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
}
_FLOATS = ("float16", "float32", "float64", "bfloat16")
# How a layer's weights are called, and whether they are (in, out), as Flax has them.
_WEIGHTS = ((".weight", ".bias", False), (".kernel", ".bias", True), ("/kernel", "/bias", True))


@dataclasses.dataclass(frozen=True)
class FileLayer:
    """A linear layer y = Wx + b of a file.

    Attributes:
      weight: W, (out, in), float64.
      bias: b, (out,), or None.
      names: of the two tensors; the second None without a bias.
      transposed: whether the file has Wᵀ.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    names: tuple[str, str | None]
    transposed: bool


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """All tensors of a file, each in its own type, and its metadata."""

    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> WeightFile:
        """Everything in a file.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it is no safetensors file, or has numbers of a type that is not known here.
        """
        contents = path.read_bytes()
        try:
            found = safetensors.deserialize(contents)
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
        except (safetensors.SafetensorError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a readable safetensors file (truncated or foreign): {error}") from error
        tensors = {}
        for name, stated in found:
            if stated["dtype"] not in _TYPES:
                raise ValueError(f"{path}: tensor {name!r} has numbers of type {stated['dtype']}, which is not read.")
            flat = np.frombuffer(bytes(stated["data"]), _TYPES[stated["dtype"]])
            tensors[name] = flat.reshape(stated["shape"])
        return cls(tensors, metadata)

    def layer(self, name: str) -> FileLayer:
        """The linear layer of a name: NAME.weight (out, in), as PyTorch has it, or Flax's NAME.kernel or NAME/kernel.

        Raises:
          ValueError: there is none, or it is no matrix of floating-point numbers.
        """
        kinds = [kind for kind in _WEIGHTS if name + kind[0] in self.tensors]
        if not kinds:
            there = [key[: -len(end)] for key in self.tensors for end, _, _ in _WEIGHTS if key.endswith(end)]
            raise ValueError(f"inputs name a layer {name!r}, which the weights lack; they have {', '.join(there)}.")
        weight, bias, transposed = kinds[0]
        matrix, shift = self.tensors[name + weight], self.tensors.get(name + bias)
        for key, tensor, dimensions in ((name + weight, matrix, 2), (name + bias, shift, 1)):
            if tensor is not None and (tensor.ndim != dimensions or tensor.dtype.name not in _FLOATS):
                kind = f"{tensor.dtype.name} of shape {tensor.shape}"
                raise ValueError(f"{key} must have {dimensions} dimensions of {', '.join(_FLOATS)}, got {kind}.")
        wide = matrix.astype(np.float64)
        return FileLayer(
            weight=wide.T if transposed else wide,
            bias=None if shift is None else shift.astype(np.float64),
            names=(name + weight, None if shift is None else name + bias),
            transposed=transposed,
        )

    def replaced(self, layer: FileLayer, weight: np.ndarray, bias: np.ndarray | None) -> WeightFile:
        """With other weights (out, in) and bias (out,) of a layer, in the types that the file has.

        Raises:
          ValueError: for numbers that are beyond them.
        """
        new = dict(self.tensors)
        values = weight.T if layer.transposed else weight
        for name, numbers in zip(layer.names, (values, bias), strict=True):
            if name is not None and numbers is not None:
                new[name] = narrowed(numbers, new[name].dtype)
        return dataclasses.replace(self, tensors=new)

    def write(self, path: Path, *, overwrite: bool) -> None:
        """Write the file, whole or not at all.

        Raises:
          OSError: as `atomic_file`.
        """
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in self.tensors.items()}
        shaped = {name: tensor.reshape(self.tensors[name].shape) for name, tensor in tensors.items()}
        contents = safetensors.numpy.save(shaped, metadata=dict(self.metadata) or None)
        with atomic_file(path, overwrite) as file:
            file.write(contents)
