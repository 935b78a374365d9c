"""`fit`: from the states of a baseline network to a certified sparse implicit model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from simjax._checks import choice, float_array, positive_scalar
from simjax.certificate import Certificate
from simjax.constraints import L1Ball, feedforward_support, hollow_support
from simjax.model import ImplicitModel
from simjax.penalties import OBJECTIVES, NoPenalty, Penalty, check_penalty
from simjax.problem import MATCHINGS, row_problem
from simjax.solve import Solution, check_solver, solve_problem
from simjax.solvers.iterate import ProgressCallback
from simjax.states import States
from simjax.status import Status

SUPPORTS = ("full", "hollow", "feedforward")
REDUCTIONS = ("sum", "mean")
RESCALES = ("auto", "inner", "none")
UNITS = ("natural", "rescaled")
REFITS = ("support", "outputs")

_DEFAULT_ALPHA = 1e-3
_USES_MU = ("perspective", "elastic_net")


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A fitted model and the proof of every one of its rows.

    Attributes:
      model: the implicit model (A, B, C, D), in the units in which ‖A‖∞ ≤ kappa holds.
      certificate: one entry per row, (n + q,): the n rows of (A B) first, then the q rows of (C D).
      status: (n + q,), strings; see `Status`.
      weights: (n + q, d), the rows as they were solved, in the units of the fit (d = n + p, + 1 with an intercept).
      solutions: the solves in the order they ran; the last one to touch a row is the one certified here.
      settings: the arguments of the fit, as stored in the model's metadata.
    """

    model: ImplicitModel
    certificate: Certificate
    status: np.ndarray
    weights: np.ndarray
    solutions: tuple[Solution, ...]
    settings: dict[str, Any]

    @property
    def converged(self) -> bool:
        """Whether every row is certified to the tolerance."""
        return bool(np.all(self.status == Status.SOLVED))

    @property
    def seconds(self) -> float:
        """Wall time of all solves, compilation included."""
        return sum(solution.seconds for solution in self.solutions)

    def summary(self) -> str:
        """A few lines for a person: the model, what ran, how many rows are certified, and how well."""
        model = self.model
        total = model.n * (model.n + model.p) + model.q * (model.n + model.p)
        parts = [
            f"model           n={model.n}, p={model.p}, q={model.q}, activation {model.activation}",
            f"nonzeros        {model.nonzeros} of {total}",
            f"well-posedness  ‖A‖∞ = {model.well_posedness:.6f}",
        ]
        for number, solution in enumerate(self.solutions, start=1):
            if len(self.solutions) > 1:
                parts.append(f"-- solve {number} of {len(self.solutions)}")
            parts.append(solution.summary())
        return "\n".join(parts)


