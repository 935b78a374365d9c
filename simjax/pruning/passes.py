"""One pass after another through a network: what its linear maps see, and what becomes of each."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from simjax._values import Unstated
from simjax.pruning.batches import Batches
from simjax.pruning.curve import ErrorCurve, allocate, error_curve
from simjax.pruning.kept import KeptLayers
from simjax.pruning.layer import pruned_layer
from simjax.pruning.network_result import PrunedMap
from simjax.pruning.networks.linear_map import LinearMap, Network, Received
from simjax.pruning.problem import LayerProblem
from simjax.pruning.result import PrunedLayer
from simjax.pruning.statistics import LayerStatistics
from simjax.rows.memory import give_back_freed

CORRECTION = Unstated(0.5)  # measured on a sentence encoder; see docs/pruning.md
Shares = dict[str, list[Any]]  # of each layer, of each group of its channels
Curves = dict[str, list[ErrorCurve]]


def stages_of(network: Network, chosen: Sequence[str], batch: Any) -> list[list[str]]:
    """The linear maps in the order of their first calls, together where neighbours see the same.

    Raises:
      ValueError: for one that was not called.
    """
    first: dict[str, bytes] = {}

    def sink(name: str, received: Received) -> None:
        if name not in first:  # a digest, since patches of all layers together may be large
            first[name] = hashlib.blake2b(received().tobytes()).digest()

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


class _Enough(BaseException):
    """Ends a run of which nothing more is needed; no `except Exception` of the user's network holds it up."""


class Calls:
    """How often each linear map is called in each batch, counted when the trained network is first run on it."""

    def __init__(self, chosen: Sequence[str]) -> None:
        self._chosen = chosen
        self._counted: list[dict[str, int]] = []

    def received(self, network: Network, number: int, batch: Any, names: Sequence[str]) -> dict[str, list[np.ndarray]]:
        """What the linear maps of these names receive, call by call. A run ends with the last call that was counted.

        Args:
          number: of the batch; each is first run on the trained network.
        """
        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        first = number == len(self._counted)
        if first:
            self._counted.append(dict.fromkeys(self._chosen, 0))
        counted = self._counted[number]
        left = -1 if first else sum(counted[name] for name in names)

        def sink(name: str, rows: Received) -> None:
            nonlocal left
            if name in found:
                found[name].append(rows())
                left -= 1
            if first:
                counted[name] += 1
            elif left == 0:
                raise _Enough

        with contextlib.suppress(_Enough):
            network.run(batch, self._chosen if first else names, sink)
        return found


def seen_by(
    trained: Network,
    at_work: Network | None,
    names: Sequence[str],
    batches: Batches,
    calls: Calls,
    correction: float = CORRECTION,
) -> dict[str, list[LayerStatistics]]:
    """The statistics of each group of the linear maps.

    Args:
      at_work: what their inputs x̂ are taken of; None for those of the trained network itself, x.
      calls: of the trained network.
      correction: γ in the targets W₀(x̂ + γ(x − x̂)) + b₀.
    """
    maps = trained.maps
    found = {
        name: [
            LayerStatistics(maps[name].stored.shape[2], None if at_work is None else maps[name].stored.shape[1])
            for _ in range(maps[name].groups)
        ]
        for name in names
    }
    for number, batch in enumerate(batches):
        original = calls.received(trained, number, batch, names)
        present = original if at_work is None else calls.received(at_work, number, batch, names)
        for name in names:
            for given, now in zip(original[name], present[name], strict=True):
                for group, statistics in enumerate(found[name]):
                    seen, targets = now[group], None
                    if at_work is not None:
                        targets = given_by(maps[name], group, seen + correction * (given[group] - seen))
                    with named(name):
                        statistics.update(seen, targets)
    give_back_freed()
    return found


def given_by(linear: LinearMap, group: int, received: np.ndarray) -> np.ndarray:
    """Wx + b, (samples, out)."""
    product = received @ linear.weight[group].T
    return product if linear.bias is None else product + linear.bias[group]


def curves_of(
    network: Network, statistics: dict[str, list[LayerStatistics]], tol: float
) -> dict[str, list[ErrorCurve]]:
    return {
        name: [
            error_curve(each, network.maps[name].weight[group], bias_of(network.maps[name], group), tol=tol)
            for group, each in enumerate(parts)
        ]
        for name, parts in statistics.items()
    }


def bias_of(linear: LinearMap, group: int) -> np.ndarray | None:
    return None if linear.bias is None else linear.bias[group]


