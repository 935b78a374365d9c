"""A multilayer perceptron: the layered baseline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax._files import read_safetensors, usable, write_safetensors
from simjax.implicit.activations import activation as find_activation
from simjax.implicit.model import ImplicitModel
from simjax.states.states import States

FORMAT = "simjax-mlp"
FORMAT_VERSION = 1


class MLP(nnx.Module):
    """A multilayer perceptron ŷ = W_{L+1} φ(W_L … φ(W_1 u)), the SIM paper's baseline by default.

    Args:
      sizes: p, the hidden layer widths, q; at least one hidden layer.
      activation: name of φ (see `simjax.implicit.activations`), the same in all hidden layers.
      use_bias: whether every layer adds a bias.
      rngs: random numbers for the initial weights; None means `nnx.Rngs(0)`.

    Raises:
      ValueError: fewer than three sizes, a size below 1, an unknown activation.

    Examples:
      >>> import numpy as np
      >>> from simjax.nn import MLP
      >>> network = MLP((3, 5, 2))
      >>> network(np.ones((4, 3), np.float32)).shape
      (4, 2)
    """

    def __init__(
        self,
        sizes: Sequence[int] = (784, 64, 32, 16, 10),
        activation: str = "relu",
        use_bias: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        self.sizes = _checked_sizes(sizes)
        self.activation = find_activation(activation).name
        self.use_bias = bool(use_bias)
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.layers = nnx.List(
            nnx.Linear(inputs, outputs, use_bias=self.use_bias, rngs=rngs)
            for inputs, outputs in zip(self.sizes, self.sizes[1:])
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs (m, q) for inputs (m, p), in the network's own precision."""
        phi = find_activation(self.activation)
        x = inputs
        for layer in self.layers[:-1]:
            x = phi(layer(x))
        return self.layers[-1](x)

    def states(self, inputs: Any, layers: int | None = None) -> States:
        """The network's states on `inputs` (m, p), in float64.

        Args:
          layers: how many of the last hidden layers are states, as in `States.from_layers`; None means all.

        Raises:
          ValueError: inputs that do not fit or are not finite, weights that are not finite, layers that do not fit.
        """
        weights, biases = self._parameters()
        return States.from_layers(weights, biases, self.activation, inputs, layers)

    def export(self) -> ImplicitModel:
        """The network as an implicit model, exact in float64."""
        weights, biases = self._parameters()
        return ImplicitModel.from_layers(weights, biases, self.activation)

    def save(self, path: str | PathLike[str], overwrite: bool = False) -> None:
        """Writes the weights to `path` as safetensors, sizes and activation in its JSON header.

        Raises:
          FileExistsError: `path` exists and `overwrite` is False.
          FileNotFoundError: its folder does not exist.
        """
        weights, biases = self._parameters()
        tensors = {f"layers.{k}.kernel": W.T for k, W in enumerate(weights)}
        tensors |= {f"layers.{k}.bias": b for k, b in enumerate(biases or [])}
        header = {
            "sizes": json.dumps(self.sizes),
            "activation": self.activation,
            "use_bias": json.dumps(self.use_bias),
        }
        write_safetensors(path, tensors, header, marker=FORMAT, version=FORMAT_VERSION, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> MLP:
        """Reads a network that `save` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is truncated, foreign, of a newer format version or inconsistent; says which.
        """
        tensors, header = read_safetensors(path, FORMAT, FORMAT_VERSION)
        with usable(path, "simjax network"):
            network = cls(json.loads(header["sizes"]), header["activation"], json.loads(header["use_bias"]))
            for k, layer in enumerate(network.layers):
                _load_parameter(layer.kernel, tensors, f"layers.{k}.kernel")
                if layer.bias is not None:
                    _load_parameter(layer.bias, tensors, f"layers.{k}.bias")
        return network

    def _parameters(self) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        """Weights (outputs, inputs) and biases of each layer, in the network's own precision."""
        weights = [np.asarray(layer.kernel[...]).T for layer in self.layers]
        biases = [np.asarray(layer.bias[...]) for layer in self.layers if layer.bias is not None]
        return weights, biases or None


def _checked_sizes(sizes: Any) -> tuple[int, ...]:
    array = np.asarray(sizes)
    if array.ndim != 1 or array.size < 3 or array.dtype.kind not in "iu" or array.min() < 1:
        raise ValueError(f"sizes must be at least three positive whole numbers (p, hidden …, q), got {sizes!r}")
    return tuple(array.tolist())


def _load_parameter(parameter: nnx.Param, tensors: dict[str, np.ndarray], name: str) -> None:
    if tensors[name].shape != parameter.shape:
        raise ValueError(f"{name} has shape {tensors[name].shape}, its sizes say {parameter.shape}")
    parameter[...] = jnp.asarray(tensors[name])
