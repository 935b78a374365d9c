"""Rows at the edge of what float64 can hold: each is certified, or flagged; nothing returns NaN as an answer."""

import contextlib
import signal

import numpy as np
import pytest
from helpers import (
    BOUND,
    ROWS,
    TALL,
    WIDE,
    WIDTH,
    assert_proved,
    assert_solved,
    generator,
    solve_quietly,
    sparse_rows,
    with_condition,
)
from numpy.testing import assert_allclose, assert_array_equal

import simjax

PENALTIES = {
    "l1": simjax.L1(1e-3),
    "perspective": simjax.Perspective(1e-3, 1e-5),
    "elastic_net": simjax.ElasticNet(1e-3, 1e-3),
    "ridge": simjax.Ridge(1e-3),
    "least_squares": simjax.NoPenalty(),
}
BALL = simjax.L1Ball(0.9, size=BOUND)
# Three rows without a ball beside three with one, and all rows with a ball that sees every coordinate.
FREE, BOUNDED = np.arange(3), np.arange(3, ROWS)
MIXED = simjax.L1Ball(np.where(np.arange(ROWS) < 3, np.inf, 0.9), size=BOUND)
BALLS = {"free and ball": MIXED, "ball of all": simjax.L1Ball(0.9)}
BUILDERS = [simjax.L1, simjax.Perspective, simjax.ElasticNet, simjax.Ridge]


@contextlib.contextmanager
def time_limit(seconds):
    """A solve that never ends becomes a failure, not a test run that never ends."""

    def stop(number, frame):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def honest(design, targets, *, max_iters=2000, solver="auto", tol=1e-6, **problem):
    """Solve, and check every claim in NumPy; rows without the status SOLVED only have to be finite and feasible.

    Any warning but the ConvergenceWarning fails the test, as everywhere in this suite.
    """
    with time_limit(300):
        solution = solve_quietly(design, targets, max_iters=max_iters, solver=solver, tol=tol, **problem)
    certificate = solution.certificate
    for values in (certificate.objective, certificate.dual_objective, certificate.gap, certificate.relative_gap):
        assert not np.any(np.isnan(values))
    assert_proved(design, targets, solution, **problem)
    return solution


# --- Conditioning ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("m", [WIDE, TALL])
@pytest.mark.parametrize("condition", [1e8, 1e12])
def test_condition_numbers(condition, m, name):
    design = with_condition(generator(1, m), m, WIDTH, condition)
    targets = generator(2).normal(size=(m, ROWS))
    solution = honest(design, targets, penalty=PENALTIES[name], constraint=MIXED)
    # With more columns than samples, the weights that fit exactly without penalty and ball grow with the condition
    # number, and with them the rounding of the fit.
    judged = BOUNDED if name == "least_squares" and m == WIDE else np.arange(ROWS)
    assert np.all(solution.status[judged] == "SOLVED")


