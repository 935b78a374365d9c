"""Which reader a Flax network has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as linen
from flax import nnx

from simjax.pruning.networks.linear_map import Network
from simjax.pruning.networks.linen_network import LinenNetwork
from simjax.pruning.networks.nnx_network import NnxNetwork


def read_flax(network: Any, variables: Any, batch: Any) -> Network:
    """The network, copied.

    Raises:
      TypeError: for what is no network.
      ValueError: for `variables` where there should be none, or none where there should be.
    """
    if isinstance(network, nnx.Module):
        if variables is not None:
            raise ValueError("variables is for Flax Linen modules; an NNX module carries its own.")
        return NnxNetwork(network, batch)
    if not isinstance(network, linen.Module):
        kind = type(network).__name__
        raise TypeError(f"network must be a Flax NNX or Linen module or a PyTorch module, got {kind}.")
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError("variables must be a mapping with the key 'params' for a Flax Linen module.")
    return LinenNetwork(network, variables, batch)
