"""Penalties: value, prox and conjugate against their definitions, minimised by brute force."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import PENALTIES, ByHand, Huber, NonnegativeL1, Squares
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize_scalar

import simjax
from simjax.rows.own_penalty import Opaque, ScaledPenalty, check_penalty, traceable
from simjax.rows.penalties import OBJECTIVES, PiecewisePenalty

EXTENDED = PENALTIES | {"huber": Huber(0.7), "nonnegative": NonnegativeL1(0.3), "squares": Squares([0.6])}
POINTS = np.array([-30.0, -3.0, -1.0, -0.6, -0.1, -1e-4, 0.0, 1e-4, 0.1, 0.3, 0.5, 1.0, 2.0, 40.0])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def scalar(function):
    return lambda x: float(np.asarray(function(jnp.array([[x]]))).squeeze())


def minimum(function, low, high):
    """The least value of a convex function, possibly infinite in places, on an interval: a grid, refined five times."""
    for _ in range(5):
        grid = np.linspace(low, high, 1001)
        values = np.asarray(function(jnp.asarray(grid)[:, None]))[:, 0]
        best = int(np.argmin(values))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
    return values[best]


# --- Definitions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "mu"), [(0.5, 0.5), (2.0, 0.01), (0.01, 2.0), (1e-3, 1e-5)])
def test_perspective_is_the_minimum_over_t(alpha, mu):
    value = simjax.Perspective(alpha, mu).value
    for w in (1e-3, 0.05, 0.3, 1.0, 2.0, 20.0):
        found = minimize_scalar(
            lambda t, w=w: alpha * w * w / t + mu * t, bounds=(1e-12, 1.0), options={"xatol": 1e-13}
        )
        least = min(found.fun, alpha * w * w + mu)  # the end t = 1, which the bounded search only approaches
        assert_allclose(value(w), least, rtol=1e-9)
        assert_array_equal(value(-w), value(w))


def test_perspective_has_the_prox_and_conjugate_of_the_reverse_huber_function():
    alpha, mu, tau = 0.7, 0.2, 0.9
    penalty, knot = simjax.Perspective(alpha, mu), np.sqrt(mu / alpha)
    s = np.maximum(np.abs(POINTS) - 2 * tau * np.sqrt(alpha * mu), 0.0)
    prox = np.sign(POINTS) * np.where(s <= knot, s, np.abs(POINTS) / (1.0 + 2.0 * tau * alpha))
    assert_allclose(penalty.prox(POINTS, tau), prox, rtol=1e-14, atol=1e-16)
    assert_allclose(penalty.conjugate(POINTS), np.maximum(POINTS**2 / (4 * alpha) - mu, 0.0), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("penalty", "formula"),
    [
        (simjax.L1(0.5), lambda w: 0.5 * abs(w)),
        (simjax.ElasticNet(0.3, 0.2), lambda w: 0.3 * abs(w) + 0.2 * w**2),
        (simjax.Ridge(0.5), lambda w: 0.5 * w**2),
        (simjax.NoPenalty(), lambda w: 0.0 * w),
    ],
)
def test_values(penalty, formula):
    assert_allclose(penalty.value(POINTS), formula(POINTS), rtol=1e-15)


def test_mu_defaults_to_alpha():
    assert_array_equal(simjax.Perspective(0.3).value(POINTS), simjax.Perspective(0.3, 0.3).value(POINTS))
    assert_array_equal(simjax.ElasticNet(0.3).value(POINTS), simjax.ElasticNet(0.3, 0.3).value(POINTS))


def test_perspective_at_the_ends_of_its_parameters():
    free_t = simjax.Perspective(0.5, 0.0)  # μ = 0: t = 1 costs nothing, so that only α w² is left
    assert_allclose(free_t.value(POINTS), 0.5 * POINTS**2, rtol=1e-15)
    nothing = simjax.Perspective(0.0, 0.5)  # α = 0: t → 0 makes everything free
    assert_array_equal(nothing.value(POINTS), np.zeros_like(POINTS))
    assert_array_equal(nothing.prox(POINTS, 3.0), POINTS)


def test_objectives_build_the_penalties_of_their_names():
    assert set(OBJECTIVES) == {"perspective", "l1", "elastic_net", "ridge", "least_squares"}
    expected = {
        "perspective": simjax.Perspective(0.3, 0.2),
        "l1": simjax.L1(0.3),
        "elastic_net": simjax.ElasticNet(0.3, 0.2),
        "ridge": simjax.Ridge(0.3),
        "least_squares": simjax.NoPenalty(),
    }
    for name, build in OBJECTIVES.items():
        assert_array_equal(build(0.3, 0.2).value(POINTS), expected[name].value(POINTS))


# --- Brute force -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXTENDED)
@pytest.mark.parametrize("step", [0.05, 1.0, 20.0])
def test_prox_minimises(name, step):
    penalty = EXTENDED[name]
    for x in POINTS[[0, 1, 3, 6, 9, 11, 12]]:

        def objective(w, x=x):
            return 0.5 * (w - x) ** 2 + step * penalty.value(w)

        w = scalar(lambda point: penalty.prox(point, jnp.full_like(point, step)))(x)
        least = minimum(objective, -abs(x) - 1.0, abs(x) + 1.0)
        assert scalar(objective)(w) <= least + 1e-13 * (1.0 + abs(least))
        assert abs(w) <= abs(x)
        assert w * x >= 0.0


@pytest.mark.parametrize("name", EXTENDED)
def test_conjugate_is_the_supremum(name):
    penalty = EXTENDED[name]
    for s in (-3.0, -0.9, -0.3, 0.0, 0.2, 0.4, 0.65, 5.0):
        conjugate = scalar(penalty.conjugate)(s)
        near = -minimum(lambda w, s=s: penalty.value(w) - s * w, -100.0, 100.0)
        if np.isfinite(conjugate):
            assert_allclose(conjugate, near, rtol=1e-9, atol=1e-12)
        else:
            # Outside the domain the supremum grows with the interval, without end.
            assert -minimum(lambda w, s=s: penalty.value(w) - s * w, -1e6, 1e6) > 1e3 * max(near, 1.0)


@pytest.mark.parametrize("name", PENALTIES)
def test_generalised_derivatives_match_finite_differences(name):
    penalty, step, h = PENALTIES[name], 0.8, 1e-6
    x = np.linspace(-4.0, 4.0, 41) + 0.0123  # away from the kinks
    slope = (penalty.prox(x + h, step) - penalty.prox(x - h, step)) / (2 * h)
    assert_allclose(penalty.prox_slope(x, step), slope, atol=1e-8)
    if np.all(np.asarray(penalty.curvature) > 0.0):
        slope = (penalty.conjugate(x + h) - penalty.conjugate(x - h)) / (2 * h)
        assert_allclose(penalty.conjugate_slope(x), np.abs(slope), atol=1e-8)


@pytest.mark.parametrize("name", PENALTIES)
def test_scaled_penalty_is_the_penalty_in_other_units(name):
    penalty, p, q = PENALTIES[name], 0.3, 7.0
    by_parameters = penalty.scaled(p, q)
    by_hand = ScaledPenalty(p, q, Opaque(penalty))
    assert_allclose(by_parameters.value(POINTS), q * penalty.value(p * POINTS), rtol=1e-13)
    for method, arguments in (("value", ()), ("prox", (0.4,)), ("prox_slope", (0.4,)), ("conjugate", ())):
        x = POINTS if method != "conjugate" else 0.9 * POINTS
        expected = np.asarray(getattr(by_parameters, method)(x, *arguments))
        if method == "prox_slope":  # at the kinks any element of the generalised derivative is right
            inside = np.abs(np.asarray(penalty.prox(p * x, 0.4 * q * p * p))) > 1e-3
            assert_allclose(np.asarray(by_hand.prox_slope(x, 0.4))[inside], expected[inside], rtol=1e-12)
        else:
            assert_allclose(getattr(by_hand, method)(x, *arguments), expected, rtol=1e-12, atol=1e-15)


def test_prox_of_l1_is_exactly_zero_below_the_threshold():
    prox = np.asarray(simjax.L1(0.5).prox(np.array([0.5, -0.5, np.nextafter(0.5, 1.0)]), 1.0))
    assert_array_equal(prox[:2], [0.0, 0.0])
    assert prox[2] > 0.0


# --- Parameters per coordinate and per row -----------------------------------------------------------------------


def test_parameters_broadcast_per_coordinate_and_per_row():
    weights = np.linspace(-2.0, 2.0, 6).reshape(2, 3)
    per_coordinate, per_row = np.array([0.1, 0.2, 0.3]), np.arange(1.0, 7.0).reshape(2, 3)
    assert_allclose(simjax.L1(per_coordinate).value(weights), per_coordinate * np.abs(weights))
    assert_allclose(simjax.L1(per_row).value(weights), per_row * np.abs(weights))
    mixed = simjax.ElasticNet(per_coordinate, 0.5)
    assert_allclose(mixed.value(weights), per_coordinate * np.abs(weights) + 0.5 * weights**2)


def test_rows_takes_what_differs_from_row_to_row():
    per_row = np.arange(1.0, 7.0).reshape(2, 3)
    weights = np.ones((1, 3))
    assert_array_equal(simjax.L1(per_row).rows(np.array([1])).value(weights), per_row[1:])
    assert_array_equal(simjax.L1(0.5).rows(np.array([1])).value(weights), np.full((1, 3), 0.5))
    assert_array_equal(simjax.L1([1.0, 2.0, 3.0]).rows(np.array([1])).value(weights), [[1.0, 2.0, 3.0]])


@pytest.mark.parametrize("name", PENALTIES)
def test_float32_stays_float32_outside_float64(name):
    with jax.enable_x64(False):
        x = jnp.asarray(POINTS, jnp.float32)
        penalty = PENALTIES[name]
        for result in (penalty.value(x), penalty.prox(x, jnp.float32(0.5)), penalty.conjugate(x)):
            assert result.dtype == jnp.float32


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-200, 1e200])
@pytest.mark.parametrize("build", [simjax.L1, simjax.Perspective, simjax.ElasticNet, simjax.Ridge])
def test_extreme_parameters_give_no_nan(build, size):
    penalty = build(size)
    for result in (penalty.value(POINTS), penalty.prox(POINTS, 1.0), penalty.conjugate(POINTS)):
        assert not np.any(np.isnan(np.asarray(result)))


def test_negative_zero_is_zero():
    for penalty in PENALTIES.values():
        assert scalar(penalty.value)(-0.0) == 0.0
        assert scalar(lambda x, penalty=penalty: penalty.prox(x, 1.0))(-0.0) == 0.0
        assert scalar(penalty.conjugate)(-0.0) == 0.0


@pytest.mark.parametrize("name", PENALTIES)
def test_numpy_arrays_keep_their_precision(name):
    penalty, step = PENALTIES[name], np.float32(0.5)
    for dtype in (np.float32, np.float64):
        x = POINTS[:, None].astype(dtype)
        for result in (
            penalty.value(x),
            penalty.prox(x, step),
            penalty.prox_slope(x, step),
            penalty.conjugate(x),
            penalty.conjugate_slope(x),
        ):
            assert type(result) is np.ndarray
            assert result.dtype == dtype


def test_a_penalty_of_the_user_s_own_takes_numpy_arrays_and_gives_them():
    penalty, x = traceable(Huber(0.7)), POINTS[:, None]
    expected = {"value": Huber(0.7).value(jnp.asarray(x)), "conjugate": Huber(0.7).conjugate(jnp.asarray(x))}
    with jax.enable_x64(False):  # whatever the caller's precision is
        for name, values in expected.items():
            found = getattr(penalty, name)(x)
            assert type(found) is np.ndarray
            assert found.dtype == np.float64
            assert_array_equal(found, values)
        assert_array_equal(penalty.prox_slope(np.array([[0.5], [3.0]]), 1.0), [[1.0 / 1.7], [1.0]])


# --- Names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("penalty", "kind", "text"),
    [
        (simjax.L1(1e-3), simjax.L1, "L1(alpha=0.001)"),
        (simjax.Perspective(0.5, 0.1), simjax.Perspective, "Perspective(alpha=0.5, mu=0.1)"),
        (simjax.ElasticNet(0.5), simjax.ElasticNet, "ElasticNet(alpha=0.5, mu=0.5)"),
        (simjax.Ridge(2), simjax.Ridge, "Ridge(alpha=2)"),
        (simjax.NoPenalty(), simjax.NoPenalty, "NoPenalty()"),
        (simjax.L1(np.ones((6, 20))), simjax.L1, "L1(alpha=<array (6, 20)>)"),
        (simjax.L1(0.5).scaled(2.0, 3.0), PiecewisePenalty, "PiecewisePenalty(slope=3, curvature=0, knot=0)"),
    ],
)
def test_penalties_say_what_they_are(penalty, kind, text):
    assert type(penalty) is kind
    assert isinstance(penalty, PiecewisePenalty)
    assert repr(penalty) == text


def test_penalties_and_constraints_compare_by_identity():
    for build in (simjax.L1, simjax.L1Ball):
        one, other = build(np.ones(3)), build(np.ones(3))
        assert one == one
        assert one != other
        assert len({one, other}) == 2


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_pytrees_and_can_be_copied(name):
    penalty = PENALTIES[name]
    leaves, structure = jax.tree.flatten(penalty)
    again = jax.tree.unflatten(structure, leaves)
    for other in (again, pickle.loads(pickle.dumps(penalty)), copy.deepcopy(penalty)):
        assert_array_equal(other.value(POINTS), penalty.value(POINTS))
    assert repr(copy.copy(penalty)) == repr(penalty)


def test_rows_of_a_scaled_penalty_are_its_rows():
    scales = np.array([[1.0], [2.0], [3.0]])
    scaled = ScaledPenalty(scales, 10.0 * scales, Opaque(Squares(scales)))
    x = np.full((2, 4), 0.5)
    index = np.array([2, 0])
    assert_allclose(scaled.rows(index).value(x), scaled.value(np.full((3, 4), 0.5))[index])


# --- Bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [simjax.L1, simjax.Perspective, simjax.ElasticNet, simjax.Ridge])
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (-0.1, ValueError),
        ([0.1, -1e-300], ValueError),
        (np.nan, ValueError),
        (np.inf, ValueError),
        (np.zeros((2, 2, 2)), ValueError),
        ("0.1", TypeError),
        (None, TypeError),
        (0.1j, TypeError),
        (np.array([object()]), TypeError),
    ],
)
def test_bad_alpha(build, bad, error):
    with pytest.raises(error, match="alpha"):
        build(bad)


@pytest.mark.parametrize("build", [simjax.Perspective, simjax.ElasticNet])
@pytest.mark.parametrize(
    ("bad", "error"), [(-0.1, ValueError), (np.nan, ValueError), (np.inf, ValueError), ("a", TypeError)]
)
def test_bad_mu(build, bad, error):
    with pytest.raises(error, match="mu"):
        build(0.1, bad)


@pytest.mark.parametrize("build", [simjax.Perspective, simjax.ElasticNet])
def test_alpha_and_mu_that_do_not_fit_each_other(build):
    with pytest.raises(ValueError, match="mu"):
        build([0.1, 0.2], [0.1, 0.2, 0.3])


# --- A user's own penalty ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXTENDED)
def test_check_accepts_consistent_penalties(name):
    check_penalty(EXTENDED[name])
    check_penalty(ByHand(EXTENDED[name]))


@pytest.mark.parametrize("missing", ["value", "prox", "conjugate"])
def test_check_names_the_missing_function(missing):
    functions = {name: getattr(Huber(), name) for name in ("value", "prox", "conjugate") if name != missing}
    with pytest.raises(TypeError, match=f"lacks {missing}"):
        check_penalty(type("Partial", (), functions)())
    with pytest.raises(TypeError, match="value, prox, conjugate"):
        check_penalty(object())
    with pytest.raises(TypeError, match=r"such as simjax\.L1\(0\.1\), got 'l1'"):
        check_penalty("l1")


def test_the_base_class_says_what_a_subclass_must_supply():
    class Partial(simjax.Penalty):
        pass

    for call in (lambda p: p.value(1.0), lambda p: p.prox(1.0, 1.0), lambda p: p.conjugate(1.0)):
        with pytest.raises(TypeError, match="Partial has no"):
            call(Partial())
    with pytest.raises(TypeError, match="Partial has no"):
        check_penalty(Partial())


class Altered(Huber):
    """Huber with one function replaced by a wrong one."""

    def __init__(self, **functions):
        super().__init__()
        self.__dict__.update(functions)


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": lambda w: 0.1 + w * w},  # h(0) ≠ 0
        {"value": lambda w: (w - 1.0) ** 2 - 1.0},  # smallest elsewhere
        {"prox": lambda x, step: x / (1.0 + 2.0 * step)},  # of another function
        {"conjugate": lambda s: 2.0 * s * s},
        {"conjugate": lambda s: jnp.full_like(s, jnp.nan)},
        {"value": lambda w: jnp.full_like(w, jnp.nan)},
    ],
)
def test_check_rejects_functions_that_contradict_each_other(wrong):
    with pytest.raises(ValueError, match="penalty Altered"):
        check_penalty(Altered(**wrong))


@pytest.mark.parametrize("alpha", [1.0, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-6, 1e-12])
def test_check_allows_for_the_rounding_of_a_small_slope(alpha):
    check_penalty(ByHand(simjax.L1(alpha)))
    check_penalty(NonnegativeL1(alpha))


def test_check_rejects_a_penalty_that_is_wrong_at_other_steps_only():
    # Right for step = 1 and no other, as a prox that ignores its step would be.
    with pytest.raises(ValueError, match="penalty Altered"):
        check_penalty(Altered(prox=lambda x, step: Huber().prox(x, jnp.ones_like(step))))


def test_piecewise_family_contains_the_built_in_penalties():
    general = PiecewisePenalty(np.array(0.3), np.array(0.2), np.array(0.0))
    assert_array_equal(general.value(POINTS), simjax.ElasticNet(0.3, 0.2).value(POINTS))
