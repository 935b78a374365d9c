"""What it costs to survive and to share out: `python -m benchmarks.scale`.

    checkpoint     100,000 cheap rows with and without a checkpoint, in alternation
    shards         the same rows in 16 shards and read together, against one run; compared to the bit
    shard          one of 64 shards of the rows of ResNet-20, whose 188,416 states come from random images and weights

Writes benchmarks/results/scale.json and a part of docs/scale.md between two markers; `--part` makes one of the three.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

import simjax
from benchmarks.records import RESULTS, ROOT, Record, peak_mebibytes, place, places, table, write_between, write_text
from simjax.rows.memory import bytes_per_row
from simjax.rows.solution import Solution
from simjax.states.states import ARRAYS

BEGIN, END = "<!-- scale:begin -->", "<!-- scale:end -->"

# Rows: the cheaper a row, the more it counts that it is written.
ROWS = {"rows": 100_000, "m": 32, "d": 128, "nonzeros": 4, "max_memory": 2.5e8}
PAIRS, SHARDS = 3, 16
_PROOF = ("dual", "gap", "objective")
# A shard of ResNet-20: images, share of the shards, rows in a block.
RESNET = {"width": 16, "samples": 32, "shards": 64, "rows_in_block": 32, "alpha": 1e-2}


def sparse_rows(rows: int, m: int, d: int, nonzeros: int, max_memory: float) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian design and the targets of sparse weights, with noise."""
    rng = np.random.default_rng(0)
    design, targets = rng.normal(size=(m, d)), 0.1 * rng.normal(size=(m, rows))
    for _ in range(nonzeros):
        targets += design[:, rng.integers(d, size=rows)] * rng.normal(size=rows)
    return design, targets


def solved(problem: Record, design: np.ndarray, targets: np.ndarray, **options: Any) -> tuple[Solution, float]:
    """A solve and its seconds."""
    began = time.perf_counter()
    weight = 0.3 * problem["m"] ** 0.5
    found = simjax.solve_rows(
        design, targets, loss_weight=0.5, penalty=simjax.L1(weight), max_memory=problem["max_memory"], **options
    )
    return found, time.perf_counter() - began


def same_bits(one: Solution, other: Solution) -> bool:
    """Whether weights and proofs are the same."""
    ours, theirs = scipy.sparse.csr_array(one.weights), scipy.sparse.csr_array(other.weights)
    places = all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("indices", "indptr"))
    proofs = (getattr(one.certificate, name).tobytes() == getattr(other.certificate, name).tobytes() for name in _PROOF)
    return places and ours.data.tobytes() == theirs.data.tobytes() and all(proofs)


def checkpoint(problem: Record = ROWS, pairs: int = PAIRS) -> Record:
    """The same rows without and with a checkpoint, one after the other."""
    design, targets = sparse_rows(**problem)
    solved(problem, design, targets[:, :1000])  # whatever is made once
    plain, kept, size, same = [], [], 0, True
    for _ in range(pairs):
        wanted, seconds = solved(problem, design, targets)
        plain.append(seconds)
        with tempfile.TemporaryDirectory() as folder:
            found, seconds = solved(problem, design, targets, checkpoint=Path(folder) / "rows")
            kept.append(seconds)
            size = sum(file.stat().st_size for file in (Path(folder) / "rows").iterdir())
            began = time.perf_counter()
            again, _ = solved(problem, design, targets, checkpoint=Path(folder) / "rows")
            reading = time.perf_counter() - began
        same = same and same_bits(found, wanted) and same_bits(again, wanted)
    return {
        **problem,
        "certified": int(np.count_nonzero(wanted.status == simjax.Status.SOLVED)),
        "plain_seconds": plain,
        "kept_seconds": kept,
        "ratio": statistics.median(kept) / statistics.median(plain),
        "reading_seconds": reading,
        "bytes": size,
        "same_bits": same,
    }


