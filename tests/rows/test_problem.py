"""Bad input: each error names the argument, before anything is solved. Good input: any array-like of these values."""

import dataclasses

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers import ROWS, WIDE, WIDTH, Huber, generator, sparse_rows
from numpy.testing import assert_allclose, assert_array_equal

import simjax
import simjax.rows.workspace
from simjax.rows.options import SolveOptions
from simjax.rows.problem import row_problem, support_mask

DESIGN, TARGETS = sparse_rows(WIDE)
GOOD = {"design": DESIGN, "targets": TARGETS, "loss_weight": 0.5, "penalty": simjax.L1(0.1)}


def with_entry(array, value):
    array = array.copy()
    array[1, 2] = value
    return array


BAD = {
    "design 1-D": ({"design": DESIGN[0]}, ValueError, "design must be a 2-D"),
    "design 3-D": ({"design": DESIGN[None]}, ValueError, "design must be a 2-D"),
    "design scalar": ({"design": 3.0}, ValueError, "design must be a 2-D"),
    "design without samples": ({"design": DESIGN[:0]}, ValueError, "design must not be empty"),
    "design without columns": ({"design": DESIGN[:, :0]}, ValueError, "design must not be empty"),
    "design NaN": ({"design": with_entry(DESIGN, np.nan)}, ValueError, "design must be finite, got 1 "),
    "design inf": ({"design": with_entry(DESIGN, -np.inf)}, ValueError, "design must be finite, got 1 "),
    "design objects": ({"design": DESIGN.astype(str).astype(object)}, TypeError, "design must be an array of real"),
    "design strings": ({"design": DESIGN.astype(str)}, TypeError, "design must be an array of real numbers"),
    "design complex": ({"design": DESIGN + 0j}, TypeError, "design must be an array of real numbers"),
    "design dates": ({"design": np.zeros((3, 3), "M8[s]")}, TypeError, "design must be an array of real"),
    "design None": ({"design": None}, TypeError, "design must be an array of real numbers"),
    "design ragged": ({"design": [[1.0, 2.0], [3.0]]}, (TypeError, ValueError), "design"),
    "targets 1-D": ({"targets": TARGETS[:, 0]}, ValueError, "targets must be a 2-D"),
    "targets transposed": ({"targets": TARGETS.T}, ValueError, r"targets must have as many rows .*\(12 samples\)"),
    "targets without rows": ({"targets": TARGETS[:, :0]}, ValueError, "targets must not be empty"),
    "targets NaN": ({"targets": with_entry(TARGETS, np.nan)}, ValueError, "targets must be finite, got 1 "),
    "targets inf": ({"targets": with_entry(TARGETS, np.inf)}, ValueError, "targets must be finite, got 1 "),
    "targets objects": ({"targets": TARGETS.astype(str).astype(object)}, TypeError, "targets must be an array of real"),
    "loss_weight zero": ({"loss_weight": 0.0}, ValueError, "loss_weight must be a positive"),
    "loss_weight negative": ({"loss_weight": -1.0}, ValueError, "loss_weight must be a positive"),
    "loss_weight NaN": ({"loss_weight": np.nan}, ValueError, "loss_weight must be finite"),
    "loss_weight inf": ({"loss_weight": np.inf}, ValueError, "loss_weight must be finite"),
    "loss_weight one zero": ({"loss_weight": np.eye(1, ROWS)[0]}, ValueError, "loss_weight must be a positive"),
    "loss_weight shape": ({"loss_weight": np.ones(ROWS + 1)}, ValueError, "loss_weight must be a positive"),
    "loss_weight 2-D": ({"loss_weight": np.ones((ROWS, 1))}, ValueError, "loss_weight must be a positive"),
    "loss_weight string": ({"loss_weight": "0.1"}, TypeError, "loss_weight must be an array of real"),
    "loss_weight None": ({"loss_weight": None}, TypeError, "loss_weight must be an array of real"),
    "penalty name": ({"penalty": "l1"}, TypeError, r"penalty object such as simjax.L1\(0.1\), got 'l1'"),
    "penalty number": ({"penalty": 0.3}, TypeError, r"penalty object such as simjax.L1\(0.3\), got 0.3"),
    "penalty named class": ({"penalty": simjax.L1}, TypeError, r"got the class L1: call it, as in L1\(0.1\)"),
    "penalty None": ({"penalty": None}, TypeError, "penalty must supply value"),
    "penalty class": ({"penalty": Huber}, (TypeError, ValueError), "penalty"),
    "penalty shape": ({"penalty": simjax.L1(np.ones(WIDTH - 1))}, ValueError, "penalty parameters must be"),
    "penalty rows": ({"penalty": simjax.L1(np.ones((ROWS + 1, WIDTH)))}, ValueError, "penalty parameters must be"),
    "constraint number": ({"constraint": 0.99}, TypeError, r"an L1Ball such as simjax.L1Ball\(0.99\), a Metzler"),
    "constraint class": (
        {"constraint": simjax.L1Ball},
        TypeError,
        "constraint must be an L1Ball, a MetzlerRow, a Box, Free or None",
    ),
    "ball too wide": ({"constraint": simjax.L1Ball(0.9, size=WIDTH + 1)}, ValueError, "size of the ball"),
    "ball radius shape": ({"constraint": simjax.L1Ball(np.ones(ROWS + 1))}, ValueError, "radius"),
    "ball weights shape": ({"constraint": simjax.L1Ball(0.9, size=3, weights=np.ones(4))}, ValueError, "weights"),
    "ball weights rows": (
        {"constraint": simjax.L1Ball(0.9, size=3, weights=np.ones((ROWS + 1, 3)))},
        ValueError,
        "weights",
    ),
    "support integers": ({"support": np.ones(WIDTH, dtype=int)}, TypeError, "support must be a boolean"),
    "support name": ({"support": "hollow"}, TypeError, "support must be a boolean"),
    "support shape": ({"support": np.ones(WIDTH + 1, dtype=bool)}, ValueError, "support must have shape"),
    "support rows": ({"support": np.ones((ROWS + 1, WIDTH), dtype=bool)}, ValueError, "support must have shape"),
    "matching": ({"matching": "precise"}, ValueError, "matching must be one of 'penalty', 'exact'; got 'precise'"),
    "matching None": ({"matching": None}, ValueError, "matching must be one of"),
    "solver": ({"solver": "simplex"}, ValueError, "solver must be one of 'auto', 'admm', 'proximal_gradient'.*simplex"),
    "solver None": ({"solver": None}, ValueError, "solver must be one of"),
    "solver list": ({"solver": ["auto"]}, ValueError, "solver must be one of"),
    "solver and matching": (
        {"solver": "proximal_gradient", "matching": "exact"},
        ValueError,
        "proximal_gradient.*cannot serve matching='exact'.*'auto' or 'admm'",
    ),
    "tol zero": ({"tol": 0.0}, ValueError, "tol must be a positive number"),
    "tol negative": ({"tol": -1e-6}, ValueError, "tol must be a positive number"),
    "tol NaN": ({"tol": np.nan}, ValueError, "tol must be finite"),
    "tol inf": ({"tol": np.inf}, ValueError, "tol must be finite"),
    "tol array": ({"tol": [1e-6, 1e-6]}, ValueError, "tol must be a positive number"),
    "tol string": ({"tol": "1e-6"}, TypeError, "tol must be"),
    "max_iters zero": ({"max_iters": 0}, ValueError, "max_iters must be at least 1"),
    "max_iters negative": ({"max_iters": -5}, ValueError, "max_iters must be at least 1"),
    "max_iters float": ({"max_iters": 100.0}, TypeError, "max_iters must be an integer"),
    "max_iters bool": ({"max_iters": True}, TypeError, "max_iters must be an integer"),
    "progress not callable": ({"progress": "bar"}, TypeError, "progress"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_solve(case, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a solve was begun")

    monkeypatch.setattr(simjax.rows.workspace.Workspace, "__init__", never)
    changes, error, match = BAD[case]
    with pytest.raises(error, match=match):
        simjax.solve_rows(**(GOOD | changes))


def test_the_good_input_those_cases_start_from_is_good():
    assert simjax.solve_rows(**GOOD).converged


def test_options_are_checked_by_themselves():
    SolveOptions(solver="admm").check("exact")
    SolveOptions(solver="proximal_gradient").check("penalty")
    with pytest.raises(ValueError, match="solver"):
        SolveOptions(solver="newton")


def test_a_design_is_not_changed():
    design, targets = DESIGN.copy(), TARGETS.copy()
    simjax.solve_rows(**(GOOD | {"design": design, "targets": targets}))
    assert_array_equal(design, DESIGN)
    assert_array_equal(targets, TARGETS)


@pytest.mark.parametrize(
    "convert",
    [
        np.ndarray.tolist,
        np.asfortranarray,
        lambda x: x[:, ::-1][:, ::-1],
        lambda x: x.astype(np.float32),
        lambda x: jnp.asarray(x, jnp.float32),
        lambda x: x.astype(ml_dtypes.bfloat16),
        lambda x: np.round(4 * x).astype(np.int16),
        lambda x: x > 0.0,
    ],
)
def test_any_array_like_is_the_problem_of_its_values(convert):
    design, targets = convert(DESIGN), convert(TARGETS)
    expected = np.asarray(design).astype(np.float64), np.asarray(targets).astype(np.float64)
    problem = row_problem(design, targets, penalty=simjax.L1(0.1))
    assert problem.design.dtype == problem.targets.dtype == np.float64
    assert_array_equal(problem.design, expected[0])
    assert_array_equal(problem.targets, expected[1])
    found = simjax.solve_rows(**(GOOD | {"design": design, "targets": targets}))
    reference = simjax.solve_rows(**(GOOD | {"design": expected[0], "targets": expected[1]}))
    assert_array_equal(found.weights, reference.weights)


def test_parameters_in_all_their_shapes():
    base = simjax.solve_rows(**GOOD).weights
    for alpha in (np.full(WIDTH, 0.1), np.full((ROWS, WIDTH), 0.1), np.full((1, WIDTH), 0.1), [[0.1]] * ROWS):
        assert_allclose(simjax.solve_rows(**(GOOD | {"penalty": simjax.L1(alpha)})).weights, base, atol=1e-12)
    weights = simjax.solve_rows(**(GOOD | {"loss_weight": np.full(ROWS, 0.5)})).weights
    assert_allclose(weights, base, atol=1e-12)
    for constraint in (None, simjax.Free(), simjax.L1Ball(np.inf)):
        assert_allclose(simjax.solve_rows(**(GOOD | {"constraint": constraint})).weights, base, atol=1e-12)


def test_support_mask():
    assert support_mask(None, 2, 3) is None
    assert support_mask(np.ones(3, dtype=bool), 2, 3) is None
    assert_array_equal(support_mask([True, False, True], 2, 3), [[True, False, True]] * 2)
    per_row = np.array([[True, False, True], [False, True, True]])
    assert_array_equal(support_mask(per_row, 2, 3), per_row)


def test_take_is_the_problem_of_some_rows():
    rng = generator(1)
    problem = row_problem(
        DESIGN,
        TARGETS,
        loss_weight=np.arange(1.0, ROWS + 1),
        penalty=simjax.ElasticNet(rng.random((ROWS, WIDTH)), 0.1),
        constraint=simjax.L1Ball(np.arange(1.0, ROWS + 1), size=5, weights=1.0 + rng.random((ROWS, 5))),
        support=rng.random((ROWS, WIDTH)) < 0.5,
    )
    index = np.array([4, 1])
    part = problem.take(index)
    assert part.count == 2
    assert part.width == WIDTH
    assert_array_equal(part.targets, TARGETS[:, index])
    assert_array_equal(part.loss_weight, [5.0, 2.0])
    assert_array_equal(part.penalty.slope, problem.penalty.slope[index])
    assert_array_equal(part.penalty.curvature, np.full((2, WIDTH), 0.1))
    assert_array_equal(part.bound.radius, [[5.0], [2.0]])
    assert_array_equal(part.bound.omega, problem.bound.omega[index])
    assert_array_equal(part.support, problem.support[index])
    assert part.matching == "penalty"


def test_problem_is_frozen():
    problem = row_problem(DESIGN, TARGETS, penalty=simjax.L1(0.1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.matching = "exact"
