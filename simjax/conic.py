"""One row as a standard conic program: data only, for any interior-point solver.

    minimise ½ xᵀPx + qᵀx + constant    subject to    Gx + s = h,  s in a product of cones

A row of a `RowProblem` (SIM paper, eq. 7, or eq. 2b–2c under exact matching) has variables x = (w, r, u, v, s, t):

    w   weights inside the support       Φw + r = t (residual form)   or   P = 2λΦᵀΦ (gram form)   or   Φw = t (exact)
    r   residuals                        λ‖r‖² in P
    u   epigraphs |w_j| ≤ u_j            c u_j in the objective;  Σ_j ω_j u_j ≤ κ for the ball
    v   excess v_j ≥ u_j − b_j, v_j ≥ 0  a v_j² in P, for penalties c|w| + a(|w| − b)₊² that are no perspective
    s,t perspective (eq. 4 and 5)        w_j² ≤ b_j² s_j t_j, t_j ≤ 1;  μ (s_j + t_j) in the objective, with μ = a b²

Eq. 5's own s is b² times the s here: at the optimum s and t are then of one size whatever the ratio of α and μ.

The program is stated in units where the target, every column and (about) the optimum have size one; `ConicProgram`
carries the way back. The module needs NumPy and SciPy only, so that a worker process starts without JAX.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from simjax.problem import RowProblem

ZERO, NONNEGATIVE, ROTATED = "zero", "nonnegative", "rotated"
FORMS = ("residual", "gram")

# |c − 2ab| up to this fraction of c is rounding: the penalty is a perspective.
_SAME = 1e-12


class Cone(NamedTuple):
    """A factor of the cone product: zero {0}, nonnegative, or rotated {2 x₀ x₁ ≥ ‖x₂…‖², x₀, x₁ ≥ 0}."""

    kind: str
    size: int


@dataclasses.dataclass(frozen=True)
class ConicRow:
    """One row of a `RowProblem` as plain NumPy data; the design is kept apart because all rows share it.

    Attributes:
      target: t, (m,).
      loss_weight: λ; not used under exact matching.
      slope, curvature, knot: c, a, b of the penalty c|w| + a(|w| − b)₊², each (d,).
      ball_weights: ω, (d,), zero where the ball does not see the coordinate.
      radius: κ, inf for no ball.
      allowed: boolean (d,), the support.
      exact: whether Φw = t is a constraint.
    """

    target: np.ndarray
    loss_weight: float
    slope: np.ndarray
    curvature: np.ndarray
    knot: np.ndarray
    ball_weights: np.ndarray
    radius: float
    allowed: np.ndarray
    exact: bool


@dataclasses.dataclass(frozen=True)
class ConicProgram:
    """min ½xᵀPx + qᵀx + constant s.t. Gx + s = h, s in the cones, and the way back to the row.

    The objective is the row's divided by `objective_scale`; rows of G come in the order of `cones`.

    Attributes:
      quadratic: P, (n, n), symmetric positive semidefinite, sparse.
      linear: q, (n,).
      constant: what the gram form leaves out of P and q, λ‖t‖² in these units.
      matrix: G, (k, n), sparse.
      offset: h, (k,).
      cones: the factors, in order.
      objective_scale: F > 0: objective of the row = F × objective of the program.
      target_scale: ‖t‖, the unit of the equations.
      coordinates: which entries of w the first variables are, (k,).
      point_scale: w_j = point_scale_j x_j for those, (k,).
      equations: number of leading rows Φw + r = t; 0 in gram form.
      design, row: the row as it was stated.
    """

    quadratic: sparse.csc_array
    linear: np.ndarray
    constant: float
    matrix: sparse.csc_array
    offset: np.ndarray
    cones: tuple[Cone, ...]
    objective_scale: float
    target_scale: float
    coordinates: np.ndarray
    point_scale: np.ndarray
    equations: int
    design: np.ndarray
    row: ConicRow

    def weights(self, x: np.ndarray) -> np.ndarray:
        """w (d,) of a primal point x (n,)."""
        weights = np.zeros(self.design.shape[1])
        weights[self.coordinates] = self.point_scale * x[: self.coordinates.size]
        return weights

    def dual(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """The y (m,) of the certificate, for a primal point x and a multiplier z of Gx + s = h.

        With L = ½xᵀPx + qᵀx + zᵀ(Gx + s − h), stationarity in r makes z = −2λr: y = 2λ(t − Φw) is −z in the units
        of the row. The gram form has no equations, and y is the residual itself.
        """
        if self.equations:
            return -z[: self.equations] * (self.objective_scale / self.target_scale)
        return 2.0 * self.row.loss_weight * (self.row.target - self.design @ self.weights(x))

    def ray(self, z: np.ndarray) -> np.ndarray:
        """The dual ray y (m,) of an infeasible exact row, from z in the dual cone with Gᵀz = 0 and hᵀz < 0.

        Normalised so that yᵀt − sup {yᵀΦw : w in the ball and the support} = 1: no w has Φw = t.
        """
        return z[: self.equations] / (self.target_scale * float(self.offset @ z))


def conic_program(problem: RowProblem, row: int, *, form: str = "residual") -> ConicProgram:
    """Row `row` of `problem` as a conic program.

    Args:
      problem: any rows with one of simjax's own penalties.
      row: which row, 0 ≤ row < R.
      form: "residual" (m extra variables, P diagonal) or "gram" (P = 2λΦᵀΦ; independent of m, but it subtracts
        λ‖t‖² and is less accurate where the optimum is small against that). Exact matching has no gram form.

    Raises:
      TypeError: if the penalty is the user's own and so has no conic form.
      ValueError: for a form that does not exist.
      IndexError: if there is no such row.
    """
    check_form(form, problem.exact)
    return build_program(problem.design, conic_row(problem, row), form)


def check_form(form: str, exact: bool) -> None:
    """Raise a ValueError for a form that does not exist."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}; got {form!r}.")
    if form == "gram" and exact:
        raise ValueError("form='gram' needs matching='penalty': under exact matching Φw = t stays; use 'residual'.")


