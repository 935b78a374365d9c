"""The ℓ1 ball: joint prox and support function against projections, root finding and optimisation by other means."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import PENALTIES, ByHand, Huber, NonnegativeL1, Squares, compiled_and_not, generator
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import brentq, minimize

import simjax
from simjax.rows import conjugate
from simjax.rows import joint_prox as joint
from simjax.rows.constraints import RowBound, feedforward_support, hollow_support
from simjax.rows.own_penalty import Opaque, ScaledPenalty
from simjax.rows.penalties import PiecewisePenalty, soft

ROWS, WIDTH, BOUND = 5, 8, 6
joint_prox = compiled_and_not(joint.joint_prox)
support_function = compiled_and_not(conjugate.support_function)
dual_scaling = compiled_and_not(conjugate.dual_scaling)
CURVED = ["perspective", "perspective-knot", "elastic_net", "ridge"]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def column(value, rows=ROWS):
    return jnp.full((rows, 1), float(value))


def free_ball(radius=np.inf):
    return simjax.L1Ball(radius, size=BOUND).bound(ROWS, WIDTH)


def weighted_ball(radius=0.9, rows=ROWS, seed=1):
    weights = generator(seed).uniform(0.3, 3.0, size=(rows, BOUND))
    return simjax.L1Ball(radius, size=BOUND, weights=weights).bound(rows, WIDTH)


def points_of(seed=0, scale=1.5):
    return scale * generator(seed).normal(size=(ROWS, WIDTH))


def user_penalty(penalty):
    """As the solvers see a penalty of the user's own."""
    return ScaledPenalty(column(1.0), column(1.0), Opaque(ByHand(penalty)))


# --- L1Ball and Free ---------------------------------------------------------------------------------------------


def test_ball_sees_the_first_coordinates_only():
    ball = simjax.L1Ball(0.9, size=3).bound(2, 5)
    assert_array_equal(ball.omega, [[1, 1, 1, 0, 0]])
    assert_array_equal(ball.radius, [[0.9], [0.9]])
    assert_array_equal(ball.norm(np.array([[1.0, -2.0, 3.0, 50.0, 50.0]])), [[6.0]])
    assert_array_equal(simjax.L1Ball(0.9).bound(2, 5).omega, np.ones((1, 5)))
    assert simjax.Free().bound(2, 5) is None


def test_ball_weights_and_radii_per_row():
    radii, weights = np.array([0.5, np.inf]), np.arange(1.0, 7.0).reshape(2, 3)
    ball = simjax.L1Ball(radii, size=3, weights=weights).bound(2, 4)
    assert_array_equal(ball.radius[:, 0], radii)
    assert_array_equal(ball.omega[:, :3], weights)
    assert_array_equal(np.asarray(ball.sees), [[True, True, True, False], [False] * 4])
    second = ball.take(np.array([1]))
    assert_array_equal(second.omega, ball.omega[1:])
    assert_array_equal(second.radius, [[np.inf]])
    shared = simjax.L1Ball(radii, size=3, weights=[1.0, 2.0, 3.0]).bound(2, 4).take(np.array([1]))
    assert_array_equal(shared.omega, [[1.0, 2.0, 3.0, 0.0]])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"radius": 0.0}, ValueError, "radius"),
        ({"radius": -1.0}, ValueError, "radius"),
        ({"radius": np.nan}, ValueError, "radius"),
        ({"radius": [[0.9]]}, ValueError, "radius"),
        ({"radius": "0.9"}, TypeError, "radius"),
        ({"radius": None}, TypeError, "radius"),
        ({"radius": 0.9, "size": 0}, ValueError, "size"),
        ({"radius": 0.9, "size": -2}, ValueError, "size"),
        ({"radius": 0.9, "size": 2.0}, TypeError, "size"),
        ({"radius": 0.9, "size": True}, TypeError, "size"),
        ({"radius": 0.9, "weights": [1.0, 0.0]}, ValueError, "weights"),
        ({"radius": 0.9, "weights": [1.0, -1.0]}, ValueError, "weights"),
        ({"radius": 0.9, "weights": np.inf}, ValueError, "weights"),
        ({"radius": 0.9, "weights": np.nan}, ValueError, "weights"),
        ({"radius": 0.9, "weights": np.ones((2, 2, 2))}, ValueError, "weights"),
    ],
)
def test_bad_ball(arguments, error, match):
    with pytest.raises(error, match=match):
        simjax.L1Ball(**arguments)


