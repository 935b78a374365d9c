"""`prune_layer` beside its peers on the matrices of MiniLM-L6: `python -m benchmarks.pruning --help`.

Calibration on 16,000 tokens of the training messages of 20 Newsgroups, errors on 14,000 tokens of others. Every method
gets the same statistics, and each peer is taken as it is and with our refit on its support.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.pruning_peers import PEERS
from benchmarks.records import RESULTS, ROOT, Record, merge, place, places, read, table, write_between
from experiments import minilm
from experiments.minilm_matrices import by_peer, seen, share_and_pattern, weights_of
from simjax.datasets import load_newsgroups
from simjax.pruning.layer import METHODS, prune_layer, refitted
from simjax.pruning.problem import LayerProblem
from simjax.pruning.statistics import LayerStatistics
from simjax.rows.options import SolveOptions

CALIBRATION, HELD_OUT = 16_000, 14_000  # tokens
FILE = RESULTS / "pruning.json"
PAGE, MARKERS = ROOT / "docs" / "pruning.md", ("<!-- begin: measured -->", "<!-- end: measured -->")
KEYS = ("matrix", "zeros", "method", "seed")
Name = tuple[int, str]


def errors(held_out: LayerStatistics, weight: np.ndarray, given: np.ndarray, shift: np.ndarray | None) -> float:
    """‖X(W − W₀)ᵀ + 1(b − b₀)ᵀ‖² / ‖XW₀ᵀ‖² on samples held out; `shift` b − b₀, None for zeros."""
    design, _ = held_out.compressed()
    centred, _, centring = held_out.centred()
    moved = weight - given
    off = moved @ centring.design + (0.0 if shift is None else shift)
    missed = np.sum((centred @ moved.T) ** 2) + centring.total * np.sum(off**2)
    return float(missed / np.sum((design @ given.T) ** 2))


def records(
    calibration: LayerStatistics,
    held_out: LayerStatistics,
    weight: np.ndarray,
    bias: np.ndarray,
    zeros: str,
    methods: list[str],
) -> Iterator[Record]:
    """A record for each of the `methods` on one matrix, peers as they are and refitted."""
    sparsity, name = share_and_pattern(zeros)
    problem = LayerProblem.make(calibration, weight, bias, None)
    for method in methods:
        began = time.perf_counter()
        if method in PEERS:
            found = by_peer(problem, method, zeros)
            seconds = time.perf_counter() - began
            raw = errors(held_out, found, weight, None)
            ours = refitted(problem, found != 0.0, name, method, SolveOptions(), began)
        else:
            ours = prune_layer(calibration, weight, bias, sparsity=sparsity, pattern=name, method=method)
            seconds, raw = ours.seconds, None
        yield {
            "method": method,
            "zeros": zeros,
            "reached": ours.sparsity,
            "as_it_is": raw,
            "refitted": errors(held_out, ours.weight, weight, ours.bias - bias),
            "calibration": ours.relative_error,
            "rows": int(weight.shape[0]),
            "certified": int(np.count_nonzero(ours.status == "SOLVED")),
            "worst_gap": float(ours.certificate.relative_gap.max()),
            "seconds": seconds,
        }


def report(found: list[Record]) -> str:
    """A table of errors on tokens held out, a line for each matrix and share of zeros."""
    methods = list(dict.fromkeys(record["method"] for record in found))
    cells: dict[tuple[str, str], dict[str, Record]] = {}
    for record in found:
        cells.setdefault((record["matrix"], record["zeros"]), {})[record["method"]] = record
    rows = []
    for (matrix, zeros), by in cells.items():
        row = [matrix, zeros]
        for method in methods:
            one = by.get(method)
            raw = "" if one is None or one["as_it_is"] is None else f"{one['as_it_is']:.3g} → "
            row.append("" if one is None else f"{raw}{one['refitted']:.3g}")
        rows.append(row)
    return "\n".join(table(["matrix", "zeros", *methods], rows))


def certified(found: list[Record]) -> str:
    """How many of the rows that were refitted are certified."""
    rows, done = (sum(record[key] for record in found) for key in ("rows", "certified"))
    return f"{done:,} of {rows:,} refitted rows are certified at a relative gap of 1e-6."


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrix", nargs="*", default=["4.query"], help="such as 4.query, or all")
    parser.add_argument("--zeros", nargs="*", default=["0.5", "0.7", "0.9", "2:4"], help="shares, or n:m")
    parser.add_argument("--method", nargs="*", default=[*PEERS, "auto"], help=", ".join([*PEERS, *METHODS]))
    parser.add_argument("--seed", type=int, default=0, help="of the choice of messages")
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--table", action="store_true", help="run nothing: put the table of what is there in the page")
    asked = parser.parse_args(arguments)
    if not asked.table:
        run(asked)
    found = read(asked.output)
    print(report(found))
    if asked.table:
        write_between(PAGE, *MARKERS, "\n".join([report(found), "", certified(found), "", *places(found)]))


def run(asked: argparse.Namespace) -> None:
    where = place()  # of the code that is loaded, whatever happens to its files meanwhile
    encoder, tokenizer = minilm.load()
    every = [f"{number}.{name}" for number in range(encoder.sizes.layers) for name in minilm.LINEAR]
    texts = load_newsgroups().train_texts
    order = np.random.default_rng(asked.seed).permutation(len(texts))
    shuffled = [texts[k] for k in order]
    batches = minilm.whole_batches(tokenizer, shuffled, minilm.MAX_TOKENS)
    calibration, held_out = (seen(encoder, batches, tokens, LayerStatistics) for tokens in (CALIBRATION, HELD_OUT))
    for matrix in every if asked.matrix == ["all"] else asked.matrix:
        number, name = matrix.split(".")
        key = int(number), name
        for zeros in asked.zeros:
            for record in records(calibration[key], held_out[key], *weights_of(encoder, key), zeros, asked.method):
                merge(asked.output, {"matrix": matrix, "seed": asked.seed, **record, **where}, KEYS)


if __name__ == "__main__":
    main()
