"""The arguments of `fit` that say what is solved: their defaults, and the checks that need more than one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from simjax._checks import choice, float_array, positive_scalar
from simjax._typing import ArrayLike
from simjax._values import Unstated
from simjax.rows.constraints import Box
from simjax.rows.penalties import OBJECTIVES, Penalty, PiecewisePenalty
from simjax.sim.low_rank import LowRank
from simjax.states.kinds import AnyStates
from simjax.states.states import Rescale

CONSTRAINTS = ("ball", "stacked_ball", "metzler")
REDUCTIONS = ("sum", "mean")
RESCALES = ("auto", "inner", "none")
UNITS = ("natural", "rescaled")
INTERCEPTS = ("none", "free", "penalised")
REFITS = ("support", "outputs")

_USES_MU = ("perspective", "elastic_net")
SYNONYMS = {"lasso": "l1", "elasticnet": "elastic_net", "l2": "ridge", "tikhonov": "ridge", "ols": "least_squares"}


_ALPHA = Unstated(1e-3)


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """The arguments of `fit` that say what is solved, and the one place of their defaults; `fit` explains them.

    Examples:
      >>> import numpy as np, simjax
      >>> rng = np.random.default_rng(0)
      >>> weights = [rng.normal(size=shape) for shape in ((4, 3), (2, 4))]  # of a network 3-4-2
      >>> states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(50, 3)))
      >>> simjax.fit(states, "elastic_net", alpha=0.1, mu=0.01, kappa=0.9).model.well_posedness <= 0.9
      True
    """

    objective: str | Penalty = "perspective"
    alpha: ArrayLike = _ALPHA
    mu: ArrayLike | None = None
    kappa: float | None = 0.99
    lambda_state: float = 0.1
    lambda_output: float = 0.1
    reduction: str = "sum"
    matching: str = "penalty"
    constraint: str | LowRank | Box = "ball"
    eta: ArrayLike | None = None
    support: str | ArrayLike = "auto"
    rescale: Rescale = "auto"
    units: str = "natural"
    sample_weight: ArrayLike | None = None
    fit_intercept: bool | str = "auto"
    refit: str | Sequence[str] | None = None

    @property
    def alpha_unstated(self) -> bool:
        """Whether alpha was left to its default."""
        return isinstance(self.alpha, Unstated)


def check_low_rank(rank: int, states: AnyStates, options: PlanOptions) -> None:
    if rank > states.n:
        raise ValueError(f"constraint=LowRank(rank) needs a rank of at most the {states.n} states, got {rank}.")
    mu = 0.0 if options.mu is None else options.mu
    if not isinstance(options.objective, str) or np.ndim(options.alpha) or np.ndim(mu):
        raise ValueError("constraint=LowRank needs an objective by name and scalar alpha and mu: L is no part of A.")
    support = options.support
    if not (isinstance(support, str) and support in ("auto", "full")):
        raise ValueError(f"support must be 'auto' or 'full' for constraint=LowRank, got {as_json(support)!r}.")
    if options.refit is not None:
        raise ValueError(f"refit must be None for constraint=LowRank, got {options.refit!r}.")


def checked_box(box: Box, states: AnyStates, intercept: str) -> Box:
    """A box for all rows of a model, which allows each entry to be zero.

    Raises:
      ValueError: if it does not fit the model, excludes zero or brings a ball.
    """
    if box.ball is not None:
        raise ValueError("constraint must be a Box without a ball: kappa is that of A.")
    lower, upper = box.sides(states.n + states.q, states.n + states.p + int(intercept == "penalised"))
    if np.any(lower > 0.0) or np.any(upper < 0.0):
        raise ValueError(
            "constraint must be a Box that allows zero, lower <= 0 <= upper, as the weights of a model are."
        )
    return box


def checked_kappa(kappa: Any, constraint: str) -> float | None:
    if kappa is None:
        return None
    if isinstance(kappa, str):
        numbers = "below 1" if constraint == "metzler" else "in (0, 1)"
        raise TypeError(f"kappa must be a number {numbers}, or None for no bound, got {kappa!r}.")
    if constraint != "metzler":
        return positive_scalar("kappa", kappa, below=1.0)
    array = float_array("kappa", kappa)
    if array.ndim != 0 or not float(array) < 1.0:
        raise ValueError(f"kappa must be a number below 1 for constraint='metzler', got {kappa!r}.")
    return float(array)


def checked_eta(eta: Any, constraint: str, n: int) -> np.ndarray:
    if eta is None:
        return np.ones(n)
    if constraint != "metzler":
        raise ValueError(f"eta must be None for constraint={constraint!r}: only 'metzler' has weights.")
    array = float_array("eta", eta)
    if array.shape != (n,) or np.any(array <= 0.0):
        raise ValueError(f"eta must be ({n},) positive numbers, got shape {array.shape}.")
    return array


def checked_intercept(fit_intercept: Any, states: AnyStates) -> str:
    """Which of `INTERCEPTS` the argument asks for, of these states."""
    if isinstance(fit_intercept, str) and fit_intercept == "penalised":
        return "penalised"
    if isinstance(fit_intercept, str) and fit_intercept == "auto":
        return "free" if states.has_biases else "none"
    if not isinstance(fit_intercept, bool | np.bool_):
        raise ValueError(f"fit_intercept must be True, False, 'auto' or 'penalised', got {fit_intercept!r}.")
    return "free" if fit_intercept else "none"


def checked_penalty(options: PlanOptions, states: AnyStates, intercept: str) -> Penalty:
    objective, alpha, mu = options.objective, options.alpha, options.mu
    if isinstance(objective, str):
        choice("objective", objective, OBJECTIVES, synonyms=SYNONYMS)
        if mu is not None and objective not in _USES_MU:
            raise ValueError(f"mu must be None for objective {objective!r}, which has no second weight; got {mu!r}.")
        alpha = _checked_weight("alpha", alpha, states, intercept)
        if mu is not None:
            mu = _checked_weight("mu", mu, states, intercept)
        return OBJECTIVES[objective](alpha, mu)
    if isinstance(objective, type) or not any(hasattr(objective, word) for word in ("value", "prox")):
        name = getattr(objective, "__name__", None)
        got = repr(objective) if name is None else f"{name} itself, which makes them: call it, as in {name}(1e-3)"
        raise TypeError(f"objective must be one of {', '.join(map(repr, OBJECTIVES))} or a penalty object, got {got}.")
    if mu is not None or not isinstance(alpha, Unstated):
        raise ValueError("alpha and mu must be left alone with a penalty object, which brings its own weights.")
    if not isinstance(objective, PiecewisePenalty):
        return objective
    return _penalty_of_columns(objective, states, intercept)


def _penalty_of_columns(penalty: PiecewisePenalty, states: AnyStates, intercept: str) -> PiecewisePenalty:
    """The penalty, but for the column that may be there for a free intercept and must be zero then."""
    knot = np.asarray(penalty.knot)
    if intercept == "free" and knot.shape[-1:] == (states.n + states.p + 1,):
        knot = knot[..., :-1]  # says nothing where slope and curvature are zero
    given = {"slope": penalty.slope, "curvature": penalty.curvature, "knot": knot}
    checked = {name: _checked_weight(f"objective.{name}", value, states, intercept) for name, value in given.items()}
    whole = all(np.shape(checked[name]) == np.shape(getattr(penalty, name)) for name in given)
    return penalty if whole else PiecewisePenalty(**checked)


def _checked_weight(name: str, value: Any, states: AnyStates, intercept: str) -> Any:
    """The weight as it was given, but for the zero that may be said for a free intercept."""
    penalised = intercept == "penalised"
    rows, width = states.n + states.q, states.n + states.p + int(penalised)
    d = "d = n + p + 1" if penalised else "d = n + p"
    expected = f"a number >= 0, or an array of them of shape (d,) = ({width},) or (n + q, d) = ({rows}, {width}), {d}"
    if value is None or isinstance(value, str):
        raise TypeError(f"{name} must be {expected}; got {value!r}.")
    array = float_array(name, value)
    shape = array.shape
    if intercept == "free" and shape in ((width + 1,), (1, width + 1), (rows, width + 1)):
        if np.any(array[..., -1] != 0.0):
            raise ValueError(
                f"{name} must be 0 in its last column, {name}[..., n + p], as the intercept is free, or have none; to "
                "penalise the intercept, say fit_intercept='penalised'."
            )
        return array[..., :-1]
    if shape not in ((), (1,), (width,), (1, 1), (1, width), (rows, 1), (rows, width)):
        raise ValueError(f"{name} must be {expected}; got shape {shape}.")
    return value


def checked_refits(refit: Any) -> tuple[str, ...]:
    if refit is not None and not isinstance(refit, str) and not isinstance(refit, Iterable):
        raise TypeError(f"refit must be None, 'support', 'outputs' or a sequence of these, got {refit!r}.")
    refits = () if refit is None else (refit,) if isinstance(refit, str) else tuple(refit)
    for name in refits:
        choice("refit", name, REFITS)
    return refits


def as_json(value: Any) -> Any:
    """An argument as a JSON value; arrays and objects are only named."""
    if value is None or isinstance(value, str):
        return value
    if np.ndim(value):
        return f"array {np.shape(value)}"
    return type(value).__name__ if callable(getattr(value, "prox", None)) else float(value)