@pytest.mark.slow
@pytest.mark.parametrize("m", [WIDE, TALL])
def test_ill_conditioned_least_squares_fits_as_well_as_lapack(m):
    design = with_condition(generator(1, m), m, WIDTH, 1e6)
    targets = generator(2).normal(size=(m, ROWS))
    solution = honest(design, targets, penalty=simjax.NoPenalty())
    assert solution.converged
    reference = np.linalg.lstsq(design, targets, rcond=None)[0]
    optimum = np.sum((targets - design @ reference) ** 2, axis=0)
    assert np.all(solution.certificate.objective <= optimum + 1e-9 * np.sum(targets**2, axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("m", [WIDE, TALL])
def test_columns_scaled_over_twelve_decades(m, name):
    design, targets = sparse_rows(m)
    scale = np.geomspace(1e-6, 1e6, WIDTH)[generator(3).permutation(WIDTH)]
    solution = honest(design * scale, targets, penalty=PENALTIES[name], constraint=MIXED, max_iters=500)
    # |s_j| ≤ c for a column of size 1e6 is decided by rounding: with a slope c, a certificate may stop short of 1e-6
    # there, and the row is flagged (`honest` checks that it is).
    if name not in ("l1", "perspective"):
        assert solution.converged


@pytest.mark.slow
@pytest.mark.parametrize("name", PENALTIES)
def test_samples_scaled_over_twelve_decades(name):
    design, targets = sparse_rows(TALL)
    scale = np.geomspace(1e-6, 1e6, TALL)[generator(4).permutation(TALL), None]
    solution = honest(design * scale, targets * scale, penalty=PENALTIES[name], constraint=BALL, max_iters=500)
    # Against an objective of 1e11, |s_j| ≤ 1e-3 on the free coordinates of L1 is a demand below rounding.
    assert solution.converged or name == "l1"


@pytest.mark.parametrize("condition", [1e8, 1e12])
def test_exact_matching_of_ill_conditioned_designs(condition):
    design = with_condition(generator(5), WIDE, WIDTH, condition)
    targets = design @ generator(6).normal(size=(WIDTH, ROWS))
    solution = honest(design, targets, penalty=PENALTIES["l1"], matching="exact")
    # The equations hold for the weights that made the targets: calling them inconsistent would be wrong.
    assert "INFEASIBLE" not in solution.status


# --- The smallest shapes -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", PENALTIES)
def test_one_sample(name):
    design, targets = sparse_rows(WIDE)
    problem = {"penalty": PENALTIES[name], "constraint": MIXED}
    assert_solved(design[:1], targets[:1], honest(design[:1], targets[:1], **problem), **problem)


@pytest.mark.slow
@pytest.mark.parametrize("name", PENALTIES)
def test_one_coordinate(name):
    # min λ‖t − φw‖² + h(w) over one w: on a grid fine enough to see any mistake.
    design, targets = sparse_rows(TALL)
    design = design[:, :1]
    radius = np.where(np.arange(ROWS) < 3, np.inf, 0.1)
    solution = honest(design, targets, penalty=PENALTIES[name], constraint=simjax.L1Ball(radius))
    assert solution.converged
    for t, reach, objective in zip(targets.T, np.minimum(radius, 3.0), solution.certificate.objective):
        grid = np.linspace(-reach, reach, 20_001)
        h = np.asarray(PENALTIES[name].value(grid))
        values = t @ t - 2.0 * (t @ design[:, 0]) * grid + (design[:, 0] @ design[:, 0]) * grid**2 + h
        assert objective <= values.min() * (1.0 + 1e-6)
        assert objective >= values.min() * (1.0 - 1e-4)


@pytest.mark.parametrize("matching", ["penalty", "exact"])
@pytest.mark.parametrize("name", PENALTIES)
def test_one_sample_one_coordinate_one_row(name, matching):
    solution = honest([[2.0]], [[3.0]], penalty=PENALTIES[name], matching=matching)
    assert solution.converged
    assert_allclose(solution.weights, [[1.5]], rtol=1e-2 if matching == "penalty" else 1e-8)


# --- Degenerate data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BALLS)
@pytest.mark.parametrize("name", PENALTIES)
def test_all_targets_equal(name, kind):
    design, _ = sparse_rows(WIDE)
    targets = np.full((WIDE, ROWS), 3.0)
    solution = honest(design, targets, penalty=PENALTIES[name], constraint=BALLS[kind])
    assert solution.converged
    for rows in (FREE, BOUNDED) if kind == "free and ball" else (np.arange(ROWS),):
        assert_allclose(solution.weights[rows[1:]], solution.weights[rows[:-1]], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", BALLS)
@pytest.mark.parametrize("name", PENALTIES)
def test_identical_samples(name, kind):
    design, targets = sparse_rows(WIDE)
    design = np.repeat(design[:1], WIDE, axis=0)
    for same in (np.repeat(targets[:1], WIDE, axis=0), targets):  # with one target, or with a different one each time
        assert honest(design, same, penalty=PENALTIES[name], constraint=BALLS[kind]).converged


@pytest.mark.parametrize("kind", BALLS)
@pytest.mark.parametrize("name", PENALTIES)
def test_a_column_equal_to_the_target(name, kind):
    design, targets = sparse_rows(WIDE)
    design[:, :3] = targets[:, :3]
    solution = honest(design, targets, penalty=PENALTIES[name], constraint=BALLS[kind])
    assert solution.converged
    exact = honest(design, targets, penalty=simjax.L1(1.0), matching="exact")
    assert exact.converged
    assert np.all(exact.certificate.objective[:3] <= 1.0 + 1e-6)  # that column alone, with weight one, would do


# --- The size of the targets and of the design -------------------------------------------------------------------


@pytest.mark.parametrize("kind", BALLS)
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_tiny_and_huge_targets(size, name, kind):
    design, targets = sparse_rows(WIDE)
    solution = honest(design, size * targets, penalty=PENALTIES[name], constraint=BALLS[kind])
    # At 1e30 the demand |s_j| ≤ 1e-3 of a free L1 coordinate lies below the rounding of s_j next to a ball.
    judged = FREE if (name, kind, size > 1.0) == ("l1", "free and ball", True) else np.arange(ROWS)
    assert np.all(solution.status[judged] == "SOLVED")
    if size < 1.0 and name in ("l1", "perspective", "elastic_net"):
        assert_array_equal(solution.weights, np.zeros((ROWS, WIDTH)))


def test_rows_of_very_different_size_side_by_side():
    design, targets = sparse_rows(WIDE)
    targets = targets * np.array([1e-30, 1.0, 1e30, 1e-8, 1e8, 1e-100])
    for name in ("perspective", "elastic_net", "ridge"):
        assert honest(design, targets, penalty=PENALTIES[name]).converged
    # A free L1 row with ‖t‖ = 1e8 and α = 1e-3 is at the limit of float64; its neighbours are not.
    solution = honest(design, targets, penalty=PENALTIES["l1"])
    assert np.all(np.delete(solution.status, 4) == "SOLVED")


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e150])
@pytest.mark.parametrize("name", ["l1", "perspective", "ridge", "least_squares"])
def test_tiny_and_huge_designs(name, scale):
    design, targets = sparse_rows(WIDE)
    assert honest(scale * design, targets, penalty=PENALTIES[name], constraint=BALL).converged


@pytest.mark.parametrize("what", ["design", "targets"])
@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-200, 1e-160, 1e160, 1e200, 1e300])
def test_squares_that_leave_the_range_of_float64(size, what):
    # Refused with a message that names the argument, solved, or flagged; no NaN, no RuntimeWarning, no endless loop.
    arrays = dict(zip(("design", "targets"), sparse_rows(WIDE)))
    arrays[what] = arrays[what] / np.abs(arrays[what]).max() * size
    try:
        with time_limit(300):
            solution = solve_quietly(**arrays, penalty=PENALTIES["l1"], constraint=MIXED, max_iters=400)
    except ValueError as error:
        assert what in str(error)
        return
    certificate = solution.certificate
    assert np.all(np.isfinite(solution.weights))
    assert not np.any(np.isnan(certificate.gap) | np.isnan(certificate.relative_gap))
    assert not np.any(np.isnan(certificate.objective) | np.isnan(certificate.dual_objective))
    if size < 1.0:  # so little that w = 0 is the answer
        assert solution.converged
        assert_array_equal(solution.weights, np.zeros((ROWS, WIDTH)))
    elif not solution.converged:
        assert set(solution.status) <= {"NONFINITE", "MAX_ITERS", "ALMOST_SOLVED", "SOLVED"}


