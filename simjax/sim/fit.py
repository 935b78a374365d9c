"""`fit`: from the states of a baseline network to a certified sparse implicit model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import scipy.sparse
from jax.sharding import Mesh

from simjax._checks import choice, float_array, positive_scalar
from simjax.implicit.model import ImplicitModel
from simjax.robustness.lipschitz import matrix_measure
from simjax.rows.certificate import Certificate, certify, joined_certificates
from simjax.rows.constraints import Constraint, L1Ball, MetzlerRow, feedforward_support, hollow_support
from simjax.rows.penalties import OBJECTIVES, NoPenalty, Penalty
from simjax.rows.problem import MATCHINGS, RowProblem, RowSource, row_problem, take_rows
from simjax.rows.solve import Solution, Start, Weights, Workspace, check_solver, dense_rows, solve_problem
from simjax.rows.progress import ProgressCallback
from simjax.rows.status import Status, row_status
from simjax.rows.verify import Verification, joined, sample_rows, verify_rows
from simjax.sim.low_rank import LowRank, reduced_rank_basis
from simjax.states.states import States
from simjax.states.streamed import StreamedStates, design_and_targets

SUPPORTS = ("auto", "full", "hollow", "feedforward")
CONSTRAINTS = ("ball", "stacked_ball", "metzler")
REDUCTIONS = ("sum", "mean")
RESCALES = ("auto", "inner", "none")
UNITS = ("natural", "rescaled")
REFITS = ("support", "outputs")

_DEFAULT_ALPHA = 1e-3
_USES_MU = ("perspective", "elastic_net")


class Source(NamedTuple):
    """Rows of a fit and the solve that certifies them."""

    solution: Solution
    rows: np.ndarray  # their numbers in the fit, (k,)
    numbers: np.ndarray  # their numbers in the solve, (k,)


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A fitted model and the proof of every one of its rows.

    Attributes:
      model: the implicit model (A, B, C, D), in the units in which ‖A‖∞ ≤ kappa holds.
      certificate: one entry per row, (n + q,): the n rows of (A B) first, then the q rows of (C D).
      status: (n + q,), strings; see `Status`.
      weights: (n + q, d), the rows as they were solved, in the units of the fit (d = n + p, + 1 with an intercept);
        CSR, like the model, where memory only allowed for blocks of rows.
      solutions: the solves in the order they ran; the last one to touch a row is the one certified here.
      settings: the arguments of the fit, as stored in the model's metadata.
      sources: for each block of rows, the solve that certifies them, their numbers here, and their numbers there.
      factors: L (n, r) and R (n, r) with A = L Rᵀ, in the units of the model, of a fit of low rank; otherwise None.
    """

    model: ImplicitModel
    certificate: Certificate
    status: np.ndarray
    weights: Weights
    solutions: tuple[Solution, ...]
    settings: dict[str, Any]
    sources: tuple[Source, ...] = ()
    factors: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def converged(self) -> bool:
        """Whether every row is certified to the tolerance."""
        return bool(np.all(self.status == Status.SOLVED))

    @property
    def seconds(self) -> float:
        """Wall time of all solves, compilation included."""
        return sum(solution.seconds for solution in self.solutions)

    def verify(self, oracle: str = "clarabel", rows: int = 16, *, seed: int = 0, workers: int = 1) -> Verification:
        """Have an interior-point oracle solve a random sample of the n + q rows again, and compare.

        Args:
          oracle: "clarabel" or "mosek".
          rows: how many rows; all of them if there are fewer.
          seed: of the sample.
          workers: processes over which the oracle spreads the rows.

        Raises:
          OracleUnavailable: if the oracle's package or licence is missing.
        """
        numbers = sample_rows(self.status.size, rows, seed)
        parts = []
        for source in self.sources:
            mine = np.flatnonzero(np.isin(source.rows, numbers))
            if mine.size:
                there = source.numbers[mine]
                first = int(source.rows[mine[0]] - there[0])
                parts.append(source.solution.verify_numbers(there, oracle=oracle, workers=workers, first=first))
        return joined(parts)

    def summary(self) -> str:
        """A few lines for a person: the model, what ran, how many rows are certified, and how well."""
        model = self.model
        total = model.n * (model.n + model.p) + model.q * (model.n + model.p)
        parts = [
            f"model           n={model.n}, p={model.p}, q={model.q}, activation {model.activation}",
            f"nonzeros        {model.nonzeros} of {total}",
            f"well-posedness  ‖A‖∞ = {model.well_posedness:.6f}",
        ]
        if self.factors is not None:
            L, _ = self.factors
            parts.insert(1, f"low rank        A = L Rᵀ, rank {L.shape[1]}, {np.count_nonzero(L)} nonzeros in L; the")
            parts[1] += " certificates of (A B) are those of L and B for this R"
        if self.settings["constraint"] == "metzler" and self.settings["eta"] is None:
            parts[-1] += f", μ∞(A) = {matrix_measure(model.to_dense().A):.6f}"
        for number, solution in enumerate(self.solutions, start=1):
            if len(self.solutions) > 1:
                parts.append(f"-- solve {number} of {len(self.solutions)}")
            parts.append(solution.summary())
        return "\n".join(parts)


