"""A mesh over the devices of several processes of JAX: each solves its share of the rows, and all get all answers.

Rows need nothing of one another, so a process works on its own devices alone, with the design on each of them, and
exchanges nothing while they are solved. Then the answers are gathered, as bytes and so to the last bit.
"""

from __future__ import annotations

import dataclasses
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

from simjax.rows.arrays import settings_of_its_own
from simjax.rows.blocks import AnswersOfBlocks, BlockAnswers

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from simjax.rows.solution import Solution

_CHUNK = 2**26  # bytes of each process that are exchanged at once, and on a device for it


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a mesh, as one of them sees them.

    Attributes:
      index: of this process.
      count: how many there are, two or more.
      mesh: the devices of this process.
    """

    index: int
    count: int
    mesh: Mesh

    @classmethod
    def of(cls, mesh: Mesh | None) -> Processes | None:
        """Those of a mesh; None where its devices are all of this process.

        Raises:
          ValueError: for devices of some of the others, but not of all of them, or none of this one.
        """
        if mesh is None:
            return None
        import jax
        from jax.sharding import Mesh

        owners = {device.process_index for device in mesh.devices.flat}
        if owners == {jax.process_index()}:
            return None
        if owners != set(range(jax.process_count())):
            raise ValueError(
                f"mesh must have devices of all {jax.process_count()} processes of JAX, or of this one alone; this is "
                f"process {jax.process_index()}, and its devices are those of {sorted(owners)}."
            )
        own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
        return cls(jax.process_index(), jax.process_count(), Mesh(np.array(own), ("rows",)))

    def share(self, rows: int) -> np.ndarray:
        """The numbers of the rows that are this process's, next to each other and as many as any other's, but one."""
        return np.array_split(np.arange(rows), self.count)[self.index]

    def meet(self, problem: str) -> None:
        """Begin together, for it is then that processes connect, within half a minute; later any may be late.

        Args:
          problem: tells the design and the number of rows from all others.

        Raises:
          ValueError: if others solve something else.
        """
        others = [k for k, other in enumerate(_exchanged(problem.encode())) if other != problem.encode()]
        if others:
            raise ValueError(
                "mesh has devices of several processes, which must all make the same call: design or number of rows of "
                f"{others} differ from those of {self.index}."
            )

    def gathered(self, own: Solution | None) -> BlockAnswers:
        """The answers of all processes, in the order of their rows; None for a process that has no rows.

        Every process has to come here, and waits for the others.
        """
        names = [field.name for field in dataclasses.fields(BlockAnswers)]
        answers = None if own is None else BlockAnswers(**{name: getattr(own, name) for name in names})
        parts = [pickle.loads(part) for part in _exchanged(pickle.dumps(answers, protocol=5))]
        found = [part for part in parts if part is not None]
        sparse = any(not isinstance(part.weights, np.ndarray) for part in found)
        all_answers = AnswersOfBlocks(len(found), sparse=sparse)
        for number, part in enumerate(found):
            all_answers.put(number, part)
        return all_answers.joined()


def _exchanged(own: bytes) -> list[bytes]:
    """What every process has, in their order."""
    sizes = _gather(np.frombuffer(np.int64(len(own)).tobytes(), np.uint8)).copy().view(np.int64)[:, 0]
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(own)] = np.frombuffer(own, np.uint8)
    chunks = [_gather(padded[first : first + _CHUNK]) for first in range(0, padded.size, _CHUNK)]
    whole = np.concatenate(chunks, axis=1)
    return [part[:size].tobytes() for part, size in zip(whole, sizes)]


def _gather(array: np.ndarray) -> Any:
    """The arrays of all processes, (processes, …), in NumPy."""
    from jax.experimental import multihost_utils

    with settings_of_its_own():
        return np.asarray(multihost_utils.process_allgather(array))