def shards(problem: Record = ROWS, count: int = SHARDS) -> Record:
    """One run against shards, one after the other on the same cores, and the call that reads them."""
    design, targets = sparse_rows(**problem)
    solved(problem, design, targets[:, :1000])
    with tempfile.TemporaryDirectory() as folder:
        wanted, one = solved(problem, design, targets, checkpoint=Path(folder) / "one")
        place = Path(folder) / "shards"
        each = [solved(problem, design, targets, checkpoint=place, shard=(k, count))[1] for k in range(1, count + 1)]
        found, reading = solved(problem, design, targets, checkpoint=place)
    return {
        **problem,
        "shards": count,
        "one_seconds": one,
        "shard_seconds": each,
        "reading_seconds": reading,
        "same_bits": same_bits(found, wanted),
    }


# --- In a process of its own -------------------------------------------------------------------------------------


def make_states(folder: Path, width: int, samples: int) -> None:
    """States of ResNet-20 with random weights on random images of 32 × 32, as .npy files in float32."""
    from simjax.nn import ResNet

    images = np.random.default_rng(0).normal(size=(samples, 32, 32, 3)).astype(np.float32)
    states = ResNet(width=width).states(images, with_baseline=False)
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(states, name).astype(np.float32))
    (folder / "states.json").write_text(json.dumps({"layer_sizes": states.layer_sizes, "has_biases": True}))


def one_shard(folder: Path, shards: int, rows_in_block: int, alpha: float, number: int = 1) -> Record:
    """A shard of the fit to the states in a folder; with `number` 1 it is rows of the last layer, which sees all."""
    began, used = time.perf_counter(), time.process_time()
    states = simjax.MappedStates.load(folder)
    before = peak_mebibytes()
    found = simjax.fit_shard(
        states,
        "l1",
        alpha=alpha,
        reduction="mean",
        support="feedforward",
        rescale="none",
        tol=1e-4,
        max_memory=rows_in_block * bytes_per_row((states.m, states.n + states.p)),
        checkpoint=folder / "fit",
        shard=(number, shards),
    )
    return {
        "states": states.n,
        "m": states.m,
        "d": states.n + states.p,
        "shards": shards,
        "rows": int(found.status.size),
        "certified": int(np.count_nonzero(found.status == simjax.Status.SOLVED)),
        "worst_relative_gap": float(found.certificate.relative_gap.max()),
        "nonzeros": int(scipy.sparse.csr_array(found.weights).nnz),
        "rows_in_block": rows_in_block,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - used,  # of all threads: what others take of the machine is not in it
        "before_mebibytes": before,
        "peak_mebibytes": peak_mebibytes(),
        "written_bytes": sum(file.stat().st_size for file in (folder / "fit" / "rows").iterdir()),
    }


def shard(width: int, samples: int, shards: int, rows_in_block: int, alpha: float) -> Record:
    """`make_states` and `one_shard`, each in a process of its own, so that memory is the shard's."""
    with tempfile.TemporaryDirectory() as folder:
        for words in (
            ["--states", folder, f"{width}", f"{samples}"],
            ["--one-shard", folder, f"{shards}", f"{rows_in_block}", f"{alpha}"],
        ):
            command = [sys.executable, "-m", "benchmarks.scale", *words]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return {"width": width, "alpha": alpha, **json.loads(done.stdout.splitlines()[-1])}


# --- Here --------------------------------------------------------------------------------------------------------


