"""The oracles: every kind of row certified, infeasible rows proved, workers killed, MOSEK's task read back."""

import importlib.util
import multiprocessing
import os
import signal
import sys
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest

import simjax
from simjax.rows import oracles
from simjax.rows.certificate import infeasibility_margin
from simjax.rows.oracles import build, interface, pool
from simjax.rows.oracles.build import conic_program
from simjax.rows.oracles.conic_row import conic_row
from simjax.rows.oracles.program import linear_objective
from simjax.rows.penalties import PiecewisePenalty
from simjax.rows.problem import row_problem

clarabel = pytest.importorskip("simjax.rows.oracles.clarabel")
pytest.importorskip("clarabel")

ROWS = 3
SHAPES = {"m<d": (12, 20), "m>d": (30, 20)}
SEEN = 14

PENALTIES = {
    "l1": lambda weights: simjax.L1(0.05 * weights),
    "perspective mu=alpha": lambda weights: simjax.Perspective(0.05 * weights),
    "perspective mu<<alpha": lambda weights: simjax.Perspective(0.5 * weights, 5e-4 * weights),
    "elastic net": lambda weights: simjax.ElasticNet(0.05 * weights, 0.02 * weights),
    "ridge": lambda weights: simjax.Ridge(0.05 * weights),
    "least squares": lambda weights: simjax.NoPenalty(),
}
SETTINGS = ("free", "ball active", "ball inactive", "weighted ball", "hollow", "weighted penalty")


def hollow(d):
    return ~np.eye(ROWS, d, dtype=bool)


def data(shape, *, consistent=False, seed=0):
    """A ReLU-like design and targets; consistent ones are exactly fitted by weights with w_i = 0 in row i."""
    m, d = SHAPES[shape]
    rng = np.random.default_rng(seed)
    design = np.maximum(rng.normal(size=(m, d)) * rng.uniform(0.3, 2.0, d) + 0.2, 0.0)
    weights = 0.3 * rng.normal(size=(ROWS, d)) * hollow(d)
    noise = 0.0 if consistent else 0.05
    return design, design @ weights.T + noise * rng.normal(size=(m, ROWS))


def ball_norms(weights, omega):
    return np.abs(weights[:, :SEEN]) @ omega


def smallest_radius(design, targets, omega):
    """The smallest Σ ω|w| over the seen coordinates with Φw = t, by the oracle."""
    penalty = simjax.L1(np.concatenate([omega, np.zeros(design.shape[1] - SEEN)]))
    problem = row_problem(design, targets, penalty=penalty, matching="exact")
    return ball_norms(oracles.solve(problem).weights, omega)