def check_conic(problem: RowProblem) -> None:
    """Raise a TypeError if the penalty of `problem` has no conic form."""
    from simjax.penalties import PiecewisePenalty  # imports JAX, which a worker process must not

    if not isinstance(problem.penalty, PiecewisePenalty):
        raise TypeError(
            f"penalty must be one of simjax's own (c|w| + a(|w| - b)_+^2) to have a conic form, got "
            f"{type(problem.penalty).__name__}; a penalty of your own can be certified but not passed to an oracle."
        )


def conic_row(problem: RowProblem, row: int) -> ConicRow:
    """The data of one row as NumPy arrays; errors as in `conic_program`."""
    check_conic(problem)
    if not 0 <= row < problem.rows_count:
        raise IndexError(f"row must be in 0..{problem.rows_count - 1}, got {row}.")
    width = problem.width
    penalty, ball = problem.penalty, problem.ball

    def parameter(value: object) -> np.ndarray:
        array = np.asarray(value, dtype=np.float64)
        array = array.reshape((1,) * (2 - array.ndim) + array.shape)
        return np.broadcast_to(array[row if array.shape[0] > 1 else 0], (width,))

    radius = np.inf if ball is None else float(np.asarray(ball.radius)[row, 0])
    return ConicRow(
        target=problem.targets[:, row],
        loss_weight=float(problem.loss_weight[row]),
        slope=parameter(penalty.slope),  # type: ignore[attr-defined]
        curvature=parameter(penalty.curvature),  # type: ignore[attr-defined]
        knot=parameter(penalty.knot),  # type: ignore[attr-defined]
        ball_weights=parameter(ball.weights) if ball is not None and np.isfinite(radius) else np.zeros(width),
        radius=radius,
        allowed=np.ones(width, dtype=bool) if problem.support is None else problem.support[row],
        exact=problem.exact,
    )



