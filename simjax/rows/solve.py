"""`solve_rows`: many lasso-like problems over one design, each with a certificate."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simjax._frames import column_names
from simjax._typing import ArrayLike, MatrixLike
from simjax._warnings import warn
from simjax.rows.attempts import RowBlock, Start
from simjax.rows.blocks import AnswersOfBlocks, BlockAnswers
from simjax.rows.checkpoint import Checkpoint, Origin
from simjax.rows.constraints import Constraint
from simjax.rows.engines import Engine, choose
from simjax.rows.fingerprint import digest, fingerprint, fingerprint_of_rows, refuse_own_penalty
from simjax.rows.memory import TASK_ROWS, kept_block_memory, row_blocks
from simjax.rows.options import SolveOptions
from simjax.rows.penalties import Penalty
from simjax.rows.pool import Pool
from simjax.rows.problem import RowProblem, RowSource, row_problem
from simjax.rows.processes import Processes
from simjax.rows.progress import ProgressCallback, Reporter
from simjax.rows.shards import Shard, announced, overlaps, overlaps_in_words
from simjax.rows.solution import Solution
from simjax.rows.spread import Task, solve_by
from simjax.rows.status import ConvergenceWarning, Status, convergence_message
from simjax.rows.workspace import Workspace

if TYPE_CHECKING:
    from jax.sharding import Mesh

_DEFAULTS = SolveOptions()
_NOBODY = Origin()


def solve_rows(
    design: MatrixLike,
    targets: MatrixLike,
    *,
    loss_weight: ArrayLike = 1.0,
    penalty: Penalty,
    constraint: Constraint | None = None,
    support: ArrayLike | None = None,
    matching: str = "penalty",
    sample_weight: ArrayLike | None = None,
    fit_intercept: bool = False,
    solver: str = SolveOptions.solver,
    engine: str = SolveOptions.engine,
    precision: str = SolveOptions.precision,
    tol: float = SolveOptions.tol,
    max_iters: int = SolveOptions.max_iters,
    workers: int = SolveOptions.workers,
    mesh: Mesh | None = SolveOptions.mesh,
    max_memory: float | None = SolveOptions.max_memory,
    progress: ProgressCallback | None = SolveOptions.progress,
    checkpoint: str | os.PathLike[str] | None = SolveOptions.checkpoint,
    executor: Executor | Callable[[], Executor] | Pool | None = SolveOptions.executor,
    history: bool = SolveOptions.history,
    shard: tuple[int, int] | None = None,
) -> Solution:
    """Solve R independent rows over one design, all at once.

        penalty   min_w  λ ‖t − Φw‖² + h(w)     s.t.  w in the constraint and the support     (SIM paper, eq. 7)
        exact     min_w  h(w)  s.t.  Φw = t,          w in the constraint and the support     (SIM paper, eq. 2b–2c)

    Args:
      design: Φ, (m, d), any array-like; a matrix of scipy.sparse, of which no array is made (docs/theory.md); or a
        frame of pandas or polars, whose names are kept.
      targets: (m, R), one column per row, likewise, but made an array where sparse, as residuals are; or a series, of
        a single row.
      loss_weight: λ > 0, scalar or (R,).
      penalty: h, e.g. `L1(1e-3)`; parameters scalar, (d,) or (R, d).
      constraint: `L1Ball`, `MetzlerRow` (not with a penalty of your own), `Box`, `Free` or None.
      support: boolean mask (d,) or (R, d) of the entries that may be nonzero, or None.
      matching: "penalty" or "exact".
      sample_weight: v ≥ 0, (m,): the squared error of sample i counts v_i times, so that a weight of 2 is the sample
        given twice, and samples of weight 0 are left out, under exact matching too. None means ones.
      fit_intercept: whether each row has an intercept, φᵀw + b, free of penalty, constraint and support. Nothing is
        added to the design: means are removed, and the certificate is that of the whole problem (docs/theory.md).
      solver, engine, precision, tol, max_iters, workers, mesh, max_memory, progress: see `SolveOptions`.
      checkpoint, executor, history, shard: see `SolveOptions`.

    Returns:
      A `Solution`, of the shard's rows alone where there is one. Rows that miss `tol` carry another status than
      SOLVED, and one `ConvergenceWarning` is issued.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.
      OSError: a checkpoint that cannot be written; what it has is whole. No room for an executor's design.
      RuntimeError: what an executor's worker could not solve; the message names the rows.

    Examples:
      >>> import numpy as np, simjax
      >>> design, targets = np.eye(3), np.array([[3.0, 0.0], [1.0, -4.0], [0.0, 0.5]])
      >>> solution = simjax.solve_rows(design, targets, loss_weight=0.5, penalty=simjax.L1(1.0))
      >>> solution.weights.round(6)  # of an orthogonal design: every target moved towards zero by alpha
      array([[ 2., 0., 0.],
             [ 0., -3., 0.]])
      >>> solution.converged
      True
    """
    options = SolveOptions(
        solver=solver,
        engine=engine,
        precision=precision,
        tol=tol,
        max_iters=max_iters,
        workers=workers,
        mesh=mesh,
        max_memory=max_memory,
        progress=progress,
        checkpoint=checkpoint,
        executor=executor,
        history=history,
        shard=shard,
    )
    arguments = {
        "loss_weight": loss_weight,
        "penalty": penalty,
        "constraint": constraint,
        "support": support,
        "sample_weight": sample_weight,
        "fit_intercept": fit_intercept,
    }
    problem = row_problem(
        design,
        targets,
        loss_weight=loss_weight,
        penalty=penalty,
        constraint=constraint,
        support=support,
        matching=matching,
        sample_weight=sample_weight,
        fit_intercept=fit_intercept,
    )
    solution = solve_problem(problem, options, origin=Origin(arguments))
    row_names = column_names(targets)
    if row_names is not None:
        row_names = row_names[solution.first : solution.first + solution.status.size]
    return dataclasses.replace(solution, row_names=row_names, column_names=column_names(design))


def solve_problem(
    problem: RowProblem | RowSource,
    options: SolveOptions = _DEFAULTS,
    *,
    workspace: Workspace | None = None,
    start: Start | None = None,
    origin: Origin = _NOBODY,
) -> Solution:
    """Solve a `RowProblem`, or what a `RowSource` makes of one, as `solve_rows` does.

    Args:
      workspace: of the same design, where it is solved over more than once.
      start: where to begin; any weights and dual points are safe.
      origin: what a checkpoint is told beside the problem.
    """
    options.check(problem.matching)
    processes = Processes.of(options.mesh)
    if processes is not None:
        return _solve_share(processes, problem, options, workspace, start, origin)
    engine, pool = choose(options), options.pool
    began = time.perf_counter()
    if workspace is None:
        workspace = Workspace(problem.design)
    workspace.check(problem)
    blocks = _blocks(problem, options, engine)
    numbers = range(len(blocks))
    if options.shard is not None:
        shard = Shard.make(options.shard)
        shard.check(blocks, problem.design.shape)
        numbers = shard.blocks(len(blocks))
    if len(blocks) == 1 and isinstance(problem, RowSource):
        problem = problem.take(blocks[0])
    divided = _Divided(problem, start, blocks)
    # What type they have follows from the arguments alone, not from the memory that happens to be free.
    sparse = options.max_memory is not None and len(blocks) > 1
    kept = None if options.checkpoint is None else _checkpoint(divided, numbers, options, engine, origin, sparse)
    first, stop = int(blocks[numbers[0]][0]), int(blocks[numbers[-1]][-1]) + 1
    reporter = Reporter(options.progress, stop - first)
    answers = AnswersOfBlocks(len(numbers), sparse=sparse)
    _solve_blocks(divided, numbers, workspace, options, engine, kept, reporter, answers)
    found = answers.joined()
    if np.any(found.status != Status.SOLVED):
        limited = found.passes >= options.max_iters
        message = convergence_message(found.status, found.certificate, options.tol, options.solver, limited)
        warn(message, ConvergenceWarning)
    return Solution(
        problem=problem if stop - first == problem.count else problem.part(np.arange(first, stop)),
        weights=found.weights,
        intercept=found.intercept,
        certificate=found.certificate,
        status=found.status,
        solver=options.solver,
        passes=found.passes,
        newton_steps=found.newton_steps,
        polished=found.polished,
        engine=engine.describe() if pool is None else pool.describe(engine.name),
        seconds=time.perf_counter() - began,
        tol=options.tol,
        history=found.history,
        first=first,
    )


def _solve_share(
    processes: Processes,
    problem: RowProblem | RowSource,
    options: SolveOptions,
    workspace: Workspace | None,
    start: Start | None,
    origin: Origin,
) -> Solution:
    """Solve the rows that are this process's on its own devices; the solution of all rows."""
    if options.shard is not None:
        raise ValueError("shard must be None with a mesh over several processes, which share the rows out themselves.")
    began = time.perf_counter()
    processes.meet(digest([problem.design, problem.count]))
    share = processes.share(problem.count)
    rows = share if share.size else np.arange(1)  # whoever has none solves one that another process answers for
    own = solve_problem(
        problem.part(rows),
        dataclasses.replace(options.stage(f"process-{processes.index:03d}"), mesh=processes.mesh),
        workspace=workspace,
        start=None if start is None else start.take(rows),
        origin=origin,
    )
    found = processes.gathered(own if share.size else None)
    return dataclasses.replace(
        own,
        problem=problem,
        **{field.name: getattr(found, field.name) for field in dataclasses.fields(found)},
        engine=f"{own.engine}, in each of {processes.count} processes",
        seconds=time.perf_counter() - began,
    )


