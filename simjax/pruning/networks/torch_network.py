"""PyTorch networks. PyTorch is not imported here: whoever has a module of it has imported it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simjax.pruning.networks.linear_map import LinearMap, Sink, check_narrowed, patches


class TorchNetwork:
    """Implements `Network` for a `torch.nn.Module`: Linear and Conv1d, Conv2d, Conv3d that pad with zeros are read.

    A copy runs on the network's own device, in evaluation mode.
    """

    def __init__(self, network: Any) -> None:
        torch = sys.modules["torch"]
        self._torch = torch
        _check_masks(network)
        try:
            self._module = copy.deepcopy(network)
        except RuntimeError as error:
            raise ValueError(f"network cannot be copied: {error}") from error
        self._modes = {name: part.training for name, part in self._module.named_modules()}
        self._module.eval()
        self._sink: Sink | None = None
        self._names: Collection[str] = ()
        self._parts: dict[str, Any] = {}
        self.maps: dict[str, LinearMap] = {}
        self._handles: list[Any] = []
        shared = self._shared()
        for name, part in self._module.named_modules():
            convolution = isinstance(part, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d)
            if not _plain(part) or (convolution and part.padding_mode != "zeros") or name in shared:
                continue
            self._parts[name] = part
            groups = part.groups if convolution else 1
            weight = _array(part.weight)
            bias = None if part.bias is None else _array(part.bias).reshape(groups, -1)
            self.maps[name] = LinearMap(weight.reshape(groups, weight.shape[0] // groups, -1), bias)
        self._listen()
        self.others = [
            f"{name or 'the network itself'} ({type(part).__name__}{_computed(part)})"
            for name, part in self._module.named_modules()
            if name not in self.maps and list(part.parameters(recurse=False))
        ]

    def _listen(self) -> None:
        for name, part in self._parts.items():
            tell = self._tell(name, not isinstance(part, self._torch.nn.Linear))
            self._handles.append(part.register_forward_pre_hook(tell, with_kwargs=True))

    def _listen_no_more(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _shared(self) -> set[str]:
        """Names of modules that share a parameter with another one: what one gets, the other gets too."""
        owners: dict[int, list[str]] = {}
        for name, part in self._module.named_modules():
            for parameter in part.parameters(recurse=False):
                owners.setdefault(id(parameter), []).append(name)
        return {name for names in owners.values() if len(names) > 1 for name in names}

    def _tell(self, name: str, convolution: bool) -> Any:
        def tell(part: Any, received: tuple, named: dict[str, Any]) -> None:
            def rows() -> np.ndarray:
                given = _array(received[0] if received else named["input"])
                return self._patches(part, given) if convolution else given.reshape(1, -1, given.shape[-1])

            if self._sink is not None and name in self._names:
                self._sink(name, rows)

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

    def run(self, batch: Any, names: Collection[str], sink: Sink) -> None:
        torch, parameter = self._torch, next(self._module.parameters())
        if not isinstance(batch, torch.Tensor):
            batch = np.require(batch, requirements="W")  # PyTorch warns of what it could not write to
        given = torch.as_tensor(batch, device=parameter.device)
        if given.is_floating_point():
            given = given.to(parameter.dtype)
        self._names, self._sink = names, sink
        try:
            with torch.no_grad():
                self._module(given)
        finally:
            self._sink = None

    def write(self, name: str, weight: np.ndarray, bias: np.ndarray | None) -> None:
        torch, part = self._torch, self._parts[name]
        with torch.no_grad():
            for parameter, values in ((part.weight, weight), (part.bias, bias)):
                if values is not None:
                    shaped = torch.as_tensor(values.reshape(tuple(parameter.shape)), device=parameter.device)
                    new = shaped.to(parameter.dtype)
                    check_narrowed(values, torch.isfinite(new).cpu().numpy(), parameter.dtype)
                    parameter.copy_(new)

    def shown(self) -> Any:
        self._listen_no_more()
        shown = copy.deepcopy(self._module)
        self._listen()
        return shown

    def finished(self) -> Any:
        self._listen_no_more()
        for name, part in self._module.named_modules():
            part.training = self._modes[name]
        return self._module


def _check_masks(network: Any) -> None:
    """An error for masks of torch.nn.utils.prune, which would be laid over the new weights again.

    Raises:
      ValueError: if there are any.
    """
    masked = [
        (name, buffer.removesuffix("_mask"))
        for name, part in network.named_modules()
        for buffer in part._buffers
        if buffer.endswith("_mask") and f"{buffer.removesuffix('_mask')}_orig" in part._parameters
    ]
    if masked:
        raise ValueError(
            f"network has masks of torch.nn.utils.prune on {', '.join(f'{name}.{key}' for name, key in masked)}: make "
            "them part of the weights first, by torch.nn.utils.prune.remove(module, name) for each."
        )


def _computed(part: Any) -> str:
    """What to do about a linear layer whose weight is computed; nothing for all else."""
    if getattr(part, "parametrizations", None) is None or "weight" not in part.parametrizations:
        return ""
    return ", its weight is computed: torch.nn.utils.parametrize.remove_parametrizations first"


def _plain(part: Any) -> bool:
    """Whether a module is a linear layer or a convolution, runs as such, and has a weight that can be replaced.

    One with a `forward` of its own may multiply by anything; a weight that is computed, by a parametrisation, a norm or
    a mask, would be computed again. The projection at the end of attention is read past its call.
    """
    torch = sys.modules["torch"]
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    kind = next((kind for kind in kinds if isinstance(part, kind)), None)
    if kind is None or type(part).__name__ == "NonDynamicallyQuantizableLinear":
        return False
    own = type(part).forward is not kind.forward or "forward" in vars(part)
    return not own and all(getattr(part, key) is part._parameters.get(key) for key in ("weight", "bias"))


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
