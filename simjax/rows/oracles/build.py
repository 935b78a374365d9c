"""One row as a conic program, and the way back.

A row of a `RowProblem` (SIM paper, eq. 7, or eq. 2b–2c under exact matching) has x = (w, r, u, v, s, t, n):

    w     weights inside the support    Φw + r = t (residual form), P = 2λΦᵀΦ (gram form) or Φw = t (exact);
                                        l_j ≤ w_j ≤ u_j for a box
    r     residuals                     λ‖r‖² in P
    u     epigraphs |w_j| ≤ u_j         c_j u_j in the objective; Σ_j ω_j u_j + δ_j w_j ≤ κ for the ball
    v     excess v_j ≥ (u_j − b_j)₊     a_j v_j² in P, where c|w| + a(|w| − b)₊² is no perspective
    s, t  perspective, eq. 4 and 5      w_j² ≤ s_j t_j, 0 ≤ t_j ≤ 1, with α s_j + μ t_j; α = a, μ = a b²
    n     norms of groups ‖w_g‖ ≤ n_g   β_g n_g in the objective

The program is stated in units in which the target, every weight and, about, the optimum have size one: a
solver's absolute tolerances then mean the same for every row. `RowProgram` carries the way back.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import scipy.linalg
from scipy import sparse

from simjax.rows.oracles.conic_row import ConicRow, SharedDesign, check_conic, conic_row
from simjax.rows.oracles.program import (
    NONNEGATIVE,
    ROTATED,
    ZERO,
    Cone,
    ConicProgram,
    Triplets,
    sparse_matrix,
    triplets,
)
from simjax.rows.problem import OBJECTIVE_FLOOR, RowProblem
from simjax.rows.sparse_design import as_array

# |c − 2ab| up to this fraction of c is rounding: the penalty is a perspective.
_SAME = 1e-12
# A knot below this fraction of a weight's unit leaves the perspective quadratic but for a tip.
_SMALL_KNOT = 1e-3
_ESTIMATE_RIDGE = 1e-10
# A point near least squares has mostly 3 to 30 times the optimal objective.
_ABOVE_OPTIMUM = 30.0


@dataclasses.dataclass(frozen=True)
class RowProgram(ConicProgram):
    """The conic program of one row, and the way back to the row.

    Attributes:
      objective_scale: F: objective of the row = F × objective of the program. Zero for pure feasibility,
        where the program's objective is a choice among equals.
      target_scale: ‖t‖, the unit of the equations.
      coordinates: which weights the first variables are.
      point_scale: w_j = point_scale_j x_j for those.
      equations: how many rows Φw + r = t come first; 0 in gram form.
      design, row: the row as it was stated.
    """

    objective_scale: float
    target_scale: float
    coordinates: np.ndarray
    point_scale: np.ndarray
    equations: int
    design: SharedDesign
    row: ConicRow

    def weights(self, x: np.ndarray) -> np.ndarray:
        """The w (d,) of a point x, (n,).

        An interior-point answer may leave box and ball by its tolerance. Under penalty matching, where there is no
        other constraint, it is moved back.
        """
        weights = self.row.least.copy()
        weights[self.coordinates] = self.point_scale * x[: self.coordinates.size]
        return weights if self.row.exact else self.row.inside(weights)

    def dual(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """The certificate's y (m,), from a point x and the multiplier z of Gx + s = h.

        In L = ½xᵀPx + qᵀx + zᵀ(Gx + s − h), stationarity in r reads 2λr + z = 0: the y = 2λ(t − Φw) of the
        certificate is −z in the units of the row, and likewise for exact matching. The gram form has no
        equations, and y is the residual's.
        """
        if self.equations:
            return -z[: self.equations] * (self.objective_scale / self.target_scale)
        return 2.0 * self.row.loss_weight * (self.row.target - self.design.matrix @ self.weights(x))

    def ray(self, z: np.ndarray) -> np.ndarray:
        """The dual ray y (m,) of an infeasible exact row, from z in the dual cone with Gᵀz = 0 and hᵀz < 0.

        Scaled to yᵀt − sup {yᵀΦw: w in box, ball and support} = 1, which no w with Φw = t allows.
        """
        return z[: self.equations] / (self.target_scale * float(self.offset @ z))


def conic_program(problem: RowProblem, row: int, *, form: str = "residual") -> RowProgram:
    """Row number `row` of `problem` as a conic program.

    Args:
      problem: rows with one of simjax's own penalties.
      row: 0 ≤ row < R.
      form: "residual" has m more variables and a diagonal P. "gram" has P = 2λΦᵀΦ, whatever m is, but
        subtracts λ‖t‖² and loses digits where the optimum is small against that. Exact matching has no gram
        form.

    Raises:
      TypeError: if the penalty is the user's own, which has no conic form.
      ValueError: for a form that does not exist.
      IndexError: if there is no such row.
    """
    check_conic(problem, form)
    return build_program(SharedDesign(as_array(problem.design)), conic_row(problem, row), form)


def objective_unit(design: SharedDesign, row: ConicRow) -> float:
    """About the size of the optimum: P at a point near least squares, scaled into the ball, divided by 30.

    A unit somewhat below the optimum costs a solver an iteration; one above it costs the answer digits. Under
    exact matching the point meets the equations, but perhaps not the ball.
    """
    weights = _near_least_squares(design, row)
    if row.exact:
        return _power_of_two(row.objective(design, weights) / _ABOVE_OPTIMUM)
    at_zero = row.objective(design, row.least)
    estimate = min(row.objective(design, row.inside(weights)), at_zero) / _ABOVE_OPTIMUM
    return _power_of_two(max(estimate, OBJECTIVE_FLOOR * at_zero))


def _power_of_two(value: float) -> float:
    """The nearest power of two: scaling by it rounds nothing, and noise in the value changes nothing."""
    return float(np.exp2(np.round(np.log2(value)))) if value > 0.0 else 1.0


def _near_least_squares(design: SharedDesign, row: ConicRow) -> np.ndarray:
    """Ridge regression on the support, with a ridge just large enough for a rank-deficient design."""
    weights, coordinates = np.zeros(design.norms.size), row.coordinates(design)
    if coordinates.size == 0:
        return weights
    norms = design.norms[coordinates]
    wide = row.target.size <= coordinates.size
    if wide:
        columns = design.matrix[:, coordinates] / norms
        system, right = columns @ columns.T, row.target
    else:
        system = design.gram[np.ix_(coordinates, coordinates)]
        right = (row.target @ design.matrix)[coordinates] / norms
    system = system + _ESTIMATE_RIDGE * np.trace(system) * np.eye(right.size)
    solved = scipy.linalg.cho_solve(scipy.linalg.cho_factor(system), right)
    weights[coordinates] = (columns.T @ solved if wide else solved) / norms
    return weights


def build_program(design: SharedDesign, row: ConicRow, form: str, objective_scale: float | None = None) -> RowProgram:
    """The conic program of one row; F is the power of two next to `objective_scale`, or `objective_unit`."""
    scale = objective_unit(design, row) if objective_scale is None else _power_of_two(objective_scale)
    coordinates = row.coordinates(design)
    target_scale = float(np.linalg.norm(row.target)) or 1.0
    # In units of κ, where it has any.
    unit = abs(row.radius) or 1.0
    omega, tilt = row.omega[coordinates] / unit, row.tilt[coordinates] / unit
    # A weight's unit is what its column needs to reach the target, or all that ball or box allow it.
    bounds = np.zeros_like(omega) if tilt.any() else omega
    lower, upper = row.lower[coordinates], row.upper[coordinates]
    bounds = np.maximum(bounds, 1.0 / np.maximum(np.abs(lower), np.abs(upper)))
    point_scale = 1.0 / np.maximum(design.norms[coordinates] / target_scale, bounds)
    column_scale = point_scale / target_scale
    slope, curvature = row.slope[coordinates] * point_scale, row.curvature[coordinates] * point_scale**2
    # Pure feasibility (eq. 8 and 9) has no objective; the least-norm solution is as good as any, and unique.
    aimless = row.exact and not (slope.any() or curvature.any() or row.level.any())

    out = _Assembler()
    w = out.variables(coordinates.size, quadratic=1.0 if aimless else 0.0)
    loss = row.loss_weight * target_scale**2 / scale
    if form == "gram":
        correlation = (row.target @ design.matrix)[coordinates] * column_scale / target_scale
        length = design.norms[coordinates] * column_scale
        gram = design.gram[np.ix_(coordinates, coordinates)] * np.outer(length, length)
        out.add_objective(w, linear=-2.0 * loss * correlation, quadratic=2.0 * loss * gram)
    else:
        columns = design.matrix[:, coordinates] * column_scale
        _add_equations(out, w, columns, row.target / target_scale, loss=None if row.exact else loss)
    knot, radius = row.knot[coordinates] / point_scale, row.radius / unit
    _add_penalty_and_bound(
        out, w, slope / scale, curvature / scale, knot, omega * point_scale, tilt * point_scale, radius
    )
    if row.level.any():
        _add_groups(out, w, row.level / scale, row.labels[coordinates], point_scale)
    _add_box(out, w, lower / point_scale, upper / point_scale)
    return RowProgram(
        **out.parts(),
        constant=loss if form == "gram" else 0.0,
        objective_scale=0.0 if aimless else scale,
        target_scale=target_scale,
        coordinates=coordinates,
        point_scale=point_scale,
        equations=0 if form == "gram" else row.target.size,
        design=design,
        row=row,
    )


def _add_equations(out: _Assembler, w: np.ndarray, columns: np.ndarray, target: np.ndarray, loss: float | None) -> None:
    """Φw + r = t with λ‖r‖² in the objective, or Φw = t where λ is None because matching is exact."""
    samples = np.arange(target.size)
    terms: list[tuple] = [(samples[:, None], w, columns)]
    if loss is not None:
        terms.append((samples, out.variables(target.size, quadratic=2.0 * loss), 1.0))
    out.rows(ZERO, target, *terms)


def _add_penalty_and_bound(
    out: _Assembler,
    w: np.ndarray,
    slope: np.ndarray,
    curvature: np.ndarray,
    knot: np.ndarray,
    omega: np.ndarray,
    tilt: np.ndarray,
    radius: float,
) -> None:
    """h(w) and Σ_j ω_j |w_j| + δ_j w_j ≤ κ."""
    knotted = (curvature > 0.0) & (knot > 0.0)
    perspective = knotted & (np.abs(slope - 2.0 * curvature * knot) <= _SAME * slope)
    bent = knotted & ~perspective
    out.add_objective(w, quadratic=np.where(knotted, 0.0, 2.0 * curvature))

    seen = omega > 0.0
    has_epigraph = np.flatnonzero(seen | bent | ((slope > 0.0) & ~perspective))
    u = out.variables(has_epigraph.size, linear=np.where(perspective, 0.0, slope)[has_epigraph])
    each, zeros = np.arange(u.size), np.zeros(u.size)
    out.rows(NONNEGATIVE, zeros, (each, w[has_epigraph], 1.0), (each, u, -1.0))
    out.rows(NONNEGATIVE, zeros, (each, w[has_epigraph], -1.0), (each, u, -1.0))
    if seen.any() or tilt.any():
        tilted = np.flatnonzero(tilt)
        out.rows(NONNEGATIVE, np.full(1, radius), (0, u, omega[has_epigraph]), (0, w[tilted], tilt[tilted]))

    v = out.variables(int(np.count_nonzero(bent)), quadratic=2.0 * curvature[bent])
    each = np.arange(v.size)
    out.rows(NONNEGATIVE, knot[bent], (each, u[bent[has_epigraph]], 1.0), (each, v, -1.0))
    out.rows(NONNEGATIVE, np.zeros(v.size), (each, v, -1.0))

    _add_perspective(out, w[perspective], curvature[perspective], knot[perspective])


def _add_box(out: _Assembler, w: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
    """l ≤ w ≤ u, where they are finite."""
    for sign, side in ((1.0, upper), (-1.0, -lower)):
        finite = np.flatnonzero(np.isfinite(side))
        out.rows(NONNEGATIVE, side[finite], (np.arange(finite.size), w[finite], sign))


def _add_perspective(out: _Assembler, w: np.ndarray, alpha: np.ndarray, knot: np.ndarray) -> None:
    """α s + μ t with w² ≤ s t, 0 ≤ t ≤ 1 and μ = α b².

    At the optimum s = b|w| and t = |w|/b where |w| ≤ b, and s = w², t = 1 beyond. The units of s and t keep both
    within reach of one for any b.
    """
    beyond, unit = np.maximum(knot, 1.0), np.clip(knot, _SMALL_KNOT, 1.0)
    s_unit, t_unit = unit * beyond, 1.0 / beyond
    s = out.variables(w.size, linear=alpha * s_unit)
    t = out.variables(w.size, linear=alpha * knot**2 * t_unit)
    each = np.arange(w.size)
    out.rows(NONNEGATIVE, np.ones(w.size), (each, t, t_unit))
    # 2 · s · t/2 ≥ (w/√unit)², because s_unit · t_unit = unit; the cone implies t ≥ 0.
    terms = ((3 * each, s, -1.0), (3 * each + 1, t, -0.5), (3 * each + 2, w, -1.0 / np.sqrt(unit)))
    out.rows(ROTATED, np.zeros(3 * w.size), *terms, cone_size=3)


def _add_groups(out: _Assembler, w: np.ndarray, level: np.ndarray, labels: np.ndarray, point_scale: np.ndarray) -> None:
    """Σ_g β_g n_g with ‖w_g‖ ≤ n_g, as 2 (n_g/√2)(n_g/√2) ≥ ‖w_g‖², each n_g in the largest unit of its weights."""
    for group in np.flatnonzero(level):
        members = np.flatnonzero(labels == group)
        if members.size == 0:
            continue
        unit = point_scale[members].max()
        n = out.variables(1, linear=level[group] * unit)
        places = 2 + np.arange(members.size)
        terms = ((np.arange(2), n, -np.sqrt(0.5)), (places, w[members], -point_scale[members] / unit))
        out.rows(ROTATED, np.zeros(2 + members.size), *terms, cone_size=2 + members.size)


class _Assembler:
    """Collects variables and rows Gx + s = h, and puts the rows of one kind of cone together."""

    def __init__(self) -> None:
        self.size = 0
        self.linear: list[Triplets] = []
        self.quadratic: list[Triplets] = []
        self.entries: dict[str, list[Triplets]] = {ZERO: [], NONNEGATIVE: [], ROTATED: []}
        self.offsets: dict[str, list[np.ndarray]] = {ZERO: [], NONNEGATIVE: [], ROTATED: []}
        self.cones: list[Cone] = []

    def variables(self, count: int, linear: Any = 0.0, quadratic: Any = 0.0) -> np.ndarray:
        """The numbers of `count` new variables, with their part of q and P as in `add_objective`."""
        numbers = np.arange(self.size, self.size + count)
        self.size += count
        self.add_objective(numbers, linear, quadratic)
        return numbers

    def add_objective(self, numbers: np.ndarray, linear: Any = 0.0, quadratic: Any = 0.0) -> None:
        """Add to q, and to P a multiple of the identity, a diagonal or a matrix on these variables."""
        self.linear.append(triplets(numbers, 0, linear))
        rows = numbers[:, None] if np.ndim(quadratic) == 2 else numbers
        self.quadratic.append(triplets(rows, numbers, quadratic))

    def rows(self, kind: str, offset: np.ndarray, *terms: tuple, cone_size: int = 0) -> None:
        """Rows Σ terms + s = offset; a term is (row numbers within these, variables, coefficients)."""
        start = sum(part.size for part in self.offsets[kind])
        self.offsets[kind].append(offset)
        self.entries[kind] += [triplets(start + rows, numbers, values) for rows, numbers, values in terms]
        if cone_size:
            self.cones += [Cone(kind, cone_size)] * (offset.size // cone_size)

    def parts(self) -> dict[str, Any]:
        """P, q, G, h and the cones."""
        blocks, offsets, cones = [], [], []
        for kind, entries in self.entries.items():
            offset = np.concatenate(self.offsets[kind]) if self.offsets[kind] else np.zeros(0)
            blocks.append(sparse_matrix(entries, (offset.size, self.size)))
            offsets.append(offset)
            if kind != ROTATED and offset.size:
                cones.append(Cone(kind, offset.size))
        return {
            "quadratic": sparse_matrix(self.quadratic, (self.size, self.size)),
            "linear": sparse_matrix(self.linear, (self.size, 1)).toarray()[:, 0],
            "matrix": sparse.vstack(blocks, format="csc"),
            "offset": np.concatenate(offsets),
            "cones": (*cones, *self.cones),
        }
