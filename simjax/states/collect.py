"""`collect_states`: the states of a trained network."""

from __future__ import annotations

import inspect
from typing import Any

from simjax._frames import is_frame
from simjax._typing import ArrayLike
from simjax.states.states import States
from simjax.states.torch_layers import is_torch_module, read_torch_layers


def collect_states(network: Any, inputs: ArrayLike, *, variables: Any = None, layers: int | None = None) -> States:
    """The states of a trained network on `inputs` (m, p), in float64 whatever the network's own precision.

    Args:
      network: one of

        * an object with a method `states(inputs)` that returns `States`, such as `simjax.nn.MLP`, with an
          argument `layers` if it lets one choose;
        * a Flax NNX module or a PyTorch module, run in evaluation mode on a copy;
        * a Flax Linen module, with `variables`.

        A module must be a chain of `Linear` (Linen: `Dense`) layers with one known activation
        between all of them; dropout, inactive in evaluation, may stand anywhere, and how the module is
        written does not matter. This is not taken on trust: the module is run on some samples, and what
        enters each layer must be what the chain gives.
      inputs: U (m, p), or (m, …) for a network that flattens its inputs itself.
      variables: Linen only, {"params": …}.
      layers: how many of the last hidden layers are states; what feeds the first of them is then the input u.
        None means all. For a convolutional network, whose states are many, see `simjax.nn.ResNet.states`.

    Raises:
      TypeError: the network is not such a chain, or not understood; the message says what to do instead.
      ValueError: hidden layers with different activations, no hidden layer, inputs or layers that do not fit.

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> simjax.collect_states(MLP((3, 5, 4, 2)), np.ones((10, 3)))
      States(m=10, n=9, p=3, q=2, activation='relu', layer_sizes=(5, 4), baseline known)
    """
    own = getattr(network, "states", None)
    if callable(own):
        if variables is not None:
            raise ValueError("variables is for Flax Linen modules; this network has its own method states(inputs).")
        if layers is not None and "layers" not in inspect.signature(own).parameters:
            raise TypeError(f"layers must be None: {type(network).__name__}.states has no argument of that name.")
        states = own(inputs) if layers is None else own(inputs, layers=layers)
        if not isinstance(states, States):
            raise TypeError(f"network.states(inputs) must return simjax.States, got {type(states).__name__}.")
        return states
    if is_torch_module(network):
        if variables is not None:
            raise ValueError("variables is for Flax Linen modules; a PyTorch module carries its own.")
        flat, weights, biases, name = read_torch_layers(network, inputs)
    else:
        from simjax.states.flax_layers import read_layers  # here, so that plain arrays need no Flax

        flat, weights, biases, name = read_layers(network, inputs, variables)
    # A frame once more, for its names.
    return States.from_layers(weights, biases, name, inputs if is_frame(inputs) else flat, layers)
