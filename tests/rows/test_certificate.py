"""Certificates: weak duality for any weights and multipliers, and every number once more in plain NumPy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    BOUND,
    PENALTIES,
    ROWS,
    TALL,
    WIDE,
    WIDTH,
    Huber,
    Squares,
    generator,
    row_of,
    rows_of,
    sparse_rows,
    with_condition,
)
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import nnls

import simjax
from simjax import Certificate, certify, row_problem, solve_rows
from simjax.rows.status import Status, convergence_message, row_status

BALL = simjax.L1Ball(0.9, size=BOUND)
CONSTRAINTS = {
    "free": None,
    "ball": BALL,
    "weighted": simjax.L1Ball(0.9, size=BOUND, weights=generator(1).uniform(0.3, 3.0, size=BOUND)),
}
LOSS_WEIGHT = np.linspace(0.3, 0.8, ROWS)


def problem_of(penalty, constraint, m=WIDE, **options):
    design, targets = sparse_rows(m)
    return row_problem(design, targets, loss_weight=LOSS_WEIGHT, penalty=penalty, constraint=constraint, **options)


def feasible_weights(problem, rng, size=1.0):
    """Random weights inside the ball and the support."""
    w = size * rng.normal(size=(problem.count, problem.width)) * (rng.random(problem.width) < 0.6)
    if problem.support is not None:
        w = np.where(problem.support, w, 0.0)
    if problem.bound is not None:
        seen = np.broadcast_to(problem.bound.omega > 0.0, w.shape)
        norm = np.sum(problem.bound.omega * np.abs(w), axis=1, keepdims=True)
        w = np.where(seen, w * np.minimum(1.0, problem.bound.radius / np.maximum(norm, 1e-300)), w)
    return w


# --- Ten lines that a stranger can run ---------------------------------------------------------------------------


def test_ten_lines_of_numpy_for_l1_in_the_ball():
    design, targets = sparse_rows(WIDE)
    lam, beta, kappa, n = 0.6, 0.2, 0.9, BOUND
    constraint = simjax.L1Ball(kappa, size=n)
    solution = solve_rows(design, targets, loss_weight=lam, penalty=simjax.L1(beta), constraint=constraint)
    w, y, t = solution.weights, solution.certificate.dual, targets.T

    primal = lam * np.sum((t - w @ design.T) ** 2, axis=1) + beta * np.sum(np.abs(w), axis=1)
    s = y @ design
    bounded = kappa * np.maximum(np.abs(s[:, :n]).max(axis=1) - beta, 0.0)
    dual = np.sum(y * t, axis=1) - np.sum(y**2, axis=1) / (4 * lam) - bounded
    assert np.all(np.abs(w[:, :n]).sum(axis=1) <= kappa * (1 + 1e-12))
    assert np.all(np.abs(s[:, n:]) <= beta * (1 + 1e-12))
    assert np.all(primal - dual <= 1e-6 * primal)
    assert_allclose(dual, solution.certificate.dual_objective, rtol=1e-12)
    assert_allclose(primal, solution.certificate.objective, rtol=1e-13)


def test_ten_lines_of_numpy_for_perspective_in_the_ball():
    design, targets = sparse_rows(WIDE)
    lam, alpha, mu, kappa, n = 0.6, 0.2, 0.01, 0.9, BOUND
    solution = solve_rows(
        design,
        targets,
        loss_weight=lam,
        penalty=simjax.Perspective(alpha, mu),
        constraint=simjax.L1Ball(kappa, size=n),
    )
    for w, y, t, claimed in zip(solution.weights, solution.certificate.dual, targets.T, solution.certificate.gap):
        size, s = np.abs(w), np.abs(design.T @ y)
        h = np.where(size <= np.sqrt(mu / alpha), 2 * np.sqrt(alpha * mu) * size, alpha * size**2 + mu)
        primal = lam * np.sum((t - design @ w) ** 2) + h.sum()

        def bound(theta, s=s):
            a = np.maximum(s[:n] - theta, 0.0)
            return kappa * theta + np.maximum(a**2 / (4 * alpha) - mu, 0.0).sum()

        low, high = 0.0, s[:n].max()
        for _ in range(150):  # the least value of a convex function, by thirds; any θ would give a valid bound
            left, right = (2 * low + high) / 3, (low + 2 * high) / 3
            low, high = (low, right) if bound(left) <= bound(right) else (left, high)
        bounded = bound(high)
        dual = y @ t - y @ y / (4 * lam) - bounded - np.maximum(s[n:] ** 2 / (4 * alpha) - mu, 0.0).sum()
        assert primal - dual <= 1e-6 * primal
        assert_allclose(primal - dual, claimed, atol=1e-9 * primal)


# --- The formulas, for every family ------------------------------------------------------------------------------


@pytest.mark.parametrize("matching", ["penalty", "exact"])
@pytest.mark.parametrize("kind", CONSTRAINTS)
@pytest.mark.parametrize("name", PENALTIES)
def test_certificate_is_what_the_formulas_give(name, kind, matching):
    problem = problem_of(PENALTIES[name], CONSTRAINTS[kind], matching=matching)
    rng = generator(2)
    w, y = feasible_weights(problem, rng), rng.normal(size=(ROWS, WIDE))
    certificate = certify(problem, w, [y])
    for i, row in enumerate(rows_of(problem)):
        bound = row.dual_objective(certificate.dual[i])
        objective = row.objective(w[i])
        assert_allclose(certificate.objective[i], objective, rtol=1e-14)
        if problem.exact:
            # The equations do not hold for these weights: the certificate counts |yᵀ(Φw − t)| as gap.
            violation = certificate.dual[i] @ (row.design @ w[i] - row.target)
            assert_allclose(certificate.gap[i], objective - bound - violation + abs(violation), rtol=1e-11)
            assert_allclose(
                certificate.infeasibility[i],
                np.linalg.norm(row.design @ w[i] - row.target) / np.linalg.norm(row.target),
                rtol=1e-13,
            )
        else:
            assert_allclose(certificate.dual_objective[i], bound, rtol=1e-11, atol=1e-11 * objective)
            assert_allclose(certificate.gap[i], objective - bound, rtol=1e-11)
            assert certificate.infeasibility[i] == 0.0 or kind != "free"
        assert_allclose(certificate.relative_gap[i], certificate.gap[i] / objective if objective else 0.0)
        assert certificate.infeasibility[i] < 1e-12 or problem.exact


@pytest.mark.parametrize("kind", CONSTRAINTS)
@pytest.mark.parametrize("name", PENALTIES)
def test_weak_duality_for_any_weights_and_multipliers(name, kind):
    rng = generator(3)
    support = rng.random((ROWS, WIDTH)) < 0.8
    problem = problem_of(PENALTIES[name], CONSTRAINTS[kind], support=support)
    # The lowest objective anybody found stays above the highest bound anybody proved.
    highest, lowest = np.full(ROWS, -np.inf), np.full(ROWS, np.inf)
    for size in (1e-6, 1e-2, 0.1, 1.0, 1e3):
        certificate = certify(
            problem, feasible_weights(problem, rng, size), [size * rng.normal(size=(ROWS, WIDE)) for _ in range(3)]
        )
        assert np.all(certificate.gap >= 0.0)
        rounding = 1e-14 * certificate.objective  # of P − gap
        highest = np.maximum(highest, certificate.dual_objective - rounding)
        lowest = np.minimum(lowest, certificate.objective)
    best = solve_rows(
        problem.design,
        problem.targets,
        loss_weight=LOSS_WEIGHT,
        penalty=PENALTIES[name],
        constraint=CONSTRAINTS[kind],
        support=support,
        tol=1e-9,
    ).certificate
    assert np.all(highest <= best.objective * (1.0 + 1e-13))
    assert np.all(best.dual_objective <= lowest * (1.0 + 1e-13))


def test_the_best_of_several_duals_is_kept_and_named():
    problem = problem_of(simjax.L1(0.2), BALL)
    solution = solve_rows(
        problem.design, problem.targets, loss_weight=LOSS_WEIGHT, penalty=simjax.L1(0.2), constraint=BALL
    )
    rng = generator(4)
    poor = [rng.normal(size=(ROWS, WIDE)), 1e6 * rng.normal(size=(ROWS, WIDE)), np.zeros((ROWS, WIDE))]
    good = solution.certificate.dual
    alone = certify(problem, solution.weights, [good])
    for duals in ([*poor, good], [good, *poor]):
        certificate = certify(problem, solution.weights, duals)
        assert_array_equal(certificate.gap, alone.gap)
        for i in range(ROWS):
            assert_allclose(row_of(problem, i).dual_objective(certificate.dual[i]), certificate.dual_objective[i])
    assert np.all(certify(problem, solution.weights, poor).gap >= alone.gap)


def test_duals_with_nan_or_inf_are_ignored():
    problem = problem_of(simjax.L1(0.2), BALL)
    w = feasible_weights(problem, generator(5))
    plain = certify(problem, w)
    for bad in (np.nan, np.inf, -np.inf):
        dual = np.zeros((ROWS, WIDE))
        dual[:, 3] = bad
        certificate = certify(problem, w, [dual])
        for field in dataclasses.fields(Certificate):
            assert_array_equal(getattr(certificate, field.name), getattr(plain, field.name))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("matching", ["penalty", "exact"])
def test_weights_that_are_not_finite_are_never_certified(bad, matching):
    problem = problem_of(simjax.L1(0.2), BALL, matching=matching)
    w = np.zeros((ROWS, WIDTH))
    w[2, 5] = bad
    certificate = certify(problem, w)
    assert certificate.relative_gap[2] == np.inf
    assert row_status(certificate, 1e-6, exact=problem.exact)[2] == Status.MAX_ITERS
    assert np.all(np.isfinite(certificate.gap[[0, 1, 3, 4, 5]]))


def test_shapes_are_checked():
    problem = problem_of(simjax.L1(0.2), None)
    w = np.zeros((ROWS, WIDTH))
    for weights in (w[:-1], w[:, :-1], w.T, w[0]):
        with pytest.raises(ValueError, match="weights must be"):
            certify(problem, weights)
    with pytest.raises(ValueError, match="duals must be"):
        certify(problem, w, [np.zeros((ROWS, WIDE + 1))])


# --- Closed forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [WIDE, TALL])
def test_ridge_regression_in_closed_form(m):
    alpha = 0.5
    problem = problem_of(simjax.Ridge(alpha), None, m)
    for i, lam in enumerate(LOSS_WEIGHT):
        system = lam * problem.design.T @ problem.design + alpha * np.eye(WIDTH)
        w = np.linalg.solve(system, lam * problem.design.T @ problem.targets[:, i])
        certificate = certify(problem.take(np.array([i])), w[None])
        assert certificate.relative_gap[0] <= 1e-15
        assert certificate.infeasibility[0] == 0.0


@pytest.mark.parametrize("m", [WIDE, TALL])
def test_least_squares_in_closed_form(m):
    problem = problem_of(simjax.NoPenalty(), None, m)
    w = np.linalg.lstsq(problem.design, problem.targets, rcond=None)[0].T
    certificate = certify(problem, w)
    assert np.all(certificate.relative_gap <= 1e-15)
    assert np.all(certify(problem, w + 1e-3).relative_gap > 1e-6)


def test_orthogonal_design_in_closed_form():
    # With ΦᵀΦ = I the lasso is a soft threshold: w = soft(Φᵀt, β/2λ).
    rng = generator(6)
    design = np.linalg.qr(rng.normal(size=(TALL, WIDTH)))[0]
    targets = 3.0 * rng.normal(size=(TALL, ROWS))
    beta, lam = 0.7, 0.4
    problem = row_problem(design, targets, loss_weight=lam, penalty=simjax.L1(beta))
    correlation = targets.T @ design
    w = np.sign(correlation) * np.maximum(np.abs(correlation) - beta / (2 * lam), 0.0)
    assert np.all(certify(problem, w).relative_gap <= 1e-14)


def test_zero_is_optimal_from_the_critical_weight_on():
    # The lasso's answer is w = 0 as soon as β ≥ 2λ‖Φᵀt‖∞, and the residual y = 2λt proves it.
    design, targets = sparse_rows(WIDE)
    critical = 2.0 * 0.5 * np.abs(design.T @ targets).max()
    zero = np.zeros((ROWS, WIDTH))
    above = certify(row_problem(design, targets, loss_weight=0.5, penalty=simjax.L1(critical * (1 + 1e-12))), zero)
    assert_array_equal(above.gap, np.zeros(ROWS))
    below = certify(row_problem(design, targets, loss_weight=0.5, penalty=simjax.L1(0.9 * critical)), zero)
    assert np.max(below.relative_gap) > 1e-3


def test_exact_matching_in_closed_form():
    # min ½·2‖w‖² s.t. Φw = t is the least-norm solution, with y = 2α(ΦΦᵀ)⁻¹t.
    alpha = 0.5
    problem = problem_of(simjax.Ridge(alpha), None, matching="exact")
    y = 2.0 * alpha * np.linalg.solve(problem.design @ problem.design.T, problem.targets).T
    w = y @ problem.design / (2.0 * alpha)
    certificate = certify(problem, w, [y])
    assert np.all(certificate.relative_gap <= 1e-13)
    assert np.all(certificate.infeasibility <= 1e-14)
    assert_allclose(certificate.objective, alpha * np.sum(w**2, axis=1), rtol=1e-14)


def test_zero_targets_are_certified_by_zero():
    design, targets = sparse_rows(WIDE)
    targets[:, [1, 4]] = 0.0
    for penalty in PENALTIES.values():
        for matching in ("penalty", "exact"):
            problem = row_problem(design, targets, penalty=penalty, constraint=BALL, matching=matching)
            certificate = certify(problem, np.zeros((ROWS, WIDTH)))
            for field in ("objective", "dual_objective", "gap", "relative_gap", "infeasibility"):
                assert_array_equal(getattr(certificate, field)[[1, 4]], [0.0, 0.0])


def test_gap_keeps_its_digits_when_the_objective_is_small():
    # Nearly interpolated: P is 1e-9 of λ‖t‖², so that P − D evaluated naively has no digit below 1e-7 relative.
    rng = generator(7)
    design = rng.normal(size=(WIDE, WIDTH))
    targets = design @ rng.normal(size=(WIDTH, ROWS))
    lam, alpha = 1.0, 1e-10
    problem = row_problem(design, targets, loss_weight=lam, penalty=simjax.Ridge(alpha))
    y = 2.0 * np.linalg.solve(np.eye(WIDE) / lam + design @ design.T / alpha, targets).T
    w = y @ design / (2.0 * alpha)
    certificate = certify(problem, w, [y])
    assert np.all(certificate.objective <= 1e-8 * lam * np.sum(targets**2, axis=0))
    assert np.all(certificate.relative_gap <= 1e-11)


# --- Feasibility -------------------------------------------------------------------------------------------------


def test_violations_are_measured():
    design, targets = sparse_rows(WIDE)
    support = np.ones((ROWS, WIDTH), dtype=bool)
    support[3, 2] = False
    problem = row_problem(
        design, targets, penalty=simjax.L1(0.1), constraint=simjax.L1Ball(0.5, size=2), support=support
    )
    w = np.zeros((ROWS, WIDTH))
    w[0, :2] = 0.25, -0.25  # on the sphere
    w[1, :2] = 0.25, -0.3  # 10 % outside
    w[2, 2:] = 100.0  # not seen by the ball
    w[3, 2] = 1e-30  # outside the support
    assert_allclose(certify(problem, w).infeasibility, [0.0, 0.1, 0.0, np.inf, 0.0, 0.0], rtol=1e-14)
    status = row_status(certify(problem, w), 1e9, exact=False)
    assert_array_equal(status == Status.SOLVED, [True, False, True, False, True, True])


def test_the_bound_of_infeasible_weights_is_still_a_bound():
    problem = problem_of(simjax.L1(0.2), BALL)
    optimum = solve_rows(
        problem.design,
        problem.targets,
        loss_weight=LOSS_WEIGHT,
        penalty=simjax.L1(0.2),
        constraint=BALL,
        tol=1e-9,
    ).certificate.objective
    outside = np.linalg.lstsq(problem.design, problem.targets, rcond=None)[0].T
    certificate = certify(problem, outside)
    assert np.all(certificate.infeasibility > 0.1)
    assert np.all(certificate.dual_objective <= optimum)


# --- A user's own penalty ----------------------------------------------------------------------------------------


def test_user_penalty_is_certified_like_the_built_in_one():
    scale = np.linspace(0.2, 0.9, ROWS)
    by_hand, built_in = Squares(scale), simjax.Ridge(np.repeat(scale[:, None], WIDTH, axis=1))
    rng = generator(8)
    for constraint in (None, BALL):
        ours, theirs = problem_of(built_in, constraint), problem_of(by_hand, constraint)
        w, y = feasible_weights(ours, rng), rng.normal(size=(ROWS, WIDE))
        expected, found = certify(ours, w, [y]), certify(theirs, w, [y])
        assert_allclose(found.objective, expected.objective, rtol=1e-14)
        assert_allclose(found.gap, expected.gap, rtol=1e-9)
        assert np.all(found.gap >= expected.gap * (1.0 - 1e-12))


def test_user_penalty_with_a_bounded_domain_has_its_dual_scaled_into_it():
    problem = problem_of(Huber(), None)
    rng = generator(9)
    w, y = feasible_weights(problem, rng), 10.0 * rng.normal(size=(ROWS, WIDE))
    certificate = certify(problem, w, [y])
    assert np.all(np.isfinite(certificate.gap))
    assert np.all(np.abs(certificate.dual @ problem.design) <= 1.0 + 1e-12)


class Positive(simjax.Penalty):
    """The indicator of w ≥ 0: non-negative least squares. h*(s) is finite for s ≤ 0 only."""

    def value(self, weights):
        return jnp.where(weights < 0.0, jnp.inf, 0.0)

    def prox(self, points, step):
        return jnp.maximum(points, 0.0)

    def conjugate(self, slopes):
        return jnp.where(slopes <= 0.0, 0.0, jnp.inf)


def test_nonnegative_least_squares_is_certified():
    design, targets = sparse_rows(TALL, noise=1.0)
    problem = row_problem(design, targets, penalty=Positive())
    w = np.array([nnls(design, target)[0] for target in targets.T])
    assert np.all(np.any(w == 0.0, axis=1))
    certificate = certify(problem, w)
    assert np.all(certificate.relative_gap <= 1e-12)
    # The bound stays one for any other weights, and for dual points that are no better than noise.
    rng = generator(11)
    for size in (1e-9, 1e-3, 1.0):
        other = np.abs(w + size * rng.normal(size=w.shape))
        bound = certify(problem, other, [size * rng.normal(size=targets.T.shape)]).dual_objective
        assert np.all(bound <= certificate.objective * (1.0 + 1e-12))


# --- Penalties next to nothing -----------------------------------------------------------------------------------


def nearly_flat_row(seed, *, condition, unit, alpha=1e-3, kappa=0.9, ball=True):
    """A row of known optimum by its optimality conditions, targets of size `unit`, with |s_j| ≤ α on free coordinates.

    Returns the problem, its w and y: s = Φᵀy has s_j = (α + θω_j) sign(w_j) in the support of w, y = 2λ(t − Φw).
    """
    rng, lam, m, d, bound = generator(12, seed), 0.5, 60, 25, 10
    design = with_condition(rng, m, d, condition) * 10.0
    omega = rng.uniform(0.5, 2.0, bound)
    sign = rng.choice([-1.0, 0.0, 1.0], size=d)
    sign[:2] = 1.0
    w = sign * rng.uniform(0.5, 2.0, d) * unit
    limit = np.full(d, alpha)
    if ball:
        w[:bound] *= kappa / np.sum(omega * np.abs(w[:bound]))
        limit[:bound] += 0.1 * omega
    slopes = limit * np.where(sign == 0.0, rng.uniform(-0.9, 0.9, d), sign)
    basis, triangle = np.linalg.qr(design)
    rest = rng.normal(size=m)
    rest -= basis @ (basis.T @ rest)
    rest -= basis @ (basis.T @ rest)
    y = basis @ np.linalg.solve(triangle.T, slopes) + unit * rest
    target = design @ w + y / (2.0 * lam)
    constraint = simjax.L1Ball(kappa, size=bound, weights=omega) if ball else None
    problem = row_problem(design, target[:, None], loss_weight=lam, penalty=simjax.L1(alpha), constraint=constraint)
    return problem, w[None], y[None]


@pytest.mark.parametrize("ball", [True, False])
@pytest.mark.parametrize("unit", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
def test_a_penalty_next_to_nothing_does_not_cost_the_dual_point(condition, unit, ball):
    for seed in range(3):
        problem, w, _ = nearly_flat_row(seed, condition=condition, unit=unit, ball=ball)
        certificate = certify(problem, w)
        assert certificate.relative_gap[0] <= 1e-9
        # What it proves is true: s = Φᵀy keeps to |s_j| ≤ α but for the rounding of the product.
        excess = np.abs(certificate.dual[0] @ problem.design)[10 if ball else 0 :] - 1e-3
        size = np.linalg.norm(certificate.dual[0]) * np.linalg.norm(problem.design, axis=0)
        assert np.all(excess <= 1e-15 * size[10 if ball else 0 :])


@pytest.mark.parametrize("unit", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("condition", [1.0, 1e6])
def test_bounds_of_a_nearly_flat_row_are_true_for_any_dual_point(condition, unit):
    problem, w, y = nearly_flat_row(5, condition=condition, unit=unit)
    optimum = certify(problem, w, [y]).objective
    rng = generator(13)
    for size in 10.0 ** np.arange(-14.0, 1.0):
        other = w * (1.0 + size * rng.normal(size=w.shape))
        other[:, :10] *= min(1.0, 0.9 / np.sum(problem.bound.omega * np.abs(other)))
        noise = size * rng.normal(size=y.shape) * np.linalg.norm(y)
        found = certify(problem, other, [y + noise])
        assert np.all(found.objective - found.gap <= optimum * (1.0 + 1e-12))
        assert np.all(found.gap >= 0.0)


# --- Status and message ------------------------------------------------------------------------------------------


def certificate_with(relative_gap, infeasibility):
    numbers = np.zeros(len(relative_gap))
    return Certificate(
        numbers, numbers, numbers, np.array(relative_gap), np.array(infeasibility), np.zeros((len(relative_gap), 1))
    )


def test_status_follows_the_certificate():
    gaps = [1e-7, 1e-6, 1.1e-6, 9.9e-5, 1.1e-4, np.inf, 0.0, 0.0]
    violations = [0.0, 1e-9, 0.0, 0.0, 0.0, 0.0, 2e-9, 1.1e-7]
    status = row_status(certificate_with(gaps, violations), 1e-6, exact=False)
    expected = ["SOLVED"] * 2 + ["ALMOST_SOLVED"] * 2 + ["MAX_ITERS"] * 2 + ["ALMOST_SOLVED", "MAX_ITERS"]
    assert_array_equal(status, expected)
    assert status[0] == Status.SOLVED
    # Exact matching is held to 1e-8 in the equations.
    status = row_status(certificate_with([0.0, 0.0, 0.0], [1e-8, 1.1e-8, 2e-6]), 1e-6, exact=True)
    assert_array_equal(status, ["SOLVED", "ALMOST_SOLVED", "MAX_ITERS"])


def test_message_says_how_many_how_far_and_what_to_try():
    certificate = certificate_with([1e-7, 3e-5, 0.2], [0.0, 0.0, 0.0])
    status = row_status(certificate, 1e-6, exact=False)
    message = convergence_message(status, certificate, 1e-6, "admm")
    for part in ("2 of 3 rows", "tol=1e-06", "1 ALMOST_SOLVED", "1 MAX_ITERS", "2.0e-01", "max_iters", '"auto"'):
        assert part in message
    assert '"auto"' not in convergence_message(status, certificate, 1e-6, "auto")


def test_take_selects_rows():
    problem = problem_of(simjax.L1(0.2), BALL)
    certificate = certify(problem, feasible_weights(problem, generator(10)))
    part = certificate.take(np.array([4, 1]))
    for field in dataclasses.fields(Certificate):
        assert_array_equal(getattr(part, field.name), getattr(certificate, field.name)[[4, 1]])
