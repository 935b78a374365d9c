"""Samples out of memory: batches streamed into statistics that state the same rows with at most d + 1 samples.

A row problem sees its m samples only through inner products of the columns of Φ and T, and these are kept by the
triangular factor of a QR factorisation of [Φ T], which is updated batch by batch:

    [Φ T] = Q [R₁₁ R₁₂]        λ‖t − Φw‖² = λ‖R₁₂ e − R₁₁ w‖² + λ‖R₂₂ e‖²        for every w, with t = T e
              [ 0  R₂₂]

So R₁₁ (d samples) and one more sample, of zeros in the design and of ‖R₂₂ e‖ in the targets, are the same problem.
Source: Demmel, Grigori, Hoemmen, Langou, Communication-optimal parallel and sequential QR and LU factorizations
(2012), §4.1, sequential TSQR.

Why not ΦᵀΦ and ΦᵀT, which cost a quarter: states come from a network that explains them itself, Z = AX + BU, so that
‖t − Φw‖² is small against ‖t‖² for all weights that matter, and the smaller the more samples there are. The form
wᵀΦᵀΦw − 2wᵀΦᵀt + ‖t‖² errs by about ε(‖t‖ + Σ|w_j|‖φ_j‖)² and loses such a number to cancellation; the triangular
factor errs by about ε(‖t‖ + Σ|w_j|‖φ_j‖) in ‖t − Φw‖ itself, no more than evaluating it sample by sample does
(ε = 2e-16). So nothing has to be refused: no ill-conditioned data, no exact matching, and not m < d.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from simjax._checks import matrix, positive_integer
from simjax.implicit.model import ImplicitModel
from simjax.rows.constraints import dual_scaling, settled_tilt, support_function
from simjax.rows.penalties import traceable
from simjax.rows.problem import RowProblem, RowSource
from simjax.states.states import Rescale, States

if TYPE_CHECKING:
    from simjax.sim.fit import FitResult

_BLOCK = 4096  # samples that are reduced at once
_PANEL = 64  # columns of a panel of LAPACK's blocked factorisation

# Columns of a design that depend on others do so to the rounding of all reductions; what is below this, against columns
# of norm one, is taken for that rounding. Left in, it would count as a sample of its own.
_RANK_TOL = 1e-13

# Directions of the design weaker than this against the strongest one take no part in a lifted dual point.
_LIFT_CUTOFF = 1e-12
# Keeps the Cholesky factor of a singular ΦᵀΦ, with columns of norm one, out of its rounding.
_RIDGE = 1e-12
# A slope that is infinite in the conjugate is 0 in a direction in which the penalty is flat.
_TINY = 1e-200


# --- The statistics ----------------------------------------------------------------------------------------------


class SufficientStatistics:
    """All that a row problem needs of its samples: the triangular factor of [Φ T], accumulated in float64.

    Takes (d + R)² numbers, whatever the number of samples. `solve_rows(*statistics.compressed(), …)` solves the rows.

    Args:
      width: d, the columns of the design.
      rows: R, the columns of the targets, one per row.

    Raises:
      TypeError, ValueError: for numbers that are not positive integers.
    """

    def __init__(self, width: int, rows: int) -> None:
        self.width = positive_integer("width", width)
        self.rows = positive_integer("rows", rows)
        self._m = 0
        self._triangle = np.zeros((self.width + self.rows,) * 2, order="F")

    @property
    def m(self) -> int:
        """Number of samples so far."""
        return self._m

    def __repr__(self) -> str:
        return f"SufficientStatistics(width={self.width}, rows={self.rows}, m={self.m})"

    def update(self, design: Any, targets: Any) -> None:
        """Take in one batch of k samples; a batch that is refused leaves the statistics as they were.

        Args:
          design: (k, d), real numbers of any type: they are converted to float64 here.
          targets: (k, R).

        Raises:
          TypeError, ValueError: arrays that are not real, finite, two-dimensional and of these shapes.
        """
        design, targets = matrix("design", design), matrix("targets", targets)
        if design.shape[1] != self.width:
            raise ValueError(f"design must have width = {self.width} columns, got shape {design.shape}.")
        if targets.shape != (design.shape[0], self.rows):
            raise ValueError(f"targets must be ({design.shape[0]}, {self.rows}), got shape {targets.shape}.")
        for start in range(0, design.shape[0], _BLOCK):
            part = slice(start, start + _BLOCK)
            block = np.asfortranarray(np.concatenate([design[part], targets[part]], axis=1))
            # QR of the triangle on top of the block, which makes use of the zeros below the diagonal.
            panel = min(_PANEL, self._triangle.shape[0])
            self._triangle, *_ = lapack.dtpqrt(0, panel, self._triangle, block, overwrite_a=True, overwrite_b=True)
        self._m += design.shape[0]

    def scaled(self, design_scale: Any, target_scale: Any) -> SufficientStatistics:
        """The statistics of the samples with their columns multiplied by `design_scale` (d,), `target_scale` (R,)."""
        scaled = SufficientStatistics(self.width, self.rows)
        scaled._m = self._m
        scaled._triangle = np.asfortranarray(self._triangle * np.concatenate([design_scale, target_scale]))
        return scaled

    def compressed(self, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """At most d + 1 samples (Φ′, T′) with ‖t′ − Φ′w‖ = ‖t − Φw‖ for all weights w and every row.

        The last sample is zero in Φ′; in T′ it carries the part of each target that no weights explain. Before it come
        r samples, r the rank of the design: columns that depend on others to 1e-13 of their norm do so exactly in Φ′,
        which changes ‖t − Φw‖ by at most about 1e-13 Σ|w_j|‖φ_j‖.

        Args:
          width: keep the first `width` columns of the design only; None keeps all.

        Returns:
          Φ′ (r + 1, width) and T′ (r + 1, R), r ≤ min(m, width).

        Raises:
          TypeError, ValueError: if no sample has come yet, or width is not in 1 … d.
        """
        if self.m == 0:
            raise ValueError("there is nothing to compress: update(design, targets) has not been called.")
        width = self.width if width is None else positive_integer("width", width)
        if width > self.width:
            raise ValueError(f"width must be at most {self.width}, the columns of the design, got {width}.")
        top, targets = self._triangle[:width, :width], self._triangle[:, self.width :]
        norms = np.linalg.norm(top, axis=0)
        norms = np.where(norms > 0.0, norms, 1.0)
        basis, triangle, order = scipy.linalg.qr(top / norms, pivoting=True)
        diagonal = np.abs(np.diag(triangle))
        rank = min(int(np.count_nonzero(diagonal > _RANK_TOL * diagonal.max())), self.m)
        design = np.zeros((rank + 1, width))
        design[:rank, order] = triangle[:rank] * norms[order]
        rotated = basis.T @ targets[:width]
        unexplained = np.concatenate([rotated[rank:], targets[width:]])
        return design, np.concatenate([rotated[:rank], np.linalg.norm(unexplained, axis=0, keepdims=True)])


# --- States that are not kept ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class StreamedStates:
    """What `fit` needs of the states of a baseline network, without the samples. Build it with `stream_states`.

    `fit` poses its rows on the compressed samples of `SufficientStatistics`, at most d + 1, and they are the problem
    of all m samples, so that certificates, `FitResult.verify` and `verify_model` mean what they mean for `States`.
    The dual point y′ of a row then has an entry per compressed sample; with a matrix product over the samples it is
    lifted to y = Φa + 2λt, where a solves Φ′a = y′ − 2λt′ (y = Φa, Φ′a = y′, under exact matching), which proves the
    row on the samples themselves: `recertify` does so.

    Attributes:
      sample: a few of the states, from which sizes, activation, layers and baseline are read.
      statistics: of the design [X U 1] and the targets [Z Y].
    """

    sample: States
    statistics: SufficientStatistics

    @classmethod
    def from_arrays(
        cls,
        inputs: Any,
        preactivations: Any,
        activations: Any,
        outputs: Any,
        *,
        activation: str = "relu",
        layer_sizes: tuple[int, ...] | None = None,
        baseline: ImplicitModel | None = None,
        batch_size: int = 4096,
    ) -> StreamedStates:
        """The statistics of arrays that need not fit in memory.

        Args:
          inputs, preactivations, activations, outputs: as in `States`; anything with a shape that gives arrays when
            sliced, such as np.memmap or an HDF5 data set. `batch_size` samples are read at a time, each once.
          activation, layer_sizes, baseline: as in `States`.
          batch_size: samples that are in memory at once.

        Raises:
          TypeError, ValueError: as `States`, for each batch.
        """
        named = {
            "inputs": inputs,
            "preactivations": preactivations,
            "activations": activations,
            "outputs": outputs,
        }
        arrays = {name: value if hasattr(value, "shape") else np.asarray(value) for name, value in named.items()}
        batch_size = positive_integer("batch_size", batch_size)
        for name, array in arrays.items():
            if len(array.shape) != 2:
                raise ValueError(f"{name} must be a 2-D array, got {len(array.shape)}-D with shape {array.shape}.")
            if 0 in array.shape:
                raise ValueError(f"{name} must not be empty, got shape {array.shape}.")
            if array.shape[0] != arrays["inputs"].shape[0]:
                raise ValueError(
                    f"{name} has {array.shape[0]} rows, but inputs has m = {arrays['inputs'].shape[0]}: "
                    f"expected one row per sample."
                )

        def batches() -> Iterator[States]:
            for start in range(0, arrays["inputs"].shape[0], batch_size):
                parts: dict[str, Any] = {name: array[start : start + batch_size] for name, array in arrays.items()}
                try:
                    yield States(
                        **parts,
                        activation=activation,
                        layer_sizes=layer_sizes,
                        baseline=baseline,
                    )
                except ValueError as error:
                    raise ValueError(f"samples {start} … {start + len(parts['inputs']) - 1}: {error}") from error

        return stream_states(batches())

    @property
    def m(self) -> int:
        """Number of samples."""
        return self.statistics.m

    @property
    def n(self) -> int:
        """Number of states."""
        return self.sample.n

    @property
    def p(self) -> int:
        """Number of inputs."""
        return self.sample.p

    @property
    def q(self) -> int:
        """Number of outputs."""
        return self.sample.q

    @property
    def activation(self) -> str:
        """Name of φ."""
        return self.sample.activation

    @property
    def layer_sizes(self) -> tuple[int, ...] | None:
        """Widths of the hidden layers, first hidden layer first, or None."""
        return self.sample.layer_sizes

    @property
    def baseline(self) -> ImplicitModel | None:
        """The network that produced the states, or None."""
        return self.sample.baseline

    def __repr__(self) -> str:
        return repr(self.sample).replace("States", "StreamedStates").replace(f"m={self.sample.m}", f"m={self.m}")

    def scaling(self, rescale: Rescale = "auto", kappa: float | None = 0.99) -> np.ndarray:
        """The factors s (n,) of `States.scaling`, which depend on the baseline alone."""
        return self.sample.scaling(rescale, kappa)

    def rescaled(self, scale: Any) -> StreamedStates:
        """These states with z′ = s·z and x′ = s·x; as `States.rescaled`."""
        sample = self.sample.rescaled(scale)
        scale = np.asarray(scale, dtype=np.float64)
        statistics = self.statistics.scaled(
            np.concatenate([scale, np.ones(self.p + 1)]), np.concatenate([scale, np.ones(self.q)])
        )
        return StreamedStates(sample, statistics)

    def compressed(self, fit_intercept: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Design [X U], with `fit_intercept` [X U 1], and targets [Z Y]: at most d + 1 samples that stand for all m."""
        return self.statistics.compressed(self.n + self.p + int(fit_intercept))


