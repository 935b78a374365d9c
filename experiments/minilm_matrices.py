"""The linear maps of MiniLM-L6, and what a method of pruning makes of each: one by one, or in turn, in the encoder."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.pruning_peers import PEERS
from experiments import minilm
from simjax._values import Unstated
from simjax.pruning.batches import Batches
from simjax.pruning.evaluation import Evaluation
from simjax.pruning.layer import prune_layer, refitted
from simjax.pruning.network_result import PrunedMap
from simjax.pruning.networks.flax_networks import read_flax
from simjax.pruning.passes import Passes, stages_of
from simjax.pruning.patterns import Pattern
from simjax.pruning.problem import LayerProblem
from simjax.pruning.prune import prune
from simjax.pruning.result import PrunedLayer
from simjax.pruning.statistics import LayerStatistics
from simjax.rows.options import SolveOptions

# Beside the names of `PEERS`: ours with the same share of zeros in each matrix as all peers, and with zeros shared out
# as `evaluate` says; and with the ends of what `correction` may be.
OURS, EVALUATED, DENSE = "ours", "ours, evaluate", "dense"
CORRECTIONS = {"ours, correction 0": 0.0, "ours, correction 1": 1.0}
METHODS = (EVALUATED, OURS, *CORRECTIONS, *reversed(PEERS))
ALONE, IN_TURN = "alone", "in turn"  # by what the trained encoder shows, or the pruned one
HOW = (IN_TURN, ALONE)
LEVELS = ("0.5", "0.6", "0.7", "0.8", "0.9", "2:4")
Name = tuple[int, str]  # number of the encoder's layer, name of the linear map in it
Tokens = np.ndarray  # numbers (texts, length), without padding


# --- What the linear maps see ------------------------------------------------------------------------------------


class Moments:
    """Sums of the products of inputs and a column of ones, in float64: enough for errors, which are sums of squares."""

    def __init__(self, width: int) -> None:
        self.sums = np.zeros((width + 1, width + 1))

    def update(self, inputs: np.ndarray) -> None:
        """Take in inputs (k, in)."""
        rows = np.column_stack([inputs.astype(np.float64), np.ones(len(inputs))])
        self.sums += rows.T @ rows


def seen(encoder: Any, batches: Iterator[Tokens], tokens: int, make: Callable[[int], Any]) -> dict[Name, Any]:
    """The inputs of every linear map on the next `tokens` tokens of the batches, in one pass.

    Args:
      encoder: a `minilm.SentenceEncoder`.
      batches: those that are needed are taken, so that what follows are other texts.
      tokens: how many.
      make: width → an object with `update`. Query, key and value see the same: theirs is one object.

    Raises:
      ValueError: if there are fewer tokens.
    """
    found: dict[Name, Any] = {}
    done = 0
    for numbers in batches:

        def see(number: int, name: str, inputs: Any, left: int = tokens - done) -> None:
            if name in ("key", "value"):
                found[number, name] = found[number, "query"]
                return
            values = np.asarray(inputs).reshape(-1, inputs.shape[-1])[:left]
            if (number, name) not in found:
                found[number, name] = make(values.shape[1])
            found[number, name].update(values)

        encoder(jnp.asarray(numbers), see=see)
        done += numbers.size
        if done >= tokens:
            return found
    raise ValueError(f"tokens must be at most {done}, as many as the texts have, got {tokens}.")


def weights_of(encoder: Any, name: Name) -> tuple[np.ndarray, np.ndarray]:
    """W₀ (out, in) and b₀ (out,) of a linear map, in float64."""
    linear = getattr(encoder.layers[name[0]], name[1])
    return np.asarray(linear.kernel[...], dtype=np.float64).T, np.asarray(linear.bias[...], dtype=np.float64)


# --- One of them, pruned -----------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a method makes of a linear map.

    Attributes:
      weight, bias: (out, in), (out,).
      refit: the certified refit that they come from; None for a peer's weights as they are.
      seconds: to find them, of a refitted peer with the refit.
    """

    weight: np.ndarray
    bias: np.ndarray
    refit: PrunedLayer | None
    seconds: float


