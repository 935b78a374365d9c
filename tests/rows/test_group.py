"""Group penalties: norms of groups of columns inside each row, against formulas, an oracle and what they contain."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse
from helpers import generator, on_eight_devices
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import simjax
from simjax import GroupL1, L1Ball, solve_rows
from simjax.rows import oracles
from simjax.rows.conjugate import support_function
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.joint_prox import joint_prox
from simjax.rows.penalties import PiecewisePenalty, total_value
from simjax.rows.solvers import augmented_lagrangian
from simjax.rows.solvers.canonical import canonical_rows, judged_inside
from simjax.rows.solvers.factor import FactoredDesign
from simjax.rows.solvers.tiles import gram_of
from simjax.rows.workspace import Workspace

M, WIDTH, ROWS, SEEN = 24, 18, 5, 11
LABELS = np.array([0, 3, 1, 0, 2, 2, 1, 4, 0, 3, 3, 2, 4, 1, 0, 4, 2, 3])
FREE = np.where(LABELS == 2, -1, np.where(LABELS > 2, LABELS - 1, LABELS))  # its third group is in none

many = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def samples(seed=0, m=M, spread=1.0):
    """Rows whose weights are zero in some of the groups, over columns of norms that differ by a factor."""
    rng = generator(seed)
    size = np.geomspace(1.0, spread, WIDTH)[rng.permutation(WIDTH)]
    design = rng.normal(size=(m, WIDTH)) * size
    truth = rng.normal(size=(ROWS, WIDTH)) / size * (rng.random((ROWS, 5)) < 0.5)[:, LABELS]
    return design, design @ truth.T + 0.1 * rng.normal(size=(m, ROWS))


def norms(weights, labels=LABELS):
    return np.stack([np.linalg.norm(weights[..., labels == g], axis=-1) for g in range(labels.max() + 1)], axis=-1)


# --- What a user says --------------------------------------------------------------------------------------------


def test_the_value_is_a_sum_of_norms_weighted_by_roots_of_sizes():
    weights = generator(1).normal(size=(3, WIDTH))
    sizes = np.bincount(LABELS)
    assert_allclose(total_value(GroupL1(0.7, LABELS), weights), 0.7 * norms(weights) @ np.sqrt(sizes), rtol=1e-14)
    omega, alpha = np.linspace(0.0, 2.0, 5), generator(2).random((3, 5))
    by_row = GroupL1(alpha, LABELS, omega)
    assert_allclose(total_value(by_row, weights), np.sum(alpha * omega * norms(weights), axis=1), rtol=1e-14)
    assert_allclose(by_row.rows(np.array([2])).value(weights[2:]), (alpha * omega * norms(weights))[2:], rtol=1e-14)
    lists = [np.flatnonzero(g == LABELS) for g in range(5)]
    assert_array_equal(GroupL1(0.7, lists).value(weights), GroupL1(0.7, LABELS).value(weights))
    in_none = GroupL1(1.0, FREE, np.ones(4))
    expected = norms(weights, FREE).sum(axis=1)
    assert_allclose(total_value(in_none, weights), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((-1.0, [0, 1]), ValueError, "alpha must be >= 0"),
        ((np.nan, [0, 1]), ValueError, "alpha must be finite"),
        (([1.0, 2.0, 3.0], [0, 1]), ValueError, r"alpha must be a scalar, \(2,\) or \(rows, 2\) for 2 groups"),
        ((1.0, [0, 2]), ValueError, r"numbered from 0 without a gap.*none of \[1\]"),
        ((1.0, [-1, -1]), ValueError, "numbered from 0 without a gap"),
        ((1.0, [0, -2]), ValueError, "-2 to 0"),
        ((1.0, [0.0, 1.0]), TypeError, "groups must be integers"),
        ((1.0, []), ValueError, "groups must not be empty"),
        ((1.0, 3), TypeError, "groups must be d integers"),
        ((1.0, "abc"), TypeError, "groups must be d integers"),
        ((1.0, [[0, 1], [1, 2]]), ValueError, r"columns \[1\] in none or in several"),
        ((1.0, [[0, 1], [3]]), ValueError, r"columns \[2\] in none or in several"),
        ((1.0, [[0, -1]]), ValueError, "column -1"),
        ((1.0, [[0], []]), ValueError, r"groups\[1\] must not be empty"),
        ((1.0, [[0], ["a"]]), TypeError, r"groups\[1\] must be integers"),
        ((1.0, [0, 1], [1.0]), ValueError, r"weights must be \(2,\)"),
        ((1.0, [0, 1], [1.0, -1.0]), ValueError, "weights must be >= 0"),
    ],
)
def test_groups_that_are_none_are_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        GroupL1(*arguments)


def test_what_does_not_fit_the_rows_is_refused():
    design, targets = samples()
    with pytest.raises(ValueError, match="groups must be of 18 columns, got 3"):
        solve_rows(design, targets, penalty=GroupL1(1.0, [0, 0, 1]))
    with pytest.raises(ValueError, match="alpha must be for 5 rows"):
        solve_rows(design, targets, penalty=GroupL1(np.ones((4, 5)), LABELS))
    metzler = simjax.MetzlerRow(0.5, np.arange(ROWS))
    with pytest.raises(ValueError, match="constraint must not be a MetzlerRow with GroupL1"):
        solve_rows(design, targets, penalty=GroupL1(1.0, LABELS), constraint=metzler)
    with pytest.raises(ValueError, match="groups must be given for objective 'group_l1' and for no other"):
        simjax.alpha_max(design, targets, groups=LABELS)
    with pytest.raises(ValueError, match="groups must be of 18 columns, got 2"):
        simjax.alpha_max(design, targets, objective="group_l1", groups=[0, 1])


def test_it_is_shown_copied_and_compared_as_the_other_penalties_are():
    penalty = GroupL1(0.5, LABELS)
    assert repr(penalty) == "GroupL1(alpha=0.5, groups=<5 of 18 columns>, weights=<array (5,)>)"
    assert repr(penalty.rows(np.array([0]))) == "GroupPenalty(level=<array (1, 5)>, labels=<array (1, 18)>)"
    assert penalty == penalty
    assert penalty != GroupL1(0.5, LABELS)
    weights = generator(1).normal(size=(3, WIDTH))
    for other in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))):
        assert_array_equal(other.value(weights), penalty.value(weights))


def test_groups_of_one_column_are_an_l1_penalty_and_groups_that_pay_nothing_are_none():
    design, targets = samples()
    alpha = np.linspace(0.5, 2.0, WIDTH)
    for constraint in (None, L1Ball(0.5, size=SEEN)):
        single = solve_rows(design, targets, penalty=GroupL1(alpha, np.arange(WIDTH)), constraint=constraint)
        plain = solve_rows(design, targets, penalty=simjax.L1(alpha), constraint=constraint)
        assert isinstance(single.problem.penalty, PiecewisePenalty)
        assert_array_equal(single.weights, plain.weights)
    free = solve_rows(design, targets, penalty=GroupL1(0.0, LABELS))
    assert_allclose(free.weights, np.linalg.lstsq(design, targets, rcond=None)[0].T, rtol=1e-9, atol=1e-12)


# --- Prox, conjugate and support function ------------------------------------------------------------------------


@many
@given(seeds, st.floats(1e-3, 1e3), st.sampled_from([LABELS, FREE]))
def test_prox_and_conjugate_belong_together(seed, step, labels):
    penalty = GroupL1(0.4, labels)
    x, other = (3.0 * generator(seed, k).normal(size=(ROWS, WIDTH)) for k in (1, 2))
    p, q = penalty.prox(x, step), penalty.prox(other, step)
    # Firmly nonexpansive.
    assert np.all(np.sum((p - q) ** 2, axis=1) <= np.sum((p - q) * (x - other), axis=1) + 1e-12)
    # Moreau: s = (x − p)/τ is a subgradient: Fenchel and Young agree there, and disagree the right way elsewhere.
    s = (x - p) / step * (1.0 - 1e-11)
    s[:, labels < 0] = 0.0
    conjugate = penalty.conjugate(s).sum(axis=1)
    assert_array_equal(conjugate, 0.0)
    assert_allclose(total_value(penalty, p), np.sum(s * p, axis=1), rtol=1e-10, atol=1e-12)
    assert np.all(total_value(penalty, q) + conjugate >= np.sum(s * q, axis=1) - 1e-10)
    assert np.all(np.isinf(penalty.conjugate(1e4 * (1.0 + np.abs(x))).sum(axis=1)))


@many
@given(seeds, st.floats(0.05, 20.0), st.floats(0.05, 5.0), st.sampled_from([LABELS, FREE]))
def test_the_joint_prox_with_a_ball_and_its_support_function(seed, radius, step, labels):
    penalty = GroupL1(0.4, labels)
    bound = L1Ball(radius, size=SEEN, weights=np.linspace(0.5, 2.0, SEEN)).bound(ROWS, WIDTH)
    x, other = (3.0 * generator(seed, k).normal(size=(ROWS, WIDTH)) for k in (1, 2))
    column = np.full((ROWS, 1), step)
    w, q = (joint_prox(penalty, bound, v, column, np.zeros((ROWS, 1))).point for v in (x, other))
    assert np.all(bound.norm(w) <= radius * (1.0 + 1e-14))
    assert np.all(np.sum((w - q) ** 2, axis=1) <= np.sum((w - q) * (x - other), axis=1) + 1e-11)
    # s = (x − w)/τ is a subgradient of penalty and ball: g*(s) = sᵀw − h(w), and no point of the ball does better.
    s = (x - w) / step * (1.0 - 1e-12)
    s[:, labels < 0] = np.where(np.arange(WIDTH) < SEEN, s, 0.0)[:, labels < 0]
    conjugate = support_function(penalty, bound, s, None)
    assert_allclose(conjugate, np.sum(s * w, axis=1) - total_value(penalty, w), rtol=1e-9, atol=1e-9)
    assert np.all(conjugate >= np.sum(s * q, axis=1) - total_value(penalty, q) - 1e-10)


# --- Rows --------------------------------------------------------------------------------------------------------


def test_orthonormal_columns_have_the_closed_form():
    design = np.linalg.qr(generator(3).normal(size=(M, WIDTH)))[0]
    targets = generator(4).normal(size=(M, ROWS))
    solution = solve_rows(design, targets, loss_weight=0.5, penalty=GroupL1(0.5, LABELS), tol=1e-10)
    z = targets.T @ design
    threshold = 0.5 * np.sqrt(np.bincount(LABELS))
    expected = z * np.maximum(1.0 - threshold / norms(z), 0.0)[:, LABELS]
    assert np.any(norms(z) < threshold)
    assert_allclose(solution.weights, expected, atol=1e-6)
    assert_array_equal(norms(solution.weights) == 0.0, norms(expected) == 0.0)
    # All columns in one group: w = z (1 − α√d/‖z‖)₊.
    whole = solve_rows(design, targets, loss_weight=0.5, penalty=GroupL1(0.5, np.zeros(WIDTH, int)), tol=1e-10)
    shrink = np.maximum(1.0 - 0.5 * np.sqrt(WIDTH) / np.linalg.norm(z, axis=1), 0.0)
    assert_allclose(whole.weights, shrink[:, None] * z, atol=1e-6)


def assert_optimal(design, targets, loss, alpha, solution, tol):
    """The certificate again, by hand: rows without a constraint, every column in a group."""
    level = alpha * np.sqrt(np.bincount(LABELS))
    for k in range(ROWS):
        w, y, t = solution.weights[k], solution.certificate.dual[k], targets[:, k]
        primal = loss * np.sum((t - design @ w) ** 2) + norms(w) @ level
        rounding = 1e-15 * np.linalg.norm(y) * norms(np.linalg.norm(design, axis=0))
        assert np.all(norms(y @ design) <= level * (1.0 + 1e-12) + rounding)
        assert primal - (y @ t - y @ y / (4.0 * loss)) <= 1.01 * tol * primal + 1e-14 * loss * (t @ t)
        assert_allclose(solution.certificate.objective[k], primal, rtol=1e-12)


@pytest.mark.parametrize("spread", [1.0, 1e4])
@pytest.mark.parametrize("m", [12, 40])
@pytest.mark.parametrize("alpha", [1e-3, 0.3])
def test_columns_of_any_scale_in_one_group_are_certified(m, spread, alpha):
    # ‖w_g‖ is no norm of w_g in other units: the columns of a group have to share theirs, whatever their norms.
    design, targets = samples(5, m, spread)
    solution = solve_rows(design, targets, loss_weight=0.7, penalty=GroupL1(alpha, LABELS), tol=1e-7)
    assert solution.converged
    assert_optimal(design, targets, 0.7, alpha, solution, 1e-7)
    scale = Workspace(design).for_penalty(GroupL1(alpha, LABELS)).column_scale
    for group in range(5):
        assert np.ptp(scale[group == LABELS]) == 0.0
    permutation = generator(6).permutation(WIDTH)
    permuted = solve_rows(
        design[:, permutation], targets, loss_weight=0.7, penalty=GroupL1(alpha, LABELS[permutation]), tol=1e-7
    )
    assert_allclose(permuted.certificate.objective, solution.certificate.objective, rtol=2e-7)


@pytest.mark.parametrize(("size", "aim"), [(1e100, 1e-60), (1e-120, 1e100)])
@pytest.mark.parametrize("make", [lambda alpha: GroupL1(alpha, LABELS), simjax.L1])
def test_weights_whose_squares_are_no_numbers(make, size, aim):
    design, targets = samples(2)
    plain = solve_rows(design, targets, penalty=make(0.3), tol=1e-8)
    scaled = solve_rows(size * design, aim * targets, penalty=make(0.3 * size * aim), tol=1e-8)
    assert scaled.converged
    assert_allclose(scaled.certificate.objective / aim**2, plain.certificate.objective, rtol=2e-8)
    assert_allclose(scaled.weights * (size / aim), plain.weights, atol=1e-6)


KINDS = {
    "labels": {},
    "in no group": {"penalty": GroupL1(0.3, FREE)},
    "a free group": {"penalty": GroupL1([0.3, 0.0, 0.2, 0.5, 0.1], LABELS)},
    "by row": {"penalty": GroupL1(generator(9).uniform(0.05, 1.0, (ROWS, 5)), LABELS)},
    "support": {"support": generator(8).random((ROWS, WIDTH)) < 0.6},
    "ball": {"constraint": L1Ball(0.6, size=SEEN)},
    "ball, in no group": {"penalty": GroupL1(0.3, FREE), "constraint": L1Ball(0.6, size=SEEN)},
    "ball and support": {
        "constraint": L1Ball(np.linspace(0.2, 1.5, ROWS), size=SEEN, weights=np.linspace(0.5, 2.0, SEEN)),
        "support": generator(8).random((ROWS, WIDTH)) < 0.6,
    },
    "samples with weights": {"sample_weight": generator(7).random(M), "fit_intercept": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_row_agrees_with_the_oracle(kind):
    pytest.importorskip("clarabel")
    design, targets = samples(2, spread=30.0)
    stated = {"loss_weight": np.linspace(0.2, 1.0, ROWS), "penalty": GroupL1(0.3, LABELS)} | KINDS[kind]
    solution = solve_rows(design, targets, tol=1e-8, **stated)
    assert solution.converged
    answer = oracles.solve(solution.problem)
    judged = simjax.certify(solution.problem, answer.weights, [answer.duals])
    assert judged.relative_gap.max() <= 1e-7
    assert_allclose(solution.certificate.objective, judged.objective, rtol=1e-7)
    assert solution.verify(rows=2).ok


@pytest.mark.parametrize("solver", ["admm", "proximal_gradient"])
def test_single_methods_reach_the_same_rows(solver):
    design, targets = samples(2)
    stated = {"penalty": GroupL1(0.5, LABELS), "constraint": L1Ball(0.6, size=SEEN)}
    auto, single = solve_rows(design, targets, **stated), solve_rows(design, targets, solver=solver, **stated)
    assert single.converged
    assert_allclose(single.certificate.objective, auto.certificate.objective, rtol=2e-6)
    assert np.all(single.newton_steps == 0)


def ill_conditioned():
    """Rows over dependent columns whose singular values span four decades, next to interpolation."""
    rng = generator(3)
    left, right = (np.linalg.qr(rng.normal(size=(n, 40)))[0] for n in (40, 60))
    return 10.0 * left * np.geomspace(1.0, 1e-4, 40) @ right.T, rng.normal(size=(40, ROWS)), np.arange(60) // 4


def test_newton_steps_end_what_passes_do_not():
    # States of ReLU layers over few inputs: columns that are nearly dependent.
    rng = generator(5)
    inputs = rng.normal(size=(100, 20))
    first = np.maximum(inputs @ rng.normal(size=(20, 60)) / 4.0, 0.0)
    second = np.maximum(first @ rng.normal(size=(60, 40)) / 6.0, 0.0)
    design, targets = np.concatenate([second, first, inputs], axis=1), first @ rng.normal(size=(60, 4)) / 6.0
    stated = {"loss_weight": 0.5, "penalty": GroupL1(1e-5, np.arange(120) // 6), "tol": 1e-7}
    auto = solve_rows(design, targets, **stated)
    assert auto.converged
    assert auto.passes.max() <= 126
    assert auto.newton_steps.max() > 0
    assert "by Newton's method on the dual" in auto.summary()
    with pytest.warns(simjax.ConvergenceWarning):
        assert not solve_rows(design, targets, solver="admm", max_iters=1000, **stated).converged


@pytest.mark.parametrize("radius", [None, 0.5])
def test_augmented_lagrangians_alone_from_nothing(radius):
    design, targets, labels = ill_conditioned()
    constraint = None if radius is None else L1Ball(radius, size=40)
    penalty = GroupL1(1e-3, labels)
    problem = simjax.row_problem(design, targets, loss_weight=0.5, penalty=penalty, constraint=constraint)
    scaled = FactoredDesign(design)
    factorisation = scaled.factorisation(precise=True)
    rows = canonical_rows(problem, factorisation, scaled.coordinates(targets, precise=True), np.ones(60))

    def judged(index, weights, dual):
        return judged_inside(factorisation, rows.take_rows(index), weights, dual)

    nothing = np.zeros((ROWS, 60)), np.zeros((ROWS, 40))
    weights, dual, gap, steps = augmented_lagrangian.solve(
        factorisation, gram_of(factorisation), rows, *nothing, judged, tol=1e-9
    )
    assert gap.max() <= 1e-9
    assert steps.max() <= 60
    known = solve_rows(design, targets, loss_weight=0.5, penalty=penalty, constraint=constraint)
    objective = simjax.certify(problem, weights * rows.point_scale).objective
    assert_allclose(objective, known.certificate.objective, rtol=1e-6)
    again = augmented_lagrangian.solve(factorisation, gram_of(factorisation), rows, weights, dual, judged, tol=1e-9)
    assert_array_equal(again[3], 0)  # what is solved takes no step


def test_exact_matching():
    design, targets = samples(3, m=10)
    stated = {"penalty": GroupL1(1.0, LABELS), "matching": "exact"}
    solution = solve_rows(design, targets, **stated)
    assert solution.converged
    level = np.sqrt(np.bincount(LABELS))
    slopes = norms(solution.certificate.dual @ design)
    assert np.all(slopes <= level * (1.0 + 1e-12))
    value = norms(solution.weights) @ level
    assert_allclose(np.sum(solution.certificate.dual * targets.T, axis=1), value, rtol=2e-6)
    radius = np.abs(solution.weights).sum(axis=1)
    tight = solve_rows(design, targets, constraint=L1Ball(0.99 * radius), **stated)
    assert np.all((tight.status == "SOLVED") | (tight.status == "INFEASIBLE"))
    assert np.all(tight.certificate.objective >= value * (1.0 - 1e-6))
    with pytest.warns(simjax.ConvergenceWarning, match="infeasible"):
        none = solve_rows(design, targets, constraint=L1Ball(0.01 * radius), **stated)
    assert_array_equal(none.status, "INFEASIBLE")
    assert none.passes.max() == 0  # proved before passes that could not end


@pytest.mark.slow
def test_the_engine_of_jax_finds_the_same():
    design, targets = samples(2, spread=30.0)
    stated = {"penalty": GroupL1(0.3, FREE), "constraint": L1Ball(0.6, size=SEEN), "tol": 1e-9}
    numpy, compiled = (solve_rows(design, targets, engine=engine, **stated) for engine in ("numpy", "jax"))
    assert compiled.converged
    assert_allclose(compiled.certificate.objective, numpy.certificate.objective, rtol=2e-9)
    assert_allclose(compiled.weights, numpy.weights, atol=1e-5)


EIGHT_DEVICES = """
import jax, numpy as np
from rows.test_group import FREE, GroupL1, samples, solve_rows

