"""How Flax multiplies: a layer's product is a field of it, and sees what enters the layer with padding and all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from simjax.pruning.networks.linear_map import LinearMap, patches


def matrix_of_product(kernel: np.ndarray, inputs: int, bias: np.ndarray | None) -> LinearMap:
    """A kernel whose first `inputs` axes are contracted, (in…, out…), as one matrix."""
    size = int(np.prod(kernel.shape[:inputs]))
    flat = None if bias is None else np.asarray(bias, np.float64).reshape(1, -1)
    return LinearMap(np.asarray(kernel, np.float64).reshape(size, -1).T[None], flat)


def matrix_of_convolution(kernel: np.ndarray, groups: int, bias: np.ndarray | None) -> LinearMap:
    """A kernel (window…, channels of a group, out) as one matrix for each group."""
    channels, out = kernel.shape[-2:]
    by_group = np.asarray(kernel, np.float64).reshape(-1, channels, groups, out // groups)  # window, in, group, out
    weight = by_group.transpose(2, 3, 1, 0).reshape(groups, out // groups, -1)
    return LinearMap(weight, None if bias is None else np.asarray(bias, np.float64).reshape(groups, -1))


def kernel_of_product(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `matrix_of_product`."""
    return weight[0].T.reshape(shape)


def kernel_of_convolution(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `matrix_of_convolution`."""
    groups, rows, _ = weight.shape
    *window, channels, out = shape
    by_group = weight.reshape(groups, rows, channels, -1).transpose(3, 2, 0, 1)
    return by_group.reshape(*window, channels, out)


def recorded_product(product: Callable, tell: Callable[[np.ndarray], None]) -> Callable:
    """`lax.dot_general`, or what stands for it, that tells what enters."""

    def call(received: jax.Array, kernel: jax.Array, dimensions: Any, *args: Any, **kwargs: Any) -> jax.Array:
        (contracted, _), (batched, _) = dimensions
        if batched or tuple(contracted) != tuple(range(received.ndim - len(contracted), received.ndim)):
            raise TypeError("layers whose product does not contract the last axes are not read.")
        size = int(np.prod(received.shape[received.ndim - len(contracted) :]))
        tell(np.asarray(received, np.float64).reshape(1, -1, size))
        return product(received, kernel, dimensions, *args, **kwargs)

    return call


def recorded_convolution(product: Callable, tell: Callable[[np.ndarray], None]) -> Callable:
    """`lax.conv_general_dilated`, or what stands for it, that tells what enters."""

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
        seen = patches(
            received,
            kernel.shape[:-2],
            feature_group_count,
            strides=window_strides,
            padding=padding,
            dimension_numbers=dimension_numbers,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
        )
        tell(seen.astype(np.float64))
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
