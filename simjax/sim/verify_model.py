"""`verify_model`: a model from a file held against the states it was fitted to."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from simjax._checks import positive_scalar
from simjax.implicit.model import ImplicitModel
from simjax.rows.certificate import certify
from simjax.rows.penalties import OBJECTIVES
from simjax.rows.status import row_status
from simjax.rows.verify import Verification, joined, sample_rows, verify_rows
from simjax.sim.options import CONSTRAINTS, PlanOptions
from simjax.sim.plan import Plan
from simjax.sim.supports import SUPPORTS
from simjax.states.kinds import AnyStates

_OF_THE_SOLVE = {"solver", "tol", "sparsity"}  # settings that do not say what is solved
# Models of version 0.1 lack the first three; only a fit to a sparsity has the last.
_MAY_LACK = {"constraint", "eta", "sample_weight", "sparsity"}


def verify_model(
    model: ImplicitModel,
    states: AnyStates,
    oracle: str = "clarabel",
    rows: int = 16,
    *,
    seed: int = 0,
    workers: int = 1,
) -> Verification:
    """Certify a fitted model against the states it was fitted to, and have an oracle solve a sample of rows again.

    The problem is stated anew from the fit settings in the model's metadata; nothing of the fit itself is needed.

    Args:
      model: a model from `fit`, possibly saved and loaded.
      states: the states of that fit.
      oracle, rows, seed, workers: as in `FitResult.verify`.

    Raises:
      ValueError: if the model does not say how it was fitted, or in terms that do not fit the states.
      OracleUnavailable: if the oracle's package or licence is missing.

    Examples:
      >>> import numpy as np, simjax
      >>> rng = np.random.default_rng(0)
      >>> weights = [rng.normal(size=shape) for shape in ((4, 3), (2, 4))]  # of a network 3-4-2
      >>> states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(50, 3)))
      >>> model = simjax.fit(states, "l1", alpha=0.1).model  # or ImplicitModel.load
      >>> simjax.verify_model(model, states, rows=2).ok  # needs the extra oracles
      True
    """
    settings = _fit_settings(model)
    arrays = [
        key
        for key in ("objective", "alpha", "mu", "constraint", "eta", "support", "sample_weight")
        if _is_description(key, settings.get(key))
    ]
    if arrays:
        raise ValueError(
            f"model was fitted with arrays or objects for {', '.join(arrays)}, which a model file only names; "
            f"use FitResult.verify where the fit was made."
        )
    tol = positive_scalar("tol of the fit", settings["tol"])
    # What models of version 0.1 do not state, they have by default.
    stated = {key: value for key, value in settings.items() if key not in _OF_THE_SOLVE}
    if "sample_weight" not in stated and stated["fit_intercept"] is True:
        stated["fit_intercept"] = "penalised"  # the only kind that version 0.1 had
    plan = Plan.make(states, PlanOptions(**stated))
    weights, intercept = plan.weights(model)
    problem = plan.rows_on_support(weights) if "support" in plan.refits else plan.rows()
    upper = np.arange(states.n + states.q)
    blocks = [(problem, weights, upper)]
    if "outputs" in plan.refits:
        blocks = [(problem, weights[: states.n], upper[: states.n])]
        blocks.append((plan.output_rows(weights, intercept), weights[states.n :], upper[states.n :]))
    chosen = sample_rows(upper.size, rows, seed)
    parts = []
    for problem, block, numbers in blocks:
        keep = np.flatnonzero(np.isin(numbers, chosen))
        if keep.size:
            own = None if intercept is None else intercept[numbers[keep]]
            certificate = certify(problem.take(keep), block[keep], intercept=own)
            status = row_status(certificate, tol, exact=problem.exact)
            parts.append(
                verify_rows(
                    problem.take(keep), block[keep], certificate, status, numbers[keep],
                    oracle=oracle, workers=workers, tol=tol, intercept=own,
                )
            )  # fmt: skip
    return joined(parts)


def _fit_settings(model: ImplicitModel) -> dict[str, Any]:
    """The settings of the fit that made the model, all of this version's; what else is called "fit" is refused."""
    settings = model.metadata.get("fit")
    if not isinstance(settings, dict):
        raise ValueError("model carries no fit settings in its metadata: it does not come from simjax.fit.")
    stated = {field.name for field in dataclasses.fields(PlanOptions)} | _OF_THE_SOLVE
    unknown, missing = sorted(set(settings) - stated), sorted(stated - set(settings) - _MAY_LACK)
    if unknown or missing:
        raise ValueError(
            "the fit settings in model's metadata are not those of this version's fit: "
            f"{', '.join(unknown) or 'none'} unknown, {', '.join(missing) or 'none'} missing."
        )
    return settings


def _is_description(key: str, value: Any) -> bool:
    """Whether a setting names an array or an object instead of holding it."""
    known = {"objective": OBJECTIVES, "constraint": CONSTRAINTS, "support": SUPPORTS}.get(key)
    return isinstance(value, str) and (known is None or value not in known)
