"""RowProblem: a block of independent rows over one shared design.

penalised   min_w  λ ‖t − Φw‖² + h(w)          s.t.  w in the ball and the support     (SIM paper, eq. 7)
exact       min_w  h(w)   s.t.  Φw = t,              w in the ball and the support     (SIM paper, eq. 2b–2c)

Samples with weights, and rows with a free intercept, come down to the same: see `centring`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse

from simjax._checks import boolean, choice, float_array, matrix, plain_array, refuse_traced
from simjax._frames import check_names, check_same_index, column_names, is_series
from simjax._values import Value
from simjax.rows.arrays import pytree
from simjax.rows.boxed import BoxedPenalty
from simjax.rows.centring import Centring, checked_sample_weight, weighted_and_centred
from simjax.rows.constraints import Box, Constraint, Free, L1Ball, MetzlerRow, RowBound
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.own_penalty import check_penalty
from simjax.rows.penalties import Penalty, PiecewisePenalty, take_rows
from simjax.rows.sparse_design import SparseDesign, sparse_design

MATCHINGS = ("penalty", "exact")

# An optimum below this share of λ‖t‖² is an exact fit as far as float64 can tell.
OBJECTIVE_FLOOR = 1e-12
CANONICAL_FLOOR = 0.5 * OBJECTIVE_FLOOR  # where λ‖t‖² is ½

# Outside of these, squares of numbers leave the range of float64.
TINY, HUGE = 1e-150, 1e151


@pytree("matching")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RowProblem(Value):
    """R rows with the same design. Build it with `row_problem`, which checks everything.

    Attributes:
      design: Φ, (m, d); a `SparseDesign` where a sparse matrix was given.
      targets: T, (m, R), one column per row.
      loss_weight: λ > 0, (R,); not used under exact matching.
      penalty: h, with parameters that broadcast against (R, d); with a box, a `BoxedPenalty` of it.
      bound: the constraint Σ ω|w| + δw ≤ κ of each row, or None.
      support: boolean (R, d), False where a weight must be zero; None for no restriction.
      matching: "penalty" or "exact".
      centring: what was taken out of design and targets for a free intercept; None without one.

    Examples:
      >>> import numpy as np, simjax
      >>> problem = simjax.row_problem(np.ones((5, 3)), np.ones((5, 2)), penalty=simjax.L1(1.0))
      >>> problem.count, problem.width, problem.exact
      (2, 3, False)
    """

    design: np.ndarray
    targets: np.ndarray
    loss_weight: np.ndarray
    penalty: Penalty
    bound: RowBound | None = None
    support: np.ndarray | None = None
    matching: str = "penalty"
    centring: Centring | None = None

    @property
    def count(self) -> int:
        return self.targets.shape[1]

    @property
    def width(self) -> int:
        return self.design.shape[1]

    @property
    def exact(self) -> bool:
        return self.matching == "exact"

    def part(self, index: np.ndarray) -> RowProblem:
        """The problem of the rows in `index`: as `RowSource.part`, for rows that are there."""
        return self.take(index)

    def take(self, index: np.ndarray) -> RowProblem:
        """The problem of the rows in `index`."""
        return dataclasses.replace(
            self,
            targets=self.targets[:, index],
            loss_weight=self.loss_weight[index],
            penalty=take_rows(self.penalty, index),
            bound=None if self.bound is None else self.bound.take(index),
            support=None if self.support is None else self.support[index],
            centring=None if self.centring is None else self.centring.take(index),
        )


def objective_floor(problem: RowProblem) -> np.ndarray:
    """What an objective is measured against at the least, (R,): `OBJECTIVE_FLOOR` of λ‖t‖², the objective of w = 0."""
    if problem.exact:
        return np.zeros(problem.count)
    return OBJECTIVE_FLOOR * problem.loss_weight * np.sum(problem.targets**2, axis=0)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RowSource(Value):
    """Rows that are made when they are asked for, so that what each row has of its own need not exist all at once.

    Attributes:
      design: Φ, (m, d), of all rows.
      count: how many rows there are.
      matching: "penalty" or "exact".
      take: makes the `RowProblem` of the rows with given numbers (k,).
    """

    design: np.ndarray
    count: int
    matching: str
    take: Callable[[np.ndarray], RowProblem]

    @property
    def width(self) -> int:
        return self.design.shape[1]

    @property
    def exact(self) -> bool:
        return self.matching == "exact"

    def part(self, index: np.ndarray) -> RowSource:
        """The rows in `index`, made when they are asked for as well."""
        return RowSource(self.design, index.size, self.matching, functools.partial(self._take_of, index))

    def _take_of(self, index: np.ndarray, numbers: np.ndarray) -> RowProblem:
        return self.take(index[numbers])

    def all(self) -> RowProblem:
        """Every row."""
        return self.take(np.arange(self.count))


def row_problem(
    design: Any,
    targets: Any,
    *,
    loss_weight: Any = 1.0,
    penalty: Penalty,
    constraint: Constraint | None = None,
    support: Any = None,
    matching: str = "penalty",
    sample_weight: Any = None,
    fit_intercept: bool = False,
) -> RowProblem:
    """Check the parts of a row problem and put them together.

    Args:
      design: Φ, (m, d), an array or a matrix of scipy.sparse.
      targets: (m, R), one column per row.
      loss_weight: λ > 0, scalar or (R,).
      penalty: h; scalar parameters, (d,) or (R, d).
      constraint: `L1Ball`, `MetzlerRow` (not with a penalty of your own), `Box`, `Free` or None (no constraint).
      support: None, or a boolean mask (d,) or (R, d) of the entries that may be nonzero.
      matching: "penalty" or "exact".
      sample_weight, fit_intercept: as in `prepared_samples`.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.

    Examples:
      >>> import simjax
      >>> problem = simjax.row_problem([[1.0]], [[3.0]], loss_weight=0.5, penalty=simjax.L1(1.0))
      >>> simjax.certify(problem, [[2.0]]).objective
      array([2.5])
    """
    check_names("support", support, column_names(design), "the design")
    design, targets, centring = prepared_samples(design, targets, sample_weight, fit_intercept)
    return rows_over(
        design,
        targets,
        centring=centring,
        loss_weight=loss_weight,
        penalty=penalty,
        constraint=constraint,
        support=support,
        matching=matching,
    )


def checked_samples(design: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Φ (m, d) and T (m, R) in float64, taken over and checked; a sparse Φ as a `SparseDesign`, a series T as one row.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.
    """
    if scipy.sparse.issparse(design):
        design = sparse_design("design", design, HUGE)
    else:
        design = matrix("design", design)
    if scipy.sparse.issparse(targets):  # residuals are dense, whatever the targets are
        targets = sparse_design("targets", targets, HUGE).toarray()
    if is_series(targets):  # of a single row
        targets = float_array("targets", targets)[:, None]
    targets = matrix("targets", targets)
    if targets.shape[0] != design.shape[0]:
        raise ValueError(
            f"targets must have as many rows as design ({design.shape[0]} samples), got shape {targets.shape}."
        )
    for name, array in (("design", design), ("targets", targets)):
        if not isinstance(array, SparseDesign):
            refuse_huge(name, array)
    return design, targets


