"""The memory of each program that JAX compiles, by the compiler's own analysis: `python -m benchmarks.memory`.

Nothing of what is measured runs: programs are compiled, for whatever device is here, with the tiles of an accelerator,
and XLA says what they would hold. Writes benchmarks/results/memory.json and a table between two markers of
docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np

from benchmarks import problems
from benchmarks.programs import Program, engine_programs, functional_programs
from benchmarks.records import RESULTS, ROOT, Record, place, places, table, write_between, write_text
from simjax.rows.options import SolveOptions

BEGIN, END = "<!-- memory:begin -->", "<!-- memory:end -->"
# The engine's programs depend on m through the rank alone, which grows no further.
ENGINE, FUNCTIONAL = (100, 500, 1000), (100, 500, 1000, 60_000)
_PASSES = 63  # enough for every program to be asked for


def programs() -> list[tuple[int, Program]]:
    """Samples and program: all of the engine, and of the functional API in float32."""
    found = []
    for m in ENGINE:
        rows = problems.stand_in(m).rows
        found += [(m, each) for each in engine_programs(rows, SolveOptions(max_iters=_PASSES))]
    width, count = rows.width, rows.count
    for m in FUNCTIONAL:
        forms = functional_programs(m, width, count, np.float32, forms=("solve", "gradient"))
        found += [(m, each) for each in forms]
    return found


def section(results: Record) -> str:
    """The results as text for docs/performance.md."""
    heads = ["m", "program", "in (MiB)", "out (MiB)", "in between (MiB)"]
    rows = [
        [f"{each['m']:,}", each["program"], *(f"{each[kind] / 2**20:,.0f}" for kind in _KINDS)]
        for each in results["programs"]
    ]
    return "\n".join([*table(heads, rows), "", *places([results])])


_KINDS = ("arguments", "results", "temporaries")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, ask and write."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args(arguments)
    made = [{"m": m, "program": each.name, **each.memory()} for m, each in programs()]
    results = {"programs": made, **place()}
    write_text(RESULTS / "memory.json", json.dumps(results, indent=1) + "\n")
    write_between(ROOT / "docs" / "performance.md", BEGIN, END, section(results))


if __name__ == "__main__":
    main()
