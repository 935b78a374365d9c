"""Rows over several devices, in blocks, and from a start: the same answers as all at once on one device."""

import jax
import numpy as np
import pytest
import scipy.sparse
from helpers import BOUND, TALL, WIDE, WIDTH, generator, on_eight_devices, sparse_rows

import simjax
from simjax.rows.attempts import Start
from simjax.rows.memory import bytes_per_row, row_blocks
from simjax.rows.options import SolveOptions
from simjax.rows.solve import solve_problem
from simjax.rows.workspace import Workspace

# Runs in a process of its own: the number of devices is fixed when JAX starts.
EIGHT_DEVICES = """
import numpy as np, jax, simjax
from helpers import BOUND, WIDTH, generator, sparse_rows
from simjax.rows.problem import row_problem
from simjax.rows.workspace import Workspace
from simjax.rows.engines.jax_engine import JaxEngine
from simjax.rows.solvers import admm, first_order
from simjax.rows.solvers.canonical import canonical_rows

assert len(jax.devices()) == 8
mesh = jax.make_mesh((2, 4), ("hosts", "chips"))
rng = generator(3)
design, _ = sparse_rows(25)
targets = design @ (rng.normal(size=(37, WIDTH)) * (rng.random((37, WIDTH)) < 0.3)).T + 0.1 * rng.normal(size=(25, 37))
problem = {"constraint": simjax.L1Ball(np.where(rng.random(37) < 0.5, 0.8, np.inf), size=BOUND),
           "support": rng.random((37, WIDTH)) < 0.9}
for penalty, rows in ((simjax.Perspective(np.full(WIDTH, 0.3), 0.01), 37), (simjax.L1(0.3), 3)):  # not multiples of 8
    part = {"constraint": simjax.L1Ball(problem["constraint"].radius[:rows], size=BOUND),
            "support": problem["support"][:rows]}
    one = simjax.solve_rows(design, targets[:, :rows], penalty=penalty, tol=1e-9, **part)
    many = simjax.solve_rows(design, targets[:, :rows], penalty=penalty, tol=1e-9, mesh=mesh, **part)
    assert one.converged and many.converged
    np.testing.assert_allclose(many.weights, one.weights, atol=1e-10)
    np.testing.assert_allclose(many.certificate.objective, one.certificate.objective, rtol=1e-10)

# The compiled programs exchange nothing between devices.
rows = row_problem(design, targets, penalty=simjax.L1(0.3), **problem)
workspace, engine = Workspace(rows.design), JaxEngine(mesh)
factorisation = workspace.scaled.factorisation(precise=False)
coordinates = workspace.scaled.coordinates(rows.targets, precise=False)
with engine.session():
    shared = (engine.share(factorisation),)
    host_rows = canonical_rows(rows, factorisation, coordinates, workspace.column_scale)
    placed = engine.spread(host_rows)
    state = engine.spread(admm.start(factorisation, host_rows))
    for function, common, by_row, updated, static in (
        (first_order._advance, (*shared, np.int32(63)), (placed,), state, {"method": admm}),
        (first_order.judged_points, shared, (placed, admm.point(state)), None, {}),
    ):
        program, operands = engine.prepared(function, common, by_row, updated, np.arange(37), 0, static)
        text = program.lower(*operands).compile().as_text()
        assert "while" in text
        for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
            assert collective not in text, collective
print("eight devices agree")
"""


def problem_of(m, rows=20):
    rng = generator(11, m)
    design, _ = sparse_rows(m)
    truth = rng.normal(size=(rows, WIDTH)) * (rng.random((rows, WIDTH)) < 0.3)
    targets = design @ truth.T + 0.1 * rng.normal(size=(m, rows))
    return design, targets, {"penalty": simjax.L1(0.3), "constraint": simjax.L1Ball(0.9, size=BOUND)}


def test_eight_devices_give_the_answer_of_one_and_exchange_nothing():
    assert "eight devices agree" in on_eight_devices(EIGHT_DEVICES)


def test_a_mesh_of_one_device_and_what_a_mesh_cannot_do():
    design, targets, problem = problem_of(WIDE)
    mesh = jax.make_mesh((1,), ("rows",))
    one, other = (simjax.solve_rows(design, targets, mesh=grid, **problem) for grid in (None, mesh))
    np.testing.assert_allclose(other.weights, one.weights, atol=1e-12)
    with pytest.raises(TypeError, match="mesh must be a jax"):
        simjax.solve_rows(design, targets, mesh=8, **problem)
    with pytest.raises(ValueError, match="mesh must be None for solver='clarabel'"):
        simjax.solve_rows(design, targets, mesh=mesh, solver="clarabel", **problem)


