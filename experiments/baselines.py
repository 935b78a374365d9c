"""The Fashion-MNIST baselines of the SIM paper's experiments, and what is measured of them and of fitted models.

Each is a bias-free 784-64-32-16-10 ReLU network, trained with a mini-batch of 64. A seed chooses the initial weights,
the order of the training samples (so which are held out, and which come first when some are chosen), the order in
which they are visited, and in `measures` the pixels that are attacked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.problems import NETWORKS, kept
from benchmarks.records import Record
from simjax import datasets
from simjax._checks import choice
from simjax.implicit.model import ImplicitModel
from simjax.nn import MLP, RECOMMENDED, train
from simjax.rescaling import eliminate_diagonal
from simjax.robustness import certified_accuracy, fgsm, pgd

DATASET = "fashion-mnist"
SIZES = NETWORKS[DATASET]
# Plain stochastic gradient descent: 3 epochs give about 80 % of samples held out from the training set, the accuracy
# of the paper's baseline (4 give 82 %, 2 give 78 %).
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "well-trained": RECOMMENDED[DATASET],
        "weak": MappingProxyType({"epochs": 3, "batch_size": 64, "learning_rate": 1e-2}),
    }
)
QUICK_TRAINING, QUICK_TEST = 6000, 500  # samples

EPSILONS = (0.004, 0.008)  # of the paper, for pixels from 0 to 1
SHARES = {"fgsm_half": 0.5, "fgsm": 1.0}  # of the pixels
ATTACKS = (*SHARES, "pgd")
MEAN, STD = 0.2860, 0.3530  # of the training pixels, as published; `standardised` inputs are (pixel − MEAN) / STD


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Samples in the order of a seed; inputs (m, 784), labels (m,).

    Attributes:
      train_inputs, train_labels: what the baseline was trained on.
      validation_inputs, validation_labels: what was held out from the training samples, perhaps nothing.
      test_inputs, test_labels: the data set's own test samples.
      unit: how much of an input one unit of a pixel is: 1, or 1 / STD where inputs are standardised.
    """

    train_inputs: np.ndarray
    train_labels: np.ndarray
    validation_inputs: np.ndarray
    validation_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    unit: float


def baseline(
    kind: str, seed: int, *, held_out: int = 0, quick: bool = False, standardised: bool = False,
    cache: Path | None = None,
) -> tuple[MLP, Split]:  # fmt: skip
    """A trained network, from the cache if it is there, and the samples.

    Args:
      kind: "well-trained", by the recipe of `RECOMMENDED`, or "weak", by plain gradient descent to about 80 %.
      seed: of everything random.
      held_out: how many of the shuffled training samples, the last ones, to keep for validation.
      quick: the first 6,000 of the shuffled training samples and 500 test samples only.
      standardised: inputs of mean 0 and variance 1 over all pixels, instead of pixels from 0 to 1.
      cache: folder for the trained weights; None means the user's cache.

    Raises:
      ValueError: another kind; held_out that leaves fewer samples than a batch.
    """
    recipe = dict(RECIPES[choice("kind", kind, RECIPES)])
    split = samples(seed, held_out=held_out, quick=quick, standardised=standardised)

    def make() -> MLP:
        network = MLP(SIZES, rngs=nnx.Rngs(seed))
        trainer: Callable[..., Any] = train if kind == "well-trained" else descend
        trainer(network, split.train_inputs, split.train_labels, seed=seed, **recipe)
        return network

    facts = [DATASET, SIZES, kind, recipe, seed, held_out, quick, standardised]
    return kept(f"paper-{DATASET}-{kind}-seed{seed}", facts, make, cache), split


def samples(seed: int, *, held_out: int = 0, quick: bool = False, standardised: bool = False) -> Split:
    """The samples of `baseline`, which has the same arguments."""
    data = _data()
    size = len(data.train_labels)
    order = np.random.default_rng(seed).permutation(size)[: QUICK_TRAINING if quick else size]
    least = max(recipe["batch_size"] for recipe in RECIPES.values())
    if not 0 <= held_out <= order.size - least:
        raise ValueError(f"held_out must be in 0 … {order.size - least}, got {held_out}.")
    first, last = np.split(order, [order.size - held_out])
    tested = slice(QUICK_TEST if quick else None)
    shift, unit = (MEAN, 1.0 / STD) if standardised else (0.0, 1.0)

    def inputs(pixels: np.ndarray) -> np.ndarray:
        return (pixels - shift) * unit if standardised else pixels

    return Split(
        train_inputs=inputs(data.train_inputs[first]),
        train_labels=data.train_labels[first],
        validation_inputs=inputs(data.train_inputs[last]),
        validation_labels=data.train_labels[last],
        test_inputs=inputs(data.test_inputs[tested]),
        test_labels=data.test_labels[tested],
        unit=unit,
    )


