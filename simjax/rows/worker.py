"""What runs in a worker of an executor: a block of rows over a design that the worker has, maps or is sent.

A worker keeps the designs of the last solves, with their factorisations, so that a design is prepared once for each
worker and not once for each block.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import platform
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import scipy.sparse

from simjax.rows.attempts import RowBlock, Start
from simjax.rows.blocks import BlockAnswers
from simjax.rows.boxed import piecewise
from simjax.rows.engines import choose
from simjax.rows.options import SolveOptions
from simjax.rows.pool import KEPT
from simjax.rows.problem import RowProblem
from simjax.rows.progress import Reporter
from simjax.rows.threads import one_thread_each
from simjax.rows.workspace import Workspace

_workspaces: OrderedDict[str, Workspace] = OrderedDict()
_changing = threading.RLock()
_forked = threading.Event()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked.set)


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of rows on its way to a worker.

    Attributes:
      problem: the rows, without their design: it has no samples here.
      start: where to begin, or None.
      options: without what is the caller's own: progress, checkpoint and executor.
      threads: that the worker may use for it.
    """

    problem: RowProblem
    start: Start | None
    options: SolveOptions
    threads: int

    @classmethod
    def make(cls, problem: RowProblem, start: Start | None, options: SolveOptions, threads: int) -> Block:
        return cls(dataclasses.replace(problem, design=problem.design[:0]), start, options, threads)


def solve_block(token: str, design: np.ndarray | str | None, block: Block | bytes) -> BlockAnswers | str:
    """The answers to a block, their weights as CSR; where the design is not to be had, a name of this worker.

    Args:
      token: tells this design from every other.
      design: Φ itself, or the path of a file that holds it, or None, for who has it from before.
      block: the rows, or their pickle.

    Raises:
      RuntimeError: the work needs JAX, and this process was forked from another.
    """
    workspace = _workspace(token, design)
    if workspace is None:
        return f"{platform.node()} {os.getpid()}"
    # Unpickled here, and not on the way, an error is one of this block and leaves the worker alive.
    whole: Block = pickle.loads(block) if isinstance(block, bytes) else block
    problem, options = dataclasses.replace(whole.problem, design=workspace.design), whole.options
    _check_fork(problem, options)
    with one_thread_each():
        engine = choose(options, whole.threads)
        rows = RowBlock.make(problem, workspace, options, engine, Reporter(None, problem.count))
        found = rows.answered(whole.start)
    return dataclasses.replace(found, weights=scipy.sparse.csr_array(found.weights))


def keep(token: str, workspace: Workspace) -> None:
    """Have a design in this process: for workers that are threads of it."""
    with _changing:
        _workspaces[token] = workspace
        _workspaces.move_to_end(token)
        while len(_workspaces) > KEPT:
            _workspaces.popitem(last=False)


def forget(token: str) -> None:
    """The opposite of `keep`."""
    with _changing:
        _workspaces.pop(token, None)


def _workspace(token: str, design: Any) -> Workspace | None:
    with _changing:  # also while it is made: threads of one worker ask at the same time
        if token in _workspaces:
            _workspaces.move_to_end(token)
            return _workspaces[token]
        array = _mapped(design) if isinstance(design, str) else design
        if array is None:
            return None
        keep(token, Workspace(array))
        return _workspaces[token]


def _mapped(path: str) -> np.ndarray | None:
    """The array in a file, in memory that all who read it on this machine share; None where there is no such file."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError):  # on another machine, or one that does not see all of it
        return None


def _check_fork(problem: RowProblem, options: SolveOptions) -> None:
    if _forked.is_set() and (options.engine == "jax" or piecewise(problem.penalty) is None):
        what = "engine='jax'" if options.engine == "jax" else "a penalty of your own"
        raise RuntimeError(
            f"{what} needs JAX, whose threads do not survive a fork, and this worker was forked: start workers by "
            "mp_context=multiprocessing.get_context('spawn')."
        )