def refuse_huge(name: str, array: np.ndarray) -> None:
    """Refuse entries whose squares overflow, and what is not finite.

    Raises:
      ValueError: naming the array.
    """
    largest = max(float(array.max()), -float(array.min()))  # of which NaN is one where there is any
    if not largest <= HUGE:
        raise ValueError(f"{name} must not exceed {HUGE:g}, beyond which squares overflow, got {largest:g}: rescale.")


def prepared_samples(
    design: Any, targets: Any, sample_weight: Any = None, fit_intercept: bool = False
) -> tuple[np.ndarray, np.ndarray, Centring | None]:
    """Φ and T in float64, checked, weighted and centred, and what was taken out of them.

    Args:
      sample_weight: v ≥ 0, (m,): the loss of sample i counts v_i times. None means ones.
      fit_intercept: whether each row has an intercept, free of penalty and constraint.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.
    """
    fit_intercept = boolean("fit_intercept", fit_intercept)
    check_same_index(design=design, targets=targets, sample_weight=sample_weight)
    design, targets = checked_samples(design, targets)
    sample_weight = checked_sample_weight(sample_weight, design.shape[0])
    return weighted_and_centred(design, targets, sample_weight, fit_intercept)


def rows_over(
    design: np.ndarray,
    targets: np.ndarray,
    *,
    centring: Centring | None = None,
    loss_weight: Any,
    penalty: Penalty,
    constraint: Constraint | None,
    support: Any,
    matching: str,
) -> RowProblem:
    """`row_problem` over samples that `prepared_samples` made: neither copied nor looked through again."""
    d, rows = design.shape[1], targets.shape[1]
    choice("matching", matching, MATCHINGS)
    loss_weight = float_array("loss_weight", loss_weight)
    if loss_weight.shape not in ((), (rows,)) or np.any(loss_weight <= 0.0):
        raise ValueError(
            f"loss_weight must be a positive scalar or ({rows},) array, got shape {loss_weight.shape}"
            + (f" with smallest entry {loss_weight.min():g}." if loss_weight.size else ".")
        )
    if isinstance(penalty, PiecewisePenalty):
        refuse_traced("penalty", penalty.slope, penalty.curvature, penalty.knot)
    check_penalty(penalty, rows, d)
    if isinstance(penalty, GroupPenalty):
        penalty = penalty.checked(rows, d)
    elif isinstance(penalty, PiecewisePenalty):
        penalty = PiecewisePenalty(
            *(parameter_rows(np.asarray(x), rows, d) for x in (penalty.slope, penalty.curvature, penalty.knot))
        )
    constraint = Free() if constraint is None else constraint
    if not isinstance(constraint, Constraint):
        number = isinstance(constraint, int | float | np.number)
        example = f" such as simjax.L1Ball({constraint})" if number else ""
        got = f"the class {constraint.__name__}" if isinstance(constraint, type) else type(constraint).__name__
        raise TypeError(f"constraint must be an L1Ball{example}, a MetzlerRow, a Box, Free or None, got {got}.")
    check_groups(penalty, constraint)
    if isinstance(constraint, MetzlerRow) and not isinstance(penalty, PiecewisePenalty):
        raise ValueError(
            f"constraint must not be a MetzlerRow with a penalty of your own, {type(penalty).__name__}: there is no "
            "certificate for it; use one of simjax's penalties."
        )
    mask = support_mask(support, rows, d)
    bound = constraint.bound(rows, d, mask)
    if bound is not None:
        refuse_traced("constraint", bound.omega, bound.radius)
    if isinstance(constraint, Box):
        penalty = BoxedPenalty(penalty, *constraint.sides(rows, d, mask))
    return RowProblem(
        design=design,
        targets=targets,
        loss_weight=np.broadcast_to(loss_weight, (rows,)).copy(),
        penalty=penalty,
        bound=bound,
        support=mask,
        matching=matching,
        centring=centring,
    )


