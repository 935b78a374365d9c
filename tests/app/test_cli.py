"""The command line: exit codes, what goes to which stream, and no file overwritten."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import simjax
from simjax import datasets
from simjax.app import cli, exits, recipes
from simjax.rows import penalties
from simjax.rows.options import ENGINES, SOLVERS
from simjax.rows.oracles import interface
from simjax.rows.oracles.interface import ORACLES
from simjax.sim import options


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """What `simjax demo --quick --json` prints, and its folder."""
    folder = tmp_path_factory.mktemp("cli") / "demo"
    result = run("demo", "--quick", "--samples", 150, "--output", folder, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), folder


@pytest.fixture(scope="module")
def states_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """States of plain arrays, small."""
    rng = np.random.default_rng(0)
    U, Z = rng.standard_normal((40, 6)), rng.standard_normal((40, 4))
    X = np.maximum(Z, 0)
    states = simjax.States(inputs=U, preactivations=Z, activations=X, outputs=X @ rng.standard_normal((4, 2)))
    path = tmp_path_factory.mktemp("states") / "states.npz"
    states.save(path)
    return path


# ---- demo --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_json_is_the_results_and_the_files(made: tuple[dict, Path]) -> None:
    printed, folder = made
    files = printed.pop("files")
    assert printed == json.loads((folder / "results.json").read_text())
    assert printed["samples"] == 150
    assert printed["rows"]["certified"] == printed["rows"]["total"] == 58
    assert {Path(path).parent for path in files.values()} == {folder}
    assert all(Path(path).is_file() for path in files.values())


def test_demo_refuses_an_earlier_one_without_force(made: tuple[dict, Path]) -> None:
    _, folder = made
    before = {path: path.read_bytes() for path in folder.iterdir()}
    result = run("demo", "--quick", "--output", folder)
    assert result.exit_code == 2
    assert "already holds" in result.stderr
    assert "Pass --force to overwrite." in result.stderr
    assert result.stdout == ""
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_demo_table_repeats_what_was_measured(made: tuple[dict, Path]) -> None:
    printed, folder = made
    result = run("demo", "--quick", "--samples", 150, "--output", folder, "--force")
    assert result.exit_code == 0, result.stderr
    assert "58 of 58" in result.stdout
    assert f"{printed['model']['nonzeros']:,}" in result.stdout  # the same seed, the same model
    assert f"{100 * printed['baseline']['test_accuracy']:.1f} %" in result.stdout
    assert "Training the baseline" in result.stderr
    assert "58 of 58 rows, worst gap" in result.stderr


# ---- fit ---------------------------------------------------------------------------------------------------


def test_fit_is_the_library_s_fit(states_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    options = {"alpha": 0.05, "mu": 0.02, "kappa": 0.5, "lambda_state": 0.3, "lambda_output": 0.2, "tol": 1e-8}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    result = run("fit", states_file, "-o", output, "--support", "full", "--fit-intercept", *flags, "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    expected = simjax.fit(simjax.States.load(states_file), support="full", fit_intercept=True, **options)
    saved = simjax.ImplicitModel.load(output)
    for name in ("A", "B", "C", "D", "b", "c"):
        np.testing.assert_array_equal(getattr(saved, name), getattr(expected.model, name))
    assert printed["settings"] == expected.settings == saved.metadata["fit"]
    assert printed["status"] == {"SOLVED": 6}
    assert printed["certified"] is True
    assert printed["nonzeros"] == saved.nonzeros
    assert printed["worst_relative_gap"] == expected.certificate.relative_gap.max() <= 1e-8


def test_fit_hands_on_the_engine_and_the_precision(
    states_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, fit = {}, simjax.fit

    def spy(*arguments: Any, **named: Any) -> Any:
        asked.update(named)
        return fit(*arguments, **named)

    monkeypatch.setattr(simjax, "fit", spy)
    result = run("fit", states_file, "-o", tmp_path / "m.safetensors", "--engine", "numpy", "--precision", "float64")
    assert result.exit_code == 0, result.stderr
    assert (asked["engine"], asked["precision"]) == ("numpy", "float64")
    refused = run("fit", states_file, "-o", tmp_path / "n.safetensors", "--engine", "torch")
    assert refused.exit_code == 2
    assert "'--engine': it must be one of 'auto', 'numpy', 'jax'; got 'torch'" in refused.stderr


def test_fit_goes_on_from_its_checkpoint(states_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    command = ("fit", states_file, "--checkpoint", folder, "--json")
    first = run(*command, "-o", tmp_path / "one.safetensors")
    assert first.exit_code == 0, first.stderr
    assert [file.name for file in folder.iterdir()] == ["rows"]
    second = run(*command, "-o", tmp_path / "two.safetensors")
    assert second.exit_code == 0, second.stderr
    one, two = (simjax.ImplicitModel.load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    np.testing.assert_array_equal(one.A, two.A)
    refused = run(*command, "-o", tmp_path / "three.safetensors", "--alpha", 0.5)
    assert refused.exit_code == 2
    assert "another problem" in refused.stderr
    assert not (tmp_path / "three.safetensors").exists()


def test_fit_prints_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(shape) for shape in ((2, 6), (2, 2), (2, 2))]
    states = simjax.States.from_layers(weights, None, "relu", rng.standard_normal((40, 6)))
    states.save(tmp_path / "states.npz")
    output = tmp_path / "m.safetensors"
    result = run("fit", tmp_path / "states.npz", "-o", output, "--kappa", "none", "--objective", "l1")
    assert result.exit_code == 0, result.stderr
    model = simjax.ImplicitModel.load(output)
    assert "6 SOLVED" in result.stdout
    assert f"‖A‖∞ = {model.well_posedness:.6g}" in result.stdout
    assert f"{100 * model.sparsity(20):.1f} % fewer than the baseline" in result.stdout
    assert "6 of 6 rows" in result.stderr


def test_rows_not_certified_give_exit_code_1_and_a_saved_model(states_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    result = run(
        *("fit", states_file, "-o", output, "--solver", "proximal_gradient", "--max-iters", 1, "--tol", 1e-12, "--json")
    )
    assert result.exit_code == 1
    printed = json.loads(result.stdout)
    assert printed["certified"] is False
    assert printed["worst_relative_gap"] > 1e-12
    assert simjax.ImplicitModel.load(output).nonzeros == printed["nonzeros"]
    assert "Not every row is certified." in result.stderr
    assert "rows are not certified at tol=1e-12" in result.stderr  # the library's own warning, once
    assert result.stderr.count("Warning:") == 1


def test_a_model_gives_way_to_no_uncertified_one(states_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    assert run("fit", states_file, "-o", output).exit_code == 0
    before = output.read_bytes()
    hopeless = ("--solver", "proximal_gradient", "--max-iters", 1, "--tol", 1e-12)
    result = run("fit", states_file, "-o", output, "--force", *hopeless, "--json")
    assert result.exit_code == 1
    assert output.read_bytes() == before
    assert "is left as it was, since not every row is certified" in result.stderr.replace("\n", " ")
    printed = json.loads(result.stdout)
    assert simjax.ImplicitModel.load(tmp_path / "m.uncertified.safetensors").nonzeros == printed["nonzeros"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--alpha", "-1"], "must be >= 0"),
        (["--alpha", "nan"], "must be finite"),
        (["--kappa", "1.5"], "kappa must be a number in (0, 1)"),
        (["--kappa", "half"], "kappa must be a number or none, got 'half'"),
        (["--lambda-state", "0"], "lambda_state must be a positive number"),
        (["--objective", "l1", "--mu", "0.1"], "mu must be None"),
        (["--objective", "l2"], "Invalid value for '--objective': it must be one of 'perspective', 'l1',"),
        (["--objective", "lasso"], "got 'lasso'. Did you mean 'l1'?"),
        (["--support", "hollw"], "Did you mean 'hollow'?"),
        (["--alpha", "small"], "Invalid value for '--alpha'"),
        (["--support", "feedforward"], "layer_sizes"),
        (["--refit", "inputs"], "refit must be one of 'support', 'outputs'"),
        (["--tol", "0"], "tol must be a positive number"),
        (["--max-iters", "0"], "max_iters must be at least 1"),
        (["--rescale", "inner"], "rescale='inner' is not possible"),
    ],
)
def test_bad_settings_give_one_message_and_exit_code_2(
    arguments: list[str], named: str, states_file: Path, tmp_path: Path
) -> None:
    result = run("fit", states_file, "-o", tmp_path / "m.safetensors", *arguments)
    assert result.exit_code == 2
    assert named in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "m.safetensors").exists()


def test_unreadable_states_are_refused(states_file: Path, tmp_path: Path) -> None:
    whole = states_file.read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "foreign.npz", inputs=np.ones(3))
    for name, complaint in (
        ("cut.npz", "truncated"),
        ("foreign.npz", "not of simjax states"),
        ("none.npz", "there is no such file"),
    ):
        result = run("fit", tmp_path / name, "-o", tmp_path / "m.safetensors")
        assert (result.exit_code, complaint in result.stderr) == (2, True), result.stderr
        assert "Traceback" not in result.stderr


def test_fit_refuses_its_output_before_it_reads_anything(tmp_path: Path) -> None:
    taken = tmp_path / "m.safetensors"
    taken.write_text("mine")
    result = run("fit", tmp_path / "none.npz", "-o", taken)
    assert result.exit_code == 2
    assert "exists. Pass --force to overwrite." in result.stderr
    assert taken.read_text() == "mine"
    result = run("fit", tmp_path / "none.npz", "-o", tmp_path / "nowhere" / "m.safetensors")
    assert (result.exit_code, "does not exist" in result.stderr) == (2, True)


def test_fit_overwrites_with_force(states_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    output.write_text("old")
    assert run("fit", states_file, "-o", output, "--force").exit_code == 0
    assert simjax.ImplicitModel.load(output).n == 4
    before = states_file.read_bytes()
    in_place = run("fit", states_file, "-o", states_file, "--force")
    assert (in_place.exit_code, states_file.read_bytes()) == (2, before)
    assert "is what the command reads, and would be lost" in in_place.stderr.replace("\n", " ")


# ---- evaluate and show -------------------------------------------------------------------------------------


def test_evaluate_repeats_the_demo_s_accuracy(made: tuple[dict, Path]) -> None:
    printed, folder = made
    model = folder / "model.safetensors"
    result = run("evaluate", model, "--dataset", "digits", "--json")
    assert result.exit_code == 0, result.stderr
    evaluated = json.loads(result.stdout)
    assert evaluated["accuracy"] == printed["model"]["test_accuracy"]
    assert evaluated["samples"] == datasets.DIGITS_TEST_SAMPLES
    words = " ".join(run("evaluate", model, "--dataset", "digits").stdout.split())
    assert f"samples 360 accuracy {100 * printed['model']['test_accuracy']:.1f} %" in words


def test_evaluate_refuses_a_model_of_other_inputs(states_file: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    simjax.ImplicitModel(np.zeros((2, 2)), np.ones((2, 3)), np.ones((1, 2)), np.ones((1, 3))).save(model)
    result = run("evaluate", model, "--dataset", "digits")
    assert result.exit_code == 2
    assert "inputs has 64 columns, the model expects p = 3" in result.stderr


def test_show_describes_the_model(made: tuple[dict, Path]) -> None:
    printed, folder = made
    path = folder / "model.safetensors"
    model = simjax.ImplicitModel.load(path)
    shown = json.loads(run("show", path, "--json").stdout)
    assert (shown["n"], shown["p"], shown["q"], shown["activation"]) == (48, 64, 10, "relu")
    assert shown["nonzeros"] == printed["model"]["nonzeros"]
    for name in "ABCD":
        matrix = getattr(model, name)
        assert shown["blocks"][name] == {"shape": list(matrix.shape), "nonzeros": np.count_nonzero(matrix)}
    assert shown["well_posedness"] == model.well_posedness
    assert shown["perron_eigenvalue"] == model.perron_eigenvalue
    assert shown["metadata"] == model.metadata
    text = run("show", path).stdout
    assert f"‖A‖∞ = {model.well_posedness:.6g}" in text
    assert "hollow" in text


def test_show_shows_biases_and_models_without_settings(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    eye = np.eye(2)
    simjax.ImplicitModel(0.5 * eye, eye, eye, 0 * eye, b=[1.0, 0.0]).save(path)
    result = run("show", path)
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["A", "2×2", "2", "50.0", "%"] in lines
    assert ["b", "2", "1", "50.0", "%"] in lines


@pytest.mark.parametrize("content", [b"", b"not a model", (1000).to_bytes(8, "little") + b"{}"])
@pytest.mark.parametrize("command", ["show", "evaluate"])
def test_foreign_model_files_are_refused(command: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    result = run(command, path, *(["--dataset", "digits"] if command == "evaluate" else []))
    assert result.exit_code == 2
    assert "not a readable safetensors file" in result.stderr
    assert "Traceback" not in result.stderr


# ---- verify ------------------------------------------------------------------------------------------------


def test_verify_agrees_with_the_fit_and_catches_a_changed_model(states_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("clarabel")
    model = tmp_path / "m.safetensors"
    assert run("fit", states_file, "-o", model, "--objective", "l1", "--alpha", 0.05).exit_code == 0
    result = run("verify", model, states_file, "--rows", 6, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["ok"]
    assert [row["row"] for row in report["rows"]] == list(range(6))
    assert all(abs(row["difference"]) <= 1e-6 for row in report["rows"])
    loaded = simjax.ImplicitModel.load(model)
    changed = dataclasses.replace(loaded, D=1.1 * np.asarray(loaded.D) + 0.01)
    changed.save(model, overwrite=True)
    result = run("verify", model, states_file, "--rows", 6)
    assert result.exit_code == 1
    assert "NO" in result.stdout


def test_verify_needs_a_model_that_says_how_it_was_fitted(states_file: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    simjax.ImplicitModel(np.zeros((4, 4)), np.zeros((4, 6)), np.zeros((2, 4)), np.zeros((2, 6))).save(model)
    result = run("verify", model, states_file)
    assert result.exit_code == 2
    assert "no fit settings" in result.stderr


# ---- the whole ---------------------------------------------------------------------------------------------


def test_version() -> None:
    assert run("--version").stdout == f"simjax {simjax.__version__}\n"


def test_help_lists_every_exit_status_and_completion() -> None:
    text = run("--help").stdout
    words = set(text.replace(",", " ").split())
    statuses = (0, exits.NOT_CERTIFIED, exits.BAD_INPUT, exits.INTERNAL_ERROR, exits.INTERRUPTED, exits.PIPE_CLOSED)
    assert {str(status) for status in statuses} <= words
    assert "--install-completion" in text


@pytest.mark.parametrize("licensed", [True, False])
def test_doctor_says_what_is_here(licensed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        if not licensed:
            raise interface.OracleUnavailable("no licence here")

    monkeypatch.setattr(interface.oracle_module("mosek"), "check_available", check)
    result = run("doctor", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["simjax"] == simjax.__version__
    assert report["packages"]["numpy"] == np.__version__
    assert len(report["devices"]) == len(jax.devices())
    assert report["memory_bytes"] > 0
    assert set(report["oracles"]) == set(ORACLES)
    reason = None if licensed else "no licence here"
    assert report["oracles"]["mosek"] == {"available": licensed, "reason": reason}
    rng = np.random.default_rng(0)
    solution = simjax.solve_rows(
        rng.normal(size=(9, 2)), rng.normal(size=(9, 1)), loss_weight=1.0, penalty=simjax.L1(1.0)
    )
    assert report["engine"]["description"] == solution.engine
    lines = run("doctor").stdout.splitlines()
    assert lines[0].split() == ["simjax", simjax.__version__]
    assert any(line.startswith("oracle mosek") and line.endswith(reason or "available") for line in lines)


def test_doctor_says_that_a_platform_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError("Unable to initialize\nbackend 'nonsense'")

    monkeypatch.setattr(jax, "devices", missing)
    report = json.loads(run("doctor", "--json").stdout)
    assert report["devices"] == ["none: Unable to initialize backend 'nonsense'"]


def test_names_offered_are_the_library_s() -> None:
    """But for the data sets of the demo, each of which has a recipe."""
    assert tuple(recipes.RECIPES) == tuple(datasets.LOADERS)
    text = " ".join(run("fit", "--help").stdout.split())
    for names in (options.CONSTRAINTS, ENGINES, penalties.OBJECTIVES, (*SOLVERS, *ORACLES)):
        assert f"[{'|'.join(names)}]" in text  # whole, whatever the width of the terminal


def test_the_installed_command_keeps_compiled_code_and_the_library_does_not(tmp_path: Path) -> None:
    """In a process of its own, since the setting is global."""
    program = """
import sys, jax, simjax, simjax.app.cli
assert jax.config.values["jax_compilation_cache_dir"] is None
sys.argv = ["simjax", "show", "none.safetensors"]
try:
    simjax.app.cli.main()
except SystemExit as end:
    assert end.code == 2, end.code
print(jax.config.values["jax_compilation_cache_dir"])
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path / "simjax" / "jax")
    assert "none.safetensors: there is no such file" in done.stderr
