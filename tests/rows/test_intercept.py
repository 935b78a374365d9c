"""Free intercepts and weights of samples: the problem with a column of ones that pays nothing, and samples repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import generator
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import Lasso

import simjax
from simjax import SufficientStatistics
from simjax.rows.certificate import certify
from simjax.rows.problem import row_problem

M, D, R = 50, 14, 4
PENALTIES = {
    "l1": lambda zero: simjax.L1(np.append(np.full(D, 2.0), zero)),
    "elastic net": lambda zero: simjax.ElasticNet(np.append(np.full(D, 2.0), zero), np.append(np.full(D, 0.3), zero)),
    "ridge": lambda zero: simjax.Ridge(np.append(np.full(D, 0.5), zero)),
}


def samples(seed: int = 0, m: int = M) -> tuple[np.ndarray, np.ndarray]:
    """A design and targets far from centred."""
    rng = generator(seed)
    design = rng.normal(size=(m, D)) + rng.normal(size=D) * 5.0
    weights = rng.normal(size=(D, R)) * (rng.random((D, R)) < 0.4)
    return design, design @ weights + rng.normal(size=R) * 50.0 + 0.3 * rng.normal(size=(m, R))


def without_zero(kind: str) -> Any:
    """The penalty of the D columns alone."""
    return {"l1": simjax.L1(2.0), "elastic net": simjax.ElasticNet(2.0, 0.3), "ridge": simjax.Ridge(0.5)}[kind]


def with_ones(design: np.ndarray) -> np.ndarray:
    return np.append(design, np.ones((len(design), 1)), axis=1)


@pytest.mark.parametrize("constraint", [None, simjax.L1Ball(0.6, size=6)], ids=["free", "ball"])
@pytest.mark.parametrize("kind", PENALTIES)
def test_an_intercept_is_a_column_of_ones_that_pays_nothing(kind: str, constraint: Any) -> None:
    design, targets = samples()
    found = simjax.solve_rows(
        design, targets, penalty=without_zero(kind), constraint=constraint, fit_intercept=True, tol=1e-10
    )
    stated = {"penalty": PENALTIES[kind](0.0), "constraint": constraint}
    oracle = simjax.solve_rows(with_ones(design), targets, solver="clarabel", tol=1e-7, **stated)
    assert found.converged
    assert found.verify().ok
    assert_allclose(found.certificate.objective, oracle.certificate.objective, rtol=1e-8)
    explicit = row_problem(with_ones(design), targets, **stated)
    whole = np.append(found.weights, found.intercept[:, None], axis=1)
    # The weights, intercept and dual points of the centred rows prove the rows with the explicit column.
    proved = certify(explicit, whole, [found.certificate.dual])
    assert_allclose(proved.objective, found.certificate.objective, rtol=1e-11)
    assert np.all(proved.relative_gap <= 1e-8)
    assert np.abs(found.certificate.dual.sum(axis=1)).max() <= 1e-12 * np.abs(found.certificate.dual).max() * M
    best = simjax.solve_rows(with_ones(design), targets, tol=1e-11, **stated)
    assert_allclose(whole, best.weights, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("solver", ["auto", "admm", "proximal_gradient", "clarabel"])
@pytest.mark.parametrize("engine", ["numpy", "jax"])
def test_every_solver_and_engine_gives_what_scikit_learn_does(solver: str, engine: str) -> None:
    design, targets = samples(1)
    tol = 1e-7 if solver == "clarabel" else 1e-10
    found = simjax.solve_rows(
        design, targets, penalty=simjax.L1(5.0), fit_intercept=True, solver=solver, engine=engine, tol=tol
    )
    assert found.converged
    for k in range(R):
        lasso = Lasso(5.0 / (2 * M), tol=1e-12, max_iter=100_000).fit(design, targets[:, k])
        assert_allclose(found.weights[k], lasso.coef_, atol=1e-6)
        assert_allclose(found.intercept[k], lasso.intercept_, atol=2e-5 if solver == "clarabel" else 1e-6)


def test_exact_matching_with_an_intercept() -> None:
    rng = generator(2)
    design = rng.normal(size=(10, 30)) + 3.0
    targets = design @ (rng.normal(size=(30, 3)) * (rng.random((30, 3)) < 0.1)) + np.array([7.0, -40.0, 0.0])
    found = simjax.solve_rows(design, targets, penalty=simjax.L1(1.0), matching="exact", fit_intercept=True)
    assert found.converged
    assert found.verify().ok
    assert_allclose(design @ found.weights.T + found.intercept, targets, atol=1e-8)
    free = np.append(np.ones(30), 0.0)
    explicit = simjax.solve_rows(with_ones(design), targets, penalty=simjax.L1(free), matching="exact", tol=1e-8)
    assert explicit.converged
    assert_allclose(found.certificate.objective, explicit.certificate.objective, rtol=1e-6)
    # A constant target costs nothing, whatever the design.
    constant = simjax.solve_rows(design, np.full((10, 1), 4.0), penalty=simjax.L1(1.0), matching="exact",
                                 fit_intercept=True)  # fmt: skip
    assert constant.converged
    assert not np.any(constant.weights)
    assert constant.intercept[0] == 4.0


def test_infeasible_rows_stay_proved_with_an_intercept() -> None:
    design, targets = samples(3)
    found = None
    with pytest.warns(simjax.ConvergenceWarning):
        found = simjax.solve_rows(design, targets, penalty=simjax.L1(1.0), matching="exact", fit_intercept=True)
    assert set(found.status) == {"INFEASIBLE"}
    rays = found.certificate.dual
    assert_allclose(rays.sum(axis=1), 0.0, atol=1e-10 * np.abs(rays).max())
    assert found.verify().ok


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("kind", PENALTIES)
def test_a_weight_of_two_is_the_sample_given_twice(kind: str, intercept: bool) -> None:
    design, targets = samples(4)
    times = generator(5).integers(0, 4, M)
    design[times == 0] = 1e6  # left out
    options: dict[str, Any] = {"penalty": without_zero(kind), "fit_intercept": intercept, "tol": 1e-12}
    weighted = simjax.solve_rows(design, targets, sample_weight=times.astype(float), **options)
    repeated = simjax.solve_rows(np.repeat(design, times, axis=0), np.repeat(targets, times, axis=0), **options)
    assert weighted.converged
    assert repeated.converged
    assert_allclose(weighted.weights, repeated.weights, rtol=1e-10, atol=1e-10)
    assert_allclose(weighted.certificate.objective, repeated.certificate.objective, rtol=1e-10)
    if intercept:
        assert_allclose(weighted.intercept, repeated.intercept, rtol=1e-10)


def test_alpha_max_knows_weights_and_intercepts() -> None:
    design, targets = samples(6)
    times = generator(7).integers(1, 4, M)
    options = {"sample_weight": times, "fit_intercept": True}
    largest = simjax.alpha_max(design, targets, **options)
    alphas = np.repeat(largest[:, None], D, axis=1)
    above = simjax.solve_rows(design, targets, penalty=simjax.L1(alphas * 1.0001), **options)
    below = simjax.solve_rows(design, targets, penalty=simjax.L1(alphas * 0.999), **options)
    assert not np.any(above.weights)
    assert np.all(np.any(below.weights != 0.0, axis=1))
    assert_allclose(above.intercept, np.average(targets, axis=0, weights=times))


def test_constant_columns_and_large_means_are_no_noise() -> None:
    design, targets = samples(8)
    design[:, 3], design[:, 4] = 0.1, np.resize([0.3, 0.1 + 0.2], M)  # constant, and constant but for rounding
    found = simjax.solve_rows(design, targets, penalty=simjax.NoPenalty(), fit_intercept=True, tol=1e-9)
    assert found.converged
    assert not np.any(found.weights[:, 3:5])
    shift = 2.0**30
    moved = simjax.solve_rows(design + shift, targets + shift, penalty=simjax.NoPenalty(), fit_intercept=True, tol=1e-9)
    assert moved.converged
    assert_allclose(moved.weights, found.weights, rtol=1e-5, atol=1e-5)  # the samples themselves were rounded


def test_another_intercept_costs_what_it_costs() -> None:
    design, targets = samples(9)
    times = generator(9).integers(1, 4, M).astype(float)
    found = simjax.solve_rows(design, targets, penalty=simjax.L1(1.0), fit_intercept=True, sample_weight=times)
    intercept = found.intercept + 0.5
    proved = certify(found.problem, found.weights, [found.certificate.dual], intercept=intercept)
    residual = targets - design @ found.weights.T - intercept
    expected = times @ residual**2 + np.abs(found.weights).sum(axis=1)
    assert_allclose(proved.objective, expected, rtol=1e-12)
    assert_allclose(proved.gap - found.certificate.gap, times.sum() * 0.25, rtol=1e-6)


def test_blocks_of_rows_have_intercepts_too() -> None:
    design, targets = samples(10)
    targets = np.tile(targets, (1, 5))
    options: dict[str, Any] = {"penalty": simjax.L1(2.0), "fit_intercept": True}
    whole = simjax.solve_rows(design, targets, **options)
    blocks = simjax.solve_rows(design, targets, max_memory=1e5, **options)
    assert not isinstance(blocks.weights, np.ndarray)
    assert_allclose(blocks.intercept, whole.intercept, rtol=1e-6)


def test_statistics_take_weights_and_give_means() -> None:
    design, targets = samples(11)
    times = generator(12).integers(0, 3, M).astype(float)
    design[:, 2] = 0.7
    statistics = SufficientStatistics(D + 1, R)
    for part in (slice(0, 20), slice(20, M)):
        statistics.update(with_ones(design)[part], targets[part], times[part])
    assert statistics.total_weight == times.sum()
    assert statistics.m == M
    rest, means = statistics.without_last()
    assert_allclose(means, np.average(np.hstack([design, targets]), axis=0, weights=times), rtol=1e-12)
    small, small_targets = rest.compressed()
    assert_array_equal(small[:, 2], 0.0)
    centred = np.sqrt(times)[:, None] * (design - means[:D])
    assert_allclose(small.T @ small, centred.T @ centred, atol=1e-10)
    moved = np.sqrt(times)[:, None] * (targets - means[D:])
    assert_allclose(small.T @ small_targets, centred.T @ moved, atol=1e-9)
    assert_allclose(np.sum(small_targets**2, axis=0), np.sum(moved**2, axis=0))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(M - 1), rf"one number for each of the {M} samples, got shape \({M - 1},\)"),
        (np.r_[-1.0, np.ones(M - 1)], ">= 0, got -1"),
        (np.r_[np.nan, np.ones(M - 1)], "sample_weight must be finite, got 1 NaN"),
        (np.zeros(M), "positive for one sample at least"),
    ],
)
def test_bad_weights_are_refused(weight: np.ndarray, message: str) -> None:
    design, targets = samples()
    with pytest.raises(ValueError, match=message):
        simjax.solve_rows(design, targets, penalty=simjax.L1(1.0), sample_weight=weight)


def test_an_intercept_is_asked_for_by_true() -> None:
    design, targets = samples()
    with pytest.raises(TypeError, match="fit_intercept must be True or False, got 'auto'"):
        simjax.solve_rows(design, targets, penalty=simjax.L1(1.0), fit_intercept="auto")  # type: ignore[arg-type]