@dataclasses.dataclass(frozen=True)
class _Divided:
    """The rows of a solve in blocks."""

    problem: RowProblem | RowSource
    start: Start | None
    blocks: list[np.ndarray]  # the numbers of the rows of each

    def take(self, number: int) -> tuple[RowProblem, Start | None]:
        """The rows of a block, and where they begin."""
        rows, alone = self.blocks[number], len(self.blocks) == 1
        part = self.problem if alone and isinstance(self.problem, RowProblem) else self.problem.take(rows)
        return part, None if self.start is None else self.start.take(rows)

    def digests(self, number: int) -> dict[str, str]:
        """Of what the rows of a block have of their own."""
        return fingerprint_of_rows(*self.take(number))


def _blocks(problem: RowProblem | RowSource, options: SolveOptions, engine: Engine) -> list[np.ndarray]:
    """The numbers of the rows that are solved together; where nothing is asked for, all that fit into memory."""
    limit, shape, most = options.max_memory, problem.design.shape, problem.count
    if limit is None and options.pool is not None:
        most = TASK_ROWS * options.pool.threads
    if limit is None and (options.checkpoint is not None or options.pool is not None):
        limit = kept_block_memory(shape)
    return row_blocks(problem.count, shape, limit, engine.devices, most)


def _checkpoint(
    divided: _Divided, numbers: range, options: SolveOptions, engine: Engine, origin: Origin, sparse: bool
) -> Checkpoint:
    """The folder in which blocks are kept, made or compared; with a shard it is told that the shard has begun."""
    problem, block = divided.problem, divided.blocks[0].size
    refuse_own_penalty(problem.take(divided.blocks[numbers[0]][:1]).penalty)  # before there is a folder
    mark = fingerprint(problem, options, engine, block, origin.arguments)
    about = {**origin.about, "sparse": sparse}
    kept = Checkpoint(Path(os.fspath(options.checkpoint or "")), mark, problem.count, block, about)
    kept.begin(numbers, divided.digests)
    if options.shard is not None:
        shard = Shard.make(options.shard)
        shard.announce(kept.folder)
        found = overlaps(announced(kept.folder), kept.count, kept.block, kept.rows)
        mine = [pair for pair in found if shard in pair]
        if mine:
            warn(overlaps_in_words(mine, kept.folder), UserWarning)
    return kept


