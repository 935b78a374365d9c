"""The data of one row, in NumPy, without the design that all rows share."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from simjax.rows.boxed import box_of, unboxed
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.penalties import NoPenalty, PiecewisePenalty
from simjax.rows.problem import RowProblem

FORMS = ("residual", "gram")


@dataclasses.dataclass(frozen=True)
class SharedDesign:
    """The design Φ (m, d) that all rows share, with what is computed from it once."""

    matrix: np.ndarray

    @functools.cached_property
    def norms(self) -> np.ndarray:
        """Column norms, (d,)."""
        return np.linalg.norm(self.matrix, axis=0)

    @functools.cached_property
    def gram(self) -> np.ndarray:
        """ΦᵀΦ with every column scaled to norm one, (d, d)."""
        unit = self.matrix / np.where(self.norms > 0.0, self.norms, 1.0)
        return unit.T @ unit


@dataclasses.dataclass(frozen=True)
class ConicRow:
    """One row of a `RowProblem` as NumPy data, without the design.

    Attributes:
      target: t, (m,).
      loss_weight: λ; not used under exact matching.
      slope, curvature, knot: c, a, b of the penalty c|w| + a(|w| − b)₊², each (d,).
      level: β of a penalty Σ β_g ‖w_g‖ of groups, (G,); nothing without.
      labels: the group of each coordinate, (d,); likewise.
      omega: ω, (d,), zero where no ball sees the coordinate.
      tilt: δ, (d,), of the coordinate that counts with its sign; zero elsewhere.
      radius: κ, inf for no ball.
      lower, upper: l and u of a box, (d,); infinite where there is none.
      allowed: boolean (d,), the support.
      exact: whether Φw = t is a constraint.
    """

    target: np.ndarray
    loss_weight: float
    slope: np.ndarray
    curvature: np.ndarray
    knot: np.ndarray
    level: np.ndarray
    labels: np.ndarray
    omega: np.ndarray
    tilt: np.ndarray
    radius: float
    lower: np.ndarray
    upper: np.ndarray
    allowed: np.ndarray
    exact: bool

    def objective(self, design: SharedDesign, weights: np.ndarray) -> float:
        """P(w) = λ‖t − Φw‖² + h(w), or h(w) under exact matching."""
        size = np.abs(weights)
        value = float(np.sum(self.slope * size + self.curvature * np.maximum(size - self.knot, 0.0) ** 2))
        value += float(self.level @ self.group_norms(weights))
        if self.exact:
            return value
        return value + self.loss_weight * float(np.sum((self.target - design.matrix @ weights) ** 2))

    def violation(self, design: SharedDesign, weights: np.ndarray) -> float:
        """The largest of ‖Φw − t‖/‖t‖, where that is a constraint, and the relative violations of ball and box."""
        outside = max(self.norm(weights) - self.radius, 0.0)
        if outside > 0.0:
            outside /= abs(self.radius) + float(self.tilt @ np.abs(weights))
        missed = weights - np.clip(weights, self.lower, self.upper)
        if missed.any():
            side = np.abs(np.where(missed > 0.0, self.upper, self.lower))[missed != 0.0]
            share = np.abs(missed[missed != 0.0]) / np.maximum(side, np.abs(weights).max())
            outside = max(outside, float(share.max()))
        if not self.exact:
            return outside
        misfit = np.linalg.norm(design.matrix @ weights - self.target)
        return max(float(misfit / np.linalg.norm(self.target)), outside)

    def group_norms(self, weights: np.ndarray) -> np.ndarray:
        """‖w_g‖ of every group, (G,)."""
        if self.level.size == 0:
            return np.zeros(0)
        return np.sqrt(np.bincount(self.labels, weights=weights**2, minlength=self.level.size))

    def zero_is_best(self, slopes: np.ndarray) -> bool:
        """Whether w = 0, where it is in the box, is best for h(w) − sᵀw.

        That is so where every |s_j| ≤ c_j, or a bound of zero holds w_j, or every ‖s_g‖ ≤ β_g.
        """
        if self.level.size:
            return bool(np.all(self.group_norms(slopes) <= self.level))
        held = np.where(slopes > 0.0, self.upper, -self.lower) <= 0.0
        return bool(np.all(held | (np.abs(slopes) <= self.slope)))

    def norm(self, weights: np.ndarray) -> float:
        """Σ_j ω_j |w_j| + δ_j w_j."""
        return float(self.omega @ np.abs(weights) + self.tilt @ weights)

    def inside(self, weights: np.ndarray) -> np.ndarray:
        """The weights moved into the box, and into the ball: scaled, or lowered where one counts with its sign."""
        weights = np.clip(weights, self.lower, self.upper)
        excess = self.norm(weights) - self.radius
        if excess <= 0.0:
            return weights
        if self.tilt.any() and (self.radius <= 0.0 or self.tilt @ weights != 0.0):
            lowered = excess / np.where(self.tilt > 0.0, self.tilt, 1.0)
            return np.where(self.tilt > 0.0, weights - lowered, weights)
        return np.where(self.omega > 0.0, weights * (self.radius / self.norm(weights)), weights)

    def coordinates(self, design: SharedDesign) -> np.ndarray:
        """The weights that matter: inside the support, with a column and a box that are not zero."""
        return np.flatnonzero(self.allowed & (design.norms > 0.0) & ((self.lower < 0.0) | (self.upper > 0.0)))

    @property
    def least(self) -> np.ndarray:
        """The weights of the box next to zero, (d,): those of coordinates that do not matter."""
        return np.clip(np.zeros(self.slope.size), self.lower, self.upper)


# --- From a RowProblem -------------------------------------------------------------------------------------------


def check_conic(problem: RowProblem, form: str) -> None:
    """Raise an error if `problem` cannot be written in this form; see `conic_program`."""
    if not isinstance(unboxed(problem.penalty), PiecewisePenalty | GroupPenalty):
        raise TypeError(
            f"penalty must be one of simjax's to have a conic form; got {type(unboxed(problem.penalty)).__name__}: "
            "rows with a penalty of your own can be certified, but not passed to an oracle."
        )
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}; got {form!r}.")
    if form == "gram" and problem.exact:
        raise ValueError("form must be 'residual' under exact matching, where Φw = t stays; got 'gram'.")


def conic_row(problem: RowProblem, row: int) -> ConicRow:
    """The data of one row; `problem` must have passed `check_conic`.

    Raises:
      IndexError: if there is no such row.
    """
    if not 0 <= row < problem.count:
        raise IndexError(f"row must be in 0..{problem.count - 1}, got {row}.")
    penalty, box = unboxed(problem.penalty), box_of(problem.penalty)
    width, bound = problem.width, problem.bound

    def of_row(value: Any) -> np.ndarray:
        array = np.atleast_2d(np.asarray(value, dtype=np.float64))
        return np.broadcast_to(array[row if array.shape[0] > 1 else 0], (width,))

    groups, labels = np.zeros(0), np.zeros(0, dtype=int)
    if isinstance(penalty, GroupPenalty):
        level = np.asarray(penalty.level, dtype=np.float64)
        groups, labels = level[row if len(level) > 1 else 0], np.asarray(penalty.labels)[0]
        penalty = NoPenalty()
    radius = np.inf if bound is None else float(np.asarray(bound.radius)[row, 0])
    return ConicRow(
        target=problem.targets[:, row],
        loss_weight=float(problem.loss_weight[row]),
        slope=of_row(penalty.slope),
        curvature=of_row(penalty.curvature),
        knot=of_row(penalty.knot),
        level=groups,
        labels=labels,
        omega=np.zeros(width) if bound is None or np.isinf(radius) else of_row(bound.omega),
        tilt=np.zeros(width) if bound is None or bound.tilt is None or np.isinf(radius) else of_row(bound.tilt),
        radius=radius,
        lower=np.full(width, -np.inf) if box is None else of_row(box.lower),
        upper=np.full(width, np.inf) if box is None else of_row(box.upper),
        allowed=np.ones(width, dtype=bool) if problem.support is None else problem.support[row],
        exact=problem.exact,
    )
