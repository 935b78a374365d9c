"""States of a small network, and batches of them."""

import jax
import numpy as np
from flax import nnx
from helpers import generator

import simjax
from simjax import SufficientStatistics
from simjax.nn import MLP


def collect(m=300, *, use_bias=False, seed=0):
    """States of 5 + 7 hidden units on 10 inputs."""
    network = MLP((10, 7, 5, 3), use_bias=use_bias, rngs=nnx.Rngs(seed))
    if use_bias:
        for _, layer in nnx.iter_graph(network):
            if isinstance(layer, nnx.Linear):
                layer.bias[...] = 0.1 * jax.numpy.arange(layer.out_features, dtype=np.float32)
    return simjax.collect_states(network, generator(seed).random((m, 10)))


def in_batches(states, size=64):
    return (states.subset(np.arange(i, min(i + size, states.m))) for i in range(0, states.m, size))


def arrays_of(states):
    return states.inputs, states.preactivations, states.activations, states.outputs


def noisy(states, noise):
    """The same states with outputs that no weights explain, and without their baseline."""
    outputs = states.outputs + noise * generator(1).normal(size=states.outputs.shape)
    return simjax.States(states.inputs, states.preactivations, states.activations, outputs)


def filled(design, targets, size=7):
    statistics = SufficientStatistics(design.shape[1], targets.shape[1])
    for start in range(0, len(design), size):
        statistics.update(design[start : start + size], targets[start : start + size])
    return statistics


def assert_same_problem(one, other):
    """Two pairs of design and targets have the same inner products of columns."""
    one, other = np.hstack(one), np.hstack(other)
    norms = np.linalg.norm(other, axis=0)
    assert np.all(np.abs(one.T @ one - other.T @ other) <= 1e-12 * norms[:, None] * norms)
