"""Rows one after the other, over processes, over Ray, and all at once: the SIM paper's Figure 5 (Appendix B).

    serial            one conic program a row, by Clarabel, in this process
    multiprocessing   the same programs in worker processes, the design in shared memory: the paper's Algorithm 1
    ray               the same programs in Ray's actors, the design in its object store, as the paper's other version
    simjax            all rows at once by the batched solver, in a fresh process: the first call, and later ones

All of them answer the rows of the same problem to the same relative gap, by simjax's certificate. The conic programs
are timed on a sample of the rows; what does not grow with their number, the start of the workers, is timed by itself.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.problems import ALPHA, LOSS_WEIGHT, Problem, network_states, of_states
from benchmarks.records import ROOT, Record, cores, places, table, versions
from experiments.experiment import Experiment, Settings, all_certified, grouped, spread
from simjax.rows import oracles
from simjax.rows.certificate import certify
from simjax.rows.options import SolveOptions
from simjax.rows.oracles import OracleUnavailable
from simjax.rows.oracles.conic_row import SharedDesign, conic_row
from simjax.rows.oracles.pool import RowSettings
from simjax.rows.problem import RowProblem
from simjax.rows.solution import dense_rows
from simjax.rows.solve import solve_problem
from simjax.rows.status import Status, row_status

NAME = "parallelism"
METHODS: Mapping[str, str] = {
    "serial": "serial: Clarabel, row by row",
    "multiprocessing": "multiprocessing: Clarabel in worker processes",
    "ray": "Ray: Clarabel in actors",
    "simjax, first call": "simjax, first call (compiles)",
    "simjax, warm": "simjax, later calls",
}
ORACLE, FORM = "clarabel", "residual"
# What is asked of Clarabel so that the certificate of its answers reaches REACHED on every row.
ORACLE_TOL = 1e-8
REACHED = 1e-6
# The number of samples, and how many rows the conic solvers are timed on; None is all of them.
SIZES: Mapping[int, int | None] = {100: None, 500: 20}
QUICK_SIZES: Mapping[int, int | None] = {100: 12}
WARM_CALLS = 3


# --- Running -----------------------------------------------------------------------------------------------------


def run(settings: Settings) -> Iterator[Record]:
    """A record for every method, number of samples and seed."""
    for seed in settings.seeds:
        for m, sample in (QUICK_SIZES if settings.quick else SIZES).items():
            states = network_states("fashion-mnist", m, seed)
            problem = of_states(f"fashion-mnist-m{m}", states, "l1", LOSS_WEIGHT, ALPHA, 0.99)
            yield from measured(problem, m, seed, sample, workers=cores())


def measured(problem: Problem, m: int, seed: int, sample: int | None, workers: int) -> Iterator[Record]:
    """The records of all methods on one problem, the conic ones on `sample` rows drawn by `seed`."""
    rows = problem.rows
    count = rows.count
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[: count if sample is None else sample])
    facts = {"m": m, "d": rows.width, "seed": seed, "rows_total": count, "cores": cores()}
    for method, timed in (("serial", serial), ("multiprocessing", multiprocessing), ("ray", ray)):
        used = 1 if method == "serial" else workers
        common = {**facts, "method": method, "workers": used, "rows_timed": int(chosen.size)}
        try:
            found = timed(rows, chosen, used)
        except (ImportError, OracleUnavailable) as error:
            yield {**common, "unavailable": str(error)}
            continue
        yield {**common, **judged(rows.take(chosen), found.weights, found.duals), **found.facts(count)}
    for method, own in in_own_process(problem).items():
        yield {**facts, "method": method, "workers": workers, "rows_timed": count, **own}


@dataclasses.dataclass(frozen=True)
class Timed:
    """Answers to k rows, the seconds they took, and the part of these that starting the workers takes."""

    weights: np.ndarray
    duals: np.ndarray
    seconds: float
    start_seconds: float
    versions: Mapping[str, str]

    def facts(self, rows: int) -> Record:
        """Seconds as measured, and for `rows` rows: the start once, the rest in proportion."""
        timed = len(self.weights)
        work = max(self.seconds - self.start_seconds, 0.0) * rows / timed
        return {
            "seconds_measured": self.seconds,
            "start_seconds": self.start_seconds,
            "seconds": self.seconds if rows == timed else self.start_seconds + work,
            "solver_versions": dict(self.versions),
        }


def serial(rows: RowProblem, chosen: np.ndarray, workers: int) -> Timed:
    """One conic program after the other, on one core like each of the workers."""
    with threadpool_limits(1):
        found = oracles.solve(rows, oracle=ORACLE, rows=chosen, workers=workers, tol=ORACLE_TOL, form=FORM)
    return Timed(found.weights, found.duals, found.seconds, 0.0, versions(ORACLE))


def multiprocessing(rows: RowProblem, chosen: np.ndarray, workers: int) -> Timed:
    """The same, over processes. Rows with target zero need no solver: theirs are the seconds of starting."""
    options: dict[str, Any] = {"oracle": ORACLE, "workers": workers, "tol": ORACLE_TOL, "form": FORM}
    nothing = dataclasses.replace(rows, targets=np.zeros_like(rows.targets))
    start = oracles.solve(nothing, rows=chosen[:workers], **options).seconds
    found = oracles.solve(rows, rows=chosen, **options)
    return Timed(found.weights, found.duals, found.seconds, start, versions(ORACLE))


def ray(rows: RowProblem, chosen: np.ndarray, workers: int) -> Timed:
    """The same, over actors that share the design in the object store; each takes the next row when it is done.

    Raises:
      ImportError: if Ray is not installed.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise ImportError(f"Ray is not installed ({error}); get it with: pip install 'simjax[ray]'") from error
    settings = RowSettings(ORACLE, ORACLE_TOL, FORM)

    class Solver:
        """An actor: answers rows over one design."""

        def __init__(self, matrix: np.ndarray) -> None:
            threadpool_limits(1)  # the actors are the parallelism
            self.design = SharedDesign(matrix)

        def ready(self) -> bool:
            return True

        def solve(self, row: Any) -> Any:
            return settings.solve(self.design, row)

    began = time.perf_counter()
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}}
    with (
        warnings.catch_warnings()
    ):  # that Ray forks beside JAX's threads: what it forks becomes another program at once
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        ray.init(
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=max(2**28, 4 * rows.design.nbytes),
            runtime_env=environment,
        )
    try:
        shared = ray.put(rows.design)
        actors: list[Any] = [ray.remote(num_cpus=1)(Solver).remote(shared) for _ in range(workers)]
        ray.get([actor.ready.remote() for actor in actors])
        start = time.perf_counter() - began
        conic_rows = [conic_row(rows, number) for number in chosen]
        answers = list(ActorPool(actors).map(lambda actor, row: actor.solve.remote(row), conic_rows))
        seconds = time.perf_counter() - began
    finally:
        ray.shutdown()
    weights, duals = (np.array([getattr(answer, name) for answer in answers]) for name in ("weights", "dual"))
    return Timed(weights, duals, seconds, start, versions(ORACLE, "ray"))


