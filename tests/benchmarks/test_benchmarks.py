"""The side-by-side benchmarks on tiny problems: what they state, how they judge, what they write."""

from __future__ import annotations

import json
import os
import sys

import jax
import numpy as np
import pytest

import simjax
from benchmarks import calls, problems, records, report, scale, sidebyside
from benchmarks.peers import common, conic, environments, lasso, own, torchidl
from benchmarks.peers.registry import PEERS
from simjax.rows.certificate import certify
from simjax.rows.options import SolveOptions
from simjax.rows.solve import solve_problem

SHAPE = (6, 20, 12)  # rows, columns, samples


def tiny(objective="l1", **options):
    return problems.synthetic(*SHAPE, condition=10.0, sparsity=0.8, seed=0, objective=objective, **options)


def task(problem, folder, **options):
    problem.save(folder)
    return common.Task(problem, folder, **{"workers": 1, "repeats": 1, "sample": 12, "full_seconds": 60.0, **options})


def same_rows(left, right):
    rng = np.random.default_rng(0)
    weights = 0.1 * rng.normal(size=(left.count, left.width))
    one, other = certify(left, weights), certify(right, weights)
    np.testing.assert_array_equal(one.objective, other.objective)
    np.testing.assert_array_equal(one.infeasibility, other.infeasibility)
    np.testing.assert_array_equal(one.relative_gap, other.relative_gap)


# --- Problems ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", problems.OBJECTIVES)
def test_a_saved_problem_is_the_same_problem(tmp_path, objective):
    problem = tiny(objective)
    problem.save(tmp_path)
    loaded = problems.Problem.load(tmp_path)
    assert loaded.facts() == problem.facts()
    same_rows(problem.rows, loaded.rows)


@pytest.mark.parametrize("kappa", [0.99, None])
def test_the_rows_of_a_network_are_those_of_fit(tmp_path, kappa):
    rng = np.random.default_rng(1)
    layers = [rng.normal(size=shape) for shape in ((5, 8), (4, 5), (3, 4))]
    states = simjax.States.from_layers(layers, None, "relu", rng.normal(size=(12, 8)))
    problem = problems.of_states("network", states, "perspective-100th", 0.1, 1e-3, kappa)
    assert (problem.mu, problem.n, problem.inner, problem.rows.count) == (1e-5, 9, 9, 12)
    problem.save(tmp_path)
    same_rows(problem.rows, problems.Problem.load(tmp_path).rows)
    assert (problem.rows.bound is None) == (kappa is None)
    rescaled = states.rescaled(states.scaling("inner", 0.99))
    np.testing.assert_array_equal(problem.design, np.hstack([rescaled.activations, rescaled.inputs]))
    np.testing.assert_array_equal(problem.targets, np.hstack([rescaled.preactivations, rescaled.outputs]))


