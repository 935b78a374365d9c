"""alpha_max: zero weights are optimal there, and no longer just below."""

import numpy as np
import pytest
from helpers import generator, sparse_rows

import simjax
from simjax import alpha_max
from simjax.rows.penalty_range import slope_factor

WIDTH, ROWS = 20, 6
OMEGA = np.geomspace(0.5, 2.0, WIDTH)
FAMILIES = {
    "l1": (lambda a: simjax.L1(a * OMEGA), {}),
    "elastic_net": (lambda a: simjax.ElasticNet(a * OMEGA, 0.7), {"mu": 0.7}),
    "elastic_net-own": (lambda a: simjax.ElasticNet(a * OMEGA), {}),
    "perspective": (lambda a: simjax.Perspective(a * OMEGA), {}),
    "perspective-mu": (lambda a: simjax.Perspective(a * OMEGA, 0.7), {"mu": 0.7}),
}
GROUPS = np.arange(WIDTH) % 6


def test_zero_is_optimal_for_groups_there_and_not_below():
    design, targets = sparse_rows(30, WIDTH, ROWS)
    loss = np.geomspace(0.1, 10.0, ROWS)
    for weights in (None, np.linspace(0.5, 2.0, 6)):
        found = alpha_max(design, targets, objective="group_l1", groups=GROUPS, weights=weights, loss_weight=loss)
        slopes = 2.0 * loss[:, None] * (targets.T @ design)
        omega = np.sqrt(np.bincount(GROUPS)) if weights is None else weights
        by_hand = [max(np.linalg.norm(row[g == GROUPS]) / omega[g] for g in range(6)) for row in slopes]
        np.testing.assert_allclose(found, by_hand, rtol=1e-13)
        for share, active in ((1.0 + 1e-12, False), (0.99, True)):
            penalty = simjax.GroupL1(share * found[:, None], GROUPS, weights)
            solution = simjax.solve_rows(design, targets, loss_weight=loss, penalty=penalty, tol=1e-8)
            assert solution.converged
            assert np.all(solution.weights.any(axis=1) == active)
            np.testing.assert_allclose(slope_factor(solution.problem), 1.0 / share, rtol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_zero_is_optimal_there_and_not_below(name):
    penalty, options = FAMILIES[name]
    design, targets = sparse_rows(30, WIDTH, ROWS)
    common = {"loss_weight": np.geomspace(0.1, 10.0, ROWS), "support": generator(3).random((ROWS, WIDTH)) < 0.7}
    found = alpha_max(design, targets, objective=name.split("-")[0], weights=OMEGA, **options, **common)
    assert found.shape == (ROWS,)
    zero = np.zeros((ROWS, WIDTH))

    def gap(share):
        problem = simjax.row_problem(design, targets, penalty=penalty(share * found[:, None]), **common)
        return simjax.certify(problem, zero).relative_gap

    assert np.all(gap(1.0) <= 1e-12)
    assert np.all(gap(1.0 - 1e-3) > 1e-8)
    constraint = simjax.L1Ball(1e3)
    below = simjax.solve_rows(
        design, targets, penalty=penalty(0.99 * found[:, None]), constraint=constraint, tol=1e-8, **common
    )
    assert np.all(below.weights.any(axis=1))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_factor_of_the_slopes_agrees(name):
    penalty, options = FAMILIES[name]
    design, targets = sparse_rows(30, WIDTH, ROWS)
    common = {"loss_weight": np.geomspace(0.1, 10.0, ROWS), "support": generator(3).random((ROWS, WIDTH)) < 0.7}
    expected = alpha_max(design, targets, objective=name.split("-")[0], weights=OMEGA, **options, **common)
    factor = slope_factor(simjax.row_problem(design, targets, penalty=penalty(1.0), **common))
    np.testing.assert_allclose(factor ** (2 if name == "perspective-mu" else 1), expected, rtol=1e-12)


def test_rows_that_no_alpha_or_any_alpha_will_do_for():
    design, targets = sparse_rows(30, WIDTH, ROWS)
    targets[:, 0] = 0.0
    support = np.ones((ROWS, WIDTH), dtype=bool)
    support[1] = False
    omega = np.ones((ROWS, WIDTH))
    omega[2, 4] = 0.0
    found = alpha_max(design, targets, weights=omega, support=support)
    np.testing.assert_array_equal(found[:3], [0.0, 0.0, np.inf])
    np.testing.assert_allclose(found[3:], 2.0 * np.abs(targets.T @ design)[3:].max(axis=1))
    for options in ({"objective": "ridge"}, {"objective": "perspective", "mu": 0.0}):
        expected = [0.0, 0.0, np.inf, np.inf, np.inf, np.inf]
        np.testing.assert_array_equal(alpha_max(design, targets, support=support, **options), expected)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"objective": "least_squares"}, "objective"),
        ({"weights": -1.0}, "weights"),
        ({"weights": np.ones(3)}, "weights"),
        ({"objective": "perspective", "mu": -1.0}, "mu"),
        ({"loss_weight": 0.0}, "loss_weight"),
        ({"targets": np.ones((3, 2))}, "targets"),
    ],
)
def test_what_does_not_fit_is_named(options, match):
    design, targets = sparse_rows(30, WIDTH, ROWS)
    with pytest.raises(ValueError, match=match):
        alpha_max(design, options.pop("targets", targets), **options)
