"""Properties that hold whatever the numbers: symmetries and scaling laws of the rows, monotonicity, duality, prox."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Huber, NonnegativeL1, assert_proved, generator
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import simjax
from simjax import solve_rows
from simjax.rows.conjugate import support_function as _support_function
from simjax.rows.joint_prox import joint_prox as _joint_prox

# One shape for all: fewer samples than coordinates, and a ball that sees ten of the sixteen.
M, WIDTH, ROWS, BOUND = 10, 16, 5, 10
TOL = 1e-8

few = settings(max_examples=15, deadline=None, derandomize=True)
many = settings(max_examples=100, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
weights = st.sampled_from([0.03, 0.1, 0.3, 1.0, 3.0])
scales = st.sampled_from([1e-3, 0.2, 7.0, 1e4])

PENALTIES = {
    "l1": lambda a: simjax.L1(a),
    "perspective": lambda a: simjax.Perspective(a, 0.01 * a),
    "elastic_net": lambda a: simjax.ElasticNet(a, 0.3 * a),
    "ridge": lambda a: simjax.Ridge(a),
}
names = st.sampled_from(sorted(PENALTIES))
balls = st.sampled_from([None, 0.2, 0.99, 5.0])


def random_rows(seed):
    """Design, targets and the rows' own loss weights; half of the designs ill-conditioned."""
    rng = generator(seed)
    design = rng.normal(size=(M, WIDTH)) * np.geomspace(1.0, rng.choice([1.0, 1e-2]), WIDTH)
    return design, rng.normal(size=(M, ROWS)), rng.uniform(0.2, 2.0, ROWS)


def ball(radius, order=None):
    """A weighted ball on the first coordinates; with `order`, on where a permutation of the coordinates takes them.

    A ball can only leave out the last coordinates, so that a permutation has to keep the two groups apart.
    """
    if radius is None:
        return None
    omega = np.linspace(0.5, 2.0, BOUND)
    return simjax.L1Ball(radius, size=BOUND, weights=omega if order is None else omega[order[:BOUND]])


def objectives(design, targets, loss_weight, penalty, radius, *, order=None, **options):
    """Certified rows: objective and an upper bound of its distance from the optimum."""
    problem = {"loss_weight": loss_weight, "penalty": penalty, "constraint": ball(radius, order)}
    solution = solve_rows(design, targets, tol=TOL, **problem, **options)
    assert solution.converged
    return solution


def assert_same_optimum(first, second, factor=1.0):
    """Two certified objectives of one optimum differ by no more than their gaps allow."""
    left, right = first.certificate.objective * factor, second.certificate.objective
    allowed = first.certificate.gap * factor + second.certificate.gap + 1e-12 * right
    assert np.all(np.abs(left - right) <= allowed)


# --- Symmetries --------------------------------------------------------------------------------------------------


@few
@given(seeds, names, weights, balls)
def test_permuting_samples_changes_nothing(seed, name, alpha, radius):
    design, targets, loss = random_rows(seed)
    order = generator(seed, 1).permutation(M)
    base = objectives(design, targets, loss, PENALTIES[name](alpha), radius)
    permuted = objectives(design[order], targets[order], loss, PENALTIES[name](alpha), radius)
    assert_same_optimum(base, permuted)


@pytest.mark.slow
@few
@given(seeds, names, weights, balls)
def test_permuting_coordinates_permutes_the_answer(seed, name, alpha, radius):
    design, targets, loss = random_rows(seed)
    rng = generator(seed, 2)
    order = np.concatenate([rng.permutation(BOUND), BOUND + rng.permutation(WIDTH - BOUND)])
    per_coordinate = alpha * rng.uniform(0.5, 2.0, WIDTH)
    base = objectives(design, targets, loss, PENALTIES[name](per_coordinate), radius)
    penalty = PENALTIES[name](per_coordinate[order])
    permuted = objectives(design[:, order], targets, loss, penalty, radius, order=order)
    assert_same_optimum(base, permuted)
    # The answer of one problem is an answer of the other.
    problem = simjax.row_problem(
        design[:, order], targets, loss_weight=loss, penalty=penalty, constraint=ball(radius, order)
    )
    moved = simjax.certify(problem, base.weights[:, order], [base.certificate.dual])
    assert np.all(moved.relative_gap <= TOL)


