"""States that are not kept: batches streamed into the statistics that state the same rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import scipy.sparse

from simjax._checks import positive_integer
from simjax._typing import ArrayLike
from simjax.implicit.model import ImplicitModel
from simjax.rows.centring import Centring, checked_sample_weight
from simjax.rows.statistics import SufficientStatistics
from simjax.states.plausible import warn_of_no_negative_preactivation, warn_of_other_doubts
from simjax.states.sampled import SampledStates
from simjax.states.states import States


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class StreamedStates(SampledStates):
    """What `fit` needs of the states of a baseline network, without the samples. Build it with `stream_states`.

    `fit` poses its rows on the compressed samples of `SufficientStatistics`, at most d + 1, and they are the problem
    of all m samples, so that certificates, `FitResult.verify` and `verify_model` mean what they mean for `States`.
    The dual point y′ of a row then has an entry per compressed sample; with a matrix product over the samples it is
    lifted to y = Φa + 2λt, where a solves Φ′a = y′ − 2λt′ (y = Φa, Φ′a = y′, under exact matching), which proves the
    row on the samples themselves: `recertify` does so.

    Attributes:
      sample: a few of the states, from which sizes, activation, layers and baseline are read.
      statistics: of the design [X U 1] and the targets [Z Y].

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> inputs = np.random.default_rng(0).normal(size=(30, 3))
      >>> streamed = simjax.stream_states([simjax.collect_states(MLP((3, 5, 2)), inputs)])
      >>> streamed.m, streamed.n, streamed.p, streamed.q
      (30, 5, 3, 2)
    """

    sample: States
    statistics: SufficientStatistics

    @classmethod
    def from_arrays(
        cls,
        inputs: Any,
        preactivations: Any,
        activations: Any,
        outputs: Any,
        *,
        activation: str = "relu",
        layer_sizes: tuple[int, ...] | None = None,
        baseline: ImplicitModel | None = None,
        has_biases: bool | None = None,
        sample_weight: ArrayLike | None = None,
        batch_size: int = 4096,
    ) -> StreamedStates:
        """The statistics of arrays that need not fit in memory.

        Args:
          inputs, preactivations, activations, outputs: as in `States`; anything with a shape that gives arrays when
            sliced, such as np.memmap, an HDF5 data set or a matrix of scipy.sparse. `batch_size` samples are read at a
            time, each once, and arrays made of them.
          activation, layer_sizes, baseline, has_biases: as in `States`.
          sample_weight: as in `stream_states`.
          batch_size: samples that are in memory at once.

        Raises:
          TypeError, ValueError: as `States`, for each batch.
        """
        named = {
            "inputs": inputs,
            "preactivations": preactivations,
            "activations": activations,
            "outputs": outputs,
        }
        arrays = {name: _sliceable(value) for name, value in named.items()}
        batch_size = positive_integer("batch_size", batch_size)
        for name, array in arrays.items():
            if len(array.shape) != 2:
                raise ValueError(f"{name} must be a 2-D array, got {len(array.shape)}-D with shape {array.shape}.")
            if 0 in array.shape:
                raise ValueError(f"{name} must not be empty, got shape {array.shape}.")
            if array.shape[0] != arrays["inputs"].shape[0]:
                raise ValueError(
                    f"{name} has {array.shape[0]} rows, but inputs has m = {arrays['inputs'].shape[0]}: "
                    f"expected one row per sample."
                )

        def batches() -> Iterator[States]:
            for start in range(0, arrays["inputs"].shape[0], batch_size):
                parts = {name: _batch(array, start, batch_size) for name, array in arrays.items()}
                try:
                    yield States(
                        **parts,
                        activation=activation,
                        layer_sizes=layer_sizes,
                        baseline=baseline,
                        has_biases=has_biases,
                    )
                except ValueError as error:
                    raise ValueError(f"samples {start} … {start + len(parts['inputs']) - 1}: {error}") from error

        return stream_states(batches(), sample_weight=checked_sample_weight(sample_weight, arrays["inputs"].shape[0]))

    @property
    def m(self) -> int:
        """Number of samples."""
        return self.statistics.m

    def rescaled(self, scale: ArrayLike) -> StreamedStates:
        """These states with z′ = s·z and x′ = s·x; as `States.rescaled`."""
        sample = self.sample.rescaled(scale)
        scale = np.asarray(scale, dtype=np.float64)
        statistics = self.statistics.scaled(
            np.concatenate([scale, np.ones(self.p + 1)]), np.concatenate([scale, np.ones(self.q)])
        )
        return StreamedStates(sample, statistics)

    def compressed(self, ones: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Design [X U], with `ones` [X U 1], and targets [Z Y]: at most d + 1 samples that stand for all m."""
        return self.statistics.compressed(self.n + self.p + int(ones))

    def centred(self) -> tuple[np.ndarray, np.ndarray, Centring]:
        """Design [X U] and targets [Z Y] about their means, compressed as well, and these means."""
        rest, means = self.statistics.without_last()
        d = self.n + self.p
        return *rest.compressed(), Centring(means[:d], means[d:], self.statistics.total_weight)


