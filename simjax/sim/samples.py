"""Samples: what all rows of a fit see, and the targets of those that are asked for."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from simjax.rows.centring import Centring, weighted_and_centred
from simjax.rows.problem import checked_samples, refuse_huge
from simjax.states.kinds import AnyStates
from simjax.states.streamed import StreamedStates


@dataclasses.dataclass(frozen=True)
class Samples:
    """The design [X U] of all rows, or [X U 1], and their targets [Z Y], weighted and centred as the intercept asks.

    They are the samples, or the few that streamed states compress them to. Targets are taken from the states when they
    are asked for, so that nobody has those of rows that are not looked at.
    """

    states: AnyStates
    intercept: str  # "none"; "free"; or "penalised": a column of ones in the design
    sample_weight: np.ndarray | None  # (m,)
    activations: np.ndarray | None = None  # X (m, n) in the place of that of the states

    @property
    def design(self) -> np.ndarray:
        """Φ, (m, d); made and checked once."""
        return self._prepared[0]

    def rows(self, numbers: np.ndarray) -> tuple[np.ndarray, Centring | None]:
        """The targets of the rows with these numbers, (m, k), and what was taken out of all for a free intercept."""
        _, centring, compressed = self._prepared
        if compressed is not None:
            return compressed[:, numbers], None if centring is None else centring.take(numbers)
        assert not isinstance(self.states, StreamedStates)
        targets = self.states.targets(numbers)
        refuse_huge("targets", targets)
        none = np.empty((targets.shape[0], 0))
        _, targets, means = weighted_and_centred(none, targets, self.sample_weight, self.intercept == "free")
        if means is None or centring is None:
            return targets, None
        return targets, dataclasses.replace(centring, targets=means.targets)

    @functools.cached_property
    def _prepared(self) -> tuple[np.ndarray, Centring | None, np.ndarray | None]:
        """The design, what was taken out of it (and of the targets, where they are there), and the targets if so."""
        states, ones = self.states, self.intercept == "penalised"
        if isinstance(states, StreamedStates):
            if self.intercept == "free":
                design, targets, means = states.centred()
                design, targets = checked_samples(design, targets)
                return design, means, targets
            design, targets = checked_samples(*states.compressed(ones))
            return design, None, targets
        X, U = states.activations if self.activations is None else self.activations, states.inputs
        design = np.concatenate([X, U, *([np.ones((states.m, 1))] if ones else [])], axis=1)
        refuse_huge("design", design)
        none = np.empty((states.m, 0))
        design, _, centring = weighted_and_centred(design, none, self.sample_weight, self.intercept == "free")
        return design, centring, None
