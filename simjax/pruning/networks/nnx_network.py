"""Flax NNX networks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax.pruning.networks import flax_products as products
from simjax.pruning.networks.linear_map import LinearMap, Sink
from simjax.states.flax_layers import evaluation_flags

_PRODUCTS = (nnx.Linear, nnx.LinearGeneral)


class NnxNetwork:
    """Implements `Network` for a Flax NNX module: Linear, LinearGeneral (of attention too) and Conv are read."""

    def __init__(self, network: nnx.Module) -> None:
        self._graph, state = nnx.split(network)
        self._module = nnx.merge(self._graph, jax.tree.map(lambda leaf: leaf, state))
        self._running = nnx.merge(self._graph, jax.tree.map(lambda leaf: leaf, state))
        self._running.eval()
        self._sink: Sink | None = None
        self._parts: dict[str, Any] = {}
        self.maps: dict[str, LinearMap] = {}
        shared = _shared(self._running)
        for path, part in nnx.iter_modules(self._running):
            name = ".".join(map(str, path))
            if name in shared:
                continue
            if isinstance(part, _PRODUCTS) and not getattr(part, "batch_axis", None):
                part.dot_general = products.recorded_product(part.dot_general or jax.lax.dot_general, self._tell(name))
                self.maps[name] = products.matrix_of_product(np.asarray(part.kernel[...]), _inputs(part), _bias(part))
            elif isinstance(part, nnx.Conv) and part.mask is None:
                part.conv_general_dilated = products.recorded_convolution(part.conv_general_dilated, self._tell(name))
                kernel = np.asarray(part.kernel[...])
                self.maps[name] = products.matrix_of_convolution(kernel, part.feature_group_count, _bias(part))
        self.others = _others(self._running, self.maps)
        names = {".".join(map(str, path)): part for path, part in nnx.iter_modules(self._module)}
        running = {".".join(map(str, path)): part for path, part in nnx.iter_modules(self._running)}
        self._parts = {name: (names[name], running[name]) for name in self.maps}

    def _tell(self, name: str) -> Any:
        def tell(received: np.ndarray) -> None:
            if self._sink is not None:
                self._sink(name, received)

        return tell

    def run(self, batch: Any, sink: Sink) -> None:
        self._sink = sink
        try:
            # Records need values, also inside a jitted call; accelerators multiply float32 coarsely by default.
            with jax.disable_jit(), jax.default_matmul_precision("highest"):
                self._running(jnp.asarray(batch), **evaluation_flags(self._running.__call__))
        finally:
            self._sink = None

    def write(self, name: str, weight: np.ndarray, bias: np.ndarray | None) -> None:
        for part in self._parts[name]:
            old = part.kernel[...]
            make = products.kernel_of_convolution if isinstance(part, nnx.Conv) else products.kernel_of_product
            part.kernel[...] = jnp.asarray(make(weight, old.shape), old.dtype)
            if bias is not None:
                part.bias[...] = jnp.asarray(bias.reshape(part.bias[...].shape), part.bias[...].dtype)

    def finished(self) -> nnx.Module:
        return self._module


def _parameters(part: nnx.Module) -> list[nnx.Param]:
    """Those of a module that are its own."""
    return [value for value in vars(part).values() if isinstance(value, nnx.Param)]


def _shared(network: nnx.Module) -> set[str]:
    """Names of modules that share a parameter with another one: what one gets, the other gets too."""
    owners: dict[int, list[str]] = {}
    for path, part in nnx.iter_modules(network):
        for parameter in _parameters(part):
            owners.setdefault(id(parameter), []).append(".".join(map(str, path)))
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _others(network: nnx.Module, maps: dict[str, LinearMap]) -> list[str]:
    named = ((".".join(map(str, path)), part) for path, part in nnx.iter_modules(network))
    return [f"{name} ({type(part).__name__})" for name, part in named if name not in maps and _parameters(part)]


def _inputs(part: Any) -> int:
    """How many axes of the kernel are contracted."""
    return len(part.axis) if isinstance(part, nnx.LinearGeneral) and not isinstance(part.axis, int) else 1


def _bias(part: Any) -> np.ndarray | None:
    return None if part.bias is None else np.asarray(part.bias[...])
