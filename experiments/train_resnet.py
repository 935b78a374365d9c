"""Train ResNet-20 on CIFAR-100: `python -m experiments.train_resnet FILE`.

By default as the SIM paper trains it, after DeVries and Taylor, Improved regularization of convolutional neural
networks with cutout (2017): 200 epochs of batches of 128, SGD with Nesterov momentum 0.9 and weight decay 5e-4,
learning rate 0.1 divided by five after 60, 120 and 160 epochs, crops of images padded by an eighth of their side,
mirror images, and a square of a quarter of the side cut out. That is for a GPU. For a processor:

    --resolution 8 --epochs 4       images averaged over 4×4 pixels; fewer epochs
    --schedule linear               the learning rate rises over a quarter of all steps, then falls to 0
    --minutes 8                     stop after so many minutes; the same command goes on where it stopped

The last 5,000 training images are never trained on: settings are chosen on them. A batch is spread over all devices;
with XLA_FLAGS=--xla_force_host_platform_device_count=N, N cores are N devices.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.records import place, write_text
from simjax import datasets
from simjax._files import atomic_file, read_safetensors
from simjax.datasets import ImageDataset
from simjax.nn import ResNet

HELD_OUT = 5000  # of the training images, the last ones
RESOLUTIONS = (32, 16, 8)
# Of all training images, channel by channel, as widely published.
MEAN, DEVIATION = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
FORMAT, FORMAT_VERSION = "simjax-resnet-training", 1
SAVE_SECONDS = 60.0


class Recipe(NamedTuple):
    """How a network is trained; a training that is taken up again must have the same."""

    epochs: float = 200.0
    batch: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    schedule: str = "steps"
    resolution: int = 32
    width: int = 16
    seed: int = 0
    samples: int | None = None


class Progress(NamedTuple):
    """Where a training stands."""

    step: int
    steps: int
    seconds: float
    loss: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line asks, and print one line of JSON a while."""
    usual = Recipe()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path, help="the trained network; while it is trained, FILE.training is beside it")
    parser.add_argument("--epochs", type=float, default=usual.epochs)
    parser.add_argument("--batch", type=int, default=usual.batch)
    parser.add_argument("--learning-rate", type=float, default=usual.learning_rate)
    parser.add_argument("--weight-decay", type=float, default=usual.weight_decay)
    parser.add_argument("--schedule", choices=("steps", "linear"), default=usual.schedule)
    parser.add_argument("--resolution", type=int, choices=RESOLUTIONS, default=usual.resolution)
    parser.add_argument("--width", type=int, default=usual.width, help="channels of the first stage")
    parser.add_argument("--samples", type=int, help="only the first so many training images")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--minutes", type=float, help="stop after so many, to go on later")
    given = vars(parser.parse_args(arguments))
    file, minutes = given.pop("file"), given.pop("minutes")
    recipe = Recipe(**given)

    def tell(progress: Progress) -> None:
        print(json.dumps(progress._asdict()), flush=True)

    network = trained(recipe, datasets.load_cifar100(), file, minutes=minutes, tell=tell)
    print("to be continued" if network is None else f"trained: {file}")


def trained(
    recipe: Recipe,
    data: ImageDataset,
    file: Path,
    *,
    minutes: float | None = None,
    tell: Callable[[Progress], None] | None = None,
) -> ResNet | None:
    """The network of that recipe, written to `file`; None if the minutes ran out, to be called again.

    Beside it `file` with the suffix .json says how and where it was trained.

    Args:
      recipe: what to train.
      data: CIFAR-100.
      file: where to write the network; `file` with the suffix .training holds what is needed to go on, until
        it is done.
      minutes: stop after so many.
      tell: is told every minute how it goes.

    Raises:
      ValueError: if `file`.training is of another recipe.
    """
    began = time.perf_counter()
    network = ResNet(width=recipe.width, classes=len(data.class_names), rngs=nnx.Rngs(recipe.seed))
    training_images, training_labels = training_part(data)
    images = pixels(training_images[: recipe.samples], recipe.resolution)
    labels = training_labels[: recipe.samples].astype(np.int32)
    steps = max(round(recipe.epochs * len(labels) / recipe.batch), 1)
    optimizer = _optimizer(recipe, steps)
    split: Any = nnx.split(network, nnx.Param, nnx.BatchStat)
    graph, parameters, statistics = split
    carry = (parameters, statistics, optimizer.init(parameters))
    position = file.with_suffix(".training")
    step, spent = 0, 0.0
    if position.is_file():
        carry, step, spent = _read(position, recipe, carry)
    spread = NamedSharding(Mesh(np.array(jax.devices()), ("samples",)), PartitionSpec("samples"))
    advance = _step_function(graph, optimizer, recipe, steps)
    order, epoch, told, losses = np.empty(0, np.int64), -1, began, []
    while step < steps:
        now = step * recipe.batch // len(labels)
        if now != epoch:
            epoch = now
            order = np.random.default_rng((recipe.seed, epoch)).permutation(len(labels))
        rows = order[(step * recipe.batch + np.arange(recipe.batch)) % len(labels)]
        batch = jax.device_put((images[rows], labels[rows]), spread)
        carry, loss = advance(carry, *batch, np.int32(step))
        losses.append(float(loss))
        step += 1
        late = minutes is not None and time.perf_counter() - began > 60.0 * minutes
        if step == steps or late or time.perf_counter() - told > SAVE_SECONDS:
            told = time.perf_counter()
            if not np.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss became {losses[-1]} in step {step}; try a smaller learning rate.")
            _write(position, recipe, carry, step, spent + told - began)
            if tell is not None:
                tell(Progress(step, steps, round(spent + told - began, 1), float(np.mean(losses[-100:]))))
            if late and step < steps:
                return None
    nnx.update(network, carry[0], carry[1])
    network.eval()
    file.parent.mkdir(parents=True, exist_ok=True)
    network.save(file, overwrite=True)
    about = {
        "recipe": recipe._asdict(),
        "samples": len(labels),
        "steps": steps,
        "seconds": round(spent + time.perf_counter() - began, 1),
    }
    write_text(file.with_suffix(".json"), json.dumps({**about, **place()}, indent=1) + "\n")
    position.unlink(missing_ok=True)
    return network


