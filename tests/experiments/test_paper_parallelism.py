"""The timings of the rows' parallel solves: what is timed, scaled and judged, on tiny problems."""

from __future__ import annotations

import builtins
import dataclasses
import json

import numpy as np
import pytest

from benchmarks import problems
from experiments import parallelism
from experiments.__main__ import find

pytestmark = pytest.mark.slow  # `make test` is for the library

pytest.importorskip("clarabel")


def tiny():
    return problems.synthetic(6, 20, 12, condition=10.0, sparsity=0.8, seed=0)


def record(method, seconds, seed=0, m=100, **others):
    return {
        "m": m, "d": 20, "seed": seed, "rows_total": 6, "cores": 2, "method": method, "workers": 2, "rows_timed": 3,
        "rows": 3, "rows_certified": 3, "worst_relative_gap": 1e-7, "seconds": seconds, "start_seconds": 0.5,
        "cpu": "a processor", "device": "cpu", "python": "3", "versions": {}, "commit": "abc", "changed_since": False,
        "date": "2026-01-01T00:00:00", **others,
    }  # fmt: skip


def test_it_is_found_by_its_name():
    assert find("parallelism") is parallelism.EXPERIMENT


def test_the_start_is_counted_once_and_the_rest_in_proportion():
    some = parallelism.Timed(np.zeros((3, 4)), np.zeros((3, 2)), seconds=5.0, start_seconds=2.0, versions={})
    assert some.facts(12)["seconds"] == pytest.approx(2.0 + 3.0 * 4.0)
    assert some.facts(3)["seconds"] == 5.0  # as measured, where all rows were


def test_serial_and_simjax_answer_the_rows_and_are_judged_alike():
    made = tiny()
    chosen = np.array([1, 4])
    found = parallelism.serial(made.rows, chosen, 1)
    verdict = parallelism.judged(made.rows.take(chosen), found.weights, found.duals)
    assert verdict["rows"] == verdict["rows_certified"] == 2
    assert found.start_seconds == 0.0
    assert found.seconds > 0.0
    wrong = parallelism.judged(made.rows.take(chosen), found.weights[::-1], found.duals)
    assert wrong["rows_certified"] == 0
    calls = parallelism.simjax_calls(made, calls=1)
    assert set(calls) == {"simjax, first call", "simjax, warm"}
    assert all(call["rows_certified"] == 6 and call["seconds"] > 0.0 for call in calls.values())


def test_without_ray_the_record_says_so_and_the_others_stand(monkeypatch):
    real = builtins.__import__

    def without_ray(name, *rest, **options):
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return real(name, *rest, **options)

    own = parallelism.simjax_calls(tiny(), calls=1)
    monkeypatch.setattr(builtins, "__import__", without_ray)
    monkeypatch.setattr(parallelism, "multiprocessing", parallelism.serial)  # starts no processes here
    monkeypatch.setattr(parallelism, "in_own_process", lambda problem: own)
    found = {r["method"]: r for r in parallelism.measured(tiny(), 12, 0, 2, workers=1)}
    assert set(found) == set(parallelism.METHODS)
    assert "Ray is not installed" in found["ray"]["unavailable"]
    assert found["serial"]["rows_timed"] == 2


def test_the_command_prints_what_it_measured(tmp_path):
    tiny().save(tmp_path)
    written = []
    parallelism.main([str(tmp_path)], write=written.append)
    assert set(json.loads(written[0])) == {"simjax, first call", "simjax, warm"}


def test_the_table_has_speedups_by_seed_and_says_what_is_missing():
    records = [
        record("serial", 8.0, workers=1),
        record("serial", 12.0, seed=1, workers=1),
        record("multiprocessing", 4.0),
        record("multiprocessing", 4.0, seed=1),
        record("simjax, warm", 1.0, rows_timed=6),
        record("simjax, warm", 1.0, seed=1, rows_timed=6, rows_certified=2),
    ]
    records.append({"unavailable": "Ray is not installed", **{key: record("ray", 0.0)[key] for key in (
        "m", "d", "seed", "rows_total", "cores", "method", "workers", "rows_timed")}})  # fmt: skip
    text = parallelism.section(records)
    assert "10.00 ± 2.83 (scaled) | 1.0 ± 0.0 ×" in text
    assert "4.00 ± 0.00 (scaled) | 2.5 ± 0.7 ×" in text
    assert "6 of 6 | – | 1.00 ± 0.00 | 10.0 ± 2.8 ×" in text
    assert "unavailable: Ray is not installed" in text
    assert "**1 of 18 rows behind these numbers are not certified**" in text
    figure = parallelism.pictures(records)["parallelism"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "simjax, warm", "multiprocessing", "serial",
    ]  # fmt: skip


def test_processes_and_actors_give_the_answers_of_one_process():
    made, chosen = tiny(), np.arange(6)
    here = parallelism.serial(made.rows, chosen, 1)
    methods = [parallelism.multiprocessing]
    try:
        import ray  # noqa: F401
    except ImportError:
        pass
    else:
        methods.append(parallelism.ray)
    for method in methods:
        found = method(made.rows, chosen, 2)
        np.testing.assert_allclose(found.weights, here.weights, atol=1e-9)
        assert found.start_seconds > 0.0
        assert dataclasses.asdict(found)["versions"]
