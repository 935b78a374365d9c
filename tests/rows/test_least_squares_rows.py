"""Rows of plain least squares, however dependent their columns are."""

import numpy as np
import pytest
from helpers import ByHand

import simjax
from simjax.rows._qr import ColumnBasis
from simjax.rows.certificate import certify
from simjax.rows.problem import row_problem
from simjax.rows.solvers.direct import least_squares

M, WIDTH, ROWS = 120, 20, 7


def dependent_columns(scale: float) -> np.ndarray:
    """Columns of which half are others plus noise of that relative size, with norms over sixty decades."""
    rng = np.random.default_rng(0)
    design = rng.normal(size=(M, WIDTH))
    half = WIDTH // 2
    design[:, half:] = design[:, :half] + scale * rng.normal(size=(M, half))
    return design * np.geomspace(1e-60, 1.0, WIDTH)[rng.permutation(WIDTH)]


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-9, 1e-15])
def test_dependent_columns_are_certified(scale):
    """Columns that differ by 1e-9 of their norm: too near for ΦᵀΦ, far enough for Φ."""
    design = dependent_columns(scale)
    targets = np.random.default_rng(1).normal(size=(M, ROWS))
    solution = simjax.solve_rows(design, targets, penalty=simjax.NoPenalty(), max_iters=500)
    assert solution.converged
    normed = design / np.linalg.norm(design, axis=0)
    coefficients = np.linalg.lstsq(normed, targets, rcond=1e-13)[0]
    optimum = np.sum((targets - normed @ coefficients) ** 2, axis=0)
    np.testing.assert_allclose(solution.certificate.objective, optimum, rtol=1e-6)


@pytest.mark.parametrize("bounded", [0, 3])
def test_free_rows_cost_no_passes(bounded):
    """First-order passes gain nothing on rows without penalty and ball: none are made for them alone."""
    design = dependent_columns(1e-9)
    targets = np.random.default_rng(1).normal(size=(M, ROWS))
    radius = np.where(np.arange(ROWS) < bounded, 1e-3, np.inf)
    solution = simjax.solve_rows(
        design, targets, penalty=simjax.NoPenalty(), constraint=simjax.L1Ball(radius), max_iters=5000
    )
    assert solution.converged
    assert np.all(solution.passes <= (500 if bounded else 0))


def test_each_row_keeps_to_its_support():
    rng = np.random.default_rng(2)
    design, targets = dependent_columns(1e-9), rng.normal(size=(M, ROWS))
    support = rng.random((ROWS, WIDTH)) < 0.5
    support[-1] = False
    problem = row_problem(design, targets, loss_weight=1.0, penalty=simjax.NoPenalty(), support=support)
    weights, residuals = least_squares(problem)
    assert np.all(weights[~support] == 0.0)
    np.testing.assert_allclose(residuals, targets.T - weights @ design.T, atol=1e-6)
    certificate = certify(problem, weights, [2.0 * residuals])
    assert np.all(certificate.relative_gap <= 1e-9)


def test_column_basis_spans_the_columns_to_rounding():
    design = dependent_columns(1e-15)
    found = ColumnBasis.of(design)
    assert found.basis.shape == (M, WIDTH // 2)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(WIDTH // 2), atol=1e-13)
    normed = design / np.linalg.norm(design, axis=0)
    left = normed - found.basis @ (found.basis.T @ normed)
    assert np.abs(left).max() <= 1e-13


def test_nearly_exact_rows_in_a_wide_ball():
    """A ball that does not bind still weighs the slopes of its coordinates: they have to be zero to rounding."""
    rng = np.random.default_rng(3)
    design = rng.normal(size=(M, WIDTH))
    targets = design @ rng.normal(size=(WIDTH, ROWS))
    targets += 1e-5 * rng.normal(size=targets.shape)
    solution = simjax.solve_rows(
        design, targets, penalty=simjax.NoPenalty(), constraint=simjax.L1Ball(1e3, size=WIDTH // 2)
    )
    assert solution.converged


def test_a_penalty_of_the_users_own_is_not_taken_for_none():
    """Rows that stay open are asked whether there is a penalty, in double precision, whatever is asked of it."""
    rng = np.random.default_rng(4)
    design, targets = rng.normal(size=(M, WIDTH)), rng.normal(size=(M, ROWS))
    with pytest.warns(simjax.ConvergenceWarning):
        solution = simjax.solve_rows(design, targets, penalty=ByHand(simjax.L1(20.0)), max_iters=1)
    assert not solution.converged
    least = np.linalg.lstsq(design, targets, rcond=None)[0].T
    assert np.abs(solution.weights - least).max() > 1e-3
