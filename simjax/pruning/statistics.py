"""What pruning needs of the inputs of a layer: their statistics, streamed, in the memory of one Gram matrix."""

from __future__ import annotations

import numpy as np

from simjax._checks import matrix, positive_integer
from simjax._typing import ArrayLike
from simjax.rows.centring import Centring
from simjax.rows.problem import HUGE
from simjax.rows.statistics import SufficientStatistics


class LayerStatistics:
    """The inputs of a linear layer, and what it is to give where that is not what it gives, without the samples.

        statistics = simjax.LayerStatistics(384)
        for batch in batches:  # each (samples, 384)
            statistics.update(batch)
        pruned = simjax.prune_layer(statistics, weight, bias, sparsity=0.8)

    They are the triangular factor of the inputs and a column of ones, accumulated in float64 by `SufficientStatistics`,
    which loses no digits to squares: in² numbers, and in · out more with targets, whatever the number of samples. One
    object serves all layers that see the same inputs.

    Args:
      inputs: how many inputs the layer has.
      outputs: how many outputs it has, where targets are given; None where the layer's own outputs are the targets.

    Raises:
      TypeError, ValueError: for numbers that are not positive integers.

    Examples:
      >>> import numpy as np, simjax
      >>> rng = np.random.default_rng(0)
      >>> inputs, weight = rng.normal(size=(50, 8)), rng.normal(size=(3, 8))
      >>> statistics = simjax.LayerStatistics(8)
      >>> for batch in np.split(inputs, 2):
      ...     statistics.update(batch)
      >>> simjax.prune_layer(statistics, weight, sparsity=0.5).converged
      True
    """

    def __init__(self, inputs: int, outputs: int | None = None) -> None:
        self.inputs = positive_integer("inputs", inputs)
        self.outputs = None if outputs is None else positive_integer("outputs", outputs)
        self._sums = SufficientStatistics(self.inputs + 1, 0 if self.outputs is None else self.outputs)

    @property
    def m(self) -> int:
        """Number of samples so far."""
        return self._sums.m

    @property
    def total_weight(self) -> float:
        """Sum of the weights of the samples so far; their number if none were given."""
        return self._sums.total_weight

    def __repr__(self) -> str:
        return f"LayerStatistics(inputs={self.inputs}, outputs={self.outputs}, m={self.m})"

    def update(
        self, inputs: ArrayLike, targets: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> None:
        """Take in one batch of k samples; a batch that is refused leaves the statistics as they were.

        Args:
          inputs: (k, in), real numbers of any type: they are converted to float64 here.
          targets: (k, out), what the layer is to give, bias included; only with `outputs`, and then needed.
          sample_weight: v ≥ 0, (k,): the squared error of a sample counts v times; None means once.

        Raises:
          TypeError, ValueError: arrays that are not real, finite, two-dimensional and of these shapes; weights that are
            negative or all zero.
        """
        inputs = matrix("inputs", inputs)
        if inputs.shape[1] != self.inputs:
            raise ValueError(f"inputs must have {self.inputs} columns, got shape {inputs.shape}.")
        targets = None if targets is None else matrix("targets", targets)
        if (targets is None) != (self.outputs is None):
            expected = "None without outputs" if self.outputs is None else f"({inputs.shape[0]}, {self.outputs})"
            raise ValueError(f"targets must be {expected}, got {'None' if targets is None else np.shape(targets)}.")
        for name, array in (("inputs", inputs), ("targets", targets)):
            largest = 0.0 if array is None else np.abs(array).max()
            if largest > HUGE:
                raise ValueError(f"{name} must not exceed {HUGE:g}, beyond which squares overflow, got {largest:g}.")
        self._sums.update(np.column_stack([inputs, np.ones(inputs.shape[0])]), targets, sample_weight)

    def compressed(self) -> tuple[np.ndarray, np.ndarray]:
        """At most in + 1 samples that stand for all of them, and their targets: see `SufficientStatistics`."""
        return self._sums.compressed(self.inputs)

    def centred(self) -> tuple[np.ndarray, np.ndarray, Centring]:
        """The same about the means of inputs and targets, and these means."""
        rest, means = self._sums.without_last()
        centring = Centring(means[: self.inputs], means[self.inputs :], self.total_weight)
        return *rest.compressed(), centring
