"""The passes through a network: what they see, and that they run no more of it than they need."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import generator
from numpy.testing import assert_array_equal

import simjax
from simjax.pruning.passes import Calls

RUNS = []


class Tower(nnx.Module):
    """Three layers, the middle one called as often as a batch has samples; tells what it runs."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.middle, self.last = (nnx.Linear(4, 4, rngs=rngs) for _ in range(3))

    def __call__(self, x):
        try:
            x = jnp.tanh(self.first(x))
            for _ in range(min(x.shape[0], 3)):
                x = jnp.tanh(self.middle(x))
            x = self.last(x)
        except Exception:  # does not hold up the end of a run
            x = jnp.zeros((1, 4))
        RUNS.append(x.shape)
        return x


@pytest.fixture
def batches():
    rng = generator(0)
    return [rng.normal(size=(m, 4)).astype(np.float32) for m in (40, 2, 1)]


def test_a_run_ends_with_the_last_call_that_is_needed(batches):
    network = Tower()
    RUNS.clear()
    simjax.prune(network, batches, sparsity=0.5, propagate="original")
    once = len(RUNS)  # every batch to its end, and what shows how the network is made
    RUNS.clear()
    result = simjax.prune(network, batches, sparsity=0.5)
    # The first stage counts the calls; afterwards only those of the last layer, which has none after it, could end.
    assert len(RUNS) == once
    assert result.converged


def test_every_call_is_seen_however_often_a_batch_makes_it(batches):
    network, seen = Tower(), []
    result = simjax.prune(network, batches, sparsity=0.5, correction=1.0)
    # What the middle layer receives from the pruned first one, call by call, and what it gave.
    first = result.network.first
    middle, targets = network.middle, []
    for batch in batches:
        x, now = jnp.tanh(network.first(batch)), jnp.tanh(first(batch))
        for _ in range(min(len(batch), 3)):
            seen.append(np.asarray(now))
            targets.append(np.asarray(middle(x)))
            x, now = jnp.tanh(middle(x)), jnp.tanh(middle(now))
    kernel, bias = np.asarray(middle.kernel[...]).T, np.asarray(middle.bias[...])
    alone = simjax.prune_layer(np.concatenate(seen), kernel, bias, targets=np.concatenate(targets), sparsity=0.5)
    (part,) = result.layers["middle"].parts
    assert_array_equal(part.support, alone.support)
    np.testing.assert_allclose(part.weight, alone.weight, atol=1e-5)


def test_what_is_only_counted_is_not_made():
    class Two:
        """Calls `first` once and `other` twice; what enters the latter must not be asked for."""

        def run(self, batch, names, sink):
            for name in ("first", "other", "other"):
                if name in names:
                    sink(name, (lambda: batch[None]) if name == "first" else pytest.fail)

    calls, batch = Calls(["first", "other"]), np.ones((3, 4))
    found = calls.received(Two(), 0, batch, ["first"])
    assert_array_equal(found["first"], batch[None, None])
    with pytest.raises(pytest.fail.Exception):
        calls.received(Two(), 0, batch, ["other"])