def fit(
    states: States | StreamedStates,
    objective: str | Penalty = "perspective",
    *,
    alpha: Any = _DEFAULT_ALPHA,
    mu: Any = None,
    kappa: float | None = 0.99,
    lambda_state: float = 0.1,
    lambda_output: float = 0.1,
    reduction: str = "sum",
    matching: str = "penalty",
    constraint: str | LowRank = "ball",
    eta: Any = None,
    support: Any = "auto",
    rescale: str = "auto",
    units: str = "natural",
    fit_intercept: bool = False,
    refit: str | Sequence[str] | None = None,
    solver: str = "auto",
    tol: float = 1e-6,
    max_iters: int = 20_000,
    workers: int = 1,
    mesh: Mesh | None = None,
    max_memory: float | None = None,
    progress: ProgressCallback | None = None,
) -> FitResult:
    """Fit an implicit model x = φ(Ax + Bu), ŷ = Cx + Du to the states of a baseline (SIM paper, eq. 2 and 7).

        min  Σ h(A B C D) + λ₁‖Z − (AX + BU)‖² + λ₂‖Ŷ − (CX + DU)‖²   s.t.  ‖A‖∞ ≤ κ

    Every row of (A B) and (C D) is an independent convex problem over the same design, and each comes back certified.

    Args:
      states: what the baseline did on m inputs; `StreamedStates` where these samples do not fit in memory.
      objective: "perspective", "l1", "elastic_net", "ridge", "least_squares", or a penalty object.
      alpha: weight of the penalty (β of the paper for "l1"): a scalar, one per coordinate (d,), or (n + q, d), with
        d = n + p (+ 1 with an intercept). Not used with a penalty object, which brings its own.
      mu: second weight of "perspective" (of Σt) and "elastic_net" (of w²); None means mu = alpha.
      kappa: bound of the constraint, in (0, 1), for "metzler" any number below 1; None removes the constraint.
      lambda_state, lambda_output: λ₁ and λ₂ > 0; not used under exact matching.
      reduction: "sum" is the paper's loss; "mean" divides it by m, so that one alpha serves every m.
      matching: "penalty" (eq. 7) or "exact" (eq. 2b–2c).
      constraint: what kappa bounds, row by row: "ball" is ‖A‖∞ ≤ κ; "stacked_ball" ‖(A B)‖∞ ≤ κ; "metzler" is
        μ_η(A) = max_i a_ii + Σ_{j ≠ i} (η_j/η_i)|a_ij| ≤ κ, which lets a_ii go below −1 and is no less well-posed.
        `LowRank(r)` is A = L Rᵀ with ‖A‖∞ ≤ κ: R comes from a first fit, without a claim; the certificates of (A B) are
        those of L and B for this R (see `sim.low_rank`). It goes with a scalar alpha and support="auto" or "full".
      eta: η > 0, (n,), of "metzler", in the units of the model; None means ones.
      support: which entries of A may be nonzero: "full", "hollow" (A_ii = 0), "feedforward" (from earlier layers only;
        needs layer sizes), "auto" ("hollow" for balls, otherwise "full"), or a boolean mask of shape (n, d) for (A B),
        or (n + q, d) for all rows.
      rescale: "inner" scales hidden-to-hidden weights so that the baseline itself satisfies ‖A‖∞ ≤ κ; "none" does not;
        "auto" is "inner" where the states know a layered, positively homogeneous network. Plain arrays are
        left as they are.
      units: where states are rescaled, "natural" keeps loss and penalty in the units of the unscaled network and only
        the ball sees the rescaled A; "rescaled" measures all three in rescaled units, as the paper does.
      fit_intercept: append a constant 1 to the inputs, as the paper does for biases; the model then carries b and c.
      refit: "support" solves again by least squares on the support found (debiasing), "outputs" fits (C D) to the
        states the fitted (A B) produces (not from streamed states); a sequence does both in that order.
      solver, tol, max_iters, workers, mesh, max_memory, progress: as in `solve_rows`.

    Returns:
      A `FitResult`. Rows that miss `tol` carry another status than SOLVED, and a `ConvergenceWarning` is issued.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.
    """
    plan = Plan.make(
        states,
        objective,
        alpha=alpha,
        mu=mu,
        kappa=kappa,
        lambda_state=lambda_state,
        lambda_output=lambda_output,
        reduction=reduction,
        matching=matching,
        constraint=constraint,
        eta=eta,
        support=support,
        rescale=rescale,
        units=units,
        fit_intercept=fit_intercept,
        refit=refit,
    )
    check_solver(solver, matching, workers)
    return fit_plan(
        plan,
        solver=solver,
        tol=tol,
        max_iters=max_iters,
        workers=workers,
        mesh=mesh,
        max_memory=max_memory,
        progress=progress,
    )


