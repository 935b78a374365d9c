"""The conic form of a row: the same optimum as the row, in the shape the paper states, without JAX."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse

import simjax
from simjax.rows.oracles.build import build_program, conic_program
from simjax.rows.oracles.conic_row import FORMS, SharedDesign, conic_row
from simjax.rows.oracles.program import ZERO, Cone, ConicProgram, linear_objective
from simjax.rows.penalties import PiecewisePenalty
from simjax.rows.problem import row_problem

clarabel = pytest.importorskip("simjax.rows.oracles.clarabel")

M, D, ROWS, SEEN = 12, 20, 3, 14

PENALTIES = {
    "l1": simjax.L1(0.05),
    "perspective": simjax.Perspective(0.04),
    "perspective small mu": simjax.Perspective(0.5, 0.001),
    "perspective large mu": simjax.Perspective(0.001, 0.5),
    "elastic net": simjax.ElasticNet(0.03, 0.02),
    "ridge": simjax.Ridge(0.05),
    "least squares": simjax.NoPenalty(),
    "bent": PiecewisePenalty(np.array(0.02), np.array(0.3), np.array(0.2)),
    "dead zone": PiecewisePenalty(np.array(0.0), np.array(0.3), np.array(0.2)),
    "groups": simjax.GroupL1([0.05, 0.0, 0.1, 0.02, 0.03], np.arange(D) % 5),
}


def rows(penalty=PENALTIES["l1"], *, m=M, d=D, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    design = np.maximum(rng.normal(size=(m, d)) + 0.3, 0.0)
    targets = design @ rng.normal(size=(d, ROWS)) * 0.3 + 0.05 * rng.normal(size=(m, ROWS))
    return row_problem(design, targets, loss_weight=0.4, penalty=penalty, **kwargs)


def objective_at(program, weights):
    """The program's optimum with its first variables held at `weights`, in units of the row."""
    size, count = program.linear.size, program.coordinates.size
    held = sparse.eye_array(count, size, format="csc")
    fixed = ConicProgram(
        quadratic=program.quadratic,
        linear=program.linear,
        constant=program.constant,
        matrix=sparse.vstack([held, program.matrix], format="csc"),
        offset=np.concatenate([weights[program.coordinates] / program.point_scale, program.offset]),
        cones=(Cone(ZERO, count), *program.cones),
    )
    x = clarabel.solve_conic(fixed, 1e-10).x
    value = 0.5 * x @ (program.quadratic @ x) + program.linear @ x + program.constant
    return program.objective_scale * value


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PENALTIES)
def test_the_program_has_the_objective_of_the_row(name, form):
    # Given w, what is left of the program is r, u, v, s and t: their best values must add up to P(w).
    problem = rows(PENALTIES[name], constraint=simjax.L1Ball(5.0, SEEN))
    design, row = SharedDesign(problem.design), conic_row(problem, 1)
    rng = np.random.default_rng(1)
    for scale in (0.01, 0.1, 0.5):
        weights = scale * rng.normal(size=D) * (rng.random(D) < 0.7)
        expected = simjax.certify(problem, np.tile(weights, (ROWS, 1))).objective[1]
        program = build_program(design, row, form, objective_scale=expected)
        assert objective_at(program, weights) == pytest.approx(expected, rel=1e-8)


def test_under_exact_matching_the_objective_is_the_penalty_alone():
    problem = rows(PENALTIES["perspective"], matching="exact")
    weights = np.linalg.lstsq(problem.design, problem.targets[:, 0], rcond=None)[0]
    program = conic_program(problem, 0)
    penalty = PENALTIES["perspective"]
    expected = float(np.sum(np.asarray(penalty.value(weights))))
    assert objective_at(program, weights) == pytest.approx(expected, rel=1e-6)


def test_the_perspective_is_stated_as_in_the_paper():
    # Eq. (5): one rotated cone and one t ≤ 1 for every weight, and nothing else but the equations.
    program = conic_program(rows(PENALTIES["perspective"]), 0)
    assert program.cones == (
        Cone("zero", M),
        Cone("nonnegative", D),
        *[Cone("rotated", 3)] * D,
    )
    assert program.linear.size == D + M + 2 * D  # w, r, s and t