def _solve_blocks(
    divided: _Divided,
    numbers: range,
    workspace: Workspace,
    options: SolveOptions,
    engine: Engine,
    kept: Checkpoint | None,
    reporter: Reporter,
    answers: AnswersOfBlocks,
) -> None:
    """Put the answers to these blocks where they belong: those that are kept, then those that are solved."""

    def put(number: int, found: BlockAnswers) -> None:
        answers.put(number - numbers.start, found)
        reporter.done += divided.blocks[number].size

    def done(number: int, found: BlockAnswers, told: str) -> None:
        if kept is not None:
            found = kept.save(number, found, divided.digests(number))
        _report(found, reporter, told)
        put(number, found)

    missing = []
    for number in numbers:
        found = None if kept is None else kept.load(number)
        if found is None:
            missing.append(number)
        else:
            _report(found, reporter, "checkpoint")
            put(number, found)
    if options.pool is None:
        for number in missing:
            part, part_start = divided.take(number)
            block = RowBlock.make(part, workspace, options, engine, reporter)
            done(number, block.answered(part_start), "certified")
    else:
        tasks = [Task(number, divided.blocks[number], functools.partial(divided.take, number)) for number in missing]
        told = functools.partial(done, told="executor")
        solve_by(options.pool, tasks, workspace, options.of_a_worker(engine.name), told)


def _report(found: BlockAnswers, reporter: Reporter, stage: str) -> None:
    """Tell of a block whose answers are there."""
    solved = int(np.count_nonzero(found.status == Status.SOLVED))
    worst = float(found.certificate.relative_gap.max(initial=0.0))
    reporter(solved, worst, int(found.passes.max(initial=0)), stage)
