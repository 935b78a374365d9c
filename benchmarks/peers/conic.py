"""Interior-point solvers row by row over processes, as the SIM paper does (Algorithm 1): Clarabel and MOSEK.

Each row is stated by `simjax.rows.oracles.build` in one of two forms:

    residual    min λ‖r‖² + h(w)              s.t.  Φw + r = t
    gram        min λ wᵀΦᵀΦw − 2λ(Φᵀt)ᵀw + h(w)

with the perspective penalty as rotated cones. Processes are started and have their modules loaded before the clock
starts; what each computes from the design alone (column norms, ΦᵀΦ) is timed.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.peers.common import Answer, Task, Unavailable, memory_limit, tighten
from benchmarks.records import versions
from simjax.rows.oracles import OracleUnavailable
from simjax.rows.oracles import clarabel as clarabel_oracle
from simjax.rows.oracles.answer import solve_row
from simjax.rows.oracles.build import RowProgram
from simjax.rows.oracles.conic_row import ConicRow, SharedDesign, conic_row
from simjax.rows.oracles.interface import ConicSolution, oracle_module
from simjax.rows.oracles.program import ConicProgram

# What the solver itself is asked for, in units of the row's objective.
LADDER = (1e-6, 1e-7, 1e-8, 1e-9, 1e-10)
# `simjax.rows.oracles` asks Clarabel for this much of the tolerance it is given.
_ASKED = {"clarabel": clarabel_oracle._ASK_FOR, "mosek": 1.0}
_BARRIER_SECONDS = 600.0


def clarabel(task: Task, form: str) -> dict[str, Any]:
    """The record of Clarabel in one of its forms."""
    return _run(task, "clarabel", form)


def mosek(task: Task) -> dict[str, Any]:
    """The record of MOSEK in residual form."""
    return _run(task, "mosek", "residual")


def _run(task: Task, oracle: str, form: str) -> dict[str, Any]:
    try:
        oracle_module(oracle).check_available()
    except OracleUnavailable as error:
        raise Unavailable(str(error)) from error
    with RowWorkers(task.folder / "design.npy", task.workers) as workers:

        def solve(chosen: np.ndarray, asked: float) -> Answer:
            rows = [conic_row(task.problem.rows, number) for number in chosen]
            return workers.solve(
                rows,
                functools.partial(_solve_row, oracle, form, asked / _ASKED[oracle]),
                gram=form == "gram",
                progress=lambda done, seconds: task.note({"row": done, "of": len(rows), "row_seconds": seconds}),
            )

        record = tighten(task, LADDER, solve)
    package = {"clarabel": "clarabel", "mosek": "Mosek"}[oracle]
    note = "tolerance is what the solver itself is asked for, in units of about the row's objective"
    return {**record, "form": form, "notes": [note], "versions": versions(package, "numpy", "scipy")}


class SolvedRow(NamedTuple):
    """Weights as the solver left them (d,), dual point (m,), interior-point iterations and seconds."""

    weights: np.ndarray
    dual: np.ndarray
    iterations: int
    seconds: float


def _solve_row(oracle: str, form: str, tol: float, design: SharedDesign, row: ConicRow) -> SolvedRow:
    began = time.perf_counter()
    seen: list[tuple[ConicProgram, ConicSolution]] = []

    def solve_conic(program: ConicProgram, tol: float) -> ConicSolution:
        seen.append((program, oracle_module(oracle).solve_conic(program, tol)))
        return seen[-1][1]

    answer = solve_row(design, row, solve_conic, tol, form)
    weights = answer.weights
    if seen:  # the answer has been scaled back onto the ball; the record shows how far outside it was
        program, solution = seen[-1]
        assert isinstance(program, RowProgram)
        weights = np.zeros_like(weights)
        weights[program.coordinates] = program.point_scale * solution.x[: program.coordinates.size]
    seconds = time.perf_counter() - began
    return SolvedRow(weights, answer.dual, sum(solution.iterations for _, solution in seen), seconds)


class RowWorkers:
    """Processes that are ready to solve rows over one design: a context manager.

    Args:
      design: file of the design, which they map into memory.
      workers: how many, each on one core.
    """

    def __init__(self, design: Path, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.count = workers
        self.pool = ProcessPoolExecutor(
            workers, context, initializer=_start, initargs=(design, context.Barrier(workers), memory_limit(workers))
        )
        self._everyone(_meet)

    def __enter__(self) -> RowWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def solve(
        self,
        rows: list[ConicRow],
        solve: Callable[[SharedDesign, ConicRow], SolvedRow],
        *,
        gram: bool,
        progress: Callable[[int, float], None],
    ) -> Answer:
        """The answers to `rows`, with nothing computed from the design beforehand.

        Args:
          rows: the rows.
          solve: what a worker does with one; a function that can be sent to it.
          gram: whether it needs ΦᵀΦ, which is then computed once in every worker.
          progress: called with (rows done, seconds of the last) after each.
        """
        began = time.perf_counter()
        self._everyone(functools.partial(_prepare, gram))
        once = time.perf_counter() - began
        solved = []
        for answer in self.pool.map(functools.partial(_work, solve), rows):
            solved.append(answer)
            progress(len(solved), answer.seconds)
        return Answer(
            weights=np.array([answer.weights for answer in solved]),
            seconds=time.perf_counter() - began,
            once=once,
            work=sum(answer.seconds for answer in solved) / self.count,
            duals=np.array([answer.dual for answer in solved]),
            details={"iterations": int(np.median([answer.iterations for answer in solved]))},
        )

    def _everyone(self, do: Callable[[], None]) -> None:
        """Have every worker do something once: none gets a second turn before all have had their first."""
        for future in [self.pool.submit(_together, do) for _ in range(self.count)]:
            future.result()


# --- In a worker -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _State:
    """What a worker keeps from one row to the next."""

    matrix: np.ndarray
    barrier: Barrier
    design: SharedDesign


_state: _State | None = None  # of this process, if it is a worker


def _start(design: Path, barrier: Barrier, memory: int) -> None:
    global _state
    threadpool_limits(1)  # the workers are the parallelism
    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    matrix = np.asarray(np.load(design, mmap_mode="r", allow_pickle=False))
    _state = _State(matrix, barrier, SharedDesign(matrix))


def _here() -> _State:
    assert _state is not None, "this process is no worker"
    return _state


def _together(do: Callable[[], None]) -> None:
    do()
    _here().barrier.wait(_BARRIER_SECONDS)


def _meet() -> None:
    """Nothing: to be there is enough."""


def _prepare(gram: bool) -> None:
    """A design of which only the norms of the columns are known, and ΦᵀΦ where rows need it."""
    state = _here()
    state.design = SharedDesign(state.matrix)
    samples, width = state.matrix.shape[0], state.design.norms.size
    if gram or samples > width:  # with more samples than columns, the units of a row are estimated from ΦᵀΦ
        _ = state.design.gram


def _work(solve: Callable[[SharedDesign, ConicRow], SolvedRow], row: ConicRow) -> SolvedRow:
    return solve(_here().design, row)
