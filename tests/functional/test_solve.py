"""The functional solver: the host's answers, under every transformation of JAX, with derivatives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import BOUND, PENALTIES, ROWS, TALL, WIDE, WIDTH, Huber, generator, on_eight_devices, sparse_rows

import simjax
from simjax import functional
from simjax.rows.penalties import PiecewisePenalty


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def radius(kind):
    return {"ball": 0.8, "inactive": 80.0, "free": np.inf}[kind]


@pytest.mark.parametrize("m", [WIDE, pytest.param(TALL, marks=pytest.mark.slow)])
def test_it_gives_the_answers_of_the_host(m):
    design, targets = sparse_rows(m)
    for kind in ("ball", "inactive", "free"):
        for name, penalty in PENALTIES.items():
            if name == "least_squares" and m < WIDTH and kind != "ball":
                continue  # not unique
            constraint = simjax.L1Ball(radius(kind), size=BOUND)
            found = functional.solve_rows(design, targets, penalty=penalty, constraint=constraint, tol=1e-10)
            host = simjax.solve_rows(design, targets, penalty=penalty, constraint=constraint, tol=1e-12)
            assert set(functional.status_names(found.status)) == {"SOLVED"}, (name, kind)
            np.testing.assert_allclose(found.weights, host.weights, atol=1e-6, err_msg=f"{name}, {kind}")
            # The host certifies them from the dual points that came with them, and finds the gap that was claimed.
            judged = simjax.certify(host.problem, found.weights, [found.dual])
            assert judged.relative_gap.max() <= 1.1e-10
            assert judged.infeasibility.max() <= 1e-12


@pytest.mark.slow
def test_exact_matching_and_a_support():
    rng = generator(5)
    design, support = rng.normal(size=(WIDE, WIDTH)), rng.random((ROWS, WIDTH)) < 0.9
    truth = rng.normal(size=(ROWS, WIDTH)) * support
    rows = {"penalty": simjax.ElasticNet(0.3, 0.2), "support": support, "matching": "exact"}
    found = functional.solve_rows(design, design @ truth.T, tol=1e-9, **rows)
    host = simjax.solve_rows(design, design @ truth.T, tol=1e-9, **rows)
    assert set(functional.status_names(found.status)) == {"SOLVED"}
    np.testing.assert_allclose(found.weights, host.weights, atol=1e-8)
    assert np.all(np.asarray(found.weights)[~support] == 0.0)


@pytest.mark.slow
def test_vmap_over_designs_is_a_call_for_each_and_compiles_once():
    rng = generator(6)
    designs = rng.normal(size=(64, 100, 50))
    truths = rng.normal(size=(64, 10, 50)) * (rng.random((64, 10, 50)) < 0.2)
    targets = np.einsum("bmd,brd->bmr", designs, truths) + 0.1 * rng.normal(size=(64, 100, 10))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def solve(design, targets):
        return functional.solve_rows(design, targets, penalty=simjax.L1(3.0), tol=1e-9)

    one_by_one = [solve(*each) for each in zip(designs, targets)]
    at_once = jax.jit(jax.vmap(lambda X, T: functional.solve_rows(X, T, penalty=simjax.L1(3.0), tol=1e-9)))(
        designs, targets
    )
    assert np.all(np.asarray(at_once.status) == 0)
    for name in ("weights", "dual"):
        each = np.stack([getattr(found, name) for found in one_by_one])
        np.testing.assert_allclose(getattr(at_once, name), each, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_inside_scan_and_over_alphas():
    design, targets = sparse_rows(WIDE)
    alphas = jnp.geomspace(0.1, 3.0, 4)

    def solved(alpha):
        penalty, ball = simjax.L1(alpha), simjax.L1Ball(0.8, size=BOUND)
        return functional.solve_rows(design, targets, penalty=penalty, constraint=ball, tol=1e-10).weights

    _, scanned = jax.lax.scan(lambda _, alpha: (None, solved(alpha)), None, alphas)
    at_once = jax.jit(jax.vmap(solved))(alphas)
    np.testing.assert_allclose(scanned, at_once, atol=1e-10)
    host = simjax.solve_rows(
        design, targets, penalty=simjax.L1(float(alphas[2])), constraint=simjax.L1Ball(0.8, size=BOUND), tol=1e-12
    )
    np.testing.assert_allclose(at_once[2], host.weights, atol=1e-7)


@pytest.mark.slow
def test_single_precision_stays_single_and_users_may_be_strict():
    design, targets = sparse_rows(WIDE)
    ball = simjax.L1Ball(0.8, size=BOUND)
    host = simjax.solve_rows(design, targets, penalty=simjax.L1(0.5), constraint=ball, tol=1e-10)
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.debug_nans(True),
    ):
        single = jnp.asarray(design, np.float32), jnp.asarray(targets, np.float32)
        found = functional.solve_rows(*single, penalty=simjax.L1(0.5), constraint=ball)
    assert {leaf.dtype for leaf in found[:3]} == {np.dtype(np.float32)}
    assert set(functional.status_names(found.status)) == {"SOLVED"}
    judged = simjax.certify(host.problem, found.weights, [found.dual])
    assert judged.relative_gap.max() <= 2e-4
    np.testing.assert_allclose(found.weights, host.weights, atol=1e-3)


SHARDED = """
import jax, numpy as np, simjax
from jax.sharding import PartitionSpec as P
from helpers import BOUND, generator, sparse_rows
from simjax import functional

