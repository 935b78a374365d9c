"""simjax beside other solvers on the same rows and the same cores: `python -m benchmarks.sidebyside`.

Every peer runs in a fresh process, one after the other, and its answer is judged by simjax's certificate, recomputed in
float64: its time counts at the loosest of its tolerances at which every row has a relative gap of at most 1e-6. Where
that is slow, a random sample of rows is timed and scaled to all; the record then says "extrapolated".

Each record is written as soon as there is one, in the place of an earlier one of the same problem and peer, so that a
run can be stopped, continued and added to:

    python -m benchmarks.sidebyside --problems 'standard-m500-*' --peers simjax 'clarabel-*'
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import problems
from benchmarks.peers import environments
from benchmarks.peers.common import FAILED, NOT_OFFERED, OVER_BUDGET, UNAVAILABLE, Unavailable, without_figures
from benchmarks.peers.registry import PEERS, REFERENCE
from benchmarks.records import RESULTS, ROOT, commit, cpu_model, now, plain, read, write
from simjax._checks import positive_integer, positive_scalar
from simjax.rows.container import cores

OUTPUT = RESULTS / "sidebyside.json"
QUICK = ("standard-m100-l1", "synthetic-60x80-m50-condition100-sparsity0.9-seed0-l1")
_SAMPLE, _QUICK_SAMPLE = 12, 4
_GRACE_SECONDS = 5.0  # between asking a peer's processes to end and ending them


@dataclasses.dataclass(frozen=True)
class Settings:
    """How every peer is run: see `Task`, and `budget`, the seconds after which a peer is stopped."""

    workers: int = 2
    repeats: int = 3
    sample: int = _SAMPLE
    full_seconds: float = 600.0
    budget: float = 3600.0

    def __post_init__(self) -> None:
        positive_integer("workers", self.workers)
        positive_integer("repeats", self.repeats)
        positive_integer("sample", self.sample)
        positive_scalar("budget", self.budget)
        if not self.full_seconds >= 0.0:
            raise ValueError(f"full_seconds must be >= 0, got {self.full_seconds!r}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--problems", nargs="+", metavar="NAME", help="names or patterns; all, unless --quick")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help=f"names or patterns, of {', '.join(PEERS)}; all")
    parser.add_argument("--workers", type=int, default=2, help="cores that every peer may use")
    parser.add_argument("--repeats", type=int, help="timed runs of each (3, or 1 with --quick)")
    parser.add_argument("--sample", type=int, help=f"rows timed where all would be slow ({_SAMPLE})")
    parser.add_argument("--full-seconds", type=float, help="time all rows if predicted to take no longer (600)")
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds after which a peer is stopped")
    parser.add_argument("--quick", action="store_true", help="two small problems, one run, few rows")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--list", action="store_true", help="print the names of all problems")
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(problems.NAMES))
        return

    def or_default(value: Any, quick: Any, full: Any) -> Any:
        return value if value is not None else quick if given.quick else full

    try:
        settings = Settings(
            workers=given.workers,
            repeats=or_default(given.repeats, 1, 3),
            sample=or_default(given.sample, _QUICK_SAMPLE, _SAMPLE),
            full_seconds=or_default(given.full_seconds, 0.0, 600.0),
            budget=given.budget,
        )
        chosen = matching("problems", or_default(given.problems, QUICK, ["*"]), problems.NAMES)
        peers = matching("peers", given.peers or ["*"], PEERS)
    except ValueError as error:
        parser.error(str(error))
    if settings.workers > cores():
        parser.error(f"--workers must be at most the {cores()} cores here, got {settings.workers}")
    if settings.sample < _SAMPLE and not given.quick:
        parser.error(f"--sample must be at least {_SAMPLE}, but with --quick; got {settings.sample}")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    missing = prepare(peers)
    for name in chosen:
        for entry in compare(problems.problem(name), peers, settings, missing):
            merge(given.output, entry)
            print(line(entry), flush=True)


def matching(what: str, patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that match any of the patterns, in the order of `names`.

    Raises:
      ValueError: for a pattern that matches none.
    """
    names, patterns = list(names), list(patterns)
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"{what}: {pattern!r} matches none of the {len(names)} names.")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def prepare(peers: Iterable[str]) -> dict[str, str]:
    """Make the environments that the peers need; those that cannot be made, with the reason."""
    missing: dict[str, str] = {}
    for environment in sorted({PEERS[peer].environment or "" for peer in peers} - {""}):
        try:
            if not environments.exists(environment):
                print(f"making the environment {environment} in {environments.folder(environment)}", flush=True)
            environments.make(environment)
        except Unavailable as error:
            missing[environment] = str(error)
    return missing