def stream_states(batches: Iterable[States], *, sample_weight: ArrayLike | None = None) -> StreamedStates:
    """Stream the states of one network, batch by batch, into statistics that `fit` accepts in place of `States`.

        stream_states(collect_states(network, U[i : i + 4096]) for i in range(0, len(U), 4096))

    A batch or two are in memory at a time, and a few times (n + p + 1 + n + q)² numbers.

    Args:
      batches: any iterable of `States`, gone through once.
      sample_weight: v ≥ 0, one number for each sample of all batches, in their order; None means ones. See `fit`.

    Raises:
      TypeError: if a batch is not `States`.
      ValueError: if there is no batch, or batches differ in n, p, q, activation, layer sizes, baseline, has_biases or
        names; or for weights that are negative, all zero, or of another number than the samples.

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> network, inputs = MLP((3, 5, 2)), np.random.default_rng(0).normal(size=(30, 3))
      >>> streamed = simjax.stream_states(simjax.collect_states(network, inputs[i : i + 10]) for i in (0, 10, 20))
      >>> simjax.fit(streamed, "l1", alpha=0.1).converged
      True
    """
    sample: States | None = None
    statistics: SufficientStatistics | None = None
    negative = False
    for batch, weight in weighted_batches(batches, sample_weight):
        if sample is None or statistics is None:
            sample = _extreme_samples(batch)
            warn_of_other_doubts(batch, without_biases=batch.has_biases is None)
            statistics = SufficientStatistics(batch.n + batch.p + 1, batch.n + batch.q)
        if weight is None or np.any(weight):
            statistics.update(*design_and_targets(batch, ones=True), weight)
        negative = negative or bool(np.any(batch.preactivations < 0.0))
    if sample is None or statistics is None:
        raise ValueError("batches must hold at least one batch of simjax.States, got none.")
    if sample.activation == "relu" and sample.baseline is None and not negative:
        warn_of_no_negative_preactivation()
    return StreamedStates(sample, statistics)


def weighted_batches(
    batches: Iterable[States], sample_weight: ArrayLike | None
) -> Iterator[tuple[States, np.ndarray | None]]:
    """The batches, each checked against the first, with the weights of their samples."""
    weight = None
    if sample_weight is not None:
        weight = checked_sample_weight(sample_weight, np.size(sample_weight))
    done = 0
    for batch in agreeing_batches(batches):
        part = None if weight is None else weight[done : done + batch.m]
        done += batch.m
        if part is not None and part.size < batch.m:
            raise ValueError(f"sample_weight must have one number for each sample, got {done - batch.m + part.size}.")
        yield batch, part
    if weight is not None and done and done != weight.size:
        raise ValueError(f"sample_weight must have one number for each of the {done} samples, got {weight.size}.")


def agreeing_batches(batches: Iterable[States]) -> Iterator[States]:
    """The batches, each checked against the first."""
    if isinstance(batches, States) or not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of simjax.States, got {type(batches).__name__}.")
    first: States | None = None
    for number, batch in enumerate(batches):
        if not isinstance(batch, States):
            raise TypeError(f"batches must hold simjax.States, got {type(batch).__name__} as batch {number}.")
        if first is None:
            first = _extreme_samples(batch)
        for name in ("n", "p", "q", "activation", "layer_sizes", "has_biases", "names"):
            if getattr(batch, name) != getattr(first, name):
                raise ValueError(
                    f"batches must come from one network: batch {number} has {name} = {getattr(batch, name)!r}, "
                    f"batch 0 has {getattr(first, name)!r}."
                )
        if not _same_model(batch.baseline, first.baseline):
            raise ValueError(f"batches must come from one network: batch {number} has another baseline than batch 0.")
        yield batch


def _sliceable(value: Any) -> Any:
    if scipy.sparse.issparse(value):
        given: Any = value
        return given.tocsr()
    return value if hasattr(value, "shape") else np.asarray(value)


def _batch(array: Any, start: int, size: int) -> Any:
    part: Any = array[start : start + size]
    return part.toarray() if hasattr(part, "toarray") else part


def _extreme_samples(batch: States) -> States:
    """The samples with the largest entries: by themselves they are checked at the scale of the whole batch."""
    arrays = (batch.preactivations, batch.activations, batch.outputs)
    return batch.subset(np.unique([int(np.abs(array).max(axis=1).argmax()) for array in arrays]))


def _same_model(one: ImplicitModel | None, other: ImplicitModel | None) -> bool:
    if one is None or other is None or one is other:
        return one is other
    one, other = one.to_dense(), other.to_dense()
    if one.activation != other.activation:
        return False
    names = ("A", "B", "C", "D", "b", "c")
    return all(_same_array(getattr(one, name), getattr(other, name)) for name in names)


def _same_array(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)


def design_and_targets(batch: States, *, ones: bool) -> tuple[np.ndarray, np.ndarray]:
    """Design [X U], with `ones` [X U 1], and targets [Z Y]."""
    last = [np.ones((batch.m, 1))] if ones else []
    return (
        np.concatenate([batch.activations, batch.inputs, *last], axis=1),
        np.concatenate([batch.preactivations, batch.outputs], axis=1),
    )
