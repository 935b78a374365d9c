"""Run an experiment, of the papers or beyond them: `python -m experiments NAME [--quick]`.

Writes experiments/results/NAME.json record by record, the generated part of docs/experiments/NAME.md between its two
markers, and docs/images/paper-*.png. With --quick nothing is written unless --folder names a place for all of it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.records import ROOT, merge, place, plain, read, write_between, write_text
from experiments.experiment import Experiment, Settings
from simjax._files import atomic_file

# Experiments by name; each module holds one as EXPERIMENT, and is imported only when it is asked for.
NAMES: tuple[str, ...] = (
    "robustness",
    "curves",
    "parallelism",
    "newsgroups",
    "cifar",
    "cifar-full",
    "kappa",
    "pareto",
    "against-implicit",
    "networks",
    "prune-fashion",
    "prune-minilm",
    "prune-resnet",
    "claims",
)
BEGIN, END = "<!-- generated:begin -->", "<!-- generated:end -->"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("parts", nargs="*", metavar="PART", help="of claims: the papers to run; all if none is named")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="0 1 2, or 0 with --quick")
    parser.add_argument("--quick", action="store_true", help="a small version that proves nothing; writes nothing")
    parser.add_argument("--folder", type=Path, help="write into this folder and not into the checkout")
    parser.add_argument("--report", action="store_true", help="only the page and pictures, from the records there are")
    parser.add_argument(
        "--missing", action="store_true", help="take up a run that was interrupted: make what is missing"
    )
    parser.add_argument("--minutes", type=float, help="begin no new job after so many; see --missing")
    given = parser.parse_intermixed_args(arguments)
    experiment = find(given.name)
    unknown = [part for part in given.parts if part not in experiment.parts]
    if unknown:
        parser.error(f"{experiment.name} has no part {unknown[0]!r}; it has {', '.join(experiment.parts) or 'none'}")
    seeds = tuple(given.seeds or ((0,) if given.quick else (0, 1, 2)))
    files = Files.at(experiment, given.folder, writes=not given.quick or given.folder is not None)
    if given.missing and (experiment.jobs is None or files is None):
        parser.error("--missing needs files of records, and an experiment that is made of jobs")
    if given.minutes is not None and experiment.jobs is None:
        parser.error("--minutes needs an experiment that is made of jobs")
    settings = Settings(seeds, given.quick, tuple(given.parts))
    options = {"missing": given.missing, "minutes": given.minutes}
    records = [] if given.report else run(experiment, settings, files, **options)
    if files is not None:
        records = read(files.records)
    if not records and not given.parts:
        parser.error(f"there are no records of {experiment.name}")
    if files is None:
        print(experiment.section(records))
    else:
        report(experiment, records, files)


def find(name: str) -> Experiment:
    """The experiment of that name."""
    return importlib.import_module(f"experiments.{name.replace('-', '_')}").EXPERIMENT


class Files:
    """Where an experiment's records, page and pictures go."""

    def __init__(self, experiment: Experiment, records: Path, page: Path, pictures: Path) -> None:
        self.records = records / f"{experiment.name}.json"
        self.page = page / f"{experiment.name}.md"
        self.pictures = pictures

    @classmethod
    def at(cls, experiment: Experiment, folder: Path | None, *, writes: bool) -> Files | None:
        """In the checkout, in one folder, or nowhere."""
        if not writes:
            return None
        if folder is not None:
            return cls(experiment, folder, folder, folder)
        results, docs = ROOT / "experiments" / "results", ROOT / "docs"
        return cls(experiment, results, docs / "experiments", docs / "images")


def run(
    experiment: Experiment,
    settings: Settings,
    files: Files | None,
    *,
    missing: bool = False,
    minutes: float | None = None,
) -> list[dict]:
    """All records, each written as soon as it is there, with the seconds since the one before.

    Args:
      experiment, settings, files: what to run and where to write.
      missing: whether to leave out jobs whose records are in the file.
      minutes: begin no job after so many.
    """
    made = [] if files is None or not missing else read(files.records)
    records, began = [], time.perf_counter()
    by_jobs = missing or minutes is not None
    for found in without(experiment, settings, made, minutes) if by_jobs else experiment.run(settings):
        end = time.perf_counter()
        record = plain({**found, "quick": settings.quick, "wall_seconds": round(end - began, 2), **place()})
        began = end
        records.append(record)
        if files is not None:
            merge(files.records, record, experiment.keys)
        told = {key: record[key] for key in experiment.keys}
        print(json.dumps({**told, "wall_seconds": record["wall_seconds"]}), flush=True)
    return records


def without(
    experiment: Experiment, settings: Settings, made: Sequence[dict], minutes: float | None = None
) -> Iterator[dict]:
    """The records of the jobs of an experiment, but for those that are made; no job begins after so many minutes."""
    assert experiment.jobs is not None  # `main` refuses this
    began = time.perf_counter()
    known = [{key: record[key] for key in (*experiment.keys, "quick")} for record in made]
    for job in experiment.jobs(settings):
        if minutes is not None and time.perf_counter() - began > 60.0 * minutes:
            return
        wanted = [plain({**keys, "quick": settings.quick}) for keys in job.keys]
        if not all(keys in known for keys in wanted):
            yield from job.run()


def report(experiment: Experiment, records: list[dict], files: Files) -> None:
    """Write the page and the pictures."""
    for name, figure in experiment.pictures(records).items():
        files.pictures.mkdir(parents=True, exist_ok=True)
        with atomic_file(files.pictures / f"paper-{name}.png", overwrite=True) as file:
            figure.savefig(file, format="png", dpi=160)
    if not files.page.is_file():
        write_text(files.page, f"# {experiment.title}\n\n{BEGIN}\n{END}\n")
    head = f"Generated by `python -m experiments {experiment.name}`; do not edit between the markers.\n\n"
    write_between(files.page, BEGIN, END, head + experiment.section(records))


if __name__ == "__main__":
    main()
