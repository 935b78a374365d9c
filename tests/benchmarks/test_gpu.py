"""What is measured on GPUs: the budget of time that it keeps, and its steps at small sizes."""

import json
import time

import jax
import numpy as np
import pytest

from benchmarks import budget, gpu, problems


def read(file):
    return json.loads(file.read_text())["records"]


def test_every_step_is_written_when_it_is_done(tmp_path):
    file, seen = tmp_path / "found.json", []

    def look():
        seen.append(read(file))
        return {"value": np.float64(len(seen)), "gap": np.inf}

    found = budget.run([("one", 10.0, look), ("two", 10.0, look)], file, 60.0, {"step": "place"})
    assert seen[0] == [{"step": "place"}, {"step": "one", "unfinished": True}]
    assert [record["step"] for record in seen[1]] == ["place", "one", "two"]
    assert seen[1][1]["value"] == 1.0
    assert seen[1][1]["gap"] == "inf"  # JSON has none
    assert [record["step"] for record in read(file)] == [record["step"] for record in found] == ["place", "one", "two"]
    assert not any("unfinished" in record for record in read(file))


def test_steps_are_cut_fail_or_are_left_out_and_the_others_made(tmp_path):
    file = tmp_path / "found.json"

    def endless():
        while True:
            time.sleep(0.01)

    def wrong():
        raise RuntimeError("no such device")

    steps = [("cut", 0.2, endless), ("wrong", 10.0, wrong), ("fine", 10.0, lambda: {"value": 1})]
    _, cut, failed, fine = budget.run(steps, file, 60.0, {})
    assert cut["cut"].startswith("after 0.2")
    assert failed["error"] == "RuntimeError: no such device"
    assert fine["value"] == 1
    _, late = budget.run([("late", 10.0, wrong)], file, budget._GRACE + 1.0, {})
    assert late["left_out"] == "no time was left"


def test_what_no_signal_reaches_is_ended_and_keeps_what_it_has(tmp_path, monkeypatch):
    """Within a compiler no signal is seen: the timer ends the process, here by saying so."""
    file, ended = tmp_path / "found.json", []
    monkeypatch.setattr(budget, "_LEAST", 0.0)
    monkeypatch.setattr(budget, "_GRACE", -60.0)  # the signal comes too late

    def deaf():
        while not ended:
            time.sleep(0.01)
        assert read(file)[-1] == {"step": "deaf", "unfinished": True}
        return {}

    budget.run([("deaf", 60.0, deaf)], file, 0.3, {}, end=ended.append)
    assert ended == [1]


def test_a_stand_in_has_the_shapes_of_the_standard_problem():
    made = problems.stand_in(30)
    assert made.design.shape == (30, 896)
    assert (made.rows.count, made.inner, made.n) == (122, 112, 112)
    norms = np.linalg.norm(made.design, axis=0)
    assert np.any(norms == 0.0)
    assert norms.max() > 1e2 * np.median(norms[norms > 0.0]) or norms.min() < 1e-2 * norms.max()
    assert problems.problem("stand-in-m100-784-64-32-16-10-l1").design.shape[0] == 100


def test_the_steps_say_what_is_promised():
    names = [name for name, _, _ in gpu.steps(gpu.FULL)]
    assert len(set(names)) == len(names)
    for m in problems.SIZES:
        assert f"solve stand-in m = {m} l1" in names
    for part in ("device", "solve held-out", "solve large", "functional batch float32", "prune"):
        assert part in names
    assert gpu.FULL.large == (8192, 8192 + 1024, 4096)
    assert gpu.LIMIT <= 540.0


@pytest.mark.slow
def test_a_solve_is_measured_and_certified_apart_from_the_device():
    record = gpu.solve(lambda: problems.synthetic(6, 20, 12))
    for precision in ("auto", "float64"):
        found = record[precision]
        assert found["rows_certified"] == found["rows_solved"] == 6
        assert float(found["worst_relative_gap"]) <= 1e-6
        assert 0.0 <= found["compile_seconds"] < found["first_seconds"]  # nothing where compiled programs are kept
    assert record["pass_float64"]["share_of_products"] > 0.0
    assert jax.devices()[0].platform != "cpu" or "mebibytes_limit" not in record["memory"]
