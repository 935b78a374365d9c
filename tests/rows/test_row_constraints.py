"""Metzler rows: the projection and the joint prox in closed form, and certified rows against an oracle.

And the bisection over the penalty weight by which constrained implicit learning solves its rows, as a cross-check.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled_and_not, generator
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import brentq, minimize

import simjax
from simjax.rows import joint_prox as joint
from simjax.rows import oracles
from simjax.rows.conjugate import support_function
from simjax.rows.options import SolveOptions
from simjax.rows.penalties import soft
from simjax.rows.problem import row_problem
from simjax.rows.solve import solve_problem

ROWS, WIDTH, BOUND = 6, 12, 8

PENALTIES = {
    "l1": simjax.L1(0.05),
    "perspective": simjax.Perspective(0.05, 0.01),
    "elastic net": simjax.ElasticNet(0.05, 0.02),
    "ridge": simjax.Ridge(0.05),
    "least squares": simjax.NoPenalty(),
}
joint_prox = compiled_and_not(joint.joint_prox)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def metzler(radius, *, weighted=False, seed=0, diagonal=None):
    weights = generator(seed).uniform(0.5, 2.0, (ROWS, BOUND)) if weighted else np.ones((ROWS, BOUND))
    diagonal = np.arange(ROWS) if diagonal is None else diagonal
    weights[np.arange(ROWS), diagonal] = 1.0
    return simjax.MetzlerRow(radius, diagonal, size=BOUND, weights=weights)


def measure(ball, w):
    return np.sum(np.asarray(ball.omega) * np.abs(w), axis=1) + np.sum(np.asarray(ball.tilt) * w, axis=1)


# --- The projection ----------------------------------------------------------------------------------------------


def projected(v, i, omega, gamma):
    """Closed form: a_i = v_i − τ, a_j = soft(v_j, τω_j), with τ from the sorted ratios |v_j|/ω_j."""
    others = np.array([j for j in range(v.size) if j != i])
    if v[i] + omega[others] @ np.abs(v[others]) <= gamma:
        return v
    order = others[np.argsort(-np.abs(v[others]) / omega[others])]
    ratio = np.abs(v[order]) / omega[order]
    total, square, tau = v[i] - gamma, 1.0, v[i] - gamma
    for k, j in enumerate(order):
        total, square = total + omega[j] * np.abs(v[j]), square + omega[j] ** 2
        candidate = total / square
        if ratio[k] <= candidate:
            break
        tau = candidate
    a = np.asarray(soft(v, tau * omega)).copy()
    a[i] = v[i] - tau
    return a


@pytest.mark.parametrize("gamma", [0.7, 0.0, -2.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_projection_has_its_closed_form(gamma, weighted):
    constraint = metzler(gamma, weighted=weighted)
    ball = constraint.bound(ROWS, WIDTH)
    points = 2.0 * generator(1).normal(size=(ROWS, WIDTH))
    zero = jnp.zeros((ROWS, 1))
    found = joint_prox(simjax.NoPenalty(), ball, points, zero + 1.0, zero)
    for row in range(ROWS):
        wanted = projected(points[row, :BOUND], row, constraint.weights[row], gamma)
        assert_allclose(found.point[row, :BOUND], wanted, atol=1e-12)
        assert_array_equal(found.point[row, BOUND:], points[row, BOUND:])
    assert np.all(measure(ball, found.point) <= gamma)


def test_points_inside_stay_where_they_are():
    ball = metzler(0.9).bound(ROWS, WIDTH)
    points = 0.05 * generator(2).normal(size=(ROWS, WIDTH))
    points[np.arange(ROWS), np.arange(ROWS)] = -3.0
    zero = jnp.zeros((ROWS, 1))
    assert_array_equal(joint_prox(simjax.NoPenalty(), ball, points, zero + 1.0, zero).point, points)


@pytest.mark.parametrize("gamma", [0.4, -1.0])
@pytest.mark.parametrize("name", PENALTIES)
def test_joint_prox_against_a_root_finder(name, gamma):
    """θ ≥ 0 is the least with a feasible prox(soft(x − θδ, θω)); scipy's root finder agrees."""
    penalty, step = PENALTIES[name], 1.7
    ball = metzler(gamma, weighted=True).bound(ROWS, WIDTH)
    points = 2.0 * generator(3).normal(size=(ROWS, WIDTH))
    found = joint_prox(penalty, ball, points, jnp.full((ROWS, 1), step), jnp.zeros((ROWS, 1)))
    weights, tilt = np.asarray(ball.omega), np.asarray(ball.tilt)

    def at(theta, row):
        return np.asarray(penalty.prox(soft(points[row] - theta * tilt[row], theta * weights[row]), step))

    for row in range(ROWS):

        def excess(theta, row=row):
            w = at(theta, row)
            return weights[row] @ np.abs(w) + tilt[row] @ w - gamma

        theta = 0.0 if excess(0.0) <= 0.0 else brentq(excess, 0.0, 100.0, xtol=1e-14)
        assert_allclose(found.point[row], at(theta, row), atol=1e-10)
        assert excess(0.0) > 0.0 or found.theta[row, 0] == 0.0


