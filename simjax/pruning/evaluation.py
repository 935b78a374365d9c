"""Ways to share out zeros, compared by the user's own metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from simjax._checks import plain_array
from simjax._values import Value

CURVES, SENSITIVITY, EVEN = "error curves", "sensitivity", "even"
_FLOOR = 0.1  # of the mean loss: what a layer weighs at least, since a metric may not see what is small


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Candidate(Value):
    """A way to share out zeros that was tried.

    Attributes:
      name: "error curves": the sum of relative errors is least; "sensitivity": the same with each layer's error weighed
        by what pruning that layer alone costs; "even": the same share in each layer.
      metric: what `evaluate` gave for the network pruned so.
      sparsity: the share of zeros of all layers together.
      shares: the share of zeros asked of each part of each layer, by the layer's name.

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> network, inputs = MLP((4, 6, 2)), np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
      >>> def evaluate(candidate):
      ...     return -float(np.mean((candidate(inputs) - network(inputs)) ** 2))
      >>> result = simjax.prune(network, inputs, sparsity=0.5, allocation="global", evaluate=evaluate)
      >>> even = result.evaluation.candidates[-1]
      >>> even.name, even.sparsity, set(even.shares.values())
      ('even', 0.5, {(0.5,)})
    """

    name: str
    metric: float
    sparsity: float
    shares: dict[str, tuple[float, ...]]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Value):
    """What `evaluate` said.

    Attributes:
      dense: of the network as it was passed in.
      candidates: in the order in which they were tried.
      chosen: the name of the one that was kept, the first of the best.
      alone: by name, of the network with that layer alone pruned, to the share of zeros asked of all.

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> network, inputs = MLP((4, 6, 2)), np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
      >>> def evaluate(candidate):
      ...     return -float(np.mean((candidate(inputs) - network(inputs)) ** 2))
      >>> result = simjax.prune(network, inputs, sparsity=0.5, allocation="global", evaluate=evaluate)
      >>> said = result.evaluation
      >>> said.dense == 0.0 > said.metric, list(said.alone) == list(result.layers)
      (True, True)
    """

    dense: float
    candidates: tuple[Candidate, ...]
    chosen: str
    alone: dict[str, float]

    @property
    def metric(self) -> float:
        """Of the network that was kept."""
        return next(one.metric for one in self.candidates if one.name == self.chosen)

    def _told(self) -> str:
        return f"{self.chosen!r} of {len(self.candidates)}, metric {self.metric:.6g}, dense {self.dense:.6g}"


def measured(evaluate: Callable[[Any], Any], network: Any, of: str) -> float:
    """The user's metric of a network; what `evaluate` raises comes through as it is.

    Args:
      of: which network it is, for an error.

    Raises:
      TypeError: it is no number.
      ValueError: it is not finite.
    """
    value = evaluate(network)
    if value is None or isinstance(value, str | bool):
        raise TypeError(f"evaluate must give a number, the larger the better, got {value!r} for {of}.")
    array = plain_array("evaluate(network)", value)
    if array.ndim != 0 or array.dtype.kind not in "fiu":
        raise TypeError(f"evaluate must give a number, the larger the better, got a {type(value).__name__} for {of}.")
    if not np.isfinite(array):
        raise ValueError(f"evaluate must give a finite number, got {float(array):g} for {of}.")
    return float(array)


def weights_by_loss(dense: float, alone: Mapping[str, float], errors: Mapping[str, float]) -> dict[str, float] | None:
    """What a relative error of each layer weighs: the metric lost by pruning that layer alone, over its error.

        ω_l = max(m₀ − m_l, 0.1 mean_k max(m₀ − m_k, 0)) / e_l

    Args:
      dense: m₀, of the whole network.
      alone: m_l.
      errors: e_l, relative, of the layers pruned alone.

    Returns:
      None where no layer cost anything: nothing is learned then.
    """
    losses = {name: max(dense - metric, 0.0) for name, metric in alone.items()}
    least = _FLOOR * float(np.mean(list(losses.values())))
    if least == 0.0:
        return None
    return {name: max(loss, least) / errors[name] if errors[name] > 0.0 else 0.0 for name, loss in losses.items()}