@pytest.mark.parametrize(
    ("name", "inequalities", "variables"),
    [
        ("l1", 2 * D, 2 * D + M),
        ("elastic net", 2 * D, 2 * D + M),
        ("ridge", 0, D + M),
        ("least squares", 0, D + M),
        ("bent", 4 * D, 3 * D + M),
    ],
)
def test_the_other_penalties_need_no_second_order_cone(name, inequalities, variables):
    program = conic_program(rows(PENALTIES[name]), 0)
    sizes = {cone.kind: cone.size for cone in program.cones}
    assert sizes.get("zero") == M
    assert sizes.get("nonnegative", 0) == inequalities
    assert "rotated" not in sizes
    assert program.linear.size == variables


def test_the_gram_form_does_not_grow_with_the_samples():
    small = conic_program(rows(m=30), 0, form="gram")
    large = conic_program(rows(m=300), 0, form="gram")
    assert small.linear.size == large.linear.size == 2 * D
    assert small.equations == 0
    assert small.constant > 0.0


def test_a_radius_of_inf_and_a_weight_of_zero_are_no_ball():
    free = conic_program(rows(), 0)
    problem = rows(constraint=simjax.L1Ball(np.array([0.5, 0.6, 0.7]), SEEN, np.linspace(1.0, 2.0, SEEN)))
    open_row = np.array([[np.inf], [0.6], [0.7]])
    problem = simjax.RowProblem(**{**vars(problem), "bound": type(problem.bound)(problem.bound.omega, open_row, SEEN)})
    unbounded, bounded = conic_program(problem, 0), conic_program(problem, 1)
    assert unbounded.offset.size == free.offset.size
    assert bounded.offset.size == free.offset.size + 1
    ball_row = bounded.matrix.toarray()[M + 2 * D]
    assert np.count_nonzero(ball_row) == SEEN


def test_weights_outside_the_support_and_of_zero_columns_have_no_variable():
    support = np.ones((ROWS, D), dtype=bool)
    support[1, [2, 5]] = False
    problem = rows(support=support)
    problem.design[:, 7] = 0.0
    program = conic_program(problem, 1)
    assert set(range(D)) - set(program.coordinates) == {2, 5, 7}
    weights = program.weights(np.ones(program.linear.size))
    assert np.all(weights[[2, 5, 7]] == 0.0)
    assert np.count_nonzero(weights) == D - 3


def test_parameters_of_every_shape_give_the_same_program():
    programs = [
        conic_program(rows(simjax.Perspective(np.full(shape, 0.04), 0.02), constraint=ball), 2)
        for shape in ((), (D,), (ROWS, D))
        for ball in (simjax.L1Ball(0.5, SEEN), simjax.L1Ball(np.full(ROWS, 0.5), SEEN, np.ones((ROWS, SEEN))))
    ]
    for program in programs[1:]:
        assert (program.matrix != programs[0].matrix).nnz == 0
        assert np.array_equal(program.linear, programs[0].linear)
        assert np.array_equal(program.offset, programs[0].offset)


def test_parameters_of_a_row_are_those_of_that_row():
    alpha = np.arange(1.0, 1.0 + ROWS * D).reshape(ROWS, D)
    problem = rows(simjax.L1(alpha), constraint=simjax.L1Ball(np.array([1.0, 2.0, 3.0]), SEEN))
    for row in range(ROWS):
        data = conic_row(problem, row)
        assert np.array_equal(data.slope, alpha[row])
        assert data.radius == row + 1.0
        assert np.array_equal(data.target, problem.targets[:, row])
    one_column = conic_row(rows(simjax.L1(alpha[:, :1])), 2)
    assert np.array_equal(one_column.slope, np.full(D, alpha[2, 0]))