@pytest.mark.parametrize("name", ["perspective", "elastic net", "ridge"])
def test_support_function_against_an_optimiser(name):
    """g*(s) = max sᵀw − h(w) over the constraint; SLSQP on w = p − n, p, n ≥ 0, cannot exceed it, and comes close."""
    penalty, ball = PENALTIES[name], metzler(0.3, weighted=True).bound(ROWS, WIDTH)
    slopes = 0.4 * generator(4).normal(size=(ROWS, WIDTH))
    slopes[:, BOUND:] *= 0.02
    value = np.asarray(support_function(penalty, ball, jnp.asarray(slopes), None))
    assert np.all(np.isfinite(value))
    weights, tilt = np.asarray(ball.omega), np.asarray(ball.tilt)
    for row in range(2):

        def loss(x, row=row):
            w = x[:WIDTH] - x[WIDTH:]
            return float(np.sum(penalty.value(x[:WIDTH] + x[WIDTH:])) - slopes[row] @ w)

        def slack(x, row=row):
            return 0.3 - weights[row] @ (x[:WIDTH] + x[WIDTH:]) - tilt[row] @ (x[:WIDTH] - x[WIDTH:])

        best = minimize(
            loss,
            np.full(2 * WIDTH, 0.1),
            bounds=[(0.0, None)] * (2 * WIDTH),
            constraints={"type": "ineq", "fun": slack},
            options={"maxiter": 1000, "ftol": 1e-14},
        )
        assert -best.fun <= value[row] + 1e-9
        assert -best.fun >= value[row] - 1e-5 * (1.0 + abs(value[row]))


# --- Rows --------------------------------------------------------------------------------------------------------


def rows_with(penalty, constraint, m, matching="penalty", support=None):
    rng = generator(5, m)
    design = rng.normal(size=(m, WIDTH))
    truth = rng.normal(size=(ROWS, WIDTH)) * (rng.random((ROWS, WIDTH)) < 0.5)
    if matching == "exact":
        ball = constraint.bound(ROWS, WIDTH)
        truth[np.arange(ROWS), np.arange(ROWS)] = 0.0
        excess = measure(ball, truth) - np.asarray(ball.radius)[:, 0]
        truth[np.arange(ROWS), np.arange(ROWS)] = -np.maximum(excess, 0.0) - 0.1
        targets = design @ truth.T
    else:
        targets = design @ truth.T + 0.3 * rng.normal(size=(m, ROWS))
    return row_problem(
        design, targets, loss_weight=0.7, penalty=penalty, constraint=constraint, support=support, matching=matching
    )


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(("matching", "m"), [("penalty", 30), slow("penalty", 9), slow("exact", 9)])
@pytest.mark.parametrize(("gamma", "weighted"), [(-1.5, True), slow(0.5, False), slow(40.0, False)])
def test_against_the_oracle(gamma, weighted, matching, m):
    pytest.importorskip("clarabel")
    constraint = metzler(gamma, weighted=weighted)
    for name, penalty in PENALTIES.items():
        stated = rows_with(penalty, constraint, m, matching)
        answer = oracles.solve(stated)
        judged = simjax.certify(stated, answer.weights, [answer.duals])
        scale = np.maximum(np.abs(judged.objective), 1e-12 * 0.7 * np.sum(stated.targets**2, axis=0))
        for solver in ("auto", "admm") if name != "l1" or matching != "exact" else ("auto",):
            solution = solve_problem(stated, SolveOptions(solver=solver))
            where = f"{name}, {solver}: {solution.certificate.relative_gap}"
            assert solution.converged, where
            assert solution.certificate.infeasibility.max() <= (1e-8 if matching == "exact" else 1e-12), where
            allowed = 1e-6 + 10.0 * judged.infeasibility
            if not (name == "least squares" and matching == "exact"):
                found = solution.certificate.objective
                assert np.all(found <= judged.objective + allowed * scale), where
                assert np.all(solution.certificate.dual_objective <= judged.objective + allowed * scale), where


def test_a_negative_radius_rules_out_zero_even_for_a_target_of_zero():
    stated = rows_with(PENALTIES["l1"], metzler(-0.5), 30)
    targets = stated.targets.copy()
    targets[:, 2] = 0.0
    solution = simjax.solve_rows(
        stated.design, targets, loss_weight=0.7, penalty=PENALTIES["l1"], constraint=metzler(-0.5)
    )
    assert solution.converged
    assert_allclose(solution.weights[2, 2], -0.5, atol=1e-6)
    assert np.all(measure(stated.bound, solution.weights) <= -0.5)


