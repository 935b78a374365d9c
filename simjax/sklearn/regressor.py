"""`SparseRegressor`: the row solver as an estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from simjax._checks import choice
from simjax.rows.certificate import Certificate
from simjax.rows.constraints import Constraint
from simjax.rows.penalties import OBJECTIVES, Penalty
from simjax.rows.solution import dense_rows
from simjax.rows.solve import solve_rows
from simjax.sklearn.samples import constraint_of, samples_of, total_weight


class SparseRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Linear regression with a sparse penalty, every target certified by a duality gap.

        min over w, b of  1/(2Σv) Σᵢ vᵢ (yᵢ − b − xᵢᵀw)² + h(w)     s.t.  w in the constraint

    with v the sample weights, or ones. This is scikit-learn's scale: with `objective="l1"` it is its `Lasso` of the
    same alpha. Several targets are solved together, each as a problem of its own (a row), not as a multi-task lasso.

    Args:
      objective: the penalty h, each a sum over coordinates (SIM paper, eq. 4–6):

        | "l1"            | α |w|                                  | `Lasso(alpha=α)`                                  |
        | "elastic_net"   | α |w| + μ w²                           | `ElasticNet(alpha=α + 2μ, l1_ratio=α/(α + 2μ))`   |
        | "perspective"   | min over t in [0, 1] of α w²/t + μ t   |                                                   |
        | "ridge"         | α w²                                   | `Ridge(alpha=2α Σv)`                              |
        | "least_squares" | 0                                      | `LinearRegression()`                              |

      alpha: α ≥ 0, a scalar, one per feature (d,), or one per target and feature (k, d).
      mu: μ ≥ 0, of the same kinds; None means μ = α.
      constraint: `simjax.L1Ball`, `Box`, or None.
      fit_intercept: whether there is a b, which is neither penalised nor constrained.
      positive: whether weights must be ≥ 0; with an `L1Ball` they are in both. Not with another constraint.
      engine: "auto", "numpy" or "jax"; see `simjax.solve_rows`.
      tol: relative duality gap at which a target counts as solved. One that misses it causes a
        `simjax.ConvergenceWarning`.

    Attributes:
      coef_: w, (d,), or (k, d) where y had two axes; exactly sparse.
      intercept_: b, a float or (k,).
      dual_gap_: by how much the objective may be above the optimum, at most: a float or (k,).
      n_iter_: passes over the samples, a float's int or (k,); 0 for what needs none.
      certificate_: the `simjax.Certificate`, one row per target.
      n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Examples:
      >>> import numpy as np
      >>> from simjax.sklearn import SparseRegressor
      >>> X = np.random.default_rng(0).normal(size=(100, 20))
      >>> y = X[:, :2] @ [1.0, -2.0] + 3.0
      >>> model = SparseRegressor(alpha=0.1).fit(X, y)
      >>> np.flatnonzero(model.coef_).tolist(), bool(model.dual_gap_ < 1e-6)
      ([0, 1], True)
    """

    def __init__(
        self,
        objective: str = "l1",
        *,
        alpha: Any = 1.0,
        mu: Any = None,
        constraint: Constraint | None = None,
        fit_intercept: bool = True,
        positive: bool = False,
        engine: str = "auto",
        tol: float = 1e-6,
    ) -> None:
        self.objective = objective
        self.alpha = alpha
        self.mu = mu
        self.constraint = constraint
        self.fit_intercept = fit_intercept
        self.positive = positive
        self.engine = engine
        self.tol = tol

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SparseRegressor:
        """Solve for the weights of every target.

        Args:
          X: (n, d), an array, a frame, or a matrix of scipy.sparse.
          y: (n,) or (n, k).
          sample_weight: v ≥ 0, (n,), or None.

        Raises:
          TypeError, ValueError: naming the argument, what was got and what was expected.
        """
        penalty = penalty_of(self.objective, self.alpha, self.mu)
        constraint = constraint_of(self.constraint, self.positive)
        X, y, sample_weight = samples_of(self, X, y, sample_weight)
        targets = y.reshape(y.shape[0], -1)
        solution = solve_rows(
            X,
            targets,
            loss_weight=0.5 / total_weight(X, sample_weight),
            penalty=penalty,
            constraint=constraint,
            sample_weight=sample_weight,
            fit_intercept=bool(self.fit_intercept),
            engine=self.engine,
            tol=self.tol,
        )
        intercept = np.zeros(targets.shape[1]) if solution.intercept is None else solution.intercept
        _keep(self, dense_rows(solution.weights), intercept, solution.certificate, solution.passes, y.ndim == 1)
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


def penalty_of(objective: str, alpha: Any, mu: Any) -> Penalty:
    """The penalty of that name.

    Raises:
      TypeError, ValueError: naming objective, alpha or mu.
    """
    make = OBJECTIVES[choice("objective", objective, OBJECTIVES)]
    return make(alpha, mu)


def predicted(model: Any, X: Any) -> np.ndarray:
    """What a fitted model of this package predicts."""
    check_is_fitted(model)
    X = validate_data(model, X, accept_sparse=("csr", "csc", "coo"), dtype=np.float64, reset=False)
    return X @ model.coef_.T + model.intercept_


def _keep(
    model: Any, weights: np.ndarray, intercept: np.ndarray, certificate: Certificate, passes: np.ndarray, single: bool
) -> None:
    """Set what a fit found; `single` where there was one target without an axis of its own."""
    model.certificate_ = certificate
    if single:
        model.coef_, model.intercept_ = weights[0], float(intercept[0])
        model.dual_gap_, model.n_iter_ = float(certificate.gap[0]), int(passes[0])
    else:
        model.coef_, model.intercept_ = weights, intercept
        model.dual_gap_, model.n_iter_ = certificate.gap, passes
