"""`SparseRegressorCV`: α chosen by cross-validation."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning as PathWarning
from sklearn.linear_model import lasso_path
from sklearn.model_selection import check_cv

from simjax._checks import choice, float_array, positive_integer, positive_scalar
from simjax._warnings import warn
from simjax.rows.certificate import certify
from simjax.rows.constraints import Constraint
from simjax.rows.container import cores
from simjax.rows.options import SolveOptions
from simjax.rows.penalty_range import alpha_max
from simjax.rows.problem import row_problem
from simjax.rows.solve import solve_problem
from simjax.rows.status import ConvergenceWarning
from simjax.rows.threads import one_thread_each
from simjax.sklearn.folds import Moments, Rows, rows_of
from simjax.sklearn.regressor import SparseRegressor, penalty_of, predicted
from simjax.sklearn.samples import constraint_of, samples_of, total_weight

_EXACT = 1e-9  # the relative gap up to which coordinate descent is taken at its word
_DESCENT_TOL, _SWEEPS = 1e-11, 2000  # of its gap, relative to ‖z‖²
_OBJECTIVES = ("l1", "elastic_net", "perspective")


class SparseRegressorCV(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """`SparseRegressor` with the α of the least mean squared error over the folds of a cross-validation.

    Folds share their statistics: those of a training part are those of all samples less those of its test part. All
    α of a fold are solved at once and each is certified. With `objective="l1"` it is scikit-learn's `LassoCV`, whose
    grid, folds and choice it has; every target has a grid and an α of its own.

    Args:
      objective: "l1", "elastic_net" or "perspective"; see `SparseRegressor`.
      alphas: how many α, from the smallest that makes all weights zero down to `eps` times it, evenly on a logarithmic
        scale; or the α themselves, (a,), each > 0.
      eps: of the grid, its smallest α over its largest, in (0, 1).
      mu_ratio: μ/α for "elastic_net" and "perspective"; None means μ = α.
      cv: number of folds, a splitter of scikit-learn, or splits; None means 5 folds.
      constraint, fit_intercept, positive, engine, tol: as in `SparseRegressor`.

    Attributes:
      alpha_: the α chosen, a float, or (k,) where y had two axes.
      alphas_: the grid, from large to small, (a,) or (k, a).
      mse_path_: mean squared error on the test part of each fold, (a, folds) or (k, a, folds).
      path_gap_: relative duality gap of the weights behind each of them, of the same shape.
      coef_, intercept_, dual_gap_, n_iter_, certificate_: of the fit to all samples with alpha_; see `SparseRegressor`.

    Examples:
      >>> import numpy as np
      >>> from simjax.sklearn import SparseRegressorCV
      >>> rng = np.random.default_rng(0)
      >>> X = rng.normal(size=(100, 20))
      >>> y = X[:, :2] @ [1.0, -2.0] + 0.1 * rng.normal(size=100)
      >>> model = SparseRegressorCV().fit(X, y)
      >>> model.mse_path_.shape, bool(model.path_gap_.max() < 1e-6)
      ((100, 5), True)
    """

    def __init__(
        self,
        objective: str = "l1",
        *,
        alphas: Any = 100,
        eps: float = 1e-3,
        mu_ratio: float | None = None,
        cv: Any = None,
        constraint: Constraint | None = None,
        fit_intercept: bool = True,
        positive: bool = False,
        engine: str = "auto",
        tol: float = 1e-6,
    ) -> None:
        self.objective = objective
        self.alphas = alphas
        self.eps = eps
        self.mu_ratio = mu_ratio
        self.cv = cv
        self.constraint = constraint
        self.fit_intercept = fit_intercept
        self.positive = positive
        self.engine = engine
        self.tol = tol

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SparseRegressorCV:
        """Choose α and solve for the weights of every target.

        Args:
          X: (n, d), an array or a frame; sparse matrices are made dense.
          y: (n,) or (n, k).
          sample_weight: v ≥ 0, (n,), or None; it counts in the fits and in the errors.

        Raises:
          TypeError, ValueError: naming the argument, what was got and what was expected.
        """
        choice("objective", self.objective, _OBJECTIVES)
        constraint = constraint_of(self.constraint, self.positive)
        eps = positive_scalar("eps", self.eps, below=1.0)
        ratio = 1.0 if self.mu_ratio is None else positive_scalar("mu_ratio", self.mu_ratio)
        options = SolveOptions(engine=self.engine, tol=self.tol)
        X, y, sample_weight = samples_of(self, X, y, sample_weight)
        X = np.asarray(X.toarray()) if hasattr(X, "toarray") else X
        targets = y.reshape(y.shape[0], -1)
        alphas = self._grid(X, targets, sample_weight, eps, ratio)  # (k, a)
        folds = list(check_cv(self.cv).split(X, targets))

        count, features = targets.shape[1], X.shape[1]
        columns = np.hstack([X, targets])
        if self.fit_intercept:  # subtraction then cancels nothing
            columns = columns - np.average(columns, axis=0, weights=sample_weight)
        everything = Moments.of(columns, sample_weight)
        weight_of = np.ones(len(X)) if sample_weight is None else sample_weight

        def fold(split: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
            """Errors and gaps, (k, a) each."""
            train, test = split
            training = _training(everything, columns, sample_weight, train, test)
            rows = rows_of(training.centred() if self.fit_intercept else training.square, features)
            error, gap = np.zeros(alphas.shape), np.zeros(alphas.shape)
            for target in range(count):
                weights, gap[target] = self._path(
                    rows, target, training.weight, alphas[target], ratio, constraint, options
                )
                centre = training.mean / training.weight if self.fit_intercept else np.zeros(features + count)
                error[target] = _test_error(columns[test] - centre, weights, weight_of[test], target)
            return error, gap

        with warnings.catch_warnings(), one_thread_each(), ThreadPoolExecutor(min(cores(), len(folds))) as pool:
            for category in (PathWarning, ConvergenceWarning):  # the certificate says what they would, and once
                warnings.simplefilter("ignore", category)
            found = list(pool.map(fold, folds))
        error, gap = (np.stack(each, axis=2) for each in zip(*found))
        if gap.max() > options.tol:
            missed = np.count_nonzero(gap > options.tol)
            warn(f"{missed} of {gap.size} fits of the path miss the gap of {options.tol:g}.", ConvergenceWarning)

        test_weight = None if sample_weight is None else [sample_weight[test].sum() for _, test in folds]
        mean = np.average(error, axis=2, weights=test_weight)
        chosen = alphas[np.arange(count), np.argmin(mean, axis=1)]
        final = SparseRegressor(
            self.objective,
            alpha=chosen[:, None],
            mu=None if self.objective == "l1" else ratio * chosen[:, None],
            constraint=self.constraint,
            fit_intercept=self.fit_intercept,
            positive=self.positive,
            engine=self.engine,
            tol=self.tol,
        ).fit(X, y, sample_weight)
        for name in ("coef_", "intercept_", "dual_gap_", "n_iter_", "certificate_"):
            setattr(self, name, getattr(final, name))
        single = y.ndim == 1
        self.alpha_ = float(chosen[0]) if single else chosen
        self.alphas_, self.mse_path_, self.path_gap_ = (x[0] if single else x for x in (alphas, error, gap))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """xᵀw + b for every sample: (n,) or (n, k).

        Args:
          X: (n, d).
        """
        return predicted(self, X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _grid(
        self, X: np.ndarray, targets: np.ndarray, sample_weight: np.ndarray | None, eps: float, ratio: float
    ) -> np.ndarray:
        """The α of each target, (k, a), from large to small."""
        if np.ndim(self.alphas):
            alphas = np.sort(float_array("alphas", self.alphas))[::-1]
            if alphas.ndim != 1 or alphas.size == 0 or alphas[-1] <= 0.0:
                raise ValueError(f"alphas must be an integer or numbers > 0 along one axis, got {self.alphas!r}.")
            return np.tile(alphas, (targets.shape[1], 1))
        count = positive_integer("alphas", self.alphas)
        total = total_weight(X, sample_weight)
        largest = alpha_max(
            X,
            targets,
            loss_weight=0.5 / total,
            sample_weight=sample_weight,
            fit_intercept=bool(self.fit_intercept),
        )
        if self.objective == "perspective":  # its slope at zero is 2√(αμ)
            largest = largest / (2.0 * np.sqrt(ratio))
        largest = np.where(largest > 0.0, largest, np.finfo(np.float64).resolution)  # a constant target has any
        return np.geomspace(largest, eps * largest, count, axis=1)

    def _path(
        self,
        rows: Rows,
        target: int,
        total: float,
        alphas: np.ndarray,
        ratio: float,
        constraint: Constraint | None,
        options: SolveOptions,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weights (a, d) of one target of a training part at every α, and their relative gaps (a,)."""
        column = alphas[:, None]
        problem = row_problem(
            rows.design,
            np.repeat(rows.targets[:, target : target + 1], alphas.size, axis=1),
            loss_weight=0.5 / total,
            penalty=penalty_of(self.objective, column, None if self.objective == "l1" else ratio * column),
            constraint=constraint,
        )
        if self.objective == "l1" and self.constraint is None:
            weights = descended(rows, target, alphas * total, positive=bool(self.positive))
        else:
            weights = np.zeros((alphas.size, rows.gram.shape[0]))
        gap = certify(problem, weights).relative_gap
        open_ = np.flatnonzero(~(gap <= min(options.tol, _EXACT)))
        if open_.size:
            solution = solve_problem(problem.take(open_), options)
            better = solution.certificate.relative_gap < gap[open_]
            weights[open_[better]] = solution.weights[better]
            gap[open_[better]] = solution.certificate.relative_gap[better]
        return weights, gap


