"""The interior-point method and its crossover, in canonical units: with λ = ½ and ‖K‖ = 1 a row problem is in them."""

import numpy as np
import pytest
from helpers import generator, with_condition

import simjax
from simjax.rows.oracles import solve as oracle_solve
from simjax.rows.penalties import PiecewisePenalty
from simjax.rows.problem import row_problem
from simjax.rows.solvers import interior_point
from simjax.rows.solvers.crossover import crossover

TOL = 1e-8
ROWS = 6
SHAPES = {"wide": (15, 40), "square": (30, 30), "tall": (40, 15)}


def design_and_targets(m, d, *, condition=30.0, seed=0, noise=0.1):
    rng = generator(seed, m, d)
    design = with_condition(rng, m, d, condition)
    weights = rng.normal(size=(ROWS, d)) * (rng.random((ROWS, d)) < 0.3)
    targets = design @ weights.T
    targets = targets + noise * np.linalg.norm(targets, axis=0) / np.sqrt(m) * rng.normal(size=targets.shape)
    return design, targets / np.linalg.norm(targets, axis=0)


def arguments(problem):
    """Those of `interior_point.solve`."""
    shape = (problem.count, problem.width)
    parts = [
        np.broadcast_to(x, shape) for x in (problem.penalty.slope, problem.penalty.curvature, problem.penalty.knot)
    ]
    ball = None
    if problem.bound is not None:
        ball = (np.asarray(problem.bound.omega), problem.bound.tilt, np.asarray(problem.bound.radius)[:, 0])
    transpose = np.ascontiguousarray(problem.design.T)
    return transpose, transpose @ transpose.T, np.ascontiguousarray(problem.targets.T), *parts, ball, problem.support


def judge_of(problem):
    """The certificate as a judge."""

    def judge(index, weights, dual):
        part = problem.take(index)
        weights = weights if part.bound is None else np.asarray(part.bound.inside(weights))
        certificate = simjax.certify(part, weights, [dual])
        gap = certificate.relative_gap
        if part.exact:
            gap = np.maximum(gap, 1e3 * certificate.infeasibility)
        return weights, dual, gap

    return judge


def finish(problem, tol=TOL):
    """(the interior points, the certificate of the crossover's weights, those weights)."""
    args = arguments(problem)
    point = interior_point.solve(*args, exact=problem.exact, tol=tol)
    weights, dual, _ = crossover(*args, point, judge_of(problem), exact=problem.exact, tol=tol)
    return point, simjax.certify(problem, weights, [dual]), weights


