"""What the papers behind simjax claim, beside our numbers: `python -m experiments claims PAPER`.

One module a paper. Every case of a paper is one record for each seed, written when it is there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

from matplotlib.figure import Figure

from benchmarks.records import Record
from experiments.claims import geq, lben, linear_deq, nemon, opteq, sim, single_index
from experiments.experiment import Experiment, Job, Settings, one_after_another

NAME = "claims"
PAPERS = {module.PAPER.name: module.PAPER for module in (nemon, lben, opteq, geq, linear_deq, single_index, sim)}


def jobs(settings: Settings) -> Iterator[Job]:
    """Each case of the papers that are asked for, with each seed: one program serves the seeds of a case."""
    for name in settings.parts or PAPERS:
        for case in PAPERS[name].cases(settings.quick):
            for seed in settings.seeds:
                keys = {"paper": name, "seed": seed, "case": case}
                yield Job((keys,), functools.partial(measured, keys, settings.quick))


def measured(keys: Record, quick: bool) -> Iterator[Record]:
    """The record of a case."""
    yield {**keys, **PAPERS[keys["paper"]].measure(keys["case"], keys["seed"], quick)}


def of(name: str, records: Sequence[Record]) -> list[Record]:
    """The records of a paper."""
    return [record for record in records if record["paper"] == name]


def section(records: Sequence[Record]) -> str:
    """A section for each paper that has records, and for those that need none."""
    there = [paper for paper in PAPERS.values() if of(paper.name, records) or not paper.cases(False)]
    return "\n\n".join(paper.section(of(paper.name, records)) for paper in there)


def pictures(records: Sequence[Record]) -> Mapping[str, Figure]:
    """One for each paper that draws one."""
    drawn = {f"{NAME}-{name}": paper.picture(of(name, records)) for name, paper in PAPERS.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


EXPERIMENT = Experiment(
    name=NAME,
    title="The papers' claims, beside our numbers",
    keys=("paper", "seed", "case"),
    run=one_after_another(jobs),
    section=section,
    pictures=pictures,
    jobs=jobs,
    parts=tuple(PAPERS),
)
