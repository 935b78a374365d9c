"""The estimators: scikit-learn's contract, scikit-learn's answers, and the certificates that it does not have."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, Lasso, LassoCV, LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import simjax
from simjax.sklearn import SparseRegressor, SparseRegressorCV

EXACT = {"tol": 1e-14, "max_iter": 1_000_000}


@pytest.fixture(scope="module")
def diabetes():
    return load_diabetes(return_X_y=True)


@parametrize_with_checks([SparseRegressor(alpha=0.1), SparseRegressorCV(alphas=5, cv=3)])
def test_scikit_learns_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SparseRegressor(alpha=0.1), Lasso(alpha=0.1, **EXACT)),
        (SparseRegressor(alpha=0.1, fit_intercept=False), Lasso(alpha=0.1, fit_intercept=False, **EXACT)),
        (SparseRegressor(alpha=0.1, positive=True), Lasso(alpha=0.1, positive=True, **EXACT)),
        (SparseRegressor("elastic_net", alpha=0.2, mu=0.05), ElasticNet(alpha=0.3, l1_ratio=2 / 3, **EXACT)),
        (SparseRegressor("ridge", alpha=0.01), Ridge(alpha=0.02 * 442)),
        (SparseRegressor("least_squares"), LinearRegression()),
    ],
)
def test_weights_are_scikit_learns(diabetes, ours, theirs):
    ours, theirs = ours.fit(*diabetes), theirs.fit(*diabetes)
    scale = np.abs(theirs.coef_).max()
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-6, atol=1e-6 * scale)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-6, atol=1e-8)
    assert ours.certificate_.relative_gap.max() <= 1e-6
    assert ours.dual_gap_ == ours.certificate_.gap[0]


def test_weights_of_the_samples_are_scikit_learns(diabetes):
    weight = np.random.default_rng(0).uniform(0.0, 2.0, 442)
    ours = SparseRegressor(alpha=0.2).fit(*diabetes, sample_weight=weight)
    theirs = Lasso(alpha=0.2, **EXACT).fit(*diabetes, sample_weight=weight)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6 * np.abs(theirs.coef_).max())


def test_targets_are_rows_of_their_own(diabetes):
    samples, target = diabetes
    targets = np.column_stack([target, -3.0 * target + samples[:, 0], np.zeros(442)])
    both = SparseRegressor(alpha=0.3).fit(samples, targets)
    assert both.coef_.shape == (3, 10)
    assert both.intercept_.shape == both.dual_gap_.shape == both.n_iter_.shape == (3,)
    for k in range(3):
        alone = SparseRegressor(alpha=0.3).fit(samples, targets[:, k])
        np.testing.assert_allclose(both.coef_[k], alone.coef_, atol=1e-7 * (1.0 + np.abs(alone.coef_).max()))
    np.testing.assert_allclose(both.predict(samples)[:, 0], samples @ both.coef_[0] + both.intercept_[0])


def test_constraints_and_the_perspective(diabetes):
    samples, target = diabetes
    ball = SparseRegressor("perspective", alpha=1e-3, constraint=simjax.L1Ball(500.0), positive=True).fit(*diabetes)
    assert np.abs(ball.coef_).sum() <= 500.0 * (1.0 + 1e-12)
    assert ball.coef_.min() >= 0.0
    assert ball.certificate_.relative_gap.max() <= 1e-6
    free = SparseRegressor("perspective", alpha=1e-3).fit(samples, target)
    assert free.coef_.min() < 0.0


def test_sparse_samples(diabetes):
    samples = np.where(np.random.default_rng(0).random((442, 10)) < 0.3, diabetes[0], 0.0)
    dense, sparse = (
        SparseRegressor(alpha=0.05).fit(x, diabetes[1]) for x in (samples, scipy.sparse.csr_array(samples))
    )
    np.testing.assert_allclose(sparse.coef_, dense.coef_, atol=1e-6 * np.abs(dense.coef_).max())
    np.testing.assert_allclose(sparse.predict(scipy.sparse.csc_array(samples)), dense.predict(samples), rtol=1e-6)


def test_an_uncertified_target_says_so(diabetes, recwarn):
    with pytest.warns(simjax.ConvergenceWarning):
        found = SparseRegressor(alpha=0.1, tol=1e-300).fit(*diabetes)
    assert found.dual_gap_ > 0.0


def test_in_a_pipeline_and_a_grid_search(diabetes):
    model = make_pipeline(StandardScaler(), SparseRegressor())
    search = GridSearchCV(model, {"sparseregressor__alpha": [0.1, 1.0, 1000.0]}, cv=3).fit(*diabetes)
    assert search.best_params_["sparseregressor__alpha"] < 1000.0
    assert search.best_estimator_.score(*diabetes) > 0.4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"objective": "lasso"}, ValueError, "objective"),
        ({"alpha": -1.0}, ValueError, "alpha"),
        ({"alpha": np.nan}, ValueError, "alpha"),
        ({"tol": 0.0}, ValueError, "tol"),
        ({"engine": "torch"}, ValueError, "engine"),
        ({"constraint": 0.5}, TypeError, "constraint"),
        ({"constraint": simjax.MetzlerRow(0.5, np.array([0])), "positive": True}, ValueError, "constraint"),
        ({"constraint": 0.5, "positive": True}, TypeError, "constraint"),
    ],
)
def test_bad_arguments_are_named(diabetes, arguments, error, message):
    with pytest.raises(error, match=message):
        SparseRegressor(**arguments).fit(*diabetes)


# --- Cross-validation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"positive": True}, {"fit_intercept": False}])
def test_path_and_choice_are_those_of_lasso_cv(diabetes, arguments):
    ours, theirs = SparseRegressorCV(**arguments).fit(*diabetes), LassoCV(cv=5, **arguments, **EXACT).fit(*diabetes)
    np.testing.assert_allclose(ours.alphas_, theirs.alphas_, rtol=1e-12)
    np.testing.assert_allclose(ours.mse_path_, theirs.mse_path_, rtol=1e-6)
    assert ours.alpha_ == pytest.approx(theirs.alpha_, rel=1e-12)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6 * np.abs(theirs.coef_).max())
    assert ours.path_gap_.shape == (100, 5)
    assert ours.path_gap_.max() <= 1e-6


@pytest.mark.slow
def test_path_and_choice_on_a_larger_design():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(2000, 500))
    target = samples[:, :20] @ rng.normal(size=20) + rng.normal(size=2000)
    ours = SparseRegressorCV().fit(samples, target)
    theirs = LassoCV(cv=5, tol=1e-12, max_iter=1_000_000).fit(samples, target)
    np.testing.assert_allclose(ours.mse_path_, theirs.mse_path_, rtol=1e-6)
    assert ours.alpha_ == pytest.approx(theirs.alpha_, rel=1e-12)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)


def test_sample_weights_count_in_fits_and_errors(diabetes):
    weight = np.random.default_rng(1).uniform(0.1, 2.0, 442)
    ours = SparseRegressorCV().fit(*diabetes, sample_weight=weight)
    theirs = LassoCV(cv=5, **EXACT).fit(*diabetes, sample_weight=weight)
    np.testing.assert_allclose(ours.mse_path_, theirs.mse_path_, rtol=1e-6)
    assert ours.alpha_ == pytest.approx(theirs.alpha_, rel=1e-12)


def test_fewer_samples_than_features_and_a_splitter_that_leaves_some_out():
    rng = np.random.default_rng(2)
    samples = rng.normal(size=(60, 90))
    target = samples[:, :3].sum(axis=1) + 0.1 * rng.normal(size=60)
    splitter = ShuffleSplit(3, train_size=0.6, test_size=0.2, random_state=0)
    ours = SparseRegressorCV(alphas=20, eps=0.05, cv=splitter).fit(samples, target)
    theirs = LassoCV(alphas=ours.alphas_, cv=splitter, **EXACT).fit(samples, target)
    np.testing.assert_allclose(ours.mse_path_, theirs.mse_path_, rtol=1e-5)
    assert ours.alpha_ == pytest.approx(theirs.alpha_, rel=1e-12)


@pytest.mark.parametrize("objective", ["elastic_net", "perspective"])
def test_other_objectives_are_fits_of_each_fold(diabetes, objective):
    samples, target = diabetes
    found = SparseRegressorCV(objective, alphas=4, mu_ratio=0.5, cv=2).fit(samples, target)
    assert found.path_gap_.max() <= 1e-6
    train = np.arange(221, 442)  # the first of two folds tests on the first half
    for k, alpha in enumerate(found.alphas_):
        alone = SparseRegressor(objective, alpha=alpha, mu=0.5 * alpha, tol=1e-10).fit(samples[train], target[train])
        error = np.mean((target[:221] - alone.predict(samples[:221])) ** 2)
        assert found.mse_path_[k, 0] == pytest.approx(error, rel=1e-4)
    assert found.alpha_ in found.alphas_


def test_every_target_has_its_own_grid_and_choice(diabetes):
    samples, target = diabetes
    targets = np.column_stack([target, 100.0 * samples[:, 1]])
    both = SparseRegressorCV(alphas=10, cv=3).fit(samples, targets)
    assert both.alphas_.shape == (2, 10)
    assert both.mse_path_.shape == both.path_gap_.shape == (2, 10, 3)
    for k in range(2):
        alone = SparseRegressorCV(alphas=10, cv=3).fit(samples, targets[:, k])
        assert both.alpha_[k] == pytest.approx(alone.alpha_, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "ridge"}, "objective"),
        ({"alphas": 0}, "alphas"),
        ({"alphas": [0.1, -1.0]}, "alphas"),
        ({"eps": 1.0}, "eps"),
        ({"mu_ratio": 0.0}, "mu_ratio"),
    ],
)
def test_bad_arguments_of_cross_validation(diabetes, arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseRegressorCV(**arguments).fit(*diabetes)
