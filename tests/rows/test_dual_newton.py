"""Newton's method on the dual: dense rows over independent columns in a few steps, with an exact answer."""

import numpy as np
import pytest
from helpers import generator

import simjax
from simjax.rows.solvers.canonical import canonical_rows
from simjax.rows.solvers.dual_newton import invertible_gram, solve
from simjax.rows.solvers.tiles import gram_of
from simjax.rows.workspace import Workspace

M, WIDTH, ROWS, SEEN = 200, 60, 12, 40
PENALTIES = {
    "l1": lambda a: simjax.L1(a),
    "elastic_net": lambda a: simjax.ElasticNet(a, 0.3 * a),
    "ridge": lambda a: simjax.Ridge(a),
    "perspective": lambda a: simjax.Perspective(a, a),
    "perspective-knot": lambda a: simjax.Perspective(a, 0.01 * a),
    "weighted": lambda a: simjax.L1(a * np.geomspace(0.1, 10.0, WIDTH)),
    "none": lambda a: simjax.L1(0.0),
}


def rows_of(condition, zeros=0):
    """A design of a given condition number with some columns of zeros, and targets of dense truths with noise."""
    rng = generator(3)
    left, _ = np.linalg.qr(rng.normal(size=(M, WIDTH)))
    right, _ = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))
    design = (left * np.geomspace(1.0, 1.0 / condition, WIDTH)) @ right.T * np.sqrt(M)
    design[:, WIDTH - zeros :] = 0.0
    return design, design @ rng.normal(size=(WIDTH, ROWS)) + 0.05 * rng.normal(size=(M, ROWS))


def solved(design, targets, penalty, constraint=None, support=None, start=None):
    """Weights in the units of the problem, what the certificate says of them, steps, and which rows have ended."""
    problem = simjax.row_problem(
        design, targets, loss_weight=0.5, penalty=penalty, constraint=constraint, support=support
    )
    workspace = Workspace(problem.design)
    factorisation = workspace.scaled.factorisation(precise=False)
    coordinates = workspace.scaled.coordinates(problem.targets, precise=False)
    rows = canonical_rows(problem, factorisation, coordinates, workspace.column_scale)
    shared = invertible_gram(factorisation, lambda: gram_of(factorisation).matrix)
    bound = None if rows.bound is None else (rows.bound.omega, rows.bound.radius[:, 0])
    terms = rows.penalty.slope, rows.penalty.curvature, rows.penalty.knot, bound, rows.support
    start = None if start is None else start / rows.point_scale
    weights, steps, ended = solve(shared, rows.targets, *terms, start)
    weights = weights * rows.point_scale
    return weights, simjax.certify(problem, weights), steps, ended


@pytest.mark.parametrize(("alpha", "most"), [(1e-3, 10), (0.1, 15), (10.0, 50)])
@pytest.mark.parametrize("name", PENALTIES)
def test_rows_end_in_a_few_steps_and_are_exact(name, alpha, most):
    weights, certificate, steps, ended = solved(*rows_of(100.0, zeros=3), PENALTIES[name](alpha))
    assert ended.all()
    assert steps.max() <= most
    # A demand |s| ≤ c that rounding misses costs ‖φ‖‖t‖/c times that rounding.
    assert certificate.relative_gap.max() <= 1e-9
    assert np.all(weights[:, -3:] == 0.0)


@pytest.mark.parametrize("name", PENALTIES)
def test_the_ball_binds_where_it_must(name):
    radius = np.geomspace(0.1, 200.0, ROWS)
    radius[-1] = np.inf
    omega = np.geomspace(0.5, 2.0, SEEN)
    constraint = simjax.L1Ball(radius, SEEN, omega)
    weights, certificate, _, ended = solved(*rows_of(30.0), PENALTIES[name](0.1), constraint)
    assert ended.all()
    norm = np.abs(weights[:, :SEEN]) @ omega
    assert np.all(norm <= radius * (1.0 + 1e-10))
    assert np.count_nonzero(norm >= radius * (1.0 - 1e-10)) >= 4
    # Weights at the ball's border to rounding: the certificate allows for no more than that.
    assert certificate.relative_gap.max() <= 1e-9


@pytest.mark.parametrize("name", PENALTIES)
def test_a_support_is_kept(name):
    support = generator(4).random((ROWS, WIDTH)) < 0.5
    weights, certificate, _, ended = solved(*rows_of(100.0), PENALTIES[name](0.1), support=support)
    assert ended.all()
    assert np.all(weights[~support] == 0.0)
    assert certificate.relative_gap.max() <= 1e-11


def test_a_start_near_the_answer_needs_fewer_steps():
    design, targets = rows_of(100.0)
    _, _, cold, _ = solved(design, targets, simjax.L1(1.0))
    near, *_ = solved(design, targets, simjax.L1(1.1))
    _, certificate, warm, ended = solved(design, targets, simjax.L1(1.0), start=near)
    assert ended.all()
    assert certificate.relative_gap.max() <= 1e-11
    assert warm.sum() < 0.7 * cold.sum()


def test_dependent_columns_are_refused():
    design, _ = rows_of(100.0)
    for dependent in (design[:30], np.column_stack([design, design[:, 0]]), design * np.r_[np.ones(WIDTH - 1), 1e-6]):
        workspace = Workspace(dependent)
        workspace.column_scale[:] = 1.0
        factorisation = Workspace(dependent).scaled.factorisation(precise=False)
        shared = invertible_gram(factorisation, lambda f=factorisation: gram_of(f).matrix)
        assert (shared is None) == (dependent.shape != design.shape)


def test_it_is_what_solves_dense_rows_of_many_samples():
    design, targets = rows_of(100.0)
    solution = simjax.solve_rows(design, targets, loss_weight=0.5, penalty=simjax.L1(0.1), engine="numpy")
    assert solution.converged
    assert np.all(solution.passes == 0)
    assert np.all(solution.newton_steps > 0)
