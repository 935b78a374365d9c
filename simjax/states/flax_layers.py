"""How the layers of anyone's Flax network are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax.states.chain import HELP, Call, Run, WidthError, check_width, not_run, read_chain

_EVALUATION = {"deterministic": True, "train": False, "training": False}

# Modules that hold others or change nothing in evaluation mode.
_TRANSPARENT = (nnx.Sequential, nnx.Dropout, nnx.List, nnx.Dict, linen.Sequential, linen.Dropout, linen.Dense)


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
    return read_chain(inputs, lambda samples: _run(network, samples, variables))


def _checked_variables(network: Any, variables: Any) -> Any:
    if isinstance(network, nnx.Module):
        if variables is not None:
            raise ValueError("variables is for Flax Linen modules; an NNX module carries its own.")
    elif not isinstance(network, linen.Module):
        raise TypeError(f"network is a {type(network).__name__}, which is not understood. {HELP}")
    elif not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError("variables must be a mapping with the key 'params' for a Flax Linen module.")
    return variables


def _run(network: Any, inputs: np.ndarray, variables: Any) -> Run:
    """What the network does in evaluation mode.

    In double precision, which tells activations apart best; where the network's code does not take that, in its own.
    """
    run = _run_nnx if isinstance(network, nnx.Module) else _run_linen
    # Records need values, also inside a jitted call; accelerators multiply float32 coarsely by default.
    with jax.disable_jit(), jax.default_matmul_precision("highest"):
        try:
            try:
                with jax.enable_x64(True):
                    return run(network, jnp.asarray(inputs), variables, _float64)
            except WidthError:
                raise
            except Exception:
                return run(network, jnp.asarray(inputs), variables, lambda leaf: leaf)
        except Exception as error:  # the user's own code runs here
            raise not_run(network, error) from (None if isinstance(error, WidthError) else error)


def _run_nnx(network: nnx.Module, inputs: jax.Array, variables: None, cast: Callable) -> Run:
    graph, state = nnx.split(network)
    copy = nnx.merge(graph, jax.tree.map(cast, state))
    copy.eval()
    calls: list[Call] = []
    others: list[str] = []
    for path, module in nnx.iter_modules(copy):
        if isinstance(module, nnx.Linear):
            module.dot_general = _recorded(module, module.dot_general, calls)
        elif type(module).__module__.startswith("flax.") and not isinstance(module, _TRANSPARENT):
            others.append(f"{type(module).__name__} ({'.'.join(map(str, path))})")
    return Run(np.asarray(copy(inputs, **evaluation_flags(copy.__call__))), calls, others)


def _recorded(layer: nnx.Linear, dot_general: Callable, calls: list[Call]) -> Callable:
    """`layer`'s product, which is a field of every nnx.Linear, with a record of what it multiplied."""

    def product(received: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        check_width(calls, received.shape[-1], kernel.shape[0])
        calls.append(_call(received, kernel, None if layer.bias is None else layer.bias[...]))
        return dot_general(received, kernel, *args, **kwargs)

    return product


def _run_linen(network: linen.Module, inputs: jax.Array, variables: Any, cast: Callable) -> Run:
    calls: list[Call] = []
    others: list[str] = []

    def record(layer: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        if isinstance(context.module, linen.Dense) and context.method_name == "__call__":
            received = args[0] if args else kwargs["inputs"]
            params = context.module.variables["params"]
            check_width(calls, received.shape[-1], params["kernel"].shape[0])
            outputs = layer(*args, **kwargs)
            calls.append(_call(received, params["kernel"], params.get("bias")))
            return outputs
        kind = type(context.module)
        if kind.__module__.startswith("flax.") and not issubclass(kind, _TRANSPARENT):
            others.append(f"{kind.__name__} ({'.'.join(context.module.path)})")
        return layer(*args, **kwargs)

    with linen.intercept_methods(record):
        flags: Any = evaluation_flags(network.__call__)
        return Run(np.asarray(network.apply(jax.tree.map(cast, variables), inputs, **flags)), calls, others)


def evaluation_flags(call: Callable) -> dict[str, bool]:
    """The usual names of an evaluation switch, where the module's call has one."""
    return {name: value for name, value in _EVALUATION.items() if name in inspect.signature(call).parameters}


def _float64(leaf: Any) -> Any:
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _call(received: Any, kernel: Any, bias: Any) -> Call:
    """With the kernel (inputs, outputs), Flax's orientation."""
    return Call(np.asarray(received), np.asarray(kernel).T, None if bias is None else np.asarray(bias))
