"""`prune`: every linear map of a trained network made sparse, layer by layer, and refitted."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from simjax._checks import choice, positive_scalar
from simjax._values import Unstated
from simjax.pruning.curve import ErrorCurve, allocate, error_curve
from simjax.pruning.layer import METHODS, prune_layer
from simjax.pruning.network_result import PrunedMap, PrunedNetwork, PruneProgress
from simjax.pruning.networks.linear_map import LinearMap, Network
from simjax.pruning.networks.torch_network import TorchNetwork
from simjax.pruning.patterns import Pattern
from simjax.pruning.result import PrunedLayer
from simjax.pruning.statistics import LayerStatistics
from simjax.rows.options import SolveOptions
from simjax.states.torch_layers import is_torch_module

PROPAGATIONS = ("pruned", "original")
ALLOCATIONS = ("layer", "global")
_BATCH = 256  # samples that a network is run on at once, where they come as one array
_SPARSITY = Unstated(0.8)


def prune(
    network: Any,
    inputs: Any,
    sparsity: float = _SPARSITY,
    *,
    variables: Any = None,
    layers: Sequence[str] | Callable[[str], bool] | None = None,
    pattern: str = "unstructured",
    method: str = "auto",
    propagate: str = "pruned",
    allocation: str = "layer",
    tol: float = SolveOptions.tol,
    progress: Callable[[PruneProgress], None] | None = None,
) -> PrunedNetwork:
    """Make the linear maps of a trained network sparse, and refit what is left of their weights.

    Each linear layer, convolution and projection of attention is a problem of its own (see `prune_layer`): the inputs
    that it sees are the samples, for a convolution the patches at all positions. What stands between them, be it
    normalisation, dropout or any function, is run and not read.

    Args:
      network: a Flax NNX module, a PyTorch module, or a Flax Linen module with its `variables`. Run in evaluation mode,
        on a copy: what is passed in stays as it is.
      inputs: an array (samples, …), or batches, each an array as the network takes it. They are run through more than
        once where `propagate` is "pruned" or `allocation` is "global", so that batches must not be a generator then.
      sparsity: the least share of zeros, in [0, 1), of each layer, or of all together; see `allocation`.
      variables: Linen only, {"params": …, …}.
      layers: names of those to prune, a function of a name that says whether to, or None for all that are read; the
        names are those of `summary()`.
      pattern, method: as in `prune_layer`.
      propagate: "pruned": a layer sees what the layers before it, pruned, make of the inputs, and is to give what it
        gave before. "original": all see what they saw in the trained network, which needs one run in place of one for
        each stage, a stage being layers that follow one another and see the same.
      allocation: "layer": `sparsity` is that of each. "global": it is that of all together, shared out so that the sum
        of relative errors is least, by the error curve of each layer (unstructured only).
      tol: relative duality gap at which a refitted row counts as solved.
      progress: called with a `PruneProgress` after each layer.

    Returns:
      A `PrunedNetwork`. Rows that miss `tol` carry another status than SOLVED, and a `ConvergenceWarning` is issued.

    Raises:
      TypeError: a network that is not understood, arguments of another type.
      ValueError: no linear layer that is read, an unknown name in `layers`, values that are not finite, and as
        `prune_layer`; the message names the layer.

    Source: layer-wise reconstruction as in Frantar, Alistarh, SparseGPT (2023); the pruned inputs with the original
    targets as in Meng et al., ALPS (2024).

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> network, inputs = MLP((4, 6, 2)), np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
      >>> result = simjax.prune(network, inputs, sparsity=0.5)
      >>> result.converged, type(result.network).__name__  # `network` is as it was
      (True, 'MLP')
    """
    began = time.perf_counter()
    choice("method", method, METHODS)
    choice("propagate", propagate, PROPAGATIONS)
    choice("allocation", allocation, ALLOCATIONS)
    positive_scalar("tol", tol)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable or None, got {type(progress).__name__}.")
    if allocation == "global" and pattern != "unstructured":
        raise ValueError(f"pattern must be 'unstructured' for allocation 'global', got {pattern!r}.")
    again = propagate == "pruned" or allocation == "global"
    batches = Batches(inputs, again=again)
    with _runs(network):
        trained = _read(network, variables, batches.first)
    chosen = _chosen(trained, layers)
    for name in chosen:  # before anything is run for long
        stated = not isinstance(sparsity, Unstated)
        with _named(name):
            Pattern.make(pattern, sparsity, trained.maps[name].weight.shape[1:], stated=stated)
    with _runs(network):
        stages = _stages(trained, chosen, batches.first)
    at_work = _read(network, variables, batches.first)
    shares: dict[str, list[Any]] = {name: [sparsity] * trained.maps[name].groups for name in chosen}
    curves: dict[str, list[ErrorCurve]] = {}
    statistics: dict[str, list[LayerStatistics]] = {}
    if allocation == "global" or propagate == "original":
        statistics = _seen(trained, None, [name for stage in stages for name in stage], batches)
    if allocation == "global":
        curves = _curves(trained, statistics, tol)
        shared_out = iter(allocate([curve for name in curves for curve in curves[name]], sparsity).tolist())
        shares = {name: [next(shared_out) for _ in curves[name]] for name in curves}

    done: dict[str, PrunedMap] = {}
    for number, stage in enumerate(stages):
        if propagate == "pruned":
            # Until something has been pruned, a layer sees what it saw: its own outputs are the targets.
            statistics = _seen(trained, at_work if number else None, stage, batches)
        for name in stage:
            with _named(name):
                parts = _parts(trained.maps[name], statistics[name], shares[name], pattern, method, tol)
            done[name] = PrunedMap(name, tuple(parts), tuple(curves.get(name, ())))
            at_work.write(name, *_joined(parts))
            if progress is not None:
                progress(PruneProgress(name, len(done), len(chosen), done[name].relative_error))
    # A network that rescales its kernels when it runs would not multiply by those that were written.
    at_work.run(batches.first, chosen, lambda name, received: None)
    return PrunedNetwork(
        network=at_work.finished(),
        layers=done,
        left_out=tuple(name for name in trained.maps if name not in chosen),
        others=tuple(trained.others),
        samples=batches.samples,
        seconds=time.perf_counter() - began,
    )


class Batches:
    """The inputs as batches, as often as they are asked for.

    Raises:
      TypeError, ValueError: neither an array with samples nor batches, or batches that come once only.
    """

    def __init__(self, inputs: Any, *, again: bool) -> None:
        self._array: Any = None
        self._batches: Iterable[Any] = ()
        self.samples = 0
        if hasattr(inputs, "shape") and hasattr(inputs, "dtype"):
            if len(inputs.shape) < 2 or inputs.shape[0] == 0:
                raise ValueError(f"inputs must be (samples, …) with at least one sample, got shape {inputs.shape}.")
            self._array = inputs
            self.first = inputs[: min(_BATCH, 32)]
            return
        if not isinstance(inputs, Iterable) or isinstance(inputs, str | bytes | dict):
            raise TypeError(f"inputs must be an array (samples, …) or batches, got {type(inputs).__name__}.")
        if isinstance(inputs, Iterator):
            if again:
                raise ValueError(
                    "inputs must be an array or batches that can be run through again, such as a list, got a "
                    "generator: it serves propagate='original' with allocation='layer' alone."
                )
            inputs = list(inputs)
        self._batches = inputs
        self.first = next(iter(inputs), None)
        if self.first is None:
            raise ValueError("inputs must have at least one batch, got none.")
        _check_batch(self.first)

    def __iter__(self) -> Iterator[Any]:
        self.samples = 0
        parts = self._batches
        if self._array is not None:
            parts = (self._array[k : k + _BATCH] for k in range(0, self._array.shape[0], _BATCH))
        for part in parts:
            _check_batch(part)
            self.samples += part.shape[0]
            yield part


def _check_batch(batch: Any) -> None:
    """Raises TypeError for what is no array, such as a pair of inputs and labels."""
    if not (hasattr(batch, "shape") and hasattr(batch, "dtype") and len(batch.shape) > 0):
        raise TypeError(f"inputs must be batches that are arrays (samples, …), got a {type(batch).__name__}.")


def _read(network: Any, variables: Any, batch: Any) -> Network:
    """The network, copied, by the library that it is of."""
    if is_torch_module(network):
        if variables is not None:
            raise ValueError("variables is for Flax Linen modules; a PyTorch module carries its own.")
        return TorchNetwork(network)
    from simjax.pruning.networks.flax_networks import read_flax  # here, so that plain arrays need no Flax

    return read_flax(network, variables, batch)


def _chosen(network: Network, layers: Any) -> list[str]:
    """The names of the linear maps to prune, in the network's order."""
    names = list(network.maps)
    if not names:
        raise ValueError("network has no linear layer, convolution or projection that is read.")
    if layers is None:
        return names
    if callable(layers):
        chosen = [name for name in names if layers(name)]
    else:
        if isinstance(layers, str):
            raise TypeError(f"layers must be a sequence of names or a function, got the name {layers!r} alone.")
        wanted = list(layers)
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise ValueError(f"layers has unknown names {unknown}; this network has {names}.")
        chosen = [name for name in names if name in wanted]
    if not chosen:
        raise ValueError(f"layers chooses none of {names}.")
    return chosen


