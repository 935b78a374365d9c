"""Working sets: sparse rows solved exactly and proved, dense ones given up."""

import numpy as np
import pytest
from helpers import generator, sparse_rows
from sklearn.linear_model import Lasso

import simjax
from simjax.rows.solvers import working_set
from simjax.rows.solvers.orthant_newton import Subproblems, solve_subproblems
from simjax.rows.solvers.working_set import Columns, RowTerms, solve_sparse_rows

WIDTH, ROWS = 120, 9
PENALTIES = {
    "l1": lambda a: simjax.L1(a),
    "elastic_net": lambda a: simjax.ElasticNet(a, 0.3 * a),
    "perspective": lambda a: simjax.Perspective(0.5 * a, 0.5 * a),
    "perspective-knot": lambda a: simjax.Perspective(5.0 * a, 0.05 * a),
    "weighted": lambda a: simjax.L1(a * np.geomspace(0.5, 2.0, WIDTH)),
}


def solved(design, targets, penalty, constraint=None, support=None, *, gram=False, **options):
    """The rows by working sets, in the units of a problem with λ = ½, and their certificate."""
    problem = simjax.row_problem(
        design, targets, loss_weight=0.5, penalty=penalty, constraint=constraint, support=support
    )
    ball = problem.bound
    terms = RowTerms(
        problem.penalty.slope,
        problem.penalty.curvature,
        problem.penalty.knot,
        None if ball is None else ball.omega,
        None if ball is None else ball.radius,
        problem.support,
    )
    columns = Columns.of(design, design.T @ design if gram else None)
    out = solve_sparse_rows(columns, targets.T, terms, **options)
    return out, simjax.certify(problem, out.weights, [out.residuals])


