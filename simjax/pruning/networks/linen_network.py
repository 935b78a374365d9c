"""Flax Linen networks with their variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from simjax.pruning.networks import flax_products as products
from simjax.pruning.networks.linear_map import LinearMap, Sink
from simjax.states.flax_layers import evaluation_flags


class LinenNetwork:
    """Implements `Network` for a Flax Linen module: Dense, DenseGeneral (of attention too) and Conv are read.

    Which modules there are shows when it runs: it is run once, on `batch`.
    """

    def __init__(self, network: linen.Module, variables: Any, batch: Any) -> None:
        self._network, self._variables = network, variables
        self._params = flatten_dict(variables["params"])
        self._convolutions: set[str] = set()
        self.maps: dict[str, LinearMap] = {}
        self.run(batch, lambda name, received: None)
        owners = dict.fromkeys(".".join(path[:-1]) for path in self._params)
        self.others = [f"{name or 'the network itself'}" for name in owners if name not in self.maps]

    def run(self, batch: Any, sink: Sink) -> None:
        def record(layer: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
            module = context.module
            if context.method_name != "__call__" or not isinstance(
                module, linen.Dense | linen.DenseGeneral | linen.Conv
            ):
                return layer(*args, **kwargs)
            name = ".".join(module.path)
            field = "conv_general_dilated" if isinstance(module, linen.Conv) else "dot_general"
            if not self._read(name, module):
                return layer(*args, **kwargs)
            old = getattr(module, field)
            if isinstance(module, linen.Conv):
                new = products.recorded_convolution(old or jax.lax.conv_general_dilated, lambda x: sink(name, x))
            else:
                new = products.recorded_product(old or jax.lax.dot_general, lambda x: sink(name, x))
            object.__setattr__(module, field, new)  # of this bound copy of the module
            try:
                return layer(*args, **kwargs)
            finally:
                object.__setattr__(module, field, old)

        flags: Any = evaluation_flags(self._network.__call__)
        # Records need values, also inside a jitted call; accelerators multiply float32 coarsely by default.
        with linen.intercept_methods(record), jax.disable_jit(), jax.default_matmul_precision("highest"):
            self._network.apply(self._now(), jnp.asarray(batch), **flags)

    def _read(self, name: str, module: Any) -> bool:
        """Whether the module is one that is read; it is put down at its first call."""
        if name in self.maps:
            return True
        batched: Any = getattr(module, "batch_dims", None)
        if getattr(module, "mask", None) is not None or batched:
            return False
        path = tuple(name.split("."))
        kernel, bias = self._params[(*path, "kernel")], self._params.get((*path, "bias"))
        if isinstance(module, linen.Conv):
            self._convolutions.add(name)
            self.maps[name] = products.matrix_of_convolution(np.asarray(kernel), module.feature_group_count, bias)
        else:
            axis = getattr(module, "axis", -1)
            self.maps[name] = products.matrix_of_product(
                np.asarray(kernel), 1 if isinstance(axis, int) else len(axis), bias
            )
        return True

    def write(self, name: str, weight: np.ndarray, bias: np.ndarray | None) -> None:
        path = tuple(name.split("."))
        make = products.kernel_of_convolution if name in self._convolutions else products.kernel_of_product
        old = self._params[(*path, "kernel")]
        self._params[(*path, "kernel")] = jnp.asarray(make(weight, old.shape), old.dtype)
        if bias is not None:
            old = self._params[(*path, "bias")]
            self._params[(*path, "bias")] = jnp.asarray(bias.reshape(old.shape), old.dtype)

    def _now(self) -> Any:
        return {**self._variables, "params": unflatten_dict(self._params)}

    def finished(self) -> Any:
        """The variables: a Linen module has no weights of its own."""
        return self._now()
