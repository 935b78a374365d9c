"""Every solver on every kind of row: certified, and the certificate checked again in NumPy."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    BOUND,
    PENALTIES,
    ROWS,
    SQUARISH,
    TALL,
    WIDE,
    WIDTH,
    ByHand,
    Huber,
    NonnegativeL1,
    Squares,
    assert_proved,
    assert_solved,
    generator,
    solve_quietly,
    sparse_rows,
)
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import linprog

import simjax
from simjax import ConvergenceWarning, solve_rows
from simjax.rows import attempts

SOLVERS = ("auto", "admm", "proximal_gradient")
MASK = generator(11).random((ROWS, WIDTH)) < 0.7
CONSTRAINTS = {
    "free": {},
    "ball": {"constraint": simjax.L1Ball(0.9, size=BOUND)},
    "weighted ball": {
        "constraint": simjax.L1Ball(0.9, size=BOUND, weights=generator(12).uniform(0.3, 3.0, size=BOUND))
    },
    "inactive ball": {"constraint": simjax.L1Ball(1e3, size=BOUND)},
    "ball of each row": {
        "constraint": simjax.L1Ball(
            np.array([0.1, 0.5, 0.99, 2.0, 50.0, np.inf]),
            size=BOUND,
            weights=generator(13).uniform(0.3, 3.0, size=(ROWS, BOUND)),
        )
    },
    "mask": {"support": MASK},
    "mask for all rows": {"support": MASK[0]},
    "ball and mask": {"constraint": simjax.L1Ball(0.9, size=BOUND), "support": MASK},
}
HUBER, NONNEGATIVE = Huber(0.5), NonnegativeL1(0.3)
SQUARES = Squares(np.linspace(0.2, 0.9, ROWS))


@pytest.mark.parametrize("kind", CONSTRAINTS)
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_fewer_samples_than_coordinates(solver, name, kind):
    design, targets = sparse_rows(WIDE)
    problem = {"loss_weight": 0.7, "penalty": PENALTIES[name], **CONSTRAINTS[kind]}
    solution = solve_rows(design, targets, solver=solver, **problem)
    assert solution.solver == solver
    assert_solved(design, targets, solution, **problem)


@pytest.mark.parametrize("kind", ["free", "ball", "weighted ball", "mask"])
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_more_samples_than_coordinates(solver, name, kind):
    design, targets = sparse_rows(TALL)
    problem = {"loss_weight": 0.7, "penalty": PENALTIES[name], **CONSTRAINTS[kind]}
    assert_solved(design, targets, solve_rows(design, targets, solver=solver, **problem), **problem)


@pytest.mark.parametrize("solver", SOLVERS)
def test_weights_and_penalties_of_their_own_for_every_row(solver):
    design, targets = sparse_rows(WIDE)
    rng = generator(14)
    problem = {
        "loss_weight": rng.uniform(0.1, 2.0, ROWS),
        "penalty": simjax.Perspective(rng.uniform(0.1, 1.0, (ROWS, WIDTH)), rng.uniform(0.0, 0.1, (ROWS, WIDTH))),
        **CONSTRAINTS["ball of each row"],
    }
    assert_solved(design, targets, solve_rows(design, targets, solver=solver, **problem), **problem)


def test_solvers_agree():
    design, targets = sparse_rows(TALL)
    problem = {"loss_weight": 0.7, "penalty": simjax.L1(0.5), **CONSTRAINTS["ball"]}
    weights = [solve_rows(design, targets, solver=solver, tol=1e-11, **problem).weights for solver in SOLVERS]
    assert_allclose(weights[1], weights[0], atol=1e-7)
    assert_allclose(weights[2], weights[0], atol=1e-7)
    assert_array_equal(weights[1] != 0.0, weights[0] != 0.0)


@pytest.mark.parametrize("m", [WIDE, SQUARISH, TALL])
def test_ridge_and_least_squares_have_their_closed_forms(m):
    design, targets = sparse_rows(m)
    lam, alpha = 0.7, 0.5
    ridge = solve_rows(design, targets, loss_weight=lam, penalty=simjax.Ridge(alpha), tol=1e-12)
    system = lam * design.T @ design + alpha * np.eye(WIDTH)
    assert_allclose(ridge.weights, np.linalg.solve(system, lam * design.T @ targets).T, atol=1e-10)
    plain = solve_rows(design, targets, loss_weight=lam, penalty=simjax.NoPenalty(), tol=1e-12)
    fitted = design @ np.linalg.lstsq(design, targets, rcond=None)[0]
    assert_allclose(design @ plain.weights.T, fitted, atol=1e-9)


# --- Exact matching ----------------------------------------------------------------------------------------------


def least_norms(design, targets):
    """min ‖a‖₁ s.t. Φw = t for each row, the smallest radius for which the ball of `BOUND` leaves an answer."""
    n = BOUND
    equations = np.hstack([design[:, :n], -design[:, :n], design[:, n:]])
    cost = np.concatenate([np.ones(2 * n), np.zeros(WIDTH - n)])
    bounds = [(0, None)] * (2 * n) + [(None, None)] * (WIDTH - n)
    return np.array([linprog(cost, A_eq=equations, b_eq=t, bounds=bounds).fun for t in targets.T])


@pytest.mark.parametrize("kind", ["free", "active ball", "inactive ball", "mask"])
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("solver", ["auto", "admm"])
def test_exact_matching(solver, name, kind):
    design, targets = sparse_rows(WIDE)
    if kind == "active ball":
        radius = 1.2 * least_norms(design, targets)
        options = {"constraint": simjax.L1Ball(radius, size=BOUND)}
    else:
        options = CONSTRAINTS[kind] if kind != "mask" else {"support": generator(15).random((ROWS, WIDTH)) < 0.9}
    problem = {"penalty": PENALTIES[name], "matching": "exact", **options}
    solution = solve_rows(design, targets, solver=solver, **problem)
    assert_solved(design, targets, solution, **problem)
    residual = np.linalg.norm(design @ solution.weights.T - targets, axis=0) / np.linalg.norm(targets, axis=0)
    assert np.all(residual <= 1e-8)


def test_exact_matching_of_an_invertible_system_has_one_answer():
    design, _ = sparse_rows(TALL)
    truth = generator(16).normal(size=(ROWS, WIDTH))
    for name in ("l1", "perspective", "least_squares"):
        problem = {"penalty": PENALTIES[name], "matching": "exact"}
        solution = solve_rows(design, design @ truth.T, **problem)
        assert_solved(design, design @ truth.T, solution, **problem)
        assert_allclose(solution.weights, truth, rtol=1e-7, atol=1e-8)


def test_exact_l1_is_the_linear_program():
    design, targets = sparse_rows(WIDE)
    solution = solve_rows(design, targets, penalty=simjax.L1(1.0), matching="exact", tol=1e-8)
    for t, objective in zip(targets.T, solution.certificate.objective):
        program = linprog(np.ones(2 * WIDTH), A_eq=np.hstack([design, -design]), b_eq=t)
        assert_allclose(objective, program.fun, rtol=2e-8)


@pytest.mark.parametrize("solver", ["auto", "admm"])
def test_inconsistent_rows_are_proved_infeasible_and_leave_their_neighbours_alone(solver):
    design, _ = sparse_rows(TALL)
    weights = 0.1 * generator(17).normal(size=(ROWS, WIDTH))
    targets = design @ weights.T
    problem = {"penalty": simjax.L1(0.5), "matching": "exact"}
    alone = solve_rows(design, targets, solver=solver, **problem)
    targets[:, 2] += generator(18).normal(size=TALL)  # no longer in the range of the design
    with pytest.warns(ConvergenceWarning, match="1 of 6 rows are infeasible"):
        solution = solve_rows(design, targets, solver=solver, max_iters=400, **problem)
    assert_array_equal(solution.status, np.where(np.arange(ROWS) == 2, "INFEASIBLE", "SOLVED"))
    assert_proved(design, targets, solution, **problem)
    others = np.arange(ROWS) != 2
    assert_allclose(solution.weights[others], alone.weights[others], rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["auto", "admm"])
def test_a_ball_too_small_for_the_equations_is_proved_infeasible(solver):
    design, targets = sparse_rows(WIDE)
    radius = np.array([0.5, 1.5, 0.99, 1.5, 1.5, 0.9]) * least_norms(design, targets)
    problem = {
        "penalty": simjax.ElasticNet(0.5, 0.5),
        "matching": "exact",
        "constraint": simjax.L1Ball(radius, size=BOUND),
    }
    solution = solve_quietly(design, targets, solver=solver, max_iters=2000, **problem)
    expected = np.array(["INFEASIBLE", "SOLVED", "INFEASIBLE", "SOLVED", "SOLVED", "INFEASIBLE"])
    assert_array_equal(solution.status, expected)
    assert_proved(design, targets, solution, **problem)
    assert solution.passes.max() < 1000  # a row is looked at before it has spent all its passes
    # At twice the radius every row has an answer again.
    problem["constraint"] = simjax.L1Ball(2.5 * radius, size=BOUND)
    assert_solved(design, targets, solve_rows(design, targets, solver=solver, **problem), **problem)


def test_infeasible_rows_in_the_summary():
    design, targets = sparse_rows(TALL)
    solution = solve_quietly(design, targets, penalty=simjax.L1(0.5), matching="exact", max_iters=100)
    assert "0 of 6 certified" in solution.summary()
    assert "6 rows, proved by a dual ray each" in solution.summary()


# --- A user's own penalty ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["free", "weighted ball"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_user_penalty_with_every_solver(solver, kind):
    design, targets = sparse_rows(WIDE)
    problem = {"loss_weight": 0.7, "penalty": HUBER, **CONSTRAINTS[kind]}
    solution = solve_rows(design, targets, solver=solver, **problem)
    assert solution.converged
    # Primal and dual values by hand: h* of the Huber function is s²/(2c) up to |s| = c.
    s = solution.certificate.dual @ design
    y, lam = solution.certificate.dual, 0.7
    size = np.abs(solution.weights)
    value = 0.5 * np.where(size <= 1.0, 0.5 * size**2, size - 0.5)
    residual = targets.T - solution.weights @ design.T
    objective = lam * np.sum(residual**2, axis=1) + np.sum(value, axis=1)
    assert_allclose(solution.certificate.objective, objective, rtol=1e-13)
    if kind == "free":
        assert np.all(np.abs(s) <= 0.5 * (1.0 + 1e-12))
        bound = np.sum(y * targets.T, axis=1) - np.sum(y**2, axis=1) / (4 * lam) - np.sum(s**2, axis=1)
        assert np.all(objective - bound <= 1e-6 * objective)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "kind"), [("auto", "weighted ball"), ("proximal_gradient", "mask")])
def test_user_penalty_with_parameters_of_its_own_for_every_row(solver, kind):
    design, targets = sparse_rows(TALL)
    built_in = simjax.Ridge(np.repeat(SQUARES.scale, WIDTH, axis=1))
    expected = solve_rows(design, targets, penalty=built_in, tol=1e-11, **CONSTRAINTS[kind])
    solution = solve_rows(design, targets, penalty=SQUARES, solver=solver, tol=1e-11, **CONSTRAINTS[kind])
    assert solution.converged
    assert_allclose(solution.weights, expected.weights, atol=1e-6)


def test_user_penalty_that_forbids_negative_weights():
    design, targets = sparse_rows(TALL)
    solution = solve_rows(design, targets, penalty=NONNEGATIVE, **CONSTRAINTS["ball"])
    assert solution.converged
    assert np.all(solution.weights >= 0.0)
    assert np.any(solution.weights > 0.0, axis=1).all()
    # Without the ball: nonnegative least squares on the coordinates that are left.
    free = solve_rows(design, targets, penalty=NONNEGATIVE, solver="proximal_gradient", tol=1e-10)
    for w, t in zip(free.weights, targets.T):
        slope = 2.0 * design.T @ (t - design @ w)
        assert np.all(w >= 0.0)
        assert_allclose(slope[w > 0.0], NONNEGATIVE.scale, rtol=1e-3)
        assert np.all(slope[w == 0.0] <= NONNEGATIVE.scale * (1.0 + 1e-3))


@pytest.mark.parametrize("matching", ["penalty", "exact"])
def test_user_l1_by_hand_is_the_built_in_l1(matching):
    design, targets = sparse_rows(WIDE)
    expected = solve_rows(design, targets, penalty=simjax.L1(0.3), matching=matching, tol=1e-8)
    solution = solve_rows(design, targets, penalty=ByHand(simjax.L1(0.3)), matching=matching, tol=1e-8)
    assert solution.converged
    assert_allclose(solution.certificate.objective, expected.certificate.objective, rtol=3e-8)


# --- The state of JAX --------------------------------------------------------------------------------------------


def test_a_float32_process_stays_a_float32_process():
    design, targets = sparse_rows(WIDE)
    device = jax.config.jax_default_device
    solution = solve_rows(design.astype(np.float32), targets.astype(np.float32), penalty=simjax.L1(0.3))
    assert jax.config.jax_enable_x64 is False
    assert jax.config.jax_default_device is device
    assert jax.config.jax_default_matmul_precision is None
    assert jnp.ones(3).dtype == jnp.float32
    assert jnp.asarray(solution.weights).dtype == jnp.float32
    # The library's own answers are float64 NumPy arrays all the same.
    assert isinstance(solution.weights, np.ndarray)
    assert solution.weights.dtype == solution.certificate.gap.dtype == solution.certificate.dual.dtype == np.float64


def test_the_answer_does_not_depend_on_the_mode_of_the_process():
    design, targets = sparse_rows(WIDE)
    outside = solve_rows(design, targets, penalty=simjax.L1(0.3), solver="admm").weights
    with jax.enable_x64(True), jax.default_matmul_precision("bfloat16"):
        inside = solve_rows(design, targets, penalty=simjax.L1(0.3), solver="admm").weights
        assert jax.config.jax_enable_x64 is True
    assert_allclose(inside, outside, rtol=0, atol=1e-13)


def test_state_is_restored_after_an_error():
    design, targets = sparse_rows(WIDE)

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve_rows(design, targets, penalty=simjax.L1(0.3), progress=interrupt)
    assert jax.config.jax_enable_x64 is False


def test_importing_changes_no_global_setting():
    script = (
        "import jax, logging, warnings\n"
        "before = dict(jax.config.values), list(logging.getLogger().handlers), list(warnings.filters)\n"
        "import jax.numpy as jnp, scipy.linalg, scipy.optimize, flax, flax.nnx\n"
        "filters = list(warnings.filters)\n"
        "import simjax, sys\n"
        "assert before[0] == dict(jax.config.values), 'jax.config'\n"
        "assert before[1] == logging.getLogger().handlers, 'logging'\n"
        "assert filters == list(warnings.filters), 'warnings'\n"
        "assert jnp.ones(1).dtype == 'float32'\n"
        "heavy = {'matplotlib', 'sklearn', 'mosek', 'clarabel', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# --- Rows that miss the tolerance --------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_that_miss_say_so_once(solver):
    design, targets = sparse_rows(WIDE)
    problem = {"loss_weight": 1e4, "penalty": simjax.L1(1e-3), **CONSTRAINTS["ball"]}
    with pytest.warns(ConvergenceWarning, match=r"\d of 6 rows are not certified at tol=1e-06.*max_iters") as caught:
        solution = solve_rows(design, targets, solver=solver, max_iters=40, **problem)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not solution.converged
    assert set(solution.status) <= {"SOLVED", "ALMOST_SOLVED", "MAX_ITERS"}
    assert "MAX_ITERS" in solution.status
    assert solution.passes.max() <= 40
    # What is returned is feasible, and its gap is a true bound.
    assert_proved(design, targets, solution, **problem)
    best = solve_rows(design, targets, **problem).certificate
    assert np.all(solution.certificate.dual_objective <= best.objective * (1.0 + 1e-12))
    assert np.all(solution.certificate.objective >= best.dual_objective * (1.0 - 1e-12))


def test_solved_rows_give_no_warning(recwarn):
    design, targets = sparse_rows(WIDE)
    solve_rows(design, targets, penalty=simjax.L1(0.3))
    assert not recwarn.list


def test_the_summary_says_by_which_method_rows_were_solved():
    rng = generator(8)
    design, truth = rng.normal(size=(60, 40)), rng.normal(size=(40, 5)) * (rng.random((40, 5)) < 0.1)
    sparse = simjax.solve_rows(design, design @ truth, penalty=simjax.L1(2.0))
    assert sparse.passes.max() == 0
    assert "5 rows by working sets" in sparse.summary()
    assert "ADMM" not in sparse.summary()
    dense = simjax.solve_rows(*sparse_rows(12), penalty=simjax.Perspective(1e-3))
    counts = [int(each) for each in re.findall(r"(\d+) rows by", dense.summary().splitlines()[0])]
    assert sum(counts) == dense.status.size


def test_summary_names_the_solver_and_counts_rows():
    design, targets = sparse_rows(WIDE)
    solution = solve_rows(design, targets, penalty=simjax.L1(0.3), solver="admm")
    summary = solution.summary()
    assert "admm" in summary
    assert "6 of 6 certified" in summary
    assert "1e-06" in summary
    assert solution.seconds > 0.0
    stopped = solve_quietly(design, targets, loss_weight=1e4, penalty=simjax.L1(1e-3), max_iters=100, solver="admm")
    solved = np.count_nonzero(stopped.status == "SOLVED")
    assert solved < ROWS
    assert f"{solved} of 6 certified" in stopped.summary()


# --- Rows and their neighbours -----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_row_does_not_depend_on_its_neighbours(solver):
    design, targets = sparse_rows(SQUARISH)
    problem = {"penalty": simjax.L1(0.5), "tol": 1e-9, **CONSTRAINTS["ball"]}
    reference = solve_rows(design, targets, solver=solver, **problem)
    elsewhere = 1e3 * generator(21).normal(size=targets.shape)  # neighbours that take longer
    for kept in ([0, 1], [5]):
        mixed = elsewhere.copy()
        mixed[:, kept] = targets[:, kept]
        solution = solve_rows(design, mixed, solver=solver, **problem)
        assert_allclose(solution.certificate.objective[kept], reference.certificate.objective[kept], rtol=1e-9)
        assert_allclose(solution.weights[kept], reference.weights[kept], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["auto", "admm"])
def test_finished_rows_are_frozen_and_the_rest_is_compacted(solver):
    # Forty rows, most of them easy: the batch shrinks to the bucket of the three hard ones.
    design, _ = sparse_rows(WIDE)
    targets = generator(19).normal(size=(WIDE, 40))
    loss_weight = np.full(40, 0.02)
    hard = np.array([3, 17, 31])
    loss_weight[hard] = 300.0
    problem = {"loss_weight": loss_weight, "penalty": simjax.L1(0.5)}
    seen = []
    solution = solve_rows(design, targets, solver=solver, progress=seen.append, **problem)
    assert_solved(design, targets, solution, **problem)
    easy = np.setdiff1d(np.arange(40), hard)
    assert solution.passes[easy].max() < solution.passes[hard].max()
    # The same rows among other neighbours: the hard ones come to the same answer.
    alone = solve_rows(
        design, targets[:, np.resize(hard, 40)], loss_weight=300.0, penalty=simjax.L1(0.5), solver=solver
    )
    assert_allclose(alone.certificate.objective[:3], solution.certificate.objective[hard], rtol=1e-6)


def test_progress_is_reported():
    design, targets = sparse_rows(WIDE)
    for solver in SOLVERS:
        seen = []
        solution = solve_rows(
            design, targets, loss_weight=5.0, penalty=simjax.L1(0.5), solver=solver, progress=seen.append
        )
        assert seen
        assert all(isinstance(progress, simjax.Progress) for progress in seen)
        assert all(progress.rows == ROWS and 0 <= progress.solved <= ROWS for progress in seen)
        passes = [progress.passes for progress in seen]
        assert passes == sorted(passes)
        assert [progress.seconds for progress in seen] == sorted(progress.seconds for progress in seen)
        assert seen[-1].solved == ROWS
        assert seen[-1].worst_gap <= 1e-6
        assert solution.passes.max() == passes[-1]
        if solver != "auto":
            assert {progress.stage for progress in seen} == {solver, "certified"}


# --- Odd rows ----------------------------------------------------------------------------------------------------


def test_zero_targets_are_answered_by_zero():
    design, targets = sparse_rows(WIDE)
    targets = np.insert(targets, [0, 4], 0.0, axis=1)
    zero = np.array([0, 5])
    for options in ({}, {"matching": "exact"}, CONSTRAINTS["ball"]):
        solution = solve_rows(design, targets, penalty=simjax.L1(0.3), **options)
        assert solution.converged
        assert_array_equal(solution.weights[zero], np.zeros((2, WIDTH)))
        assert_array_equal(solution.certificate.gap[zero], [0.0, 0.0])
        assert_array_equal(solution.passes[zero], [0, 0])
        assert np.all(np.any(np.delete(solution.weights, zero, axis=0) != 0.0, axis=1))
    nothing = solve_rows(design, np.zeros((WIDE, ROWS)), penalty=simjax.NoPenalty())
    assert nothing.converged
    assert_array_equal(nothing.weights, np.zeros((ROWS, WIDTH)))


@pytest.mark.slow
@pytest.mark.parametrize(("m", "kind"), [(WIDE, "free"), (WIDE, "ball"), (TALL, "ball")])
@pytest.mark.parametrize("name", PENALTIES)
def test_zero_and_duplicate_columns(name, kind, m):
    design, targets = sparse_rows(m)
    design[:, [2, 16]] = 0.0
    design[:, 5] = design[:, 4]
    design[:, 18] = -design[:, 17]
    problem = {"loss_weight": 0.7, "penalty": PENALTIES[name], **CONSTRAINTS[kind]}
    for solver in SOLVERS:
        solution = solve_rows(design, targets, solver=solver, **problem)
        assert_solved(design, targets, solution, **problem)
        if name != "least_squares":
            assert_allclose(solution.weights[:, [2, 16]], np.zeros((ROWS, 2)), atol=1e-15)


def test_zero_and_duplicate_samples():
    design, targets = sparse_rows(TALL)
    design[[3, 4, 50]], targets[[3, 4, 50]] = 0.0, 1.0
    design[1], targets[1] = design[0], targets[0]
    design[7], targets[7] = design[6], -targets[6]  # the same sample with another target
    problem = {"loss_weight": 0.7, "penalty": PENALTIES["l1"], **CONSTRAINTS["ball"]}
    for solver in SOLVERS:
        assert_solved(design, targets, solve_rows(design, targets, solver=solver, **problem), **problem)


def test_a_design_of_zeros():
    targets = sparse_rows(WIDE)[1]
    for name, penalty in PENALTIES.items():
        solution = solve_rows(np.zeros((WIDE, WIDTH)), targets, penalty=penalty)
        assert solution.converged, name
        if name != "least_squares":
            assert_array_equal(solution.weights, np.zeros((ROWS, WIDTH)))
        assert_allclose(solution.certificate.objective, np.sum(targets**2, axis=0), rtol=1e-14)


def test_one_row_only():
    design, targets = sparse_rows(WIDE)
    problem = {"loss_weight": 0.7, "penalty": simjax.Perspective(0.5, 0.005), **CONSTRAINTS["ball"]}
    assert_solved(design, targets[:, :1], solve_rows(design, targets[:, :1], **problem), **problem)


@pytest.mark.parametrize("solver", ["auto", "admm"])
@pytest.mark.parametrize("name", PENALTIES)
def test_rows_that_differ_in_scale_by_1e6(name, solver):
    design, targets = sparse_rows(WIDE)
    targets = targets * np.array([1e-3, 1.0, 1e3, 1e-2, 10.0, 1e2])
    problem = {"loss_weight": 0.7, "penalty": PENALTIES[name], **CONSTRAINTS["ball"]}
    assert_solved(design, targets, solve_rows(design, targets, solver=solver, **problem), **problem)


def test_a_tight_tolerance_is_reached():
    for m in (WIDE, SQUARISH, TALL):
        design, targets = sparse_rows(m)
        for name in ("l1", "perspective-knot", "elastic_net"):
            problem = {"loss_weight": 0.7, "penalty": PENALTIES[name], **CONSTRAINTS["ball"]}
            solution = solve_rows(design, targets, tol=1e-11, **problem)
            assert_solved(design, targets, solution, **problem)


def test_nearly_interpolating_rows_are_certified_by_auto():
    # Small α/λ and m < d, where first-order methods stall: the polish and the interior-point method finish them.
    rng = generator(20)
    design, targets = rng.normal(size=(WIDE, WIDTH)) @ np.diag(np.geomspace(1.0, 1e-2, WIDTH)), None
    targets = design @ rng.normal(size=(WIDTH, ROWS))
    for penalty in (simjax.L1(1e-5), simjax.Perspective(1e-5, 1e-7), simjax.ElasticNet(1e-5, 1e-5)):
        for kind in ("free", "ball", "ball and mask"):
            problem = {"loss_weight": 1.0, "penalty": penalty, **CONSTRAINTS[kind]}
            assert_solved(design, targets, solve_rows(design, targets, **problem), **problem)


@pytest.mark.parametrize(("penalty", "weight"), [(simjax.L1, 3e-5), (simjax.Perspective, 1e-5)])
def test_near_exact_fits_of_large_targets_are_polished_in_the_samples(monkeypatch, penalty, weight):
    # Columns with a common mean: targets 1e8 times as large, in the units of the loss, as the slopes that decide.
    rng = np.random.default_rng(0)
    design = 10.0 + rng.normal(size=(3000, 24))
    truth = rng.normal(size=(6, 24)) * (rng.random((6, 24)) < 0.5)
    arguments = {"loss_weight": 0.1, "penalty": penalty(weight)}
    assert solve_rows(design, design @ truth.T, **arguments).converged
    moments, _, precise, _ = attempts._ATTEMPTS
    monkeypatch.setattr(attempts, "_ATTEMPTS", (moments, precise))
    monkeypatch.setattr(attempts.RowBlock, "_sparse", lambda block, live, start: live)
    with pytest.warns(ConvergenceWarning):  # it is the polish that does it
        solve_rows(design, design @ truth.T, **arguments)