def fit_plan(
    plan: Plan, *, workspace: Workspace | None = None, start: Start | None = None, **options: Any
) -> FitResult:
    """Solve what a plan states.

    Args:
      workspace, start: of the first solve, see `solve_problem`.
      options: of `solve_problem`.
    """
    if plan.rank is not None:
        return _fit_low_rank(plan, plan.rank, workspace, start, options)
    solutions = [solve_problem(plan.rows(), workspace=workspace, start=start, **options)]
    if "support" in plan.refits:
        solutions.append(solve_problem(plan.rows_on_support(solutions[-1].weights), workspace=workspace, **options))
    last, every = solutions[-1], np.arange(plan.states.n + plan.states.q)
    weights, certificate, status = last.weights, last.certificate, last.status
    sources = [Source(last, every, every)]
    if "outputs" in plan.refits:
        solutions.append(solve_problem(plan.output_rows(weights), **options))
        upper, rows = every[: plan.states.n], every[plan.states.n :]
        sources = [Source(last, upper, upper), Source(solutions[-1], rows, rows - plan.states.n)]
        last = solutions[-1]
        status = status.copy()
        status[rows] = last.status
        weights = _replace_weights(weights, rows, last.weights)
        certificate = _replace_rows(certificate, rows, last.certificate)
    settings = {**plan.settings, "solver": last.solver, "tol": last.tol}
    return FitResult(
        model=plan.model(weights, settings),
        certificate=certificate,
        status=status,
        weights=weights,
        solutions=tuple(solutions),
        settings=settings,
        sources=tuple(sources),
    )


