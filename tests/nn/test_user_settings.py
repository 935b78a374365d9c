"""What a user demands of JAX is for his own code; what simjax asks of JAX does not reach the user's network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import simjax
from simjax.equilibrium import equilibrium
from simjax.nn import GEQ, LBEN, MLP, NEMON, ImplicitLayer, ImplicitRNN, LinearDEQ, MonDEQ, OptEq, train

LAYERS = (ImplicitLayer, MonDEQ, NEMON, LBEN, OptEq, GEQ, LinearDEQ)
X = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)


@contextlib.contextmanager
def strict() -> Iterator[jax.Array]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("strict"))
        stack.enter_context(jax.numpy_rank_promotion("raise"))
        stack.enter_context(jax.debug_nans(True))
        stack.enter_context(jax.debug_infs(True))
        yield jnp.asarray(X)


@contextlib.contextmanager
def on_a_mesh() -> Iterator[jax.Array]:
    mesh = jax.make_mesh((1,), ("rows",))  # explicit axes, which every operation is checked against
    with jax.set_mesh(mesh):
        yield jax.device_put(X, NamedSharding(mesh, PartitionSpec("rows")))


SETTINGS = (strict, on_a_mesh)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_do_not_depend_on_the_users_settings(kind: Any, settings: Callable) -> None:
    layer = kind(3, 4, 2)
    with settings() as u:
        found = layer(u)
    np.testing.assert_allclose(found, layer(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", [LAYERS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in LAYERS[1:])])
def test_their_gradients_do_not_depend_on_the_users_settings(kind: Any, settings: Callable) -> None:
    def loss(layer: Any, u: Any) -> jax.Array:
        return (layer(u) ** 2).sum()

    expected, slopes = nnx.value_and_grad(loss)(kind(3, 4, 2), jnp.asarray(X))
    with settings() as u:
        found, found_slopes = nnx.value_and_grad(nnx.jit(loss))(kind(3, 4, 2), u)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found_slopes, slopes)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("method", ["anderson", "averaged", "picard"])
def test_equilibria_neither(method: str, settings: Callable) -> None:
    A, B, b = np.full((2, 2), 0.2, np.float32), np.ones((2, 3), np.float32), np.ones(2, np.float32)
    expected = equilibrium(A, B, X, b, method=method).x
    with settings() as u:
        np.testing.assert_allclose(equilibrium(A, B, u, b, method=method).x, expected, rtol=1e-6)


def test_what_optax_does_for_us_neither() -> None:
    labels = np.arange(10) % 2
    plain, network = MLP((3, 4, 2)), MLP((3, 4, 2))
    train(plain, X, labels, epochs=2, batch_size=5)
    layer = ImplicitLayer(3, 4, 2, constraint="projected")
    with strict():
        train(network, X, labels, epochs=2, batch_size=5)
        layer.project()
        assert ImplicitRNN(3, 4, 2, hidden=3)(jnp.ones((2, 5, 3))).shape == (2, 5, 2)
    np.testing.assert_allclose(network(X), plain(X), atol=1e-6)
    assert np.abs(layer.A[...]).sum(axis=1).max() <= 0.99 * (1 + 1e-6)


def test_solves_by_jax_neither() -> None:
    states = simjax.collect_states(MLP((3, 4, 2)), X)
    expected = simjax.fit(states, "l1", alpha=0.01, engine="jax")
    with strict(), jax.transfer_guard("disallow"):
        found = simjax.fit(states, "l1", alpha=0.01, engine="jax")
    np.testing.assert_array_equal(found.weights, expected.weights)


class Counting(nnx.Module):
    """Runs neither in double precision nor under strict promotion to it."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        assert x.dtype == jnp.float32
        jax.lax.scan(lambda count, i: (count + i, None), jnp.int32(0), jnp.arange(3))
        return self.last(nnx.relu(self.first(x)) * jnp.float32(1.0))


@pytest.mark.parametrize("settings", [contextlib.nullcontext, strict])
def test_a_network_of_single_precision_is_read_in_its_own(settings: Callable) -> None:
    network = Counting()
    with settings():
        states = simjax.collect_states(network, X)
    np.testing.assert_allclose(states.outputs, network(X), atol=1e-6)
    assert states.activation == "relu"


class Net(nnx.Module):
    def __init__(self, middle: Any = None, phi: Any = nnx.relu) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.last, self.phi = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs), phi
        self.middle = middle

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.first(x)
        return self.last(self.phi(hidden if self.middle is None else self.middle(hidden)))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(2)(linen.relu(linen.LayerNorm(name="norm")(linen.Dense(4)(x))))


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (Net(nnx.BatchNorm(4, rngs=nnx.Rngs(0))), r"It has BatchNorm \(middle\), which simjax does not read"),
        (Net(nnx.LayerNorm(4, rngs=nnx.Rngs(0))), r"It has LayerNorm \(middle\)"),
        (Net(phi=nnx.gelu), "It is gelu, which is none of simjax's activations"),
        (Net(phi=nnx.silu), "It is silu"),
        (Net(phi=jnp.abs), "between linear layers 1 and 2 is not understood. Accepted"),
    ],
)
def test_what_is_not_read_is_named(network: Any, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        simjax.collect_states(network, X)


def test_what_is_not_read_of_a_linen_module_is_named() -> None:
    network = LinenNet()
    with pytest.raises(TypeError, match=r"It has LayerNorm \(norm\)"):
        simjax.collect_states(network, X, variables=network.init(jax.random.key(0), X))


def test_inputs_of_another_width_are_told_plainly() -> None:
    with pytest.raises(ValueError, match="first linear layer, which takes 3 numbers a sample; it received 8"):
        simjax.collect_states(Net(), np.ones((5, 8)))
    network = LinenNet()
    with pytest.raises(ValueError, match="takes 3 numbers a sample; it received 8"):
        simjax.collect_states(network, np.ones((5, 8)), variables=network.init(jax.random.key(0), X))