def stream_states(batches: Iterable[States]) -> StreamedStates:
    """Stream the states of one network, batch by batch, into statistics that `fit` accepts in place of `States`.

        stream_states(collect_states(network, U[i : i + 4096]) for i in range(0, len(U), 4096))

    A batch or two are in memory at a time, and a few times (n + p + 1 + n + q)² numbers.

    Args:
      batches: any iterable of `States`, gone through once.

    Raises:
      TypeError: if a batch is not `States`.
      ValueError: if there is no batch, or batches differ in n, p, q, activation, layer sizes or baseline.
    """
    sample: States | None = None
    statistics: SufficientStatistics | None = None
    for batch in _agreeing(batches):
        if sample is None or statistics is None:
            sample = _extreme_samples(batch)
            statistics = SufficientStatistics(batch.n + batch.p + 1, batch.n + batch.q)
        statistics.update(*design_and_targets(batch, fit_intercept=True))
    if sample is None or statistics is None:
        raise ValueError("batches must hold at least one batch of simjax.States, got none.")
    return StreamedStates(sample, statistics)


def _agreeing(batches: Iterable[States]) -> Iterator[States]:
    """The batches, each checked against the first."""
    if isinstance(batches, States) or not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of simjax.States, got {type(batches).__name__}.")
    first: States | None = None
    for number, batch in enumerate(batches):
        if not isinstance(batch, States):
            raise TypeError(f"batches must hold simjax.States, got {type(batch).__name__} as batch {number}.")
        if first is None:
            first = _extreme_samples(batch)
        for name in ("n", "p", "q", "activation", "layer_sizes"):
            if getattr(batch, name) != getattr(first, name):
                raise ValueError(
                    f"batches must come from one network: batch {number} has {name} = {getattr(batch, name)!r}, "
                    f"batch 0 has {getattr(first, name)!r}."
                )
        if not _same_model(batch.baseline, first.baseline):
            raise ValueError(f"batches must come from one network: batch {number} has another baseline than batch 0.")
        yield batch


