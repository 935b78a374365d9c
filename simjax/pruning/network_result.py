"""`PrunedNetwork`: a sparse network and what is proved about its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from simjax._values import Value, html_table, text_table
from simjax.pruning.curve import ErrorCurve
from simjax.pruning.evaluation import Evaluation
from simjax.pruning.result import PrunedLayer
from simjax.rows.certificate import Certificate
from simjax.rows.status import Status


@dataclasses.dataclass(frozen=True)
class PruneProgress:
    """What a progress callback of `prune` is told.

    Attributes:
      layer: the name of the layer that is done.
      done, layers: how many are done, of how many.
      relative_error: of that layer; see `PrunedLayer`.
      stage: with `evaluate` "one layer alone" or the way to share out zeros that is being tried, each of which counts
        from one; otherwise empty.

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> network, inputs = MLP((4, 6, 2)), np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
      >>> told = []
      >>> result = simjax.prune(network, inputs, sparsity=0.5, progress=told.append)
      >>> [(each.done, each.layers) for each in told]
      [(1, 2), (2, 2)]
    """

    layer: str
    done: int
    layers: int
    relative_error: float
    stage: str = ""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PrunedMap(Value):
    """A linear layer or a convolution of a network, pruned.

    Attributes:
      name: in the network.
      parts: one `PrunedLayer` for each group of channels; one alone but for grouped convolutions.
      curves: the error curves of the parts, where allocation is "global"; otherwise empty.

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> network, inputs = MLP((4, 6, 2)), np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
      >>> first, last = simjax.prune(network, inputs, sparsity=0.5).layers.values()
      >>> first.rows, first.certified, first.weights, first.nonzeros
      (6, 6, 24, 12)
    """

    name: str
    parts: tuple[PrunedLayer, ...]
    curves: tuple[ErrorCurve, ...] = ()

    @property
    def rows(self) -> int:
        """Rows that were refitted: outputs, or output channels."""
        return sum(part.status.size for part in self.parts)

    @property
    def certified(self) -> int:
        """How many of them are certified."""
        return sum(int(np.count_nonzero(part.status == Status.SOLVED)) for part in self.parts)

    @property
    def weights(self) -> int:
        """How many weights the layer has, zeros included."""
        return sum(part.weight.size for part in self.parts)

    @property
    def nonzeros(self) -> int:
        """How many of them are not zero."""
        return sum(int(np.count_nonzero(part.weight)) for part in self.parts)

    @property
    def sparsity(self) -> float:
        """The share of weights that are zero."""
        return 1.0 - self.nonzeros / self.weights

    @property
    def relative_error(self) -> float:
        """‖T − XWᵀ − 1bᵀ‖²/‖T − 1b₀ᵀ‖² over all parts; see `PrunedLayer.relative_error`."""
        size = sum(part.size for part in self.parts)
        return sum(part.relative_error * part.size for part in self.parts) / size if size > 0.0 else 0.0

    @property
    def worst_gap(self) -> float:
        """The largest relative gap of its rows."""
        return max(float(part.certificate.relative_gap.max(initial=0.0)) for part in self.parts)

    @property
    def converged(self) -> bool:
        """Whether every row is certified to the tolerance."""
        return all(part.converged for part in self.parts)

    def _told(self) -> str:
        return f"{self.name!r}, {self.sparsity:.1%} zeros, relative error {self.relative_error:.3g}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PrunedNetwork(Value):
    """A sparse network and what is proved about its rows.

    Attributes:
      network: the same class, types and modes as the one that was passed in, with sparse weights; of a Linen module the
        variables.
      layers: a `PrunedMap` for each layer that was pruned, by its name, in the order in which they run. Their
        certificates are of the float64 weights, before these were rounded to the network's own type.
      left_out: names of layers that could have been pruned and were left out by `layers=`.
      others: other parts of the network with parameters, and what they are: they stay as they were.
      samples: how many samples were run.
      seconds: wall time of all of it.
      evaluation: what `evaluate` said, an `Evaluation`; None without it.

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> network, inputs = MLP((4, 6, 2)), np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
      >>> result = simjax.prune(network, inputs, sparsity=0.5)
      >>> result.sparsity >= 0.5, len(result.layers), list(result.certificate) == list(result.layers)
      (True, 2, True)
    """

    network: Any
    layers: dict[str, PrunedMap]
    left_out: tuple[str, ...]
    others: tuple[str, ...]
    samples: int
    seconds: float
    evaluation: Evaluation | None = None

    @property
    def sparsity(self) -> float:
        """The share of zeros among the weights of all layers that were pruned."""
        return share_of_zeros(self.layers)

    @property
    def certificate(self) -> dict[str, tuple[Certificate, ...]]:
        """What is proved about each row: of each layer the `Certificate` of each part."""
        return {name: tuple(part.certificate for part in layer.parts) for name, layer in self.layers.items()}

    @property
    def converged(self) -> bool:
        """Whether every row of every layer is certified to the tolerance."""
        return all(layer.converged for layer in self.layers.values())

    def _told(self) -> str:
        rows, certified = (sum(getattr(x, key) for x in self.layers.values()) for key in ("rows", "certified"))
        return f"{len(self.layers)} layers, {self.sparsity:.1%} zeros, {certified} of {rows} rows certified"

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        lines = [
            [
                name,
                f"{layer.weights}",
                f"{layer.sparsity:.1%}",
                f"{layer.relative_error:.3g}",
                f"{layer.certified}/{layer.rows}",
                f"{layer.worst_gap:.1e}",
            ]
            for name, layer in self.layers.items()
        ]
        return ["layer", "weights", "zeros", "relative error", "certified", "worst gap"], lines

    def _repr_html_(self) -> str:
        return html_table(*self._cells())

    def summary(self) -> str:
        """A table for a person: of each layer the zeros, the error, and how many rows are certified."""
        table = text_table(*self._cells(), (5, 9, 6, 14, 11, 9))
        same = (*self.left_out, *self.others)
        left = f"\nleft as they were: {', '.join(same)}" if same else ""
        return f"{self._told()}, {self.samples} samples, {self.seconds:.1f} s\n{table}{left}{self._compared()}"

    def _compared(self) -> str:
        """What `evaluate` said, as a table."""
        if self.evaluation is None:
            return ""
        lines = [["as it was", f"{self.evaluation.dense:.6g}", "", ""]]
        for one in self.evaluation.candidates:
            kept = "kept" if one.name == self.evaluation.chosen else ""
            lines.append([one.name, f"{one.metric:.6g}", f"{one.sparsity:.1%}", kept])
        return f"\n{text_table(['zeros shared out by', 'evaluate', 'zeros', ''], lines, (19, 9, 6))}"


def share_of_zeros(layers: Mapping[str, PrunedMap]) -> float:
    """The share of zeros among the weights of all layers."""
    return 1.0 - sum(layer.nonzeros for layer in layers.values()) / sum(layer.weights for layer in layers.values())
