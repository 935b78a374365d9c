"""Every kind of row that simjax accepts, against an interior-point oracle: objective, feasibility and dual value."""

import numpy as np
import pytest

import simjax
from simjax.rows import oracles
from simjax.rows.constraints import feedforward_support
from simjax.rows.options import SolveOptions
from simjax.rows.penalties import PiecewisePenalty
from simjax.rows.problem import row_problem
from simjax.rows.solve import solve_problem

pytest.importorskip("clarabel")

D, N, ROWS = 24, 10, 6  # coordinates, those in the ball, rows

PENALTIES = {
    "l1": simjax.L1(0.05),
    "perspective": simjax.Perspective(0.05),
    "perspective, mu << alpha": simjax.Perspective(0.05, 5e-4),
    "elastic net": simjax.ElasticNet(0.05, 0.02),
    "ridge": simjax.Ridge(0.05),
    "least squares": simjax.NoPenalty(),
    "groups": simjax.GroupL1(0.05, np.arange(D) // 4),
}


def constraints(rng):
    """Constraint and support of each kind, and weights for the penalty."""
    hollow = np.ones((ROWS, D), dtype=bool)
    hollow[np.arange(ROWS), np.arange(ROWS)] = False
    layered = feedforward_support((3, 4, 3), D - N)[:ROWS]
    weights = rng.uniform(0.5, 2.0, N)
    return {
        "free": (simjax.Free(), None, 1.0),
        "ball active": (simjax.L1Ball(0.2, size=N), None, 1.0),
        "ball inactive": (simjax.L1Ball(50.0, size=N), None, 1.0),
        "weighted ball": (simjax.L1Ball(rng.uniform(0.2, 0.4, ROWS), size=N, weights=weights), None, 1.0),
        "hollow": (simjax.L1Ball(0.5, size=N), hollow, 1.0),
        "feed-forward": (simjax.Free(), layered, 1.0),
        "weighted penalty": (simjax.L1Ball(0.5, size=N), None, rng.uniform(0.2, 3.0, (ROWS, D))),
        "nonnegative": (simjax.Box(0.0, np.inf), None, 1.0),
        "box": (simjax.Box(-rng.uniform(0.1, 0.5, (ROWS, D)), rng.uniform(0.1, 0.5, D)), None, 1.0),
        "box without zero": (simjax.Box(0.05, 1.0), None, 1.0),
        "box in a ball": (simjax.Box(-0.04, np.inf, ball=simjax.L1Ball(0.2, size=N)), hollow, 1.0),
    }


def problem(kind, penalty, m, matching):
    """Six rows; under exact matching each has a solution inside its ball and support."""
    rng = np.random.default_rng(m)
    design = rng.normal(size=(m, D))
    constraint, support, weight = constraints(rng)[kind]
    truth = rng.normal(size=(ROWS, D)) * (rng.random((ROWS, D)) < 0.4)
    if support is not None:
        truth = truth * support
    if matching == "exact":
        truth[:, :N] *= 0.15 / max(np.abs(truth[:, :N]).sum(axis=1).max(), 1.0)
        if isinstance(constraint, simjax.Box):
            truth = np.clip(truth, constraint.lower, constraint.upper)
        targets = design @ truth.T
    else:
        targets = design @ truth.T + 0.3 * rng.normal(size=(m, ROWS))
    if np.ndim(weight) and isinstance(penalty, simjax.GroupL1):
        penalty = simjax.GroupL1(penalty.alpha * weight[:, : D // 4], penalty.groups)
    elif np.ndim(weight):
        slope, curvature = penalty.slope * weight, penalty.curvature * weight
        penalty = PiecewisePenalty(slope, curvature, penalty.knot * np.ones_like(weight))
    return row_problem(
        design, targets, loss_weight=0.7, penalty=penalty, constraint=constraint, support=support, matching=matching
    )


def solvers(matching):
    return ("auto", "admm") if matching == "exact" else ("auto", "admm", "proximal_gradient")


BOXES = {"nonnegative", "box", "box without zero", "box in a ball"}
SLOW_KINDS = ["free", "ball inactive", "weighted ball", "feed-forward", "weighted penalty", "box", "box without zero"]


@pytest.mark.parametrize("m", [16, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("matching", ["penalty", "exact"])
@pytest.mark.parametrize(
    "kind",
    [
        "ball active",
        "hollow",
        "nonnegative",
        "box in a ball",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW_KINDS),
    ],
)
def test_against_the_oracle(kind, matching, m):
    for name, penalty in PENALTIES.items():
        if name == "groups" and kind in BOXES:
            with pytest.raises(ValueError, match="must not be a Box with GroupL1"):
                problem(kind, penalty, m, matching)
            continue
        stated = problem(kind, penalty, m, matching)
        answer = oracles.solve(stated)
        judged = simjax.certify(stated, answer.weights, [answer.duals])
        floor = 1e-12 * 0.7 * np.sum(stated.targets**2, axis=0)
        scale = np.maximum(np.abs(judged.objective), floor)
        assert judged.relative_gap.max() <= 1e-6, f"{name}: the oracle itself is off"
        for solver in solvers(matching):
            if (solver, matching, name) == ("admm", "exact", "l1") and m < D:
                continue  # a linear program: ADMM alone may need more passes than it gets; auto's finisher does not
            solution = solve_problem(stated, SolveOptions(solver=solver))
            found = solution.certificate
            where = f"{name}, {kind}, {matching}, m={m}, {solver}"
            assert solution.converged, f"{where}: {solution.status}"
            # The oracle's answer is itself only within its gap of the optimum, and violates its constraints a little.
            allowed = 1e-6 + judged.relative_gap + 10.0 * judged.infeasibility
            assert np.all(np.abs(found.objective - judged.objective) <= allowed * scale), where
            assert found.infeasibility.max() <= (1e-8 if matching == "exact" else 1e-9), where
            assert np.all(found.dual_objective <= judged.objective + allowed * scale), where
            assert np.all(found.dual_objective >= judged.objective - found.gap - allowed * scale), where
