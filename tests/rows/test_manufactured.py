"""Rows made from a primal-dual pair that satisfies the KKT conditions, so that their optimum is known without a solver.

A pair (w, y) is optimal if s = Φᵀy is a subgradient of g = h + indicator of the ball at w, and y = 2λ(t − Φw)
(penalised) or Φw = t (exact). Φ, w and y are drawn at random; the parameters of the penalty, one per row and
coordinate, are then chosen so that s is a subgradient, and t = Φw + y/(2λ).
"""

import numpy as np
import pytest
from helpers import BOUND, ROWS, TALL, WIDE, WIDTH, assert_solved, generator, row_of, solve_quietly, with_condition
from numpy.testing import assert_allclose, assert_array_equal

import simjax

LOSS_WEIGHT = 0.5
FAMILIES = ("l1", "perspective", "elastic_net", "ridge")


def made(family, *, m=WIDE, condition=3.0, ball=None, seed=0, matching="penalty", degenerate=False, nonzeros=6):
    """A row problem with known answer: (arguments of `solve_rows`, w, y).

    Args:
      ball: None, "active", "inactive" or "touching" (on the sphere with multiplier 0).
      degenerate: coordinates outside the support sit exactly on the edge of the subdifferential, and weights of the
        perspective penalty exactly on its knot.
    """
    rng = generator(seed, m)
    design = with_condition(rng, m, WIDTH, condition) * np.sqrt(m)
    y = rng.normal(size=(ROWS, m))
    slopes = y @ design
    size = np.abs(slopes)
    # The support: where |s| is large, at least one coordinate of the ball among them; ridge has no sparse answers.
    member = np.argsort(np.argsort(-size, axis=1), axis=1) < nonzeros
    member[np.arange(ROWS), np.argmax(size[:, :BOUND], axis=1)] = True
    if family == "ridge":
        member[:] = True
    w = np.where(member, np.sign(slopes) * rng.uniform(0.2, 2.0, size=slopes.shape), 0.0)
    constraint, pull = None, np.zeros_like(slopes)
    if ball is not None:
        omega = rng.uniform(0.5, 2.0, size=(ROWS, BOUND))
        norm = np.sum(omega * np.abs(w[:, :BOUND]), axis=1)
        constraint = simjax.L1Ball(norm * (1.5 if ball == "inactive" else 1.0), size=BOUND, weights=omega)
        if ball == "active":
            room = np.where(member[:, :BOUND], size[:, :BOUND] / omega, np.inf).min(axis=1, keepdims=True)
            pull[:, :BOUND] = 0.4 * room * omega  # θω: a part of the slope that the ball, not the penalty, explains
    slack = 1.0 if degenerate else 1.0 + rng.uniform(0.05, 1.0, size=slopes.shape)
    penalty = penalty_for(family, np.abs(w), np.where(member, size - pull, size * slack), rng, degenerate)
    targets = design @ w.T if matching == "exact" else design @ w.T + y.T / (2.0 * LOSS_WEIGHT)
    problem = {"loss_weight": LOSS_WEIGHT, "penalty": penalty, "constraint": constraint, "matching": matching}
    return {"design": design, "targets": targets, **problem}, w, y


def penalty_for(family, size, slope, rng, degenerate):
    """A penalty whose derivative at |w| = `size` > 0 is `slope`, and whose derivative at 0+ is `slope` where w = 0."""
    inside = size > 0.0
    if family == "l1":
        return simjax.L1(slope)
    if family == "ridge":
        return simjax.Ridge(slope / (2.0 * size))
    if family == "elastic_net":
        share = np.where(inside, rng.uniform(0.2, 1.0, size=size.shape), 1.0)
        curvature = np.where(inside, (1.0 - share) * slope / (2.0 * np.where(inside, size, 1.0)), 0.3)
        return simjax.ElasticNet(share * slope, curvature)
    # Perspective: h' = 2√(αμ) up to the knot √(μ/α), 2α|w| beyond. Half of the weights on either side.
    beyond = inside & (rng.random(size.shape) < 0.5)
    ratio = 1.0 if degenerate else rng.uniform(1.2, 3.0, size=size.shape)
    knot = np.where(beyond, size / ratio, np.where(inside, size * ratio, 1.0))
    alpha = np.where(beyond, slope / (2.0 * np.where(inside, size, 1.0)), slope / (2.0 * knot))
    return simjax.Perspective(alpha, alpha * knot**2)


def optimum_of(arguments, w, y):
    """P(w) in NumPy, after a check that the pair is what it claims: P(w) = D(y)."""
    problem = simjax.row_problem(**arguments)
    rows = [row_of(problem, i) for i in range(ROWS)]
    optimum = np.array([row.objective(w[i]) for i, row in enumerate(rows)])
    bound = np.array([row.dual_objective(y[i]) for i, row in enumerate(rows)])
    assert_allclose(bound, optimum, rtol=1e-10)
    return optimum


def assert_recovered(arguments, w, y, solution, tol, *, weights=None):
    """The objective to the tolerance, from both sides; the fit as well as the gap implies; the weights to `weights`."""
    optimum = optimum_of(arguments, w, y)
    certificate = solution.certificate
    assert_solved(solution=solution, **arguments)
    assert np.all(certificate.relative_gap <= tol)
    rounding = 1e-12 * optimum
    assert np.all(certificate.dual_objective <= optimum + rounding)
    if arguments["matching"] == "penalty":
        assert np.all(certificate.objective >= optimum - rounding)
        # P is 2λ-strongly convex in Φw: λ‖Φ(w − w*)‖² ≤ P(w) − P(w*) ≤ gap.
        error = np.sum(((solution.weights - w) @ arguments["design"].T) ** 2, axis=1)
        assert np.all(LOSS_WEIGHT * error <= certificate.gap + 10.0 * rounding)
    assert_allclose(certificate.objective, optimum, rtol=tol + 1e-11)
    if weights is not None:
        assert_allclose(solution.weights, w, rtol=0, atol=weights)


