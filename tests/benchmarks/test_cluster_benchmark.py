"""The benchmark of workers on a tiny problem: what it records and what the page says of it."""

from __future__ import annotations

import pytest

from benchmarks import cluster


@pytest.mark.slow
def test_what_is_sent_is_counted_and_shown(monkeypatch):
    monkeypatch.setattr(cluster, "WAYS", {"processes": cluster.processes})
    monkeypatch.setattr(cluster, "cores", lambda: 1)
    rows = cluster.problem(70, 20, 30)
    one, pool = cluster.measure(rows, 1)
    assert (one["certified"], pool["certified"]) == (70, 70)
    assert pool["objective_difference"] <= 1e-6
    assert 8 * 20 < pool["bytes_there"] < 8 * 20 + 100
    assert 8 * 25 < pool["bytes_back"] < 8 * 25 + 12 * 30 + 100
    assert pool["worker_mebibytes"] >= pool["worker_mebibytes_before"] > 10.0
    text = cluster.section([one, pool])
    assert "| processes | " in text
    assert "70 rows over a design of 20 samples and 30 columns, 1 workers:" in text