design, targets = samples(2, spread=30.0)
mesh = jax.make_mesh((8,), ("rows",))
for columns in (targets, targets[:, :1]):
    spread, here = (
        solve_rows(design, columns, penalty=GroupL1(0.3, FREE), tol=1e-9, mesh=each) for each in (mesh, None)
    )
    assert spread.converged and "8 devices" in spread.engine
    np.testing.assert_allclose(spread.weights, here.weights, atol=1e-9)
print("the same")
"""


@pytest.mark.slow
def test_rows_with_groups_over_eight_devices():
    assert on_eight_devices(EIGHT_DEVICES).endswith("the same\n")


def test_a_sparse_design_has_the_rows_of_its_array():
    design, targets = samples(2, m=60)
    design[generator(13).random(design.shape) < 0.8] = 0.0
    stated = {"penalty": GroupL1(0.3, FREE), "constraint": L1Ball(0.6, size=SEEN), "fit_intercept": True, "tol": 1e-8}
    sparse, dense = (solve_rows(each, targets, **stated) for each in (scipy.sparse.csr_array(design), design))
    assert sparse.converged
    assert_allclose(sparse.certificate.objective, dense.certificate.objective, rtol=2e-8)


def test_a_checkpoint_tells_groups_apart(tmp_path):
    design, targets = samples()
    wanted = solve_rows(design, targets, penalty=GroupL1(0.3, LABELS), checkpoint=tmp_path / "kept")
    again = solve_rows(design, targets, penalty=GroupL1(0.3, LABELS), checkpoint=tmp_path / "kept")
    assert_array_equal(again.weights, wanted.weights)
    with pytest.raises(ValueError, match="penalty"):
        solve_rows(design, targets, penalty=GroupL1(0.3, LABELS[::-1]), checkpoint=tmp_path / "kept")


def test_blocks_of_rows_take_their_own_levels():
    design, targets = samples(2)
    levels = generator(9).uniform(0.05, 1.0, (ROWS, 5))
    whole = solve_rows(design, targets, penalty=GroupL1(levels, LABELS), tol=1e-10)
    assert isinstance(whole.problem.penalty, GroupPenalty)
    for k in range(ROWS):
        alone = solve_rows(design, targets[:, [k]], penalty=GroupL1(levels[k], LABELS), tol=1e-10)
        assert_allclose(alone.certificate.objective, whole.certificate.objective[[k]], rtol=2e-10)


def grouped_states():
    """States that depend on two of three pairs of inputs, and a group for the states and for each pair."""
    rng = generator(12)
    inputs = rng.normal(size=(80, 6))
    before = inputs[:, :4] @ rng.normal(size=(4, 5))
    hidden = np.maximum(before, 0.0)
    states = simjax.States(
        inputs=inputs,
        preactivations=before,
        activations=hidden,
        outputs=hidden @ rng.normal(size=(5, 2)),
    )
    groups = np.repeat([0, 1, 2, 3], [5, 2, 2, 2])  # the states, and pairs of inputs
    return states, groups


def test_a_fit_leaves_whole_groups_of_inputs_out():
    states, groups = grouped_states()
    result = simjax.fit(states, GroupL1(0.3, groups), kappa=0.9)
    assert result.converged
    assert result.settings["objective"] == "GroupL1"
    assert result.settings["alpha"] is None  # the object brings its own
    streamed = simjax.fit(simjax.stream_states([states]), GroupL1(0.3, groups), kappa=0.9)
    assert simjax.recertify(streamed, [states]).relative_gap.max() <= 2e-6
    assert_allclose(streamed.certificate.objective, result.certificate.objective, rtol=2e-6)
    weights = np.concatenate([result.model.A, result.model.B], axis=1)
    for group in range(4):
        part = weights[:, groups == group] != 0.0
        off_diagonal = part | np.eye(5, dtype=bool) if group == 0 else part
        assert np.all(off_diagonal.all(axis=1) | ~part.any(axis=1)) or group == 0
    assert not weights[:, groups == 3].any()  # the inputs that nothing depends on
    with pytest.raises(ValueError, match="MetzlerRow with GroupL1"):
        simjax.fit(states, GroupL1(0.3, groups), constraint="metzler", kappa=0.5)


def test_a_path_multiplies_the_alpha_of_the_groups():
    states, groups = grouped_states()
    path = simjax.path(states, GroupL1([1.0, 1.0, 2.0, 1.0], groups), points=4, ratio=1e-2)
    assert path.converged
    assert not path.fits[0].weights.any()
    assert np.all(np.diff([np.count_nonzero(result.weights) for result in path.fits]) >= 0)
    alone = simjax.fit(states, GroupL1(path.values[2] * np.array([1.0, 1.0, 2.0, 1.0]), groups))
    assert_allclose(alone.certificate.objective, path.fits[2].certificate.objective, rtol=2e-6, atol=1e-12)
    with pytest.raises(ValueError, match="alpha_weights must be left alone with a GroupL1"):
        simjax.path(states, GroupL1(1.0, groups), alpha_weights=1.0)