@pytest.mark.parametrize(
    ("ball", "match"),
    [
        (simjax.L1Ball(0.9, size=6), "size"),
        (simjax.L1Ball([0.9, 0.9, 0.9]), "radius"),
        (simjax.L1Ball(0.9, weights=[1.0, 1.0]), "weights"),
        (simjax.L1Ball(0.9, size=2, weights=np.ones((3, 2))), "weights"),
    ],
)
def test_ball_that_does_not_fit_the_rows(ball, match):
    with pytest.raises(ValueError, match=match):
        ball.bound(2, 5)


# --- The joint prox ----------------------------------------------------------------------------------------------


def test_soft_threshold():
    assert_array_equal(soft(np.array([-2.0, -1.0, 0.5, 3.0]), 1.0), [-1.0, 0.0, 0.0, 2.0])


@pytest.mark.parametrize("radius", [1e-6, 0.3, 0.99, 3.0])
def test_without_a_penalty_it_is_the_projection_of_optax(radius):
    x = points_of()
    prox = joint_prox(simjax.NoPenalty(), simjax.L1Ball(radius).bound(ROWS, WIDTH), x, column(1.0), column(0.0))
    expected = jnp.stack([optax.projections.projection_l1_ball(row, radius) for row in jnp.asarray(x)])
    assert_allclose(prox.point, expected, rtol=1e-12, atol=1e-15 + 1e-14 * radius)


