"""What pruning needs of a network, whatever library it is of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Protocol

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """A linear layer or a convolution as matrices: y_g = W_g x_g + b_g for each group g of channels.

    A convolution is one linear map for all positions: x_g is the patch that a position sees, channels first.

    Attributes:
      stored: W in the network's own type or float64, (groups, out, in); groups is 1 but for grouped convolutions.
      bias: (groups, out), float64, or None.
    """

    stored: np.ndarray
    bias: np.ndarray | None

    @property
    def weight(self) -> np.ndarray:
        """W in float64, (groups, out, in), made when it is asked for."""
        return self.stored.astype(np.float64)

    @property
    def groups(self) -> int:
        return self.stored.shape[0]


# What enters a linear map in a call of it, (groups, samples, in), made when it is asked for.
Received = Callable[[], np.ndarray]
# Called with the name of a linear map and what enters it, before it is applied.
Sink = Callable[[str, Received], None]


class Network(Protocol):
    """A copy of the user's network in evaluation mode."""

    maps: dict[str, LinearMap]  # what is read, by name
    others: list[str]  # "name (kind)" of other parts that have parameters of their own

    def run(self, batch: Any, names: Collection[str], sink: Sink) -> None:
        """Run a batch; the sink is told of every call of the linear maps of these names, in their order."""

    def write(self, name: str, weight: np.ndarray, bias: np.ndarray | None) -> None:
        """Replace the weights (groups, out, in) and the bias (groups, out) of a linear map, in its own type.

        Raises:
          ValueError: for numbers that are beyond that type.
        """

    def shown(self) -> Any:
        """A copy of it as it is now, as the user has it, in evaluation mode."""

    def finished(self) -> Any:
        """The network as the user has it: the same class, the modes of the one that was passed in."""


def narrowed(values: np.ndarray, dtype: Any) -> np.ndarray:
    """Values in a type of floating point with fewer digits.

    Raises:
      ValueError: for numbers that are beyond it.
    """
    with np.errstate(over="ignore"):
        new = values.astype(dtype)
    check_narrowed(values, np.isfinite(new), dtype)
    return new


def check_narrowed(values: np.ndarray, finite: Any, dtype: Any) -> None:
    """An error unless all values are finite in another type, as `finite` says of each."""
    if not np.all(finite):
        raise ValueError(
            f"its refitted weights or biases reach {np.abs(values).max():.3g}, beyond what {dtype} holds: give "
            "the network in float32 or bfloat16, or rescale it."
        )


def patches(
    images: Any,
    window: tuple[int, ...],
    groups: int,
    *,
    strides: Any,
    padding: Any,
    dimension_numbers: Any = None,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
) -> np.ndarray:
    """What each position of a convolution sees, (groups, samples · positions, channels of a group · window).

    Args:
      images: as `jax.lax.conv_general_dilated` takes them, with the arguments that it takes.
      window: shape of the kernel in space.
      groups: groups of channels.
    """
    numbers = jax.lax.conv_dimension_numbers(
        images.shape, (1, 1, *window) if dimension_numbers is None else _kernel_shape(window, dimension_numbers),
        dimension_numbers,
    )  # fmt: skip
    with jax.transfer_guard("allow"):  # its own constants
        # The features of a patch are its channels, and for each of them the window.
        seen = jax.lax.conv_general_dilated_patches(
            images,
            window,
            strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=numbers,
            precision=jax.lax.Precision.HIGHEST,
        )
    features = np.moveaxis(np.asarray(seen), numbers.out_spec[1], -1)
    rows = features.reshape(-1, groups, features.shape[-1] // groups)
    return np.moveaxis(rows, 1, 0)


def _kernel_shape(window: tuple[int, ...], dimension_numbers: Any) -> tuple[int, ...]:
    """A shape (for one channel in and out) laid out as the kernel is."""
    spec = dimension_numbers.rhs_spec if hasattr(dimension_numbers, "rhs_spec") else None
    if spec is None:
        letters, places = dimension_numbers[1], iter(window)
        return tuple(1 if letter in "IO" else next(places) for letter in letters)
    shape = [1] * len(spec)
    for place, size in zip(spec[2:], window):
        shape[place] = size
    return tuple(shape)
