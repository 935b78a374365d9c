"""Infeasible rows and their rays; verification by an oracle, and what it says of a wrong answer."""

import dataclasses

import numpy as np
import pytest

import simjax
from simjax.rows.certificate import infeasibility_margin
from simjax.rows.verify import sample_rows, verify_rows

pytest.importorskip("clarabel")


def exact_rows(radius, *, disturb=()):
    """Six rows with more equations than unknowns, whose only solution is known."""
    rng = np.random.default_rng(0)
    design = rng.normal(size=(60, 50))
    truth = rng.normal(size=(6, 50)) * (rng.random((6, 50)) < 0.2) * 0.1
    targets = design @ truth.T
    for row in disturb:
        targets[0, row] += 1e-3
    constraint = simjax.L1Ball(radius, size=20)
    return design, targets, constraint, np.abs(truth[:, :20]).sum(axis=1)


@pytest.mark.slow
def test_a_ball_too_small_is_proved_infeasible_and_its_neighbours_are_solved():
    design, targets, constraint, norms = exact_rows(0.2)
    with pytest.warns(simjax.ConvergenceWarning, match="infeasible, each proved"):
        solution = simjax.solve_rows(
            design, targets, penalty=simjax.L1(0.1), constraint=constraint, matching="exact", max_iters=2000
        )
    np.testing.assert_array_equal(solution.status == "INFEASIBLE", norms > 0.2)
    np.testing.assert_array_equal(solution.status == "SOLVED", norms <= 0.2)
    margin = infeasibility_margin(solution.problem, solution.certificate.dual)
    assert np.all(margin[norms > 0.2] > 1e-6)
    # By hand: yᵀt exceeds what any w in the ball can give, because s is zero outside it.
    row = int(np.argmax(norms))
    y = solution.certificate.dual[row]
    s = design.T @ y
    assert np.abs(s[20:]).max() <= 1e-12 * np.linalg.norm(y) * np.linalg.norm(design)
    assert y @ targets[:, row] > 0.2 * np.abs(s[:20]).max()
    assert np.all(solution.certificate.objective[norms > 0.2] == np.inf)


@pytest.mark.slow
def test_inconsistent_equations_are_proved_infeasible():
    design, targets, constraint, _ = exact_rows(5.0, disturb=(2, 4))
    with pytest.warns(simjax.ConvergenceWarning, match="2 of 6 rows are infeasible"):
        solution = simjax.solve_rows(
            design, targets, penalty=simjax.Perspective(0.1), constraint=constraint, matching="exact"
        )
    np.testing.assert_array_equal(np.flatnonzero(solution.status == "INFEASIBLE"), [2, 4])
    assert np.all(infeasibility_margin(solution.problem, solution.certificate.dual)[[2, 4]] > 1e-9)


def test_a_ray_of_a_feasible_row_is_refused():
    design, targets, constraint, _ = exact_rows(5.0)
    solution = simjax.solve_rows(design, targets, penalty=simjax.L1(0.1), constraint=constraint, matching="exact")
    rays = np.random.default_rng(1).normal(size=(6, 60))
    assert np.all(infeasibility_margin(solution.problem, rays) == -np.inf)
    assert np.all(infeasibility_margin(solution.problem, targets.T) <= 0.0)
    with pytest.raises(ValueError, match="rays must be"):
        infeasibility_margin(solution.problem, rays[:, :3])


@pytest.fixture(scope="module")
def solution():
    rng = np.random.default_rng(2)
    design, targets = rng.normal(size=(30, 40)), rng.normal(size=(30, 12))
    targets[:, 5] = 0.0
    return simjax.solve_rows(
        design, targets, loss_weight=0.3, penalty=simjax.Perspective(0.2, 0.01), constraint=simjax.L1Ball(0.5, size=15)
    )


