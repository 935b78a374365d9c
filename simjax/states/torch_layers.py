"""How the layers of anyone's PyTorch network are read.

PyTorch is not imported here: whoever has a module of it has imported it.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np

from simjax.states.chain import Call, Run, WidthError, check_width, not_run, read_chain

# Layers of torch.nn that hold others, that change nothing in evaluation mode, and that are found by what they do.
_HOLDING = ("Sequential", "ModuleList", "ModuleDict")
_IDLE = ("Identity", "Flatten", "Dropout", "AlphaDropout")
_FOUND = ("Linear", "ReLU", "LeakyReLU", "Tanh", "Sigmoid")
_READ = frozenset((*_HOLDING, *_IDLE, *_FOUND))


def is_torch_module(network: Any) -> bool:
    """Whether it is a `torch.nn.Module`."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(network, torch.nn.Module)


def read_torch_layers(network: Any, inputs: Any) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray | None], str]:
    """Reads a PyTorch network that is a chain of linear layers: see `simjax.collect_states`.

    A copy of it is run, on the CPU, in evaluation mode.

    Returns:
      inputs (m, p), weights (outputs, inputs) and biases per layer, and the activation's name.

    Raises:
      TypeError: the network is not such a chain or could not be run.
      ValueError: no hidden layer, hidden layers with different activations, unfit inputs.
    """
    return read_chain(inputs, lambda samples: _run(network, samples))


def _run(network: Any, samples: np.ndarray) -> Run:
    """What the network does, in double precision; where its code does not take that, in its own."""
    torch = sys.modules["torch"]
    try:
        try:
            return _recorded(copy.deepcopy(network).double(), torch.as_tensor(samples, dtype=torch.float64))
        except WidthError:
            raise
        except Exception:
            own = next(network.parameters()).dtype
            return _recorded(copy.deepcopy(network), torch.as_tensor(samples, dtype=own))
    except Exception as error:  # the user's own code runs here
        raise not_run(network, error) from (None if isinstance(error, WidthError) else error)


def _recorded(network: Any, samples: Any) -> Run:
    """A run of `network`, which is changed, with a record of what entered its linear layers."""
    torch = sys.modules["torch"]
    calls: list[Call] = []
    others: list[str] = []

    def record(layer: Any, received: tuple, returned: Any) -> None:
        bias = None if layer.bias is None else _array(layer.bias)
        calls.append(Call(_array(received[0]), _array(layer.weight), bias))

    def check(layer: Any, received: tuple) -> None:
        check_width(calls, received[0].shape[-1], layer.in_features)

    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(check)
            layer.register_forward_hook(record)
        elif type(layer).__module__.startswith("torch.nn.") and type(layer).__name__ not in _READ:
            others.append(f"{type(layer).__name__} ({name or 'the network itself'})")
    with torch.no_grad():
        outputs = network.cpu().eval()(samples)
    return Run(_array(outputs), calls, others)


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy()
