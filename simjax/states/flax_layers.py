"""How the layers of anyone's Flax network are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax._checks import matrix, plain_array
from simjax.implicit.activations import ACTIVATIONS

_SAMPLES = 64  # how many samples the network is run on to see what it does
_EVALUATION = {"deterministic": True, "train": False, "training": False}
_HELP = (
    "Accepted are chains of Flax Linear (Linen: Dense) layers with one of the activations "
    f"{', '.join(ACTIVATIONS)} between them, and any object with a method states(inputs) -> simjax.States. "
    "States can also be made from arrays: simjax.States(inputs=, preactivations=, activations=, outputs=)."
)


# Modules that hold others or change nothing in evaluation mode.
_TRANSPARENT = (nnx.Sequential, nnx.Dropout, nnx.List, nnx.Dict, linen.Sequential, linen.Dropout, linen.Dense)
_FOREIGN = (
    "gelu",
    "silu",
    "elu",
    "selu",
    "celu",
    "softplus",
    "relu6",
    "mish",
    "hard_tanh",
    "hard_sigmoid",
    "soft_sign",
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
    given = plain_array("inputs", inputs)
    flat = matrix("inputs", given.reshape(given.shape[0], -1) if given.ndim > 2 else given)
    samples = _samples(flat)
    outputs, calls, others = _run(network, samples.reshape(-1, *given.shape[1:]), variables)
    name = _chain_activation(samples, calls, outputs, others)
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


class _WidthError(ValueError):
    """The inputs do not fit the first linear layer."""


def _run(network: Any, inputs: np.ndarray, variables: Any) -> tuple[np.ndarray, list[_Call], list[str]]:
    """Outputs of the network in evaluation mode, what its linear layers did, in the order they ran, and its others.

    In double precision, which tells activations apart best; where the network's code does not take that, in its own.
    """
    run = _run_nnx if isinstance(network, nnx.Module) else _run_linen
    # Records need values, also inside a jitted call; accelerators multiply float32 coarsely by default.
    with jax.disable_jit(), jax.default_matmul_precision("highest"):
        try:
            try:
                with jax.enable_x64(True):
                    outputs, calls, others = run(network, jnp.asarray(inputs), variables, _float64)
                    return np.asarray(outputs), calls, others
            except _WidthError:
                raise
            except Exception:
                outputs, calls, others = run(network, jnp.asarray(inputs), variables, lambda leaf: leaf)
                return np.asarray(outputs), calls, others
        except _WidthError as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # the user's own code runs here and may raise anything
            raise TypeError(
                f"network {type(network).__name__} could not be run on its inputs in evaluation mode "
                f"({type(error).__name__}: {_first_line(error)}). {_HELP}"
            ) from error


def _run_nnx(network: nnx.Module, inputs: jax.Array, variables: None, cast: Callable) -> tuple[Any, list, list]:
    graph, state = nnx.split(network)
    copy = nnx.merge(graph, jax.tree.map(cast, state))
    copy.eval()
    calls: list[_Call] = []
    others: list[str] = []
    for path, module in nnx.iter_modules(copy):
        if isinstance(module, nnx.Linear):
            module.dot_general = _recorded(module, module.dot_general, calls)
        elif type(module).__module__.startswith("flax.") and not isinstance(module, _TRANSPARENT):
            others.append(f"{type(module).__name__} ({'.'.join(map(str, path))})")
    return copy(inputs, **_evaluation_flags(copy.__call__)), calls, others


def _check_width(calls: list[_Call], received: Any, kernel: Any) -> None:
    if not calls and received.shape[-1] != kernel.shape[0]:
        raise _WidthError(
            f"inputs must fit the network's first linear layer, which takes {kernel.shape[0]} numbers a sample; it "
            f"received {received.shape[-1]}."
        )


def _recorded(layer: nnx.Linear, dot_general: Callable, calls: list[_Call]) -> Callable:
    """`layer`'s product, which is a field of every nnx.Linear, with a record of what it multiplied."""

    def product(received: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        _check_width(calls, received, kernel)
        calls.append(_call(received, kernel, None if layer.bias is None else layer.bias[...]))
        return dot_general(received, kernel, *args, **kwargs)

    return product


def _run_linen(network: linen.Module, inputs: jax.Array, variables: Any, cast: Callable) -> tuple[Any, list, list]:
    calls: list[_Call] = []
    others: list[str] = []

    def record(layer: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        if isinstance(context.module, linen.Dense) and context.method_name == "__call__":
            received = args[0] if args else kwargs["inputs"]
            params = context.module.variables["params"]
            _check_width(calls, received, params["kernel"])
            outputs = layer(*args, **kwargs)
            calls.append(_call(received, params["kernel"], params.get("bias")))
            return outputs
        kind = type(context.module)
        if kind.__module__.startswith("flax.") and not issubclass(kind, _TRANSPARENT):
            others.append(f"{kind.__name__} ({'.'.join(context.module.path)})")
        return layer(*args, **kwargs)

    with linen.intercept_methods(record):
        flags: Any = _evaluation_flags(network.__call__)
        return network.apply(jax.tree.map(cast, variables), inputs, **flags), calls, others


def _evaluation_flags(call: Callable) -> dict[str, bool]:
    """The usual names of an evaluation switch, where the module's call has one."""
    return {name: value for name, value in _EVALUATION.items() if name in inspect.signature(call).parameters}


def _float64(leaf: Any) -> Any:
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _call(received: Any, kernel: Any, bias: Any) -> _Call:
    return _Call(np.asarray(received), np.asarray(kernel), None if bias is None else np.asarray(bias))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no message")


def _chain_activation(samples: np.ndarray, calls: list[_Call], outputs: np.ndarray, others: list[str]) -> str:
    """The activation that makes these calls a chain from `samples` to `outputs`; an error if none does."""
    unread = f" It has {', '.join(dict.fromkeys(others))}, which simjax does not read." if others else ""
    if not calls:
        raise TypeError(f"network ran no Flax Linear or Dense layer.{unread} {_HELP}")
    seen = [*(call.received for call in calls), outputs]
    if any(array.dtype not in (np.float32, np.float64) for array in seen):
        found = ", ".join(sorted({str(array.dtype) for array in seen}))
        raise TypeError(f"network must compute and return float32 or float64, got {found}. {_HELP}")
    if not all(np.isfinite(array).all() for array in seen):
        raise ValueError("network computes NaN or infinite values on inputs of this size.")
    if not _same(calls[0].received, samples, samples):
        raise TypeError(f"network changes its inputs before the first linear layer.{unread} {_HELP}")
    if not _same(outputs, calls[-1].returned, calls[-1].returned):
        raise TypeError(
            f"network's outputs are not its last linear layer's: it must return logits, not softmax.{unread} {_HELP}"
        )
    if len(calls) == 1:
        raise ValueError("network has no hidden layer, so it has no states.")
    fitting = [_fitting(call.returned, following.received) for call, following in pairwise(calls)]
    for k, names in enumerate(fitting, start=1):
        if not names:
            known = unread or _foreign(calls[k - 1].returned, calls[k].received)
            raise TypeError(
                f"what network does between linear layers {k} and {k + 1} is not understood.{known} {_HELP}"
            )
    common = [name for name in ACTIVATIONS if all(name in names for names in fitting)]
    if not common:
        described = ", ".join(names[0] for names in fitting)
        raise ValueError(f"network's hidden layers must share one activation, got {described}.")
    return common[0]


def _fitting(Z: np.ndarray, X: np.ndarray) -> list[str]:
    """Names of the activations with X = φ(Z); several only if Z does not tell them apart."""
    return [name for name, phi in ACTIVATIONS.items() if _same(X, phi.host(Z), Z)]


def _foreign(Z: np.ndarray, X: np.ndarray) -> str:
    """The name of the activation with X = φ(Z), where it is one of Flax's that simjax has not."""
    for name in _FOREIGN:
        phi: Any = getattr(jax.nn, name)
        with jax.enable_x64(True):
            if _same(X, np.asarray(phi(jnp.asarray(Z))), Z):
                return f" It is {name}, which is none of simjax's activations."
    return ""


def _same(found: np.ndarray, expected: np.ndarray, scale: np.ndarray) -> bool:
    """Equality up to the rounding of the precision in which the network itself computed."""
    if found.shape != expected.shape:
        return False
    allowed = np.sqrt(np.finfo(found.dtype).eps) * max(np.abs(scale).max(), np.abs(expected).max())
    return bool(np.abs(found - expected).max() <= allowed)
