"""MOSEK, the solver of the SIM paper, as an oracle by its native Optimizer API. The user brings the licence.

MOSEK does not mix a quadratic objective with cones: the task is built from `linear_objective(program)`, with

    zero and nonnegative rows     linear constraints Gx = h and Gx ≤ h
    rotated cones                 affine conic constraints h − Gx ∈ 𝒬ᵣ (2 x₀ x₁ ≥ ‖x₂…‖², the same cone)

A task can be built and read back without a licence; only optimising it takes one.
"""

from __future__ import annotations

from itertools import groupby
from types import ModuleType
from typing import Any

import numpy as np
from scipy import sparse

from simjax.rows.oracles.interface import (
    INFEASIBLE,
    MAX_ITERS,
    SOLVED,
    ConicSolution,
    OracleUnavailable,
    missing_package,
)
from simjax.rows.oracles.program import NONNEGATIVE, ROTATED, ZERO, Cone, ConicProgram, linear_objective

# The range MOSEK accepts for the tolerances below.
_TOL_RANGE = (1e-14, 1.0)


def _package() -> ModuleType:
    try:
        import mosek
    except ImportError as error:
        raise missing_package("mosek") from error
    return mosek


def check_available() -> None:
    """Raise `OracleUnavailable` if MOSEK is not installed or has no licence."""
    check_licence()


def check_licence() -> None:
    """Raise `OracleUnavailable` unless a licence for MOSEK's conic optimiser can be checked out now."""
    mosek = _package()
    with mosek.Env() as env:
        try:
            env.checkoutlicense(mosek.feature.pton)
        except mosek.Error as error:
            raise _no_licence(error) from error


def _no_licence(error: Any) -> OracleUnavailable:
    return OracleUnavailable(
        f"MOSEK found no usable licence ({error.errno}). Academic and trial licences are free at "
        f"https://www.mosek.com; put the file at ~/mosek/mosek.lic, or name it in the environment variable "
        f'MOSEKLM_LICENSE_FILE. Without a licence, use oracle="clarabel", which is open source.'
    )


def solve_conic(program: ConicProgram, tol: float) -> ConicSolution:
    """Solve by MOSEK's interior-point optimiser, on one core, with `tol` for the gap and for feasibility.

    Raises:
      OracleUnavailable: without the package or a licence.
    """
    mosek = _package()
    with build_task(program) as task:
        _set_parameters(mosek, task, tol)
        try:
            termination = task.optimize()
        except mosek.Error as error:
            if "license" in str(error.errno):
                raise _no_licence(error) from error
            raise
        return _solution(mosek, task, program, termination)


def _set_parameters(mosek: ModuleType, task: Any, tol: float) -> None:
    parameters = mosek.dparam
    for parameter in (
        parameters.intpnt_co_tol_rel_gap,
        parameters.intpnt_co_tol_pfeas,
        parameters.intpnt_co_tol_dfeas,
        parameters.intpnt_co_tol_mu_red,
        parameters.intpnt_co_tol_infeas,
    ):
        task.putdouparam(parameter, float(np.clip(tol, *_TOL_RANGE)))
    task.putintparam(mosek.iparam.num_threads, 1)


def _solution(mosek: ModuleType, task: Any, program: ConicProgram, termination: Any) -> ConicSolution:
    """The answer in the variables and rows of `program`, which come first in those of the task."""
    which = mosek.soltype.itr
    state = task.getsolsta(which) if task.solutiondef(which) else mosek.solsta.unknown
    status = {mosek.solsta.optimal: SOLVED, mosek.solsta.prim_infeas_cer: INFEASIBLE}.get(state, MAX_ITERS)
    if not task.solutiondef(which):
        x, z = np.full(program.linear.size, np.nan), np.full(program.offset.size, np.nan)
    else:
        x = np.array(task.getxx(which))[: program.linear.size]
        z = multipliers(task, which)[: program.offset.size]
    return ConicSolution(
        x=x,
        z=z,
        status=status,
        solver_status=f"{str(state).removeprefix('solsta.')} ({str(termination).removeprefix('rescode.')})",
        iterations=int(task.getintinf(mosek.iinfitem.intpnt_iter)),
    )


def multipliers(task: Any, which: Any) -> np.ndarray:
    """The z (k,) of Gx + s = h: MOSEK has Aᵀy + Fᵀẏ = c, so −y for linear rows (A = G), ẏ for cones (−G)."""
    return np.concatenate([-np.array(task.gety(which)), np.array(task.getaccdotys(which))])


