"""How rows are solved: one object for all who take these arguments, and the one place of their defaults."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simjax._checks import boolean, choice, positive_integer, positive_scalar
from simjax.rows.oracles.interface import ORACLES, oracle_module
from simjax.rows.pool import Pool
from simjax.rows.progress import ProgressCallback
from simjax.rows.shards import Shard

if TYPE_CHECKING:
    from jax.sharding import Mesh

FIRST_ORDER = ("admm", "proximal_gradient")  # each a module of `rows/solvers`, found by its name
SOLVERS = ("auto", *FIRST_ORDER)
ENGINES = ("auto", "numpy", "jax")
PRECISIONS = ("auto", "float64")


@dataclasses.dataclass(frozen=True)
class SolveOptions:
    """The arguments that `solve_rows`, `fit` and `path` share, checked.

    Args:
      solver: "auto", "admm", "proximal_gradient" (not for exact matching), or an oracle, "mosek" or "clarabel", which
        solves row by row with an interior-point method, as the SIM paper does (Algorithm 1). Nothing falls back.
      engine: "numpy" runs tiles of rows over the threads of the CPU, "jax" compiles the same functions for the devices
        of JAX; "auto" is "jax" where its default backend is an accelerator or a mesh is given, otherwise "numpy".
      precision: "auto" does first-order passes in float32 where that is enough for most rows, and everything that
        decides in float64; "float64" does everything in float64.
      tol: relative duality gap at which a row counts as solved.
      max_iters: most passes over the design that any row gets.
      workers: processes over which an oracle spreads the rows; the other solvers solve all rows at once.
      mesh: devices to spread the rows over, whatever its axes, of this process or of all processes of JAX, which then
        make the same call, and each get all answers; None means one device. Not for the oracles, the engine
        "numpy", nor a penalty of your own.
      max_memory: bytes that the solver's working arrays may take: more rows than fit are solved in blocks, and their
        weights kept as CSR. None means blocks that fit into half of the memory that is free, and an array.
      progress: called with a `Progress` now and then.
      history: whether `Solution.history` is to hold the gap of every row at every check; it takes 16 bytes for each.
      checkpoint: a folder in which every finished block of rows is kept, new, empty or that of the same call before,
        which then goes on where it was stopped, with the same answers to the bit on the same software and number of
        cores. Without max_memory a block takes 256 MiB, or eight rows. Not for a penalty of your own.
      executor: whose workers solve the blocks: a `concurrent.futures.Executor`, a function that makes one and is called
        again where a worker's death breaks it, or what `simjax.cluster` gives. Without max_memory a block is 256 rows
        for each thread of a worker, or what takes 256 MiB. "auto" is the engine "numpy" then. Not with a mesh.
      shard: (k, n): solve shard k of n alone, counted from 1, the rows of about every n-th part of the blocks in a row;
        needs a checkpoint, in whose folder the other shards put theirs. None means all rows.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.

    Examples:
      >>> import numpy as np, simjax
      >>> simjax.solve_rows(np.eye(2), [[3.0], [1.0]], penalty=simjax.L1(1.0), engine="numpy", tol=1e-9).converged
      True
    """

    solver: str = "auto"
    engine: str = "auto"
    precision: str = "auto"
    tol: float = 1e-6
    max_iters: int = 20_000
    workers: int = 1
    mesh: Mesh | None = None
    max_memory: float | None = None
    progress: ProgressCallback | None = None
    checkpoint: str | os.PathLike[str] | None = None
    executor: Executor | Callable[[], Executor] | Pool | None = None
    history: bool = False
    shard: tuple[int, int] | Shard | None = None

    def __post_init__(self) -> None:
        choice("solver", self.solver, (*SOLVERS, *ORACLES))
        choice("engine", self.engine, ENGINES)
        choice("precision", self.precision, PRECISIONS)
        positive_integer("workers", self.workers)
        if self.solver not in ORACLES and self.workers != 1:
            raise ValueError(
                f"workers must be 1 for solver={self.solver!r}, which solves all rows at once; got {self.workers}."
            )
        self._set("tol", positive_scalar("tol", self.tol))
        self._set("max_iters", positive_integer("max_iters", self.max_iters))
        if self.max_memory is not None:
            self._set("max_memory", positive_scalar("max_memory", self.max_memory))
        if self.progress is not None and not callable(self.progress):
            raise TypeError(f"progress must be callable or None, got {type(self.progress).__name__}.")
        self._set("history", boolean("history", self.history))
        if self.checkpoint is not None:
            if not isinstance(self.checkpoint, str | os.PathLike):
                raise TypeError(f"checkpoint must be a folder's path or None, got {type(self.checkpoint).__name__}.")
            if not os.fspath(self.checkpoint):
                raise ValueError("checkpoint must be a folder's path or None, got ''.")
            self._set("checkpoint", Path(self.checkpoint))
        if self.executor is not None:
            self._set("executor", Pool.of(self.executor))
            if self.workers != 1:
                raise ValueError(f"workers must be 1 with an executor, which has its own; got {self.workers}.")
        if self.shard is not None:
            self._set("shard", Shard.make(self.shard))
            if self.checkpoint is None:
                raise ValueError(
                    f"checkpoint must be a folder for shard={self.shard}, where all shards meet; got None."
                )
        self._check_mesh()

    def _check_mesh(self) -> None:
        if self.mesh is None:
            return
        from jax.sharding import Mesh

        if not isinstance(self.mesh, Mesh):
            raise TypeError(f"mesh must be a jax.sharding.Mesh or None, got {type(self.mesh).__name__}.")
        if self.executor is not None:
            raise ValueError("mesh must be None with an executor: its devices are those of this process.")
        if self.solver in ORACLES:
            raise ValueError(
                f"mesh must be None for solver={self.solver!r}, which runs on the host; use workers instead."
            )
        if self.engine == "numpy":
            raise ValueError("mesh must be None for engine='numpy', which runs on the CPU's threads; use engine='jax'.")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def stage(self, name: str) -> SolveOptions:
        """The options of one of several solves that belong together: each keeps its blocks in a folder of its own."""
        if self.checkpoint is None:
            return self
        return dataclasses.replace(self, checkpoint=Path(self.checkpoint) / name)

    def of_a_worker(self, engine: str) -> SolveOptions:
        """The options with which a worker solves a block: without what is the caller's alone."""
        kept = dataclasses.replace(self, engine=engine, max_memory=None, progress=None, executor=None, shard=None)
        return dataclasses.replace(kept, checkpoint=None)

    def holding_executor(self) -> AbstractContextManager[Any]:
        """Around several solves: one executor serves them all, and has each design once."""
        return nullcontext() if self.pool is None else self.pool

    @property
    def pool(self) -> Pool | None:
        """The executor, and how to use it."""
        return None if self.executor is None else Pool.of(self.executor)

    def check(self, matching: str) -> None:
        """Check that the solver can serve the matching mode and, if an oracle, that it is installed and licensed.

        Raises:
          ValueError: if it cannot; the message says which can.
          OracleUnavailable: for an oracle without its package or licence.
        """
        if matching == "exact" and self.solver == "proximal_gradient":
            raise ValueError(
                "solver='proximal_gradient' cannot serve matching='exact': there is no smooth loss to take a gradient "
                "of; use 'auto' or 'admm'."
            )
        if self.solver in ORACLES:
            oracle_module(self.solver).check_available()
        if self.workers > 1:
            from simjax.rows.oracles.pool import check_may_start_workers

            check_may_start_workers(self.workers)