@pytest.mark.slow
def test_where_the_support_excludes_the_diagonal_it_is_the_ball():
    support = np.ones((ROWS, WIDTH), dtype=bool)
    support[np.arange(ROWS), np.arange(ROWS)] = False
    row = solve_problem(rows_with(PENALTIES["l1"], metzler(0.3), 30, support=support))
    ball = solve_problem(rows_with(PENALTIES["l1"], simjax.L1Ball(0.3, size=BOUND), 30, support=support))
    assert row.converged
    assert ball.converged
    assert_allclose(row.weights, ball.weights, atol=1e-6)


@pytest.mark.slow
def test_inconsistent_equations_are_proved_so():
    stated = rows_with(PENALTIES["l1"], metzler(0.5), 30)  # 30 equations for 12 unknowns
    with pytest.warns(simjax.ConvergenceWarning):
        solution = simjax.solve_rows(
            stated.design, stated.targets, penalty=PENALTIES["l1"], constraint=metzler(0.5), matching="exact"
        )
    assert np.all(solution.status == "INFEASIBLE")


def test_penalty_form_by_bisection_finds_the_constrained_row():
    """min ½‖Φa − t‖² + λ(a_i + Σ|a_j|): at the λ for which the measure is γ, the constrained solution."""
    gamma, m = 0.2, 30
    stated = rows_with(PENALTIES["least squares"], metzler(gamma), m)
    wanted = solve_problem(stated, SolveOptions(tol=1e-10))
    assert wanted.converged
    for row in range(2):
        target = stated.targets[:, row]

        def penalised(multiplier, row=row, target=target):
            # The linear part λ a_i completes into a shifted target: Φᵀ shift = −λ e_i, loss weight ½.
            shift = np.linalg.lstsq(stated.design.T, -multiplier * np.eye(WIDTH)[row], rcond=None)[0]
            weights = np.zeros(WIDTH)
            weights[:BOUND] = multiplier
            weights[row] = 0.0
            return simjax.solve_rows(
                stated.design, (target + shift)[:, None], loss_weight=0.5, penalty=simjax.L1(weights), tol=1e-10
            ).weights[0]

        def excess(multiplier, row=row, penalised=penalised):
            a = penalised(multiplier)[:BOUND]
            return a[row] + np.abs(np.delete(a, row)).sum() - gamma

        high = 1.0
        while excess(high) > 0.0:
            high *= 2.0
        multiplier = brentq(excess, 0.0, high, xtol=1e-10)
        assert_allclose(penalised(multiplier), wanted.weights[row], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, BOUND])  # ‖(a, b)‖₁ ≤ κ, and ‖a‖₁ ≤ κ with b free
@pytest.mark.parametrize("kappa", [0.05, 0.6])
def test_bisection_over_the_penalty_weight_finds_the_ball(kappa, size):
    """g(λ) = ‖a(λ)‖₁ of min ½‖Φa − t‖² + λ‖a‖₁ falls in λ; the upper end of the bracket is the solution."""
    stated = rows_with(PENALTIES["least squares"], simjax.L1Ball(kappa, size=size), 30)
    wanted = solve_problem(stated, SolveOptions(tol=1e-10))
    assert wanted.converged
    low = np.zeros(ROWS)
    high = np.abs(stated.design.T @ stated.targets).max(axis=0)

    def at(multiplier):
        weights = np.zeros((ROWS, WIDTH))
        weights[:, :size] = multiplier[:, None]
        penalty = simjax.L1(weights)
        return simjax.solve_rows(stated.design, stated.targets, loss_weight=0.5, penalty=penalty, tol=1e-10).weights

    for _ in range(32):
        middle = 0.5 * (low + high)
        over = np.abs(at(middle)[:, :size]).sum(axis=1) >= kappa
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    found = at(high)
    assert np.all(np.abs(found[:, :size]).sum(axis=1) <= kappa * (1.0 + 1e-9))
    assert_allclose(found, wanted.weights, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"diagonal": np.arange(ROWS) + 0.5}, TypeError),
        ({"diagonal": np.full(ROWS, BOUND)}, ValueError),
        ({"diagonal": np.arange(ROWS - 1)}, ValueError),
        ({"radius": np.full(ROWS - 1, 0.5)}, ValueError),
        ({"radius": np.nan}, ValueError),
        ({"weights": 2.0}, ValueError),
        ({"radius": -0.5, "diagonal": np.full(ROWS, -1)}, ValueError),
    ],
)
def test_bad_constraints_are_refused(change, error):
    arguments = {"radius": 0.5, "diagonal": np.arange(ROWS), "size": BOUND, **change}
    with pytest.raises(error, match=r"diagonal|radius"):
        simjax.MetzlerRow(**arguments).bound(ROWS, WIDTH)


def test_own_penalties_are_refused():
    class Own:
        def value(self, weights):
            return 0.5 * weights**2

        def prox(self, points, step):
            return points / (1.0 + step)

        def conjugate(self, slopes):
            return 0.5 * slopes**2

    with pytest.raises(ValueError, match="MetzlerRow"):
        row_problem(np.eye(WIDTH), np.ones((WIDTH, ROWS)), penalty=Own(), constraint=metzler(0.5))