def share_and_pattern(zeros: str) -> tuple[Any, str]:
    """What `prune` and `prune_layer` take as `sparsity` and `pattern`, of a share or n:m."""
    return (Unstated(0.0), zeros) if ":" in zeros else (float(zeros), "unstructured")


def by_peer(problem: LayerProblem, method: str, zeros: str) -> np.ndarray:
    """The sparse weights (out, in) that a peer finds."""
    sparsity, name = share_and_pattern(zeros)
    pattern = Pattern.make(name, sparsity, problem.weight.shape, stated=":" not in zeros)
    return PEERS[method](gram_of(problem), problem.weight, pattern)


def gram_of(problem: LayerProblem) -> np.ndarray:
    """XᵀX of the inputs themselves, (in, in), of a layer with a bias."""
    centring = problem.centring
    assert centring is not None
    return problem.gram + centring.total * np.outer(centring.design, centring.design)


@dataclasses.dataclass(frozen=True, eq=False)
class Matrix:
    """A linear map, with what it sees in calibration and on tokens that are held out.

    Attributes:
      weight, bias: W₀ (out, in), b₀ (out,).
      calibration: of its inputs.
      held_out: sums of products of its inputs and ones on other tokens, (in + 1, in + 1).
    """

    weight: np.ndarray
    bias: np.ndarray
    calibration: LayerStatistics
    held_out: np.ndarray

    def error(self, weight: np.ndarray, bias: np.ndarray) -> float:
        """‖X(W − W₀)ᵀ + 1(b − b₀)ᵀ‖² / ‖XW₀ᵀ‖² on the tokens held out."""
        moved = np.column_stack([weight - self.weight, bias - self.bias])
        outputs = np.sum((self.weight @ self.held_out[:-1, :-1]) * self.weight)
        return float(np.sum((moved @ self.held_out) * moved) / outputs)

    def pruned(self, method: str, zeros: str) -> Iterator[Answer]:
        """By a peer as it is and then refitted, or by `prune_layer`, which refits.

        Args:
          method: `OURS`, or a name of `PEERS`.
          zeros: a share, or n:m.
        """
        sparsity, name = share_and_pattern(zeros)
        if method == OURS:
            ours = prune_layer(self.calibration, self.weight, self.bias, sparsity=sparsity, pattern=name)
            assert ours.bias is not None
            yield Answer(ours.weight, ours.bias, ours, ours.seconds)
            return
        began = time.perf_counter()
        problem = LayerProblem.make(self.calibration, self.weight, self.bias, None)
        found = by_peer(problem, method, zeros)
        yield Answer(found, self.bias, None, time.perf_counter() - began)
        better = refitted(problem, found != 0.0, name, method, SolveOptions(), began)
        assert better.bias is not None
        yield Answer(better.weight, better.bias, better, better.seconds)


def matrices(encoder: Any, batches: Iterator[Tokens], calibration: int, held_out: int) -> dict[Name, Matrix]:
    """All linear maps of the encoder, calibrated on so many tokens of the batches, with so many others held out."""
    given = seen(encoder, batches, calibration, LayerStatistics)
    kept = seen(encoder, batches, held_out, Moments)
    names = [(number, name) for number in range(encoder.sizes.layers) for name in minilm.LINEAR]
    return {name: Matrix(*weights_of(encoder, name), given[name], kept[name].sums) for name in names}


# --- All of them in turn -----------------------------------------------------------------------------------------


class Raw(NamedTuple):
    """A peer's weights as they are, in the place of a `PrunedLayer`."""

    weight: np.ndarray
    bias: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class PeerPasses(Passes):
    """The passes of `prune`, where a peer finds the weights, or the support for a refit.

    Attributes:
      zeros: a share, or n:m.
      refit: whether the weights are refitted, as `prune` does, to what the trained encoder gives.
    """

    zeros: str = ""
    refit: bool = False

    def pruned_parts(self, name: str, statistics: list[LayerStatistics], shares: Sequence[Any]) -> list[Any]:
        linear = self.trained.maps[name]
        assert linear.bias is not None
        began = time.perf_counter()
        problem = LayerProblem.make(statistics[0], linear.weight[0], linear.bias[0], None)
        found = by_peer(problem, self.method, self.zeros)
        if not self.refit:
            return [Raw(found, linear.bias[0])]
        return [refitted(problem, found != 0.0, self.pattern, self.method, SolveOptions(), began)]


