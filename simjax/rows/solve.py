"""`solve_rows`: many lasso-like problems over one design, each with a certificate."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from simjax._typing import ArrayLike
from simjax._warnings import warn
from simjax.rows.attempts import RowBlock, Start
from simjax.rows.blocks import BlockAnswers, stacked
from simjax.rows.certificate import joined_certificates
from simjax.rows.checkpoint import Checkpoint
from simjax.rows.constraints import Constraint
from simjax.rows.engines import choose
from simjax.rows.fingerprint import fingerprint
from simjax.rows.memory import kept_block_memory, row_blocks
from simjax.rows.options import SolveOptions
from simjax.rows.penalties import Penalty
from simjax.rows.problem import RowProblem, RowSource, row_problem
from simjax.rows.progress import ProgressCallback, Reporter
from simjax.rows.solution import Solution, dense_rows
from simjax.rows.status import ConvergenceWarning, Status, convergence_message
from simjax.rows.workspace import Workspace

if TYPE_CHECKING:
    from jax.sharding import Mesh

_DEFAULTS = SolveOptions()


def solve_rows(
    design: ArrayLike,
    targets: ArrayLike,
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
) -> Solution:
    """Solve R independent rows over one design, all at once.

        penalty   min_w  λ ‖t − Φw‖² + h(w)     s.t.  w in the constraint and the support     (SIM paper, eq. 7)
        exact     min_w  h(w)  s.t.  Φw = t,          w in the constraint and the support     (SIM paper, eq. 2b–2c)

    Args:
      design: Φ, (m, d), any array-like.
      targets: (m, R), one column per row.
      loss_weight: λ > 0, scalar or (R,).
      penalty: h, e.g. `L1(1e-3)`; parameters scalar, (d,) or (R, d).
      constraint: `L1Ball`, `MetzlerRow` (not with a penalty of your own), `Free` or None.
      support: boolean mask (d,) or (R, d) of the entries that may be nonzero, or None.
      matching: "penalty" or "exact".
      sample_weight: v ≥ 0, (m,): the squared error of sample i counts v_i times, so that a weight of 2 is the sample
        given twice, and samples of weight 0 are left out, under exact matching too. None means ones.
      fit_intercept: whether each row has an intercept, φᵀw + b, free of penalty, constraint and support. Nothing is
        added to the design: means are removed, and the certificate is that of the whole problem (docs/theory.md).
      solver, engine, precision, tol, max_iters, workers, mesh, max_memory, progress, checkpoint: see `SolveOptions`.

    Returns:
      A `Solution`. Rows that miss `tol` carry another status than SOLVED, and one `ConvergenceWarning` is issued.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.
      OSError: a checkpoint that cannot be written; what it has is whole.
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
    )
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
    return solve_problem(problem, options)


def solve_problem(
    problem: RowProblem | RowSource,
    options: SolveOptions = _DEFAULTS,
    *,
    workspace: Workspace | None = None,
    start: Start | None = None,
) -> Solution:
    """Solve a `RowProblem`, or what a `RowSource` makes of one, as `solve_rows` does.

    Args:
      workspace: of the same design, where it is solved over more than once.
      start: where to begin; any weights and dual points are safe.
    """
    options.check(problem.matching)
    engine = choose(options)
    began = time.perf_counter()
    if workspace is None:
        workspace = Workspace(problem.design)
    workspace.check(problem)
    limit = options.max_memory
    if options.checkpoint is not None and limit is None:
        limit = kept_block_memory(problem.design.shape)
    blocks = row_blocks(problem.count, problem.design.shape, limit, engine.devices)
    if len(blocks) == 1 and isinstance(problem, RowSource):
        problem = problem.take(blocks[0])
    kept = None
    if options.checkpoint is not None:
        mark = fingerprint(problem, options, engine, start, blocks[0].size)
        kept = Checkpoint.open(Path(options.checkpoint), mark, len(blocks))
    reporter = Reporter(options.progress, problem.count)
    # What type they have follows from the arguments alone, not from the memory that happens to be free.
    sparse = options.max_memory is not None and len(blocks) > 1
    solved, weights = [], []
    for number, numbers in enumerate(blocks):
        found = None if kept is None else kept.load(number)
        if found is None:
            part = problem if len(blocks) == 1 and isinstance(problem, RowProblem) else problem.take(numbers)
            block = RowBlock.make(part, workspace, options, engine, reporter)
            found = _answers(block, None if start is None else start.take(numbers))
            if kept is not None:
                found = kept.save(number, found)
        else:
            _report(found, reporter)
        reporter.done += numbers.size
        weights.append(scipy.sparse.csr_array(found.weights) if sparse else dense_rows(found.weights))
        solved.append(dataclasses.replace(found, weights=weights[-1][:0]))
    certificate = joined_certificates([found.certificate for found in solved])
    found_weights = stacked(weights)
    if problem.centring is not None:
        certificate = dataclasses.replace(certificate, dual=problem.centring.orthogonal(certificate.dual))
    status = np.concatenate([found.status for found in solved])
    if np.any(status != Status.SOLVED):
        limited = np.concatenate([found.passes for found in solved]) >= options.max_iters
        warn(convergence_message(status, certificate, options.tol, options.solver, limited), ConvergenceWarning)
    return Solution(
        problem=problem,
        weights=found_weights,
        intercept=None if problem.centring is None else problem.centring.intercept(found_weights),
        certificate=certificate,
        status=status,
        solver=options.solver,
        passes=np.concatenate([found.passes for found in solved]),
        newton_steps=np.concatenate([found.newton_steps for found in solved]),
        polished=np.concatenate([found.polished for found in solved]),
        engine=engine.describe(),
        seconds=time.perf_counter() - began,
        tol=options.tol,
    )


def _answers(block: RowBlock, start: Start | None) -> BlockAnswers:
    """Solve the rows of a block."""
    status, answers = block.solve(start), block.answers
    return BlockAnswers(
        weights=answers.weights,
        certificate=block.certificate,
        status=status,
        passes=answers.passes,
        newton_steps=answers.newton_steps,
        polished=answers.polished,
    )


def _report(found: BlockAnswers, reporter: Reporter) -> None:
    """Tell of a block that was solved before."""
    solved = int(np.count_nonzero(found.status == Status.SOLVED))
    worst = float(found.certificate.relative_gap.max(initial=0.0))
    reporter(solved, worst, int(found.passes.max(initial=0)), "checkpoint")