@pytest.mark.parametrize("m", [WIDE, TALL])
def test_blocks_of_rows_give_the_same_weights_as_csr(m):
    design, targets, problem = problem_of(m)
    whole = simjax.solve_rows(design, targets, **problem)
    told = []
    blocks = simjax.solve_rows(
        design, targets, max_memory=9 * bytes_per_row(design.shape), progress=told.append, **problem
    )
    assert isinstance(whole.weights, np.ndarray)
    assert isinstance(blocks.weights, scipy.sparse.csr_array)
    assert blocks.weights.nnz == np.count_nonzero(whole.weights)
    np.testing.assert_allclose(blocks.weights.toarray(), whole.weights, atol=1e-10)
    assert blocks.converged
    np.testing.assert_allclose(blocks.certificate.objective, whole.certificate.objective, rtol=1e-10)
    assert {part.rows for part in told} == {20}
    assert [part.solved for part in told] == sorted(part.solved for part in told)
    assert blocks.verify(rows=4).ok


@pytest.mark.slow
def test_a_fit_in_blocks_is_the_fit(tmp_path):
    rng = generator(12)
    states = simjax.States.from_layers(
        [rng.normal(size=(9, 6)) / 3, rng.normal(size=(8, 9)) / 3, rng.normal(size=(3, 8))], None, "relu",
        rng.normal(size=(40, 6)),
    )  # fmt: skip
    few = 9 * bytes_per_row((40, 23))
    for options in ({}, {"support": "feedforward", "fit_intercept": True, "refit": ("support", "outputs")}):
        whole = simjax.fit(states, "l1", alpha=1e-2, **options)
        blocks = simjax.fit(states, "l1", alpha=1e-2, max_memory=few, **options)
        assert scipy.sparse.issparse(blocks.weights)
        assert scipy.sparse.issparse(blocks.model.A)
        np.testing.assert_allclose(blocks.certificate.objective, whole.certificate.objective, rtol=2e-6, atol=1e-12)
        assert blocks.converged
        np.testing.assert_allclose(
            blocks.model(states.inputs), whole.model(states.inputs), atol=1e-3 * np.abs(states.outputs).max()
        )
        assert blocks.verify(rows=3).ok
    blocks.model.save(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(
        simjax.ImplicitModel.load(tmp_path / "model.safetensors").to_dense().A, blocks.model.to_dense().A
    )


def test_blocks_are_equal_and_hold_every_row_once():
    each = bytes_per_row((50, 30))
    blocks = row_blocks(100, (50, 30), 33.5 * each)
    np.testing.assert_array_equal(np.concatenate(blocks), np.arange(100))
    assert [block.size for block in blocks] == [25, 25, 25, 25]
    assert len(row_blocks(100, (50, 30), None)) == 1
    assert len(row_blocks(100, (50, 30), 12.5 * each, devices=8)) == 1
    with pytest.raises(ValueError, match="max_memory must allow for eight rows"):
        row_blocks(100, (50, 30), 7.0 * each)
    design, targets, problem = problem_of(WIDE)
    with pytest.raises(ValueError, match="max_memory"):
        simjax.solve_rows(design, targets, max_memory=-1.0, **problem)


def test_a_solve_may_start_anywhere():
    design, targets, problem = problem_of(WIDE)
    cold = simjax.solve_rows(design, targets, **problem)
    workspace = Workspace(cold.problem.design)
    again = solve_problem(cold.problem, workspace=workspace, start=Start(cold.weights, cold.certificate.dual))
    assert again.passes.max() == 0  # its own answer needs no pass
    np.testing.assert_allclose(again.weights, cold.weights, atol=1e-8)
    rng = generator(13)
    wild = Start(1e3 * rng.normal(size=cold.weights.shape), 1e3 * rng.normal(size=cold.certificate.dual.shape))
    for solver in ("auto", "admm", "proximal_gradient"):
        far = solve_problem(cold.problem, SolveOptions(solver=solver), start=wild)
        assert far.converged
        np.testing.assert_allclose(far.certificate.objective, cold.certificate.objective, rtol=2e-6)
    with pytest.raises(ValueError, match="workspace was made for another design"):
        solve_problem(cold.problem, workspace=Workspace(2.0 * cold.problem.design))
