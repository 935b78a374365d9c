"""The penalty weight α of a fit: the largest that means anything, and the one that gives a wanted sparsity."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from simjax._checks import float_array
from simjax.rows.attempts import Start
from simjax.rows.memory import row_blocks
from simjax.rows.options import SolveOptions
from simjax.rows.penalty_range import slope_factor
from simjax.rows.solution import dense_rows
from simjax.rows.sparsity_search import search_alpha
from simjax.rows.workspace import Workspace
from simjax.sim.options import PlanOptions
from simjax.sim.plan import Plan
from simjax.sim.result import FitResult
from simjax.sim.solve_plan import fit_plan
from simjax.states.kinds import AnyStates

_SLACK = 2e-3  # of the weights that sparsity is counted against: a search that is nearer ends


def fit_to_sparsity(states: AnyStates, stated: PlanOptions, sparsity: Any, options: SolveOptions) -> FitResult:
    """The fit of `stated` with the α at which the model has the sparsity that is asked for, or a little more.

    Raises:
      TypeError, ValueError: for a sparsity outside of [0, 1), or a fit in which α is no way to one.
    """
    array = float_array("sparsity", sparsity)
    if array.ndim != 0 or not 0.0 <= float(array) < 1.0:
        raise ValueError(f"sparsity must be a number in [0, 1), got {sparsity!r}.")
    wanted = float(array)
    if not isinstance(stated.objective, str):
        raise ValueError("sparsity must be None with a penalty object, which brings its own weights.")
    if not stated.alpha_unstated:
        raise ValueError("fit takes either alpha or sparsity, for which it finds alpha; got both.")
    first = Plan.make(states, dataclasses.replace(stated, alpha=1.0))
    if first.rank is not None:
        raise ValueError("sparsity must be None for constraint=LowRank, whose A = L Rᵀ is dense.")
    largest = largest_alpha(first, options.max_memory, "sparsity cannot be met")
    if stated.objective == "perspective" and stated.mu is not None:
        largest *= largest  # the slope 2√(αμ) grows with the root of α
    workspace = Workspace(first.design)
    count = sparsity_reference(states)
    most = int(np.floor((1.0 - wanted) * count * (1.0 + 1e-12)))
    solves = 0

    def solve(alpha: float, near: FitResult | None) -> tuple[int, FitResult]:
        nonlocal solves
        plan = Plan.make(states, dataclasses.replace(stated, alpha=alpha), first)
        start = None
        if near is not None:
            solution = near.solutions[0]
            start = Start(dense_rows(solution.weights), solution.certificate.dual)
        found = fit_plan(plan, options.stage(f"fit-{solves:03d}"), workspace=workspace, start=start)
        solves += 1
        return found.model.nonzeros, found

    # At the largest α itself rounding decides; penalised biases and outputs refitted may leave nonzeros there.
    _, found = search_alpha(solve, largest * (1.0 + 1e-9), most, int(_SLACK * count))
    reached = {"asked": wanted, "reached": found.model.sparsity(count), "of": count}
    settings = {**found.settings, "sparsity": reached}
    model = dataclasses.replace(found.model, metadata={**found.model.metadata, "fit": settings})
    return dataclasses.replace(found, model=model, settings=settings)


def sparsity_reference(states: AnyStates) -> int:
    """What nonzeros are counted against: those of the baseline, or all weights of a model where there is none."""
    if states.baseline is not None:
        return states.baseline.nonzeros
    return (states.n + states.q) * (states.n + states.p)


def largest_alpha(plan: Plan, max_memory: float | None, problem: str) -> float:
    """The smallest α for which all weights are zero, of a plan with α = 1, times its weights where it has any.

    Args:
      problem: what the error begins with.

    Raises:
      ValueError: if there is none.
    """
    if plan.matching == "exact":
        raise ValueError(f"{problem} under matching='exact': which weights are zero does not depend on alpha.")
    source = plan.rows()
    blocks = row_blocks(source.count, source.design.shape, max_memory)
    largest = float(max(slope_factor(source.take(numbers)).max() for numbers in blocks))
    if not 0.0 < largest < np.inf:
        why = "no alpha makes all weights zero" if largest > 0.0 else "any alpha makes all weights zero"
        raise ValueError(f"{problem}, as {why} for objective {plan.settings['objective']!r} here.")
    return largest
