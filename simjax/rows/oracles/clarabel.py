"""Clarabel (open source) as an oracle.

Clarabel takes the program as it is, with the quadratic part in the objective. Its second-order cone is the
rotated cone after the map of the first two coordinates to ((x₀ + x₁)/√2, (x₀ − x₁)/√2), because 2x₀x₁ is half
of (x₀ + x₁)² − (x₀ − x₁)². The map is orthogonal and its own inverse, and multipliers go back by it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from scipy import sparse

from simjax.rows.oracles.interface import (
    ALMOST_SOLVED,
    INFEASIBLE,
    MAX_ITERS,
    SOLVED,
    ConicSolution,
    missing_package,
)
from simjax.rows.oracles.program import NONNEGATIVE, ROTATED, ZERO, ConicProgram

_ASK_FOR = 0.1
_ALMOST = 100.0


def _package() -> ModuleType:
    try:
        import clarabel
    except ImportError as error:
        raise missing_package("clarabel") from error
    return clarabel


def check_available() -> None:
    """Raise `OracleUnavailable` if Clarabel is not installed."""
    _package()


def solve_conic(program: ConicProgram, tol: float) -> ConicSolution:
    """Solve by Clarabel, on one core; the status says whether residuals and gap are within `tol`.

    Clarabel is asked for a tenth of `tol`, and stops short of that where it makes no more progress.
    """
    clarabel = _package()
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = _ASK_FOR * tol
    rotation = _rotation(program)
    solution = clarabel.DefaultSolver(
        sparse.csc_matrix(sparse.triu(program.quadratic)),
        program.linear,
        sparse.csc_matrix(rotation @ program.matrix),
        rotation @ program.offset,
        [_cone(clarabel, cone.kind, cone.size) for cone in program.cones],
        settings,
    ).solve()
    return ConicSolution(
        x=np.array(solution.x),
        z=rotation @ np.array(solution.z),
        status=_status(solution, tol),
        solver_status=str(solution.status),
        iterations=int(solution.iterations),
    )


def _status(solution: Any, tol: float) -> str:
    if str(solution.status) == "PrimalInfeasible":
        return INFEASIBLE
    size = max(1.0, min(abs(solution.obj_val), abs(solution.obj_val_dual)))
    gap = abs(solution.obj_val - solution.obj_val_dual) / size
    error = np.max([solution.r_prim, solution.r_dual, gap])  # NaN stays; the residuals are relative already
    if error <= tol:
        return SOLVED
    return ALMOST_SOLVED if error <= _ALMOST * tol else MAX_ITERS


def _cone(clarabel: ModuleType, kind: str, size: int) -> Any:
    constructors = {ZERO: "ZeroConeT", NONNEGATIVE: "NonnegativeConeT", ROTATED: "SecondOrderConeT"}
    return getattr(clarabel, constructors[kind])(size)


def _rotation(program: ConicProgram) -> sparse.csr_array:
    """The orthogonal map, (k, k), that turns every rotated cone into a second-order cone, and back."""
    sizes = np.array([cone.size for cone in program.cones], dtype=int)
    starts = np.cumsum(sizes) - sizes
    first = starts[np.array([cone.kind == ROTATED for cone in program.cones], dtype=bool)]
    root = np.sqrt(0.5)
    diagonal = np.ones(program.offset.size)
    diagonal[first], diagonal[first + 1] = root, -root
    every = np.arange(diagonal.size)
    rows = np.concatenate([every, first, first + 1])
    columns = np.concatenate([every, first + 1, first])
    values = np.concatenate([diagonal, np.full(2 * first.size, root)])
    return sparse.csr_array((values, (rows, columns)), shape=(diagonal.size,) * 2)