def check_groups(penalty: Penalty, constraint: Any) -> None:
    """Raise a ValueError for groups in a constraint whose prox together with them is not known."""
    if isinstance(penalty, GroupPenalty) and not isinstance(constraint, L1Ball | Free):
        raise ValueError(
            f"constraint must not be a {type(constraint).__name__} with GroupL1: there is no certificate for the two "
            "together; use an L1Ball, or a penalty that is a sum over coordinates."
        )


def support_mask(support: Any, rows: int, width: int) -> np.ndarray | None:
    """A support mask as boolean (rows, width), or None where nothing is forbidden."""
    if support is None:
        return None
    mask = plain_array("support", support)
    if mask.dtype != np.bool_:
        raise TypeError(f"support must be a boolean mask, got dtype {mask.dtype}.")
    if mask.shape not in ((width,), (rows, width)):
        raise ValueError(f"support must have shape ({width},) or ({rows}, {width}), got {mask.shape}.")
    return None if mask.all() else np.broadcast_to(mask, (rows, width)).copy()


def parameter_rows(parameter: Any, rows: int, width: int) -> Any:
    """A penalty parameter as (1 or rows, 1 or width)."""
    expected = ((), (1,), (width,), (1, 1), (1, width), (rows, 1), (rows, width))
    if parameter.shape not in expected:
        raise ValueError(
            f"penalty parameters must be scalars, ({width},) or ({rows}, {width}), got shape {parameter.shape}."
        )
    return parameter.reshape((1,) * (2 - parameter.ndim) + parameter.shape)