def joined(parts: Sequence[PrunedLayer]) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights (groups, out, in) and biases (groups, out)."""
    biases = [part.bias for part in parts if part.bias is not None]
    return np.stack([part.weight for part in parts]), np.stack(biases) if biases else None


@contextlib.contextmanager
def runs(network: Any) -> Iterator[None]:
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
def named(name: str) -> Iterator[None]:
    """Around what concerns one layer: an error says which."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"layer {name!r}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Passes:
    """The passes of one call of `prune`, whatever the shares of zeros.

    Attributes:
      trained: the network as it was passed in.
      again: makes another copy of it.
      stages: the layers to prune, in the order in which they run, together where they see the same.
      batches: the inputs.
      pattern, method, propagate, correction, tol: as in `prune`.
      kept: where finished layers are kept, or None.
    """

    trained: Network
    again: Callable[[], Network]
    stages: list[list[str]]
    batches: Batches
    pattern: str
    method: str
    propagate: str
    tol: float
    correction: float = CORRECTION
    kept: KeptLayers | None = None

    @functools.cached_property
    def calls(self) -> Calls:
        return Calls(self.chosen)

    def copied(self) -> Network:
        """Another copy of the trained network, to be written to; what its maps were is held once for all copies."""
        copy = self.again()
        copy.maps = self.trained.maps
        return copy

    @property
    def chosen(self) -> list[str]:
        """The layers to prune, in the order in which they run."""
        return [name for stage in self.stages for name in stage]

    def seen(self) -> dict[str, list[LayerStatistics]]:
        """What all layers see in the trained network."""
        return seen_by(self.trained, None, self.chosen, self.batches, self.calls)

    def even(self, sparsity: Any) -> Shares:
        """The same share of zeros for each layer."""
        return {name: [sparsity] * self.trained.maps[name].groups for name in self.chosen}

    def pruned_parts(self, name: str, statistics: list[LayerStatistics], shares: Sequence[Any]) -> list[PrunedLayer]:
        """A layer, each group of its channels.

        Args:
          statistics: of each group; they are taken out of the list, so that none is held when it is needed no more.
        """
        linear, parts = self.trained.maps[name], []
        for group, share in enumerate(shares):
            began = time.perf_counter()
            how: dict[str, Any] = {
                "sparsity": share,
                "pattern": self.pattern,
                "method": self.method,
                "tol": self.tol,
            }
            keep = None
            if self.kept is not None:
                keep = functools.partial(self.kept.layer, self.chosen.index(name), group, how)
            with named(name):
                problem = LayerProblem.make(statistics.pop(0), linear.weight[group], bias_of(linear, group), None)
                parts.append(pruned_layer(problem, began=began, keep=keep, **how))
        give_back_freed()
        return parts

    def pruned(
        self,
        shares: Shares,
        curves: Curves,
        seen: dict[str, list[LayerStatistics]] | None,
        tell: Callable[[PrunedMap], None],
    ) -> tuple[Network, dict[str, PrunedMap]]:
        """The network with these shares of zeros, and its layers.

        Args:
          seen: what the layers see in the trained network, if it is known; not needed for `propagate` "pruned".
          tell: is told of each layer when it is done.
        """
        at_work, done = self.copied(), dict[str, PrunedMap]()
        if self.propagate == "original" and seen is None:
            seen = self.seen()
        for number, stage in enumerate(self.stages):
            if self.propagate == "pruned":
                # Until something has been pruned, a layer sees what it saw: its own outputs are the targets.
                so_far = at_work if number else None
                seen = seen_by(self.trained, so_far, stage, self.batches, self.calls, self.correction)
            assert seen is not None
            for name in stage:
                own = seen.pop(name) if self.propagate == "pruned" else list(seen[name])
                parts = self.pruned_parts(name, own, shares[name])
                done[name] = PrunedMap(name, tuple(parts), tuple(curves.get(name, ())))
                with named(name):
                    at_work.write(name, *joined(parts))
                tell(done[name])
        # A network that rescales its kernels when it runs would not multiply by those that were written.
        at_work.run(self.batches.first, self.chosen, lambda name, received: None)
        return at_work, done


def shared_out(curves: Curves, sparsity: Any, weights: Mapping[str, float] | None = None) -> Shares:
    """Shares of zeros with the least sum of relative errors of the layers, weighed by name."""
    flat = [curve for parts in curves.values() for curve in parts]
    omega = None if weights is None else [weights[name] for name, parts in curves.items() for _ in parts]
    found = iter(allocate(flat, sparsity, omega).tolist())
    return {name: [next(found) for _ in parts] for name, parts in curves.items()}
