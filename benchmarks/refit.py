"""The refit at scale: rows of a square layer at half zeros, refitted and certified, with time, flops and rate.

    python -m benchmarks.refit --width 4096 --rows 512

Each row has a support of its own, so that the count is a Cholesky factorisation a row, k³/3 flops with k weights kept.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.records import RESULTS, Record, merge, peak_mebibytes, place
from simjax.rows.options import SolveOptions
from simjax.rows.penalties import NoPenalty
from simjax.rows.problem import rows_over
from simjax.rows.solve import solve_problem

FILE = RESULTS / "refit.json"


def measure(width: int, rows: int, sparsity: float = 0.5, seed: int = 0) -> Record:
    """A record of `rows` rows over `width` inputs whose spectrum falls as 1/√k, on the supports of Wanda's score."""
    rng = np.random.default_rng(seed)
    spectrum = 1.0 / np.sqrt(np.arange(1, width + 1))
    design = rng.normal(size=(width, width)) * spectrum @ np.linalg.qr(rng.normal(size=(width, width)))[0]
    weight = rng.normal(size=(rows, width))
    kept = width - int(sparsity * width)
    scores = np.abs(weight) * np.linalg.norm(design, axis=0)
    support = np.zeros(weight.shape, dtype=bool)
    np.put_along_axis(support, np.argsort(-scores, axis=1)[:, :kept], True, axis=1)
    problem = rows_over(
        design,
        design @ weight.T,
        loss_weight=1.0,
        penalty=NoPenalty(),
        constraint=None,
        support=support,
        matching="penalty",
    )
    began = time.perf_counter()
    solution = solve_problem(problem, SolveOptions())
    seconds = time.perf_counter() - began
    flops = rows * kept**3 / 3.0
    return {
        "width": width,
        "rows": rows,
        "kept": kept,
        "certified": int(np.count_nonzero(solution.status == "SOLVED")),
        "worst_gap": float(solution.certificate.relative_gap.max()),
        "seconds": seconds,
        "flops": flops,
        "gflops_per_second": flops / seconds / 1e9,
        "mebibytes": peak_mebibytes(),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=512, help="of the layer's rows: all take the same time")
    parser.add_argument("--output", type=Path, default=FILE)
    asked = parser.parse_args(arguments)
    record = measure(asked.width, asked.rows)
    merge(asked.output, {**record, **place()}, ("width", "rows"))
    print(record)


if __name__ == "__main__":
    main()