def in_own_process(problem: Problem) -> dict[str, Record]:
    """The two records of simjax, from a process in which nothing has been compiled, without a cache of compilations."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    with tempfile.TemporaryDirectory() as folder:
        problem.save(Path(folder))
        command = [sys.executable, "-m", "experiments.parallelism", folder]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def simjax_calls(problem: Problem, calls: int = WARM_CALLS) -> dict[str, Record]:
    """The first call of the batched solver in this process, and the median of later ones."""
    seconds = []
    for _ in range(1 + calls):
        began = time.perf_counter()
        solution = solve_problem(problem.rows, SolveOptions(tol=REACHED))
        seconds.append(time.perf_counter() - began)
    found = judged(problem.rows, dense_rows(solution.weights), solution.certificate.dual)
    spent = {"simjax, first call": seconds[0], "simjax, warm": statistics.median(seconds[1:])}
    return {
        method: {**found, "seconds": value, "seconds_measured": value, "start_seconds": 0.0}
        for method, value in spent.items()
    }


def judged(rows: RowProblem, weights: np.ndarray, duals: np.ndarray) -> Record:
    """How many rows are certified, and the worst relative gap, by the same certificate for every method."""
    certificate = certify(rows, weights, [duals])
    solved = row_status(certificate, REACHED, exact=rows.exact) == Status.SOLVED
    return {
        "rows": int(solved.size),
        "rows_certified": int(np.count_nonzero(solved)),
        "worst_relative_gap": float(certificate.relative_gap.max()),
    }


# --- The page ----------------------------------------------------------------------------------------------------


def section(records: Sequence[Record]) -> str:
    """A table for each number of samples, the certificates, and where it was made."""
    present = [record for record in records if "unavailable" not in record]
    parts = []
    for (m,), mine in grouped(records, "m").items():
        first = mine[0]
        parts += [
            f"**m = {m} samples**, {first['rows_total']} rows of {first['d']} weights, "
            f"seeds {', '.join(str(seed) for (seed,) in grouped(mine, 'seed'))}:",
            "",
            *table(
                ["method", "processes", "rows timed", "start of the workers (s)", "all rows (s)", "against serial"],
                [cells(method, mine) for (method,) in grouped(mine, "method")],
            ),
            "",
        ]
    parts += [f"{all_certified(present)} Every method is asked for a relative gap of {REACHED:g}.", ""]
    reasons = dict.fromkeys(record["unavailable"] for record in records if "unavailable" in record)
    parts += [*(f"- unavailable: {reason}" for reason in reasons), *places(present)]
    return "\n".join(parts)


def cells(method: str, records: Sequence[Record]) -> list[str]:
    """One method's line of the table of one number of samples."""
    mine = [record for record in records if record["method"] == method]
    if any("unavailable" in record for record in mine):
        return [METHODS[method], f"{mine[0]['workers']}", "–", "–", "unavailable", "–"]
    timed, total = mine[0]["rows_timed"], mine[0]["rows_total"]
    scaled = "" if timed == total else " (scaled)"
    workers = "1, its threads on all cores" if method.startswith("simjax") else f"{mine[0]['workers']}"
    start = "–" if method == "serial" or method.startswith("simjax") else spread([r["start_seconds"] for r in mine])
    seconds = spread([record["seconds"] for record in mine], ".2f") + scaled
    return [METHODS[method], workers, f"{timed} of {total}", start, seconds, speedup(mine, records)]


