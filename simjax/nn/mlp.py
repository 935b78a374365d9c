"""Layered baselines: a multilayer perceptron, and how the layers of anyone's Flax network are read."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from os import PathLike
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from simjax._checks import matrix
from simjax.implicit.activations import ACTIVATIONS
from simjax.implicit.activations import activation as find_activation
from simjax.implicit.model import ImplicitModel, atomic_file, package_version, read_safetensors
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
        tensors = {f"layers.{k}.kernel": np.ascontiguousarray(W.T) for k, W in enumerate(weights)}
        tensors |= {f"layers.{k}.bias": b for k, b in enumerate(biases or [])}
        header = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "simjax_version": package_version(),
            "sizes": json.dumps(self.sizes),
            "activation": self.activation,
            "use_bias": json.dumps(self.use_bias),
        }
        data = safetensors.numpy.save(tensors, metadata=header)
        with atomic_file(path, overwrite) as file:
            file.write(data)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> MLP:
        """Reads a network that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, foreign, of a newer format version or inconsistent; says which.
        """
        tensors, header = read_safetensors(path, FORMAT, FORMAT_VERSION)
        try:
            network = cls(json.loads(header["sizes"]), header["activation"], json.loads(header["use_bias"]))
            for k, layer in enumerate(network.layers):
                _load_parameter(layer.kernel, tensors, f"layers.{k}.kernel")
                if layer.bias is not None:
                    _load_parameter(layer.bias, tensors, f"layers.{k}.bias")
        except KeyError as error:
            raise ValueError(f"{path}: not a usable simjax network: {error} is missing") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a usable simjax network: {error}") from error
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


# ---- reading the layers of any Flax network ---------------------------------------------------------------

_SAMPLES = 64  # how many samples the network is run on to see what it does
_EVALUATION = {"deterministic": True, "train": False, "training": False}
_HELP = (
    "Accepted are chains of Flax Linear (Linen: Dense) layers with one of the activations "
    f"{', '.join(ACTIVATIONS)} between them, and any object with a method states(inputs) -> simjax.States. "
    "States can also be made from arrays: simjax.States(inputs=, preactivations=, activations=, outputs=)."
)


class _Call(NamedTuple):
    """What entered one linear layer, and its parameters."""

    received: np.ndarray  # (samples, inputs)
    kernel: np.ndarray  # (inputs, outputs), Flax's orientation
    bias: np.ndarray | None

    @property
    def returned(self) -> np.ndarray:
        product = self.received @ self.kernel
        return product if self.bias is None else product + self.bias


def read_layers(
    network: Any, inputs: Any, variables: Any = None
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray | None], str]:
    """Reads a Flax network that is a chain of linear layers: see `simjax.collect_states`.

    Nothing is inferred from names or from how the module is written: it is run in float64 on samples from
    `inputs` and around them, and what entered each linear layer must be what the chain gives.

    Returns:
        inputs (m, p), weights (outputs, inputs) and biases per layer, and the activation's name.

    Raises:
        TypeError: the network is not such a chain or could not be run.
        ValueError: no hidden layer, hidden layers with different activations, unfit inputs or `variables`.
    """
    variables = _checked_variables(network, variables)
    given = np.asarray(inputs)
    flat = matrix("inputs", given.reshape(given.shape[0], -1) if given.ndim > 2 else given)
    samples = _samples(flat)
    outputs, calls = _run(network, samples.reshape(-1, *given.shape[1:]), variables)
    name = _chain_activation(samples, calls, outputs)
    return flat, [call.kernel.T for call in calls], [call.bias for call in calls], name


def _checked_variables(network: Any, variables: Any) -> Any:
    if isinstance(network, nnx.Module):
        if variables is not None:
            raise ValueError("variables is for Flax Linen modules; an NNX module carries its own.")
    elif not isinstance(network, linen.Module):
        raise TypeError(f"network is a {type(network).__name__}, which is not understood. {_HELP}")
    elif not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError("variables must be a mapping with the key 'params' for a Flax Linen module.")
    return variables


def _samples(flat: np.ndarray) -> np.ndarray:
    """Some inputs, their negatives and noise of their size, so that preactivations of both signs are seen."""
    some = flat[:_SAMPLES]
    noise = np.random.default_rng(0).standard_normal((_SAMPLES, flat.shape[1]))
    return np.concatenate([some, -some, noise * max(1e-3, float(np.abs(some).max()))])


def _run(network: Any, inputs: np.ndarray, variables: Any) -> tuple[np.ndarray, list[_Call]]:
    """Outputs of the network in evaluation mode, and what its linear layers did, in the order they ran."""
    run = _run_nnx if isinstance(network, nnx.Module) else _run_linen
    try:
        # Records need values, also inside a jitted call; accelerators multiply float32 coarsely by default.
        with jax.enable_x64(True), jax.disable_jit(), jax.default_matmul_precision("highest"):
            outputs, calls = run(network, jnp.asarray(inputs), variables)
            return np.asarray(outputs), calls
    except Exception as error:  # the user's own code runs here and may raise anything
        raise TypeError(
            f"network {type(network).__name__} could not be run on its inputs in evaluation mode "
            f"({type(error).__name__}: {_first_line(error)}). {_HELP}"
        ) from error


def _run_nnx(network: nnx.Module, inputs: jax.Array, variables: None) -> tuple[Any, list[_Call]]:
    graph, state = nnx.split(network)
    copy = nnx.merge(graph, jax.tree.map(_float64, state))
    copy.eval()
    calls: list[_Call] = []
    for _, module in nnx.iter_modules(copy):
        if isinstance(module, nnx.Linear):
            module.dot_general = _recorded(module, module.dot_general, calls)
    return copy(inputs, **_evaluation_flags(copy.__call__)), calls


def _recorded(layer: nnx.Linear, dot_general: Callable, calls: list[_Call]) -> Callable:
    """`layer`'s product, which is a field of every nnx.Linear, with a record of what it multiplied."""

    def product(received: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        calls.append(_call(received, kernel, None if layer.bias is None else layer.bias[...]))
        return dot_general(received, kernel, *args, **kwargs)

    return product


def _run_linen(network: linen.Module, inputs: jax.Array, variables: Any) -> tuple[Any, list[_Call]]:
    calls: list[_Call] = []

    def record(layer: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        if isinstance(context.module, linen.Dense) and context.method_name == "__call__":
            received = args[0] if args else kwargs["inputs"]
            outputs = layer(*args, **kwargs)
            params = context.module.variables["params"]
            calls.append(_call(received, params["kernel"], params.get("bias")))
            return outputs
        return layer(*args, **kwargs)

    with linen.intercept_methods(record):
        flags: Any = _evaluation_flags(network.__call__)
        return network.apply(jax.tree.map(_float64, variables), inputs, **flags), calls


def _evaluation_flags(call: Callable) -> dict[str, bool]:
    """The usual names of an evaluation switch, where the module's call has one."""
    return {name: value for name, value in _EVALUATION.items() if name in inspect.signature(call).parameters}


def _float64(leaf: Any) -> Any:
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _call(received: Any, kernel: Any, bias: Any) -> _Call:
    return _Call(np.asarray(received), np.asarray(kernel), None if bias is None else np.asarray(bias))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no message")


def _chain_activation(samples: np.ndarray, calls: list[_Call], outputs: np.ndarray) -> str:
    """The activation that makes these calls a chain from `samples` to `outputs`; an error if none does."""
    if not calls:
        raise TypeError(f"network ran no Flax Linear or Dense layer. {_HELP}")
    seen = [*(call.received for call in calls), outputs]
    if any(array.dtype not in (np.float32, np.float64) for array in seen):
        found = ", ".join(sorted({str(array.dtype) for array in seen}))
        raise TypeError(f"network must compute and return float32 or float64, got {found}. {_HELP}")
    if not all(np.isfinite(array).all() for array in seen):
        raise ValueError("network computes NaN or infinite values on inputs of this size.")
    if not _same(calls[0].received, samples, samples):
        raise TypeError(f"network changes its inputs before the first linear layer. {_HELP}")
    if not _same(outputs, calls[-1].returned, calls[-1].returned):
        raise TypeError(
            f"network's outputs are not its last linear layer's: it must return logits, not softmax. {_HELP}"
        )
    if len(calls) == 1:
        raise ValueError("network has no hidden layer, so it has no states.")
    fitting = [_fitting(call.returned, following.received) for call, following in pairwise(calls)]
    for k, names in enumerate(fitting, start=1):
        if not names:
            raise TypeError(f"what network does between linear layers {k} and {k + 1} is not understood. {_HELP}")
    common = [name for name in ACTIVATIONS if all(name in names for names in fitting)]
    if not common:
        described = ", ".join(names[0] for names in fitting)
        raise ValueError(f"network's hidden layers must share one activation, got {described}.")
    return common[0]


def _fitting(Z: np.ndarray, X: np.ndarray) -> list[str]:
    """Names of the activations with X = φ(Z); several only if Z does not tell them apart."""
    return [name for name, phi in ACTIVATIONS.items() if _same(X, phi.host(Z), Z)]


def _same(found: np.ndarray, expected: np.ndarray, scale: np.ndarray) -> bool:
    """Equality up to the rounding of the precision in which the network itself computed."""
    if found.shape != expected.shape:
        return False
    allowed = np.sqrt(np.finfo(found.dtype).eps) * max(np.abs(scale).max(), np.abs(expected).max())
    return bool(np.abs(found - expected).max() <= allowed)