def _fit_low_rank(
    plan: Plan, rank: int, workspace: Workspace | None, start: Start | None, options: dict[str, Any]
) -> FitResult:
    """A = L Rᵀ: R from a fit without a limit on the rank, then the rows of (L B) for that R; (C D) stay as they are."""
    n, every = plan.states.n, np.arange(plan.states.n + plan.states.q)
    first = solve_problem(plan.rows(), workspace=workspace, start=start, **options)
    design = plan.samples[0]
    basis = reduced_rank_basis(dense_rows(first.weights[:n])[:, :n], design[:, :n], rank)
    upper = solve_problem(plan.rows_of_low_rank(basis), **options)
    factor = dense_rows(upper.weights)
    weights = dense_rows(first.weights).copy()
    weights[:n] = np.concatenate([factor[:, :rank] @ basis.T, factor[:, rank:]], axis=1)
    certificate = joined_certificates([upper.certificate, first.certificate.take(every[n:])])
    settings = {**plan.settings, "solver": upper.solver, "tol": upper.tol}
    return FitResult(
        model=plan.model(weights, settings),
        certificate=certificate,
        status=np.concatenate([upper.status, first.status[n:]]),
        weights=weights,
        solutions=(first, upper),
        settings=settings,
        sources=(Source(upper, every[:n], every[:n]), Source(first, every[n:], every[n:])),
        factors=(plan.scale[:, None] * factor[:, :rank], basis / plan.scale[:, None]),
    )


