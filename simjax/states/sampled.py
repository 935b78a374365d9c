"""What states have in common whose samples are not all in memory: a few of them stand for what all agree in."""

from __future__ import annotations

import numpy as np

from simjax._values import Value
from simjax.implicit.model import ImplicitModel
from simjax.states.names import Names
from simjax.states.states import Rescale, States


class SampledStates(Value):
    """States of which `sample` is a few, from which sizes, activation, layers and baseline are read."""

    sample: States

    @property
    def m(self) -> int:
        """Number of samples."""
        raise NotImplementedError

    @property
    def n(self) -> int:
        """Number of states."""
        return self.sample.n

    @property
    def p(self) -> int:
        """Number of inputs."""
        return self.sample.p

    @property
    def q(self) -> int:
        """Number of outputs."""
        return self.sample.q

    @property
    def activation(self) -> str:
        """Name of φ."""
        return self.sample.activation

    @property
    def layer_sizes(self) -> tuple[int, ...] | None:
        """Widths of the hidden layers, first hidden layer first, or None."""
        return self.sample.layer_sizes

    @property
    def baseline(self) -> ImplicitModel | None:
        """The network that produced the states, or None."""
        return self.sample.baseline

    @property
    def names(self) -> Names | None:
        """What inputs, states and outputs are called, or None."""
        return self.sample.names

    @property
    def has_biases(self) -> bool | None:
        """Whether that network has biases; None if unknown."""
        return self.sample.has_biases

    def __repr__(self) -> str:
        name = type(self).__name__
        return repr(self.sample).replace("States", name).replace(f"m={self.sample.m}", f"m={self.m}")

    def scaling(self, rescale: Rescale = "auto", kappa: float | None = 0.99) -> np.ndarray:
        """The factors s (n,) of `States.scaling`, which depend on the baseline alone."""
        return self.sample.scaling(rescale, kappa)