def section(results: Record) -> str:
    """The results as text for docs/scale.md."""
    lines = []
    if "checkpoint" in results:
        it = results["checkpoint"]
        plain, kept = statistics.median(it["plain_seconds"]), statistics.median(it["kept_seconds"])
        lines += [
            f"**With a checkpoint and without**, {it['rows']:,} rows of {it['d']} weights over {it['m']} samples, "
            f"medians of {len(it['plain_seconds'])} runs each in alternation: {plain:.1f} s without, {kept:.1f} s "
            f"with, {100 * (it['ratio'] - 1):+.1f} % (aim: within 10 %); {it['bytes'] / it['rows']:.0f} bytes a row on "
            f"the disk, read again in {it['reading_seconds']:.1f} s; {_bits(it)}.",
            "",
        ]
    if "shards" in results:
        it = results["shards"]
        lines += [
            f"**{it['shards']} shards against one run** of the same rows, one after the other on the same cores: "
            f"{sum(it['shard_seconds']):.1f} s against {it['one_seconds']:.1f} s, and {it['reading_seconds']:.1f} s to "
            f"read them together; {_bits(it)}.",
            "",
        ]
    if "resnet" in results:
        rows = [
            [
                f"{it['states']:,}",
                f"{it['m']}",
                f"{it['alpha']:g}",
                f"{it['rows']:,} (1/{it['shards']})",
                f"{it['certified']:,}",
                f"{it['worst_relative_gap']:.1e}",
                f"{it['nonzeros'] / it['rows']:.1f}",
                f"{it['seconds']:.0f}",
                f"{it['cpu_seconds']:.0f}" if "cpu_seconds" in it else "",
                f"{1000 * it['seconds'] / it['rows']:.0f}",
                f"{it['peak_mebibytes']:,.0f}",
                f"{it['written_bytes'] / it['rows']:,.0f}",
            ]
            for it in results["resnet"]
        ]
        heads = [
            "states",
            "m",
            "α",
            "rows",
            "certified",
            "worst gap",
            "nonzeros a row",
            "s",
            "CPU s",
            "ms a row",
            "peak MiB",
            "bytes a row",
        ]
        lines += ["**A shard of ResNet-20**, measured:", "", *table(heads, rows), ""]
    return "\n".join([*lines, *places(results["places"])])


def _bits(record: Record) -> str:
    return "the same bits" if record["same_bits"] else "OTHER BITS"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--part", choices=("checkpoint", "shards", "resnet"), help="only this one; the others stay")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of runs without and with a checkpoint")
    parser.add_argument("--width", type=int, default=RESNET["width"], help="channels of the network; 16 is ResNet-20")
    parser.add_argument("--shards", type=int, default=RESNET["shards"], help="of which one is solved")
    parser.add_argument("--alpha", type=float, default=RESNET["alpha"], help="of its L1 penalty, for the mean loss")
    parser.add_argument("--states", nargs=3, metavar=("FOLDER", "WIDTH", "SAMPLES"), help="only make states")
    parser.add_argument("--one-shard", nargs=4, metavar=("FOLDER", "SHARDS", "ROWS", "ALPHA"), help="only solve it")
    given = parser.parse_args(arguments)
    if given.states:
        make_states(Path(given.states[0]), int(given.states[1]), int(given.states[2]))
        return
    if given.one_shard:
        folder, count, rows, alpha = given.one_shard
        print(json.dumps(one_shard(Path(folder), int(count), int(rows), float(alpha))))
        return
    file = RESULTS / "scale.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    if given.part in (None, "checkpoint"):
        results["checkpoint"] = checkpoint(pairs=given.pairs)
    if given.part in (None, "shards"):
        results["shards"] = shards()
    if given.part in (None, "resnet"):
        made = shard(**{**RESNET, "width": given.width, "shards": given.shards, "alpha": given.alpha})
        others = [
            it for it in results.get("resnet", []) if any(it[key] != made[key] for key in ("states", "shards", "alpha"))
        ]
        results["resnet"] = sorted([*others, made], key=lambda it: it["states"])
    results["places"] = [*results.get("places", []), {"part": given.part or "all", **place()}][-4:]
    write_text(file, json.dumps(results, indent=1) + "\n")
    write_between(ROOT / "docs" / "scale.md", BEGIN, END, section(results))


if __name__ == "__main__":
    main()