def problem_of(penalty, setting, matching, shape):
    """The rows of one cell of the grid, or None where the cell is empty."""
    design, targets = data(shape, consistent=matching == "exact" and shape == "m>d")
    d = design.shape[1]
    scale = np.linspace(0.5, 2.0, d) if setting == "weighted penalty" else 1.0
    arguments = {"loss_weight": 0.4, "penalty": PENALTIES[penalty](scale), "matching": matching}
    if setting == "hollow":
        arguments["support"] = hollow(d)
    if "ball" in setting:
        omega = np.linspace(0.5, 2.0, SEEN) if setting == "weighted ball" else np.ones(SEEN)
        free = ball_norms(oracles.solve(row_problem(design, targets, **arguments)).weights, omega)
        radius = 2.0 * free if setting == "ball inactive" else 0.7 * free
        if matching == "exact" and setting != "ball inactive":
            if shape == "m>d":
                return None  # a single point satisfies the equations: its ball is inactive or impossible
            radius = 0.5 * (free + smallest_radius(design, targets, omega))
        arguments["constraint"] = simjax.L1Ball(radius, SEEN, omega)
    return row_problem(design, targets, **arguments)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("matching", ["penalty", "exact"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_every_answer_is_certified(penalty, matching, shape):
    for setting in SETTINGS:
        problem = problem_of(penalty, setting, matching, shape)
        if problem is None:
            continue
        solution = oracles.solve(problem)
        certificate = simjax.certify(problem, solution.weights, [solution.duals])
        context = f"{setting}: {solution.solver_status}"
        assert set(solution.status) <= {"SOLVED", "ALMOST_SOLVED"}, context
        assert np.max(certificate.relative_gap) <= 1e-8, context
        assert np.max(certificate.infeasibility) <= 1e-8, context
        if matching == "penalty":
            residual_dual = 0.8 * (problem.targets.T - solution.weights @ problem.design.T)
            scale = np.linalg.norm(0.8 * problem.targets.T, axis=1)
            assert np.all(np.linalg.norm(solution.duals - residual_dual, axis=1) <= 1e-7 * scale), context
        if setting == "hollow":
            assert np.all(solution.weights[~hollow(problem.width)] == 0.0)
        if setting == "ball active":
            used = ball_norms(solution.weights, np.ones(SEEN)) / problem.bound.radius[:, 0]
            # A ball is no constraint on pure feasibility, and least squares can fit inside it.
            if penalty != "least squares":
                np.testing.assert_allclose(used, 1.0, atol=1e-6)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_oracles_own_dual_proves_exact_rows(penalty):
    # Under exact matching the residual proves nothing: the sign and the units of y have to be right.
    problem = problem_of(penalty, "free", "exact", "m<d")
    solution = oracles.solve(problem)
    certificate = simjax.certify(problem, solution.weights, [solution.duals])
    without = simjax.certify(problem, solution.weights)
    if penalty == "least squares":
        assert np.all(solution.duals == 0.0)
        assert np.all(certificate.gap == 0.0)
        return
    assert np.all(certificate.relative_gap <= 1e-8)
    assert np.all(without.relative_gap > 0.5)
    # yᵀt is the objective plus the conjugate: D(y) by hand for L1, where the conjugate vanishes.
    if penalty == "l1":
        bound = np.sum(solution.duals * problem.targets.T, axis=1)
        np.testing.assert_allclose(bound, certificate.objective, rtol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_gram_and_residual_form_agree(penalty, shape):
    if penalty == "least squares" and shape == "m<d":
        pytest.skip("an optimum of zero: the gram form, which subtracts λ‖t‖², has no digits for it")
    for setting in ("free", "weighted ball", "hollow"):
        problem = problem_of(penalty, setting, "penalty", shape)
        residual, gram = oracles.solve(problem), oracles.solve(problem, form="gram")
        one, other = (simjax.certify(problem, s.weights, [s.duals]) for s in (residual, gram))
        np.testing.assert_allclose(other.objective, one.objective, rtol=1e-6)
        assert np.all(other.relative_gap <= 1e-5)
        assert np.all(other.dual_objective <= one.objective * (1.0 + 1e-9))


def test_a_penalty_that_is_no_perspective_is_solved_as_well():
    design, targets = data("m<d")
    for slope in (0.0, 0.01, 1.0):
        penalty = PiecewisePenalty(np.array(slope), np.array(0.3), np.array(0.05))
        problem = row_problem(design, targets, penalty=penalty, constraint=simjax.L1Ball(1.0, SEEN))
        solution = oracles.solve(problem)
        assert np.all(simjax.certify(problem, solution.weights, [solution.duals]).relative_gap <= 1e-8)


@pytest.mark.parametrize("loss_weight", [1e-3, 1.0, 1e6])
def test_an_optimum_far_below_the_loss_of_zero_keeps_its_digits(loss_weight):
    # At λ = 1e6 the optimum is 1e-7 of λ‖t‖²: an absolute tolerance of 1e-9 of that would leave two digits.
    design, targets = data("m<d")
    problem = row_problem(design, targets, loss_weight=loss_weight, penalty=simjax.L1(0.05))
    solution = oracles.solve(problem)
    certificate = simjax.certify(problem, solution.weights, [solution.duals])
    assert np.all(certificate.relative_gap <= 1e-8)
    if loss_weight == 1e6:
        assert np.all(certificate.objective <= 1e-5 * loss_weight * np.sum(targets**2, axis=0))


def test_an_unlucky_unit_is_corrected(monkeypatch):
    problem = row_problem(*data("m<d"), loss_weight=0.4, penalty=simjax.Perspective(0.05))
    expected = simjax.certify(problem, oracles.solve(problem).weights).objective
    for unit in (1e-9, 1e9):
        monkeypatch.setattr(build, "objective_unit", lambda design, row, unit=unit: unit)
        solution = oracles.solve(problem)
        certificate = simjax.certify(problem, solution.weights, [solution.duals])
        assert np.all(certificate.relative_gap <= 1e-8)
        np.testing.assert_allclose(certificate.objective, expected, rtol=1e-8)


# --- Rows with an answer in closed form --------------------------------------------------------------------------


def test_rows_whose_answer_is_zero_are_exactly_zero():
    design, targets = data("m<d")
    targets[:, 0] = 0.0
    critical = np.max(np.abs(2.0 * design.T @ targets))
    for matching in ("penalty", "exact"):
        solution = oracles.solve(row_problem(design, targets, penalty=simjax.L1(0.1), matching=matching), rows=[0])
        assert np.all(solution.weights == 0.0)
        assert np.all(solution.duals == 0.0)
        assert solution.status == ["SOLVED"]
    for alpha, is_zero in ((critical * (1.0 + 1e-12), True), (0.99 * critical, False)):
        problem = row_problem(design, targets, penalty=simjax.L1(alpha), constraint=simjax.L1Ball(1.0))
        solution = oracles.solve(problem)
        certificate = simjax.certify(problem, solution.weights, [solution.duals])
        assert np.all(certificate.relative_gap <= (0.0 if is_zero else 1e-8))
        assert np.all(solution.weights == 0.0) == is_zero


# --- Infeasible rows ---------------------------------------------------------------------------------------------


def assert_proved_infeasible(problem, index, ray):
    """yᵀt > sup {yᵀΦw: w in the ball and the support}, in NumPy: no w has Φw = t."""
    allowed = np.ones(problem.width, dtype=bool) if problem.support is None else problem.support[index]
    slopes = np.abs(ray @ problem.design) * allowed
    weights, radius = np.zeros(problem.width), np.inf
    if problem.bound is not None:
        weights = np.broadcast_to(problem.bound.omega, (problem.count, problem.width))[index]
        radius = problem.bound.radius[index, 0]
    seen = weights > 0.0
    reach = radius * np.max(slopes[seen] / weights[seen]) if seen.any() else 0.0
    assert ray @ problem.targets[:, index] - reach == pytest.approx(1.0, rel=1e-9)
    rounding = 1e-12 * np.linalg.norm(ray) * np.linalg.norm(problem.design, axis=0)
    assert np.all(slopes[~seen] <= rounding[~seen])
    rays = np.zeros(problem.targets.T.shape)
    rays[index] = ray
    assert infeasibility_margin(problem, rays)[index] > 0.0


@pytest.mark.parametrize("penalty", PENALTIES)
def test_inconsistent_equations_are_proved_infeasible_and_neighbours_are_solved(penalty):
    design, targets = data("m>d", consistent=True)
    expected = oracles.solve(row_problem(design, targets, penalty=PENALTIES[penalty](1.0), matching="exact"))
    targets[:, 1] += 1e-3 * np.random.default_rng(5).normal(size=len(targets))
    problem = row_problem(design, targets, penalty=PENALTIES[penalty](1.0), matching="exact")
    solution = oracles.solve(problem)
    assert solution.status == ["SOLVED", "INFEASIBLE", "SOLVED"]
    assert_proved_infeasible(problem, 1, solution.duals[1])
    assert np.all(solution.weights[1] == 0.0)
    assert np.array_equal(solution.weights[[0, 2]], expected.weights[[0, 2]])


@pytest.mark.parametrize("fraction", [0.2, 0.999, 0.999999])
@pytest.mark.parametrize("penalty", ["l1", "perspective mu<<alpha", "least squares"])
def test_a_radius_that_is_too_small_is_proved_infeasible(penalty, fraction):
    design, targets = data("m<d")
    omega = np.linspace(0.5, 2.0, SEEN)
    radius = smallest_radius(design, targets, omega) * np.array([fraction, 1.5, fraction])
    problem = row_problem(
        design,
        targets,
        penalty=PENALTIES[penalty](1.0),
        constraint=simjax.L1Ball(radius, SEEN, omega),
        matching="exact",
    )
    solution = oracles.solve(problem)
    assert solution.status[0] == solution.status[2] == "INFEASIBLE"
    assert solution.status[1] in {"SOLVED", "ALMOST_SOLVED"}
    for index in (0, 2):
        assert_proved_infeasible(problem, index, solution.duals[index])


def test_a_support_without_a_column_is_infeasible():
    design, targets = data("m<d")
    support = np.ones((ROWS, design.shape[1]), dtype=bool)
    support[1] = False
    problem = row_problem(design, targets, penalty=simjax.L1(1.0), support=support, matching="exact")
    solution = oracles.solve(problem)
    assert solution.status[1] == "INFEASIBLE"
    assert_proved_infeasible(problem, 1, solution.duals[1])


def test_a_claim_without_a_proof_is_no_answer(monkeypatch):
    # A solver that calls every row infeasible, with a ray that proves nothing.
    def liar(program, tol):
        x, z = np.zeros(program.linear.size), np.ones(program.offset.size)
        return interface.ConicSolution(x, -z, "INFEASIBLE", "so it says", 1)

    monkeypatch.setattr(clarabel, "solve_conic", liar)
    problem = row_problem(*data("m<d"), penalty=simjax.L1(1.0), matching="exact")
    assert oracles.solve(problem).status == ["MAX_ITERS"] * ROWS


@pytest.mark.parametrize(("error", "status"), [(1e-9, "SOLVED"), (1e-7, "ALMOST_SOLVED"), (1e-5, "MAX_ITERS")])
def test_a_claim_to_have_solved_an_exact_row_is_checked_against_its_equations(error, status, monkeypatch):
    honest = clarabel.solve_conic

    def careless(program, tol):
        solution = honest(program, tol)
        x = solution.x.copy()
        x[: program.coordinates.size] *= 1.0 + error
        return interface.ConicSolution(x, solution.z, "SOLVED", "Solved", 1)

    problem = row_problem(*data("m<d"), penalty=simjax.L1(1.0), matching="exact")
    monkeypatch.setattr(clarabel, "solve_conic", careless)
    assert oracles.solve(problem).status == [status] * ROWS


def test_an_answer_that_is_not_finite_is_flagged(monkeypatch):
    def broken(program, tol):
        x, z = np.full(program.linear.size, np.nan), np.zeros(program.offset.size)
        return interface.ConicSolution(x, z, "MAX_ITERS", "broken", 1)

    monkeypatch.setattr(clarabel, "solve_conic", broken)
    solution = oracles.solve(row_problem(*data("m<d"), penalty=simjax.L1(0.1)))
    assert solution.status == ["NONFINITE"] * ROWS
    assert np.all(solution.weights == 0.0)
    assert solution.solver_status == ["broken"] * ROWS


def test_the_statuses_are_the_librarys():
    names = (interface.SOLVED, interface.ALMOST_SOLVED, interface.MAX_ITERS, interface.INFEASIBLE, interface.NONFINITE)
    assert set(names) == {str(status) for status in simjax.Status} - {
        "STALLED"
    }  # short of a limit or of more: MAX_ITERS


# --- Clarabel ----------------------------------------------------------------------------------------------------


def test_the_rotation_takes_rotated_cones_to_second_order_cones_and_back():
    program = conic_program(row_problem(*data("m<d"), penalty=simjax.Perspective(0.1)), 0)
    rotation = clarabel._rotation(program)
    np.testing.assert_allclose((rotation @ rotation).toarray(), np.eye(program.offset.size), atol=1e-15)
    assert abs(rotation - rotation.T).max() == 0.0
    start = program.offset.size - 3
    point = np.zeros(program.offset.size)
    point[start:] = 2.0, 9.0, 6.0  # 2 · 2 · 9 = 6²: on the boundary
    x = (rotation @ point)[start:]
    assert x[0] == pytest.approx(np.hypot(x[1], x[2]), rel=1e-15)
    assert np.array_equal((rotation @ point)[:start], point[:start])


def test_clarabel_says_how_accurate_it_is():
    problem = row_problem(*data("m<d"), loss_weight=0.4, penalty=simjax.Perspective(0.05))
    program = conic_program(problem, 0)
    assert clarabel.solve_conic(program, 1e-9).status == "SOLVED"
    # 1e-16 is beyond float64 for this row.
    impossible = clarabel.solve_conic(program, 1e-16)
    assert impossible.status in {"ALMOST_SOLVED", "MAX_ITERS"}
    assert impossible.solver_status != "Solved"


@pytest.mark.parametrize("oracle", oracles.ORACLES)
def test_a_missing_package_says_how_to_get_it(oracle, monkeypatch):
    monkeypatch.setitem(sys.modules, oracle, None)
    with pytest.raises(oracles.OracleUnavailable, match=r"pip install 'simjax\[oracles\]'"):
        oracles.solve(row_problem(*data("m<d"), penalty=simjax.L1(0.1)), oracle=oracle)


def test_errors_name_the_argument():
    problem = row_problem(*data("m<d"), penalty=simjax.L1(0.1))
    for error, arguments, message in (
        (ValueError, {"oracle": "gurobi"}, "oracle must be one of 'clarabel', 'mosek'; got 'gurobi'"),
        (ValueError, {"workers": 0}, "workers must be at least 1, got 0"),
        (TypeError, {"workers": 1.5}, "workers must be an integer, got float"),
        (ValueError, {"tol": 0.0}, "tol must be a number in"),
        (ValueError, {"form": "dual"}, "form must be one of"),
        (ValueError, {"rows": [0, 3]}, r"rows must be in 0..2, got 0..3"),
        (ValueError, {"rows": [-1]}, r"rows must be in 0..2, got -1..-1"),
        (TypeError, {"rows": [0.5]}, "rows must be a 1-D array of row numbers, got dtype float64"),
        (TypeError, {"rows": []}, "rows must be a 1-D array of row numbers"),
    ):
        with pytest.raises(error, match=message):
            oracles.solve(problem, **arguments)


def test_a_selection_of_rows_in_any_order():
    problem = row_problem(*data("m<d"), penalty=simjax.L1(0.05))
    everything, some = oracles.solve(problem), oracles.solve(problem, rows=np.array([2, 0]))
    assert np.array_equal(some.weights, everything.weights[[2, 0]])
    assert np.array_equal(some.duals, everything.duals[[2, 0]])
    assert np.array_equal(some.rows, [2, 0])
    assert some.oracle == "clarabel"
    assert some.seconds > 0.0


# --- Worker processes --------------------------------------------------------------------------------------------


@pytest.fixture
def memories(monkeypatch):
    """The names of all shared memory that the pool makes; afterwards none of it may be left."""
    names = []

    def recorded(*args, **kwargs):
        memory = SharedMemory(*args, **kwargs)
        names.append(memory.name)
        return memory

    monkeypatch.setattr(pool, "SharedMemory", recorded)
    yield names
    assert names
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)
    assert multiprocessing.active_children() == []


def many_rows():
    rng = np.random.default_rng(3)
    return row_problem(rng.normal(size=(12, 20)), rng.normal(size=(12, 8)), penalty=simjax.L1(0.1))


def test_workers_agree_to_the_last_bit_and_a_killed_one_costs_a_retry(memories):
    problem = many_rows()
    alone = oracles.solve(problem)
    reports, killed = [], []

    def kill_one(done, total):
        reports.append((done, total))
        if done == 2:
            victim = multiprocessing.active_children()[0]
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(victim.pid)

    together = oracles.solve(problem, workers=2, progress=kill_one)
    assert len(killed) == 1
    assert reports == [(done, 8) for done in range(1, 9)]
    assert together.status == ["SOLVED"] * 8
    assert np.array_equal(together.weights, alone.weights)
    assert np.array_equal(together.duals, alone.duals)


def test_a_row_that_takes_its_worker_down_every_time_is_given_up(memories, monkeypatch):
    hand_out = pool._Pool.hand_out
    deaths = []

    def deadly(self):
        hand_out(self)
        for worker in self.workers:
            if worker.row == 1:
                deaths.append(worker.process.pid)
                worker.process.kill()
                worker.process.join()

    monkeypatch.setattr(pool._Pool, "hand_out", deadly)
    problem = many_rows()
    solution = oracles.solve(problem, workers=2, rows=[0, 1, 2])
    assert len(set(deaths)) == 3
    assert solution.status == ["SOLVED", "NONFINITE", "SOLVED"]
    assert np.all(solution.weights[1] == 0.0)
    assert "killed 3 times" in solution.solver_status[1]


def test_workers_that_never_start_end_the_run(memories, monkeypatch):
    class StillBorn(pool._Worker):
        def __init__(self, arguments):
            super().__init__(arguments)
            self.process.kill()

    monkeypatch.setattr(pool, "_Worker", StillBorn)
    with pytest.raises(RuntimeError, match="if __name__ == '__main__'"):
        oracles.solve(many_rows(), workers=2)


def test_an_error_in_a_worker_reaches_the_caller(memories):
    problem = many_rows()
    rows = [conic_row(problem, row) for row in range(2)]
    settings = pool.RowSettings("no_such_oracle", 1e-9, "residual")
    with pytest.raises(ModuleNotFoundError, match="no_such_oracle"):
        pool.solve_in_processes(problem.design, rows, settings, 2, lambda: None)


# --- MOSEK -------------------------------------------------------------------------------------------------------


needs_mosek = pytest.mark.skipif(importlib.util.find_spec("mosek") is None, reason="mosek is not installed")


def has_licence():
    try:
        interface.oracle_module("mosek").check_licence()
    except oracles.OracleUnavailable:
        return False
    return True


LICENSED = has_licence()


@needs_mosek
@pytest.mark.skipif(LICENSED, reason="a MOSEK licence is here; this is what happens without one")
def test_without_a_licence_mosek_fails_at_once_and_says_what_to_do():
    problem = row_problem(*data("m<d"), penalty=simjax.L1(0.1))
    for call in (
        lambda: oracles.solve(problem, oracle="mosek"),
        lambda: interface.oracle_module("mosek").solve_conic(conic_program(problem, 0), 1e-9),
    ):
        with pytest.raises(oracles.OracleUnavailable, match=r"licence") as caught:
            call()
        for word in ("mosek.com", "mosek.lic", "MOSEKLM_LICENSE_FILE", 'oracle="clarabel"'):
            assert word in str(caught.value)


def mosek_programs():
    """One program of every kind."""
    for penalty in PENALTIES:
        for matching in ("penalty", "exact"):
            problem = problem_of(penalty, "ball inactive", matching, "m<d")
            yield f"{penalty}, {matching}", conic_program(problem, 0)
        problem = problem_of(penalty, "ball inactive", "penalty", "m>d")
        yield f"{penalty}, gram", conic_program(problem, 0, form="gram")


@needs_mosek
def test_the_task_read_back_is_the_program_to_the_last_coefficient():
    mosek = interface.oracle_module("mosek")
    for name, program in mosek_programs():
        expected = linear_objective(program)
        with mosek.build_task(program) as task:
            read = mosek.read_task(task)
        assert read.cones == expected.cones, name
        assert (read.matrix != expected.matrix).nnz == 0, name
        assert read.quadratic.nnz == 0, name
        assert np.array_equal(read.linear, expected.linear), name
        assert np.array_equal(read.offset, expected.offset), name
        assert read.constant == expected.constant, name


@needs_mosek
def test_the_task_read_back_has_the_optimum_of_the_program():
    mosek = interface.oracle_module("mosek")
    for name, program in mosek_programs():
        with mosek.build_task(program) as task:
            read = mosek.read_task(task)
        x = clarabel.solve_conic(program, 1e-9).x
        expected = 0.5 * x @ (program.quadratic @ x) + program.linear @ x
        found = read.linear @ clarabel.solve_conic(read, 1e-9).x
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7), name


@needs_mosek
def test_mosek_judges_our_multipliers_by_its_own_signs():
    # MOSEK evaluates any solution it is handed, licence or not: with the multipliers that Clarabel found, in the signs
    # in which MOSEK's own are read, its dual objective must meet its primal one without violation.
    import mosek as package

    mosek = interface.oracle_module("mosek")
    which, unknown = package.soltype.itr, package.stakey.supbas
    for name, program in mosek_programs():
        solution = clarabel.solve_conic(linear_objective(program), 1e-9)
        with mosek.build_task(program) as task:
            n, linear, cones = task.getnumvar(), task.getnumcon(), task.getnumacc()
            y, dot_y = -solution.z[:linear], np.ascontiguousarray(solution.z[linear:])
            activity = linear_objective(program).matrix[:linear] @ solution.x
            zeros = np.zeros(n)
            task.putsolutionnew(
                which,
                [unknown] * linear,
                [unknown] * n,
                [unknown] * cones,
                activity,
                solution.x,
                y,
                np.maximum(y, 0.0),
                np.maximum(-y, 0.0),
                zeros,
                zeros,
                zeros,
                dot_y,
            )
            primal, dual = task.getprimalobj(which), task.getdualobj(which)
            assert primal == pytest.approx(dual, rel=1e-6, abs=1e-7), name
            violation = max(task.getsolutioninfonew(which)[index] for index in (1, 5, 9, 10, 12))
            assert violation <= 1e-6, name
            np.testing.assert_array_equal(mosek.multipliers(task, which), solution.z)


@needs_mosek
def test_reading_back_refuses_what_it_would_lose():
    import mosek as package

    mosek = interface.oracle_module("mosek")
    program = conic_program(row_problem(*data("m<d"), penalty=simjax.Perspective(0.1)), 0)

    def bound_a_variable(task):
        task.putvarbound(0, package.boundkey.lo, 0.0, 0.0)

    def bound_from_below(task):
        task.putconbound(0, package.boundkey.lo, 0.0, 0.0)

    def add_a_cone(task):
        task.appendafes(2)
        task.appendaccseq(task.appendquadraticconedomain(2), task.getnumafe() - 2, None)

    def add_a_quadratic(task):
        task.putqobj([0], [0], [1.0])

    for change, message in (
        (bound_a_variable, "free variables"),
        (add_a_quadratic, "linear objective"),
        (bound_from_below, "upper bound or an equality"),
        (add_a_cone, "rotated quadratic cones only"),
    ):
        with mosek.build_task(program) as task:
            change(task)
            with pytest.raises(ValueError, match=message):
                mosek.read_task(task)


@pytest.mark.skipif(not LICENSED, reason="no MOSEK licence here; with one, MOSEK is compared to Clarabel for real")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("matching", ["penalty", "exact"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_mosek_agrees_with_clarabel(penalty, matching, shape):
    for setting in SETTINGS:
        problem = problem_of(penalty, setting, matching, shape)
        if problem is None:
            continue
        one, other = oracles.solve(problem), oracles.solve(problem, oracle="mosek")
        expected, found = (simjax.certify(problem, s.weights, [s.duals]) for s in (one, other))
        floor = 1e-12 * problem.loss_weight * np.sum(problem.targets**2, axis=0)
        np.testing.assert_allclose(found.objective, expected.objective, rtol=1e-6, atol=floor.max())
        assert np.all(found.relative_gap <= 1e-6), setting
        assert np.all(found.infeasibility <= 1e-8), setting
