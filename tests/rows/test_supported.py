"""Rows without slopes by Cholesky factors of one Gram matrix, and the projection their certificate needs."""

import numpy as np
import pytest
from helpers import generator, sparse_rows, with_condition

import simjax
from simjax.rows import gathered
from simjax.rows.gathered import GatheredFactors, project_out
from simjax.rows.solvers.supported import solve_supported_rows

WIDTH, ROWS = 20, 6


def supports(rows=ROWS, share=0.4, seed=0):
    """Random supports, one empty and one full, two of them equal."""
    mask = generator(seed).random((rows, WIDTH)) < share
    mask[1], mask[2], mask[4] = False, True, mask[3]
    return mask


def certified(design, targets, penalty, support, out):
    problem = simjax.row_problem(design, targets, loss_weight=0.5, penalty=penalty, support=support)
    return simjax.certify(problem, out.weights, [out.residuals]).relative_gap


@pytest.mark.parametrize("noise", [0.1, 1e-7])
def test_least_squares_on_supports(noise):
    design, targets = sparse_rows(90, WIDTH, ROWS)
    mask = supports()
    targets = design @ (mask * generator(5).normal(size=mask.shape)).T + noise * targets
    out = solve_supported_rows(design, design.T @ design, targets.T, np.zeros((1, 1)), mask)
    assert out.solved.all()
    assert not out.weights[~mask].any()
    for w, t, allowed in zip(out.weights, targets.T, mask, strict=True):
        expected = np.linalg.lstsq(design[:, allowed], t, rcond=None)[0]
        np.testing.assert_allclose(w[allowed], expected, atol=1e-12)
    assert np.all(certified(design, targets, simjax.NoPenalty(), mask, out) <= 1e-9)


@pytest.mark.parametrize("m", [12, 90])
def test_ridge_on_supports(m):
    design, targets = sparse_rows(m, WIDTH, ROWS)
    mask, alpha = supports(share=0.9), np.geomspace(1e-3, 10.0, ROWS * WIDTH).reshape(ROWS, WIDTH)
    out = solve_supported_rows(design, design.T @ design, targets.T, alpha, mask)
    assert out.solved.all()
    for w, t, allowed, a in zip(out.weights, targets.T, mask, alpha, strict=True):
        part = design[:, allowed]
        expected = np.linalg.solve(part.T @ part + 2.0 * np.diag(a[allowed]), part.T @ t)
        np.testing.assert_allclose(w[allowed], expected, atol=1e-10)
    assert np.all(certified(design, targets, simjax.Ridge(alpha), mask, out) <= 1e-9)


def test_some_coordinates_with_a_ridge_and_some_without():
    design, targets = sparse_rows(90, WIDTH, ROWS)
    alpha = np.where(np.arange(WIDTH) < 10, 0.0, 0.5)[None]
    out = solve_supported_rows(design, design.T @ design, targets.T, alpha)
    assert out.solved.all()
    assert np.all(certified(design, targets, simjax.Ridge(alpha[0]), None, out) <= 1e-9)


def test_dependent_columns_are_handed_back_and_zero_ones_are_not():
    design, targets = sparse_rows(90, WIDTH, ROWS)
    design[:, 3] = 0.0
    design[:, 7] = design[:, 6]
    mask = np.ones((ROWS, WIDTH), dtype=bool)
    mask[:3, 6] = False
    out = solve_supported_rows(design, design.T @ design, targets.T, np.zeros((1, 1)), mask)
    np.testing.assert_array_equal(out.solved, [True, True, True, False, False, False])
    assert not out.weights[:, 3].any()
    assert not out.weights[3:].any()
    np.testing.assert_array_equal(out.residuals[3:], targets.T[3:])
    assert np.all(certified(design, targets, simjax.NoPenalty(), mask, out)[:3] <= 1e-9)


def test_fewer_samples_than_columns_are_handed_back():
    design, targets = sparse_rows(12, WIDTH, ROWS)
    mask = supports()
    mask[2] = True
    out = solve_supported_rows(design, design.T @ design, targets.T, np.zeros((1, 1)), mask)
    np.testing.assert_array_equal(out.solved, mask.sum(axis=1) <= 12)
    assert not out.solved[2]


