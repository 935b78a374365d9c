"""A million samples, streamed: the memory of a hundred thousand, certified rows, the weights of the normal equations.

Each case runs this file in a process of its own, whose peak is its own.
"""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import simjax

BATCH, SIZES, WIDTH, OUTPUTS = 4_000, (64, 32, 10), 256, 8


class Streamed:
    """Batches that are made when they are asked for, the same each time; neighbouring inputs depend on one another."""

    def __init__(self, samples, width):
        self.samples, self.width = samples, width

    def __iter__(self):
        for number in range(self.samples // BATCH):
            batch = np.random.default_rng(number).random((BATCH, self.width + 1), dtype=np.float32)
            yield batch[:, 1:] + 0.5 * batch[:, :-1]


def peak():
    """The most memory that this process has held, in bytes; that of the one that started it does not count."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))


def normal_equations(batches):
    """XᵀX and XᵀT, with a column of ones last in X, of pairs (X, T)."""
    gram, products = 0.0, 0.0
    for inputs, targets in batches:
        design = np.column_stack([inputs, np.ones(len(inputs))]).astype(np.float64)
        gram, products = gram + design.T @ design, products + design.T @ targets
    return gram, products


def distance(pruned, gram, products):
    """How far weights and biases are from the solution of the normal equations on their support, relative."""
    found = np.column_stack([pruned.weight, pruned.bias])
    best = np.zeros_like(found)
    for row, support in enumerate(pruned.support):
        at = np.append(np.flatnonzero(support), len(gram) - 1)
        best[row, at] = np.linalg.solve(gram[np.ix_(at, at)], products[at, row])
    return float(np.abs(found - best).max() / np.abs(best).max())


def told(before, samples, parts, distances):
    gaps = [float(part.certificate.relative_gap.max()) for part in parts]
    return {"before": before[0], "peak": before[1], "samples": samples, "gaps": gaps, "distances": distances} | {
        "certified": all(part.converged for part in parts)
    }


def network_of(samples):
    """`prune` of two layers."""
    rngs, batches = nnx.Rngs(0), Streamed(samples, SIZES[0])
    network = nnx.Sequential(nnx.Linear(*SIZES[:2], rngs=rngs), nnx.relu, nnx.Linear(*SIZES[1:], rngs=rngs))
    before = peak()
    result = simjax.prune(network, batches, sparsity=0.7)
    memory = before, peak()
    parts = [layer.parts[0] for layer in result.layers.values()]
    (first, b1), (second, b2) = (
        (np.asarray(part.kernel[...], np.float64), np.asarray(part.bias[...], np.float64))
        for part in (network.layers[0], network.layers[2])
    )
    own = normal_equations((x, x @ first + b1) for x in batches)
    pairs = ((np.maximum(x @ parts[0].weight.T + parts[0].bias, 0.0), np.maximum(x @ first + b1, 0.0)) for x in batches)
    behind = normal_equations((now, 0.5 * (now + given) @ second + b2) for now, given in pairs)  # half-way
    return told(memory, result.samples, parts, [distance(parts[0], *own), distance(parts[1], *behind)])


def statistics_of(samples):
    """`LayerStatistics` of 256 inputs."""
    rng, batches = np.random.default_rng(1), Streamed(samples, WIDTH)
    weight, bias = rng.normal(size=(OUTPUTS, WIDTH)), rng.normal(size=OUTPUTS)
    before, statistics = peak(), simjax.LayerStatistics(WIDTH)
    for batch in batches:
        statistics.update(batch)
    pruned = simjax.prune_layer(statistics, weight, bias, sparsity=0.7)
    memory = before, peak()
    equations = normal_equations((x, x @ weight.T + bias) for x in batches)
    return told(memory, statistics.m, [pruned], [distance(pruned, *equations)])


CASES = {"network": network_of, "statistics": statistics_of}


@pytest.mark.slow
@pytest.mark.parametrize(("case", "width", "tolerance"), [("network", SIZES[0], 1e-4), ("statistics", WIDTH, 1e-8)])
def test_memory_does_not_grow_with_the_samples_and_weights_are_the_best_on_their_support(case, width, tolerance):
    if sys.platform != "linux":
        pytest.skip("/proc is Linux's")
    found = {}
    for samples in (100_000, 1_000_000):
        words = [sys.executable, __file__, case, str(samples)]
        found[samples] = json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)
    for samples, each in found.items():
        assert each["samples"] == samples
        assert each["certified"]
        assert max(each["gaps"]) <= 1e-6
        assert max(each["distances"]) <= tolerance
    few, many = found.values()
    assert many["peak"] <= 1.1 * few["peak"]
    assert many["peak"] - many["before"] <= 0.5 * 4 * width * 1_000_000  # half of what the samples are in float32


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("error", simjax.ConvergenceWarning)
        print(json.dumps(CASES[sys.argv[1]](int(sys.argv[2]))))