def _stages(network: Network, chosen: Sequence[str], batch: Any) -> list[list[str]]:
    """The linear maps in the order of their first calls, together where neighbours see the same.

    Raises:
      ValueError: for one that was not called.
    """
    first: dict[str, bytes] = {}

    def sink(name: str, received: np.ndarray) -> None:
        if name not in first:  # a digest, since patches of all layers together may be large
            first[name] = hashlib.blake2b(received.tobytes()).digest()

    network.run(batch, chosen, sink)
    idle = [name for name in chosen if name not in first]
    if idle:
        raise ValueError(f"layers {idle} are not called when the network runs: leave them out by layers=.")
    stages: list[list[str]] = []
    for name, received in first.items():
        if stages and first[stages[-1][-1]] == received:
            stages[-1].append(name)
        else:
            stages.append([name])
    return stages


def _seen(
    trained: Network, at_work: Network | None, names: Sequence[str], batches: Batches
) -> dict[str, list[LayerStatistics]]:
    """The statistics of each group of the linear maps, with what the trained network gives as targets.

    Args:
      at_work: what their inputs are taken of; None for those of the trained network itself.
    """
    maps = trained.maps
    found = {
        name: [
            LayerStatistics(maps[name].weight.shape[2], None if at_work is None else maps[name].weight.shape[1])
            for _ in range(maps[name].groups)
        ]
        for name in names
    }

    def run(network: Network, batch: Any) -> dict[str, list[np.ndarray]]:
        received: dict[str, list[np.ndarray]] = {name: [] for name in names}
        network.run(batch, names, lambda name, rows: received[name].append(rows))
        return received

    for batch in batches:
        original = run(trained, batch)
        present = original if at_work is None else run(at_work, batch)
        for name in names:
            for given, now in zip(original[name], present[name], strict=True):
                for group, statistics in enumerate(found[name]):
                    targets = None if at_work is None else _given(maps[name], group, given[group])
                    with _named(name):
                        statistics.update(now[group], targets)
    return found