def test_verification_agrees_and_says_so(solution):
    verification = solution.verify(rows=8)
    assert verification.ok
    assert verification.rows.size == 8
    assert np.all(np.abs(verification.difference) <= 1e-6)
    table = verification.table()
    assert "clarabel" in table
    assert len(table.splitlines()) == 9
    assert "DISAGREES" not in table
    assert solution.verify(rows=100).rows.size == 12
    assert solution.verify(rows=3, workers=1).rows.tolist() == sample_rows(12, 3, 0).tolist()


def test_verification_catches_a_wrong_answer(solution):
    wrong = solution.weights.copy()
    wrong[3] *= 0.9
    certificate = simjax.certify(solution.problem, wrong)
    flattered = dataclasses.replace(certificate, relative_gap=np.zeros(12))  # a certificate that lies
    verification = verify_rows(solution.problem, wrong, flattered, solution.status, np.arange(12))
    assert not verification.ok
    assert np.flatnonzero(~verification.agrees).tolist() == [3]
    assert "DISAGREES" in verification.table()


@pytest.mark.slow
def test_infeasible_rows_agree_with_the_oracle():
    design, targets, constraint, norms = exact_rows(0.2)
    with pytest.warns(simjax.ConvergenceWarning):
        solution = simjax.solve_rows(design, targets, penalty=simjax.L1(0.1), constraint=constraint, matching="exact")
    verification = solution.verify(rows=6)
    assert verification.ok
    assert np.count_nonzero(np.isinf(verification.objective)) == np.count_nonzero(norms > 0.2)


def test_an_oracle_as_solver_is_named_and_certified(solution):
    problem = solution.problem
    by_oracle = simjax.solve_rows(
        problem.design,
        problem.targets,
        loss_weight=0.3,
        penalty=simjax.Perspective(0.2, 0.01),
        constraint=simjax.L1Ball(0.5, size=15),
        solver="clarabel",
    )
    assert by_oracle.converged
    assert "clarabel: interior-point" in by_oracle.summary()
    np.testing.assert_allclose(by_oracle.certificate.objective, solution.certificate.objective, rtol=2e-6)


def test_workers_are_for_oracles_only():
    with pytest.raises(ValueError, match="workers must be 1"):
        simjax.solve_rows(np.eye(3), np.eye(3), penalty=simjax.L1(0.1), workers=2)


def test_no_licence_is_an_error_that_names_clarabel():
    mosek = pytest.importorskip("mosek")
    try:
        with mosek.Env() as environment:
            environment.checkoutlicense(mosek.feature.pton)
    except mosek.Error:
        with pytest.raises(simjax.rows.oracles.OracleUnavailable, match="clarabel"):
            simjax.solve_rows(np.eye(3), np.eye(3), penalty=simjax.L1(0.1), solver="mosek")
    else:
        pytest.skip("MOSEK has a licence here: the comparison tests run for real")


@pytest.mark.slow
def test_a_saved_model_is_verified_from_its_states(tmp_path):
    from simjax.nn import MLP

    network = MLP((12, 8, 6, 3))
    states = simjax.collect_states(network, np.random.default_rng(0).random((60, 12)))
    result = simjax.fit(states, "l1", alpha=1e-2, refit=["support", "outputs"])
    assert result.verify(rows=17).ok
    result.model.save(tmp_path / "m.safetensors")
    model = simjax.ImplicitModel.load(tmp_path / "m.safetensors")
    verification = simjax.verify_model(model, states, rows=17)
    assert verification.ok
    assert verification.relative_gap.max() <= 1e-6
    D = np.array(model.D)
    D[0] *= 0.9
    tampered = dataclasses.replace(model, D=D)
    assert not simjax.verify_model(tampered, states, rows=17).ok
    bare = simjax.ImplicitModel(model.A, model.B, model.C, model.D)
    with pytest.raises(ValueError, match="no fit settings"):
        simjax.verify_model(bare, states)
    weighted = simjax.fit(states, "l1", alpha=np.full(states.n + states.p, 1e-2))
    with pytest.raises(ValueError, match="alpha"):
        simjax.verify_model(weighted.model, states)