def test_subnormal_and_negative_zero_entries_among_ordinary_ones():
    design, targets = sparse_rows(TALL)
    rng = generator(7)
    for value in (-0.0, 5e-324, -1e-310):
        changed, goals = design.copy(), targets.copy()
        changed[rng.random(design.shape) < 0.2] = value
        goals[rng.random(targets.shape) < 0.2] = value
        zeroed = np.where(np.abs(changed) < 1e-300, 0.0, changed), np.where(np.abs(goals) < 1e-300, 0.0, goals)
        for name in ("l1", "perspective", "least_squares"):
            problem = {"penalty": PENALTIES[name], "constraint": BALL}
            solution, reference = honest(changed, goals, **problem), honest(*zeroed, **problem)
            assert solution.converged
            assert_allclose(solution.certificate.objective, reference.certificate.objective, rtol=1e-6)
    nothing = honest(design, np.full((TALL, ROWS), -0.0), penalty=PENALTIES["l1"])
    assert nothing.converged
    assert_array_equal(nothing.weights, np.zeros((ROWS, WIDTH)))


# --- The parameters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [WIDE, TALL])
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("kappa", [1e-6, 1.0 - 1e-9, 1e4])
def test_tiny_balls_and_balls_next_to_one(kappa, name, m):
    design, targets = sparse_rows(m)
    solution = honest(design, targets, penalty=PENALTIES[name], constraint=simjax.L1Ball(kappa, size=BOUND))
    assert solution.converged
    norm = np.abs(solution.weights[:, :BOUND]).sum(axis=1)
    assert np.all(norm <= kappa * (1.0 + 1e-12))
    if kappa == 1.0 - 1e-9:
        assert np.all(norm < 1.0)  # well-posed


@pytest.mark.parametrize("m", [WIDE, TALL])
@pytest.mark.parametrize("build", BUILDERS)
def test_alpha_of_zero_is_least_squares(build, m):
    design, targets = sparse_rows(m)
    solution = honest(design, targets, penalty=build(0.0), constraint=MIXED)
    assert solution.converged
    reference = honest(design, targets, penalty=simjax.NoPenalty(), constraint=MIXED)
    size = np.sum(targets**2, axis=0)
    assert np.all(np.abs(solution.certificate.objective - reference.certificate.objective) <= 1e-6 * size)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [5e-324, 1e-100, 1e-30])
