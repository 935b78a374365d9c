"""`prune`: every linear map of a trained network made sparse, layer by layer, and refitted."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

from simjax._checks import choice, nonnegative_scalar, positive_scalar
from simjax._values import Unstated
from simjax.pruning.batches import Batches
from simjax.pruning.evaluation import CURVES, EVEN, SENSITIVITY, Candidate, Evaluation, measured, weights_by_loss
from simjax.pruning.kept import KeptLayers
from simjax.pruning.layer import METHODS
from simjax.pruning.network_result import PrunedMap, PrunedNetwork, PruneProgress, share_of_zeros
from simjax.pruning.networks.linear_map import Network
from simjax.pruning.networks.torch_network import TorchNetwork
from simjax.pruning.passes import CORRECTION, Curves, Passes, curves_of, joined, named, runs, shared_out, stages_of
from simjax.pruning.patterns import SPARSITY, Pattern
from simjax.pruning.statistics import LayerStatistics
from simjax.rows.options import SolveOptions
from simjax.states.torch_layers import is_torch_module

PROPAGATIONS = ("pruned", "original")
ALLOCATIONS = ("layer", "global")


def prune(
    network: Any,
    inputs: Any,
    sparsity: float = SPARSITY,
    *,
    variables: Any = None,
    layers: Sequence[str] | Callable[[str], bool] | None = None,
    pattern: str = "unstructured",
    method: str = "auto",
    propagate: str = "pruned",
    correction: float = CORRECTION,
    allocation: str = "layer",
    evaluate: Callable[[Any], Any] | None = None,
    tol: float = SolveOptions.tol,
    checkpoint: str | PathLike[str] | None = None,
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
      propagate: "pruned": a layer sees what the layers before it, pruned, make of the inputs. "original": all see what
        they saw in the trained network, which needs one run in place of one for each stage, a stage being layers that
        follow one another and see the same.
      correction: γ in [0, 1], with `propagate` "pruned": how much of what the layers before it have lost a layer is to
        make up for. It is to give W₀(x̂ + γ(x − x̂)) + b₀ with x what it saw in the trained network and x̂ what it sees
        now: with 1 what it gave there, with 0 what it would give now; half-way was best, or near it, where measured.
      allocation: "layer": `sparsity` is that of each. "global": it is that of all together, shared out so that the sum
        of relative errors is least, by the error curve of each layer (unstructured only). Where layers differ much in
        size or in what they can do without, "layer" may cost a network all of its accuracy; see docs/pruning.md.
      evaluate: with allocation "global", your own metric, the larger the better: called with a copy of the network (of
        Linen the variables) in evaluation mode: as it is, with each layer alone pruned, and with zeros shared out in
        each way of `PrunedNetwork.evaluation`, of which the best is kept. Held-out samples are best for it. It
        costs a pass of pruning for each way and a layer's pruning for each layer.
      tol: relative duality gap at which a refitted row counts as solved.
      checkpoint: a folder that keeps each layer as soon as it is done; the same call goes on from there after whatever
        stopped it, to the same result. The network is run again, and so are error curves and the search of "l1"
        and "perspective"; a layer is taken from the folder only where all that it follows from is the same to the bit.
      progress: called with a `PruneProgress` after each layer.

    Returns:
      A `PrunedNetwork`. Rows that miss `tol` carry another status than SOLVED, and a `ConvergenceWarning` is issued.

    Raises:
      TypeError: a network that is not understood, arguments of another type.
      ValueError: no linear layer that is read, an unknown name in `layers`, values that are not finite, weights beyond
        what the network's type holds, and as `prune_layer`; the message names the layer. A network with masks of
        `torch.nn.utils.prune`; `evaluate` that gives no finite number. What `evaluate` raises comes through as it is.
        A `checkpoint` of another network, of other inputs or settings: what differs is named, and it stays as it is.
      OSError: the folder of `checkpoint` cannot be written, is a file or holds other things; what is kept is whole.

    Source: layer-wise reconstruction as in Frantar, Alistarh, SparseGPT (2023), which corrects nothing; targets of the
    trained network as in Li et al., GPTAQ (2025).

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
    gamma = nonnegative_scalar("correction", correction, most=1.0)
    if propagate == "original" and not isinstance(correction, Unstated):
        raise ValueError("correction needs propagate='pruned': with 'original' there is nothing to make up for.")
    for name, function in (("progress", progress), ("evaluate", evaluate)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable or None, got {type(function).__name__}.")
    if allocation == "global" and pattern != "unstructured":
        raise ValueError(f"pattern must be 'unstructured' for allocation 'global', got {pattern!r}.")
    if evaluate is not None and allocation != "global":
        raise ValueError(f"evaluate needs allocation='global', which has something to choose from; got {allocation!r}.")
    again = propagate == "pruned" or allocation == "global"
    batches = Batches(inputs, again=again)
    with runs(network):
        trained = _read(network, variables, batches.first)
    chosen = _chosen(trained, layers)
    for name in chosen:  # before anything is run for long
        stated = not isinstance(sparsity, Unstated)
        with named(name):
            Pattern.make(pattern, sparsity, trained.maps[name].stored.shape[1:], stated=stated)
    with runs(network):
        stages = stages_of(trained, chosen, batches.first)
    kept = None
    if checkpoint is not None:
        maps = {name: trained.maps[name] for name in chosen}
        settings = {
            "network": maps,
            "inputs": batches.digest(),
            "sparsity": float(sparsity),
            "layers": chosen,
            "pattern": pattern,
            "method": method,
            "propagate": propagate,
            "correction": gamma,
            "allocation": allocation,
            "tol": float(tol),
        }
        kept = KeptLayers.begin(checkpoint, settings)
    passes = Passes(
        trained=trained,
        again=functools.partial(_read, network, variables, batches.first),
        stages=stages,
        batches=batches,
        pattern=pattern,
        method=method,
        propagate=propagate,
        correction=gamma,
        tol=tol,
        kept=kept,
    )
    shares, curves, seen, evaluation = passes.even(sparsity), {}, None, None
    if allocation == "global":
        seen = passes.seen()
        curves = curves_of(trained, seen, tol)
        shares = shared_out(curves, sparsity)
    if evaluate is None:
        if propagate == "pruned":
            seen = None  # layers are to see something else: not held for nothing
        at_work, done = passes.pruned(shares, curves, seen, _teller(progress, chosen, ""))
    else:
        at_work, done, evaluation = _best(passes, curves, seen or {}, sparsity, evaluate, progress)
    return PrunedNetwork(
        network=at_work.finished(),
        layers=done,
        left_out=tuple(name for name in trained.maps if name not in chosen),
        others=tuple(trained.others),
        samples=batches.samples,
        seconds=time.perf_counter() - began,
        evaluation=evaluation,
    )


def _best(
    passes: Passes,
    curves: Curves,
    seen: dict[str, list[LayerStatistics]],
    sparsity: Any,
    evaluate: Callable[[Any], Any],
    progress: Callable[[PruneProgress], None] | None,
) -> tuple[Network, dict[str, PrunedMap], Evaluation]:
    """The best of the ways to share out zeros, by the user's metric, and what it gave for all of them."""
    dense, chosen = measured(evaluate, passes.trained.shown(), "the network as it was"), passes.chosen
    alone, errors, single = {}, {}, passes.copied()
    tell = _teller(progress, chosen, "one layer alone")
    for name in chosen:
        layer = PrunedMap(name, tuple(passes.pruned_parts(name, list(seen[name]), passes.even(sparsity)[name])))
        own = passes.trained.maps[name]
        with named(name):
            single.write(name, *joined(layer.parts))
        alone[name] = measured(evaluate, single.shown(), f"the network with {name!r} alone pruned")
        errors[name] = layer.relative_error
        single.write(name, own.weight, own.bias)
        tell(layer)
    ways = {CURVES: shared_out(curves, sparsity)}
    weights = weights_by_loss(dense, alone, errors)
    if weights is not None:
        ways[SENSITIVITY] = shared_out(curves, sparsity, weights)
    ways[EVEN] = passes.even(float(sparsity))
    candidates: list[Candidate] = []
    best: tuple[float, Network, dict[str, PrunedMap]] | None = None
    for way, shares in ways.items():
        at_work, done = passes.pruned(shares, curves, seen, _teller(progress, chosen, way))
        metric = measured(evaluate, at_work.shown(), f"the network with zeros shared out by {way!r}")
        weighed = {name: tuple(float(share) for share in parts) for name, parts in shares.items()}
        candidates.append(Candidate(way, metric, share_of_zeros(done), weighed))
        if best is None or metric > best[0]:
            best, kept = (metric, at_work, done), way
    assert best is not None
    return best[1], best[2], Evaluation(dense, tuple(candidates), kept, alone)


def _teller(
    progress: Callable[[PruneProgress], None] | None, chosen: Sequence[str], stage: str
) -> Callable[[PrunedMap], None]:
    """Tells the user's callback of one layer after another."""
    count = itertools.count(1)

    def tell(layer: PrunedMap) -> None:
        if progress is not None:
            progress(PruneProgress(layer.name, next(count), len(chosen), layer.relative_error, stage))

    return tell


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
        left = f"; what has parameters is left alone: {', '.join(network.others)}" if network.others else ""
        raise ValueError(f"network has no linear layer, convolution or projection that is read{left}.")
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
