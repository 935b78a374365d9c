"""Which weights of a fit may be nonzero."""

from __future__ import annotations

import dataclasses

import numpy as np

from simjax._checks import choice, plain_array
from simjax._typing import ArrayLike
from simjax.rows.constraints import architecture_support, feedforward_support, hollow_support
from simjax.states.kinds import AnyStates

SUPPORTS = ("auto", "full", "hollow", "feedforward", "architecture")
_LAYERED = ("feedforward", "architecture")


@dataclasses.dataclass(frozen=True)
class RowSupports:
    """Which weights may be nonzero, for any of the n + q rows, without the mask of all of them."""

    kind: str
    mask: np.ndarray | None  # (n, d) or (n + q, d), where the user gave one
    n: int
    p: int
    q: int
    width: int
    layer_sizes: tuple[int, ...]

    @classmethod
    def make(cls, support: ArrayLike, states: AnyStates, width: int) -> RowSupports:
        n, q = states.n, states.q
        if isinstance(support, str):
            choice("support", support, SUPPORTS)
            if support in _LAYERED and states.layer_sizes is None:
                raise ValueError(f"support={support!r} needs states with layer_sizes; these have none.")
            return cls(support, None, n, states.p, q, width, states.layer_sizes or ())
        mask = plain_array("support", support)
        if mask.dtype != np.bool_ or mask.shape not in ((n, width), (n + q, width)):
            raise ValueError(
                f"support must be one of {', '.join(map(repr, SUPPORTS))} or a boolean mask of shape {(n, width)} or "
                f"{(n + q, width)}; got {mask.dtype} of shape {mask.shape}."
            )
        return cls("mask", mask, n, states.p, q, width, ())

    def rows(self, numbers: np.ndarray) -> np.ndarray | None:
        """The mask of the rows with these numbers, (k, d), or None for no restriction."""
        if self.kind == "full":
            return None
        upper, free = numbers[numbers < self.n], self.width - self.n
        if self.kind == "architecture":
            ones = np.ones((numbers.size, free - self.p), dtype=bool)  # the column of a penalised intercept, if any
            return np.concatenate([architecture_support(self.layer_sizes, self.p, self.q, numbers), ones], axis=1)
        if self.kind == "hollow":
            mask = hollow_support(self.n, free, upper)
        elif self.kind == "feedforward":
            mask = feedforward_support(self.layer_sizes, free, upper)
        else:
            assert self.mask is not None
            if self.mask.shape[0] > self.n:
                return self.mask[numbers]
            mask = self.mask[upper]
        everything = np.ones((numbers.size, self.width), dtype=bool)
        everything[numbers < self.n] = mask
        return everything