@pytest.mark.parametrize("build", BUILDERS)
def test_alpha_next_to_zero(build, alpha):
    design, targets = sparse_rows(WIDE)
    assert honest(design, targets, penalty=build(alpha)).converged
    # With a ball the demands of the free coordinates lie below rounding: flagged, not claimed.
    honest(*sparse_rows(TALL), penalty=build(alpha), constraint=BALL, max_iters=400)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1e30, 1e300])
@pytest.mark.parametrize("build", BUILDERS)
def test_huge_alpha_leaves_nothing(build, alpha):
    design, targets = sparse_rows(WIDE)
    solution = honest(design, targets, penalty=build(alpha), constraint=MIXED)
    assert solution.converged
    assert np.all(np.abs(solution.weights) <= 1e3 / alpha)
    if build is not simjax.Ridge:
        assert_array_equal(solution.weights, np.zeros((ROWS, WIDTH)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", BALLS)
@pytest.mark.parametrize("m", [WIDE, TALL])
@pytest.mark.parametrize(
    "build",
    [simjax.L1, lambda slope: simjax.Perspective(slope, slope / 4.0), lambda slope: simjax.ElasticNet(slope, 0.1)],
    ids=["l1", "perspective", "elastic_net"],
)
def test_the_critical_weight(build, m, kind):
    # All three have slope c at zero: w = 0 is the answer exactly when c ≥ 2λ‖Φᵀt‖∞, row by row.
    design, targets = sparse_rows(m)
    critical = 2.0 * 0.7 * np.abs(design.T @ targets).max(axis=0)
    factor = np.array([1.0 + 1e-9, 1.0, 2.0, 0.9, 0.5, 1e6])
    slope = np.repeat((factor * critical)[:, None], WIDTH, axis=1)
    for solver in ("auto", "admm", "proximal_gradient"):
        problem = {"loss_weight": 0.7, "penalty": build(slope), "constraint": BALLS[kind]}
        solution = honest(design, targets, solver=solver, **problem)
        assert solution.converged
        above = factor > 1.0
        assert_array_equal(solution.weights[above], np.zeros((3, WIDTH)))
        assert np.all(np.any(solution.weights[factor < 1.0] != 0.0, axis=1))
        assert_allclose(solution.weights[1], np.zeros(WIDTH), atol=1e-4)  # at the edge, within the tolerance


@pytest.mark.slow
@pytest.mark.parametrize("loss_weight", [1e-300, 1e-150, 1e-30, 1e30, 1e150, 1e300])
def test_tiny_and_huge_loss_weights(loss_weight):
    design, targets = sparse_rows(WIDE)
    assert honest(design, targets, penalty=PENALTIES["l1"], loss_weight=loss_weight).converged
    honest(design, targets, penalty=PENALTIES["l1"], loss_weight=loss_weight, constraint=BALL, max_iters=400)


@pytest.mark.parametrize("tol", [1e-300, 1e-17, 1e3])
def test_tolerances_out_of_reach_or_of_no_use(tol):
    design, targets = sparse_rows(WIDE)
    solution = honest(design, targets, penalty=PENALTIES["l1"], tol=tol, max_iters=400)
    assert np.all((solution.certificate.relative_gap <= tol) == (solution.status == "SOLVED"))


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["auto", "admm", "proximal_gradient"])
def test_rows_of_every_kind_in_one_batch(solver):
    """Rows of mixed size, weight, radius and support in one batch: certified and right, or flagged."""
    rng = generator(8)
    rows = 30
    design, _ = sparse_rows(WIDE)
    targets = rng.normal(size=(WIDE, rows)) * 10.0 ** rng.uniform(-6, 6, rows)
    targets[:, ::10] = 0.0
    problem = {
        "loss_weight": 10.0 ** rng.uniform(-3, 3, rows),
        "penalty": simjax.ElasticNet(
            10.0 ** rng.uniform(-4, 1, (rows, WIDTH)), np.where(rng.random((rows, 1)) < 0.5, 0.0, 0.1)
        ),
        "constraint": simjax.L1Ball(
            np.where(rng.random(rows) < 0.3, np.inf, 10.0 ** rng.uniform(-3, 2, rows)), size=BOUND
        ),
        "support": rng.random((rows, WIDTH)) < 0.9,
    }
    solution = honest(design, targets, solver=solver, **problem)
    assert np.count_nonzero(solution.status == "SOLVED") >= (28 if solver == "auto" else 15)