# --- The task, written and read back ----------------------------------------------------------------------


def build_task(program: ConicProgram) -> Any:
    """A MOSEK task for `linear_objective(program)`; the caller closes it (it is a context manager)."""
    mosek = _package()
    program = linear_objective(program)
    task = mosek.Task()
    size = program.linear.size
    task.appendvars(size)
    task.putvarboundsliceconst(0, size, mosek.boundkey.fr, 0.0, 0.0)
    task.putcslice(0, size, program.linear)
    task.putcfix(program.constant)
    task.putobjsense(mosek.objsense.minimize)
    kinds = np.array([cone.kind for cone in program.cones for _ in range(cone.size)])
    linear = int(np.count_nonzero(kinds != ROTATED))
    rotated = [cone.size for cone in program.cones if cone.kind == ROTATED]
    _put_linear_rows(task, program.matrix[:linear], program.offset[:linear], kinds[:linear] == ZERO)
    _put_cones(task, program.matrix[linear:], program.offset[linear:], rotated)
    return task


def _put_linear_rows(task: Any, matrix: Any, offset: np.ndarray, equal: np.ndarray) -> None:
    boundkey = _package().boundkey
    task.appendcons(offset.size)
    rows, columns, values = _triplets(matrix)
    task.putaijlist(rows.astype(np.int32), columns, values)
    keys = [boundkey.fx if fixed else boundkey.up for fixed in equal]
    task.putconboundslice(0, offset.size, keys, np.where(equal, offset, -np.inf), offset)


def _put_cones(task: Any, matrix: Any, offset: np.ndarray, sizes: list[int]) -> None:
    task.appendafes(offset.size)
    rows, columns, values = _triplets(matrix)
    task.putafefentrylist(rows.astype(np.int64), columns, -values)
    task.putafegslice(0, offset.size, offset)
    start = 0
    for size in sizes:
        task.appendaccseq(task.appendrquadraticconedomain(size), start, None)
        start += size


def read_task(task: Any) -> ConicProgram:
    """The program that a task holds, by MOSEK's own getters.

    Raises:
      ValueError: for anything `build_task` does not write: bounded variables, a quadratic objective,
        two-sided rows, other cones.
    """
    mosek = _package()
    size, rows = task.getnumvar(), task.getnumcon()
    if any(key != mosek.boundkey.fr for key in task.getvarboundslice(0, size)[0]) or task.getnumqobjnz():
        raise ValueError("task must have free variables and a linear objective, as build_task writes it.")
    keys, _, upper = task.getconboundslice(0, rows)
    kind_of = {mosek.boundkey.fx: ZERO, mosek.boundkey.up: NONNEGATIVE}
    if any(key not in kind_of for key in keys):
        raise ValueError("task must have constraints with an upper bound or an equality only.")
    linear_cones = [Cone(kind, len(list(run))) for kind, run in groupby(keys, key=kind_of.__getitem__)]
    domains = [task.getaccdomain(i) for i in range(task.getnumacc())]
    if any(task.getdomaintype(domain) != mosek.domaintype.rquadratic_cone for domain in domains):
        raise ValueError("task must have rotated quadratic cones only.")
    conic = np.array(task.getaccgvector())
    linear_matrix = _from_triplets(task.getatrip(), (rows, size))
    conic_matrix = _from_triplets(task.getaccftrip(), (conic.size, size))
    return ConicProgram(
        quadratic=sparse.csc_array((size, size)),
        linear=np.array(task.getcslice(0, size)),
        constant=task.getcfix(),
        matrix=sparse.csc_array(sparse.vstack([linear_matrix, -conic_matrix])),
        offset=np.concatenate([np.array(upper), conic]),
        cones=(*linear_cones, *(Cone(ROTATED, task.getdomainn(domain)) for domain in domains)),
    )


def _triplets(matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers, column numbers (int32, as MOSEK wants them) and values."""
    entries = sparse.coo_array(matrix)
    rows, columns = entries.coords
    return rows, columns.astype(np.int32), entries.data


def _from_triplets(triplets: tuple, shape: tuple[int, int]) -> sparse.csc_array:
    rows, columns, values = (np.array(part) for part in triplets)
    return sparse.csc_array((values, (rows.astype(int), columns.astype(int))), shape=shape)
