"""What an experiment is, and the figures that all of them report."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import simjax
from benchmarks.records import Record
from simjax.pruning.network_result import PrunedMap


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an experiment is run.

    Attributes:
      seeds: of training, of the choice of samples and of attacks; each is one independent repetition.
      quick: a small version, minutes on two cores, that shows that everything runs and proves nothing.
      parts: of `Experiment.parts`, those that are run; all where there are none.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False
    parts: tuple[str, ...] = ()


class Job(NamedTuple):
    """Some records that are made together, and their entries for `Experiment.keys`."""

    keys: tuple[Record, ...]
    run: Callable[[], Iterator[Record]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A table or figure of a paper, regenerated, or one that goes beyond it.

    Attributes:
      name: on the command line, and in the names of its files.
      title: heading of its page.
      keys: the entries of a record by which a new one takes the place of an old one.
      run: settings → records, each as soon as it is there.
      section: records → the generated part of the page, in markdown.
      pictures: records → figures by name; `docs/images/paper-NAME.png` each.
      jobs: settings → what `run` does, piece by piece, so that an interrupted run can be taken up; None if it cannot.
      parts: what the command line may name after `name`, to run that alone.
    """

    name: str
    title: str
    keys: tuple[str, ...]
    run: Callable[[Settings], Iterator[Record]]
    section: Callable[[Sequence[Record]], str]
    pictures: Callable[[Sequence[Record]], Mapping[str, Figure]]
    jobs: Callable[[Settings], Iterator[Job]] | None = None
    parts: tuple[str, ...] = ()


def one_after_another(jobs: Callable[[Settings], Iterator[Job]]) -> Callable[[Settings], Iterator[Record]]:
    """`Experiment.run` of an experiment that is made of jobs."""
    return lambda settings: (record for job in jobs(settings) for record in job.run())


def certified(result: simjax.FitResult) -> Record:
    """How many rows of a fit there are, how many are certified, and the worst relative gap."""
    return {
        "rows": int(result.status.size),
        "rows_certified": int(np.count_nonzero(result.status == simjax.Status.SOLVED)),
        "worst_relative_gap": float(result.certificate.relative_gap.max()),
    }


def certified_layers(layers: Collection[PrunedMap]) -> Record:
    """What `certified` says of a fit, of the layers of a pruned network; of none, zeros."""
    return {
        "rows": sum(layer.rows for layer in layers),
        "rows_certified": sum(layer.certified for layer in layers),
        "worst_relative_gap": max((layer.worst_gap for layer in layers), default=0.0),
    }


def together(proofs: Sequence[Record]) -> Record:
    """What `certified` says of several fits, as of one."""
    added = {key: sum(proof[key] for proof in proofs) for key in ("rows", "rows_certified")}
    return {**added, "worst_relative_gap": max(proof["worst_relative_gap"] for proof in proofs)}


def all_certified(records: Sequence[Record]) -> str:
    """One sentence for a page: whether every row behind its numbers is certified."""
    rows, solved, worst = together(records).values()
    which = f"{rows:,} rows behind these numbers are"
    told = f"All {which} certified" if rows == solved else f"**{rows - solved:,} of {which} not certified**"
    return f"{told} (worst relative gap {worst:.1e})."


def spread(values: Sequence[float], form: str = ".1f", scale: float = 1.0) -> str:
    """Mean ± standard deviation over seeds; the value alone where there is one."""
    scaled = [scale * float(value) for value in values]
    if not scaled:
        return "–"
    mean = format(statistics.fmean(scaled), form)
    return mean if len(scaled) == 1 else f"{mean} ± {format(statistics.stdev(scaled), form.lstrip('+'))}"


def errorbars(
    axes: Axes, x: Sequence[float], values: Sequence[Sequence[float]], style: str, colour: str, label: str, *,
    scale: float = 1.0, size: float = 4,
) -> None:  # fmt: skip
    """Draw the means over seeds of `scale` times the values at each x, with their standard deviations."""
    y = [scale * statistics.fmean(found) for found in values]
    error = [scale * statistics.stdev(found) if len(found) > 1 else 0.0 for found in values]
    axes.errorbar(x, y, error, fmt=style, color=colour, markersize=size, capsize=2, label=label)


def interpolated(points: Iterable[tuple[float, float]], x: float) -> float | None:
    """The y at `x` on the line between the two points (x, y) next to it; None outside them."""
    xs, ys = zip(*sorted(points))
    return float(np.interp(x, xs, ys)) if xs[0] <= x <= xs[-1] else None


def at_sparsity(records: Sequence[Record], share: float, value: Callable[[Record], float]) -> list[float]:
    """A value at a sparsity, between neighbouring models, for each seed whose models lie on both sides of it."""
    seeds = grouped(records, "seed").values()
    found = (interpolated(((record["sparsity"], value(record)) for record in mine), share) for mine in seeds)
    return [y for y in found if y is not None]


def grouped(records: Sequence[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    """The records that agree in `keys`, in the order in which the first of each group came."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    return groups
