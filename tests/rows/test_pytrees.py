"""Penalties and constraints as trees of what they were told, and results that travel."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import BOUND, TALL, sparse_rows

import simjax

TREES = {
    "l1": (simjax.L1(0.5), 1),
    "perspective": (simjax.Perspective([0.4, 0.5]), 2),
    "elastic_net": (simjax.ElasticNet(0.3, 0.2), 2),
    "ridge": (simjax.Ridge(0.5), 1),
    "least_squares": (simjax.NoPenalty(), 0),
    "groups": (simjax.GroupL1(0.5, [0, 0, 1]), 2),
    "weighted groups": (simjax.GroupL1([0.5, 0.6], [[0, 2], [1]], weights=[1.0, 2.0]), 2),
    "ball": (simjax.L1Ball(0.8, size=2), 2),
    "metzler": (simjax.MetzlerRow(0.8, diagonal=np.array([0, 1]), size=2), 3),
    "box in a ball": (simjax.Box(0.0, np.inf, ball=simjax.L1Ball(0.8, size=2)), 4),
    "free": (simjax.Free(), 0),
}


@pytest.mark.parametrize("name", TREES)
def test_leaves_are_what_the_constructor_was_told(name):
    tree, count = TREES[name]
    leaves, structure = jax.tree.flatten(tree)
    assert len(leaves) == count
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert type(rebuilt) is type(tree)
    # JAX puts all kinds of things into trees: nothing is checked on the way.
    for stand_in in (None, -1, object(), "axis"):
        odd = jax.tree.unflatten(structure, [stand_in] * count)
        assert jax.tree.structure(odd, is_leaf=lambda leaf: leaf is None) == structure
        assert type(tree).__name__ in repr(odd)
    copy = pickle.loads(pickle.dumps(tree))
    for ours, theirs in zip(jax.tree.leaves(copy), leaves, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_parameters_may_be_traced():
    points = jnp.linspace(-3.0, 3.0, 7)[None, :]
    for build in (simjax.L1, simjax.Perspective, simjax.ElasticNet, simjax.Ridge):
        value = jax.jit(lambda alpha, build=build: build(alpha).value(points))(0.5)
        np.testing.assert_allclose(value, build(0.5).value(np.asarray(points)), rtol=1e-6)
        slope = jax.grad(lambda alpha, build=build: build(alpha).value(points).sum())(0.5)
        assert np.isfinite(slope)
        assert slope > 0.0
        through = jax.jit(lambda penalty: penalty.value(points))(build(0.5))
        np.testing.assert_allclose(through, value, rtol=1e-6)
    alphas = jnp.linspace(0.1, 1.0, 4)
    many = jax.vmap(lambda penalty: penalty.value(points))(simjax.L1(alphas))
    np.testing.assert_allclose(many[:, 0], alphas[:, None] * jnp.abs(points), rtol=1e-6)
    bound = jax.jit(lambda radius: simjax.L1Ball(radius, size=2).bound(3, 4).radius)(0.5)
    np.testing.assert_array_equal(bound, np.full((3, 1), 0.5, bound.dtype))


def test_what_is_not_traced_is_still_checked():
    for build in (simjax.L1, simjax.Ridge, simjax.Perspective):
        with pytest.raises(ValueError, match="alpha must be >= 0"):
            jax.jit(lambda x, build=build: x * build(-1.0).alpha)(1.0)
        with pytest.raises(ValueError, match="alpha must be a scalar"):
            jax.jit(lambda x, build=build: build(x).alpha)(np.ones((1, 1, 1)))


def test_a_solution_travels():
    design, targets = sparse_rows(TALL)
    solution = simjax.solve_rows(design, targets, penalty=simjax.L1(0.5), constraint=simjax.L1Ball(0.8, size=BOUND))
    copy = pickle.loads(pickle.dumps(solution))
    np.testing.assert_array_equal(copy.weights, solution.weights)
    np.testing.assert_array_equal(copy.status, solution.status)
    assert copy.summary() == solution.summary()
    with jax.enable_x64(True):
        placed = jax.device_put(solution)
        assert isinstance(placed.weights, jax.Array)
        assert isinstance(placed.certificate.dual, jax.Array)
        np.testing.assert_array_equal(placed.weights, solution.weights)
        assert list(placed.status) == list(solution.status)
        assert placed.converged
        doubled = jax.tree.map(lambda x: 2 * x, placed)
        np.testing.assert_array_equal(doubled.certificate.gap, 2 * solution.certificate.gap)
    host = jax.device_get(placed)
    assert isinstance(host.weights, np.ndarray)
