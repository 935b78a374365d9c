"""All 122 rows of Fashion-MNIST (784-64-32-16-10, m = 500, λ = 0.1, α = 1e-3), every objective and support, certified:
`python -m benchmarks.fashion_rows`.

Each fit is checked row by row with Clarabel on a random sample. Writes benchmarks/results/fashion_rows.json. Times are
whole calls, compilation included, on whatever machine this runs on: they are no benchmark against anything.
"""

from __future__ import annotations

import argparse
import json
import platform
from typing import Any

import jax
import numpy as np

import simjax
from benchmarks.problems import standard_states
from benchmarks.records import RESULTS, write_text
from simjax import datasets

OBJECTIVES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("l1", {}),
    ("perspective", {}),
    ("perspective", {"mu": 1e-5}),
    ("elastic_net", {}),
)


def main() -> None:
    """Fit, certify and verify every combination."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--verify", type=int, default=6, help="rows of each fit that Clarabel solves again")
    parser.add_argument("--units", nargs="+", default=["rescaled", "natural"])
    arguments = parser.parse_args()
    states = standard_states()
    assert states.baseline is not None
    data = datasets.load("fashion-mnist")
    accuracy = states.baseline.accuracy(data.test_inputs, data.test_labels)
    lines = []
    for units in arguments.units:
        for support in ("full", "hollow", "feedforward"):
            for objective, extra in OBJECTIVES:
                result = simjax.fit(states, objective, support=support, units=units, **extra)
                verification = result.verify(rows=arguments.verify)
                lines.append(
                    {
                        "units": units,
                        "support": support,
                        "objective": objective,
                        **extra,
                        "certified": int(np.count_nonzero(result.status == "SOLVED")),
                        "rows": int(result.status.size),
                        "worst_relative_gap": float(result.certificate.relative_gap.max()),
                        "worst_infeasibility": float(result.certificate.infeasibility.max()),
                        "well_posedness": result.model.well_posedness,
                        "verified_rows": int(verification.rows.size),
                        "agree": bool(verification.ok),
                        "worst_difference": float(np.abs(verification.difference).max()),
                        "seconds": round(result.seconds, 2),
                        "solver": result.solutions[0].summary().splitlines()[0].split(None, 1)[1],
                    }
                )
                print(json.dumps(lines[-1]), flush=True)
    results = {
        "baseline_accuracy": accuracy,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": str(jax.devices()[0].device_kind),
        "fits": lines,
    }
    write_text(RESULTS / "fashion_rows.json", json.dumps(results, indent=1) + "\n")
    if any(line["certified"] < line["rows"] or not line["agree"] for line in lines):
        raise SystemExit("not every row is certified and verified")


if __name__ == "__main__":
    main()
