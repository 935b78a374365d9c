"""`solve_rows`: many lasso-like problems over one design, each with a certificate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from simjax._typing import ArrayLike, Weights
from simjax._warnings import warn
from simjax.rows.attempts import RowBlock, Start
from simjax.rows.certificate import joined_certificates
from simjax.rows.constraints import Constraint
from simjax.rows.engines import choose
from simjax.rows.memory import row_blocks
from simjax.rows.options import SolveOptions
from simjax.rows.penalties import Penalty
from simjax.rows.problem import RowProblem, RowSource, row_problem
from simjax.rows.progress import ProgressCallback, Reporter
from simjax.rows.solution import Solution
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
    solver: str = SolveOptions.solver,
    engine: str = SolveOptions.engine,
    precision: str = SolveOptions.precision,
    tol: float = SolveOptions.tol,
    max_iters: int = SolveOptions.max_iters,
    workers: int = SolveOptions.workers,
    mesh: Mesh | None = SolveOptions.mesh,
    max_memory: float | None = SolveOptions.max_memory,
    progress: ProgressCallback | None = SolveOptions.progress,
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
      solver, engine, precision, tol, max_iters, workers, mesh, max_memory, progress: see `SolveOptions`.

    Returns:
      A `Solution`. Rows that miss `tol` carry another status than SOLVED, and one `ConvergenceWarning` is issued.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.
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
    )
    problem = row_problem(
        design,
        targets,
        loss_weight=loss_weight,
        penalty=penalty,
        constraint=constraint,
        support=support,
        matching=matching,
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
    blocks = row_blocks(problem.count, problem.design.shape, options.max_memory, engine.devices)
    whole = len(blocks) == 1
    reporter = Reporter(options.progress, problem.count)
    solved, statuses, weights = [], [], []
    for numbers in blocks:
        part = problem if whole and isinstance(problem, RowProblem) else problem.take(numbers)
        block = RowBlock.make(part, workspace, options, engine, reporter)
        statuses.append(block.solve(None if start is None else start.take(numbers)))
        reporter.done += numbers.size
        found = block.answers.weights
        # What type they have follows from the arguments alone, not from the memory that happens to be free.
        weights.append(found if options.max_memory is None or len(blocks) == 1 else scipy.sparse.csr_array(found))
        block.answers.weights = found[:0]
        solved.append(block)
    certificate = joined_certificates([block.certificate for block in solved])
    status = np.concatenate(statuses)
    if np.any(status != Status.SOLVED):
        limited = np.concatenate([block.answers.passes for block in solved]) >= options.max_iters
        warn(convergence_message(status, certificate, options.tol, options.solver, limited), ConvergenceWarning)
    return Solution(
        problem=part if len(blocks) == 1 else problem,
        weights=_stacked(weights),
        certificate=certificate,
        status=status,
        solver=options.solver,
        passes=np.concatenate([block.answers.passes for block in solved]),
        newton_steps=np.concatenate([block.answers.newton_steps for block in solved]),
        polished=np.concatenate([block.answers.polished for block in solved]),
        engine=engine.describe(),
        seconds=time.perf_counter() - began,
        tol=options.tol,
    )


def _stacked(parts: list[Weights]) -> Weights:
    """The weights of all blocks, CSR if they are."""
    if len(parts) == 1:
        return parts[0]
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts):
        return np.concatenate(arrays)
    return scipy.sparse.csr_array(scipy.sparse.vstack([scipy.sparse.csr_array(part) for part in parts]))
