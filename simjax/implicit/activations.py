"""Named activation functions φ, elementwise, with slopes in [0, 1].

Files store an activation by its name, so the set is closed: the five functions below. Each is kept twice, as
a JAX function for traced code and as a NumPy function for float64 work on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

LEAKY_SLOPE = 0.01
"""Slope of "leaky_relu" for negative arguments: the default of `jax.nn.leaky_relu`."""


@dataclass(frozen=True)
class Activation:
    """An elementwise activation φ.

    Attributes:
      name: the name by which arguments and files refer to it.
      function: φ on JAX arrays of any shape; safe inside jit, vmap and grad.
      host: φ on NumPy arrays of any shape, in their own precision.
      positively_homogeneous: whether φ(s·z) = s·φ(z) for every s > 0, on which rescaling relies.
    """

    name: str
    function: Callable[[Any], jax.Array]
    host: Callable[[Any], np.ndarray]
    positively_homogeneous: bool

    def __call__(self, z: Any) -> jax.Array:
        """φ(z) as a JAX array of the same shape."""
        return self.function(z)


def _leaky_relu(z: Any) -> jax.Array:
    return jax.nn.leaky_relu(z, negative_slope=LEAKY_SLOPE)


def _leaky_relu_host(z: Any) -> np.ndarray:
    return np.where(np.asarray(z) >= 0, z, LEAKY_SLOPE * np.asarray(z))


ACTIVATIONS: dict[str, Activation] = {
    phi.name: phi
    for phi in (
        Activation("relu", jax.nn.relu, lambda z: np.maximum(z, 0), positively_homogeneous=True),
        Activation("leaky_relu", _leaky_relu, _leaky_relu_host, positively_homogeneous=True),
        Activation("tanh", jnp.tanh, np.tanh, positively_homogeneous=False),
        Activation("sigmoid", jax.nn.sigmoid, expit, positively_homogeneous=False),
        Activation("identity", jnp.asarray, np.asarray, positively_homogeneous=True),
    )
}


def activation(which: str | Activation) -> Activation:
    """The activation of that name; an `Activation` of the table above passes through.

    Raises:
      ValueError: if the name (or the object) is not one of the table.
      TypeError: if `which` is neither a string nor an `Activation`.
    """
    if not isinstance(which, str | Activation):
        raise TypeError(f"activation must be a name or an Activation, got {type(which).__name__}.")
    name = which if isinstance(which, str) else which.name
    found = ACTIVATIONS.get(name)
    if found is None or (isinstance(which, Activation) and which is not found):
        valid = ", ".join(repr(known) for known in ACTIVATIONS)
        raise ValueError(f"activation {name!r} is unknown; valid names are {valid}.")
    return found