def test_the_units_make_the_program_independent_of_those_of_the_row():
    # t, w and κ in other units, and the objective in others again: the same numbers, up to rounding.
    plain = rows(simjax.L1(0.05), constraint=simjax.L1Ball(0.5, SEEN))
    scaled = row_problem(
        plain.design,
        plain.targets * 2.0**30,
        loss_weight=0.4 * 2.0**10,
        penalty=simjax.L1(0.05 * 2.0**40),
        constraint=simjax.L1Ball(0.5 * 2.0**30, SEEN),
    )
    one, other = conic_program(plain, 0), conic_program(scaled, 0)
    assert other.objective_scale == one.objective_scale * 2.0**70
    np.testing.assert_allclose(other.matrix.toarray(), one.matrix.toarray(), rtol=1e-14)
    np.testing.assert_allclose(other.linear, one.linear, rtol=1e-14)
    np.testing.assert_allclose(other.quadratic.toarray(), one.quadratic.toarray(), rtol=1e-14)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PENALTIES)
def test_linear_objective_has_the_same_optimum(name, form):
    program = conic_program(rows(PENALTIES[name], constraint=simjax.L1Ball(0.5, SEEN)), 0, form=form)
    linear = linear_objective(program)
    assert linear.quadratic.nnz == 0
    size = program.linear.size
    expected, found = clarabel.solve_conic(program, 1e-9), clarabel.solve_conic(linear, 1e-9)
    x = expected.x
    value = 0.5 * x @ (program.quadratic @ x) + program.linear @ x
    assert linear.linear @ found.x == pytest.approx(value, rel=1e-6, abs=1e-8)
    # Its points and multipliers begin with those of the program.
    x = found.x[:size]
    assert 0.5 * x @ (program.quadratic @ x) + program.linear @ x == pytest.approx(value, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_the_quadratic_of_the_linear_objective_is_a_square(form):
    program = conic_program(rows(PENALTIES["elastic net"]), 0, form=form)
    linear = linear_objective(program)
    size = program.linear.size
    root = -linear.matrix[program.offset.size + 2 :, :size].toarray()
    np.testing.assert_allclose(root.T @ root, program.quadratic.toarray(), atol=1e-12 * abs(root).max() ** 2)
    assert linear.cones[-1] == Cone("rotated", root.shape[0] + 2)


def test_a_program_that_is_linear_stays_as_it_is():
    program = conic_program(rows(PENALTIES["l1"], matching="exact"), 0)
    assert linear_objective(program) is program


class OwnPenalty(simjax.Penalty):
    def value(self, weights):
        return weights**2

    def prox(self, points, step):
        return points / (1.0 + 2.0 * step)

    def conjugate(self, slopes):
        return slopes**2 / 4.0


def test_errors_name_the_argument():
    with pytest.raises(TypeError, match="conic form; got OwnPenalty"):
        conic_program(rows(OwnPenalty()), 0)
    with pytest.raises(ValueError, match="form must be one of 'residual', 'gram'; got 'dual'"):
        conic_program(rows(), 0, form="dual")
    with pytest.raises(ValueError, match="form must be 'residual' under exact matching"):
        conic_program(rows(matching="exact"), 0, form="gram")
    for row in (-1, ROWS):
        with pytest.raises(IndexError, match=rf"row must be in 0..2, got {row}"):
            conic_program(rows(), row)


def in_a_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module",
    ["penalties", "constraints", "joint_prox", "conjugate", "problem", "certificate", "infeasible", "status", "verify"]
    + [f"oracles.{name}" for name in ("pool", "program", "clarabel", "mosek")],
)
def test_importing_the_data_of_rows_does_not_load_jax(module):
    in_a_fresh_process(f"import sys, simjax.rows.{module}; assert 'jax' not in sys.modules")


def test_a_row_is_stated_solved_and_certified_without_jax():
    in_a_fresh_process(
        "import sys\n"
        "import numpy as np\n"
        "from simjax.rows import certificate, constraints, oracles, penalties, problem\n"
        "rng = np.random.default_rng(0)\n"
        "ball = constraints.L1Ball(0.5, size=4)\n"
        "rows = problem.row_problem(\n"
        "    rng.normal(size=(8, 6)), rng.normal(size=(8, 2)), penalty=penalties.Perspective(0.1), constraint=ball\n"
        ")\n"
        "answer = oracles.solve(rows)\n"
        "assert np.all(certificate.certify(rows, answer.weights, [answer.duals]).relative_gap < 1e-6)\n"
        "assert 'jax' not in sys.modules\n"
    )
