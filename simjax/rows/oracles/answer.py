"""One row by one oracle: closed forms, the right units, and proofs of infeasibility."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.linalg

from simjax.rows.oracles.build import RowProgram, build_program
from simjax.rows.oracles.conic_row import ConicRow, SharedDesign
from simjax.rows.oracles.interface import (
    ALMOST_SOLVED,
    INFEASIBLE,
    MAX_ITERS,
    NONFINITE,
    SOLVED,
    ConicSolution,
)
from simjax.rows.oracles.program import ConicProgram
from simjax.rows.problem import OBJECTIVE_FLOOR

ConicSolver = Callable[[ConicProgram, float], ConicSolution]

# Outside this range the row's objective is far from one in the program's units, and the row is stated again.
_RIGHT_UNITS = (0.1, 1e4)
# The relative violation of a row's constraints that SOLVED and ALMOST_SOLVED allow.
_FEASIBLE, _ALMOST_FEASIBLE = 1e-8, 1e-6
# A ray y proves a row infeasible up to weights of this size, in units of ‖t‖ over the norm of their column.
_BEYOND = 1e8


@dataclasses.dataclass(frozen=True)
class RowAnswer:
    """Weights (d,), dual point or ray (m,), status and the solver's own words for it."""

    weights: np.ndarray
    dual: np.ndarray
    status: str
    solver_status: str


@np.errstate(over="ignore", invalid="ignore")  # a solver that fails may return numbers of any size
def solve_row(design: SharedDesign, row: ConicRow, solve_conic: ConicSolver, tol: float, form: str) -> RowAnswer:
    """The oracle's answer to one row."""
    closed = _closed_form(design, row)
    if closed is not None:
        return closed
    program, solution = _solve_in_units(design, row, solve_conic, tol, form)
    if row.exact and solution.status != SOLVED:
        ray = _infeasibility_ray(design, row, program, solution, solve_conic, tol)
        if ray is not None:
            return RowAnswer(np.zeros(design.norms.size), ray, INFEASIBLE, solution.solver_status)
    weights, dual = program.weights(solution.x), program.dual(solution.x, solution.z)
    if not (np.isfinite(weights).all() and np.isfinite(dual).all()):
        return RowAnswer(np.zeros_like(weights), np.zeros_like(dual), NONFINITE, solution.solver_status)
    status = _status(solution.status, row.violation(design, weights))
    return RowAnswer(weights, dual, status, solution.solver_status)


def _status(claimed: str, violation: float) -> str:
    """What the solver claims, as far as the constraints of the row itself bear it out.

    A solver's residuals are relative to the size of its variables. And a claim of infeasibility that came without
    a ray that proves it is no answer.
    """
    if claimed == INFEASIBLE or violation > _ALMOST_FEASIBLE:
        return MAX_ITERS
    return ALMOST_SOLVED if claimed == SOLVED and violation > _FEASIBLE else claimed


def _closed_form(design: SharedDesign, row: ConicRow) -> RowAnswer | None:
    """Rows that need no solver: t = 0; w = 0 optimal, held by the penalty's slope or a bound of zero; or no column."""
    zero, coordinates = np.zeros(design.norms.size), row.coordinates(design)
    if row.radius <= 0.0 or row.least.any():  # a Metzler row or a box that rules out w = 0
        return None
    if not row.target.any():
        return RowAnswer(zero, np.zeros_like(row.target), SOLVED, "t = 0")
    if not row.exact:
        dual = 2.0 * row.loss_weight * row.target
        slopes = np.zeros_like(zero)
        slopes[coordinates] = (dual @ design.matrix)[coordinates]
        if row.zero_is_best(slopes):
            return RowAnswer(zero, dual, SOLVED, "w = 0 is optimal")
    elif coordinates.size == 0:
        return RowAnswer(row.least, row.target / float(row.target @ row.target), INFEASIBLE, "no columns")
    return None


def _solve_in_units(
    design: SharedDesign, row: ConicRow, solve_conic: ConicSolver, tol: float, form: str
) -> tuple[RowProgram, ConicSolution]:
    """Solve, and once more in units of the objective found if that is far from the estimate.

    A solver's tolerance is relative to max(1, objective): an optimum far below one would have few digits, and
    one far above would ask for digits that float64 does not have.
    """
    program = build_program(design, row, form)
    solution = solve_conic(program, tol)
    floor = 0.0 if row.exact else OBJECTIVE_FLOOR * row.objective(design, row.least)
    found = max(row.objective(design, program.weights(solution.x)), floor)
    low, high = _RIGHT_UNITS
    if solution.status == INFEASIBLE or not 0.0 < found < np.inf:
        return program, solution
    if low <= found / program.objective_scale <= high:
        return program, solution
    program = build_program(design, row, form, objective_scale=found)
    return program, solve_conic(program, tol)


# --- Infeasibility ----------------------------------------------------------------------------------------


def _infeasibility_ray(
    design: SharedDesign,
    row: ConicRow,
    program: RowProgram,
    solution: ConicSolution,
    solve_conic: ConicSolver,
    tol: float,
) -> np.ndarray | None:
    """A proved dual ray of an exact row: the solver's own, that of inconsistent equations, or phase one's."""
    if solution.status == INFEASIBLE:
        ray = proved_ray(design, row, program.ray(solution.z))
        if ray is not None:
            return ray
    ray = proved_ray(design, row, _least_squares_residual(design, row))
    if ray is None and (_boxed(row).any() or (np.isfinite(row.radius) and not row.tilt.any())):
        ray = proved_ray(design, row, _phase_one_dual(design, row, solve_conic, tol))
    return ray