def fit(
    states: States,
    objective: str | Penalty = "perspective",
    *,
    alpha: Any = _DEFAULT_ALPHA,
    mu: Any = None,
    kappa: float | None = 0.99,
    lambda_state: float = 0.1,
    lambda_output: float = 0.1,
    reduction: str = "sum",
    matching: str = "penalty",
    support: Any = "hollow",
    rescale: str = "auto",
    units: str = "natural",
    fit_intercept: bool = False,
    refit: str | Sequence[str] | None = None,
    solver: str = "auto",
    tol: float = 1e-6,
    max_iters: int = 20_000,
    progress: ProgressCallback | None = None,
) -> FitResult:
    """Fit an implicit model x = φ(Ax + Bu), ŷ = Cx + Du to the states of a baseline (SIM paper, eq. 2 and 7).

        min  Σ h(A B C D) + λ₁‖Z − (AX + BU)‖² + λ₂‖Ŷ − (CX + DU)‖²   s.t.  ‖A‖∞ ≤ κ

    Every row of (A B) and (C D) is an independent convex problem over the same design, and each comes back certified.

    Args:
      states: what the baseline did on m inputs.
      objective: "perspective", "l1", "elastic_net", "ridge", "least_squares", or a penalty object.
      alpha: weight of the penalty (β of the paper for "l1"): a scalar, one per coordinate (d,), or (n + q, d), with
        d = n + p (+ 1 with an intercept). Not used with a penalty object, which brings its own.
      mu: second weight of "perspective" (of Σt) and "elastic_net" (of w²); None means mu = alpha.
      kappa: bound on ‖A‖∞, in (0, 1); None removes the constraint.
      lambda_state, lambda_output: λ₁ and λ₂ > 0; not used under exact matching.
      reduction: "sum" is the paper's loss; "mean" divides it by m, so that one alpha serves every m.
      matching: "penalty" (eq. 7) or "exact" (eq. 2b–2c).
      support: which entries of A may be nonzero: "full", "hollow" (A_ii = 0), "feedforward" (from earlier layers only;
        needs layer sizes), or a boolean mask of shape (n, d) for (A B), or (n + q, d) for all rows.
      rescale: "inner" scales hidden-to-hidden weights so that the baseline itself satisfies ‖A‖∞ ≤ κ; "none" does not;
        "auto" is "inner" where the states know a layered, positively homogeneous network. Plain arrays stay as they are.
      units: where states are rescaled, "natural" keeps loss and penalty in the units of the unscaled network and only
        the ball sees the rescaled A; "rescaled" measures all three in rescaled units, as the paper does.
      fit_intercept: append a constant 1 to the inputs, as the paper does for biases; the model then carries b and c.
      refit: "support" solves again by least squares on the support found (debiasing), "outputs" fits (C D) to the
        states the fitted (A B) produces; a sequence does both in that order.
      solver, tol, max_iters, progress: as in `solve_rows`.

    Returns:
      A `FitResult`. Rows that miss `tol` carry another status than SOLVED, and a `ConvergenceWarning` is issued.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.
    """
    if not isinstance(states, States):
        raise TypeError(
            f"states must be simjax.States, got {type(states).__name__}; build one from arrays with States(...)."
        )
    penalty = _penalty(objective, alpha, mu)
    if kappa is not None:
        kappa = positive_scalar("kappa", kappa, below=1.0)
    lambda_state = positive_scalar("lambda_state", lambda_state)
    lambda_output = positive_scalar("lambda_output", lambda_output)
    choice("reduction", reduction, REDUCTIONS)
    choice("matching", matching, MATCHINGS)
    choice("rescale", rescale, RESCALES)
    choice("units", units, UNITS)
    refits = _refits(refit)
    check_solver(solver, matching)
    scale = states.scaling(rescale, kappa)
    mask = _support(support, states, fit_intercept)

    solve = _Rows(
        penalty=penalty,
        kappa=kappa,
        loss_weight=np.repeat([lambda_state, lambda_output], [states.n, states.q])
        / (states.m if reduction == "mean" else 1.0),
        matching=matching,
        solve={"solver": solver, "tol": tol, "max_iters": max_iters, "progress": progress},
    )
    if units == "rescaled":
        states, ball_scale = states.rescaled(scale) if np.any(scale != 1.0) else states, np.ones(states.n)
    else:
        ball_scale = scale
    n, q = states.n, states.q
    design = _design(states.activations, states.inputs, fit_intercept)
    targets = np.concatenate([states.preactivations, states.outputs], axis=1)

    everything = np.arange(n + q)
    solution = solve(design, targets, everything, mask, ball_scale)
    solutions, weights, certificate, status = (
        [solution],
        solution.weights,
        solution.certificate,
        solution.status,
    )
    if "support" in refits:
        solution = dataclasses.replace(solve, penalty=NoPenalty())(
            design, targets, everything, weights != 0.0, ball_scale
        )
        solutions.append(solution)
        weights, certificate, status = solution.weights, solution.certificate, solution.status

    def assemble(weights: np.ndarray) -> ImplicitModel:
        model = _model(weights, states, fit_intercept, settings)
        return model.scaled(ball_scale) if np.any(ball_scale != 1.0) else model

    settings = _settings(objective, alpha, mu, kappa, lambda_state, lambda_output, reduction, matching, support,
                         rescale, units, fit_intercept, refits, solver, tol)  # fmt: skip
    if "outputs" in refits:
        reached = assemble(weights).equilibrium(states.inputs) / ball_scale
        rows = everything[n:]
        solution = solve(
            _design(reached, states.inputs, fit_intercept),
            targets[:, n:],
            rows,
            None if mask is None else mask[n:],
            ball_scale,
        )
        solutions.append(solution)
        weights, status = weights.copy(), status.copy()
        weights[rows], status[rows] = solution.weights, solution.status
        certificate = _replace_rows(certificate, rows, solution.certificate)
    return FitResult(
        model=assemble(weights),
        certificate=certificate,
        status=status,
        weights=weights,
        solutions=tuple(solutions),
        settings=settings,
    )


