"""`executor=`: who solves blocks of rows in the place of this process, and where a design lies for them.

The design goes into a file that workers on the same machine, or with the same file system, map into memory, all of
them the same pages. An executor that shares objects by itself is asked to.
"""

from __future__ import annotations

import abc
import dataclasses
import shutil
import tempfile
import uuid
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from simjax._checks import positive_integer
from simjax.rows.sparse_design import SparseDesign

KEPT = 2  # designs: that of the rows, and that of a refit on other states, which take turns along a path


class SharingExecutor(Executor):
    """An executor that has a way of its own to give its workers an object once."""

    @abc.abstractmethod
    def share(self, array: np.ndarray) -> Any:
        """What stands for the array among the arguments of `submit`: the function gets the array."""


@dataclasses.dataclass(frozen=True)
class Placed:
    """A design, and how workers come by it.

    Attributes:
      token: tells it from every other design.
      design: Φ, (m, d).
      handle: what a worker is told: a path, what `SharingExecutor.share` gave, or None for threads of this process.
    """

    token: str
    design: np.ndarray
    handle: Any


class Pool:
    """Workers that solve blocks of rows: a `concurrent.futures.Executor` and how to use it, for `executor=`.

    Also a context manager: executors that it makes, and designs that it places, then serve all calls inside.

    Args:
      executor: an executor, which stays the caller's; or a function without arguments that makes one. That is shut
        down when the call that needs it ends, and another one is made where a worker's death broke it.
      threads: that a worker may use for a block.
      attempts: how many executors may break one after the other without a block finished in between.

    Attributes:
      name: of the executor, for a person.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.

    Examples:
      >>> import numpy as np, simjax
      >>> from concurrent.futures import ThreadPoolExecutor
      >>> pool = simjax.cluster.Pool(lambda: ThreadPoolExecutor(2), threads=1)
      >>> simjax.solve_rows(np.eye(2), [[3.0, 0.2], [1.0, 0.1]], penalty=simjax.L1(1.0), executor=pool).converged
      True
    """

    def __init__(self, executor: Executor | Callable[[], Executor], *, threads: int = 1, attempts: int = 3) -> None:
        if not _submits(executor) and not callable(executor):
            raise TypeError(_refusal(executor))
        self.given = executor
        self.threads = positive_integer("threads", threads)
        self.attempts = positive_integer("attempts", attempts)
        self._depth = 0
        self._executor: Executor | None = None
        self.name = type(executor).__name__ if _submits(executor) else "an executor"  # until it is made
        self._placed: list[tuple[Placed, ExitStack]] = []

    @classmethod
    def of(cls, given: Any) -> Pool:
        """What `executor=` was given, as a pool."""
        return given if isinstance(given, Pool) else cls(given)

    def __enter__(self) -> Pool:
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._close()

    @property
    def executor(self) -> Executor:
        """The one at work; to be asked for inside of `with`."""
        if self._executor is None:
            made: Any = self.given if _submits(self.given) else self.given()  # type: ignore[operator]
            if not _submits(made):
                raise TypeError(_refusal(made))
            self._executor, self.name = made, type(made).__name__
        return self._executor

    @property
    def in_threads(self) -> bool:
        """Whether the workers are threads of this process."""
        return isinstance(self.executor, ThreadPoolExecutor)

    def describe(self, engine: str) -> str:
        """What rows are solved on, for a person."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{engine}, {threads} a block: in the workers of {self.name}"

    def replace(self) -> bool:
        """Make another executor in the place of one that broke; whether there is a way to."""
        if _submits(self.given):
            return False
        if isinstance(self.executor, SharingExecutor):
            self._remove_designs(0)
        self.executor.shutdown(wait=False)
        self._executor = None
        return True

    def place(self, design: np.ndarray) -> tuple[Placed, ExitStack | None]:
        """A design where workers find it, and what to do when it is taken away, for a design that is new.

        Raises:
          OSError: there is no room for it.
        """
        for placed, _ in self._placed:
            if placed.design is design:
                return placed, None
        self._remove_designs(KEPT - 1)
        removal, token = ExitStack(), uuid.uuid4().hex
        if isinstance(self.executor, SharingExecutor):
            handle = self.executor.share(design)
        else:
            # A sparse design is small, and sent with the first block of each worker.
            to_file = not (self.in_threads or isinstance(design, SparseDesign))
            handle = _written(design, token, removal) if to_file else None
        placed = Placed(token, design, handle)
        self._placed.append((placed, removal))
        return placed, removal

    def _remove_designs(self, left: int) -> None:
        while len(self._placed) > left:
            self._placed.pop(0)[1].close()

    def _close(self) -> None:
        self._remove_designs(0)
        if self._executor is not None and not _submits(self.given):
            self._executor.shutdown(wait=True)
        self._executor = None


def _submits(candidate: Any) -> bool:
    """Whether it is an executor; a class of executors is none, but makes one."""
    own_kind = hasattr(candidate, "get_executor")  # Dask's client, whose futures are of another kind
    return not isinstance(candidate, type) and not own_kind and callable(getattr(candidate, "submit", None))


def _refusal(got: Any) -> str:
    hint = ": give its get_executor()" if hasattr(got, "get_executor") else ""
    return (
        "executor must be a concurrent.futures.Executor, a function that makes one, or of simjax.cluster, "
        f"got {type(got).__name__}{hint}."
    )


def _written(design: np.ndarray, token: str, removal: ExitStack) -> str:
    """The path of a file with the design."""
    folder = Path(tempfile.mkdtemp(prefix="simjax-"))
    removal.callback(shutil.rmtree, folder, ignore_errors=True)
    path = folder / f"{token}.npy"
    try:
        np.save(path, design, allow_pickle=False)
    except OSError as error:
        removal.close()
        raise OSError(
            error.errno,
            f"the design, {design.nbytes / 2**20:.1f} MiB, could not be written for the workers of executor "
            f"({error.strerror or error}): have TMPDIR name a folder with room",
            str(path),
        ) from error
    return str(path)
