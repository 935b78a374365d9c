"""PyTorch networks. PyTorch is not imported here: whoever has a module of it has imported it."""

from __future__ import annotations

import copy
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simjax.pruning.networks.linear_map import LinearMap, Sink, patches


class TorchNetwork:
    """Implements `Network` for a `torch.nn.Module`: Linear and Conv1d, Conv2d, Conv3d that pad with zeros are read.

    A copy runs on the network's own device, in evaluation mode.
    """

    def __init__(self, network: Any) -> None:
        torch = sys.modules["torch"]
        self._torch = torch
        self._module = copy.deepcopy(network)
        self._modes = {name: part.training for name, part in self._module.named_modules()}
        self._module.eval()
        self._sink: Sink | None = None
        self._parts: dict[str, Any] = {}
        self.maps: dict[str, LinearMap] = {}
        self._handles = []
        shared = self._shared()
        for name, part in self._module.named_modules():
            convolution = isinstance(part, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d)
            if not isinstance(part, torch.nn.Linear) and not (convolution and part.padding_mode == "zeros"):
                continue
            # Attention reads this one's weight past its call.
            if name in shared or type(part).__name__ == "NonDynamicallyQuantizableLinear":
                continue
            self._parts[name] = part
            groups = part.groups if convolution else 1
            weight = _array(part.weight)
            bias = None if part.bias is None else _array(part.bias).reshape(groups, -1)
            self.maps[name] = LinearMap(weight.reshape(groups, weight.shape[0] // groups, -1), bias)
            self._handles.append(part.register_forward_pre_hook(self._tell(name, convolution)))
        self.others = [
            f"{name or 'the network itself'} ({type(part).__name__})"
            for name, part in self._module.named_modules()
            if name not in self.maps and list(part.parameters(recurse=False))
        ]

    def _shared(self) -> set[str]:
        """Names of modules that share a parameter with another one: what one gets, the other gets too."""
        owners: dict[int, list[str]] = {}
        for name, part in self._module.named_modules():
            for parameter in part.parameters(recurse=False):
                owners.setdefault(id(parameter), []).append(name)
        return {name for names in owners.values() if len(names) > 1 for name in names}

    def _tell(self, name: str, convolution: bool) -> Any:
        def tell(part: Any, received: tuple) -> None:
            if self._sink is not None:
                given = _array(received[0])
                self._sink(name, self._patches(part, given) if convolution else given.reshape(1, -1, given.shape[-1]))

        return tell

    def _patches(self, part: Any, images: np.ndarray) -> np.ndarray:
        window = tuple(part.kernel_size)
        if images.ndim == len(window) + 1:  # one sample without its axis
            images = images[None]
        padding = part.padding
        if padding == "same":
            totals = [d * (k - 1) for d, k in zip(part.dilation, window)]
            padding = [(total // 2, total - total // 2) for total in totals]
        elif padding == "valid":
            padding = [(0, 0)] * len(window)
        else:
            padding = [(size, size) for size in padding]
        with jax.enable_x64(True):
            return patches(
                jnp.asarray(images),
                window,
                part.groups,
                strides=tuple(part.stride),
                padding=padding,
                rhs_dilation=tuple(part.dilation),
            )

    def run(self, batch: Any, sink: Sink) -> None:
        torch, self._sink = self._torch, sink
        parameter = next(self._module.parameters())
        given = torch.as_tensor(batch)
        if given.is_floating_point():
            given = given.to(parameter.dtype)
        try:
            with torch.no_grad():
                self._module(given.to(parameter.device))
        finally:
            self._sink = None

    def write(self, name: str, weight: np.ndarray, bias: np.ndarray | None) -> None:
        torch, part = self._torch, self._parts[name]
        with torch.no_grad():
            part.weight.copy_(torch.as_tensor(weight.reshape(tuple(part.weight.shape))))
            if bias is not None:
                part.bias.copy_(torch.as_tensor(bias.reshape(-1)))

    def finished(self) -> Any:
        for handle in self._handles:
            handle.remove()
        for name, part in self._module.named_modules():
            part.training = self._modes[name]
        return self._module


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
