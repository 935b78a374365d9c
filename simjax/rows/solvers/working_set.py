"""Sparse rows by working sets: small problems on the few coordinates that matter, all coordinates priced at once.

    min_w ½ ‖t − Kw‖² + Σ_j [c_j |w_j| + a_j (|w_j| − b_j)₊²]   s.t.  Σ_j ω_j |w_j| ≤ κ,  w_j = 0 outside the support

Each row has a working set W of its own, is solved exactly on it, and leaves when its duality gap over all coordinates
is proved. A row whose set would grow beyond a bound is given up early: it is not sparse, and other methods are faster.

Source: Massias, Gramfort, Salmon, Celer: a fast solver for the lasso with dual extrapolation (ICML 2018), for the
working sets and their growth.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from simjax.rows.problem import CANONICAL_FLOOR
from simjax.rows.solvers.orthant_newton import Subproblems, solve_subproblems
from simjax.rows.sparse_design import SparseDesign

_FIRST_SIZE = 32
_LEAST_BOUND = 64
_ROUNDS = 20
_VIOLATED = 1e-8  # a demand |s| ≤ c that fails by less of it holds as far as the working sets are concerned
_FLAT = 1e-300


def _squares(rows: np.ndarray | None) -> np.ndarray:
    if rows is None:
        raise ValueError("either the samples or the statistics must be given.")
    return np.einsum("ij,ij->i", rows, rows)


@dataclasses.dataclass(frozen=True)
class RowTerms:
    """Penalty, ball and support of R rows; every parameter broadcasts against (R, d).

    Attributes:
      slope, curvature, knot: c, a, b, (1 or R, 1 or d).
      omega: ω ≥ 0, (1 or R, d), or None for no ball.
      radius: κ > 0, (R,) or (R, 1), inf for no constraint.
      support: boolean (R, d), or None.
    """

    slope: np.ndarray
    curvature: np.ndarray
    knot: np.ndarray
    omega: np.ndarray | None = None
    radius: np.ndarray | None = None
    support: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Columns:
    """The design that all rows share, made once for all tiles of rows.

    Attributes:
      rows: Kᵀ, (d, m), contiguous or CSR: a column of the design is a row of it. None where only the Gram matrix is at
        hand.
      gram: KᵀK, (d, d), or None: then its blocks are made of the columns.
      norms: of the columns, (d,); 1 where zero.
    """

    rows: Any
    gram: np.ndarray | None
    norms: np.ndarray

    @classmethod
    def of(cls, design: Any, gram: np.ndarray | None = None) -> Columns:
        """That of K (m, d), of its Gram matrix (d, d), or of both."""
        rows: Any = None
        if isinstance(design, SparseDesign):
            rows, norms = design.T.by_rows(), design.column_norms()
        else:
            rows = None if design is None else np.ascontiguousarray(design.T, dtype=np.float64)
            norms = np.sqrt(np.maximum(np.diagonal(gram) if gram is not None else _squares(rows), 0.0))
        return cls(rows, gram, np.where(norms > 0.0, norms, 1.0))

    @property
    def patient(self) -> bool:
        """Whether no row is given up that may be solved: what comes after would make an array of a sparse design."""
        return isinstance(self.rows, SparseDesign)

    @property
    def most(self) -> int:
        """The largest support that pays: a sixth of min(m, d), 64 in any case; of sparse columns all of min(m, d)."""
        if self.patient:
            return min(self.rows.shape)
        return max(_LEAST_BOUND, (self.norms.size if self.rows is None else min(self.rows.shape)) // 6)

    def blocks(self, sets: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """G_WW for the coordinates `sets` of each row, (R, k); where not `inside`, zero or anything."""
        if self.gram is not None:
            return self.gram[sets[:, :, None], sets[:, None, :]]
        assert self.rows is not None
        blocks = np.zeros((*sets.shape, sets.shape[1]))
        for block, chosen, within in zip(blocks, sets, inside, strict=True):
            size = int(np.count_nonzero(within))
            picked = self.rows[chosen[:size]]
            block[:size, :size] = picked @ picked.T
        return blocks


@dataclasses.dataclass(frozen=True)
class SparseRows:
    """What came of R rows.

    Attributes:
      weights: w, (R, d), inside ball and support whatever `solved` says.
      residuals: t − Kw, (R, m), or None where only the Gram matrix was given.
      theta: multipliers of the ball, (R,).
      gap: the relative gap that the residual proves, (R,).
      solved: gap ≤ tol, (R,).
    """

    weights: np.ndarray
    residuals: np.ndarray | None
    theta: np.ndarray
    gap: np.ndarray
    solved: np.ndarray


def solve_sparse_rows(
    columns: Columns,
    targets: np.ndarray | None,
    terms: RowTerms,
    *,
    correlations: np.ndarray | None = None,
    squares: np.ndarray | None = None,
    start: np.ndarray | None = None,
    start_theta: np.ndarray | None = None,
    tol: float = 1e-6,
    most: int | None = None,
) -> SparseRows:
    """Solve rows that are sparse, and say of the others that they are not.

    Args:
      columns: the design.
      targets: t, (R, m); may be None where `columns.rows` is.
      terms: penalty, ball and support.
      correlations: Kᵀt, (R, d); made of the samples where None.
      squares: ‖t‖², (R,); needed where `targets` is None.
      start: weights to begin with, (R, d).
      start_theta: multipliers of the ball to begin with, (R,).
      tol: relative gap to reach.
      most: a row is given up when its support is about to outgrow this; None means `columns.most`.
    """
    rows = _Rows.of(columns, targets, terms, correlations, squares)
    count, width = rows.correlations.shape
    most = min(columns.most if most is None else most, width)
    weights = np.zeros((count, width)) if start is None else rows.inside(np.array(start, dtype=np.float64))
    theta = np.zeros(count) if start_theta is None else np.array(start_theta, dtype=np.float64)
    slopes, residuals = (rows.correlations, rows.targets) if start is None else rows.price(weights)
    gap, found = np.full(count, np.inf), None if targets is None else np.array(residuals)
    open_, exact = np.arange(count), np.ones(count, dtype=bool)
    for step in range(_ROUNDS):
        gap[open_] = rows.gap(weights[open_], slopes, residuals, theta[open_])
        left = gap[open_] > tol
        sets, inside, fits = rows.working_sets(weights[open_], slopes, theta[open_], most, step)
        left &= fits & exact
        open_, rows = open_[left], rows.take(left)
        if open_.size == 0 or step == _ROUNDS - 1:
            break
        new, theta[open_], exact = rows.solve_on(sets[left], inside[left], weights[open_], theta[open_])
        weights[open_] = new
        slopes, residuals = rows.price(new)
        if found is not None:
            found[open_] = residuals
    return SparseRows(weights, found, theta, gap, gap <= tol)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows with everything written out: (R, d) for each parameter, though memory may be shared."""

    columns: Columns
    targets: np.ndarray | None
    correlations: np.ndarray
    squares: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray
    knot: np.ndarray
    omega: np.ndarray | None
    radius: np.ndarray
    support: np.ndarray | None

    @classmethod
    def of(
        cls,
        columns: Columns,
        targets: np.ndarray | None,
        terms: RowTerms,
        correlations: np.ndarray | None,
        squares: np.ndarray | None,
    ) -> _Rows:
        if correlations is None:
            if targets is None or columns.rows is None:
                raise ValueError("correlations must be given where there are no samples.")
            correlations = targets @ columns.rows.T
        if squares is None:
            squares = _squares(targets)
        shape = correlations.shape
        slope, curvature, knot = (np.broadcast_to(x, shape) for x in (terms.slope, terms.curvature, terms.knot))
        omega, radius = None, np.full(shape[0], np.inf)
        if terms.omega is not None and terms.radius is not None:
            radius = np.broadcast_to(np.reshape(terms.radius, (-1,)), shape[:1])
            if np.isfinite(radius).any():
                omega = np.broadcast_to(terms.omega, shape)
        return cls(columns, targets, correlations, squares, slope, curvature, knot, omega, radius, terms.support)

    def take(self, index: np.ndarray) -> _Rows:
        """The rows in `index`."""
        fields: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shared = fields.pop("columns")
        taken: dict[str, Any] = {name: None if value is None else value[index] for name, value in fields.items()}
        return _Rows(shared, **taken)

    def inside(self, weights: np.ndarray) -> np.ndarray:
        """The weights confined to the support and scaled into the ball."""
        if self.support is not None:
            weights = np.where(self.support, weights, 0.0)
        if self.omega is None:
            return weights
        norm = np.sum(self.omega * np.abs(weights), axis=1)
        over = norm > self.radius
        shrink = np.where(over, self.radius / np.where(over, norm, 1.0) * (1.0 - 2e-16), 1.0)
        return np.where(over[:, None] & (self.omega > 0.0), weights * shrink[:, None], weights)

    def price(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Kᵀ(t − Kw) and, with samples, t − Kw: one product for all rows over the coordinates that any of them uses."""
        used = np.flatnonzero(weights.any(axis=0))
        few = 2 * used.size < weights.shape[1]
        part = weights[:, used] if few else weights
        gram, samples = self.columns.gram, self.columns.rows
        residuals = None
        if self.targets is not None and samples is not None:
            residuals = self.targets - part @ (samples[used] if few else samples)
        if gram is None:
            assert residuals is not None
            assert samples is not None
            return residuals @ samples.T, residuals
        return self.correlations - part @ (gram[used] if few else gram), residuals

    def threshold(self, theta: np.ndarray) -> np.ndarray:
        """c + θω, (R, d)."""
        return self.slope if self.omega is None else self.slope + theta[:, None] * self.omega

    def working_sets(
        self, weights: np.ndarray, slopes: np.ndarray, theta: np.ndarray, most: int, step: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The coordinates of each row's next problem: those in use, and as many more that exceed c most.

        Returns:
          their numbers (R, k), which of the k count (R, k), and the rows that are worth going on with (R,).
        """
        threshold = self.threshold(theta)
        score = (np.abs(slopes) - threshold) / self.columns.norms
        violated = np.abs(slopes) > threshold * (1.0 + _VIOLATED)
        used = weights != 0.0
        used |= self.slope == 0.0 if self.omega is None else (self.slope == 0.0) & ~self._bounded()
        if self.support is not None:
            used, violated = used & self.support, violated & self.support
            score = np.where(self.support, score, -np.inf)
        count = used.sum(axis=1)
        fits = count <= most
        if step > 0:
            # What the first set misses says little, what the second one misses nearly all: about half of it stays.
            missed = np.count_nonzero(violated & ~used, axis=1)
            hopeful = (step == 1) | self.columns.patient | (count + (missed + 1) // 2 <= most)
            fits &= (missed > 0) & hopeful
        size = np.minimum(np.maximum(2 * count, _FIRST_SIZE), max(most, 1))
        width = min(max(int(size[fits].max(initial=1)), 1), score.shape[1])
        score = np.where(used, np.inf, score)
        if width < score.shape[1]:
            sets = np.argpartition(-score, width - 1, axis=1)[:, :width]
        else:
            sets = np.broadcast_to(np.arange(width), score.shape)
        picked = np.take_along_axis(score, sets, axis=1)
        order = np.argsort(-picked, axis=1)
        sets, picked = np.take_along_axis(sets, order, axis=1), np.take_along_axis(picked, order, axis=1)
        return sets, (np.arange(width) < size[:, None]) & (picked > -np.inf), fits

    def _bounded(self) -> np.ndarray:
        assert self.omega is not None
        return (self.omega > 0.0) & np.isfinite(self.radius)[:, None]

    def solve_on(
        self, sets: np.ndarray, inside: np.ndarray, weights: np.ndarray, theta: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows solved on their working sets: w, (R, d), in the ball; θ; and which of them are."""

        def pick(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(values, sets, axis=1)

        problems = Subproblems(
            self.columns.blocks(sets, inside),
            pick(self.correlations),
            pick(self.slope),
            pick(self.curvature),
            pick(self.knot),
            None if self.omega is None else pick(self.omega),
            self.radius,
            inside,
        )
        points, theta, found = solve_subproblems(problems, pick(weights), theta)
        new = np.zeros_like(weights)
        np.put_along_axis(new, sets, np.where(inside, points, 0.0), axis=1)
        return self.inside(new), theta, found

    def gap(
        self, weights: np.ndarray, slopes: np.ndarray, residuals: np.ndarray | None, theta: np.ndarray
    ) -> np.ndarray:
        """The relative gap that y = f (t − Kw) proves, f the largest factor that makes it feasible, (R,).

            P − D = (1 − f)² ½‖t − Kw‖² + [h(w) + g*(f s) − f sᵀw],    s = Kᵀ(t − Kw)

        g*(s) = min over θ of κθ + Σ h*(soft(s, θω)); any θ bounds it, so the solver's own and the least one that is
        allowed will do. A coordinate with c = a = 0 outside the ball demands s_j = 0: what is left of it counts over
        weights of the present size.
        """
        size = np.abs(weights)
        value = np.sum(self.slope * size + self.curvature * np.maximum(size - self.knot, 0.0) ** 2, axis=1)
        if residuals is not None:
            square = np.einsum("ij,ij->i", residuals, residuals)
        else:
            square = np.maximum(self.squares - np.sum(weights * (self.correlations + slopes), axis=1), 0.0)
        straight = self.curvature <= _FLAT
        bounded = None if self.omega is None else self._bounded()
        straight_free = straight if bounded is None else straight & ~bounded
        if self.support is not None:
            slopes = np.where(self.support, slopes, 0.0)
        flat = straight_free & (self.slope == 0.0)
        reach = np.abs(slopes)
        fit = np.where(
            straight_free & ~flat & (reach > self.slope), self.slope / np.where(reach > 0.0, reach, 1.0), 1.0
        )
        factor = fit.min(axis=1, initial=1.0)
        reach = factor[:, None] * np.where(flat, 0.0, reach)
        conjugate = self._support_function(reach, straight, bounded, theta)
        pairing = factor * np.sum(np.where(flat, 0.0, slopes * weights), axis=1)
        gap = np.maximum(value + conjugate - pairing, 0.0) + 0.5 * (1.0 - factor) ** 2 * square
        if flat.any():
            room = 1.0 + size + size.max(axis=1, keepdims=True)
            gap = gap + np.sum(np.where(flat, factor[:, None] * np.abs(slopes) * room, 0.0), axis=1)
        primal = value + 0.5 * square
        gap = np.minimum(np.where(np.isnan(gap), np.inf, gap), primal)  # y = 0 proves as much as P itself
        scale = np.maximum(primal, CANONICAL_FLOOR * self.squares)
        return np.where(gap == 0.0, 0.0, gap / np.where(scale > 0.0, scale, 1e-300))

    def _support_function(
        self, reach: np.ndarray, straight: np.ndarray, bounded: np.ndarray | None, theta: np.ndarray
    ) -> np.ndarray:
        """κθ + Σ h*(soft(s, θω)) at the better of two θ, (R,); h*(s) = b e + e²/(4a) with e = (|s| − c)₊."""

        def value(level: np.ndarray) -> np.ndarray:
            excess = reach - self.slope
            if bounded is not None and self.omega is not None:
                excess = excess - np.where(bounded, level[:, None] * self.omega, 0.0)
            excess = np.where(straight, 0.0, np.maximum(excess, 0.0))
            terms = excess * (self.knot + excess / (4.0 * np.where(straight, 1.0, self.curvature)))
            cost = np.sum(terms, axis=1)
            return cost if bounded is None else cost + level * np.where(np.isfinite(self.radius), self.radius, 0.0)

        if bounded is None or self.omega is None:
            return value(np.zeros(reach.shape[0]))
        demand = np.where(bounded & straight, (reach - self.slope) / np.where(bounded, self.omega, 1.0), 0.0)
        least = np.maximum(demand.max(axis=1), 0.0) * (1.0 + 1e-15)
        return np.minimum(value(least), value(np.maximum(least, np.where(np.isfinite(self.radius), theta, 0.0))))