@few
@given(seeds, names, weights, balls)
def test_permuting_rows_permutes_the_answer(seed, name, alpha, radius):
    design, targets, loss = random_rows(seed)
    order = generator(seed, 3).permutation(ROWS)
    base = objectives(design, targets, loss, PENALTIES[name](alpha), radius)
    permuted = objectives(design, targets[:, order], loss[order], PENALTIES[name](alpha), radius)
    assert_allclose(permuted.certificate.objective, base.certificate.objective[order], rtol=2 * TOL)
    assert_allclose(permuted.weights @ design.T, base.weights[order] @ design.T, atol=1e-3)


@few
@given(seeds, names, weights, balls)
def test_flipping_signs_flips_the_answer(seed, name, alpha, radius):
    design, targets, loss = random_rows(seed)
    signs = generator(seed, 4).choice([-1.0, 1.0], WIDTH)
    base = objectives(design, targets, loss, PENALTIES[name](alpha), radius)
    assert_same_optimum(base, objectives(design * signs, -targets, loss, PENALTIES[name](alpha), radius))


@few
@given(seeds, names, weights, balls)
def test_duplicate_rows_get_equal_answers(seed, name, alpha, radius):
    design, targets, loss = random_rows(seed)
    targets[:, 3], loss[3] = targets[:, 0], loss[0]
    solution = objectives(design, targets, loss, PENALTIES[name](alpha), radius)
    assert_allclose(solution.weights[3], solution.weights[0], rtol=1e-9, atol=1e-12)
    assert_allclose(solution.certificate.objective[3], solution.certificate.objective[0], rtol=1e-12)


# --- Scaling laws ------------------------------------------------------------------------------------------------


@few
@given(seeds, names, weights, balls, scales)
def test_scaling_loss_and_penalty_together_scales_the_objective(seed, name, alpha, radius, scale):
    design, targets, loss = random_rows(seed)
    base = objectives(design, targets, loss, PENALTIES[name](alpha), radius)
    scaled = objectives(design, targets, scale * loss, PENALTIES[name](scale * alpha), radius)
    assert_same_optimum(base, scaled, scale)


@few
@given(seeds, weights, balls, scales, st.sampled_from(["l1", "ridge"]))
def test_scaling_the_targets_scales_the_weights(seed, alpha, radius, scale, name):
    # w → cw takes λ‖t − Φw‖² to c² of it, an L1 penalty of weight cα and a ridge of weight α likewise, a ball to cκ.
    design, targets, loss = random_rows(seed)
    base = objectives(design, targets, loss, PENALTIES[name](alpha), radius)
    penalty = PENALTIES[name](scale * alpha if name == "l1" else alpha)
    scaled = objectives(design, scale * targets, loss, penalty, None if radius is None else scale * radius)
    assert_same_optimum(base, scaled, scale**2)


@few
@given(seeds, weights, scales, names)
def test_scaling_a_design_scales_the_weights_back(seed, alpha, scale, name):
    # Φ → cΦ, w → w/c: an L1 penalty of weight cα, a ridge of weight c²α; perspective and elastic net do both.
    design, targets, loss = random_rows(seed)
    base = objectives(design, targets, loss, PENALTIES[name](alpha), None)
    penalty = {
        "l1": lambda: simjax.L1(scale * alpha),
        "ridge": lambda: simjax.Ridge(scale**2 * alpha),
        "elastic_net": lambda: simjax.ElasticNet(scale * alpha, scale**2 * 0.3 * alpha),
        "perspective": lambda: simjax.Perspective(scale**2 * alpha, 0.01 * alpha),
    }[name]()
    assert_same_optimum(base, objectives(scale * design, targets, loss, penalty, None))


@few
@given(seeds, names, weights, balls)
def test_averaging_over_repeated_samples_changes_nothing(seed, name, alpha, radius):
    design, targets, loss = random_rows(seed)
    base = objectives(design, targets, loss, PENALTIES[name](alpha), radius)
    twice = objectives(np.tile(design, (2, 1)), np.tile(targets, (2, 1)), loss / 2, PENALTIES[name](alpha), radius)
    assert_same_optimum(base, twice)


# --- Monotonicity, exactly as far as the certificates reach ------------------------------------------------------