def _extreme_samples(batch: States) -> States:
    """The samples with the largest entries: by themselves they are checked at the scale of the whole batch."""
    arrays = (batch.preactivations, batch.activations, batch.outputs)
    return batch.subset(np.unique([int(np.abs(array).max(axis=1).argmax()) for array in arrays]))


def _same_model(one: ImplicitModel | None, other: ImplicitModel | None) -> bool:
    if one is None or other is None or one is other:
        return one is other
    one, other = one.to_dense(), other.to_dense()
    if one.activation != other.activation:
        return False
    names = ("A", "B", "C", "D", "b", "c")
    return all(_same_array(getattr(one, name), getattr(other, name)) for name in names)


def _same_array(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)


def design_and_targets(batch: States, *, fit_intercept: bool) -> tuple[np.ndarray, np.ndarray]:
    """Design [X U], with `fit_intercept` [X U 1], and targets [Z Y]."""
    ones = [np.ones((batch.m, 1))] if fit_intercept else []
    return (
        np.concatenate([batch.activations, batch.inputs, *ones], axis=1),
        np.concatenate([batch.preactivations, batch.outputs], axis=1),
    )


# --- A second pass -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StreamedCertificate:
    """What a pass over the samples themselves proves about each row; the fields are those of `Certificate`.

    Attributes:
      objective, dual_objective, gap, relative_gap, infeasibility: as in `Certificate`, (R,).
      combination: (R, d + 1): the dual point that proves the row is y = Φa + βt, a the first d entries and β the last.
    """

    objective: np.ndarray
    dual_objective: np.ndarray
    gap: np.ndarray
    relative_gap: np.ndarray
    infeasibility: np.ndarray
    combination: np.ndarray


