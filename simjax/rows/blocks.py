"""The answers to a block of rows once it is solved, and those of all blocks put together."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse

from simjax._typing import Weights
from simjax.rows.certificate import Certificate


@dataclasses.dataclass(frozen=True)
class BlockAnswers:
    """What is found for k rows and proved about them.

    Attributes:
      weights: (k, d), an array or CSR.
      certificate: one entry per row.
      status: (k,), strings; see `Status`.
      passes, newton_steps, polished: (k,), as in `Solution`.
    """

    weights: Weights
    certificate: Certificate
    status: np.ndarray
    passes: np.ndarray
    newton_steps: np.ndarray
    polished: np.ndarray


def stacked(parts: list[Weights]) -> Weights:
    """The weights of all blocks, CSR if they are."""
    if len(parts) == 1:
        return parts[0]
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts):
        return np.concatenate(arrays)
    return scipy.sparse.csr_array(scipy.sparse.vstack([scipy.sparse.csr_array(part) for part in parts]))