@few
@given(seeds, names, balls, st.floats(1.05, 10.0))
def test_shrinking_alpha_never_raises_the_fit_term(seed, name, radius, ratio):
    design, targets, loss = random_rows(seed)
    small, large = 0.1, 0.1 * ratio
    first = objectives(design, targets, loss, PENALTIES[name](small), radius)
    second = objectives(design, targets, loss, PENALTIES[name](large), radius)
    fits = [loss * np.sum((targets.T - s.weights @ design.T) ** 2, axis=1) for s in (first, second)]
    # All these penalties are linear in alpha; adding the two optimality inequalities bounds what the gaps allow.
    allowed = (large * first.certificate.gap + small * second.certificate.gap) / (large - small)
    assert np.all(fits[0] <= fits[1] + allowed + 1e-12)


@few
@given(seeds, names, weights, st.floats(0.05, 2.0), st.floats(1.01, 20.0))
def test_a_larger_ball_never_has_a_larger_optimum(seed, name, alpha, radius, ratio):
    design, targets, loss = random_rows(seed)
    small = objectives(design, targets, loss, PENALTIES[name](alpha), radius)
    large = objectives(design, targets, loss, PENALTIES[name](alpha), ratio * radius)
    free = objectives(design, targets, loss, PENALTIES[name](alpha), None)
    for tight, loose in ((small, large), (large, free)):
        assert np.all(loose.certificate.dual_objective <= tight.certificate.objective * (1.0 + 1e-13))


@pytest.mark.slow
@few
@given(seeds, names, weights, balls)
def test_a_smaller_support_never_has_a_smaller_optimum(seed, name, alpha, radius):
    design, targets, loss = random_rows(seed)
    support = generator(seed, 5).random(WIDTH) < 0.7
    inside = objectives(design, targets, loss, PENALTIES[name](alpha), radius, support=support)
    full = objectives(design, targets, loss, PENALTIES[name](alpha), radius)
    assert np.all(inside.weights[:, ~support] == 0.0)
    assert np.all(full.certificate.dual_objective <= inside.certificate.objective * (1.0 + 1e-13))
    # Columns of zeros earn nothing, so that they come to the same as a support without them.
    assert_same_optimum(inside, objectives(design * support, targets, loss, PENALTIES[name](alpha), radius))


@few
@given(seeds, names, weights, balls)
def test_every_solution_is_proved_in_numpy(seed, name, alpha, radius):
    design, targets, loss = random_rows(seed)
    problem = {"loss_weight": loss, "penalty": PENALTIES[name](alpha), "constraint": ball(radius)}
    assert_proved(design, targets, solve_rows(design, targets, tol=TOL, **problem), **problem)


# --- Weak duality ------------------------------------------------------------------------------------------------


@many
@given(seeds, names, weights, balls, st.integers(-8, 8), st.integers(-8, 8), st.sampled_from(["penalty", "exact"]))
def test_weak_duality_for_any_weights_and_multipliers(seed, name, alpha, radius, size, dual_size, matching):
    design, targets, loss = random_rows(seed)
    rng = generator(seed, 6)
    penalty = PENALTIES[name](alpha)
    answer = 10.0**size * rng.normal(size=(ROWS, WIDTH)) * (rng.random(WIDTH) < 0.5)
    constraint = ball(radius)
    if constraint is not None:
        norm = np.abs(answer[:, :BOUND]) @ constraint.weights
        answer[:, :BOUND] *= np.minimum(1.0, radius / np.maximum(norm, 1e-300))[:, None]
    if matching == "exact":
        targets = design @ answer.T
    problem = simjax.row_problem(
        design, targets, loss_weight=loss, penalty=penalty, constraint=constraint, matching=matching
    )
    any_dual = 10.0**dual_size * rng.normal(size=(ROWS, M))
    certificate = simjax.certify(problem, answer, [any_dual])
    # Two sets of weights, two of multipliers: every bound is below every objective.
    other = simjax.certify(problem, np.zeros_like(answer), [rng.normal(size=(ROWS, M))])
    assert np.all(certificate.gap >= 0.0)
    rounding = 1e-12 * (np.abs(certificate.objective) + np.abs(other.objective))
    assert np.all(other.dual_objective <= certificate.objective + rounding)
    if matching == "penalty":
        assert np.all(certificate.dual_objective <= other.objective + rounding)


# --- Prox, conjugate and support function ------------------------------------------------------------------------

joint_prox = jax.jit(_joint_prox)
support_function = jax.jit(_support_function)
HUBER, NONNEGATIVE = Huber(0.7), NonnegativeL1(0.3)
steps = st.floats(1e-3, 1e3)
any_penalty = st.one_of(names.map(lambda name: PENALTIES[name](0.4)), st.just(HUBER), st.just(NONNEGATIVE))


