"""Group penalties in the functional solver: the host's answers, and derivatives by the implicit function theorem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import generator

import simjax
from simjax import functional

M, WIDTH, ROWS, SEEN = 24, 18, 4, 11
LABELS = np.array([0, 3, 1, 0, -1, -1, 1, 2, 0, 3, 3, -1, 2, 1, 0, 2, -1, 3])
SUPPORT = generator(8).random((ROWS, WIDTH)) < 0.6


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def samples():
    rng = generator(2)
    design = rng.normal(size=(M, WIDTH)) * np.geomspace(1.0, 30.0, WIDTH)[rng.permutation(WIDTH)]
    truth = rng.normal(size=(ROWS, WIDTH)) * (rng.random((ROWS, 5)) < 0.5)[:, LABELS]
    return design, design @ truth.T / 10.0 + 0.1 * rng.normal(size=(M, ROWS))


def assert_those_of_the_host(**stated):
    design, targets = samples()
    found = functional.solve_rows(design, targets, tol=1e-10, **stated)
    host = simjax.solve_rows(design, targets, tol=1e-10, **stated)
    assert set(functional.status_names(found.status)) == {"SOLVED"}
    np.testing.assert_allclose(found.weights, host.weights, atol=1e-6)
    zero = np.asarray(found.weights) == 0.0
    assert np.any(zero)
    np.testing.assert_array_equal(zero, host.weights == 0.0)
    judged = simjax.certify(host.problem, found.weights, [found.dual])
    assert judged.relative_gap.max() <= 1.1e-10


def test_it_gives_the_answers_of_the_host():
    assert_those_of_the_host(penalty=simjax.GroupL1(3.0, LABELS), constraint=simjax.L1Ball(0.6, size=SEEN))


@pytest.mark.slow
def test_of_other_rows_too():
    assert_those_of_the_host(penalty=simjax.GroupL1(3.0, LABELS, np.ones(4)), support=SUPPORT)
    design, targets = samples()
    stated = {"penalty": simjax.GroupL1(3.0, LABELS), "matching": "exact"}
    found = functional.solve_rows(design[:10], targets[:10], tol=1e-9, **stated)
    host = simjax.solve_rows(design[:10], targets[:10], tol=1e-9, **stated)
    assert set(functional.status_names(found.status)) == {"SOLVED"}
    np.testing.assert_allclose(found.weights, host.weights, atol=1e-7)
    with jax.enable_x64(False):
        single = jnp.asarray(design, np.float32), jnp.asarray(targets, np.float32)
        found = functional.solve_rows(*single, penalty=simjax.GroupL1(3.0, LABELS), tol=1e-3)
    assert {leaf.dtype for leaf in found[:3]} == {np.dtype(np.float32)}
    assert set(functional.status_names(found.status)) == {"SOLVED"}


def test_a_metzler_row_is_refused():
    design, targets = samples()
    metzler = simjax.MetzlerRow(0.5, np.arange(ROWS))
    with pytest.raises(ValueError, match="constraint must not be a MetzlerRow with GroupL1"):
        functional.solve_rows(design, targets, penalty=simjax.GroupL1(1.0, LABELS), constraint=metzler)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["free", "ball", "support", "exact"])
def test_derivatives_are_those_of_finite_differences(kind):
    design, targets = samples()
    if kind == "exact":
        design, targets = design[:10], targets[:10]
    cotangent = jnp.asarray(generator(7).normal(size=(ROWS, WIDTH)))

    def value(alpha, design, targets, loss_weight, radius):
        found = functional.solve_rows(
            design,
            targets,
            loss_weight=loss_weight,
            penalty=simjax.GroupL1(alpha, LABELS),
            constraint=simjax.L1Ball(radius, size=SEEN) if kind == "ball" else None,
            support=SUPPORT if kind == "support" else None,
            matching="exact" if kind == "exact" else "penalty",
            tol=1e-11,
        )
        return jnp.sum(cotangent * found.weights)

    arguments = [jnp.array([3.0, 2.0, 4.0, 3.0]), design, targets, jnp.float64(1.0), jnp.float64(0.6)]
    compiled = jax.jit(value)
    gradient = jax.jit(jax.grad(value, argnums=(0, 1, 2, 3, 4)))(*arguments)
    for place, step in ((0, 1e-4), (1, 1e-5), (2, 1e-5), (3, 1e-4), (4, 1e-4)):
        if np.ndim(arguments[place]) == 0 and kind == "exact":
            continue  # neither counts
        direction = generator(9, place).normal(size=np.shape(arguments[place]))
        ends = []
        for sign in (1.0, -1.0):
            moved = list(arguments)
            moved[place] = moved[place] + sign * step * direction
            ends.append(float(compiled(*moved)))
        difference = (ends[0] - ends[1]) / (2.0 * step)
        found = float(jnp.sum(gradient[place] * direction))
        assert found == pytest.approx(difference, rel=1e-6, abs=1e-6), place


@pytest.mark.slow
def test_second_derivatives():
    design, targets = samples()
    weight = jnp.asarray(generator(7).normal(size=(ROWS, WIDTH)))

    def value(alpha):
        penalty = simjax.GroupL1(alpha, LABELS)
        return jnp.sum(weight * functional.solve_rows(design, targets, penalty=penalty, tol=1e-11).weights ** 2)

    alpha, step = jnp.array([3.0, 2.0, 4.0, 3.0]), 1e-4
    hessian, gradient = jax.jit(jax.hessian(value))(alpha), jax.jit(jax.grad(value))
    differences = [(gradient(alpha + step * e) - gradient(alpha - step * e)) / (2.0 * step) for e in np.eye(4)]
    np.testing.assert_allclose(hessian, differences, rtol=1e-5, atol=1e-10)