def recertify(result: FitResult, batches: Iterable[States]) -> StreamedCertificate:
    """Certify the weights of a fit in one pass over the samples, without the statistics they were fitted from.

    The dual point of the fit is lifted to y = Φa + βt, which is evaluated sample by sample, and with it go the sums of

        ‖t − Φw‖²     s = Φᵀy     and, with e = 2λ(t − Φw) − y,     ‖e‖²     eᵀy     ‖y‖²

    Any y proves something, and after scaling by f into the domain of g* these sums give the gap of `certify`:

        P − D(fy) = ‖2λ(t − Φw) − fy‖²/(4λ) + [h(w) + g*(fs) − f sᵀw],    2λ(t − Φw) − fy = e + (1 − f)y

    Args:
      result: of a `fit` to `States` or `StreamedStates`, without refit="outputs".
      batches: any iterable of `States`, gone through once: those of the fit, in batches of any size.

    Returns:
      A `StreamedCertificate`. Under exact matching a row that `fit` proved infeasible is told by its infeasibility.

    Raises:
      TypeError: if result is not a `FitResult`, or a batch not `States`.
      ValueError: if the fit regenerated its outputs, was of low rank or solved in blocks of rows, or the batches do
        not fit the model or each other.
    """
    from simjax.rows.solve import dense_rows
    from simjax.sim.fit import FitResult  # here, because that module imports this one

    if not isinstance(result, FitResult):
        raise TypeError(f"result must be a FitResult, got {type(result).__name__}.")
    if "outputs" in result.settings["refit"]:
        raise ValueError(
            "result comes from refit='outputs', whose rows of (C D) have states of their own; use verify_model."
        )
    if result.factors is not None:
        raise ValueError("result is of low rank: the rows of (L B) are over states of their own; use FitResult.verify.")
    problem = result.solutions[-1].problem
    if isinstance(problem, RowSource):
        raise ValueError("result was solved in blocks of rows, which do not keep their problem; use FitResult.verify.")
    weights = dense_rows(result.weights)
    problem = dataclasses.replace(problem, penalty=traceable(problem.penalty))
    with jax.enable_x64(True):
        flat = _flat(problem)
    combination = _lifted(problem, result.certificate.dual)
    sums = _Sums.zero(problem)
    scale = None
    for batch in _agreeing(batches):
        if scale is None:
            _check_belongs(result, batch)
            scale = np.ones(batch.n)
            if result.settings["units"] == "rescaled":
                kappa = result.settings["kappa"]
                scale = batch.scaling(result.settings["rescale"], kappa if kappa is None or kappa > 0.0 else None)
        if np.any(scale != 1.0):
            batch = batch.rescaled(scale)
        design, targets = design_and_targets(batch, fit_intercept=result.settings["fit_intercept"])
        sums.add(design, targets, weights, combination, gram=bool(flat.any()))
    if scale is None:
        raise ValueError("batches must hold at least one batch of simjax.States, got none.")
    if flat.any():
        combination = sums.project_out(flat, combination)
    with jax.enable_x64(True):
        return _certificate_from(sums, problem, weights, combination, flat, result.certificate.infeasibility)


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
    loss_weight = np.zeros(problem.rows_count) if problem.exact else problem.loss_weight
    beta = 2.0 * loss_weight
    norms = np.linalg.norm(problem.design, axis=0)
    norms = np.where(norms > 0.0, norms, 1.0)
    rest = dual.T - problem.targets * beta
    solution = scipy.linalg.lstsq(problem.design / norms, rest, cond=_LIFT_CUTOFF)[0]
    return np.concatenate([solution.T / norms, beta[:, None]], axis=1)


