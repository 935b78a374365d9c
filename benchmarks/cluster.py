"""Rows by workers against the same rows in one process on the same cores: `python -m benchmarks.cluster`.

    one process       all cores of the machine as threads
    processes         a pool of spawned processes, one for each core
    ray, two nodes    a cluster of two Ray nodes on this machine, the cores shared between them

Workers are started, and have solved a block, before the clock starts: what that takes is stated by itself. Each way is
measured several times in turn with the others. Writes benchmarks/results/cluster.json, and a table between two markers
of docs/scale.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pickle
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import simjax
from benchmarks.records import RESULTS, ROOT, Record, cores, peak_mebibytes, place, places, table, versions, write
from benchmarks.records import write_between as write_page
from simjax.rows.memory import TASK_ROWS
from simjax.rows.options import SolveOptions
from simjax.rows.problem import RowProblem, row_problem
from simjax.rows.solution import Solution
from simjax.rows.solve import solve_problem

BEGIN, END = "<!-- cluster:begin -->", "<!-- cluster:end -->"
ROWS, SAMPLES, WIDTH, REPEATS = 2000, 800, 1500, 2
ONE = "one process"


def problem(rows: int, samples: int, width: int) -> RowProblem:
    """Gaussian rows with a twentieth of the true weights, noise, and the penalty at which about as many stay."""
    rng = np.random.default_rng(0)
    design = rng.normal(size=(samples, width))
    truth = rng.normal(size=(width, rows)) * (rng.random((width, rows)) < 0.05)
    targets = design @ truth + rng.normal(size=(samples, rows))
    return row_problem(design, targets, penalty=simjax.L1(2.0 * np.sqrt(2.0 * samples * np.log(width))))


class Counting(Executor):
    """Runs tasks in this process and counts the bytes of what would be sent there and back."""

    def __init__(self) -> None:
        self.there, self.back = 0, 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        found, future = function(*args, **kwargs), Future[Any]()
        self.there += len(pickle.dumps(args, protocol=5))
        self.back += len(pickle.dumps(found, protocol=5))
        future.set_result(found)
        return future


@contextmanager
def processes(workers: int) -> Iterator[Executor]:
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@contextmanager
def ray_nodes(workers: int) -> Iterator[Executor]:
    """Two nodes, the workers shared between them.

    Raises:
      ModuleNotFoundError: without Ray.
    """
    import ray
    from ray.cluster_utils import Cluster

    first = -(-workers // 2)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": first})
    try:
        cluster.add_node(num_cpus=max(workers - first, 1))
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        with simjax.cluster.ray() as pool:
            yield pool.executor
    finally:
        ray.shutdown()
        cluster.shutdown()


WAYS = {"processes": processes, "ray, two nodes": ray_nodes}


def measure(rows: RowProblem, repeats: int) -> list[Record]:
    """A record for each way, whose answers are certified like those of one process."""
    workers, facts = cores(), {"rows": rows.count, "m": rows.design.shape[0], "d": rows.width, "workers": cores()}
    with ExitStack() as stack:
        solves: dict[str, Callable[[], Solution]] = {ONE: partial(solve_problem, rows)}
        starts, before = {ONE: 0.0}, {}
        pools: dict[str, Executor] = {}
        few = rows.take(np.arange(min(TASK_ROWS * workers, rows.count)))
        for name, way in WAYS.items():
            began = time.perf_counter()
            pool = pools[name] = stack.enter_context(way(workers))
            before[name] = max(in_each(pool, workers))
            solve_problem(few, SolveOptions(executor=pool))
            starts[name] = time.perf_counter() - began
            solves[name] = partial(solve_problem, rows, SolveOptions(executor=pool))
        seconds: dict[str, list[float]] = {name: [] for name in solves}
        found: dict[str, Solution] = {}
        for _ in range(repeats):
            for name, solve in solves.items():
                began = time.perf_counter()
                found[name] = solve()
                seconds[name].append(time.perf_counter() - began)
        memory = {name: max(in_each(pool, workers)) for name, pool in pools.items()}
    counting = Counting()
    solve_problem(few, SolveOptions(executor=counting))
    records = []
    for name in solves:
        difference = np.abs(found[name].certificate.objective / found[ONE].certificate.objective - 1.0)
        record: Record = {
            "way": name,
            **facts,
            "seconds": statistics.median(seconds[name]),
            "all_seconds": seconds[name],
        }
        record |= {"certified": int(np.count_nonzero(found[name].status == "SOLVED"))}
        record |= {"objective_difference": float(difference.max()), "start_seconds": starts[name]}
        if name != ONE:
            record |= {"bytes_there": counting.there / few.count, "bytes_back": counting.back / few.count}
            record |= {"worker_mebibytes": memory[name], "worker_mebibytes_before": before[name]}
        records.append({**record, **place()})
        if name.startswith("ray"):
            records[-1]["versions"] |= versions("ray")
    return records


def in_each(pool: Executor, workers: int) -> list[float]:
    """Peak memory of the workers: each is asked several times, for who answers is not ours to say."""
    return [future.result() for future in [pool.submit(patient_peak) for _ in range(4 * workers)]]


def patient_peak() -> float:
    """The peak memory of this process, told late enough that the others get to answer, too."""
    time.sleep(0.1)
    return peak_mebibytes()


def section(records: Sequence[Record]) -> str:
    """The table of the page."""
    one = next(record for record in records if record["way"] == ONE)
    lines = []
    for record in records:
        by_workers = "worker_mebibytes" in record
        lines.append(
            [
                record["way"],
                f"{record['seconds']:.1f} s",
                f"{100.0 * (record['seconds'] / one['seconds'] - 1.0):+.0f} %" if by_workers else "",
                f"{record['certified']} of {record['rows']}",
                f"{record['start_seconds']:.1f} s" if by_workers else "",
                f"{record['bytes_there']:.0f}, {record['bytes_back']:.0f}" if by_workers else "",
                f"{record['worker_mebibytes_before']:.0f}, {record['worker_mebibytes']:.0f} MiB" if by_workers else "",
            ]
        )
    heads = ["", "time", "against one process", "certified", "start", "bytes a row: there, back", "worker: idle, peak"]
    caption = (
        f"{one['rows']} rows over a design of {one['m']} samples and {one['d']} columns, {one['workers']} workers:"
    )
    return "\n".join([caption, "", *table(heads, lines), "", *places(records)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--output", type=Path, help="write this file, and not the page")
    options = parser.parse_args()
    records = measure(problem(options.rows, SAMPLES, WIDTH), options.repeats)
    write(options.output or RESULTS / "cluster.json", records)
    if options.output is None:
        write_page(ROOT / "docs" / "scale.md", BEGIN, END, section(records))
    print(section(records))


if __name__ == "__main__":
    main()