def speedup(mine: Sequence[Record], records: Sequence[Record]) -> str:
    """How many times faster than serial, seed by seed."""
    serial = {record["seed"]: record["seconds"] for record in records if record["method"] == "serial"}
    ratios = [serial[record["seed"]] / record["seconds"] for record in mine if record["seed"] in serial]
    return f"{spread(ratios, '.1f')} ×" if ratios else "–"


def pictures(records: Sequence[Record]) -> dict[str, Figure]:
    """Seconds for all rows, a bar for each method, a panel for each number of samples."""
    panels = grouped([record for record in records if "unavailable" not in record], "m")
    figure = Figure(figsize=(4.6 * len(panels) + 2.4, 3.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axis, ((m,), mine) in zip(axes, panels.items()):
        methods = [method for method in METHODS if any(record["method"] == method for record in mine)]
        seconds = [[record["seconds"] for record in mine if record["method"] == method] for method in methods]
        means, low, high = (np.array([f(values) for values in seconds]) for f in (statistics.fmean, min, max))
        bars = axis.barh(methods[::-1], means[::-1], xerr=np.array([means - low, high - means])[:, ::-1], capsize=3)
        axis.bar_label(bars, fmt=lambda value: f"{value:.{0 if value >= 10 else 1}f} s", padding=12)
        axis.set(xscale="log", xlabel="seconds for all rows (log scale)")
        axis.set_xlim(0.3 * means.min(), 6.0 * high.max())
        axis.set_title(f"m = {m} samples, {mine[0]['rows_total']} rows, {mine[0]['cores']} cores", fontsize=10)
    return {NAME: figure}


EXPERIMENT = Experiment(
    name=NAME,
    title="Serial, multiprocessing, Ray and all rows at once",
    keys=("m", "method", "seed"),
    run=run,
    section=section,
    pictures=pictures,
)


def main(arguments: Sequence[str] | None = None, write: Callable[[str], Any] = print) -> None:
    """Time simjax on the problem saved in the folder that is named: what `in_own_process` starts."""
    (folder,) = sys.argv[1:] if arguments is None else arguments
    write(json.dumps(simjax_calls(Problem.load(Path(folder)))))


if __name__ == "__main__":
    main()
