"""Flax Linen networks with their variables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict, freeze, meta
from flax.traverse_util import flatten_dict, unflatten_dict

from simjax.pruning.networks import flax_products as products
from simjax.pruning.networks.linear_map import LinearMap, Sink
from simjax.states.flax_layers import evaluation_flags

_PRODUCT, _CONVOLUTION = jax.lax.dot_general, jax.lax.conv_general_dilated
_READ = (linen.Dense, linen.DenseGeneral, linen.Conv)


class LinenNetwork:
    """Implements `Network` for a Flax Linen module: Dense, DenseGeneral (of attention too) and Conv are read.

    It is run once, on `batch`, which shows which modules there are, and which multiply by their kernels alone.
    """

    def __init__(self, network: linen.Module, variables: Any, batch: Any) -> None:
        self._network, self._variables = network, variables
        self._params = flatten_dict(variables["params"])
        self._records = products.Records()
        self._paths: dict[str, tuple[str, ...]] = {}
        self._convolutions: set[str] = set()
        self.maps: dict[str, LinearMap] = {}
        found: dict[str, LinearMap] = {}

        def put_down(name: str, module: Any) -> None:
            kernel, bias = self._param(module.path, "kernel"), self._param(module.path, "bias")
            self._paths[name] = module.path
            self._records.kernels[name] = np.asarray(kernel)
            if isinstance(module, linen.Conv):
                self._convolutions.add(name)
                found[name] = products.matrix_of_convolution(np.asarray(kernel), module.feature_group_count, bias)
            else:
                axis = getattr(module, "axis", -1)
                axes = 1 if isinstance(axis, int) else len(axis)
                found[name] = products.matrix_of_product(np.asarray(kernel), axes, bias)

        self._run(batch, self._paths, None, put_down)
        refused = self._records.refused
        self.maps = {name: linear for name, linear in found.items() if name not in refused}
        owners = dict.fromkeys(".".join(path[:-1]) for path in self._params)
        self.others = [
            (name or "the network itself") + (f" ({refused[name]})" if name in refused else "")
            for name in owners
            if name not in self.maps
        ]

    def run(self, batch: Any, names: Collection[str], sink: Sink) -> None:
        self._run(batch, names, sink, lambda name, module: None)

    def _run(self, batch: Any, names: Collection[str], sink: Sink | None, called: Callable[[str, Any], None]) -> None:
        """Run a batch; `called` is told of each module of a kind that is read, before its call."""

        def record(layer: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
            module, given = context.module, functools.partial(layer, *args, **kwargs)
            if context.method_name != "__call__" or not isinstance(module, _READ):
                return given()
            if (*module.path, "kernel") not in self._params or getattr(module, "mask", None) is not None:
                return given()
            name = ".".join(module.path)
            called(name, module)
            tell = functools.partial(self._records.tell, name)
            standard: Callable
            if isinstance(module, linen.Conv):
                field, wrap, standard = "conv_general_dilated", products.recorded_convolution, _CONVOLUTION
            else:
                field, wrap, standard = "dot_general", products.recorded_product, _PRODUCT
            old = {key: getattr(module, key) for key in (field, f"{field}_cls")}
            new = {field: wrap(products.product_of(module, field, standard), tell), f"{field}_cls": None}
            for key, value in new.items():
                object.__setattr__(module, key, value)  # of this bound copy of the module
            try:
                return given()
            finally:
                for key, value in old.items():
                    object.__setattr__(module, key, value)

        flags: Any = evaluation_flags(self._network.__call__)
        with linen.intercept_methods(record), self._records.of(names, sink):
            self._network.apply(self._now(), jnp.asarray(batch), **flags)

    def _param(self, path: tuple[str, ...], key: str) -> Any:
        return meta.unbox(self._params.get((*path, key)))

    def write(self, name: str, weight: np.ndarray, bias: np.ndarray | None) -> None:
        path = self._paths[name]
        make = products.kernel_of_convolution if name in self._convolutions else products.kernel_of_product
        kernel = self._param(path, "kernel")
        self._replace((*path, "kernel"), make(weight, kernel.shape))
        self._records.kernels[name] = np.asarray(self._param(path, "kernel"))
        if bias is not None:
            self._replace((*path, "bias"), bias)

    def _replace(self, key: tuple[str, ...], values: np.ndarray) -> None:
        old = self._params[key]
        self._params[key] = meta.replace_boxed(old, products.like(values, meta.unbox(old)))

    def _now(self) -> Any:
        params = unflatten_dict(self._params)
        if isinstance(self._variables["params"], FrozenDict):
            params = freeze(params)
        now = {**self._variables, "params": params}
        return freeze(now) if isinstance(self._variables, FrozenDict) else now

    def shown(self) -> Any:
        return jax.tree.map(lambda leaf: leaf, self._now())

    def finished(self) -> Any:
        """The variables: a Linen module has no weights of its own."""
        return self._now()
