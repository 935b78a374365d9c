"""`path`: many fits that differ in one number, each begun where the one before ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from simjax._checks import float_array, positive_integer, positive_scalar
from simjax._typing import ArrayLike, Weights
from simjax._values import Value, html_table, text_table
from simjax.rows.attempts import Start
from simjax.rows.group_penalty import GroupL1
from simjax.rows.options import SolveOptions
from simjax.rows.solution import dense_rows
from simjax.rows.status import Status
from simjax.rows.workspace import Workspace
from simjax.sim.options import PlanOptions
from simjax.sim.plan import Plan
from simjax.sim.result import FitResult
from simjax.sim.solve_plan import fit_plan
from simjax.sim.sparsity import largest_alpha
from simjax.states.kinds import AnyStates

_PLAN_NAMES = {field.name for field in dataclasses.fields(PlanOptions)}
_SOLVE_NAMES = {field.name for field in dataclasses.fields(SolveOptions)}
_POINTS, _RATIO = 20, 1e-3
_ROWS = 1024  # whose targets are looked at together


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Path(Value):
    """The fits of a path, in the order of the values that were asked for.

    Attributes:
      parameter: what differs, "alpha" or "kappa".
      values: (k,).
      fits: k `FitResult`s, every row of each certified by itself.
      misfit: (k,), ‖T − ΦWᵀ‖² / ‖T‖² over all rows, in the units of the fit, with a free intercept about the means of
        the samples: what the models leave unexplained.

    Examples:
      >>> import numpy as np, simjax
      >>> rng = np.random.default_rng(0)
      >>> weights = [rng.normal(size=shape) for shape in ((4, 3), (2, 4))]  # of a network 3-4-2
      >>> states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(50, 3)))
      >>> path = simjax.path(states, "l1", alphas=[1.0, 0.1])
      >>> path.parameter, len(path.fits), path.misfit.shape
      ('alpha', 2, (2,))
    """

    parameter: str
    values: np.ndarray
    fits: tuple[FitResult, ...]
    misfit: np.ndarray

    @property
    def converged(self) -> bool:
        """Whether every row of every fit is certified to the tolerance."""
        return all(fit.converged for fit in self.fits)

    @property
    def nonzeros(self) -> np.ndarray:
        """Nonzero weights of each model, (k,)."""
        return np.array([fit.model.nonzeros for fit in self.fits])

    @property
    def seconds(self) -> float:
        """Wall time of all solves, compilation included."""
        return sum(fit.seconds for fit in self.fits)

    def table(self) -> str:
        """A line for each fit: the value, nonzeros, misfit, worst gap, rows certified, passes, seconds."""
        return text_table(*self._cells(), (10, 9, 10, 10, 11, 6, 8))

    def _repr_html_(self) -> str:
        return html_table(*self._cells())

    def _told(self) -> str:
        converged = sum(fit.converged for fit in self.fits)
        low, high = self.values.min(), self.values.max()
        count = f"{converged} of {len(self.fits)} fits certified in every row"
        return f"{self.parameter} from {low:g} to {high:g}, {count}"

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        rows = []
        for value, fit, misfit in zip(self.values, self.fits, self.misfit):
            certified = f"{np.count_nonzero(fit.status == Status.SOLVED)}/{fit.status.size}"
            passes = max(int(solution.passes.max(initial=0)) for solution in fit.solutions)
            gap = f"{fit.certificate.relative_gap.max():.1e}"
            numbers = [f"{value:.4g}", f"{fit.model.nonzeros}", f"{misfit:.3e}", gap, certified]
            rows.append([*numbers, f"{passes}", f"{fit.seconds:.2f}"])
        return [self.parameter, "nonzeros", "misfit", "worst gap", "certified", "passes", "seconds"], rows


def path(
    states: AnyStates,
    objective: str | GroupL1 = "perspective",
    *,
    alphas: Sequence[float] | None = None,
    kappas: Sequence[float] | None = None,
    points: int | None = None,
    ratio: float | None = None,
    alpha: ArrayLike = PlanOptions.alpha,
    alpha_weights: ArrayLike | None = None,
    mu_ratio: float | None = None,
    **options: Any,
) -> Path:
    """Fit at many penalty weights, or at many bounds κ, sharing the factorisation and starting each from the last.

    From the sparsest to the densest: the fits are made in falling order of alpha, or rising order of kappa.

    Args:
      states, objective: as in `fit`; of penalty objects only a `GroupL1`, whose alpha each of alphas multiplies.
      alphas: the penalty weights α > 0; or
      kappas: the bounds κ in (0, 1), for one `alpha`; or neither, for a grid over alpha.
      points: of the grid, α_max · ratio^(k/(points − 1)) for k = 0, …, points − 1, where α_max is the smallest α for
        which all weights of all rows are zero (see `alpha_max`): None means 20. Only without alphas and kappas.
      ratio: of the grid, its smallest α over its largest, in (0, 1): None means 1e-3. Only without alphas and kappas.
      alpha: the penalty weight of a path over kappas, as in `fit`; not used with alphas.
      alpha_weights: multiplies each of alphas, e.g. by `adaptive_weights(…)`: (d,) or (n + q, d).
      mu_ratio: μ/α for "perspective" and "elastic_net"; None means mu = alpha.
      options: the other arguments of `fit`, but for `mu`; a checkpoint has a folder for each fit, in the order in which
        they are made.

    Returns:
      A `Path`, in the order of the values given, that of the grid from the largest α to the smallest.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.

    Source: warm starts over α as in Friedman, Hastie, Tibshirani, Regularization paths for generalized linear models
    via coordinate descent (2010), and the geometric grid from α_max downwards.

    Examples:
      >>> import numpy as np, simjax
      >>> rng = np.random.default_rng(0)
      >>> weights = [rng.normal(size=shape) for shape in ((4, 3), (2, 4))]
      >>> states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(50, 3)))
      >>> path = simjax.path(states, "l1", points=3)
      >>> path.nonzeros[0], path.converged  # all weights are zero at the first alpha
      (np.int64(0), True)
    """
    if alphas is not None and kappas is not None:
        raise ValueError("path needs either alphas or kappas, got both.")
    own_grid = alphas is None and kappas is None
    if not own_grid and (points is not None or ratio is not None):
        raise ValueError("points and ratio are for a path's own grid: give them without alphas and kappas.")
    name = "alphas" if kappas is None else "kappas"
    values = np.zeros(0) if own_grid else _values(name, alphas if kappas is None else kappas)
    points = _POINTS if points is None else positive_integer("points", points)
    ratio = positive_scalar("ratio", _RATIO if ratio is None else ratio, below=1.0)
    groups = objective if isinstance(objective, GroupL1) else None
    if not isinstance(objective, str) and groups is None:
        raise TypeError(
            f"objective must be a name or a GroupL1, got {type(objective).__name__}, which brings its own weights."
        )
    if groups is not None and alpha_weights is not None:
        raise ValueError("alpha_weights must be left alone with a GroupL1, whose alpha has one for each group.")
    unknown = sorted(set(options) - ((_PLAN_NAMES | _SOLVE_NAMES) - {"mu", "shard"}))
    if unknown:
        raise TypeError(f"path got unknown arguments: {', '.join(unknown)}.")
    mu_ratio = None if mu_ratio is None else positive_scalar("mu_ratio", mu_ratio)
    weights = 1.0 if alpha_weights is None else float_array("alpha_weights", alpha_weights)
    if name == "kappas" and "kappa" in options:
        raise ValueError("kappa must be left alone on a path over kappas.")
    if name == "kappas" and alpha_weights is not None:
        raise ValueError("alpha_weights is for a path over alphas; over kappas, give alpha the array itself.")
    solve = SolveOptions(**{key: value for key, value in options.items() if key in _SOLVE_NAMES})
    stated = PlanOptions(objective, **{key: value for key, value in options.items() if key in _PLAN_NAMES})

    # All arguments are checked before the first solve.
    def plan_of(value: float, like: Plan | None) -> Plan:
        own: dict[str, Any] = {"alpha": value * weights} if name == "alphas" else {"alpha": alpha, "kappa": value}
        mu = None if mu_ratio is None else mu_ratio * np.asarray(own["alpha"])
        if groups is not None:  # whose own alpha is multiplied, or stays what it is
            own.pop("alpha")
            own["objective"] = groups.times(value) if name == "alphas" else groups
        return Plan.make(states, dataclasses.replace(stated, **own, mu=mu), like)

    solve.check(stated.matching)
    like = None
    if own_grid:
        like = plan_of(1.0, None)
        largest = largest_alpha(like, solve.max_memory, "path needs alphas or kappas")
        values = np.geomspace(largest, largest * ratio, points)
    plans: dict[int, Plan] = {}
    for position, value in enumerate(values.tolist()):
        plans[position] = like = plan_of(value, like)
    order = np.argsort(values)[:: -1 if name == "alphas" else 1]
    fits: dict[int, FitResult] = {}
    misfit = np.zeros(values.size)
    workspace, start = None, None
    with solve.holding_executor():
        for number, position in enumerate(order):
            plan = plans.pop(int(position))
            if workspace is None or workspace.design is not plan.design:  # κ can change the units of the fit
                workspace = Workspace(plan.design)
            result = fit_plan(plan, solve.stage(f"fit-{number:03d}"), workspace=workspace, start=start)
            fits[int(position)] = result
            misfit[position] = _misfit(plan, result.weights)
            first = result.solutions[0]
            start = Start(dense_rows(first.weights), first.certificate.dual)
    return Path(name[:-1], values, tuple(fits[k] for k in range(values.size)), misfit)


def _misfit(plan: Plan, weights: Weights) -> float:
    """‖T − ΦWᵀ‖² / ‖T‖² over all rows, some of them at a time."""
    left = whole = 0.0
    for first in range(0, weights.shape[0], _ROWS):
        numbers = np.arange(first, min(first + _ROWS, weights.shape[0]))
        targets, _ = plan.data.rows(numbers)
        left += np.sum((targets - (weights[numbers] @ plan.design.T).T) ** 2)
        whole += np.sum(targets**2)
    return float(left / max(whole, np.finfo(np.float64).tiny))


def _values(name: str, given: Sequence[float] | None) -> np.ndarray:
    """The alphas or kappas that were asked for, (k,), checked."""
    values = float_array(name, given)
    below = np.inf if name == "alphas" else 1.0
    if values.ndim != 1 or values.size == 0 or np.any(values <= 0.0) or np.any(values >= below):
        raise ValueError(f"{name} must be a sequence of numbers in (0, {below:g}), got {values!r}.")
    return values
