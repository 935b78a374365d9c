"""The refit at scale: rows of a square layer at half zeros, refitted and certified, with time, flops and rate.

    python -m benchmarks.refit --width 4096 --rows 512

Each row has a support of its own, so that the count is a Cholesky factorisation a row, k³/3 flops with k weights kept.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.records import RESULTS, ROOT, Record, merge, peak_mebibytes, place, places, read, table, write_between
from simjax.rows.options import SolveOptions
from simjax.rows.penalties import NoPenalty
from simjax.rows.problem import rows_over
from simjax.rows.solve import solve_problem

FILE = RESULTS / "refit.json"
PAGE, MARKERS = ROOT / "docs" / "pruning.md", ("<!-- begin: refit -->", "<!-- end: refit -->")

# The linear maps of a transformer of 8 billion parameters, Llama 3's: (outputs, inputs, how many). Grattafiori et al.,
# The Llama 3 herd of models (2024), Table 3: 32 layers of width 4,096, 8 heads of 32 for keys, feed-forward of 14,336.
MAPS_8B = ((4096, 4096, 2 * 32), (1024, 4096, 2 * 32), (14336, 4096, 2 * 32), (4096, 14336, 32))
OPTIMA_HOURS = 40.0  # Mozaffari et al., OPTIMA, arXiv 2512.13886 (2025): an 8B transformer on one H100
H100_FLOPS = 67e12  # printed peak, a second, of one H100 SXM in float32, and of its tensor cores in float64


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
    began, began_cpu = time.perf_counter(), time.process_time()
    solution = solve_problem(problem, SolveOptions())
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    flops = rows * kept**3 / 3.0
    return {
        "width": width,
        "rows": rows,
        "kept": kept,
        "certified": int(np.count_nonzero(solution.status == "SOLVED")),
        "worst_gap": float(solution.certificate.relative_gap.max()),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,  # what the load leaves alone
        "flops": flops,
        "gflops_per_second": flops / seconds / 1e9,
        "gflops_per_cpu_second": flops / cpu_seconds / 1e9,
        "mebibytes": peak_mebibytes(),
        "load": round(os.getloadavg()[0], 1),
    }


def report(found: list[Record]) -> list[str]:
    """A table with a line for each record."""
    heads = [
        "inputs",
        "rows",
        "kept",
        "certified",
        "worst gap",
        "s",
        "CPU s",
        "flops",
        "Gflop/s",
        "Gflop/CPU s",
        "MiB",
        "load",
    ]
    return table(
        heads,
        [
            [
                f"{record['width']:,}",
                f"{record['rows']:,}",
                f"{record['kept']:,}",
                f"{record['certified']:,}",
                f"{record['worst_gap']:.1e}",
                f"{record['seconds']:.1f}",
                f"{record['cpu_seconds']:.1f}",
                f"{record['flops']:.2g}",
                f"{record['gflops_per_second']:.1f}",
                f"{record['gflops_per_cpu_second']:.1f}",
                f"{record['mebibytes']:.0f}",
                f"{record['load']:g}",
            ]
            for record in found
        ],
    )


def flops_of(maps: Iterable[tuple[int, int, int]], share: float = 0.5) -> float:
    """k³/3 for each row of linear maps (outputs, inputs, how many), with k the share of the inputs that is kept."""
    return sum(outputs * count * (share * inputs) ** 3 / 3.0 for outputs, inputs, count in maps)


def on_paper(found: list[Record]) -> str:
    """What the count says of a transformer of 8 billion parameters at half zeros: on paper, not measured."""
    best = max(found, key=lambda record: record["width"])
    whole = best["cpu_seconds"] * best["width"] / best["rows"]
    flops = flops_of(MAPS_8B)
    here, peak = flops / (1e9 * best["gflops_per_cpu_second"] * best["cores"]), flops / H100_FLOPS
    down = flops_of(MAPS_8B[-1:]) / flops
    return (
        "Load is the number of programs that ran or waited, and CPU seconds are what this one had of the cores. By "
        f"these all {best['width']:,} rows of such a layer take {whole / 60.0:.0f} minutes of one core. On paper: a "
        f"transformer of 8 billion parameters (Llama 3's shapes, 32 layers) at half zeros is {flops:.2g} flops by the "
        f"same count, {100.0 * down:.0f} % of them in the down projections, where k = 7,168: {here / 3600.0:.0f} hours "
        f"on {best['cores']} such cores at this rate, {peak / 60.0:.0f} minutes at the printed peak of one H100 (67 "
        f"Tflop/s, float32, or float64 on its tensor cores), {peak / 6.0:.0f} minutes at a tenth of it. OPTIMA (arXiv "
        f"2512.13886) prints {OPTIMA_HOURS:.0f} hours on one H100, from end to end. Nothing was run on an H100, and "
        "neither the Gram matrices nor the search of the supports are counted."
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
    write_between(PAGE, *MARKERS, "\n".join([*report(found), "", on_paper(found), "", *places(found)]))


if __name__ == "__main__":
    main()