PENALTIES = {
    "l1": simjax.L1(0.02),
    "perspective": simjax.Perspective(0.02, 0.02),
    "perspective-knot": simjax.Perspective(0.05, 0.0005),
    "elastic-net": simjax.ElasticNet(0.01, 0.01),
    "ridge": simjax.Ridge(0.01),
    "flat-then-curved": PiecewisePenalty(np.array(0.0), np.array(0.05), np.array(0.1)),
    "mixed": PiecewisePenalty(*(generator(7, k).random((ROWS, 1)) * scale for k, scale in enumerate((0.05, 0.1, 0.3)))),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("constraint", ["free", "ball", "tight"])
def test_every_row_is_solved_in_a_bounded_number_of_steps(shape, penalty, constraint):
    m, d = SHAPES[shape]
    design, targets = design_and_targets(m, d)
    radius = {"free": None, "ball": 3.0, "tight": 0.1}[constraint]
    ball = None if radius is None else simjax.L1Ball(radius, size=max(d // 2, 1))
    problem = row_problem(design, targets, loss_weight=0.5, penalty=PENALTIES[penalty], constraint=ball)
    point, certificate, _ = finish(problem)
    assert certificate.relative_gap.max() <= 1e-7
    assert certificate.infeasibility.max() <= 1e-12
    assert point.gap.max() <= 1e-5  # by itself: the crossover mends what rounding leaves, not what has not converged
    assert point.iterations.max() <= 25


def test_an_oracle_finds_no_better_weights():
    design, targets = design_and_targets(20, 30, seed=3)
    constraint = simjax.L1Ball(np.array([0.2, 0.5, 1.0, 5.0, np.inf, np.inf]), size=10)
    for penalty in (simjax.L1(0.01), simjax.Perspective(0.02, 0.02)):
        problem = row_problem(design, targets, loss_weight=0.5, penalty=penalty, constraint=constraint)
        oracle = oracle_solve(problem, oracle="clarabel")
        best = simjax.certify(problem, np.asarray(problem.bound.inside(oracle.weights)), [oracle.duals]).objective
        _, certificate, _ = finish(problem)
        np.testing.assert_allclose(certificate.objective, best, rtol=1e-6)


def test_the_crossover_is_exactly_sparse_where_the_interior_point_is_not():
    design, targets = design_and_targets(30, 60, seed=1)
    problem = row_problem(design, targets, loss_weight=0.5, penalty=simjax.L1(0.05))
    point, certificate, weights = finish(problem)
    assert np.count_nonzero(point.weights, axis=1).min() > 30 >= np.count_nonzero(weights, axis=1).max()
    assert certificate.relative_gap.max() <= 1e-11  # an active set that is right is exact to rounding


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
def test_badly_conditioned_designs(condition):
    for m, d in SHAPES.values():
        design, targets = design_and_targets(m, d, condition=condition, seed=4)
        for constraint in (None, simjax.L1Ball(2.0, size=d // 2)):
            problem = row_problem(design, targets, loss_weight=0.5, penalty=simjax.L1(1e-4), constraint=constraint)
            _, certificate, _ = finish(problem)
            assert certificate.relative_gap.max() <= 1e-6


@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_a_penalty_that_is_next_to_nothing(condition):
    design, targets = design_and_targets(30, 60, condition=condition, seed=0, noise=0.05)
    constraint = simjax.L1Ball(np.array([1e-8, 1e-8, 1e-6, 1e-4, 0.01, np.inf]), size=20)
    problem = row_problem(design, targets, loss_weight=0.5, penalty=simjax.L1(1e-11), constraint=constraint)
    point, certificate, _ = finish(problem, tol=1e-7)
    assert certificate.relative_gap.max() <= 1e-6
    assert point.iterations.max() <= 30


def test_metzler_rows():
    design, targets = design_and_targets(25, 12, seed=5)
    rows = np.arange(ROWS)
    constraint = simjax.MetzlerRow(np.array([0.5, 0.1, -0.1, -0.3, 2.0, np.inf]), rows, size=8)
    for penalty in (simjax.L1(0.02), simjax.L1(1e-6), simjax.Perspective(0.05, 0.02)):
        problem = row_problem(design, targets, loss_weight=0.5, penalty=penalty, constraint=constraint)
        _, certificate, _ = finish(problem)
        assert certificate.relative_gap.max() <= 1e-6
        assert certificate.infeasibility.max() <= 1e-12


def test_coordinates_without_a_penalty_are_not_split():
    design, targets = design_and_targets(30, 20, seed=6)
    slope = np.where(np.arange(20) < 5, 0.0, 0.02)
    penalty = PiecewisePenalty(slope, np.zeros(20), np.zeros(20))
    for constraint in (None, simjax.L1Ball(0.2, size=3)):
        problem = row_problem(design, targets, loss_weight=0.5, penalty=penalty, constraint=constraint)
        _, certificate, _ = finish(problem)
        assert certificate.relative_gap.max() <= 1e-7


def test_supports():
    design, targets = design_and_targets(20, 30, seed=8)
    support = generator(8).random((ROWS, 30)) < 0.5
    for penalty in (simjax.L1(0.01), simjax.Perspective(0.03, 0.03)):
        problem = row_problem(
            design, targets, loss_weight=0.5, penalty=penalty, constraint=simjax.L1Ball(0.5), support=support
        )
        point, certificate, weights = finish(problem)
        assert np.all(point.weights[~support] == 0.0)
        assert np.all(weights[~support] == 0.0)
        assert certificate.relative_gap.max() <= 1e-7


def test_duplicate_and_zero_columns_and_zero_targets():
    design, targets = design_and_targets(20, 24, seed=9)
    design[:, 3] = design[:, 4]
    design[:, 7] = 0.0
    targets[:, 2] = 0.0
    for penalty in (simjax.L1(0.02), simjax.Perspective(0.03, 0.03)):
        for constraint in (None, simjax.L1Ball(0.3, size=12)):
            problem = row_problem(design, targets, loss_weight=0.5, penalty=penalty, constraint=constraint)
            _, certificate, weights = finish(problem)
            assert np.isfinite(weights).all()
            assert certificate.objective[2] <= 1e-12
            assert np.delete(certificate.relative_gap, 2).max() <= 1e-7


@pytest.mark.parametrize("penalty", ["l1", "perspective", "perspective-knot", "elastic-net", "ridge"])
@pytest.mark.parametrize("radius", [None, 50.0])
def test_exact_matching(penalty, radius):
    design, targets = design_and_targets(10, 40, seed=10)
    constraint = None if radius is None else simjax.L1Ball(radius, size=20)
    problem = row_problem(design, targets, penalty=PENALTIES[penalty], constraint=constraint, matching="exact")
    _, certificate, _ = finish(problem)
    assert certificate.relative_gap.max() <= 1e-6
    assert certificate.infeasibility.max() <= 1e-9


def test_exact_matching_in_a_ball_that_binds_and_in_one_that_cannot():
    design, targets = design_and_targets(10, 40, seed=11)
    free = row_problem(design, targets, penalty=simjax.L1(1.0), matching="exact")
    _, certificate, weights = finish(free)
    inside = np.abs(weights[:, :20]).sum(axis=1)

    def in_ball(constraint):
        return row_problem(design, targets, penalty=simjax.L1(1.0), constraint=constraint, matching="exact")

    _, certificate, _ = finish(in_ball(simjax.L1Ball(0.7 * inside, size=20)))
    assert certificate.relative_gap.max() <= 1e-6
    assert certificate.infeasibility.max() <= 1e-9
    point, certificate, weights = finish(in_ball(simjax.L1Ball(0.01 * inside)))
    assert point.gap.min() > 1e-3  # it ends, and claims nothing
    assert certificate.infeasibility.min() > 1e-3
    assert np.isfinite(weights).all()


def test_no_rows_and_one_row_alone_give_what_all_rows_give():
    design, targets = design_and_targets(20, 30, seed=12)
    problem = row_problem(design, targets, loss_weight=0.5, penalty=simjax.L1(0.01), constraint=simjax.L1Ball(0.3))
    args = arguments(problem)
    together = interior_point.solve(*args, tol=1e-6)
    alone = interior_point.solve(*arguments(problem.take(np.array([2]))), tol=1e-6)
    np.testing.assert_allclose(alone.weights[0], together.weights[2], rtol=1e-6, atol=1e-9)
    none = interior_point.solve(*arguments(problem.take(np.array([], dtype=int))), tol=1e-6)
    assert none.weights.shape == (0, 30)


def test_without_a_gram_matrix_the_answer_is_the_same():
    design, targets = design_and_targets(30, 20, seed=13)
    problem = row_problem(design, targets, loss_weight=0.5, penalty=simjax.L1(0.01))
    transpose, _, *rest = arguments(problem)
    point = interior_point.solve(transpose, None, *rest, tol=TOL)
    weights, _, gap = crossover(transpose, None, *rest, point, judge_of(problem), tol=TOL)
    assert gap.max() <= 1e-7
    np.testing.assert_allclose(weights, finish(problem)[2], atol=1e-9)
