"""`SparseRegressorCV` beside scikit-learn's `LassoCV`: `python -m benchmarks.estimators`.

Writes benchmarks/results/estimators.json and a table between two markers of docs/estimators.md.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LassoCV

from benchmarks.records import RESULTS, ROOT, Record, place, places, table, write_between, write_text
from simjax.sklearn import SparseRegressorCV

BEGIN, END = "<!-- estimators:begin -->", "<!-- estimators:end -->"
REPEATS = 7


def gaussian() -> tuple[np.ndarray, np.ndarray]:
    """2,000 samples of 500 features, of which 20 count."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(2000, 500))
    return samples, samples[:, :20] @ rng.normal(size=20) + rng.normal(size=2000)


def measure(name: str, samples: np.ndarray, target: np.ndarray) -> Record:
    """Seconds of the estimators in turn, and by how much their errors differ."""
    tight: dict[str, Any] = {"cv": 5, "tol": 1e-9, "max_iter": 100_000}
    makers: dict[str, Callable[[], Any]] = {
        "simjax": SparseRegressorCV,
        "default": lambda: LassoCV(cv=5),
        "tight": lambda: LassoCV(**tight),
    }
    fitted = {key: make().fit(samples, target) for key, make in makers.items()}
    seconds: dict[str, list[float]] = {key: [] for key in makers}
    for _ in range(REPEATS):
        for key, make in makers.items():
            began = time.perf_counter()
            make().fit(samples, target)
            seconds[key].append(time.perf_counter() - began)
    ours = fitted["simjax"]
    differences = {key: float(np.abs(each.mse_path_ / ours.mse_path_ - 1.0).max()) for key, each in fitted.items()}
    return {
        "name": name,
        "samples": samples.shape[0],
        "features": samples.shape[1],
        "seconds": {key: statistics.median(each) for key, each in seconds.items()},
        "mse_difference": differences,
        "same_alpha": {key: bool(np.isclose(each.alpha_, ours.alpha_)) for key, each in fitted.items()},
        "worst_gap": float(ours.path_gap_.max()),
    }


def section(results: Record) -> str:
    """The results as text."""
    rows = []
    for each in results["designs"]:
        took, off = each["seconds"], each["mse_difference"]
        rows.append(
            (
                f"{each['name']}, {each['samples']:,} × {each['features']}",
                f"{took['simjax']:.3f} s (worst gap {each['worst_gap']:.0e})",
                *(f"{took[key]:.3f} s, errors {off[key]:.0e} away" for key in ("tight", "default")),
                f"{took['tight'] / took['simjax']:.1f}×, {took['default'] / took['simjax']:.1f}×",
            )
        )
    heads = ("design", "SparseRegressorCV", "LassoCV(tol=1e-9)", "LassoCV()", "times faster")
    return "\n".join([*table(heads, rows), "", *places([results])])


def main() -> None:
    """Measure and write down."""
    designs = [measure("diabetes", *load_diabetes(return_X_y=True)), measure("Gaussian", *gaussian())]
    results = {"designs": designs, **place()}
    write_text(RESULTS / "estimators.json", json.dumps(results, indent=1) + "\n")
    write_between(ROOT / "docs" / "estimators.md", BEGIN, END, section(results))
    print(section(results))


if __name__ == "__main__":
    main()