class InTurn(NamedTuple):
    """An encoder whose linear maps were pruned one after another, each by what those before it make of the texts.

    Attributes:
      encoder: with sparse weights.
      layers: a `PrunedMap` for each map that was refitted.
      seconds: for all of it, the passes through the encoder too.
      evaluation: of `EVALUATED`, what its metric gave.
    """

    encoder: Any
    layers: list[PrunedMap]
    seconds: float
    evaluation: Evaluation | None = None


def pruned_in_turn(
    encoder: Any,
    batches: Sequence[Tokens],
    method: str,
    zeros: str,
    *,
    refit: bool,
    evaluate: Callable[[Any], float] | None = None,
) -> InTurn:
    """By `prune`, or by a peer in the same passes. Each sees the inputs that the pruned maps before it make.

    Args:
      refit: of a peer: whether its supports are refitted.
      evaluate: of `EVALUATED`, as `prune` takes it.
    """
    sparsity, pattern = share_and_pattern(zeros)
    began = time.perf_counter()
    if method not in PEERS:
        how: dict[str, Any] = {"pattern": pattern}
        if method in CORRECTIONS:
            how["correction"] = CORRECTIONS[method]
        if method == EVALUATED:
            how |= {"allocation": "global", "evaluate": evaluate}
        result = prune(encoder, batches, sparsity, **how)
        layers = list(result.layers.values())
        return InTurn(result.network, layers, time.perf_counter() - began, result.evaluation)
    read = functools.partial(read_flax, encoder, None, batches[0])
    trained = read()
    passes = PeerPasses(
        trained=trained,
        again=read,
        stages=stages_of(trained, list(trained.maps), batches[0]),
        batches=Batches(batches, again=True),
        pattern=pattern,
        method=method,
        propagate="pruned",
        tol=SolveOptions.tol,
        zeros=zeros,
        refit=refit,
    )
    at_work, done = passes.pruned(passes.even(sparsity), {}, None, lambda layer: None)
    return InTurn(at_work.finished(), list(done.values()) if refit else [], time.perf_counter() - began)


# --- Embeddings --------------------------------------------------------------------------------------------------


class Texts:
    """Texts as batches of few shapes, so that few programs are compiled: by length, padded to multiples of 16."""

    def __init__(self, numbers: Sequence[Sequence[int]], size: int = 32) -> None:
        self.order = np.argsort([len(text) for text in numbers], kind="stable")
        self.batches: list[tuple[np.ndarray, np.ndarray]] = []  # token numbers and mask
        for start in range(0, len(numbers), size):
            part = [numbers[k] for k in self.order[start : start + size]]
            length = -(-max(map(len, part)) // 16) * 16
            tokens, mask = np.zeros((size, length), dtype=np.int32), np.zeros((size, length), dtype=bool)
            for row, text in enumerate(part):
                tokens[row, : len(text)], mask[row, : len(text)] = text, True
            mask[len(part) :, 0] = True  # what fills the last batch; left out of the answer
            self.batches.append((tokens, mask))

    def embedded(self, encoder: Any) -> np.ndarray:
        """Embeddings (texts, width), in the order in which the texts came."""
        graph, state = nnx.split(encoder)
        found = np.concatenate([np.asarray(_embeddings(graph, state, *batch)) for batch in self.batches])
        sorted_ = found[: len(self.order)]
        answer = np.empty_like(sorted_)
        answer[self.order] = sorted_
        return answer


@functools.partial(jax.jit, static_argnums=0)
def _embeddings(graph: Any, state: Any, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    return nnx.merge(graph, state)(tokens, mask)