def descended(rows: Rows, target: int, alphas: np.ndarray, *, positive: bool) -> np.ndarray:
    """The lasso's weights at α (a,), falling, (a, d), by coordinate descent; no better than their certificate.

        min_w  ½ ‖z − Rw‖² + α‖w‖₁

    Source: Friedman, Hastie & Tibshirani, Regularization paths for generalized linear models via coordinate
    descent (2010), §2.2, with ΦᵀΦ; scikit-learn's.
    """
    samples = rows.design.shape[0]
    _, weights, _ = lasso_path(
        rows.design,
        rows.targets[:, target],
        alphas=alphas / samples,
        precompute=rows.gram,
        Xy=rows.products[:, target],
        positive=positive,
        tol=_DESCENT_TOL,
        max_iter=_SWEEPS,
        check_input=False,
    )
    return weights.T


def _training(
    everything: Moments, columns: np.ndarray, weight: np.ndarray | None, train: np.ndarray, test: np.ndarray
) -> Moments:
    """The moments of the samples `train`: those of all less those of `test`, where every sample is in one of them."""

    def of(part: np.ndarray) -> Moments:
        return Moments.of(columns[part], None if weight is None else weight[part])

    parted = np.array_equal(np.sort(np.concatenate([train, test])), np.arange(len(columns)))
    return everything.less(of(test)) if parted else of(train)


def _test_error(columns: np.ndarray, weights: np.ndarray, weight: np.ndarray, target: int) -> np.ndarray:
    """The weighted mean squared error of weights (a, d) on centred columns (n, d + k), (a,)."""
    features = weights.shape[1]
    residual = columns[:, features + target, None] - columns[:, :features] @ weights.T
    return np.average(residual**2, axis=0, weights=weight)
