"""Training of small networks: one program for all that only numbers tell apart, such as seeds, γ and λ."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from simjax import datasets
from simjax.nn.base import Matrices, outputs

Loss = Callable[[Any, tuple[jax.Array, jax.Array], Any], jax.Array]


class Recipe(NamedTuple):
    """How long and how fast; hashable, hence static.

    Attributes:
      epochs: passes over the samples.
      batch_size: samples a step.
      learning_rate: Adam's at the start; it falls to 0 along a cosine.
    """

    epochs: int
    batch_size: int
    learning_rate: float


class Samples(NamedTuple):
    """Inputs (m, p) in float32 and labels (m,) for training and for testing, and the number of classes."""

    inputs: np.ndarray
    labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    classes: int


def samples(name: str, seed: int, *, train: int, test: int) -> Samples:
    """Training samples, chosen by the seed, and the first test samples of a data set."""
    data = datasets.load(name)
    rows = np.random.default_rng(seed).permutation(len(data.train_labels))[:train]
    return Samples(
        data.train_inputs[rows].astype(np.float32),
        data.train_labels[rows],
        data.test_inputs[:test].astype(np.float32),
        data.test_labels[:test],
        len(data.class_names),
    )


def train(module: nnx.Module, loss: Loss, inputs: Any, targets: Any, recipe: Recipe, seed: int, hyper: Any = ()) -> int:
    """Train `module`, in place, by Adam on `loss`; steps whose gradient is not finite are left out.

    Args:
      module: without other variables than parameters.
      loss: (module, (inputs, targets), hyper) → mean over the batch; one function object for all calls.
      inputs, targets: (m, …) each.
      recipe: how long and how fast.
      seed: of the order of the samples.
      hyper: arrays and numbers that the loss takes; other values need no new program.

    Returns:
      How many steps were left out.
    """
    graph, parameters = nnx.split(module)
    data = jnp.asarray(inputs), jnp.asarray(targets)
    parameters, skipped = _trained(graph, loss, recipe, parameters, hyper, data, jax.random.key(seed))
    nnx.update(module, parameters)
    return int(skipped)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _trained(graph: Any, loss: Loss, recipe: Recipe, parameters: Any, hyper: Any, data: tuple, key: jax.Array) -> tuple:
    size = min(recipe.batch_size, len(data[0]))
    steps = len(data[0]) // size
    schedule = optax.cosine_decay_schedule(recipe.learning_rate, recipe.epochs * steps)
    optimizer = optax.apply_if_finite(optax.adam(schedule), max_consecutive_errors=10**9)

    def step(carry: tuple, rows: jax.Array) -> tuple[tuple, None]:
        parameters, memory = carry
        batch = data[0][rows], data[1][rows]
        gradient = jax.grad(lambda values: loss(nnx.merge(graph, values), batch, hyper))(parameters)
        updates, memory = optimizer.update(gradient, memory, parameters)
        return (optax.apply_updates(parameters, updates), memory), None

    def epoch(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        order = jax.random.permutation(key, len(data[0]))[: steps * size].reshape(steps, size)
        return jax.lax.scan(step, carry, order)

    carry = parameters, optimizer.init(parameters)
    (parameters, memory), _ = jax.lax.scan(epoch, carry, jax.random.split(key, recipe.epochs))
    return parameters, memory.total_notfinite


def cross_entropy(module: nnx.Module, batch: tuple[jax.Array, jax.Array], hyper: Any) -> jax.Array:
    """The mean cross-entropy of a module's outputs."""
    del hyper
    return optax.softmax_cross_entropy_with_integer_labels(module(batch[0]), batch[1]).mean()


def share_correct(module: nnx.Module, inputs: Any, labels: np.ndarray) -> float:
    """Share of samples whose largest output is that of the label; outputs that are not finite are wrong."""
    return float(np.mean(correct(np.asarray(_called(*nnx.split(module), jnp.asarray(inputs))), labels)))


def correct(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which samples (m,) have their largest output at the label, and all outputs finite."""
    return np.isfinite(logits).all(axis=1) & (logits.argmax(axis=1) == labels)


@functools.partial(jax.jit, static_argnums=0)
def _called(graph: Any, parameters: Any, inputs: jax.Array) -> jax.Array:
    return nnx.merge(graph, parameters)(inputs)


def parameters_of(module: nnx.Module) -> int:
    """How many numbers a module is made of."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))


def solved(module: Any, matrices: Matrices, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Outputs (m, q) with these matrices, and which equilibria (m,) were found."""
    found = module.solve(matrices, u)
    return outputs(matrices, found.x, u), found.report.converged
