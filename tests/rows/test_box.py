"""Boxes: the joint prox and the conjugate beside brute force, rows beside SciPy and the oracle, proofs, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from helpers import Huber, NonnegativeL1, Squares, generator, solve_quietly, sparse_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import simjax
from simjax.rows import oracles
from simjax.rows.boxed import BoxedPenalty
from simjax.rows.certificate import infeasibility_margin
from simjax.rows.conjugate import support_function
from simjax.rows.joint_prox import joint_prox
from simjax.rows.own_penalty import traceable
from simjax.rows.problem import row_problem

M, WIDTH, ROWS, BOUND = 30, 16, 6, 10
PENALTIES = {
    "l1": simjax.L1(0.3),
    "perspective": simjax.Perspective(0.5, 0.02),
    "elastic net": simjax.ElasticNet(0.3, 0.4),
    "ridge": simjax.Ridge(0.5),
    "least squares": simjax.NoPenalty(),
    "own": Huber(0.5),
}
BOXES = {
    "nonnegative": (0.0, np.inf),
    "two-sided": (-0.4, 0.3),
    "one-sided": (-np.inf, 0.2),
    "without zero": (0.1, 0.6),
    "one point": (0.25, 0.25),
    "free": (-np.inf, np.inf),
}
few = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def boxed(penalty, lower, upper):
    return BoxedPenalty(traceable(penalty), np.full((1, 1), float(lower)), np.full((1, 1), float(upper)))


# --- The scalar penalty ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("name", PENALTIES)
def test_prox_and_conjugate_are_those_of_the_sum(name, box):
    """On a grid, and by Fenchel–Young with equality at the prox."""
    lower, upper = BOXES[box]
    penalty = boxed(PENALTIES[name], lower, upper)
    grid = np.linspace(max(lower, -3.0), min(upper, 3.0), 20_001)
    value = np.asarray(penalty.value(grid[None]))[0]
    x = np.array([[-1.7, -0.31, -0.1, 0.0, 0.04, 0.3, 0.9]])
    point = np.asarray(penalty.prox(x, np.full((1, 1), 0.7)))
    wanted = grid[np.argmin(0.5 * (grid - x.T) ** 2 + 0.7 * value, axis=1)]
    assert_allclose(point[0], wanted, atol=5e-4)
    assert np.all((point >= lower) & (point <= upper))
    slopes = (x - point) / 0.7
    conjugate = np.asarray(penalty.conjugate(slopes))
    assert_allclose(np.asarray(penalty.value(point)) + conjugate, slopes * point, rtol=1e-12, atol=1e-14)
    if np.isfinite([lower, upper]).all():
        assert_allclose(conjugate[0], np.max(slopes.T * grid - value, axis=1), atol=1e-4)
        assert np.isfinite(penalty.conjugate(np.array([[1e6, -1e6]]))).all()


@few
@given(seeds, st.sampled_from(sorted(PENALTIES)[:-1]), st.sampled_from(["nonnegative", "two-sided", "one-sided"]))
def test_joint_prox_is_optimal_and_firmly_nonexpansive(seed, name, box):
    rng = generator(seed)
    penalty = boxed(PENALTIES[name], *BOXES[box])
    bound = simjax.L1Ball(0.7, size=BOUND, weights=rng.uniform(0.5, 2.0, BOUND)).bound(ROWS, WIDTH)
    step, zero = rng.uniform(0.1, 3.0, (ROWS, 1)), np.zeros((ROWS, 1))
    x, y = rng.normal(size=(2, ROWS, WIDTH))
    p, q = (joint_prox(penalty, bound, points, step, zero).point for points in (x, y))
    assert np.all(bound.norm(p) <= bound.radius * (1 + 1e-12))
    assert not penalty.excess(p).any()
    # p = prox(x) iff g(p) + g*((x − p)/τ) = pᵀ(x − p)/τ.
    slopes = (x - p) / step
    total = np.sum(penalty.value(p), axis=1) + support_function(penalty, bound, slopes, None)
    # The rounding of x − p can leave a domain that is closed: a hair towards zero.
    inner = np.sum(penalty.value(p), axis=1) + support_function(penalty, bound, slopes * (1 - 1e-9), None)
    assert_allclose(np.where(np.isfinite(total), total, inner), np.sum(slopes * p, axis=1), rtol=1e-7, atol=1e-8)
    assert np.all(np.sum((p - q) * ((x - p) - (y - q)), axis=1) >= -1e-9)


@few
@given(seeds, st.sampled_from(sorted(PENALTIES)), st.sampled_from(sorted(BOXES)))
def test_the_support_function_dominates_every_point_of_box_and_ball(seed, name, box):
    rng = generator(seed)
    lower, upper = BOXES[box]
    penalty = boxed(PENALTIES[name], lower, upper)
    bound = None if box in ("without zero", "one point") else simjax.L1Ball(0.7, size=BOUND).bound(ROWS, WIDTH)
    slopes = rng.normal(size=(ROWS, WIDTH)) * rng.choice([0.1, 1.0])
    found = support_function(penalty, bound, slopes, None)
    for _ in range(20):
        w = np.clip(rng.normal(size=(ROWS, WIDTH)), lower, upper)
        w = w if bound is None else bound.inside(w)
        reached = np.sum(slopes * w - np.asarray(penalty.value(w)), axis=1)
        assert np.all(found >= reached - 1e-12)


# --- Rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["numpy", "jax"])
def test_least_squares_in_a_box_is_that_of_scipy(engine):
    design, targets = sparse_rows(M, WIDTH, ROWS)
    for lower, upper in ((0.0, np.inf), (-0.2, 0.4), (0.05, 0.3)):
        solution = simjax.solve_rows(
            design, targets, penalty=simjax.NoPenalty(), constraint=simjax.Box(lower, upper), engine=engine, tol=1e-10
        )
        assert solution.converged
        bounds = (np.full(WIDTH, lower), np.full(WIDTH, upper))
        wanted = [scipy.optimize.lsq_linear(design, t, bounds, tol=1e-14).x for t in targets.T]
        assert_allclose(solution.weights, wanted, atol=1e-7)
        assert np.all((solution.weights >= lower) & (solution.weights <= upper))


def test_a_certificate_is_checked_without_the_library():
    """For L1, a box and a ball: y proves P − D small with g* written out by hand."""
    design, targets = sparse_rows(M, WIDTH, ROWS)
    constraint = simjax.Box(-0.3, 0.5, ball=simjax.L1Ball(1.0, size=BOUND))
    solution = simjax.solve_rows(design, targets, penalty=simjax.L1(1.0), constraint=constraint, tol=1e-9)
    assert solution.converged
    for w, y, t in zip(solution.weights, solution.certificate.dual, targets.T):
        primal = np.sum((t - design @ w) ** 2) + np.abs(w).sum()
        s = design.T @ y

        def support(theta, s=s):
            """κθ + Σ max over −0.3 ≤ w ≤ 0.5 of s w − (1 + θω)|w|, an upper bound of g* for any θ ≥ 0."""
            omega = np.arange(WIDTH) < BOUND
            up, down = 0.5 * (s - 1.0 - theta * omega), 0.3 * (-s - 1.0 - theta * omega)
            return theta + np.sum(np.maximum(np.maximum(up, down), 0.0))

        least = min(map(support, np.concatenate([[0.0], np.maximum(np.abs(s) - 1.0, 0.0)])))
        assert primal - (y @ t - y @ y / 4.0 - least) <= 1e-8 * primal


@pytest.mark.parametrize("solver", ["auto", "admm", "proximal_gradient"])
def test_bounds_of_each_kind_beside_the_oracle(solver):
    pytest.importorskip("clarabel")
    rng = generator(1)
    design, targets = sparse_rows(M, WIDTH, ROWS)
    support = rng.random((ROWS, WIDTH)) < 0.8
    lower = -rng.uniform(0.05, 0.3, WIDTH)
    upper = np.where(rng.random((ROWS, WIDTH)) < 0.3, np.inf, rng.uniform(0.0, 0.3, (ROWS, WIDTH)))
    problem = row_problem(
        design * np.geomspace(1.0, 1e3, WIDTH),
        1e3 * targets,
        penalty=simjax.ElasticNet(rng.uniform(1.0, 50.0, WIDTH), 0.1),
        constraint=simjax.Box(lower, upper, ball=simjax.L1Ball(0.8, size=BOUND)),
        support=support,
        sample_weight=rng.uniform(0.5, 2.0, M),
        fit_intercept=True,
    )
    from simjax.rows.options import SolveOptions
    from simjax.rows.solve import solve_problem

    solution = solve_problem(problem, SolveOptions(solver=solver))
    assert solution.converged
    answer = oracles.solve(problem)
    judged = simjax.certify(problem, answer.weights, [answer.duals])
    assert judged.relative_gap.max() <= 1e-7
    assert_allclose(solution.certificate.objective, judged.objective, rtol=1e-6)
    assert np.all((solution.weights >= lower) & (solution.weights <= upper))


def test_a_loose_box_changes_nothing():
    design, targets = sparse_rows(M, WIDTH, ROWS)
    for penalty in (simjax.L1(0.5), simjax.NoPenalty(), simjax.Perspective(0.4, 0.1)):
        free = simjax.solve_rows(design, targets, penalty=penalty, tol=1e-10)
        for size in (10.0, 1e9):
            found = simjax.solve_rows(design, targets, penalty=penalty, constraint=simjax.Box(-size, size), tol=1e-10)
            assert found.converged
            assert_allclose(found.weights, free.weights, atol=1e-8)


def test_units_of_targets_and_columns_change_nothing():
    design, targets = sparse_rows(M, WIDTH, ROWS)
    lower, upper = -np.linspace(0.0, 0.4, WIDTH), 0.3
    base = simjax.solve_rows(design, targets, penalty=simjax.L1(1.0), constraint=simjax.Box(lower, upper), tol=1e-10)
    units = np.geomspace(1e-4, 1e4, WIDTH)
    found = simjax.solve_rows(
        design * units,
        1e5 * targets,
        penalty=simjax.L1(1e5 * units),
        constraint=simjax.Box(1e5 * lower / units, 1e5 * upper / units),
        tol=1e-10,
    )
    assert base.converged
    assert found.converged
    assert_allclose(found.weights * units / 1e5, base.weights, atol=1e-9)


def test_penalties_of_the_users_own_in_a_box():
    design, targets = sparse_rows(M, WIDTH, ROWS)
    nonnegative = simjax.Box(0.0, np.inf)
    wanted = simjax.solve_rows(design, targets, penalty=simjax.L1(0.5), constraint=nonnegative, tol=1e-9)
    by_hand = simjax.solve_rows(design, targets, penalty=NonnegativeL1(0.5), tol=1e-9)
    assert_allclose(by_hand.weights, wanted.weights, atol=1e-6)
    scales = np.linspace(0.2, 2.0, ROWS)
    for constraint in (simjax.Box(-0.1, 0.2), simjax.Box(-0.1, 0.2, ball=simjax.L1Ball(0.5, size=BOUND))):
        own = simjax.solve_rows(design, targets, penalty=Squares(scales), constraint=constraint)
        ours = simjax.solve_rows(
            design,
            targets,
            penalty=simjax.Ridge(np.broadcast_to(scales[:, None], (ROWS, WIDTH))),
            constraint=constraint,
        )
        assert own.converged
        assert ours.converged
        assert_allclose(own.weights, ours.weights, atol=1e-4)


# --- Exact matching ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ball", [None, simjax.L1Ball(100.0, size=BOUND)])
def test_a_box_too_small_for_the_targets_is_proved_so(ball):
    rng = generator(5)
    design = rng.normal(size=(6, WIDTH))
    targets = design @ (rng.random((WIDTH, ROWS)) * (rng.random((WIDTH, ROWS)) < 0.5))
    # The smallest u for which some 0 ≤ w ≤ u has Φw = t.
    rows = [np.r_[np.zeros(WIDTH), 1.0], np.c_[np.eye(WIDTH), -np.ones(WIDTH)], np.zeros(WIDTH)]
    equations = np.c_[design, np.zeros(6)]
    least = np.array([scipy.optimize.linprog(*rows, equations, t, (0, None)).fun for t in targets.T])[:, None]
    for share, expected in ((0.5, "INFEASIBLE"), (0.999, "INFEASIBLE"), (1.01, "SOLVED")):
        solution = solve_quietly(
            design,
            targets,
            penalty=simjax.Ridge(1.0),
            constraint=simjax.Box(0.0, share * least, ball),
            matching="exact",
        )
        assert set(solution.status) == {expected}
        if expected == "INFEASIBLE":
            assert infeasibility_margin(solution.problem, solution.certificate.dual).min() > 1e-6
            for y, t, u in zip(solution.certificate.dual, targets.T, share * least):  # Farkas, by hand
                assert y @ t > (1 + 1e-9) * u * np.maximum(design.T @ y, 0.0).sum()


def test_a_box_without_a_side_proves_the_cone():
    """Φ ≥ 0, t < 0 and w ≥ 0: y = t is a ray, with every s_j ≤ 0."""
    design = np.abs(generator(2).normal(size=(5, WIDTH)))
    targets = -np.ones((5, 2))
    solution = solve_quietly(
        design, targets, penalty=simjax.L1(1.0), constraint=simjax.Box(0.0, np.inf), matching="exact"
    )
    assert set(solution.status) == {"INFEASIBLE"}
    assert np.all(solution.certificate.dual @ design <= 1e-12)
    assert np.all(np.sum(solution.certificate.dual * targets.T, axis=1) > 0.0)
    pytest.importorskip("clarabel")
    assert solution.verify(rows=2).ok


# --- Zero targets, zero designs, bounds without zero --------------------------------------------------------------


@pytest.mark.parametrize("design", [np.zeros((4, 3)), np.eye(4, 3)])
def test_rows_without_targets_or_design(design):
    for lower, least in ((-1.0, 0.0), (0.2, 0.2)):
        solution = simjax.solve_rows(
            design, np.zeros((4, 2)), penalty=simjax.L1(0.1), constraint=simjax.Box(lower, 1.0)
        )
        assert solution.converged
        assert_array_equal(solution.weights, np.full((2, 3), least))


def test_alpha_max_in_a_box():
    design, targets = sparse_rows(M, WIDTH, ROWS)
    box = simjax.Box(0.0, np.inf)
    largest = simjax.alpha_max(design, targets, constraint=box)
    assert_allclose(largest, np.maximum(2.0 * targets.T @ design, 0.0).max(axis=1))
    assert np.any(largest < simjax.alpha_max(design, targets))
    for share, zero in ((1.0, True), (0.99, False)):
        penalty = simjax.L1(np.broadcast_to(share * largest[:, None], (ROWS, WIDTH)))
        solution = simjax.solve_rows(design, targets, penalty=penalty, constraint=box)
        assert_array_equal(~solution.weights.any(axis=1), zero)
    with pytest.raises(ValueError, match="must allow weights of zero"):
        simjax.alpha_max(design, targets, constraint=simjax.Box(0.1, 1.0))
    with pytest.raises(TypeError, match="constraint must be a Box"):
        simjax.alpha_max(design, targets, constraint=simjax.L1Ball(1.0))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((1.0, 0.0), ValueError, "lower must be at most upper"),
        ((np.nan, 0.0), ValueError, "lower must not contain NaN"),
        ((0.0, [1.0, np.nan]), ValueError, "upper must not contain NaN"),
        ((np.inf, np.inf), ValueError, "lower must not be inf"),
        ((-np.inf, -np.inf), ValueError, "upper must not be -inf"),
        ((np.zeros(3), np.ones(4)), ValueError, "upper must broadcast against lower"),
        ((np.zeros((1, 2, 3)), 1.0), ValueError, "lower must be a scalar"),
        (("low", 1.0), TypeError, "lower must be"),
        ((0.0, 1.0, simjax.Free()), TypeError, "ball must be an L1Ball"),
    ],
)
def test_what_is_no_box_is_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        simjax.Box(*arguments)


@pytest.mark.parametrize(
    ("box", "match"),
    [
        (simjax.Box(np.zeros(WIDTH + 1), 1.0), "lower must be a scalar"),
        (simjax.Box(-1.0, np.ones((ROWS + 1, WIDTH))), "upper must be a scalar"),
        (simjax.Box(0.1, 1.0, ball=simjax.L1Ball(1.0)), "that the ball of a Box sees"),
        (simjax.Box(np.r_[np.zeros(WIDTH - 1), 0.1], 1.0), "outside of the support"),
    ],
)
def test_a_box_that_does_not_fit_is_refused(box, match):
    design, targets = sparse_rows(M, WIDTH, ROWS)
    support = np.arange(WIDTH) < WIDTH - 1
    with pytest.raises(ValueError, match=match):
        simjax.solve_rows(design, targets, penalty=simjax.L1(0.5), constraint=box, support=support)


# --- Inside JAX programs ------------------------------------------------------------------------------------------


def test_derivatives_with_respect_to_the_bounds():
    """Beside central differences: with a ball, and with a bound of zero that pushes."""
    with jax.enable_x64(True):
        design, targets = (jnp.asarray(x) for x in sparse_rows(M, WIDTH, ROWS, seed=3))
        direction = jnp.asarray(generator(4).normal(size=(ROWS, WIDTH)))
        lower, upper = -0.2 * jnp.ones(WIDTH), jnp.linspace(0.2, 0.5, WIDTH)
        change = jnp.asarray(generator(5).normal(size=(2, WIDTH)))

        def total(lower, upper, targets):
            box = simjax.Box(lower, upper, ball=simjax.L1Ball(1.2, size=BOUND))
            found = simjax.functional.solve_rows(
                design, targets, penalty=simjax.Perspective(1.0, 0.1), constraint=box, tol=1e-10
            )
            return jnp.sum(direction * found.weights), found

        (_, found), gradient = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(lower, upper, targets)
        host = simjax.solve_rows(
            np.asarray(design),
            np.asarray(targets),
            penalty=simjax.Perspective(1.0, 0.1),
            constraint=simjax.Box(np.asarray(lower), np.asarray(upper), ball=simjax.L1Ball(1.2, size=BOUND)),
            tol=1e-10,
        )
        assert_allclose(found.weights, host.weights, atol=1e-10)
        assert jnp.sum(found.weights == upper) > 3
        assert jnp.sum(found.weights == lower) > 3
        step = 1e-5
        for k in (0, 1):
            ahead, behind = (
                total(*(x + sign * step * change[k] if k == i else x for i, x in enumerate((lower, upper))), targets)[0]
                for sign in (1.0, -1.0)
            )
            assert_allclose(jnp.sum(gradient[k] * change[k]), (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-6)
        move = step * jnp.ones_like(targets)
        slope = (total(lower, upper, targets + move)[0] - total(lower, upper, targets - move)[0]) / (2 * step)
        assert_allclose(jnp.sum(gradient[2]), slope, rtol=1e-6, atol=1e-6)
