"""The answers to a block of rows once it is solved, and those of all blocks put together."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse

from simjax._typing import Weights
from simjax.rows.certificate import Certificate, joined_certificates
from simjax.rows.history import History, joined_histories


@dataclasses.dataclass(frozen=True)
class BlockAnswers:
    """What is found for k rows and proved about them.

    Attributes:
      weights: (k, d), an array or CSR.
      certificate: one entry per row.
      status: (k,), strings; see `Status`.
      passes, newton_steps, polished: (k,), as in `Solution`.
      history: of the k rows, or None.
      intercept: (k,), or None where none was asked for.
    """

    weights: Weights
    certificate: Certificate
    status: np.ndarray
    passes: np.ndarray
    newton_steps: np.ndarray
    polished: np.ndarray
    history: History | None = None
    intercept: np.ndarray | None = None


class AnswersOfBlocks:
    """The answers to all blocks, put in as they come.

    Args:
      count: how many blocks there are.
      sparse: whether their weights are kept as CSR; otherwise as arrays.
    """

    def __init__(self, count: int, *, sparse: bool) -> None:
        self._sparse = sparse
        self._blocks: list[BlockAnswers | None] = [None] * count

    def put(self, number: int, answers: BlockAnswers) -> None:
        """The answers to the block `number`."""
        weights = answers.weights
        if self._sparse:
            weights = scipy.sparse.csr_array(weights)
        elif not isinstance(weights, np.ndarray):
            weights = weights.toarray()
        self._blocks[number] = dataclasses.replace(answers, weights=weights)

    def joined(self) -> BlockAnswers:
        """Those to the rows of all blocks, in their order, once they are all there."""
        blocks = [block for block in self._blocks if block is not None]
        assert len(blocks) == len(self._blocks)
        intercepts = [block.intercept for block in blocks if block.intercept is not None]
        return BlockAnswers(
            weights=stacked([block.weights for block in blocks]),
            certificate=joined_certificates([block.certificate for block in blocks]),
            status=np.concatenate([block.status for block in blocks]),
            passes=np.concatenate([block.passes for block in blocks]),
            newton_steps=np.concatenate([block.newton_steps for block in blocks]),
            polished=np.concatenate([block.polished for block in blocks]),
            history=joined_histories([block.history for block in blocks if block.history is not None]),
            intercept=np.concatenate(intercepts) if intercepts else None,
        )


def stacked(parts: list[Weights]) -> Weights:
    """The weights of all blocks, CSR if they are."""
    if len(parts) == 1:
        return parts[0]
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts):
        return np.concatenate(arrays)
    return scipy.sparse.csr_array(scipy.sparse.vstack([scipy.sparse.csr_array(part) for part in parts]))