def test_targets_of_zero():
    design, targets = sparse_rows(90, WIDTH, ROWS)
    out = solve_supported_rows(design, design.T @ design, 0.0 * targets.T, np.zeros((1, 1)), supports())
    assert out.solved.all()
    assert not out.weights.any()
    assert not out.residuals.any()


def test_a_ball_that_the_answer_violates_is_reported():
    design, targets = sparse_rows(90, WIDTH, ROWS)
    gram, omega = design.T @ design, np.where(np.arange(WIDTH) < 14, 1.0, 0.0)[None]
    free = solve_supported_rows(design, gram, targets.T, np.zeros((1, 1)))
    norm = np.sum(omega * np.abs(free.weights), axis=1)
    radius = norm * np.array([0.5, 0.999, 1.001, 2.0, np.inf, 0.9])
    out = solve_supported_rows(design, gram, targets.T, np.zeros((1, 1)), omega=omega, radius=radius[:, None])
    np.testing.assert_array_equal(out.outside, [True, True, False, False, False, True])
    tilt = np.zeros((ROWS, WIDTH))
    tilt[:, 14] = 1.0
    radius = norm + free.weights[:, 14] + np.array([1e-3, -1e-3] * 3)
    out = solve_supported_rows(design, gram, targets.T, np.zeros((1, 1)), omega=omega, tilt=tilt, radius=radius)
    np.testing.assert_array_equal(out.outside, [False, True] * 3)


@pytest.mark.parametrize("condition", [10.0, 1e4])
def test_what_is_projected_is_orthogonal_to_rounding(condition):
    design = with_condition(generator(1), 90, WIDTH, condition)
    mask, duals = supports(), generator(2).normal(size=(ROWS, 90))
    duals[5] = design[:, mask[5]].sum(axis=1) + 1e-6 * duals[5]
    projected, good = project_out(design, design.T @ design, mask, duals)
    assert good.all()
    for y, start, allowed in zip(projected, duals, mask, strict=True):
        basis = np.linalg.qr(design[:, allowed])[0]
        expected = start - basis @ (basis.T @ start)
        expected -= basis @ (basis.T @ expected)
        np.testing.assert_allclose(y, expected, atol=1e-11 * np.linalg.norm(start))
        reach = np.linalg.norm(design[:, allowed], axis=0) * np.linalg.norm(y)
        assert np.all(np.abs(y @ design[:, allowed]) <= 1e-13 * np.sqrt(90) * reach)
    np.testing.assert_array_equal(projected[1], duals[1])


def test_what_lies_in_the_span_is_projected_to_zero():
    design, _ = sparse_rows(90, WIDTH, ROWS)
    mask = supports()
    duals = mask @ design.T
    projected, good = project_out(design, design.T @ design, mask, duals)
    assert good.all()
    assert not projected.any()


def test_ill_conditioned_patterns_are_left_alone():
    design = with_condition(generator(1), 90, WIDTH, 1e8)
    mask = supports()
    mask[5] = np.arange(WIDTH) == 5
    duals = generator(2).normal(size=(ROWS, 90))
    projected, good = project_out(design, design.T @ design, mask, duals)
    assert not good[2]
    assert good[1]
    assert good[5]
    np.testing.assert_array_equal(projected[~good], duals[~good])


def test_tiles_of_little_memory_and_large_factors_change_nothing(monkeypatch):
    design, targets = sparse_rows(90, WIDTH, ROWS)
    mask, gram = supports(), design.T @ design
    expected = solve_supported_rows(design, gram, targets.T, np.zeros((1, 1)), mask)
    monkeypatch.setattr(gathered, "_BYTES", 4000)
    monkeypatch.setattr(gathered, "_ROWS", 1)
    assert len(gathered.row_tiles(mask)) > 1
    out = solve_supported_rows(design, gram, targets.T, np.zeros((1, 1)), mask)
    np.testing.assert_allclose(out.weights, expected.weights, atol=1e-13)
    np.testing.assert_allclose(out.residuals, expected.residuals, atol=1e-12)


def test_rows_of_one_pattern_share_a_factor():
    design, _ = sparse_rows(90, WIDTH, ROWS)
    mask = supports()
    assert len(GatheredFactors.of(design.T @ design, mask).groups) == 4  # one of them empty, two equal
    ridge = np.arange(1.0, ROWS + 1.0)[:, None] * np.ones(WIDTH)
    assert len(GatheredFactors.of(design.T @ design, mask, ridge).groups) == 5
