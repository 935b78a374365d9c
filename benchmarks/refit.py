"""The refit at scale: rows of a square layer at half zeros, refitted and certified, with time, flops and rate.

    python -m benchmarks.refit --width 4096 --rows 512

Each row has a support of its own, so that the count is a Cholesky factorisation a row, k³/3 flops with k weights kept.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.records import RESULTS, ROOT, Record, merge, peak_mebibytes, place, places, read, table, write_between
from simjax.rows.options import SolveOptions
from simjax.rows.penalties import NoPenalty
from simjax.rows.problem import rows_over
from simjax.rows.solve import solve_problem

FILE = RESULTS / "refit.json"
PAGE, MARKERS = ROOT / "docs" / "pruning.md", ("<!-- begin: refit -->", "<!-- end: refit -->")


def measure(width: int, rows: int, sparsity: float = 0.5, seed: int = 0) -> Record:
    """A record of `rows` rows over `width` inputs, correlated as 0.9^|i−j|, on the supports of Wanda's score.

    Their triangular factor is known, R_ij = 0.9^(j−i) √(1 − 0.9²), in the first row without the root.
    """
    rng = np.random.default_rng(seed)
    distance = np.arange(width) - np.arange(width)[:, None]
    design = np.where(distance >= 0, 0.9 ** np.abs(distance), 0.0)
    design[1:] *= np.sqrt(1.0 - 0.9**2)
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


def report(found: list[Record]) -> list[str]:
    """A table with a line for each record."""
    heads = ["inputs", "rows", "kept", "certified", "s", "flops", "Gflop/s", "MiB"]
    return table(
        heads,
        [
            [
                f"{record['width']:,}",
                f"{record['rows']:,}",
                f"{record['kept']:,}",
                f"{record['certified']:,}",
                f"{record['seconds']:.1f}",
                f"{record['flops']:.2g}",
                f"{record['gflops_per_second']:.1f}",
                f"{record['mebibytes']:.0f}",
            ]
            for record in found
        ],
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=512, help="of the layer's rows: all take the same time")
    parser.add_argument("--output", type=Path, default=FILE)
    asked = parser.parse_args(arguments)
    record = measure(asked.width, asked.rows)
    merge(asked.output, {**record, **place()}, ("width", "rows"))
    found = read(asked.output)
    write_between(PAGE, *MARKERS, "\n".join([*report(found), "", *places(found)]))


if __name__ == "__main__":
    main()