def points(seed, size=3.0):
    return size * generator(seed, 7).normal(size=(ROWS, WIDTH)) * (generator(seed, 8).random(WIDTH) < 0.8)


def total(penalty, w):
    return np.asarray(penalty.value(jnp.asarray(w))).sum(axis=1)


@many
@given(seeds, any_penalty, steps)
def test_prox_is_firmly_nonexpansive(seed, penalty, step):
    with jax.enable_x64(True):
        x, y = points(seed), points(seed + 1)
        p, q = (np.asarray(penalty.prox(jnp.asarray(v), step)) for v in (x, y))
    assert np.all(np.sum((p - q) ** 2, axis=1) <= np.sum((p - q) * (x - y), axis=1) + 1e-12)


@few
@given(seeds, names, balls, steps)
def test_joint_prox_is_firmly_nonexpansive(seed, name, radius, step):
    constraint = None if radius is None else ball(radius).bound(ROWS, WIDTH)
    column = np.full((ROWS, 1), step)
    with jax.enable_x64(True):
        x, y = points(seed), points(seed + 1)
        p, q = (np.asarray(joint_prox(PENALTIES[name](0.4), constraint, v, column, 0.0 * column).point) for v in (x, y))
    assert np.all(np.sum((p - q) ** 2, axis=1) <= np.sum((p - q) * (x - y), axis=1) + 1e-12)


@many
@given(seeds, any_penalty, steps)
def test_fenchel_young_with_equality_at_the_prox(seed, penalty, step):
    # Moreau: x = prox_{τh}(x) + τ s, where s is a subgradient of h at the prox: h(w) + h*(s) = s·w there, ≥ elsewhere.
    with jax.enable_x64(True):
        x = points(seed)
        w = np.asarray(penalty.prox(jnp.asarray(x), step))
        s = (x - w) / step
        s = s * (1.0 - 1e-12)  # the rounding of x − w may leave the domain of h*
        conjugate = np.asarray(penalty.conjugate(jnp.asarray(s)))
        value = np.asarray(penalty.value(jnp.asarray(w)))
        elsewhere = np.abs(points(seed + 2))
        beyond = np.asarray(penalty.value(jnp.asarray(elsewhere)))
    assert_allclose(value + conjugate, s * w, atol=1e-10 * (1.0 + np.max(np.abs(s * w))))
    assert np.all(beyond + conjugate >= s * elsewhere - 1e-10)


@many
@given(seeds, names, steps)
def test_moreau_identity_with_the_prox_of_the_conjugate(seed, name, step):
    # x = prox_{τh}(x) + τ prox_{h*/τ}(x/τ); the second prox by its own optimality: s minimises ½(s − x/τ)² + h*(s)/τ.
    penalty = PENALTIES[name](0.4)
    with jax.enable_x64(True):
        x = points(seed)
        s = (x - np.asarray(penalty.prox(jnp.asarray(x), step))) / step

        def objective(z):
            return 0.5 * (z - x / step) ** 2 + np.asarray(penalty.conjugate(jnp.asarray(z))) / step

        s = s * (1.0 - 1e-13)
        least = objective(s)
        for factor in (0.9, 0.999, 1.001, 1.1):
            assert np.all(least <= objective(factor * s) + 1e-10 * (1.0 + least))
        for shift in (-1e-3, 1e-3):
            assert np.all(least <= objective(s + shift) + 1e-10 * (1.0 + least))


@few
@given(seeds, names, st.sampled_from([0.05, 0.99, 20.0]))
def test_support_function_dominates_every_point_of_the_ball(seed, name, radius):
    penalty, constraint = PENALTIES[name](0.4), ball(radius)
    with jax.enable_x64(True):
        s, w = points(seed), points(seed + 1)
        s[:, BOUND:] = np.clip(s[:, BOUND:], -0.4, 0.4) if name == "l1" else s[:, BOUND:]
        norm = np.abs(w[:, :BOUND]) @ constraint.weights
        w[:, :BOUND] *= np.minimum(1.0, radius / norm)[:, None]
        bound = np.asarray(support_function(penalty, constraint.bound(ROWS, WIDTH), s, None))
        assert np.all(bound >= np.sum(s * w, axis=1) - total(penalty, w) - 1e-12)
        # g* is convex with g*(0) = 0.
        half = np.asarray(support_function(penalty, constraint.bound(ROWS, WIDTH), 0.5 * s, None))
        assert np.all(2.0 * half <= bound + 1e-12)
