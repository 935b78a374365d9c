"""A chain of linear layers with one activation between all of them, found by what a network does when it is run.

Nothing is inferred from names or from how a network is written: it is run on samples from its inputs and around them,
and what entered each linear layer must be what the chain gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simjax._checks import matrix, plain_array
from simjax.implicit.activations import ACTIVATIONS

_SAMPLES = 64  # how many samples the network is run on to see what it does
HELP = (
    "Accepted are chains of linear layers (Flax Linear or Dense, torch.nn.Linear) with one of the activations "
    f"{', '.join(ACTIVATIONS)} between them, and any object with a method states(inputs) -> simjax.States. "
    "States can also be made from arrays: simjax.States(inputs=, preactivations=, activations=, outputs=)."
)
# Activations of others, by which a network is told what is not read.
_FOREIGN = {
    **{
        name: getattr(jax.nn, name)
        for name in ("gelu", "silu", "elu", "selu", "celu", "softplus", "relu6", "mish", "hard_tanh", "hard_sigmoid")
    },
    "soft_sign": jax.nn.soft_sign,
    "gelu (exact)": partial(jax.nn.gelu, approximate=False),
}


class Call(NamedTuple):
    """What entered one linear layer, and its parameters."""

    received: np.ndarray  # (samples, inputs)
    weight: np.ndarray  # (outputs, inputs)
    bias: np.ndarray | None

    @property
    def returned(self) -> np.ndarray:
        product = self.received @ self.weight.T
        return product if self.bias is None else product + self.bias


class Run(NamedTuple):
    """What a network did in evaluation mode."""

    outputs: np.ndarray
    calls: list[Call]  # of its linear layers, in the order in which they ran
    others: list[str]  # its layers that are not read


class WidthError(ValueError):
    """The inputs do not fit the first linear layer."""


def read_chain(
    inputs: Any, run: Callable[[np.ndarray], Run]
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray | None], str]:
    """Reads a network that is a chain of linear layers: see `simjax.collect_states`.

    Args:
      inputs: U (m, p), or (m, …) for a network that flattens them itself.
      run: runs the network on such inputs.

    Returns:
      inputs (m, p), weights (outputs, inputs) and biases per layer, and the activation's name.

    Raises:
      TypeError: the network is not such a chain.
      ValueError: no hidden layer, hidden layers with different activations, unfit inputs.
    """
    given = plain_array("inputs", inputs)
    flat = matrix("inputs", given.reshape(given.shape[0], -1) if given.ndim > 2 else given)
    samples = _samples(flat)
    name = _chain_activation(samples, done := run(samples.reshape(-1, *given.shape[1:])))
    return flat, [call.weight for call in done.calls], [call.bias for call in done.calls], name


def check_width(calls: Sequence[Call], received: int, expected: int) -> None:
    """Refuses inputs of another width than the first linear layer takes, before its product would.

    Raises:
      WidthError: so many numbers a sample are not those that the layer expects.
    """
    if not calls and received != expected:
        raise WidthError(
            f"inputs must fit the network's first linear layer, which takes {expected} numbers a sample; it "
            f"received {received}."
        )


def not_run(network: Any, error: Exception) -> Exception:
    """What to raise where the network's own code raised `error`, as it may anything."""
    if isinstance(error, WidthError):
        return ValueError(str(error))
    first_line = next(iter(str(error).splitlines()), "no message")
    return TypeError(
        f"network {type(network).__name__} could not be run on its inputs in evaluation mode "
        f"({type(error).__name__}: {first_line}). {HELP}"
    )


def _samples(flat: np.ndarray) -> np.ndarray:
    """Some inputs, their negatives and noise of their size, so that preactivations of both signs are seen."""
    some = flat[:_SAMPLES]
    noise = np.random.default_rng(0).standard_normal((_SAMPLES, flat.shape[1]))
    return np.concatenate([some, -some, noise * max(1e-3, float(np.abs(some).max()))])


def _chain_activation(samples: np.ndarray, done: Run) -> str:
    """The activation that makes these calls a chain from `samples` to the outputs; an error if none does."""
    outputs, calls, others = done
    unread = f" It has {', '.join(dict.fromkeys(others))}, which simjax does not read." if others else ""
    if not calls:
        raise TypeError(f"network ran no linear layer that is read.{unread} {HELP}")
    seen = [*(call.received for call in calls), outputs]
    if any(array.dtype not in (np.float32, np.float64) for array in seen):
        found = ", ".join(sorted({str(array.dtype) for array in seen}))
        raise TypeError(f"network must compute and return float32 or float64, got {found}. {HELP}")
    if not all(np.isfinite(array).all() for array in seen):
        raise ValueError("network computes NaN or infinite values on inputs of this size.")
    if not _same(calls[0].received, samples, samples):
        raise TypeError(f"network changes its inputs before the first linear layer.{unread} {HELP}")
    if not _same(outputs, calls[-1].returned, calls[-1].returned):
        raise TypeError(
            f"network's outputs are not its last linear layer's: it must return logits, not softmax.{unread} {HELP}"
        )
    if len(calls) == 1:
        raise ValueError("network has no hidden layer, so it has no states.")
    fitting = [_fitting(call.returned, following.received) for call, following in pairwise(calls)]
    for k, names in enumerate(fitting, start=1):
        if not names:
            known = unread or _foreign(calls[k - 1].returned, calls[k].received)
            raise TypeError(f"what network does between linear layers {k} and {k + 1} is not understood.{known} {HELP}")
    common = [name for name in ACTIVATIONS if all(name in names for names in fitting)]
    if not common:
        described = ", ".join(names[0] for names in fitting)
        raise ValueError(f"network's hidden layers must share one activation, got {described}.")
    return common[0]


def _fitting(Z: np.ndarray, X: np.ndarray) -> list[str]:
    """Names of the activations with X = φ(Z); several only if Z does not tell them apart."""
    return [name for name, phi in ACTIVATIONS.items() if _same(X, phi.host(Z), Z)]


def _foreign(Z: np.ndarray, X: np.ndarray) -> str:
    """The name of the activation with X = φ(Z), where it is a known one that simjax has not."""
    for name, phi in _FOREIGN.items():
        with jax.enable_x64(True):
            if _same(X, np.asarray(phi(jnp.asarray(Z))), Z):
                return f" It is {name}, which is none of simjax's activations."
    return ""


def _same(found: np.ndarray, expected: np.ndarray, scale: np.ndarray) -> bool:
    """Equality up to the rounding of the precision in which the network itself computed."""
    if found.shape != expected.shape:
        return False
    allowed = np.sqrt(np.finfo(found.dtype).eps) * max(np.abs(scale).max(), np.abs(expected).max())
    return bool(np.abs(found - expected).max() <= allowed)
