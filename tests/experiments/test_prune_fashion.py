"""`prune` beside the fits of the pareto experiment: what the page says of its records."""

import numpy as np
import pytest

from experiments import prune_fashion
from experiments.__main__ import find


def made_up(accuracy):
    common = {"rows": 2, "rows_certified": 2, "worst_relative_gap": 1e-9, "samples": 100}
    for seed in (0, 1):
        yield {
            **common,
            "seed": seed,
            "allocation": "none",
            "target": 0.0,
            "sparsity": 0.0,
            "errors": [],
            "clean": 0.89,
        }
        for allocation in prune_fashion.ALLOCATIONS:
            for target in prune_fashion.TARGETS:
                found = {"sparsity": target, "errors": [0.1, 0.2], "clean": accuracy}
                yield {**common, "seed": seed, "allocation": allocation, "target": target, **found}


@pytest.mark.parametrize(("accuracy", "said"), [(0.9, "no worse"), (0.5, "**worse**")])
def test_the_page_says_whether_prune_is_no_worse(accuracy, said, monkeypatch):
    monkeypatch.setattr(prune_fashion, "places", lambda records: ["here"])
    records = list(made_up(accuracy))
    text = prune_fashion.section(records)
    assert text.count(f"| {said} |") == 6
    assert "All 28 rows behind these numbers are certified" in text
    axes = prune_fashion.pictures(records)[prune_fashion.NAME].axes
    assert len(axes) == 2
    np.testing.assert_allclose(axes[1].lines[0].get_ydata(), 100 * accuracy)
    assert find("prune-fashion") is prune_fashion.EXPERIMENT
