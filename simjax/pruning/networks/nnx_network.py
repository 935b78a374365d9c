"""Flax NNX networks."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax.pruning.networks import flax_products as products
from simjax.pruning.networks.linear_map import LinearMap, Sink
from simjax.states.flax_layers import evaluation_flags

_READ = (nnx.Linear, nnx.LinearGeneral, nnx.Conv)


class NnxNetwork:
    """Implements `Network` for a Flax NNX module: Linear, LinearGeneral (of attention too) and Conv are read.

    It is run once, on `batch`, which shows which of them multiply by their kernels alone.
    """

    def __init__(self, network: nnx.Module, batch: Any) -> None:
        self._module, self._running = _copied(network), _copied(network)
        self._running.eval()
        self._records = products.Records()
        shared = _shared(self._running)
        read = {}
        for name, part in _named(self._running):
            kind = next((kind for kind in _READ if isinstance(part, kind)), None)
            stacked = kind is None or part.kernel[...].ndim != _axes(part)  # by nnx.vmap or nnx.scan
            if stacked or name in shared or getattr(part, "mask", None) is not None:
                continue
            read[name] = part
            self._records.kernels[name] = np.asarray(part.kernel[...])
            tell = functools.partial(self._records.tell, name)
            if isinstance(part, nnx.Conv):
                product = products.product_of(part, "conv_general_dilated", jax.lax.conv_general_dilated)
                part.conv_general_dilated = products.recorded_convolution(product, tell)
            else:
                product = products.product_of(part, "dot_general", jax.lax.dot_general)
                part.dot_general = products.recorded_product(product, tell)
                if isinstance(part, nnx.LinearGeneral):
                    part.dot_general_cls = None
        self._run(batch, list(read), None)
        refused = self._records.refused
        self.maps: dict[str, LinearMap] = {name: _map(part) for name, part in read.items() if name not in refused}
        self.others = [
            f"{name} ({type(part).__name__}{', ' if name in refused else ''}{refused.get(name, '')})"
            for name, part in _named(self._running)
            if name not in self.maps and _parameters(part)
        ]
        own, running = dict(_named(self._module)), dict(_named(self._running))
        self._parts = {name: (own[name], running[name]) for name in self.maps}

    def run(self, batch: Any, names: Collection[str], sink: Sink) -> None:
        self._run(batch, names, sink)

    def _run(self, batch: Any, names: Collection[str], sink: Sink | None) -> None:
        with self._records.of(names, sink):
            self._running(jnp.asarray(batch), **evaluation_flags(self._running.__call__))

    def write(self, name: str, weight: np.ndarray, bias: np.ndarray | None) -> None:
        own, running = self._parts[name]
        old = own.kernel[...]
        make = products.kernel_of_convolution if isinstance(own, nnx.Conv) else products.kernel_of_product
        own.kernel[...] = running.kernel[...] = products.like(make(weight, old.shape), old)
        self._records.kernels[name] = np.asarray(running.kernel[...])
        if bias is not None:
            own.bias[...] = running.bias[...] = products.like(bias, own.bias[...])

    def shown(self) -> nnx.Module:
        copy = _copied(self._module)
        copy.eval()
        return copy

    def finished(self) -> nnx.Module:
        return self._module


def _copied(network: nnx.Module) -> nnx.Module:
    graph, state = nnx.split(network)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))


def _named(network: nnx.Module) -> Iterator[tuple[str, Any]]:
    return ((".".join(map(str, path)), part) for path, part in nnx.iter_modules(network))


def _axes(part: Any) -> int:
    """How many axes the kernel of a layer has."""
    if isinstance(part, nnx.LinearGeneral):
        return len(part.in_features) + len(part.out_features)
    return len(part.kernel_size) + 2 if isinstance(part, nnx.Conv) else 2


def _map(part: Any) -> LinearMap:
    kernel, bias = np.asarray(part.kernel[...]), None if part.bias is None else np.asarray(part.bias[...])
    if isinstance(part, nnx.Conv):
        return products.matrix_of_convolution(kernel, part.feature_group_count, bias)
    return products.matrix_of_product(kernel, len(part.axis) if isinstance(part, nnx.LinearGeneral) else 1, bias)


def _parameters(part: nnx.Module) -> list[nnx.Param]:
    """Those of a module that are its own."""
    return [value for value in vars(part).values() if isinstance(value, nnx.Param)]


def _shared(network: nnx.Module) -> set[str]:
    """Names of modules that share a parameter with another one: what one gets, the other gets too."""
    owners: dict[int, list[str]] = {}
    for name, part in _named(network):
        for parameter in _parameters(part):
            owners.setdefault(id(parameter), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}