@functools.lru_cache(maxsize=1)
def _data() -> datasets.Dataset:
    return datasets.load(DATASET)


def descend(
    network: nnx.Module, inputs: Any, labels: Any, *, epochs: int, batch_size: int, learning_rate: float, seed: int
) -> None:
    """Train `network`, in place, by plain stochastic gradient descent: no momentum, decay or schedule.

    Args:
      network, inputs, labels, epochs, batch_size, learning_rate, seed: as in `simjax.nn.train`.
    """
    graph, parameters = nnx.split(network)
    U, wanted = jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.int32)
    steps = len(wanted) // batch_size
    optimizer = optax.sgd(learning_rate)

    def loss(parameters: Any, batch: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, parameters)(U[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, wanted[batch]).mean()

    def step(carry: tuple, batch: jax.Array) -> tuple:
        parameters, memory = carry
        updates, memory = optimizer.update(jax.grad(loss)(parameters, batch), memory)
        return (optax.apply_updates(parameters, updates), memory), None

    @jax.jit
    def epoch(carry: tuple, key: jax.Array) -> tuple:
        order = jax.random.permutation(key, len(wanted))[: steps * batch_size]
        return jax.lax.scan(step, carry, order.reshape(steps, batch_size))[0]

    carry = (parameters, optimizer.init(parameters))
    for key in jax.random.split(jax.random.key(seed), epochs):
        carry = epoch(carry, key)
    nnx.update(network, carry[0])


# --- Measures ----------------------------------------------------------------------------------------------------


def sparsity(model: ImplicitModel, network: MLP) -> float:
    """1 − ‖M‖₀ / ‖N‖₀, the paper's; negative for a model with more nonzeros than its baseline."""
    return model.sparsity(network.export().nonzeros)


def measures(
    model: ImplicitModel | MLP,
    inputs: Any,
    labels: Any,
    seed: int,
    *,
    unit: float = 1.0,
    attacks: Sequence[str] = ATTACKS,
    certificates: bool = True,
    steps: int = 10,
    few: int | None = None,
) -> Record:
    """Accuracies, clean and under attacks with ε of `EPSILONS`; the attacker uses the gradient of the model itself.

        clean        on the inputs as they are
        fgsm_half    fast gradient sign on half of the pixels, drawn for each sample: the paper's attack
        fgsm         the same on all pixels
        pgd          projected gradient ascent on all pixels, from a random start
        certified    share of samples proved right for every input within ε, by the boxes of
                     `simjax.robustness.output_box`, on all these models the better of the two certificates

    Args:
      model: of a fit, or a network.
      inputs, labels: (m, p) and (m,).
      seed: of the pixels and the start of an attack.
      unit: `Split.unit`: ε is meant for pixels from 0 to 1, whatever the inputs are.
      attacks: which of `ATTACKS` to make.
      certificates: whether to certify.
      steps: of "pgd".
      few: "pgd" and "certified" only look at the first so many samples; None means all.

    Returns:
      "clean" as a fraction; "fgsm_half" and so on as lists in the order of `EPSILONS`, those asked for.

    Raises:
      ValueError: an unknown attack; inputs that do not fit.
    """
    # Without self-loops equilibria are the same, and take far fewer passes to find.
    model = eliminate_diagonal(model.export() if isinstance(model, MLP) else model)
    for name in attacks:
        choice("attacks", name, ATTACKS)
    found: Record = {"clean": model.accuracy(inputs, labels)}
    gradient = [name for name in attacks if name in SHARES]
    if gradient:  # one gradient serves every ε and every share of the pixels
        signs = np.sign(fgsm(model, inputs, labels, 1.0) - inputs)
        pixels = np.random.default_rng(seed).permuted(np.tile(np.arange(model.p), (len(inputs), 1)), axis=1)
        for name in gradient:
            step = signs * (pixels < SHARES[name] * model.p)
            found[name] = [model.accuracy(inputs + unit * epsilon * step, labels) for epsilon in EPSILONS]
    if "pgd" in attacks:
        U, wanted = inputs[:few], labels[:few]
        attacked = (pgd(model, U, wanted, unit * epsilon, steps=steps, seed=seed) for epsilon in EPSILONS)
        found["pgd"] = [model.accuracy(perturbed, wanted) for perturbed in attacked]
    if certificates:
        boxes = (unit * epsilon for epsilon in EPSILONS)
        U, wanted = inputs[:few], labels[:few]
        found["certified"] = [certified_accuracy(model, U, wanted, size, certificate="box") for size in boxes]
    return found