def test_trained_weights_are_kept_and_nothing_else(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(problems, "train", lambda *args, **settings: trained.append(settings))
    first = problems.network_states("digits", 30, cache=tmp_path)
    again = problems.network_states("digits", 30, cache=tmp_path)
    assert len(trained) == 1
    np.testing.assert_array_equal(first.activations, again.activations)
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    monkeypatch.setattr(problems, "RECOMMENDED", {"digits": {"epochs": 1}})
    problems.network_states("digits", 30, cache=tmp_path)
    assert len(trained) == 2  # other settings are another network


def test_names_make_the_problems_they_name():
    for name in problems.NAMES:
        if name.startswith(("synthetic-60x", "held-out-100x300-m200")):
            assert problems.problem(name).name == name
    with pytest.raises(ValueError, match="got 'standard'"):
        problems.problem("standard")


@pytest.mark.slow
def test_made_up_rows_have_balls_that_bind_and_balls_that_do_not():
    for made in (problems.synthetic(24, 20, 12), problems.held_out(24, 20, 12)):
        free = solve_problem(problems.stated(made.design, made.targets, **{**attributes(made), "kappa": None}).rows)
        norm = np.abs(free.weights[: made.inner, : made.n]).sum(axis=1)
        assert 0 < np.count_nonzero(norm > made.kappa) < made.inner


def attributes(problem):
    return {name: getattr(problem, name) for name in problem.__dataclass_fields__ if name != "rows"}


# --- Judging -----------------------------------------------------------------------------------------------------


def test_an_answer_outside_the_ball_is_scaled_onto_it_and_the_violation_reported():
    made = tiny()
    problem, solution = made.rows, solve_problem(made.rows)
    dual = [solution.certificate.dual]
    assert common.judge(problem, solution.weights, dual).reached
    norm = np.abs(solution.weights[: made.inner, : made.n]).sum(axis=1)
    full = int(np.argmax(norm))
    assert norm[full] == pytest.approx(made.kappa, abs=1e-12)  # its ball binds
    outside = solution.weights.copy()
    outside[full] *= 1.0 + 1e-9
    verdict = common.judge(problem, outside, dual)
    assert verdict.kappa_violation == pytest.approx(1e-9, rel=1e-3)
    assert verdict.reached
    outside[full] *= 1.1
    verdict = common.judge(problem, outside, dual)
    assert verdict.kappa_violation == pytest.approx(0.1, rel=1e-3)
    assert not verdict.certified[full]
    assert verdict.worst_relative_gap > common.REACHED


def test_weights_that_are_not_finite_are_not_certified():
    problem = tiny().rows
    solution = solve_problem(problem)
    broken = solution.weights.copy()
    broken[2, 3] = np.nan
    verdict = common.judge(problem, broken, [solution.certificate.dual])
    assert not verdict.certified[2]
    assert np.count_nonzero(verdict.certified) == SHAPE[0] - 1
    assert json.dumps(records.plain(verdict.figures()), allow_nan=False)
    assert records.plain(verdict.figures())["worst_relative_gap"] == "inf"


class Converging:
    """A peer whose weights are off by its tolerance, and which takes a second a row."""

    def __init__(self, problem, exhausted=False):
        solution = solve_problem(problem.rows, SolveOptions(tol=1e-9))
        self.weights, self.dual, self.exhausted = solution.weights, solution.certificate.dual, exhausted
        self.asked = []

    def __call__(self, chosen, tol):
        self.asked.append((chosen.size, tol))
        return common.Answer(
            weights=(1.0 - tol) * self.weights[chosen],
            seconds=float(chosen.size) + 5.0,
            once=5.0,
            duals=self.dual[chosen],
            exhausted=np.full(chosen.size, self.exhausted),
        )


def test_a_tolerance_is_tightened_until_every_row_is_certified(tmp_path):
    problem = tiny()
    peer = Converging(problem)
    record = common.tighten(task(problem, tmp_path, sample=2, repeats=2, full_seconds=100.0), (1e-1, 1e-2, 1e-8), peer)
    assert peer.asked == [(2, 1e-1), (2, 1e-2), (2, 1e-8), (6, 1e-8), (6, 1e-8)]
    assert record["reached"]
    assert record["tolerance"] == 1e-8
    assert not record["extrapolated"]
    assert record["seconds_all"] == [11.0, 11.0]
    assert [attempt["reached"] for attempt in record["attempts"]] == [False, False, True, True]
    told = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len(told) == len(record["attempts"])


def test_a_slow_peer_is_timed_on_a_sample_and_says_so(tmp_path):
    problem = tiny()
    record = common.tighten(task(problem, tmp_path, sample=2, full_seconds=10.0), (1e-8,), Converging(problem))
    assert record["extrapolated"]
    assert record["rows_timed"] == 2
    assert record["seconds"] == 11.0  # five seconds once, and one for each of six rows


def test_a_peer_at_its_iteration_limit_is_not_asked_for_more(tmp_path):
    problem = tiny()
    peer = Converging(problem, exhausted=True)
    record = common.tighten(task(problem, tmp_path), (1e-1, 1e-8), peer)
    assert peer.asked == [(6, 1e-1)]
    assert not record["reached"]
    assert record["rows_certified"] < SHAPE[0]


# --- Peers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_compiled_before():
    """Without the compiled code that other test runs left, where first calls are timed."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("nothing_compiled_before")
def test_simjax_is_timed_warm_with_its_compilation_apart(tmp_path):
    record = own.run(task(tiny(), tmp_path, repeats=2))
    assert record["reached"]
    assert len(record["seconds_all"]) == 2
    assert record["compile_seconds"] == record["first_seconds"] - record["seconds"]
    assert record["versions"]["simjax"] == simjax.__version__


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["l1", "perspective-100th"])
def test_clarabel_gets_there_in_both_forms(tmp_path, objective):
    pytest.importorskip("clarabel")
    given = task(tiny(objective), tmp_path)
    own.reference(given)
    for form in ("residual", "gram"):
        record = conic.clarabel(given, form)
        assert record["reached"]
        assert record["rows_certified"] == SHAPE[0]
        assert record["tolerance"] in conic.LADDER
        assert not record["extrapolated"]
        json.dumps(records.plain(record), allow_nan=False)


@pytest.mark.slow
def test_scikit_learn_solves_plain_lassos(tmp_path):
    record = lasso.run(task(tiny(kappa=None), tmp_path), "scikit-learn")
    assert record["reached"]
    assert record["tolerance"] in lasso.LADDER
    assert record["rows_certified"] == SHAPE[0]


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["celer", "skglm", "adelie"])
def test_packages_of_their_own_solve_plain_lassos(tmp_path, solver):
    if not environments.exists(solver):
        pytest.skip(f"no environment in {environments.folder(solver)}; benchmarks.sidebyside makes it")
    assert lasso.run(task(tiny(kappa=None), tmp_path), solver)["reached"]


@pytest.mark.slow
def test_torchidl_solves_the_same_problem(tmp_path):
    if not environments.exists("torchidl"):
        pytest.skip(f"no environment in {environments.folder('torchidl')}; benchmarks.sidebyside makes it")
    given = task(tiny(), tmp_path)
    own.reference(given)
    record = torchidl.cvx(given)
    assert record["rows_timed"] == SHAPE[0]
    assert float(record["worst_relative_gap"]) < 1e-4


def test_what_a_peer_does_not_solve_is_said_before_anything_runs(tmp_path):
    settings = sidebyside.Settings(workers=1, repeats=1)
    peers = ["torchidl-cvx", "scikit-learn", "celer"]
    entries = list(sidebyside.compare(tiny("perspective"), peers, settings))
    assert [entry["status"] for entry in entries] == [common.NOT_OFFERED] * 3
    assert all("perspective" in entry["reason"] for entry in entries)
    assert PEERS["torchidl-cvx"].refuses(tiny()) is None
    assert "norm" in PEERS["celer"].refuses(tiny())
    missing = {"torchidl": "no network"}
    (entry,) = sidebyside.compare(tiny(), ["torchidl-admm"], settings, missing)
    assert (entry["status"], entry["reason"]) == (common.UNAVAILABLE, "no network")


# --- Runs and records --------------------------------------------------------------------------------------------


def test_a_run_in_a_fresh_process_is_recorded(tmp_path):
    output = tmp_path / "records.json"
    (entry,) = sidebyside.compare(tiny(), ["simjax"], sidebyside.Settings(workers=1, repeats=1))
    sidebyside.merge(output, entry)
    (found,) = sidebyside.read(output)
    assert found == entry
    assert found["rows_certified"] == found["rows"] == SHAPE[0]
    assert found["workers"] == 1
    assert {"cpu", "commit", "date", "versions", "device", "python"} <= found.keys()
    assert "6 of 6 rows certified" in sidebyside.line(found)


def test_a_peer_over_its_budget_is_stopped_with_what_it_has_done(tmp_path):
    tiny().save(tmp_path)
    settings = {"workers": 1, "repeats": 1, "sample": 12, "full_seconds": 1.0}
    (tmp_path / "task.json").write_text(json.dumps(settings))
    record = sidebyside.run(tmp_path, "simjax", budget=0.2)
    assert record["status"] == common.OVER_BUDGET
    told = [{"row_seconds": 9.0}, {"attempt": {"tolerance": 1e-6}}, {"row_seconds": 2.0}, {"row_seconds": 4.0}]
    assert sidebyside.so_far(told) == {
        "attempts": [{"tolerance": 1e-6}],
        "rows_finished": 2,
        "row_seconds_median": 3.0,
    }


def test_a_record_replaces_only_that_of_the_same_problem_and_peer(tmp_path):
    file = tmp_path / "records.json"
    for problem, peer, value in (("b", "simjax", 1), ("a", "mosek", 2), ("b", "mosek", 3), ("b", "simjax", 4)):
        sidebyside.merge(file, {"problem": problem, "peer": peer, "value": value})
    found = {(entry["problem"], entry["peer"]): entry["value"] for entry in sidebyside.read(file)}
    assert found == {("b", "simjax"): 4, ("a", "mosek"): 2, ("b", "mosek"): 3}
    file.write_text("[]")
    with pytest.raises(ValueError, match="is not a file of"):
        sidebyside.read(file)


def test_bad_arguments_are_named(tmp_path, capsys):
    output = str(tmp_path / "records.json")
    too_many = str(len(os.sched_getaffinity(0)) + 1) if hasattr(os, "sched_getaffinity") else "0"
    for arguments, expected in (
        (["--problems", "nothing*"], "nothing*"),
        (["--peers", "gurobi"], "gurobi"),
        (["--sample", "3"], "at least 12"),
        (["--workers", too_many], "workers must be at"),
        (["--repeats", "0"], "repeats must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            sidebyside.main([*arguments, "--output", output])
        assert expected in capsys.readouterr().err
    assert not os.path.exists(output)


def test_the_environment_of_another_solver_has_to_be_there(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(common.Unavailable, match="torchidl"):
        environments.python("torchidl")


def test_a_script_that_fails_says_why(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit('no such thing')")
    with pytest.raises(RuntimeError, match="no such thing"):
        environments.run_script(sys.executable, script, tmp_path, {}, {}, threads=1)


# --- The report --------------------------------------------------------------------------------------------------


def entry(peer, seconds, *, m=100, reached=True, **more):
    facts = {
        "problem": f"standard-m{m}-l1", "peer": peer, "objective": "l1", "loss_weight": 0.1, "alpha": 1e-3,
        "mu": None, "kappa": 0.99, "m": m, "d": 896, "rows": 122, "status": common.MEASURED, "seconds": seconds,
        "rows_timed": 122, "extrapolated": False, "rows_certified": 122 if reached else 7, "reached": reached,
        "worst_relative_gap": 3e-7, "kappa_violation": 0.0, "nonzeros": 1234, "tolerance": 1e-6, "workers": 2,
        "cpu": "a processor", "python": "3.11", "commit": "c" * 40, "changed_since": False, "date": "2026-01-01T00:00",
        "versions": {peer: "1.0"},
    }  # fmt: skip
    return {**facts, **more}


def entries():
    return [
        entry("simjax", 0.1, compile_seconds=3.0, device="cpu"),
        entry("clarabel-residual", 1.5, form="residual"),
        entry("clarabel-gram", 1.0, form="gram", reached=False),
        entry("torchidl-cvx", 4.0, extrapolated=True, rows_timed=12),
        without_time("mosek", common.UNAVAILABLE, "no licence | none"),
        without_time("celer", common.NOT_OFFERED, "no constraint"),
    ]


def without_time(peer, status, reason):
    facts = {key: value for key, value in entry(peer, 0.0).items() if key not in ("seconds", "versions")}
    return {**facts, "status": status, "reason": reason}


def test_aims_are_judged_by_the_fastest_form_that_gets_there():
    text = report.section(entries(), "images/picture.png")
    (line,) = [line for line in text.splitlines() if line.startswith("| standard-m100-l1 | 122 × 896")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "standard-m100-l1", "122 × 896", "100", "0.1", "3.0", "~4", "40×", "30× met", "1.5", "residual", "15×",
        "20× missed",
    ]  # fmt: skip
    assert "1 !" in text
    assert "unavailable: no licence / none" in text
    assert "celer" not in text
    assert "![Time against the number of samples](images/picture.png)" in text


def test_no_aim_is_met_by_rows_that_are_not_certified_or_on_another_machine():
    own_entry = entry("simjax", 0.1, reached=False, compile_seconds=3.0)
    assert report.verdict(own_entry, entry("torchidl-cvx", 4.0), 30.0) == "30× missed"
    assert report.verdict(own_entry, entry("torchidl-cvx", 4.0, cpu="another"), 30.0) == "30× open"
    assert report.verdict(own_entry, None, 30.0) == "30× open"
    assert report.verdict(own_entry, None, None) == "–"


def test_only_what_is_between_the_markers_is_written(tmp_path):
    source, page, shown = tmp_path / "in.json", tmp_path / "performance.md", tmp_path / "images" / "shown.png"
    for each in entries():
        sidebyside.merge(source, each)
    arguments = ["--input", str(source), "--page", str(page), "--picture", str(shown)]
    report.main(arguments)
    first = page.read_text()
    assert first.startswith("# Performance\n\n" + report.BEGIN)
    page.write_text("before\n" + first.replace("20× missed", "stale") + "after\n")
    report.main(arguments)
    text = page.read_text()
    assert text == "before\n" + first + "after\n"
    assert shown.read_bytes().startswith(b"\x89PNG")
    page.write_text("no markers")
    with pytest.raises(ValueError, match="markers"):
        report.main(arguments)
    assert page.read_text() == "no markers"


def test_the_picture_has_a_panel_for_each_objective():
    line = [entry("simjax", 0.1 * m, m=m, compile_seconds=1.0) for m in (100, 500, 1000)]
    line += [entry("clarabel-gram", 7.0, m=100, reached=False), entry("celer", 1.0, problem="other", kappa=None)]
    figure = report.picture([*line, entry("simjax", 0.2, objective="perspective", mu=1e-5)])
    first, second = figure.axes
    assert first.get_title() == "L1\nλ = 0.1, α = 0.001"
    assert second.get_title() == "perspective, μ = α/100\nλ = 0.1, α = 0.001"
    assert first.get_xscale() == first.get_yscale() == "log"
    drawn = {plotted.get_label(): list(plotted.get_xdata()) for plotted in first.lines}
    assert drawn["simjax"] == [100, 500, 1000]
    assert drawn["Clarabel, Gram form"] == [100]
    assert "celer Lasso" not in drawn
    assert report.picture([entry("celer", 1.0, problem="other")]) is None


# --- Whole calls -------------------------------------------------------------------------------------------------


def test_rows_in_blocks_are_certified_and_sparse():
    found = calls.many_rows(rows=300, m=20, d=32, nonzeros=2, max_memory=2e6)
    assert found["rows_certified"] == 300
    assert found["worst_relative_gap"] <= 1e-6
    assert 0 < found["nonzeros"] < 300 * 32 / 2
    assert 0 < found["before_mebibytes"] <= found["peak_mebibytes"]


def test_whole_calls_are_told_with_their_aims():
    first = {"problem": "p", "first_seconds": 9.0, "second_process_seconds": 2.5, "warm_seconds": 1.25}
    line = {"objective": "l1", "m": 7, "points": 20, "path_seconds": 6.0, "hardest_seconds": 2.0}
    line |= {"singles_seconds": 30.0, "rows": 40, "rows_certified": 40}
    many = {"rows": 1000, "m": 2, "d": 3, "max_memory": 1e6, "rows_certified": 999, "worst_relative_gap": 1e-7}
    many |= {"nonzeros": 5, "dense_mebibytes": 8.0, "before_mebibytes": 100.0, "peak_mebibytes": 120.0, "seconds": 3.0}
    text = calls.section({"first": [first], "paths": [line], "many": many, **records.place()})
    assert "| p | 9.0 | 2.5 | 1.2 |" in text
    assert "| l1, m = 7 | 20 | 6.0 | 2.0 | 3.0 | 30.0 | 40 of 40 |" in text
    assert "1,000 rows of 3 coordinates" in text
    assert "999 certified" in text


# --- scale -------------------------------------------------------------------------------------------------------


def test_scale_measures_what_it_says(tmp_path, monkeypatch):
    rows = {"rows": 300, "m": 12, "d": 20, "nonzeros": 2, "max_memory": 8.0 * 20 * (40 * 20 + 8 * 12)}
    kept, shared = scale.checkpoint(rows, pairs=1), scale.shards(rows, count=3)
    assert kept["same_bits"]
    assert shared["same_bits"]
    assert kept["certified"] == 300
    assert kept["ratio"] == kept["kept_seconds"][0] / kept["plain_seconds"][0]
    assert kept["bytes"] > 300 * 8 * 12  # the dual points at least
    assert len(shared["shard_seconds"]) == 3
    told = scale.section({"checkpoint": kept, "shards": shared, "places": [records.place()]})
    assert "300 rows of 20 weights over 12 samples" in told
    assert "OTHER BITS" not in told
    assert "OTHER BITS" in scale.section({"shards": {**shared, "same_bits": False}, "places": []})


def test_scale_solves_one_shard_of_states_in_files(tmp_path):
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(30, 5)), rng.normal(size=(25, 30)) / 5, rng.normal(size=(9, 25))]
    states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(20, 5)))
    for name in ("inputs", "preactivations", "activations", "outputs"):
        np.save(tmp_path / f"{name}.npy", getattr(states, name))
    (tmp_path / "states.json").write_text(json.dumps({"layer_sizes": states.layer_sizes}))
    made = scale.one_shard(tmp_path, shards=4, rows_in_block=8, alpha=0.1)
    assert (made["states"], made["m"]) == (states.n, 20)
    assert made["rows"] == made["certified"] == 16  # two of eight blocks of eight
    assert made["peak_mebibytes"] >= made["before_mebibytes"] > 0
    with pytest.raises(ValueError, match="missing: shards 2/4"):
        simjax.merge(tmp_path / "fit")