def training_part(data: ImageDataset) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels to train on: all but the last 5,000, or the first nine tenths of fewer than 50,000."""
    held_out = min(HELD_OUT, len(data.train_labels) // 10)
    return data.train_images[:-held_out], data.train_labels[:-held_out]


def held_out_part(data: ImageDataset) -> tuple[np.ndarray, np.ndarray]:
    """Training images and labels that no network was trained on, to choose settings on."""
    held_out = min(HELD_OUT, len(data.train_labels) // 10)
    return data.train_images[-held_out:], data.train_labels[-held_out:]


def pixels(images: np.ndarray, resolution: int = 32) -> np.ndarray:
    """What a network sees of images (m, 32, 32, 3) of bytes: float32, standardised channel by channel.

    Raises:
      ValueError: for a resolution other than 32, 16 (means of 2×2 pixels) or 8 (of 4×4).
    """
    if resolution not in RESOLUTIONS:
        raise ValueError(f"resolution must be one of {RESOLUTIONS}, got {resolution!r}.")
    m, height, width, channels = images.shape
    step = height // resolution
    blocks = images.reshape(m, resolution, step, width // step, step, channels)
    means = blocks.mean(axis=(2, 4), dtype=np.float32) / np.float32(255.0)
    return (means - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)


def _optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """SGD with Nesterov momentum; weight decay is a part of the gradient, as in the papers."""
    rate: Any = optax.linear_onecycle_schedule(steps, recipe.learning_rate, pct_start=0.25, pct_final=1.0)
    if recipe.schedule == "steps":
        falls = {int(share * steps): 0.2 for share in (0.3, 0.6, 0.8)}
        rate = optax.piecewise_constant_schedule(recipe.learning_rate, falls)
    return optax.chain(optax.add_decayed_weights(recipe.weight_decay), optax.sgd(rate, momentum=0.9, nesterov=True))


def _step_function(graph: Any, optimizer: optax.GradientTransformation, recipe: Recipe, steps: int) -> Callable:
    """One step on one batch, compiled."""
    key = jax.random.key(recipe.seed)

    def loss_of(parameters: Any, statistics: Any, images: jax.Array, labels: jax.Array) -> tuple:
        network = nnx.merge(graph, parameters, statistics, copy=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(network(images), labels)
        return losses.mean(), nnx.state(network, nnx.BatchStat)

    @jax.jit
    def advance(carry: tuple, images: jax.Array, labels: jax.Array, step: jax.Array) -> tuple:
        parameters, statistics, memory = carry
        images = augmented(images, jax.random.fold_in(key, step))
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, statistics), slope = gradient(parameters, statistics, images, labels)
        updates, memory = optimizer.update(slope, memory, parameters)
        return (optax.apply_updates(parameters, updates), statistics, memory), loss

    return advance


def augmented(images: jax.Array, key: jax.Array) -> jax.Array:
    """Images (m, side, side, channels), each shifted by up to an eighth of its side, mirrored or not, and with a square
    of a quarter of its side set to 0 around a random pixel.

    Source: DeVries and Taylor (2017); their squares have side 8 on CIFAR-100.
    """
    m, side = images.shape[:2]
    shift_key, mirror_key, hole_key = jax.random.split(key, 3)
    reach, half = side // 8, side // 8
    shifts = jax.random.randint(shift_key, (m, 2), 0, 2 * reach + 1)
    mirrors = jax.random.bernoulli(mirror_key, shape=(m,))
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    places = jnp.arange(side)
    rows = shifts[:, 0, None] + places
    columns = shifts[:, 1, None] + jnp.where(mirrors[:, None], places[::-1], places)
    cut = padded[jnp.arange(m)[:, None, None], rows[:, :, None], columns[:, None, :]]
    centres = jax.random.randint(hole_key, (m, 2), 0, side)
    inside = (places >= centres[..., None] - half) & (places < centres[..., None] + half)  # (m, 2, side)
    hole = inside[:, 0, :, None] & inside[:, 1, None, :]
    return jnp.where(hole[..., None], 0.0, cut)


def _write(file: Path, recipe: Recipe, carry: tuple, step: int, seconds: float) -> None:
    """Everything that a training needs to go on."""
    tensors = {str(k): np.asarray(leaf) for k, leaf in enumerate(jax.tree.leaves(carry))}
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "recipe": json.dumps(recipe),
        "at": json.dumps([step, seconds]),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file, overwrite=True) as out:
        out.write(safetensors.numpy.save(tensors, metadata=header))


def _read(file: Path, recipe: Recipe, carry: tuple) -> tuple[tuple, int, float]:
    """What `_write` wrote, in the shape of `carry`."""
    tensors, header = read_safetensors(file, FORMAT, FORMAT_VERSION)
    if json.loads(header["recipe"]) != list(recipe):
        raise ValueError(f"{file} is of a training with {header['recipe']}, not {json.dumps(recipe)}: remove it first.")
    step, seconds = json.loads(header["at"])
    leaves = [jnp.asarray(tensors[str(k)]) for k in range(len(tensors))]
    return jax.tree.unflatten(jax.tree.structure(carry), leaves), step, seconds


if __name__ == "__main__":
    main()