# --- Well-conditioned rows are recovered to many digits ----------------------------------------------------------


@pytest.mark.parametrize("ball", [None, "inactive", "active", "touching"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("m", [WIDE, TALL])
def test_penalised_rows(m, family, ball):
    arguments, w, y = made(family, m=m, ball=ball)
    solution = simjax.solve_rows(**arguments, tol=1e-11)
    assert_recovered(arguments, w, y, solution, 1e-11, weights=None if m == WIDE else 1e-5)
    if m == TALL and family != "ridge":
        assert_array_equal(solution.weights != 0.0, w != 0.0)


@pytest.mark.parametrize("solver", ["admm", "proximal_gradient"])
@pytest.mark.parametrize("ball", [None, "active"])
@pytest.mark.parametrize("family", FAMILIES)
def test_first_order_methods(family, ball, solver):
    arguments, w, y = made(family, m=TALL, ball=ball, seed=1)
    solution = simjax.solve_rows(**arguments, solver=solver, tol=1e-9)
    assert_recovered(arguments, w, y, solution, 1e-9, weights=1e-4)


@pytest.mark.parametrize("ball", [None, "active"])
@pytest.mark.parametrize("family", FAMILIES)
def test_polished_rows_are_exact_to_rounding(family, ball):
    # With the right support and signs the KKT equations are linear: the polish leaves nothing but rounding.
    arguments, w, _ = made(family, m=TALL, ball=ball, seed=2, nonzeros=4)
    solution = simjax.solve_rows(**arguments, tol=1e-13)
    assert solution.converged
    assert_allclose(solution.weights, w, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ball", [None, "inactive", "active", "touching"])
def test_exact_rows(family, ball):
    arguments, w, y = made(family, m=WIDE, ball=ball, seed=3, matching="exact")
    solution = simjax.solve_rows(**arguments, tol=1e-9)
    assert_recovered(arguments, w, y, solution, 1e-9)


# --- Degenerate rows: strict complementarity fails everywhere ----------------------------------------------------


@pytest.mark.parametrize("ball", [None, "active", "touching"])
@pytest.mark.parametrize("family", ["l1", "perspective", "elastic_net"])
@pytest.mark.parametrize("m", [WIDE, TALL])
def test_degenerate_rows(m, family, ball):
    arguments, w, y = made(family, m=m, ball=ball, seed=4, degenerate=True)
    solution = simjax.solve_rows(**arguments, tol=1e-9)
    assert_recovered(arguments, w, y, solution, 1e-9, weights=None if m == WIDE else 1e-4)


@pytest.mark.parametrize("family", ["l1", "perspective"])
def test_degenerate_exact_rows(family):
    arguments, w, y = made(family, m=WIDE, seed=5, matching="exact", degenerate=True)
    assert_recovered(arguments, w, y, simjax.solve_rows(**arguments, tol=1e-8), 1e-8)


def test_duplicate_columns_have_many_optima_of_one_value():
    arguments, w, y = made("l1", m=WIDE, ball="active", seed=6)
    # Coordinate 19 becomes a copy of coordinate 0, with the same penalty: the pair stays optimal, w no longer unique.
    arguments["design"][:, WIDTH - 1] = arguments["design"][:, 0]
    slope = np.array(arguments["penalty"].slope)
    slope[:, WIDTH - 1] = np.abs(y @ arguments["design"][:, 0])
    w[:, WIDTH - 1] = 0.0
    arguments["penalty"] = simjax.L1(slope)
    arguments["targets"] = arguments["design"] @ w.T + y.T / (2.0 * LOSS_WEIGHT)
    solution = simjax.solve_rows(**arguments, tol=1e-9)
    assert_recovered(arguments, w, y, solution, 1e-9)


# --- Ill-conditioned rows ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("ball", [None, "active"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("m", [WIDE, TALL])
def test_ill_conditioned_rows(m, family, ball, condition):
    arguments, w, y = made(family, m=m, ball=ball, condition=condition, seed=7)
    solution = simjax.solve_rows(**arguments, tol=1e-9)
    assert_recovered(arguments, w, y, solution, 1e-9)


@pytest.mark.parametrize("condition", [1e4, 1e8])
@pytest.mark.parametrize("family", ["l1", "perspective"])
def test_ill_conditioned_exact_rows_are_solved_or_flagged(family, condition):
    arguments, w, y = made(family, m=WIDE, condition=condition, seed=8, matching="exact")
    solution = solve_quietly(**arguments, max_iters=4000)
    optimum = optimum_of(arguments, w, y)
    solved = solution.status == "SOLVED"
    assert_allclose(solution.certificate.objective[solved], optimum[solved], rtol=2e-6)
    assert "INFEASIBLE" not in solution.status
    if condition == 1e4:
        assert solved.all()


def test_a_residual_far_from_the_range_does_not_hide_the_fit():
    # ‖y‖/2λ dwarfs Φw: P is almost all residual, and the answer is decided by a small part of it.
    arguments, w, y = made("l1", m=TALL, seed=9)
    rng = generator(10)
    basis = np.linalg.qr(arguments["design"])[0]
    outside = rng.normal(size=(TALL, ROWS))
    outside -= basis @ (basis.T @ outside)
    arguments["targets"] = arguments["targets"] + 1e4 * outside
    y = y + 2.0 * LOSS_WEIGHT * 1e4 * outside.T
    solution = simjax.solve_rows(**arguments, tol=1e-11)
    assert_recovered(arguments, w, y, solution, 1e-11)