def _flat(problem: RowProblem) -> np.ndarray:
    """Where g* is finite at s_j = 0 only: the penalty costs nothing and no ball binds; boolean (R, d)."""
    shape = (problem.rows_count, problem.width)
    flat = np.zeros(shape, dtype=bool)
    for slope in (_TINY, -_TINY):
        flat |= np.isinf(problem.penalty.conjugate(jnp.full(shape, slope)))
    if problem.ball is not None:
        flat &= ~np.asarray(problem.ball.sees)
    return flat if problem.support is None else flat & problem.support


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

    @classmethod
    def zero(cls, problem: RowProblem) -> _Sums:
        rows, width = problem.rows_count, problem.width
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
        )

    def add(
        self, design: np.ndarray, targets: np.ndarray, weights: np.ndarray, combination: np.ndarray, *, gram: bool
    ) -> None:
        """Take in the samples of one batch."""
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
        if gram:
            self.gram += design.T @ design

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
    flat: np.ndarray,
    infeasibility: np.ndarray,
) -> StreamedCertificate:
    penalty, ball, loss_weight = problem.penalty, problem.ball, problem.loss_weight
    mask = None if problem.support is None else jnp.asarray(problem.support)
    # In flat directions s_j = 0 is demanded, and holds to the rounding of the sums.
    reach = np.sqrt(np.maximum(sums.dual_squares, 0.0))[:, None] * np.sqrt(sums.column_squares)
    rounding = flat & (np.abs(sums.slopes) <= 1e-13 * np.sqrt(sums.m) * reach)
    slopes = jnp.asarray(np.where(rounding, 0.0, sums.slopes))
    if ball is not None and ball.tilt is not None:
        raised = settled_tilt(penalty, ball, slopes, mask)  # type: ignore[arg-type]
        slopes = jnp.where(raised - slopes <= 1e-13 * np.sqrt(sums.m) * reach, raised, slopes)
    factor = dual_scaling(penalty, ball, slopes, mask)
    slopes = factor * slopes
    value = np.asarray(jnp.sum(jnp.broadcast_to(penalty.value(jnp.asarray(weights)), weights.shape), axis=1))
    conjugate = np.asarray(support_function(penalty, ball, slopes, mask))
    fenchel = np.maximum(value + conjugate - np.sum(np.asarray(slopes) * weights, axis=1), 0.0)
    f = np.asarray(factor)[:, 0]
    if problem.exact:
        objective, floor = value, np.zeros_like(value)
        gap = fenchel + f * np.abs(sums.dual_residual)
        fit = np.sqrt(sums.residual_squares / np.where(sums.target_squares > 0.0, sums.target_squares, 1.0))
        infeasibility = np.maximum(infeasibility, fit)
    else:
        objective = loss_weight * sums.residual_squares + value
        floor = 1e-12 * loss_weight * sums.target_squares  # an exact fit as far as float64 can tell
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