def _given(linear: LinearMap, group: int, received: np.ndarray) -> np.ndarray:
    """Wx + b, (samples, out)."""
    product = received @ linear.weight[group].T
    return product if linear.bias is None else product + linear.bias[group]


def _curves(network: Network, statistics: dict[str, list[LayerStatistics]], tol: float) -> dict[str, list[ErrorCurve]]:
    return {
        name: [
            error_curve(each, network.maps[name].weight[group], _bias_of(network.maps[name], group), tol=tol)
            for group, each in enumerate(parts)
        ]
        for name, parts in statistics.items()
    }


def _parts(
    linear: LinearMap, statistics: list[LayerStatistics], shares: Sequence[Any], pattern: str, method: str, tol: float
) -> list[PrunedLayer]:
    """Each group of a linear map, pruned."""
    return [
        prune_layer(
            each, linear.weight[group], _bias_of(linear, group), sparsity=share, pattern=pattern, method=method, tol=tol
        )
        for group, (each, share) in enumerate(zip(statistics, shares))
    ]


def _bias_of(linear: LinearMap, group: int) -> np.ndarray | None:
    return None if linear.bias is None else linear.bias[group]


def _joined(parts: Sequence[PrunedLayer]) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights (groups, out, in) and biases (groups, out)."""
    biases = [part.bias for part in parts if part.bias is not None]
    return np.stack([part.weight for part in parts]), np.stack(biases) if biases else None


@contextlib.contextmanager
def _runs(network: Any) -> Iterator[None]:
    """Around the first runs of the user's own code.

    Raises:
      ValueError: for what it raises, but for what is said here of `layers`, `network` and `variables`.
    """
    try:
        yield
    except Exception as error:
        if str(error).startswith(("layers ", "network ", "variables ")):
            raise
        kind = type(network).__name__
        raise ValueError(f"inputs could not be run through {kind}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Around what concerns one layer: an error says which."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"layer {name!r}: {error}") from error
