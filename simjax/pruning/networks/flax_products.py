"""How Flax multiplies: a layer's product is a field of it, and sees what enters the layer with padding and all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np

from simjax.pruning.networks.linear_map import LinearMap, Received, Sink, narrowed, patches


def matrix_of_product(kernel: np.ndarray, inputs: int, bias: np.ndarray | None) -> LinearMap:
    """A kernel whose first `inputs` axes are contracted, (in…, out…), as one matrix."""
    size = int(np.prod(kernel.shape[:inputs]))
    flat = None if bias is None else np.asarray(bias, np.float64).reshape(1, -1)
    return LinearMap(kernel.reshape(size, -1).T[None], flat)


def matrix_of_convolution(kernel: np.ndarray, groups: int, bias: np.ndarray | None) -> LinearMap:
    """A kernel (window…, channels of a group, out) as one matrix for each group."""
    channels, out = kernel.shape[-2:]
    by_group = kernel.reshape(-1, channels, groups, out // groups)  # window, in, group, out
    stored = by_group.transpose(2, 3, 1, 0).reshape(groups, out // groups, -1)
    return LinearMap(stored, None if bias is None else np.asarray(bias, np.float64).reshape(groups, -1))


def kernel_of_product(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `matrix_of_product`."""
    return weight[0].T.reshape(shape)


def kernel_of_convolution(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `matrix_of_convolution`."""
    groups, rows, _ = weight.shape
    *window, channels, out = shape
    by_group = weight.reshape(groups, rows, channels, -1).transpose(3, 2, 0, 1)
    return by_group.reshape(*window, channels, out)


def like(values: np.ndarray, old: Any) -> Any:
    """Values in the type of an array, and on its devices; committed to them only where it is.

    What follows from a committed array is compiled anew, and is refused beside arrays that are committed elsewhere.

    Raises:
      ValueError: for numbers that are beyond it.
    """
    new = narrowed(values.reshape(old.shape), old.dtype)
    if not isinstance(old, jax.Array):
        return new
    with jax.enable_x64(True):  # not to lose the type of a network in double precision
        return jax.device_put(new, old.sharding if old.committed else None)


class Records:
    """What enters the products of a network while it runs.

    A layer is known by its kernel, so that a product with anything else, be it scaled, masked, or one of several that
    are stacked, is none of that layer's; nor has a product values inside a transformation.

    Attributes:
      kernels: what each layer is to be multiplied by, by name, in its own type.
      refused: why a layer cannot be read, by name.
    """

    def __init__(self) -> None:
        self.kernels: dict[str, np.ndarray] = {}
        self.refused: dict[str, str] = {}
        self._names: Collection[str] = ()
        self._sink: Sink | None = None

    @contextlib.contextmanager
    def of(self, names: Collection[str], sink: Sink | None) -> Iterator[None]:
        """Around one run: the sink is told of these layers, and none is to be refused. Without a sink, some may be."""
        self._names, self._sink = names, sink
        try:
            # Records need values, also inside a jitted call; accelerators multiply float32 coarsely by default. Outside
            # of jitted calls every constant of the network is a transfer.
            with jax.disable_jit(), jax.default_matmul_precision("highest"), jax.transfer_guard("allow"):
                yield
        finally:
            self._names, self._sink = (), None

    def tell(self, name: str, received: Any, kernel: Any, rows: Received | None) -> None:
        """Of one product; `rows` is None for axes that are not read."""
        if name not in self._names:
            return
        why = ""
        if isinstance(received, jax.core.Tracer) or isinstance(kernel, jax.core.Tracer):
            why = "run inside a transformation such as jax.vmap or jax.checkpoint"
        elif not _same(kernel, self.kernels[name]):
            why = "multiplied by something other than its kernel"
        elif rows is None:
            why = "a product over other axes than the last ones"
        elif self._sink is not None:
            self._sink(name, rows)
        if why and self._sink is not None:
            raise ValueError(f"layers [{name!r}] cannot be read, {why}: leave them out by layers=.")
        if why:
            self.refused[name] = why


def _same(kernel: Any, own: np.ndarray) -> bool:
    now = np.asarray(kernel)
    return now.shape == own.shape and bool(np.all((now == own.astype(now.dtype)) | (now != now)))


def recorded_product(product: Callable, tell: Callable) -> Callable:
    """`lax.dot_general`, or what stands for it, that tells what enters: see `Records.tell`."""

    def call(received: jax.Array, kernel: jax.Array, dimensions: Any, *args: Any, **kwargs: Any) -> jax.Array:
        (contracted, _), (batched, _) = dimensions
        first = received.ndim - len(contracted)

        last = not batched and tuple(contracted) == tuple(range(first, received.ndim))

        def rows() -> np.ndarray:
            return np.asarray(received, np.float64).reshape(1, -1, int(np.prod(received.shape[first:])))

        tell(received, kernel, rows if last else None)
        return product(received, kernel, dimensions, *args, **kwargs)

    return call


def recorded_convolution(product: Callable, tell: Callable) -> Callable:
    """`lax.conv_general_dilated`, or what stands for it, that tells what enters: see `Records.tell`."""

    def call(
        received: jax.Array,
        kernel: jax.Array,
        window_strides: Any,
        padding: Any,
        *,
        lhs_dilation: Any = None,
        rhs_dilation: Any = None,
        dimension_numbers: Any = None,
        feature_group_count: int = 1,
        **kwargs: Any,
    ) -> jax.Array:
        def rows() -> np.ndarray:
            return patches(
                received,
                kernel.shape[:-2],
                feature_group_count,
                strides=window_strides,
                padding=padding,
                dimension_numbers=dimension_numbers,
                lhs_dilation=lhs_dilation,
                rhs_dilation=rhs_dilation,
            ).astype(np.float64)

        tell(received, kernel, rows)
        return product(
            received,
            kernel,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            **kwargs,
        )

    return call


def product_of(layer: Any, name: str, standard: Callable) -> Callable:
    """The product that a layer takes: that of its field `name`_cls, of its field `name`, or the standard one."""
    kind = getattr(layer, f"{name}_cls", None)
    return kind() if kind is not None else getattr(layer, name) or standard
