"""One peer on one saved problem, in this fresh process: `python -m benchmarks.peers FOLDER PEER`.

Reads the problem and task.json in FOLDER and appends to events.jsonl there how far it is and, last, its record.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any


def main() -> None:
    """Solve, and write down what there is to say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("peer")
    arguments = parser.parse_args()
    settings = json.loads((arguments.folder / "task.json").read_text())
    use_cores(settings["workers"])

    from benchmarks.peers.common import Task  # NumPy and JAX look at the cores once, as they start
    from benchmarks.problems import Problem

    task = Task(problem=Problem.load(arguments.folder), folder=arguments.folder, **settings)
    task.note({"record": record(arguments.peer, task)})


def use_cores(count: int) -> None:
    """Keep this process and its children on `count` cores, and their linear algebra to as many threads."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < count:
            raise ValueError(f"workers must be at most the {len(cores)} cores of this machine, got {count}.")
        os.sched_setaffinity(0, cores[:count])
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)


def record(peer: str, task: Any) -> dict[str, Any]:
    """The peer's record, or that of why there is none."""
    from benchmarks.peers import common, own
    from benchmarks.peers.registry import PEERS, REFERENCE
    from simjax._checks import choice

    choice("peer", peer, (*PEERS, REFERENCE))
    try:
        return own.reference(task) if peer == REFERENCE else PEERS[peer].run(task)
    except common.Unavailable as error:
        return common.without_figures(common.UNAVAILABLE, str(error))
    except (BrokenProcessPool, MemoryError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return common.without_figures(common.FAILED, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