def build_program(design: np.ndarray, row: ConicRow, form: str, objective_scale: float) -> ConicProgram:
    """The conic program of one row; see `conic_program`."""
    norms = np.linalg.norm(design, axis=0)
    coordinates = np.flatnonzero(row.allowed & (norms > 0.0))
    target_scale = float(np.linalg.norm(row.target)) or 1.0
    columns, target = design[:, coordinates] / norms[coordinates], row.target / target_scale
    point_scale = target_scale / norms[coordinates]
    loss = row.loss_weight * target_scale**2 / objective_scale
    slope = row.slope[coordinates] * point_scale / objective_scale
    curvature = row.curvature[coordinates] * point_scale**2 / objective_scale
    knot = row.knot[coordinates] / point_scale
    ball = row.ball_weights[coordinates] * point_scale / row.radius

    smooth = (curvature > 0.0) & (knot == 0.0)
    perspective = (curvature > 0.0) & (knot > 0.0) & (abs(slope - 2.0 * curvature * knot) <= _SAME * slope)
    bent = (curvature > 0.0) & (knot > 0.0) & ~perspective

    out = _Assembler()
    gram = form == "gram"
    w = out.variables(
        coordinates.size,
        linear=-2.0 * loss * (columns.T @ target) if gram else 0.0,
        diagonal=2.0 * np.where(smooth, curvature, 0.0),
    )
    if not gram:
        samples = np.arange(target.size)
        terms = [(samples[:, None], w, columns)]
        if not row.exact:
            r = out.variables(target.size, diagonal=2.0 * loss)
            terms.append((samples, r, 1.0))
        out.rows(ZERO, target.size, target, *terms)

    u_of = np.flatnonzero((ball > 0.0) | bent | ((slope > 0.0) & ~perspective))
    u = out.variables(u_of.size, linear=np.where(perspective, 0.0, slope)[u_of])
    each = np.arange(u.size)
    out.rows(NONNEGATIVE, u.size, 0.0, (each, w[u_of], 1.0), (each, u, -1.0))
    out.rows(NONNEGATIVE, u.size, 0.0, (each, w[u_of], -1.0), (each, u, -1.0))
    if np.any(ball > 0.0):
        out.rows(NONNEGATIVE, 1, 1.0, (np.zeros_like(u), u, ball[u_of]))

    bent_of = bent[u_of]
    v = out.variables(np.count_nonzero(bent), diagonal=2.0 * curvature[bent])
    each = np.arange(v.size)
    out.rows(NONNEGATIVE, v.size, knot[bent], (each, u[bent_of], 1.0), (each, v, -1.0))
    out.rows(NONNEGATIVE, v.size, 0.0, (each, v, -1.0))

    weight = (curvature * knot**2)[perspective]
    s = out.variables(weight.size, linear=weight)
    t = out.variables(weight.size, linear=weight)
    out.rows(NONNEGATIVE, t.size, 1.0, (np.arange(t.size), t, 1.0))
    out.rotated_cones((s, np.ones(s.size)), (t, np.full(t.size, 0.5)), (w[perspective], 1.0 / knot[perspective]))

    matrix, offset, cones = out.finish()
    quadratic = sparse.diags_array(np.concatenate(out.diagonal), format="csc")
    if gram:
        padding = sparse.csc_array((out.size - w.size,) * 2)
        quadratic = quadratic + sparse.block_diag([2.0 * loss * (columns.T @ columns), padding], format="csc")
    return ConicProgram(
        quadratic=quadratic,
        linear=np.concatenate(out.linear),
        constant=loss if gram else 0.0,
        matrix=matrix,
        offset=offset,
        cones=cones,
        objective_scale=objective_scale,
        target_scale=target_scale,
        coordinates=coordinates,
        point_scale=point_scale,
        equations=0 if gram else target.size,
        design=design,
        row=row,
    )


# --- Assembly ----------------------------------------------------------------------------------------------------


class _Assembler:
    """Collects variables and rows G x + s = h; `finish` puts the rows of one cone kind together."""

    def __init__(self) -> None:
        self.size = 0
        self.linear: list[np.ndarray] = []
        self.diagonal: list[np.ndarray] = []
        self.blocks: dict[str, list[tuple]] = {ZERO: [], NONNEGATIVE: [], ROTATED: []}
        self.rotated: list[Cone] = []

    def variables(self, count: int, linear: object = 0.0, diagonal: object = 0.0) -> np.ndarray:
        """`count` new variables with their part of q and of the diagonal of P; returns their numbers."""
        self.linear.append(np.broadcast_to(linear, (count,)))
        self.diagonal.append(np.broadcast_to(diagonal, (count,)))
        self.size += count
        return np.arange(self.size - count, self.size)

    def rows(self, kind: str, count: int, offset: object, *terms: tuple) -> None:
        """`count` rows Σ terms + s = offset; a term is (row numbers, variables, coefficients)."""
        self.blocks[kind].append((count, np.broadcast_to(offset, (count,)), terms))

    def rotated_cones(self, first: tuple, second: tuple, third: tuple) -> None:
        """Cones 2 x₀ x₁ ≥ x₂² on triples of scaled variables, each given as (variables, coefficients)."""
        count = first[0].size
        rows = 3 * np.arange(count)
        terms = [(rows + k, part[0], -part[1]) for k, part in enumerate((first, second, third))]
        self.rows(ROTATED, 3 * count, 0.0, *terms)
        self.rotated += [Cone(ROTATED, 3)] * count

    def finish(self) -> tuple[sparse.csc_array, np.ndarray, tuple[Cone, ...]]:
        """G, h and the cones."""
        heights: dict[str, int] = {}
        entries, offsets, start = [], [], 0
        for kind, blocks in self.blocks.items():
            begin = start
            for count, offset, terms in blocks:
                offsets.append(offset)
                for rows, columns, values in terms:
                    shape = np.broadcast_shapes(np.shape(rows), np.shape(columns))
                    entries.append([np.broadcast_to(x, shape).ravel() for x in (rows + start, columns, values)])
                start += count
            heights[kind] = start - begin
        rows, columns, values = (np.concatenate(parts) for parts in zip(*entries))
        matrix = sparse.csc_array((values, (rows, columns)), shape=(start, self.size))
        matrix.eliminate_zeros()
        linear_cones = [Cone(kind, heights[kind]) for kind in (ZERO, NONNEGATIVE) if heights[kind]]
        return matrix, np.concatenate(offsets), (*linear_cones, *self.rotated)