def proved_ray(design: SharedDesign, row: ConicRow, ray: np.ndarray) -> np.ndarray | None:
    """The ray y, made orthogonal to the columns no ball sees, if it proves that no w has Φw = t; else None.

    Every w in the ball and the support has yᵀΦw ≤ κ max_j |φ_jᵀy|/ω_j; yᵀt beyond that is the proof. The ray
    is scaled to make the difference one. With a tilt the bound is κθ, θ = φ_iᵀy/δ_i, where no |φ_jᵀy|/ω_j is larger.
    """
    if _boxed(row).any():
        return _proved_in_box(design, row, ray)
    coordinates = row.coordinates(design)
    seen = coordinates[row.omega[coordinates] > 0.0]
    tilted = coordinates[row.tilt[coordinates] > 0.0]
    free = coordinates[(row.omega[coordinates] == 0.0) & (row.tilt[coordinates] == 0.0)]
    if not np.isfinite(ray).all():
        return None
    ray = _orthogonal_to(design.matrix[:, free] / design.norms[free], ray)
    reach = np.abs(ray @ design.matrix[:, seen]) / row.omega[seen]
    theta = float(reach.max(initial=0.0))
    leak = np.abs(ray @ design.matrix[:, free]) / design.norms[free]
    if tilted.size:
        slope, delta = ray @ design.matrix[:, tilted], row.tilt[tilted]
        leak = np.append(leak, np.maximum(theta * delta - slope, 0.0) / design.norms[tilted])
        theta = max(theta, float((slope / delta)[0]))
    margin = float(ray @ row.target) - (row.radius * theta if seen.size or tilted.size else 0.0)
    if margin <= 0.0 or leak.max(initial=0.0) * float(np.linalg.norm(row.target)) * _BEYOND > margin:
        return None
    return ray / margin


def _boxed(row: ConicRow) -> np.ndarray:
    """Which coordinates a box bounds, from one side or both, (d,)."""
    return np.isfinite(row.lower) | np.isfinite(row.upper)


def _proved_in_box(design: SharedDesign, row: ConicRow, ray: np.ndarray) -> np.ndarray | None:
    """As `proved_ray`, where yᵀΦw is at most min over θ ≥ 0 of κθ + Σ_j max(u_j r_j, l_j r_j), r = soft(Φᵀy, θω).

    The least value is at θ = 0 or some |φ_jᵀy|/ω_j. What r has where w_j has no bound on that side is a leak.
    """
    coordinates = row.coordinates(design)
    seen = row.omega[coordinates] > 0.0
    free = coordinates[~seen & ~_boxed(row)[coordinates]]
    if not np.isfinite(ray).all():
        return None
    ray = _orthogonal_to(design.matrix[:, free] / design.norms[free], ray)
    slopes, omega = ray @ design.matrix[:, coordinates], row.omega[coordinates]
    target = float(np.linalg.norm(row.target))
    best, margin = None, 0.0
    for theta in np.concatenate([[0.0], np.abs(slopes[seen]) / omega[seen]]):
        left = np.sign(slopes) * np.maximum(np.abs(slopes) - theta * omega, 0.0)
        side = np.where(left > 0.0, row.upper[coordinates], row.lower[coordinates])
        bounded = np.isfinite(side)
        leak = np.abs(left[~bounded]) / design.norms[coordinates[~bounded]]
        reach = float(left[bounded] @ side[bounded]) + (row.radius * theta if theta > 0.0 else 0.0)
        found = float(ray @ row.target) - reach
        if found > margin and leak.max(initial=0.0) * target * _BEYOND <= found:
            best, margin = ray, found
    return None if best is None else best / margin


def _orthogonal_to(columns: np.ndarray, vector: np.ndarray) -> np.ndarray:
    if columns.shape[1] == 0:
        return vector
    basis, triangle, _ = scipy.linalg.qr(columns, mode="economic", pivoting=True)
    diagonal = np.abs(np.diag(triangle))
    basis = basis[:, diagonal > 1e-14 * diagonal[0]]
    for _ in range(2):  # a second pass removes the rounding of the first
        vector = vector - basis @ (basis.T @ vector)
    return vector


def _least_squares_residual(design: SharedDesign, row: ConicRow) -> np.ndarray:
    """The residual of least squares: orthogonal to all columns, and not zero if the equations disagree."""
    coordinates = row.coordinates(design)
    return _orthogonal_to(design.matrix[:, coordinates] / design.norms[coordinates], row.target)


def _phase_one_dual(design: SharedDesign, row: ConicRow, solve_conic: ConicSolver, tol: float) -> np.ndarray:
    """The dual point of min Σ ω|w| s.t. Φw = t, whose optimum is the smallest radius with a feasible row.

    With a box it is t − Φw of the w in box and ball with the least of it: yᵀΦv ≤ yᵀΦw = yᵀt − ‖y‖² for all others v.
    """
    zero = np.zeros(row.slope.size)
    if _boxed(row).any():
        nearest = dataclasses.replace(row, slope=zero, curvature=zero, knot=zero, loss_weight=1.0, exact=False)
        program, solution = _solve_in_units(design, nearest, solve_conic, tol, "residual")
        return row.target - design.matrix @ program.weights(solution.x)
    phase_one = dataclasses.replace(
        row, slope=row.omega, curvature=zero, knot=zero, level=zero[:0], omega=zero, radius=np.inf
    )
    program, solution = _solve_in_units(design, phase_one, solve_conic, tol, "residual")
    return program.dual(solution.x, solution.z)