def adaptive_weights(source: Any, *, epsilon: float = 0.05, exponent: float = 1.0) -> np.ndarray:
    """Penalty weights 1/(|W| + ε)^exponent from a first fit or from the baseline's own weights.

    Entries that were large pay little, entries that were zero pay most: `fit(states, alpha=1e-3 * adaptive_weights(…))`.

    Args:
      source: a `FitResult` (its rows, in the units of the fit), an `ImplicitModel` such as `states.baseline` (without
        biases), or an array (n + q, d).
      epsilon: ε > 0, in the units of the weights.
      exponent: > 0.

    Returns:
      (n + q, d).

    Raises:
      TypeError, ValueError: for anything else, or a model with biases, whose column has to be given as an array.

    Source: Zou, The adaptive lasso and its oracle properties (2006).
    """
    epsilon, exponent = positive_scalar("epsilon", epsilon), positive_scalar("exponent", exponent)
    if isinstance(source, FitResult):
        weights = source.weights
    elif isinstance(source, ImplicitModel):
        dense = source.to_dense()
        weights = np.block(
            [[np.asarray(dense.A), np.asarray(dense.B)], [np.asarray(dense.C), np.asarray(dense.D)]]
        )
        if dense.b is not None or dense.c is not None:
            offsets = [np.zeros(k) if v is None else v for v, k in ((dense.b, dense.n), (dense.c, dense.q))]
            weights = np.concatenate([weights, np.concatenate(offsets)[:, None]], axis=1)
    else:
        weights = float_array("source", source)
    if weights.ndim != 2:
        raise ValueError(
            f"source must be a FitResult, an ImplicitModel or an (n + q, d) array, got {weights.ndim}-D."
        )
    return 1.0 / (np.abs(weights) + epsilon) ** exponent


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What all solves of one fit share."""

    penalty: Penalty
    kappa: float | None
    loss_weight: np.ndarray
    matching: str
    solve: dict[str, Any]

    def __call__(
        self,
        design: np.ndarray,
        targets: np.ndarray,
        rows: np.ndarray,
        mask: np.ndarray | None,
        scale: np.ndarray,
    ) -> Solution:
        """Solve `rows` of the n + q; only the first n = scale.size of them are bound by the ball."""
        n = scale.size
        # ‖SAS⁻¹‖∞ ≤ κ is Σ_j |A_ij| / s_j ≤ κ / s_i.
        constraint = None
        if self.kappa is not None:
            radius = np.concatenate([self.kappa / scale, np.full(self.loss_weight.size - n, np.inf)])[rows]
            constraint = L1Ball(radius, size=n, weights=1.0 / scale) if np.isfinite(radius).any() else None
        whole = self.loss_weight.size
        penalty = self.penalty if rows.size == whole else self._penalty_of(rows, design.shape[1])
        problem = row_problem(
            design,
            targets,
            loss_weight=self.loss_weight[rows],
            penalty=penalty,
            constraint=constraint,
            support=mask,
            matching=self.matching,
        )
        return solve_problem(problem, **self.solve)

    def _penalty_of(self, rows: np.ndarray, width: int) -> Penalty:
        take = getattr(self.penalty, "rows", None)
        return self.penalty if take is None else take(rows)


def _penalty(objective: Any, alpha: Any, mu: Any) -> Penalty:
    if isinstance(objective, str):
        choice("objective", objective, OBJECTIVES)
        if mu is not None and objective not in _USES_MU:
            raise ValueError(
                f"mu must be None for objective {objective!r}, which has no second weight; got {mu!r}."
            )
        return OBJECTIVES[objective](alpha, mu)
    check_penalty(objective)
    if mu is not None or not (np.ndim(alpha) == 0 and alpha == _DEFAULT_ALPHA):
        raise ValueError(
            "alpha and mu must be left alone with a penalty object, which brings its own weights."
        )
    return objective


def _refits(refit: Any) -> tuple[str, ...]:
    refits = () if refit is None else (refit,) if isinstance(refit, str) else tuple(refit)
    for name in refits:
        choice("refit", name, REFITS)
    return refits


def _support(support: Any, states: States, fit_intercept: bool) -> np.ndarray | None:
    """The mask of all n + q rows, (n + q, d), or None for no restriction."""
    n, p, q = states.n, states.p, states.q
    width = n + p + int(fit_intercept)
    if isinstance(support, str):
        choice("support", support, SUPPORTS)
        if support == "full":
            return None
        if support == "hollow":
            mask = hollow_support(n, width - n)
        elif states.layer_sizes is None:
            raise ValueError("support='feedforward' needs states with layer_sizes; these have none.")
        else:
            mask = feedforward_support(states.layer_sizes, width - n)
    else:
        mask = np.asarray(support)
        if mask.dtype != np.bool_ or mask.shape not in ((n, width), (n + q, width)):
            raise ValueError(
                f"support must be one of {', '.join(map(repr, SUPPORTS))} or a boolean mask of shape {(n, width)} or "
                f"{(n + q, width)}; got {mask.dtype} of shape {mask.shape}."
            )
    if mask.shape[0] == n:
        mask = np.concatenate([mask, np.ones((q, width), dtype=bool)])
    return mask


def _design(activations: np.ndarray, inputs: np.ndarray, fit_intercept: bool) -> np.ndarray:
    parts = [activations, inputs]
    return np.concatenate([*parts, np.ones((inputs.shape[0], 1))] if fit_intercept else parts, axis=1)


def _model(
    weights: np.ndarray, states: States, fit_intercept: bool, settings: dict[str, Any]
) -> ImplicitModel:
    n, p = states.n, states.p
    upper, lower = weights[:n], weights[n:]
    return ImplicitModel(
        upper[:, :n],
        upper[:, n : n + p],
        lower[:, :n],
        lower[:, n : n + p],
        activation=states.activation,
        b=upper[:, -1] if fit_intercept else None,
        c=lower[:, -1] if fit_intercept else None,
        metadata={"fit": settings},
    )


def _replace_rows(certificate: Certificate, rows: np.ndarray, other: Certificate) -> Certificate:
    merged = {}
    for field in dataclasses.fields(Certificate):
        values = getattr(certificate, field.name).copy()
        values[rows] = getattr(other, field.name)
        merged[field.name] = values
    return Certificate(**merged)


def _settings(
    objective: Any, alpha: Any, mu: Any, kappa: Any, lambda_state: float, lambda_output: float, reduction: str,
    matching: str, support: Any, rescale: str, units: str, fit_intercept: bool, refits: tuple[str, ...], solver: str,
    tol: float,
) -> dict[str, Any]:  # fmt: skip
    """The arguments as JSON values; arrays are named by their shape."""

    def plain(value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value
        if np.ndim(value) == 0 and not callable(getattr(value, "prox", None)):
            return float(value)
        return f"array {np.shape(value)}" if np.ndim(value) else type(value).__name__

    return {
        "objective": plain(objective),
        "alpha": plain(alpha),
        "mu": plain(mu),
        "kappa": kappa,
        "lambda_state": lambda_state,
        "lambda_output": lambda_output,
        "reduction": reduction,
        "matching": matching,
        "support": support if isinstance(support, str) else f"mask {np.shape(support)}",
        "rescale": rescale,
        "units": units,
        "fit_intercept": fit_intercept,
        "refit": list(refits),
        "solver": solver,
        "tol": tol,
    }
