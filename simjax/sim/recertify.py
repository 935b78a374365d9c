"""A second pass: the rows of a fit certified on the samples themselves, read batch by batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import scipy.linalg

from simjax._typing import ArrayLike
from simjax._values import Value
from simjax.rows.arrays import column_norms
from simjax.rows.boxed import opened_at
from simjax.rows.conjugate import dual_scaling, held_slopes, raised_tilt, support_function
from simjax.rows.dual_points import ROUNDING, flat_of
from simjax.rows.own_penalty import traceable
from simjax.rows.penalties import total_value
from simjax.rows.problem import OBJECTIVE_FLOOR, RowProblem, RowSource
from simjax.rows.solution import dense_rows
from simjax.sim.plan import state_scale
from simjax.sim.result import FitResult
from simjax.states.states import States
from simjax.states.streamed import design_and_targets, weighted_batches

# Directions of the design weaker than this against the strongest one take no part in a lifted dual point.
_LIFT_CUTOFF = 1e-12
# Keeps the Cholesky factor of a singular ΦᵀΦ, with columns of norm one, out of its rounding.
_RIDGE = 1e-12


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class StreamedCertificate(Value):
    """What a pass over the samples themselves proves about each row; the fields are those of `Certificate`.

    Attributes:
      objective, dual_objective, gap, relative_gap, infeasibility: as in `Certificate`, (R,).
      combination: (R, d + 1): the dual point that proves the row is y = Φa + βt, a the first d entries and β the last.
        With a free intercept Φ and t are about the means of the fit, and y less its own mean is the point.

    Examples:
      >>> import numpy as np, simjax
      >>> rng = np.random.default_rng(0)
      >>> weights = [rng.normal(size=shape) for shape in ((4, 3), (2, 4))]  # of a network 3-4-2
      >>> states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(50, 3)))
      >>> certificate = simjax.recertify(simjax.fit(states, "l1", alpha=0.1), [states])
      >>> certificate.gap.shape, certificate.combination.shape  # n + q rows; d + 1 numbers prove each
      ((6,), (6, 8))
    """

    objective: np.ndarray
    dual_objective: np.ndarray
    gap: np.ndarray
    relative_gap: np.ndarray
    infeasibility: np.ndarray
    combination: np.ndarray


def recertify(
    result: FitResult, batches: Iterable[States], *, sample_weight: ArrayLike | None = None
) -> StreamedCertificate:
    """Certify the weights of a fit in one pass over the samples, without the statistics they were fitted from.

    The dual point of the fit is lifted to y = Φa + βt, which is evaluated sample by sample, and with it go the sums of

        ‖t − Φw‖²     s = Φᵀy     and, with e = 2λ(t − Φw) − y,     ‖e‖²     eᵀy     ‖y‖²

    Any y proves something, and after scaling by f into the domain of g* these sums give the gap of `certify`:

        P − D(fy) = ‖2λ(t − Φw) − fy‖²/(4λ) + [h(w) + g*(fs) − f sᵀw],    2λ(t − Φw) − fy = e + (1 − f)y

    Args:
      result: of a `fit` to `States` or `StreamedStates`, without refit="outputs".
      batches: any iterable of `States`, gone through once: those of the fit, in batches of any size.
      sample_weight: of all samples of the batches, as in `stream_states`.

    Returns:
      A `StreamedCertificate`. Under exact matching a row that `fit` proved infeasible is told by its infeasibility.

    Raises:
      TypeError: if result is not a `FitResult`, or a batch not `States`.
      ValueError: if the fit regenerated its outputs, was of low rank or merged of shards, or the batches do not fit
        the model or each other.

    Examples:
      >>> import numpy as np, simjax
      >>> rng = np.random.default_rng(0)
      >>> weights = [rng.normal(size=shape) for shape in ((4, 3), (2, 4))]  # of a network 3-4-2
      >>> states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(50, 3)))
      >>> streamed = simjax.stream_states([states])
      >>> result = simjax.fit(streamed, "l1", alpha=0.1)
      >>> bool(simjax.recertify(result, [states]).relative_gap.max() <= 1e-6)
      True
    """
    if not isinstance(result, FitResult):
        raise TypeError(f"result must be a FitResult, got {type(result).__name__}.")
    if "outputs" in result.settings["refit"]:
        raise ValueError(
            "result comes from refit='outputs', whose rows of (C D) have states of their own; use verify_model."
        )
    if result.factors is not None:
        raise ValueError("result is of low rank: the rows of (L B) are over states of their own; use FitResult.verify.")
    if not result.solutions:
        raise ValueError("result is a merged fit, which has no rows to recertify; use verify_model.")
    problem = result.solutions[-1].problem
    if isinstance(problem, RowSource):
        problem = problem.all()
    weights = dense_rows(result.weights)
    problem = dataclasses.replace(problem, penalty=traceable(problem.penalty))
    # Bounds that the weights are off have no say in which dual point proves them.
    flat = flat_of(dataclasses.replace(problem, penalty=opened_at(problem.penalty, weights)))
    combination = _lifted(problem, result.certificate.dual)
    sums = _Sums.zero(problem)
    scale = None
    for batch, weight in weighted_batches(batches, sample_weight):
        if scale is None:
            _check_belongs(result, batch)
            scale = np.ones(batch.n)
            if result.settings["units"] == "rescaled":
                scale = state_scale(batch, result.settings["rescale"], result.settings["kappa"])
        if np.any(scale != 1.0):
            batch = batch.rescaled(scale)
        design, targets = design_and_targets(batch, ones=result.settings["fit_intercept"] == "penalised")
        root = np.ones(batch.m) if weight is None else np.sqrt(weight)
        if problem.centring is not None:
            design, targets = design - problem.centring.design, targets - problem.centring.targets
        design, targets = root[:, None] * design, root[:, None] * targets
        sums.add(design, targets, root, weights, combination, gram=bool(flat.any()))
    if scale is None:
        raise ValueError("batches must hold at least one batch of simjax.States, got none.")
    if problem.centring is not None:
        sums.take_out_mean()
    if flat.any():
        combination = sums.project_out(flat, combination)
    return _certificate_from(sums, problem, weights, combination, result.certificate.infeasibility)


def _check_belongs(result: FitResult, batch: States) -> None:
    model = result.model
    if (model.n, model.p, model.q) != (batch.n, batch.p, batch.q):
        raise ValueError(
            f"result has n, p, q = {model.n}, {model.p}, {model.q}, the batches {batch.n}, {batch.p}, {batch.q}: "
            f"they do not belong together."
        )


def _lifted(problem: RowProblem, dual: np.ndarray) -> np.ndarray:
    """(a, β), (R, d + 1), with y = Φa + βt of the same slopes Φᵀy as `dual` and, under penalty, no smaller D.

    The part of y that is orthogonal to the design has no slopes, and 2λ times that part of t is the best choice.
    """
    loss_weight = np.zeros(problem.count) if problem.exact else problem.loss_weight
    beta = 2.0 * loss_weight
    norms = column_norms(problem.design)
    norms = np.where(norms > 0.0, norms, 1.0)
    rest = dual.T - problem.targets * beta
    solution = scipy.linalg.lstsq(problem.design / norms, rest, cond=_LIFT_CUTOFF)[0]
    return np.concatenate([solution.T / norms, beta[:, None]], axis=1)


@dataclasses.dataclass
class _Sums:
    """Sums over the samples, of the residual r = t − Φw, of y = Φa + βt and of e = 2λr − y; (R,) where not noted."""

    m: int
    multiplier: np.ndarray  # 2λ
    column_squares: np.ndarray  # ‖φ_j‖², (d,)
    gram: np.ndarray  # ΦᵀΦ, (d, d), if asked for
    target_squares: np.ndarray
    residual_squares: np.ndarray
    dual_squares: np.ndarray
    dual_residual: np.ndarray  # yᵀr
    mismatch_squares: np.ndarray  # ‖e‖²
    mismatch_dual: np.ndarray  # eᵀy
    slopes: np.ndarray  # Φᵀy, (R, d)
    residual_slopes: np.ndarray  # Φᵀr, (R, d)
    total: float  # uᵀu, for u = V^½1
    along_design: np.ndarray  # Φᵀu, (d,)
    along_dual: np.ndarray  # yᵀu
    along_residual: np.ndarray  # rᵀu

    @classmethod
    def zero(cls, problem: RowProblem) -> _Sums:
        rows, width = problem.count, problem.width
        return cls(
            m=0,
            multiplier=2.0 * problem.loss_weight,
            column_squares=np.zeros(width),
            gram=np.zeros((width, width)),
            target_squares=np.zeros(rows),
            residual_squares=np.zeros(rows),
            dual_squares=np.zeros(rows),
            dual_residual=np.zeros(rows),
            mismatch_squares=np.zeros(rows),
            mismatch_dual=np.zeros(rows),
            slopes=np.zeros((rows, width)),
            residual_slopes=np.zeros((rows, width)),
            total=0.0,
            along_design=np.zeros(width),
            along_dual=np.zeros(rows),
            along_residual=np.zeros(rows),
        )

    def add(
        self,
        design: np.ndarray,
        targets: np.ndarray,
        root: np.ndarray,
        weights: np.ndarray,
        combination: np.ndarray,
        *,
        gram: bool,
    ) -> None:
        """Take in the samples of one batch, weighted; `root` are the roots of their weights."""
        residual = targets - design @ weights.T
        dual = design @ combination[:, :-1].T + targets * combination[:, -1]
        mismatch = self.multiplier * residual - dual
        self.m += design.shape[0]
        self.column_squares += np.sum(design**2, axis=0)
        self.target_squares += np.sum(targets**2, axis=0)
        self.residual_squares += np.sum(residual**2, axis=0)
        self.dual_squares += np.sum(dual**2, axis=0)
        self.dual_residual += np.sum(dual * residual, axis=0)
        self.mismatch_squares += np.sum(mismatch**2, axis=0)
        self.mismatch_dual += np.sum(mismatch * dual, axis=0)
        self.slopes += dual.T @ design
        self.residual_slopes += residual.T @ design
        self.total += float(root @ root)
        self.along_design += root @ design
        self.along_dual += root @ dual
        self.along_residual += root @ residual
        if gram:
            self.gram += design.T @ design

    def take_out_mean(self) -> None:
        """Replace y by y − u (uᵀy)/(uᵀu): a free intercept demands uᵀy = 0."""
        share = self.along_dual / self.total
        along_mismatch = self.multiplier * self.along_residual - self.along_dual
        self.mismatch_squares = self.mismatch_squares + share * (2.0 * along_mismatch + self.along_dual)
        self.mismatch_dual = self.mismatch_dual - share * along_mismatch
        self.dual_squares = self.dual_squares - share * self.along_dual
        self.dual_residual = self.dual_residual - share * self.along_residual
        self.slopes = self.slopes - share[:, None] * self.along_design

    def project_out(self, flat: np.ndarray, combination: np.ndarray) -> np.ndarray:
        """Replace y by y − Φb, b on the coordinates in `flat`, which makes their slopes vanish; returns the new (a, β).

        The lifted y has slopes of the order of the rounding of Φa, which is not small against y where a and β cancel.
        """
        change = np.zeros_like(self.slopes)
        norms = np.sqrt(self.column_squares)
        norms = np.where(norms > 0.0, norms, 1.0)
        scaled = self.gram / (norms[:, None] * norms)
        patterns, which = np.unique(flat, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            if pattern.any():
                rows = np.flatnonzero(which.reshape(-1) == number)
                block = scaled[np.ix_(pattern, pattern)]
                factor = scipy.linalg.cho_factor(block + _RIDGE * np.eye(block.shape[0]))
                wanted = (self.slopes[rows] / norms)[:, pattern].T
                solution = np.zeros_like(wanted)
                for _ in range(3):  # later sweeps take back what the ridge and the rounding of the first left
                    solution += scipy.linalg.cho_solve(factor, wanted - block @ solution)
                change[np.ix_(rows, pattern)] = solution.T / norms[pattern]
        image = change @ self.gram
        mismatch_slopes = self.multiplier[:, None] * self.residual_slopes - self.slopes  # Φᵀe

        def dot(vectors: np.ndarray) -> np.ndarray:
            return np.sum(change * vectors, axis=1)

        self.mismatch_squares = self.mismatch_squares + 2.0 * dot(mismatch_slopes) + dot(image)
        self.mismatch_dual = self.mismatch_dual - dot(mismatch_slopes) + dot(self.slopes) - dot(image)
        self.dual_squares = self.dual_squares - 2.0 * dot(self.slopes) + dot(image)
        self.dual_residual = self.dual_residual - dot(self.residual_slopes)
        self.slopes = self.slopes - image
        combination = combination.copy()
        combination[:, :-1] -= change
        return combination


def _certificate_from(
    sums: _Sums,
    problem: RowProblem,
    weights: np.ndarray,
    combination: np.ndarray,
    infeasibility: np.ndarray,
) -> StreamedCertificate:
    penalty, bound, loss_weight = problem.penalty, problem.bound, problem.loss_weight
    mask, opened = problem.support, opened_at(problem.penalty, weights)
    # In flat directions s_j = 0, or one of its signs, is demanded, and holds to the rounding of the sums.
    reach = np.sqrt(np.maximum(sums.dual_squares, 0.0))[:, None] * np.sqrt(sums.column_squares)
    rounding = ROUNDING * np.sqrt(sums.m) * reach
    held = np.asarray(held_slopes(opened, bound, sums.slopes))
    slopes = np.where(np.abs(sums.slopes - held) <= rounding, held, sums.slopes)
    if bound is not None and bound.tilt is not None:
        raised = np.asarray(raised_tilt(penalty, bound, slopes, mask))  # type: ignore[arg-type]
        slopes = np.where(raised - slopes <= rounding, raised, slopes)
    factor = np.asarray(dual_scaling(opened, bound, slopes, mask))
    slopes = factor * slopes
    value = np.asarray(total_value(penalty, weights))
    conjugate = np.asarray(support_function(penalty, bound, slopes, mask))
    fenchel = np.maximum(value + conjugate - np.sum(slopes * weights, axis=1), 0.0)
    f = factor[:, 0]
    if problem.exact:
        objective, floor = value, np.zeros_like(value)
        gap = fenchel + f * np.abs(sums.dual_residual)
        fit = np.sqrt(sums.residual_squares / np.where(sums.target_squares > 0.0, sums.target_squares, 1.0))
        infeasibility = np.maximum(infeasibility, fit)
    else:
        objective = loss_weight * sums.residual_squares + value
        floor = OBJECTIVE_FLOOR * loss_weight * sums.target_squares
        # Each of the three is taken from its own sum, so that nothing cancels for f close to 1.
        mismatch = sums.mismatch_squares + 2.0 * (1.0 - f) * sums.mismatch_dual + (1.0 - f) ** 2 * sums.dual_squares
        gap = fenchel + np.maximum(mismatch, 0.0) / (4.0 * loss_weight)
    # y = 0 is always feasible, with D = 0.
    useful = gap < objective
    gap = np.where(useful, gap, objective)
    size = np.maximum(objective, floor)
    return StreamedCertificate(
        objective=objective,
        dual_objective=objective - gap,
        gap=gap,
        relative_gap=np.where(gap == 0.0, 0.0, gap / np.where(size > 0.0, size, np.finfo(np.float64).tiny)),
        infeasibility=infeasibility,
        combination=np.where(useful[:, None], f[:, None] * combination, 0.0),
    )