assert len(jax.devices()) == 8
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
with jax.enable_x64(True):
    design, targets = sparse_rows(25, rows=40)

    def solve(design, targets, alpha):
        ball = simjax.L1Ball(0.8, size=BOUND)
        return functional.solve_rows(design, targets, penalty=simjax.L1(alpha), constraint=ball, tol=1e-10)

    sharded = jax.jit(
        jax.shard_map(solve, mesh=mesh, in_specs=(P(), P(None, "rows"), P()), out_specs=P("rows"))
    )
"""

EIGHT_DEVICES = """
    compiled = sharded.lower(design, targets, 0.3).compile()
    one, many = jax.jit(solve)(design, targets, 0.3), compiled(design, targets, 0.3)
    assert np.all(one.status == 0) and np.all(many.status == 0)
    np.testing.assert_allclose(many.weights, one.weights, atol=1e-10)
    text = compiled.as_text()
    assert "while" in text
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in text, collective
print("eight devices agree")
"""

SLOPES_ON_EIGHT_DEVICES = """
    def slope(solve):
        return jax.jit(jax.grad(lambda alpha: (solve(design, targets, alpha).weights ** 2).sum()))(0.3)

    np.testing.assert_allclose(slope(sharded), slope(solve), rtol=1e-10)
print("and their derivatives")
"""


def test_rows_over_eight_devices_exchange_nothing():
    assert "eight devices agree" in on_eight_devices(SHARDED + EIGHT_DEVICES)


@pytest.mark.slow
def test_derivatives_over_eight_devices():
    assert "and their derivatives" in on_eight_devices(SHARDED + SLOPES_ON_EIGHT_DEVICES)


@pytest.mark.slow
def test_rows_that_cannot_be_solved_say_so_and_have_no_derivative():
    design, targets = sparse_rows(WIDE)
    targets[0, 1] = np.nan

    def weights(alpha):
        return functional.solve_rows(design, targets, penalty=simjax.L1(alpha)).weights

    found = functional.solve_rows(design, targets, penalty=simjax.L1(0.5))
    assert list(functional.status_names(found.status)) == ["SOLVED", "NONFINITE"] + ["SOLVED"] * (ROWS - 2)
    assert np.all(np.asarray(found.weights)[1] == 0.0)
    assert np.isinf(found.relative_gap[1])
    derivative = np.asarray(jax.jacfwd(weights)(0.5))
    assert np.all(np.isnan(derivative[1]))
    assert np.all(np.isfinite(np.delete(derivative, 1, axis=0)))
    short = functional.solve_rows(design, np.nan_to_num(targets), penalty=simjax.L1(0.5), tol=1e-14, max_iters=5)
    assert np.all(np.asarray(short.iterations) == 5)
    assert set(functional.status_names(short.status)) == {"MAX_ITERS"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"design": np.zeros(3)}, ValueError, "design must be a matrix"),
        ({"targets": np.zeros((WIDE + 1, 2))}, ValueError, f"targets must have as many rows as design .{WIDE}"),
        ({"design": np.zeros((WIDE, WIDTH), complex)}, TypeError, "design must be an array of real"),
        ({"loss_weight": np.ones(3)}, ValueError, "loss_weight must be a scalar or"),
        ({"penalty": object()}, TypeError, "penalty must be one of simjax's"),
        ({"penalty": Huber()}, TypeError, "got Huber: a penalty of your own is for simjax.solve_rows"),
        ({"penalty": simjax.L1(np.ones(3))}, ValueError, "penalty parameters must be"),
        ({"constraint": 1.0}, TypeError, "constraint must be an L1Ball"),
        ({"support": np.ones(WIDTH)}, ValueError, "support must be a boolean mask"),
        ({"matching": "exactly"}, ValueError, "matching must be one of"),
        ({"tol": -1.0}, ValueError, "tol must be a positive number"),
        ({"max_iters": 0}, ValueError, "max_iters must be at least 1"),
    ],
)
def test_bad_arguments(change, error, message):
    design, targets = sparse_rows(WIDE)
    arguments = {"design": design, "targets": targets, "penalty": simjax.L1(0.5), **change}
    with pytest.raises(error, match=message):
        functional.solve_rows(arguments.pop("design"), arguments.pop("targets"), **arguments)


# --- Derivatives -------------------------------------------------------------------------------------------------

BUILD = {
    "l1": lambda alpha, mu: simjax.L1(alpha),
    "perspective": simjax.Perspective,
    "elastic_net": simjax.ElasticNet,
    "ridge": lambda alpha, mu: simjax.Ridge(alpha),
    "least_squares": lambda alpha, mu: simjax.NoPenalty(),
}


def parameters(m, kind, rows):
    design, targets = sparse_rows(m, rows=rows)
    return {
        "design": jnp.asarray(design),
        "targets": jnp.asarray(targets),
        "loss_weight": jnp.linspace(0.7, 1.3, rows),
        "alpha": jnp.asarray(0.4),
        "mu": jnp.asarray(0.1),
        "radius": jnp.asarray(radius(kind)),
    }


def objective(name, m, rows, matching="penalty"):
    """A linear functional of weights and dual points, as a function of everything."""
    rng = generator(9)
    against = rng.normal(size=(rows, WIDTH)), rng.normal(size=(rows, m))

    def value(p):
        found = functional.solve_rows(
            p["design"],
            p["targets"],
            loss_weight=p["loss_weight"],
            penalty=BUILD[name](p["alpha"], p["mu"]),
            constraint=simjax.L1Ball(p["radius"], size=BOUND),
            matching=matching,
            tol=1e-12,
        )
        dual = jnp.sum(against[1] * found.dual) if matching == "penalty" else 0.0
        return jnp.sum(against[0] * found.weights) + dual

    return value


def assert_differences(value, point, names, tol=1e-6):
    """Forward and reverse mode against central differences, along one random direction for each argument."""
    rng, step = generator(10), 1e-6
    gradient = jax.grad(value)(point)
    for name in names:
        direction = jnp.asarray(rng.normal(size=point[name].shape))
        ahead, behind = (value({**point, name: point[name] + sign * step * direction}) for sign in (1.0, -1.0))
        expected = float(ahead - behind) / (2.0 * step)
        scale = max(1.0, abs(expected))
        reverse = float(jnp.sum(gradient[name] * direction))
        still = {**jax.tree.map(jnp.zeros_like, point), name: direction}
        forward = float(jax.jvp(value, (point,), (still,))[1])
        assert abs(reverse - expected) <= tol * scale, (name, reverse, expected)
        assert abs(forward - reverse) <= 1e-10 * scale, (name, forward, reverse)


@pytest.mark.slow
def test_derivatives_of_one_penalty():
    point = parameters(WIDE, "ball", 3)
    assert_differences(objective("perspective", WIDE, 3), point, ("design", "alpha", "mu", "radius"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ball", "inactive"])
@pytest.mark.parametrize("m", [WIDE, TALL])
def test_derivatives_are_those_of_finite_differences(m, kind):
    point = parameters(m, kind, 3)
    for name in BUILD:
        if name == "least_squares" and m < WIDTH and kind == "inactive":
            continue  # not unique
        names = [key for key in point if key != "mu" or name in ("perspective", "elastic_net")]
        names = [key for key in names if key != "alpha" or name != "least_squares"]
        assert_differences(objective(name, m, 3), point, names)
    # What does not bind has no say.
    moved = jax.grad(objective("l1", m, 3))(point)["radius"]
    assert (float(moved) == 0.0) == (kind == "inactive")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weighted", "metzler"])
def test_derivatives_of_weighted_balls_and_metzler_rows(kind):
    """With respect to ω too; of a Metzler row, what tilts the constraint is its diagonal, which is no number."""
    rows, rng = 3, generator(11)
    design, targets = sparse_rows(WIDE, rows=rows)
    against = rng.normal(size=(rows, WIDTH)), rng.normal(size=(rows, WIDE))

    def value(p):
        if kind == "metzler":
            diagonal = np.arange(rows)
            weights = p["omega"].at[diagonal, diagonal].set(1.0)
            constraint = simjax.MetzlerRow(p["radius"], diagonal, size=BOUND, weights=weights)
        else:
            constraint = simjax.L1Ball(p["radius"], size=BOUND, weights=p["omega"])
        penalty = simjax.Perspective(p["alpha"], 0.1)
        found = functional.solve_rows(p["design"], p["targets"], penalty=penalty, constraint=constraint, tol=1e-12)
        return jnp.sum(against[0] * found.weights) + jnp.sum(against[1] * found.dual)

    point = {
        "design": jnp.asarray(design),
        "targets": jnp.asarray(targets),
        "alpha": jnp.asarray(0.2),
        "radius": jnp.asarray([0.3, 0.4, 50.0]),  # the last one does not bind
        "omega": jnp.asarray(rng.uniform(0.5, 1.5, (rows, BOUND))),
    }
    assert_differences(value, point, tuple(point))
    slope = jax.grad(value)(point)
    assert np.all(np.asarray(slope["radius"] != 0.0) == [True, True, False])
    assert np.all(np.asarray(slope["omega"])[2] == 0.0)


def test_a_class_of_the_family_is_taken_and_solved_as_what_it_hands_on():
    class Half(PiecewisePenalty):
        """h(w) = α/2 |w|."""

        def __init__(self, alpha):
            super().__init__(np.asarray(0.5 * alpha), np.zeros(()), np.zeros(()))

    design, targets = sparse_rows(WIDE)
    own, named = (
        functional.solve_rows(design, targets, penalty=penalty, constraint=simjax.L1Ball(0.8, size=BOUND), tol=1e-10)
        for penalty in (Half(1.0), simjax.L1(0.5))
    )
    np.testing.assert_array_equal(own.weights, named.weights)


@pytest.mark.slow
def test_derivatives_under_exact_matching():
    point = parameters(WIDE, "inactive", 3)
    assert_differences(objective("elastic_net", WIDE, 3, "exact"), point, ("design", "targets", "alpha", "mu"))


@pytest.mark.slow
def test_second_derivatives():
    point = parameters(WIDE, "ball", 3)
    value = objective("perspective", WIDE, 3)

    def slope(alpha):
        return jax.grad(lambda alpha: value({**point, "alpha": alpha}))(alpha)

    step = 1e-5
    expected = (slope(0.4 + step) - slope(0.4 - step)) / (2.0 * step)
    np.testing.assert_allclose(jax.jacfwd(slope)(0.4), expected, rtol=1e-5)


def test_a_kink_has_the_derivative_of_the_side_that_was_found():
    """One weight: w = soft(t, α/2) has slopes 0 and −½ in α at α = 2t, and is 0 there."""
    design, targets = jnp.eye(2), jnp.array([[1.0], [3.0]])

    def weights(alpha):
        return functional.solve_rows(design, targets, penalty=simjax.L1(alpha), tol=1e-10).weights[0]

    moving = jax.jit(lambda alpha: jax.jvp(weights, (alpha,), (1.0,)))
    value, slope = map(np.stack, zip(*map(moving, (1.0, 2.0, 3.0))))
    np.testing.assert_allclose(value, [[0.5, 2.5], [0.0, 2.0], [0.0, 1.5]], atol=1e-9)
    np.testing.assert_allclose(slope[[0, 2]], [[-0.5, -0.5], [0.0, -0.5]], atol=1e-9)
    assert min(abs(slope[1, 0]), abs(slope[1, 0] + 0.5)) <= 1e-9
