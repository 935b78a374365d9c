"""A linear layer as rows over one design: what it sees, and what it is to give."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from simjax._checks import float_array, matrix
from simjax.pruning.statistics import LayerStatistics
from simjax.rows.centring import Centring
from simjax.rows.penalties import NoPenalty, Penalty
from simjax.rows.problem import HUGE, RowProblem, rows_over

_BATCH = 4096  # samples that are made float64 at once


@dataclasses.dataclass(frozen=True)
class LayerProblem:
    """min over W, b of ‖T − XWᵀ − 1bᵀ‖², row by row over one design; without a bias, b = 0.

    Attributes:
      design: Φ, (r, in), at most in + 1 samples that stand for all; about their mean where there is a bias.
      targets: (r, out), likewise.
      weight: W₀, (out, in), of the layer as it was.
      centring: the means, where there is a bias.
      size: ‖t − b₀‖² of each row, (out,), what its error is measured against: the outputs without their bias.
      samples: how many there were.
    """

    design: np.ndarray
    targets: np.ndarray
    weight: np.ndarray
    centring: Centring | None
    size: np.ndarray
    samples: int

    @classmethod
    def make(cls, inputs: Any, weight: Any, bias: Any, targets: Any) -> LayerProblem:
        """Check the arguments of `prune_layer` that say what the layer is, and compress its samples.

        Raises:
          TypeError, ValueError: naming the argument, what was got and what was expected.
        """
        weight = matrix("weight", weight)
        outputs, width = weight.shape
        bias = None if bias is None else float_array("bias", bias)
        if bias is not None and bias.shape != (outputs,):
            raise ValueError(f"bias must be ({outputs},), one number for each row of weight, got shape {bias.shape}.")
        statistics = _statistics(inputs, targets, outputs, width)
        if bias is None:
            design, given = statistics.compressed()
            given = design @ weight.T if statistics.outputs is None else given
            with np.errstate(over="ignore"):
                size, centring = np.sum(given**2, axis=0), None
        else:
            design, given, centring = statistics.centred()
            means = centring.targets
            if statistics.outputs is None:
                given, means = design @ weight.T, weight @ centring.design + bias
                centring = dataclasses.replace(centring, targets=means)
            with np.errstate(over="ignore"):  # what overflows is refused below
                size = np.sum(given**2, axis=0) + centring.total * (means - bias) ** 2
        largest = np.abs(given).max(initial=0.0)
        if not largest <= HUGE:
            raise ValueError(
                f"weight must not give outputs beyond {HUGE:g}, whose squares overflow, got {largest:g}: rescale."
            )
        return cls(design, given, weight, centring, size, statistics.m)

    @property
    def gram(self) -> np.ndarray:
        """ΦᵀΦ, (in, in), made when it is asked for."""
        return self.design.T @ self.design

    @property
    def correlations(self) -> np.ndarray:
        """TᵀΦ, (out, in), made when it is asked for."""
        return self.targets.T @ self.design

    @property
    def seen(self) -> np.ndarray:
        """The inputs that are not zero, with a bias those that vary, (in,): the weights of the others do not matter."""
        return np.any(self.design != 0.0, axis=0)

    def rows(self, support: np.ndarray | None = None, penalty: Penalty | None = None) -> RowProblem:
        """The rows on a support (out, in): least squares, or with a penalty."""
        return rows_over(
            self.design,
            self.targets,
            centring=self.centring,
            loss_weight=1.0,
            penalty=NoPenalty() if penalty is None else penalty,
            constraint=None,
            support=support,
            matching="penalty",
        )


def _statistics(inputs: Any, targets: Any, outputs: int, width: int) -> LayerStatistics:
    """Those given, or of the samples given, checked against the layer."""
    if isinstance(inputs, LayerStatistics):
        if targets is not None:
            raise ValueError("targets must be None with statistics, which hold them: give them to their update.")
        if inputs.inputs != width:
            raise ValueError(f"inputs are statistics of {inputs.inputs} inputs, but weight has {width} columns.")
        if inputs.outputs not in (None, outputs):
            raise ValueError(f"inputs are statistics with {inputs.outputs} targets, but weight has {outputs} rows.")
        if inputs.m == 0:
            raise ValueError("inputs are statistics without samples: call their update.")
        return inputs
    inputs = matrix("inputs", inputs)
    if inputs.shape[1] != width:
        raise ValueError(
            f"inputs must be (samples, in), in = {width} as weight (out, in) has columns, got shape {inputs.shape}."
        )
    statistics = LayerStatistics(width, None if targets is None else outputs)
    if targets is not None:
        targets = matrix("targets", targets)
        if targets.shape != (inputs.shape[0], outputs):
            raise ValueError(f"targets must be ({inputs.shape[0]}, {outputs}), got shape {targets.shape}.")
    for start in range(0, inputs.shape[0], _BATCH):
        part = slice(start, start + _BATCH)
        statistics.update(inputs[part], None if targets is None else targets[part])
    return statistics