def compare(
    problem: problems.Problem, peers: Sequence[str], settings: Settings, missing: dict[str, str] | None = None
) -> Iterable[dict[str, Any]]:
    """The records of the peers on one problem, as they come.

    Args:
      problem: the problem.
      peers: names in `PEERS`.
      settings: how to run them.
      missing: environments that could not be made, with the reason.
    """
    with tempfile.TemporaryDirectory(prefix="simjax-sidebyside-") as temporary:
        folder = Path(temporary)
        problem.save(folder)
        task = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.name != "budget"}
        (folder / "task.json").write_text(json.dumps(task))
        reference = None
        for peer in peers:
            refusal, lacking = PEERS[peer].refuses(problem), (missing or {}).get(PEERS[peer].environment or "")
            if refusal is not None:
                figures = without_figures(NOT_OFFERED, refusal)
            elif lacking is not None:
                figures = without_figures(UNAVAILABLE, lacking)
            else:
                if peer != "simjax" and reference is None:
                    reference = run(folder, REFERENCE, settings.budget)
                figures = run(folder, peer, settings.budget)
                if peer != "simjax" and "seconds" in figures:
                    figures["reference"] = reference
            yield plain({**problem.facts(), "problem": problem.name, "peer": peer, **figures, **machine(settings)})


def run(folder: Path, peer: str, budget: float) -> dict[str, Any]:
    """The record of a peer on the problem saved in `folder`, from a fresh process that gets `budget` seconds."""
    events = folder / "events.jsonl"
    events.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # a first call is to be one
    began = time.perf_counter()
    with (folder / "printed").open("w+b") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers", str(folder), peer],
            cwd=ROOT,
            env=environment,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout=budget)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end(process)
        printed.seek(0)
        tail = printed.read().decode(errors="replace")[-1000:]
    told = [json.loads(each) for each in events.read_text().splitlines()] if events.is_file() else []
    for event in told:
        if "record" in event:
            return event["record"]
    if status is None:
        return {**without_figures(OVER_BUDGET, f"stopped after {budget:g} s"), **so_far(told)}
    seconds = time.perf_counter() - began
    return {**without_figures(FAILED, f"ended with status {status} after {seconds:.0f} s: {tail}"), **so_far(told)}


def end(process: subprocess.Popen) -> None:
    """End a peer and all processes it started, asking first: shared memory is then given back."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
            if number == signal.SIGTERM:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_GRACE_SECONDS)
    process.wait()


def so_far(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a peer that did not finish had done: its attempts, and the rows of the one it was at."""
    attempts = [event["attempt"] for event in told if "attempt" in event]
    last = max((k for k, event in enumerate(told) if "attempt" in event), default=-1)
    rows = [event["row_seconds"] for event in told[last + 1 :] if "row_seconds" in event]
    found: dict[str, Any] = {"attempts": attempts}
    if rows:
        found |= {"rows_finished": len(rows), "row_seconds_median": statistics.median(rows)}
    return found


# --- Records -----------------------------------------------------------------------------------------------------


def machine(settings: Settings) -> dict[str, Any]:
    """Where, when and with what a record was made."""
    return {
        "workers": settings.workers,
        "cpu": cpu_model(),
        "python": platform.python_version(),
        **commit(),
        "date": now(),
    }


def merge(file: Path, entry: dict[str, Any]) -> None:
    """Put a record into a results file, in the place of the one of the same problem and peer."""
    records = read(file)
    key = entry["problem"], entry["peer"]
    kept = [other for other in records if (other["problem"], other["peer"]) != key]
    places = {name: place for place, name in enumerate((*problems.NAMES, *PEERS))}
    kept = sorted([*kept, entry], key=lambda r: (places.get(r["problem"], len(places)), places.get(r["peer"], 0)))
    write(file, kept)


def line(entry: dict[str, Any]) -> str:
    """A record for a person."""
    head = f"{entry['problem']:<46} {entry['peer']:<18}"
    if "seconds" not in entry:
        return f"{head} {entry['status']}: {' '.join(entry['reason'].split())[:160]}"
    about = "~" if entry["extrapolated"] else " "
    compiled = f" + {entry['compile_seconds']:.1f} s compiling" if "compile_seconds" in entry else ""
    return (
        f"{head} {about}{entry['seconds']:.3g} s{compiled}, {entry['rows_certified']} of {entry['rows_timed']} rows "
        f"certified, worst gap {float(entry['worst_relative_gap']):.1e}"
    )


if __name__ == "__main__":
    main()
