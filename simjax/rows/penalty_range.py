"""The range of α worth trying: from `alpha_max` on every weight of a row is zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from simjax._checks import choice, float_array
from simjax._typing import ArrayLike, MatrixLike
from simjax.rows.boxed import box_of, unboxed
from simjax.rows.constraints import Box
from simjax.rows.group_penalty import GroupL1, GroupPenalty
from simjax.rows.penalties import PiecewisePenalty
from simjax.rows.problem import RowProblem, prepared_samples, support_mask

_FAMILIES = ("l1", "elastic_net", "perspective", "ridge", "group_l1")


def alpha_max(
    design: MatrixLike,
    targets: MatrixLike,
    *,
    objective: str = "l1",
    mu: ArrayLike | None = None,
    loss_weight: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    groups: Any = None,
    constraint: Box | None = None,
    support: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    fit_intercept: bool = False,
) -> np.ndarray:
    """The smallest α of each row for which w = 0 is optimal, whatever the ball; `.max()` is that of all rows.

    That is so where |s_j| ≤ c_j(α) for every allowed j, with s = 2λΦᵀt and the slope c_j of the penalty at zero. A
    bound of zero holds the weights that s_j would move beyond it, whatever α.

    | objective     | penalty                          | c_j           | α_max = max over j  |
    |---------------|----------------------------------|---------------|---------------------|
    | "l1"          | `L1(α ω)`                        | α ω_j         | |s_j| / ω_j         |
    | "elastic_net" | `ElasticNet(α ω, mu)`, any mu    | α ω_j         | |s_j| / ω_j         |
    | "perspective" | `Perspective(α ω)`               | 2 α ω_j       | |s_j| / (2 ω_j)     |
    | "perspective" | `Perspective(α ω, mu)`           | 2 √(α ω_j μ)  | s_j² / (4 ω_j μ_j)  |
    | "ridge"       | `Ridge(α ω)`                     | 0             | ∞ unless s_j = 0    |
    | "group_l1"    | `GroupL1(α, groups, ω)`          | ‖s_g‖ ≤ α ω_g | ‖s_g‖ / ω_g over g  |

    Args:
      design: Φ, (m, d), an array or a matrix of scipy.sparse.
      targets: T, (m, R), one column per row.
      objective: "l1", "elastic_net", "perspective", "ridge" or "group_l1".
      mu: μ ≥ 0 of "perspective": a scalar, (d,) or (R, d); None for μ = α ω. The others do not depend on it.
      loss_weight: λ > 0, scalar or (R,).
      weights: ω ≥ 0, the part of each coordinate in α: a scalar, (d,) or (R, d), None for ones; for "group_l1" as in
        `GroupL1`, (G,), None for √|g|.
      groups: of "group_l1", as in `GroupL1`; the others have none.
      constraint: None, or a `Box` that allows w = 0; a ball changes nothing, whether in the box or alone.
      support: None, or a boolean mask (d,) or (R, d) of the entries that may be nonzero.
      sample_weight, fit_intercept: as in `solve_rows`.

    Returns:
      (R,): 0 where w = 0 is optimal for any α, ∞ where it is for none.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.

    Examples:
      >>> import numpy as np, simjax
      >>> design, targets = np.eye(2), np.array([[3.0], [-1.0]])
      >>> alpha = simjax.alpha_max(design, targets, loss_weight=0.5)
      >>> alpha
      array([3.])
      >>> simjax.solve_rows(design, targets, loss_weight=0.5, penalty=simjax.L1(alpha.max())).weights
      array([[0., 0.]])
    """
    design, targets, _ = prepared_samples(design, targets, sample_weight, fit_intercept)
    d, rows = design.shape[1], targets.shape[1]
    choice("objective", objective, _FAMILIES)
    loss_weight = float_array("loss_weight", loss_weight)
    if loss_weight.shape not in ((), (rows,)) or np.any(loss_weight <= 0.0):
        raise ValueError(f"loss_weight must be a positive scalar or ({rows},) array, got shape {loss_weight.shape}.")
    if (groups is None) == (objective == "group_l1"):
        raise ValueError(f"groups must be given for objective 'group_l1' and for no other, got {objective!r}.")
    mask = support_mask(support, rows, d)
    slopes = 2.0 * np.reshape(loss_weight, (-1, 1)) * (targets.T @ design)
    demand = np.abs(slopes)
    if constraint is not None:
        if not isinstance(constraint, Box):
            raise TypeError(f"constraint must be a Box or None, got {type(constraint).__name__}: leave out a ball.")
        demand = _unheld(slopes, demand, *constraint.sides(rows, d, mask))
    if mask is not None:
        demand = np.where(mask, demand, 0.0)
    if objective == "group_l1":
        penalty = GroupL1(1.0, groups, weights)
        if len(penalty.groups) != d:
            raise ValueError(f"groups must be of {d} columns, got {len(penalty.groups)}.")
        return _ratio(np.asarray(penalty.norms(demand)), np.asarray(penalty.level)).max(axis=1, initial=0.0)
    omega = _parameter("weights", 1.0 if weights is None else weights, rows, d)
    if objective == "ridge":
        omega = np.zeros_like(omega)
    elif objective == "perspective" and mu is None:
        omega = 2.0 * omega
    if objective == "perspective" and mu is not None:
        # α = s²/(4ωμ) as a product of ratios, so that no square leaves the range of float64.
        first, second = _ratio(0.5 * demand, omega), _ratio(0.5 * demand, _parameter("mu", mu, rows, d))
        with np.errstate(over="ignore"):
            value = np.where(demand == 0.0, 0.0, first) * np.where(demand == 0.0, 0.0, second)
    else:
        value = _ratio(demand, omega)
    return value.max(axis=1, initial=0.0)


def slope_factor(problem: RowProblem) -> np.ndarray:
    """The smallest number to multiply the penalty's slopes c by for which w = 0 is optimal, max_j |s_j| / c_j, (R,).

    For groups it is max_g ‖s_g‖ / β_g.

    With c proportional to α, as for a whole path (μ, where there is one, too), it is α_max in units of the α at hand.

    Raises:
      TypeError: for a penalty of the user's own, whose slope at zero is not known.
      ValueError: for a box that excludes zero.
    """
    penalty, box = unboxed(problem.penalty), box_of(problem.penalty)
    if not isinstance(penalty, PiecewisePenalty | GroupPenalty):
        raise TypeError(f"penalty must be one of simjax's, got {type(penalty).__name__}.")
    slopes = 2.0 * problem.loss_weight[:, None] * (problem.targets.T @ problem.design)
    demand = np.abs(slopes)
    if box is not None:
        demand = _unheld(slopes, demand, np.asarray(box.lower), np.asarray(box.upper))
    if problem.support is not None:
        demand = np.where(problem.support, demand, 0.0)
    if isinstance(penalty, GroupPenalty):
        return _ratio(np.asarray(penalty.norms(demand)), np.asarray(penalty.level)).max(axis=1, initial=0.0)
    return _ratio(demand, np.asarray(penalty.slope)).max(axis=1, initial=0.0)


def _unheld(slopes: np.ndarray, demand: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """What is demanded of the penalty where a bound of zero does not hold the weights already, (R, d)."""
    if np.any((lower > 0.0) | (upper < 0.0)):
        raise ValueError("constraint must allow weights of zero, lower <= 0 <= upper, for an alpha that makes them so.")
    return np.where(np.where(slopes > 0.0, upper, -lower) == 0.0, 0.0, demand)


def _ratio(demand: np.ndarray, share: np.ndarray) -> np.ndarray:
    """demand / share, (R, d): 0 where nothing is demanded, else ∞ where the share is 0."""
    with np.errstate(over="ignore"):
        quotient = demand / np.where(share > 0.0, share, 1.0)
    return np.where(demand == 0.0, 0.0, np.where(share > 0.0, quotient, np.inf))


def _parameter(name: str, value: ArrayLike, rows: int, width: int) -> np.ndarray:
    parameter = float_array(name, value)
    if parameter.shape not in ((), (width,), (rows, width)) or np.any(parameter < 0.0):
        raise ValueError(
            f"{name} must be nonnegative: a scalar, ({width},) or ({rows}, {width}), got shape {parameter.shape}."
        )
    return parameter