def verify_model(
    model: ImplicitModel,
    states: States | StreamedStates,
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
    """
    settings = model.metadata.get("fit")
    if not isinstance(settings, dict):
        raise ValueError("model carries no fit settings in its metadata: it does not come from simjax.sim.fit.")
    arrays = [
        key
        for key in ("objective", "alpha", "mu", "constraint", "eta", "support")
        if _is_description(key, settings.get(key))
    ]
    if arrays:
        raise ValueError(
            f"model was fitted with arrays or objects for {', '.join(arrays)}, which a model file only names; "
            f"use FitResult.verify where the fit was made."
        )
    tol = settings["tol"]
    stated = {"constraint": "ball", "eta": None, **settings}  # models of version 0.1 have no others
    plan = Plan.make(states, **{key: value for key, value in stated.items() if key not in ("solver", "tol")})
    weights = plan.weights(model)
    problem = plan.rows_on_support(weights) if "support" in plan.refits else plan.rows()
    upper = np.arange(states.n + states.q)
    blocks = [(problem, weights, upper)]
    if "outputs" in plan.refits:
        blocks = [(problem, weights[: states.n], upper[: states.n])]
        blocks.append((plan.output_rows(weights), weights[states.n :], upper[states.n :]))
    chosen = sample_rows(upper.size, rows, seed)
    parts = []
    for problem, block, numbers in blocks:
        keep = np.flatnonzero(np.isin(numbers, chosen))
        if keep.size:
            certificate = certify(problem.take(keep), block[keep])
            status = row_status(certificate, tol, exact=problem.exact)
            parts.append(
                verify_rows(
                    problem.take(keep), block[keep], certificate, status, numbers[keep],
                    oracle=oracle, workers=workers, tol=tol,
                )
            )  # fmt: skip
    return joined(parts)


def _is_description(key: str, value: Any) -> bool:
    """Whether a setting names an array or an object instead of holding it."""
    known = {"objective": OBJECTIVES, "constraint": CONSTRAINTS, "support": SUPPORTS}.get(key)
    return isinstance(value, str) and (known is None or value not in known)


def adaptive_weights(source: Any, *, epsilon: float = 0.05, exponent: float = 1.0) -> np.ndarray:
    """Penalty weights 1/(|W| + ε)^exponent from a first fit or from the baseline's own weights.

    Large entries pay little, zero entries pay most: `fit(states, alpha=1e-3 * adaptive_weights(…))`.

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
        weights = dense_rows(source.weights)
    elif isinstance(source, ImplicitModel):
        dense = source.to_dense()
        weights = np.block([[np.asarray(dense.A), np.asarray(dense.B)], [np.asarray(dense.C), np.asarray(dense.D)]])
        if dense.b is not None or dense.c is not None:
            offsets = [np.zeros(k) if v is None else v for v, k in ((dense.b, dense.n), (dense.c, dense.q))]
            weights = np.concatenate([weights, np.concatenate(offsets)[:, None]], axis=1)
    else:
        weights = float_array("source", source)
    if weights.ndim != 2:
        raise ValueError(f"source must be a FitResult, an ImplicitModel or an (n + q, d) array, got {weights.ndim}-D.")
    return 1.0 / (np.abs(weights) + epsilon) ** exponent


@dataclasses.dataclass(frozen=True)
class Plan:
    """A fit as row problems: everything that follows from the states and the arguments, before any solve."""

    states: States | StreamedStates  # in the units of the fit
    scale: np.ndarray  # s, (n,): the model has x' = s x, and the ball sees A' = SAS⁻¹
    penalty: Penalty
    kappa: float | None
    constraint: str  # what kappa bounds; "ball" where the rank is bounded too
    rank: int | None  # of A
    eta: np.ndarray  # (n,)
    loss_weight: np.ndarray  # (n + q,)
    matching: str
    support: _Support
    fit_intercept: bool
    refits: tuple[str, ...]
    settings: dict[str, Any]

    @classmethod
    def make(
        cls, states: States | StreamedStates, objective: Any, *, alpha: Any, mu: Any, kappa: Any, lambda_state: Any,
        lambda_output: Any, reduction: str, matching: str, constraint: str | LowRank, eta: Any, support: Any,
        rescale: str, units: str, fit_intercept: bool, refit: Any,
    ) -> Plan:  # fmt: skip
        """Check every argument of `fit` and put them together."""
        if not isinstance(states, States | StreamedStates):
            raise TypeError(
                f"states must be simjax.States or StreamedStates, got {type(states).__name__}; "
                f"build one from arrays with States(...)."
            )
        penalty = _penalty(objective, alpha, mu)
        rank, named = None, constraint
        if isinstance(constraint, LowRank):
            rank, named = constraint.rank, f"LowRank({constraint.rank})"
            _check_low_rank(rank, states, objective, alpha, mu, support, refit)
            constraint = "ball"
        elif not isinstance(constraint, str):
            raise TypeError(f"constraint must be a name or LowRank(rank), got {type(constraint).__name__}.")
        choice("constraint", constraint, CONSTRAINTS)
        kappa = _bound(kappa, constraint)
        own_eta = _eta(eta, constraint, states.n)
        lambda_state = positive_scalar("lambda_state", lambda_state)
        lambda_output = positive_scalar("lambda_output", lambda_output)
        choice("reduction", reduction, REDUCTIONS)
        choice("matching", matching, MATCHINGS)
        choice("rescale", rescale, RESCALES)
        choice("units", units, UNITS)
        refits = _refits(refit)
        if "outputs" in refits and not isinstance(states, States):
            raise ValueError(
                "refit='outputs' needs the inputs of every sample, to find the states that the fitted (A B) produces, "
                "and streamed states do not keep them: pass States, e.g. of fewer samples, or another refit."
            )
        if isinstance(support, str) and choice("support", support, SUPPORTS) == "auto":
            support = "full" if constraint == "metzler" or rank is not None else "hollow"
        # Rescaled states help a bound on ‖A‖∞; one that is not positive has no rescaling to go with it.
        scale = states.scaling(cast(Any, rescale), kappa if kappa is None or kappa > 0.0 else None)
        allowed = _Support.make(support, states, fit_intercept)
        loss_weight = np.repeat([lambda_state, lambda_output], [states.n, states.q])
        if reduction == "mean":
            loss_weight = loss_weight / states.m
        settings = {
            "objective": _plain(objective),
            "alpha": _plain(alpha),
            "mu": _plain(mu),
            "kappa": kappa,
            "lambda_state": lambda_state,
            "lambda_output": lambda_output,
            "reduction": reduction,
            "matching": matching,
            "constraint": named,
            "eta": _plain(eta),
            "support": support if isinstance(support, str) else f"mask {np.shape(support)}",
            "rescale": rescale,
            "units": units,
            "fit_intercept": bool(fit_intercept),
            "refit": list(refits),
        }
        if units == "rescaled" and np.any(scale != 1.0):
            states, scale = states.rescaled(scale), np.ones(states.n)
        return cls(
            states=states,
            scale=scale,
            penalty=penalty,
            kappa=kappa,
            constraint=constraint,
            rank=rank,
            eta=own_eta,
            loss_weight=loss_weight,
            matching=matching,
            support=allowed,
            fit_intercept=bool(fit_intercept),
            refits=refits,
            settings=settings,
        )

    @functools.cached_property
    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Design and targets of all rows: the samples, or the few that streamed states compress them to."""
        if isinstance(self.states, StreamedStates):
            return self.states.compressed(self.fit_intercept)
        return design_and_targets(self.states, fit_intercept=self.fit_intercept)

    def rows(self) -> RowSource:
        """All n + q rows."""
        return self._source(*self.samples, np.arange(self.loss_weight.size), self.support.rows)

    def rows_on_support(self, weights: Weights) -> RowSource:
        """All rows by least squares on the support of `weights`: debiasing."""

        def support(index: np.ndarray) -> np.ndarray:
            return dense_rows(weights[index]) != 0.0

        return self._source(*self.samples, np.arange(self.loss_weight.size), support, NoPenalty())

    def output_rows(self, weights: Weights) -> RowSource:
        """The q rows of (C D), on the states that the (A B) in `weights` produces."""
        n = self.states.n
        assert isinstance(self.states, States)  # `make` refuses this refit of streamed states
        design, targets = self.samples[0].copy(), self.samples[1]
        design[:, :n] = self.model(weights, {}).equilibrium(self.states.inputs) / self.scale
        return self._source(design, targets, np.arange(n, self.loss_weight.size), self.support.rows)

    def rows_of_low_rank(self, basis: np.ndarray) -> RowProblem:
        """The n rows of (L B) for A = L Rᵀ with R = `basis` (n, r): see `simjax.sim.low_rank`."""
        design, targets = self.samples
        n, rank = self.states.n, basis.shape[1]
        constraint = None
        if self.kappa is not None:  # Σ_j |A_ij|/s_j ≤ Σ_k |L_ik| Σ_j |R_jk|/s_j ≤ κ/s_i
            reach = (np.abs(basis) / self.scale[:, None]).sum(axis=0)
            constraint = L1Ball(self.kappa / self.scale, size=rank, weights=np.where(reach > 0.0, reach, 1.0))
        return row_problem(
            np.concatenate([design[:, :n] @ basis, design[:, n:]], axis=1),
            targets[:, :n],
            loss_weight=self.loss_weight[:n],
            penalty=self.penalty,
            constraint=constraint,
            matching=self.matching,
        )

    def model(self, weights: Weights, settings: dict[str, Any]) -> ImplicitModel:
        """The rows (n + q, d) as a model in the units in which ‖A‖∞ ≤ kappa holds."""
        n, p = self.states.n, self.states.p
        upper, lower = weights[:n], weights[n:]
        model = ImplicitModel(
            upper[:, :n],
            upper[:, n : n + p],
            lower[:, :n],
            lower[:, n : n + p],
            activation=self.states.activation,
            b=dense_rows(upper[:, [-1]])[:, 0] if self.fit_intercept else None,
            c=dense_rows(lower[:, [-1]])[:, 0] if self.fit_intercept else None,
            metadata={"fit": settings},
        )
        return model.scaled(self.scale) if np.any(self.scale != 1.0) else model

    def weights(self, model: ImplicitModel) -> np.ndarray:
        """The rows of a model in the units of the fit, (n + q, d): the inverse of `model`."""
        if (model.n, model.p, model.q) != (self.states.n, self.states.p, self.states.q):
            raise ValueError(
                f"model has n, p, q = {model.n}, {model.p}, {model.q}, the states {self.states.n}, {self.states.p}, "
                f"{self.states.q}: they do not belong together."
            )
        dense = model.to_dense()
        dense = dense.scaled(1.0 / self.scale) if np.any(self.scale != 1.0) else dense
        weights = np.block(cast(Any, [[dense.A, dense.B], [dense.C, dense.D]]))
        if not self.fit_intercept:
            return weights
        return np.concatenate([weights, np.concatenate([dense.b, dense.c])[:, None]], axis=1)

    def _source(
        self,
        design: np.ndarray,
        targets: np.ndarray,
        numbers: np.ndarray,
        support: Callable[[np.ndarray], np.ndarray | None],
        penalty: Penalty | None = None,
    ) -> RowSource:
        """The rows with these numbers of the n + q, each made when it is asked for."""

        def take(index: np.ndarray) -> RowProblem:
            rows = numbers[index]
            return self._problem(design, targets, rows, support(rows), penalty)

        return RowSource(design, numbers.size, self.matching, take)

    def _problem(
        self,
        design: np.ndarray,
        targets: np.ndarray,
        rows: np.ndarray,
        mask: np.ndarray | None,
        penalty: Penalty | None,
    ) -> RowProblem:
        penalty = self.penalty if penalty is None else penalty
        return row_problem(
            design,
            targets[:, rows],
            loss_weight=self.loss_weight[rows],
            penalty=penalty if rows.size == self.loss_weight.size else take_rows(penalty, rows),
            constraint=self._constraint(rows),
            support=mask,
            matching=self.matching,
        )

    def _constraint(self, rows: np.ndarray) -> Constraint | None:
        """What kappa bounds in the rows with these numbers; those of (C D) are free. With s the scale,

        ball            Σ_j |A_ij|/s_j ≤ κ/s_i                              ‖SAS⁻¹‖∞ ≤ κ
        stacked_ball    Σ_j |A_ij|/s_j + Σ_k |B_ik| ≤ κ/s_i                 ‖(SAS⁻¹ SB)‖∞ ≤ κ
        metzler         A_ii + Σ_{j ≠ i} (s_i η_j)/(s_j η_i) |A_ij| ≤ κ     μ_η(SAS⁻¹) ≤ κ
        """
        if self.kappa is None:
            return None
        n, q, scale = self.states.n, self.states.q, self.scale
        if self.constraint == "metzler":
            relative = np.concatenate([self.eta / scale, np.ones(q)])
            weights = relative[:n] / relative[rows][:, None]
            diagonal = np.where(rows < n, rows, -1)
            upper = np.flatnonzero(rows < n)
            weights[upper, rows[upper]] = 1.0
            radius = np.where(rows < n, self.kappa, np.inf)
            return MetzlerRow(radius, diagonal, size=n, weights=weights)
        radius = np.concatenate([self.kappa / scale, np.full(q, np.inf)])[rows]
        if self.constraint == "ball":
            return L1Ball(radius, size=n, weights=1.0 / scale)
        return L1Ball(radius, size=n + self.states.p, weights=np.concatenate([1.0 / scale, np.ones(self.states.p)]))


def _check_low_rank(
    rank: int, states: States | StreamedStates, objective: Any, alpha: Any, mu: Any, support: Any, refit: Any
) -> None:
    if rank > states.n:
        raise ValueError(f"constraint=LowRank(rank) needs a rank of at most the {states.n} states, got {rank}.")
    if not isinstance(objective, str) or np.ndim(alpha) or np.ndim(0.0 if mu is None else mu):
        raise ValueError("constraint=LowRank needs an objective by name and scalar alpha and mu: L is no part of A.")
    if not (isinstance(support, str) and support in ("auto", "full")):
        raise ValueError(f"support must be 'auto' or 'full' for constraint=LowRank, got {_plain(support)!r}.")
    if refit is not None:
        raise ValueError(f"refit must be None for constraint=LowRank, got {refit!r}.")


def _bound(kappa: Any, constraint: str) -> float | None:
    if kappa is None:
        return None
    if constraint != "metzler":
        return positive_scalar("kappa", kappa, below=1.0)
    array = float_array("kappa", kappa)
    if array.ndim != 0 or not float(array) < 1.0:
        raise ValueError(f"kappa must be a number below 1 for constraint='metzler', got {kappa!r}.")
    return float(array)


def _eta(eta: Any, constraint: str, n: int) -> np.ndarray:
    if eta is None:
        return np.ones(n)
    if constraint != "metzler":
        raise ValueError(f"eta must be None for constraint={constraint!r}: only 'metzler' has weights.")
    array = float_array("eta", eta)
    if array.shape != (n,) or np.any(array <= 0.0):
        raise ValueError(f"eta must be ({n},) positive numbers, got shape {array.shape}.")
    return array


def _penalty(objective: Any, alpha: Any, mu: Any) -> Penalty:
    if isinstance(objective, str):
        choice("objective", objective, OBJECTIVES)
        if mu is not None and objective not in _USES_MU:
            raise ValueError(f"mu must be None for objective {objective!r}, which has no second weight; got {mu!r}.")
        return OBJECTIVES[objective](alpha, mu)
    if mu is not None or not (np.ndim(alpha) == 0 and alpha == _DEFAULT_ALPHA):
        raise ValueError("alpha and mu must be left alone with a penalty object, which brings its own weights.")
    return objective


def _refits(refit: Any) -> tuple[str, ...]:
    refits = () if refit is None else (refit,) if isinstance(refit, str) else tuple(refit)
    for name in refits:
        choice("refit", name, REFITS)
    return refits


@dataclasses.dataclass(frozen=True)
class _Support:
    """Which weights may be nonzero, for any of the n + q rows, without the mask of all of them."""

    kind: str
    mask: np.ndarray | None  # (n, d) or (n + q, d), where the user gave one
    n: int
    width: int
    layer_sizes: tuple[int, ...]

    @classmethod
    def make(cls, support: Any, states: States | StreamedStates, fit_intercept: bool) -> _Support:
        n, p, q = states.n, states.p, states.q
        width = n + p + int(fit_intercept)
        if isinstance(support, str):
            choice("support", support, SUPPORTS)
            if support == "feedforward" and states.layer_sizes is None:
                raise ValueError("support='feedforward' needs states with layer_sizes; these have none.")
            return cls(support, None, n, width, states.layer_sizes or ())
        mask = np.asarray(support)
        if mask.dtype != np.bool_ or mask.shape not in ((n, width), (n + q, width)):
            raise ValueError(
                f"support must be one of {', '.join(map(repr, SUPPORTS))} or a boolean mask of shape {(n, width)} or "
                f"{(n + q, width)}; got {mask.dtype} of shape {mask.shape}."
            )
        return cls("mask", mask, n, width, ())

    def rows(self, numbers: np.ndarray) -> np.ndarray | None:
        """The mask of the rows with these numbers, (k, d), or None for no restriction."""
        if self.kind == "full":
            return None
        upper, free = numbers[numbers < self.n], self.width - self.n
        if self.kind == "hollow":
            mask = hollow_support(self.n, free, upper)
        elif self.kind == "feedforward":
            mask = feedforward_support(self.layer_sizes, free, upper)
        else:
            assert self.mask is not None
            if self.mask.shape[0] > self.n:
                return self.mask[numbers]
            mask = self.mask[upper]
        everything = np.ones((numbers.size, self.width), dtype=bool)
        everything[numbers < self.n] = mask
        return everything


def _replace_weights(weights: Weights, rows: np.ndarray, other: Weights) -> Weights:
    """The weights with their last `rows` replaced, CSR if either part is."""
    if isinstance(weights, np.ndarray) and isinstance(other, np.ndarray):
        return np.concatenate([weights[: rows[0]], other])
    parts = [scipy.sparse.csr_array(part) for part in (weights[: rows[0]], other)]
    return scipy.sparse.csr_array(scipy.sparse.vstack(parts))


def _replace_rows(certificate: Certificate, rows: np.ndarray, other: Certificate) -> Certificate:
    merged = {}
    for field in dataclasses.fields(Certificate):
        values = getattr(certificate, field.name).copy()
        values[rows] = getattr(other, field.name)
        merged[field.name] = values
    return Certificate(**merged)


def _plain(value: Any) -> Any:
    """An argument as a JSON value; arrays and objects are only named."""
    if value is None or isinstance(value, str):
        return value
    if np.ndim(value):
        return f"array {np.shape(value)}"
    return type(value).__name__ if callable(getattr(value, "prox", None)) else float(value)