def test_weighted_projection_by_sorting():
    # Σ ω(|x| − θω)₊ is piecewise linear in θ with knots |x|/ω: the root can be written down.
    x, ball = points_of(), weighted_ball()
    point = np.asarray(joint_prox(simjax.NoPenalty(), ball, x, column(1.0), column(0.0)).point)
    for i in range(ROWS):
        omega, size, kappa = ball.omega[i, :BOUND], np.abs(x[i, :BOUND]), ball.radius[i, 0]
        ratio = size / omega
        order = np.argsort(-ratio)
        thetas = (np.cumsum((omega * size)[order]) - kappa) / np.cumsum((omega**2)[order])
        last = np.flatnonzero(ratio[order] > thetas)[-1]
        expected = np.sign(x[i, :BOUND]) * np.maximum(size - thetas[last] * omega, 0.0)
        assert_allclose(point[i, :BOUND], expected, rtol=1e-12, atol=1e-15)
        assert_array_equal(point[i, BOUND:], x[i, BOUND:])


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("step", [1e-3, 0.7, 50.0])
def test_joint_prox_by_root_finding(name, step):
    penalty, x, ball = PENALTIES[name], points_of(2, 4.0), weighted_ball()
    prox = joint_prox(penalty, ball, x, column(step), column(0.0))
    for i in range(ROWS):
        omega, kappa = np.asarray(ball.omega)[i], float(ball.radius[i, 0])

        def point(theta, i=i, omega=omega):
            return np.asarray(penalty.prox(soft(x[i], theta * omega), step))

        def excess(theta, omega=omega, kappa=kappa, point=point):
            return np.sum(omega * np.abs(point(theta))) - kappa

        theta = 0.0 if excess(0.0) <= 0.0 else brentq(excess, 0.0, 100.0, xtol=1e-15, rtol=1e-15)
        assert_allclose(prox.point[i], point(theta), rtol=1e-10, atol=1e-13)
        assert_allclose(prox.theta[i, 0], theta, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", [*PENALTIES, "huber", "nonnegative"])
@pytest.mark.parametrize("seed", range(3))
def test_joint_prox_satisfies_the_variational_inequality(name, seed):
    # For every v in the ball: step·(h(v) − h(w)) ≥ (x − w)ᵀ(v − w).
    penalty = {**PENALTIES, "huber": Huber(), "nonnegative": NonnegativeL1()}[name]
    step, x, ball = 0.6, points_of(seed, 3.0), weighted_ball(seed=seed)
    prox_penalty = penalty if isinstance(penalty, PiecewisePenalty) else user_penalty(penalty)
    w = np.asarray(joint_prox(prox_penalty, ball, x, column(step), column(0.0)).point)
    rng = generator(seed, 7)
    for _ in range(200):
        v = w + rng.choice([1e-3, 0.1, 3.0]) * rng.normal(size=x.shape)
        v = np.abs(v) if name == "nonnegative" else v
        norm = np.asarray(ball.norm(v))
        v[:, :BOUND] *= np.minimum(1.0, ball.radius / norm)
        rise = np.sum(np.asarray(penalty.value(v)) - np.asarray(penalty.value(w)), axis=1)
        assert np.all(step * rise - np.sum((x - w) * (v - w), axis=1) >= -1e-12)


@pytest.mark.parametrize("name", PENALTIES)
def test_joint_prox_is_exactly_feasible_and_exactly_sparse(name):
    ball, scales = weighted_ball(), np.array([[1e-9], [1.0], [30.0], [1e6], [1e12]])
    x = scales * points_of(3)
    w = np.asarray(joint_prox(PENALTIES[name], ball, x, column(0.7), column(0.0)).point)
    assert np.all(np.asarray(ball.norm(w)) <= np.asarray(ball.radius) * (1.0 + 4e-16))
    assert np.all(w * x >= 0.0)
    if name in ("l1", "least_squares"):
        assert_array_equal(np.count_nonzero(w[1:, :BOUND] == 0.0, axis=1) > 0, True)


@pytest.mark.parametrize("name", PENALTIES)
def test_inside_the_ball_it_is_the_penalty_s_own_prox(name):
    x, penalty, step, guess = points_of(), PENALTIES[name], np.full((ROWS, 1), 0.7), np.full((ROWS, 1), 0.3)
    for ball in (None, free_ball(), simjax.L1Ball(1e3).bound(ROWS, WIDTH)):
        prox = joint_prox(penalty, ball, x, step, guess)
        assert_allclose(prox.point, penalty.prox(x, step), rtol=4e-16)  # a compiler may fuse products and sums
        assert_array_equal(prox.theta, np.zeros((ROWS, 1)))
        assert_array_equal(joint.joint_prox(penalty, ball, x, step, guess).point, penalty.prox(x, step))


@pytest.mark.parametrize("name", ["l1", "perspective-knot", "ridge"])
@pytest.mark.parametrize("guess", [0.0, 1e-12, 0.5, 7.0, 1e9])
def test_any_guess_of_theta_leads_to_the_same_point(name, guess):
    penalty, x, ball = PENALTIES[name], points_of(4, 5.0), weighted_ball()
    reference = joint_prox(penalty, ball, x, column(0.7), column(0.0)).point
    assert_allclose(joint_prox(penalty, ball, x, column(0.7), column(guess)).point, reference, rtol=0, atol=1e-13)


def test_rows_with_and_without_a_ball_side_by_side():
    x, penalty = points_of(5, 3.0), PENALTIES["l1"]
    radius = np.array([0.5, np.inf, 1e-6, 100.0, 0.99])
    mixed = joint_prox(penalty, simjax.L1Ball(radius).bound(ROWS, WIDTH), x, column(0.2), column(0.0)).point
    assert_array_equal(mixed[1], penalty.prox(x[1], 0.2))
    for i in (0, 2, 3, 4):
        alone = simjax.L1Ball(radius[i]).bound(1, WIDTH)
        single = joint_prox(penalty, alone, x[i : i + 1], column(0.2, 1), column(0.0, 1)).point
        assert_allclose(mixed[i], single[0], rtol=1e-12, atol=1e-15)


def test_points_at_zero_and_ties():
    zero = np.zeros((ROWS, WIDTH))
    assert_array_equal(joint_prox(PENALTIES["l1"], weighted_ball(), zero, column(1.0), column(0.0)).point, zero)
    equal = np.full((ROWS, WIDTH), 2.0)
    point = joint_prox(simjax.NoPenalty(), simjax.L1Ball(1.0).bound(ROWS, WIDTH), equal, column(1.0), column(0.0)).point
    assert_allclose(point, np.full((ROWS, WIDTH), 1.0 / WIDTH), rtol=1e-15)


@pytest.mark.parametrize("name", ["l1", "perspective-knot", "elastic_net"])
def test_user_penalty_takes_the_same_joint_prox(name):
    x, ball = points_of(6, 4.0), weighted_ball()
    reference = joint_prox(PENALTIES[name], ball, x, column(0.7), column(0.0)).point
    by_hand = joint_prox(user_penalty(PENALTIES[name]), ball, x, column(0.7), column(0.0)).point
    assert_allclose(by_hand, reference, rtol=1e-12, atol=1e-14)


# --- The support function ----------------------------------------------------------------------------------------


def test_support_function_of_l1_in_the_ball():
    # κ(‖s‖∞ − β)₊, and 0 for the free coordinates as long as they keep to β.
    s, beta, kappa = points_of(7), 0.5, 0.99
    s[:, BOUND:] = np.clip(s[:, BOUND:], -beta, beta)
    found = support_function(simjax.L1(beta), simjax.L1Ball(kappa, size=BOUND).bound(ROWS, WIDTH), s, None)
    expected = kappa * np.maximum(np.max(np.abs(s[:, :BOUND]), axis=1) - beta, 0.0)
    assert_allclose(found, expected, rtol=1e-13)
    s[2, BOUND] = 0.6
    beyond = support_function(simjax.L1(beta), simjax.L1Ball(kappa, size=BOUND).bound(ROWS, WIDTH), s, None)
    assert_array_equal(np.isinf(beyond), [False, False, True, False, False])


def test_support_function_of_perspective_by_minimising_over_theta():
    alpha, mu, kappa = 0.5, 0.05, 0.8
    s = points_of(8, 3.0)
    penalty, ball = simjax.Perspective(alpha, mu), simjax.L1Ball(kappa).bound(ROWS, WIDTH)
    found = np.asarray(support_function(penalty, ball, s, None))
    for i in range(ROWS):
        low, high = 0.0, np.abs(s[i]).max()
        for _ in range(6):  # a grid, refined around the least value of a convex function
            thetas = np.linspace(low, high, 1001)
            shrunk = np.maximum(np.abs(s[i])[:, None] - thetas, 0.0)
            total = kappa * thetas + np.sum(np.maximum(shrunk**2 / (4.0 * alpha) - mu, 0.0), axis=0)
            best = np.argmin(total)
            low, high = thetas[max(best - 1, 0)], thetas[min(best + 1, 1000)]
        assert_allclose(found[i], total.min(), rtol=1e-13)


@pytest.mark.parametrize("name", PENALTIES)
def test_support_function_is_the_supremum_over_the_ball(name):
    # sup s·w − h(w) by sequential quadratic programming over w = u − v, u, v ≥ 0.
    penalty, ball = PENALTIES[name], weighted_ball(0.9, rows=ROWS)
    s = points_of(9, 2.0)
    s[:, BOUND:] = np.clip(s[:, BOUND:], -0.45, 0.45) * (name != "least_squares")
    found = np.asarray(support_function(penalty, ball, s, None))
    slope, curvature, knot = (float(x) for x in (penalty.slope, penalty.curvature, penalty.knot))
    for i in range(ROWS):
        omega = np.asarray(ball.omega)[i]

        def value(uv, i=i):
            u, v = uv[:WIDTH], uv[WIDTH:]
            size = u + v
            excess = np.maximum(size - knot, 0.0)
            signed = s[i] - 2.0 * curvature * excess - slope, -s[i] - 2.0 * curvature * excess - slope
            gain = np.sum(s[i] * (u - v)) - np.sum(slope * size + curvature * excess**2)
            return -gain, -np.concatenate(signed)

        inside = {
            "type": "ineq",
            "fun": lambda uv, omega=omega: 0.9 - np.concatenate([omega, omega]) @ uv,
            "jac": lambda uv, omega=omega: -np.concatenate([omega, omega]),
        }
        best = minimize(
            value,
            np.full(2 * WIDTH, 1e-3),
            jac=True,
            bounds=[(0.0, 50.0)] * (2 * WIDTH),
            constraints=[inside],
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
        )
        assert_allclose(found[i], -best.fun, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", [*CURVED, "l1"])
def test_fenchel_young_with_equality_at_the_joint_prox(name):
    # s = (x − w)/τ at w = prox(x) attains g(w) + g*(s) = sᵀw; any other w in the ball stays below.
    penalty, ball, step = PENALTIES[name], weighted_ball(), 0.6
    x = points_of(10, 4.0)
    w = np.asarray(joint_prox(penalty, ball, x, column(step), column(0.0)).point)
    s = (x - w) / step
    # The rounding of x − w may leave the domain of g* on free coordinates with a flat penalty.
    s = np.asarray(dual_scaling(penalty, ball, s, None)) * s
    found = np.asarray(support_function(penalty, ball, s, None))
    gain = np.sum(s * w, axis=1) - np.sum(np.asarray(penalty.value(w)), axis=1)
    assert_allclose(found, gain, rtol=1e-12, atol=1e-13)
    rng = generator(3)
    for _ in range(100):
        v = w * rng.uniform(-1.0, 1.0, size=w.shape)
        below = np.sum(s * v, axis=1) - np.sum(np.asarray(penalty.value(v)), axis=1)
        assert np.all(below <= found + 1e-12)


@pytest.mark.parametrize("name", [*CURVED, "l1"])
def test_user_penalty_has_the_same_support_function_and_scaling(name):
    penalty, ball, s = PENALTIES[name], weighted_ball(), points_of(11, 2.0)
    by_hand = user_penalty(penalty)
    factor = np.asarray(dual_scaling(penalty, ball, s, None))
    assert_allclose(dual_scaling(by_hand, ball, s, None), factor, rtol=1e-12)
    s = (1.0 - 1e-12) * factor * s
    expected = np.asarray(support_function(penalty, ball, s, None))
    found = np.asarray(support_function(by_hand, ball, s, None))
    assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert np.all(found >= expected * (1.0 - 1e-14))  # a search that is not finished errs on the safe side


@pytest.mark.parametrize("name", CURVED)
def test_without_a_ball_it_is_the_conjugate(name):
    s = points_of(12)
    expected = np.sum(np.asarray(PENALTIES[name].conjugate(s)), axis=1)
    assert_allclose(support_function(PENALTIES[name], None, s, None), expected, rtol=1e-14)
    assert_allclose(support_function(PENALTIES[name], free_ball(), s, None), expected, rtol=1e-14)


def test_coordinates_outside_the_support_do_not_count():
    s, mask = points_of(13, 4.0), generator(5).random((ROWS, WIDTH)) < 0.6
    penalty, ball = PENALTIES["perspective"], weighted_ball()
    inside = support_function(penalty, ball, np.where(mask, s, 0.0), None)
    assert_allclose(support_function(penalty, ball, s, mask), inside, rtol=1e-14)


@pytest.mark.parametrize("kappa", [1e-6, 0.5, 1 - 1e-9, 1e6])
def test_support_function_of_a_linear_objective(kappa):
    # h = 0: the dual norm, κ max |s|/ω.
    s, ball = points_of(14), weighted_ball(kappa)
    s[:, BOUND:] = 0.0
    expected = kappa * np.max(np.abs(s[:, :BOUND]) / ball.omega[:, :BOUND], axis=1)
    assert_allclose(support_function(simjax.NoPenalty(), ball, s, None), expected, rtol=1e-13)


# --- Scaling a dual point into the domain ------------------------------------------------------------------------


def test_dual_scaling_of_l1():
    s, beta = points_of(15), 0.5
    expected = np.minimum(1.0, beta / np.max(np.abs(s[:, BOUND:]), axis=1))
    ball = simjax.L1Ball(0.9, size=BOUND).bound(ROWS, WIDTH)
    found = np.asarray(dual_scaling(simjax.L1(beta), ball, s, None))[:, 0]
    assert_allclose(found, expected, rtol=1e-14)
    assert np.all(np.abs(found[:, None] * s[:, BOUND:]) <= beta)
    everything = np.asarray(dual_scaling(simjax.L1(beta), None, s, None))[:, 0]
    assert_allclose(everything, np.minimum(1.0, beta / np.max(np.abs(s), axis=1)), rtol=1e-14)


def test_dual_scaling_looks_at_the_support_only_and_is_one_where_the_conjugate_is_finite():
    s, mask = points_of(16, 5.0), np.zeros((ROWS, WIDTH), dtype=bool)
    assert_array_equal(dual_scaling(simjax.L1(0.5), None, s, mask), np.ones((ROWS, 1)))
    for name in CURVED:
        assert_array_equal(dual_scaling(PENALTIES[name], None, s, None), np.ones((ROWS, 1)))
    assert_array_equal(dual_scaling(user_penalty(Squares(0.5)), None, s, None), np.ones((ROWS, 1)))


def test_dual_scaling_of_a_user_penalty_with_a_bounded_domain():
    s = points_of(17, 3.0)
    found = np.asarray(dual_scaling(user_penalty(Huber()), None, s, None))[:, 0]
    assert_allclose(found, np.minimum(1.0, 1.0 / np.max(np.abs(s), axis=1)), rtol=1e-14)
    assert np.all(np.isfinite(np.asarray(Huber().conjugate(found[:, None] * s))))


# --- Precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("radius", [None, 0.9, 1e3])
def test_numpy_float32_stays_float32(name, radius):
    penalty, x = PENALTIES[name], points_of(18).astype(np.float32)
    ball = None if radius is None else weighted_ball(radius)
    step, theta = np.full((ROWS, 1), 0.7, np.float32), np.zeros((ROWS, 1), np.float32)
    found = joint.joint_prox(penalty, ball, x, step, theta)
    expected = joint.joint_prox(penalty, ball, x.astype(np.float64), step.astype(np.float64), theta.astype(np.float64))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for result in (conjugate.support_function(penalty, ball, x, None), conjugate.dual_scaling(penalty, ball, x, None)):
        assert result.dtype == np.float32


@pytest.mark.parametrize("name", PENALTIES)
def test_numpy_joint_prox_is_feasible_and_exactly_sparse(name):
    ball, scales = weighted_ball(), np.array([[1e-9], [1.0], [30.0], [1e6], [1e12]])
    found = joint.joint_prox(PENALTIES[name], ball, scales * points_of(3), np.full((ROWS, 1), 0.7), np.zeros((ROWS, 1)))
    assert np.all(ball.norm(found.point) <= ball.radius * (1.0 + 8e-16))
    if name in ("l1", "least_squares"):
        assert np.all(np.count_nonzero(found.point[1:, :BOUND] == 0.0, axis=1) > 0)


# --- Supports ----------------------------------------------------------------------------------------------------


def test_hollow_support():
    expected = np.array([[0, 1, 1, 1, 1], [1, 0, 1, 1, 1], [1, 1, 0, 1, 1]], dtype=bool)
    assert_array_equal(hollow_support(3, 2), expected)


def test_feedforward_support():
    # Hidden layers of widths 1 (first) and 2 (last), the last one first in the stack; one input.
    expected = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=bool)
    assert_array_equal(feedforward_support([1, 2], 1), expected)
    a = feedforward_support([3, 2, 4], 5)[:, :9].astype(float)
    assert_array_equal(np.linalg.matrix_power(a, 3), np.zeros((9, 9)))  # nilpotent: well-posed for any norm
    assert np.any(np.linalg.matrix_power(a, 2))


def test_ball_is_traceable_and_sees_finite_radii_only():
    ball = RowBound(jnp.ones((1, 3)), jnp.array([[1.0], [jnp.inf]]), 3)
    norm = jax.jit(lambda ball, w: ball.norm(w))(ball, jnp.ones((2, 3)))
    assert_array_equal(norm, [[3.0], [3.0]])
    assert_array_equal(np.asarray(ball.sees), [[True] * 3, [False] * 3])