def smallest(design, targets):
    return np.abs(targets.T @ design).max()


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("m", [60, 300])
@pytest.mark.parametrize("name", PENALTIES)
def test_rows_are_solved_and_proved(name, m, gram):
    design, targets = sparse_rows(m, WIDTH, ROWS)
    penalty = PENALTIES[name](0.1 * smallest(design, targets))
    out, certificate = solved(design, targets, penalty, gram=gram, most=WIDTH)
    assert out.solved.all()
    assert np.all(certificate.relative_gap <= 1e-9)
    np.testing.assert_allclose(out.residuals, targets.T - out.weights @ design.T, atol=1e-11)
    np.testing.assert_allclose(out.gap, certificate.relative_gap, atol=1e-9)
    assert np.all(np.count_nonzero(out.weights, axis=1) < WIDTH // 2)


@pytest.mark.parametrize("alpha", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("name", ["l1", "elastic_net", "perspective-knot"])
def test_the_ball_binds_where_it_must(name, alpha):
    design, targets = sparse_rows(300, WIDTH, ROWS)
    penalty = PENALTIES[name](alpha * smallest(design, targets))
    radius = np.geomspace(0.05, 50.0, ROWS)
    radius[-1] = np.inf if alpha else radius[-1]
    weights = np.geomspace(0.5, 2.0, WIDTH - 20)
    constraint = simjax.L1Ball(radius, WIDTH - 20, weights)
    out, certificate = solved(design, targets, penalty, constraint, most=WIDTH)
    norm = np.abs(out.weights[:, : WIDTH - 20]) @ weights
    assert np.all(norm <= radius * (1.0 + 1e-12))
    np.testing.assert_array_equal(out.solved, True)
    assert np.all(certificate.relative_gap <= 1e-6)
    if alpha:
        assert np.all(norm[:3] >= radius[:3] * (1.0 - 1e-9))
        assert norm[-2] < 0.9 * radius[-2]


def test_weights_are_those_of_scikit_learn():
    design, targets = sparse_rows(60, WIDTH, ROWS)
    alpha = 0.1 * smallest(design, targets)
    out, _ = solved(design, targets, simjax.L1(alpha))
    for row, target in zip(out.weights, targets.T, strict=True):
        lasso = Lasso(alpha=alpha / 60, fit_intercept=False, tol=1e-13, max_iter=100_000).fit(design, target)
        np.testing.assert_allclose(row, lasso.coef_, atol=1e-7)


def test_supports_are_kept():
    design, targets = sparse_rows(100, WIDTH, ROWS)
    support = generator(1).random((ROWS, WIDTH)) < 0.5
    support[0] = False
    out, certificate = solved(design, targets, simjax.L1(0.1 * smallest(design, targets)), support=support)
    assert out.solved.all()
    assert np.all(certificate.relative_gap <= 1e-9)
    assert not out.weights[~support].any()
    assert not out.weights[0].any()


@pytest.mark.parametrize("alphas", [(1.0, 1.0), (1.0, 1.5), (0.0, 1.0)])
def test_columns_that_are_zero_or_equal(alphas):
    design, targets = sparse_rows(100, WIDTH, ROWS)
    design[:, 5] = 0.0
    design[:, 40:80] = design[:, :40]
    alpha = 0.1 * smallest(design, targets) * np.ones(WIDTH)
    alpha[:40] *= alphas[0]
    alpha[40:80] *= alphas[1]
    alpha[:20] = np.maximum(alpha[:20], 1e-3 * alpha[-1])
    out, certificate = solved(design, targets, simjax.L1(alpha), most=WIDTH)
    assert out.solved.all()
    assert np.all(certificate.relative_gap <= 1e-6)
    assert not out.weights[:, 5].any()


def test_targets_of_zero_and_alpha_above_the_largest():
    design, targets = sparse_rows(100, WIDTH, ROWS)
    targets[:, 3] = 0.0
    alpha = np.full((ROWS, 1), 0.1 * smallest(design, targets))
    alpha[4] = 1.01 * smallest(design, targets)
    out, certificate = solved(design, targets, simjax.L1(alpha))
    assert out.solved.all()
    assert np.all(certificate.relative_gap <= 1e-9)
    assert not out.weights[3:5].any()
    assert out.weights[[0, 1, 2, 5, 6, 7, 8]].any(axis=1).all()


def test_coordinates_without_a_penalty_are_always_in_the_set():
    design, targets = sparse_rows(100, WIDTH, ROWS)
    alpha = np.full(WIDTH, 0.1 * smallest(design, targets))
    alpha[-4:] = 0.0
    out, certificate = solved(design, targets + 3.0 * design[:, -1:], simjax.L1(alpha))
    assert out.solved.all()
    assert np.all(certificate.relative_gap <= 1e-9)
    assert np.all(out.weights[:, -4:] != 0.0)


def test_dense_rows_are_given_up_and_say_so():
    design, targets = sparse_rows(60, WIDTH, ROWS)
    alpha = np.full((ROWS, 1), 0.1 * smallest(design, targets))
    alpha[2] = 1e-4 * alpha[2]
    out, certificate = solved(design, targets, simjax.L1(alpha), most=30)
    np.testing.assert_array_equal(out.solved, np.arange(ROWS) != 2)
    assert out.gap[2] > 1e-6
    np.testing.assert_allclose(out.gap[2], certificate.relative_gap[2], rtol=1e-6)


def test_dense_rows_are_given_up_before_they_cost_much(monkeypatch):
    design, targets = sparse_rows(300, 200, 4, nonzeros=100)
    sizes = []
    real = working_set.solve_subproblems

    def counted(problems, *args):
        sizes.append(problems.linear.shape[1])
        return real(problems, *args)

    monkeypatch.setattr(working_set, "solve_subproblems", counted)
    penalty = simjax.L1(2e-2 * smallest(design, targets))
    out, _ = solved(design, targets, penalty)
    assert not out.solved.any()
    assert sizes == [32, 64]
    out, certificate = solved(design, targets, penalty, most=200)
    assert out.solved.all()
    assert np.all(certificate.relative_gap <= 1e-6)
    assert max(sizes) > 128


def test_a_start_that_is_the_answer_is_only_priced(monkeypatch):
    design, targets = sparse_rows(100, WIDTH, ROWS)
    penalty = simjax.L1(0.1 * smallest(design, targets))
    out, _ = solved(design, targets, penalty)

    def never(*_):
        raise AssertionError("solved again")

    monkeypatch.setattr("simjax.rows.solvers.working_set.solve_subproblems", never)
    again, _ = solved(design, targets, penalty, start=out.weights)
    assert again.solved.all()
    np.testing.assert_array_equal(again.weights, out.weights)


def test_statistics_alone_will_do():
    design, targets = sparse_rows(100, WIDTH, ROWS)
    alpha = 0.1 * smallest(design, targets)
    expected, _ = solved(design, targets, simjax.L1(alpha))
    terms = RowTerms(*(np.full((1, 1), x) for x in (alpha, 0.0, 0.0)))
    out = solve_sparse_rows(
        Columns.of(None, design.T @ design),
        None,
        terms,
        correlations=targets.T @ design,
        squares=np.sum(targets**2, axis=0),
    )
    assert out.solved.all()
    assert out.residuals is None
    np.testing.assert_allclose(out.weights, expected.weights, atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_small_problems_satisfy_their_conditions(seed):
    """0 ∈ Hx − l + ∂h(x) + θω∂|x| to rounding, from a start that is far off."""
    rng = generator(seed)
    rows, k = 12, 25
    root = rng.normal(size=(rows, 40, k)) * np.geomspace(1.0, 0.01, k)
    gram = root.transpose(0, 2, 1) @ root
    linear = np.einsum("rmk,rm->rk", root, rng.normal(size=(rows, 40)))
    slope, curvature = 0.3 * rng.random((rows, k)), np.where(rng.random((rows, k)) < 0.5, 0.0, rng.random((rows, k)))
    knot = np.where(rng.random((rows, k)) < 0.5, 0.0, rng.random((rows, k)))
    radius = np.where(np.arange(rows) % 3 == 0, np.inf, 0.5 + np.arange(rows) / 4.0)
    problems = Subproblems(
        gram, linear, slope, curvature, knot, np.ones((rows, k)), radius, np.ones((rows, k), dtype=bool)
    )
    x, theta, found = solve_subproblems(problems, rng.normal(size=(rows, k)), np.zeros(rows))
    assert found.all()
    gradient = (gram @ x[:, :, None])[:, :, 0] - linear
    gradient += 2.0 * curvature * np.sign(x) * np.maximum(np.abs(x) - knot, 0.0)
    threshold = slope + theta[:, None]
    np.testing.assert_allclose(np.where(x != 0.0, gradient + np.sign(x) * threshold, 0.0), 0.0, atol=1e-8)
    assert np.all(np.abs(gradient) <= threshold + 1e-8)
    norm = np.abs(x).sum(axis=1)
    assert np.all(norm <= radius * (1.0 + 1e-9))
    np.testing.assert_allclose(theta * np.where(np.isfinite(radius), radius - norm, 0.0), 0.0, atol=1e-8)
    assert np.any(theta > 0.0)
