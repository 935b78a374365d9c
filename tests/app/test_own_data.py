"""The command line on files of the user's own: evaluate, predict, path, and a fit of plain arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import simjax
from simjax.app import cli


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model() -> simjax.ImplicitModel:
    rng = np.random.default_rng(0)
    A = 0.1 * rng.standard_normal((4, 4))
    return simjax.ImplicitModel(A, *(rng.standard_normal(shape) for shape in ((4, 5), (3, 4), (3, 5))))


@pytest.fixture
def model_file(model: simjax.ImplicitModel, tmp_path: Path) -> Path:
    model.save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((20, 5))


@pytest.fixture(scope="module")
def states() -> simjax.States:
    rng = np.random.default_rng(2)
    weights = [rng.standard_normal(shape) for shape in ((3, 5), (3, 3), (2, 3))]
    return simjax.States.from_layers(weights, None, "relu", rng.standard_normal((40, 5)))


# ---- evaluate ----------------------------------------------------------------------------------------------


def test_evaluate_counts_labels_and_measures_outputs(
    model: simjax.ImplicitModel, model_file: Path, inputs: np.ndarray, tmp_path: Path
) -> None:
    outputs = model.predict(inputs)
    labels = outputs.argmax(axis=1)
    labels[:5] = (labels[:5] + 1) % 3
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=labels, outputs=1.25 * outputs)
    result = run("evaluate", model_file, tmp_path / "data.npz", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["samples"], found["accuracy"], found["agreement"]) == (20, 0.75, 1.0)
    assert found["relative_error"] == pytest.approx(0.2, abs=1e-14)
    assert found["data"] == str(tmp_path / "data.npz")
    words = " ".join(run("evaluate", model_file, tmp_path / "data.npz").stdout.split())
    for pair in (
        "samples 20",
        "accuracy 75.0 %",
        "error of the outputs 0.2, relative",
        "same class as the outputs 100",
    ):
        assert pair in words


def test_evaluate_takes_states(states: simjax.States, tmp_path: Path) -> None:
    """Of the network's own implicit form, which gives its outputs."""
    assert states.baseline is not None
    states.baseline.save(tmp_path / "m")
    states.save(tmp_path / "s.npz")
    found = json.loads(run("evaluate", tmp_path / "m", tmp_path / "s.npz", "--json").stdout)
    assert found["relative_error"] <= 1e-14
    assert "accuracy" not in found


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"labels": [0]}, "must hold the array inputs, and labels or outputs or both; it holds labels"),
        ({"inputs": np.ones((2, 5))}, "must hold the array inputs, and labels or outputs or both; it holds inputs"),
        ({"inputs": np.ones((2, 4)), "labels": [0, 1]}, "inputs has 4 columns, the model expects p = 5"),
        ({"inputs": np.ones((2, 5)), "labels": [0, 3]}, "labels must lie in 0 … 2, got 0 … 3"),
        ({"inputs": np.ones((2, 5)), "labels": [[0], [1]]}, "labels has shape (2, 1), expected (2,)"),
        ({"inputs": np.ones((2, 5)), "outputs": np.ones((2, 2))}, "outputs has shape (2, 2), the model gives (2, 3)"),
        ({"inputs": np.array([[None] * 5]), "labels": [0]}, "truncated, pickled or foreign"),
    ],
)
def test_evaluate_says_what_is_wrong_with_a_file(
    arrays: dict, complaint: str, model_file: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    result = run("evaluate", model_file, tmp_path / "data.npz")
    assert (result.exit_code, complaint in result.stderr) == (2, True), result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("more", [[], ["data.npz", "--dataset", "digits"]])
def test_evaluate_needs_one_source_of_samples(more: list[str], model_file: Path) -> None:
    result = run("evaluate", model_file, *more)
    assert result.exit_code == 2
    assert "either a file DATA.npz or --dataset" in result.stderr


# ---- predict -----------------------------------------------------------------------------------------------


def test_predict_prints_numbers_that_read_back(
    model: simjax.ImplicitModel, model_file: Path, inputs: np.ndarray, tmp_path: Path
) -> None:
    np.savez(tmp_path / "u.npz", inputs=inputs)
    result = run("predict", model_file, tmp_path / "u.npz")
    assert result.exit_code == 0, result.stderr
    np.testing.assert_array_equal(np.loadtxt(result.stdout.splitlines(), delimiter=","), model(inputs))
    in_json = json.loads(run("predict", model_file, tmp_path / "u.npz", "--json").stdout)
    np.testing.assert_array_equal(in_json["outputs"], model.predict(inputs))


def test_predict_saves_and_overwrites_nothing(
    model: simjax.ImplicitModel, model_file: Path, inputs: np.ndarray, tmp_path: Path
) -> None:
    np.savez(tmp_path / "u.npz", inputs=inputs)
    command = ("predict", model_file, tmp_path / "u.npz", "-o", tmp_path / "y.npz")
    result = run(*command)
    assert result.exit_code == 0, result.stderr
    assert str(tmp_path / "y.npz") in result.stdout
    with np.load(tmp_path / "y.npz") as saved:
        np.testing.assert_array_equal(saved["outputs"], model(inputs))
    again = run(*command)
    assert (again.exit_code, "exists. Pass --force to overwrite." in again.stderr) == (2, True)
    assert run(*command, "--force").exit_code == 0
    wrong = run("predict", model_file, model_file)
    assert (wrong.exit_code, "it is a safetensors file" in wrong.stderr) == (2, True)


# ---- path --------------------------------------------------------------------------------------------------


def test_path_is_the_library_s_path(states: simjax.States, tmp_path: Path) -> None:
    states.save(tmp_path / "s.npz")
    command = ("path", tmp_path / "s.npz", "--objective", "l1", "--alpha", 0.1, "--alpha", 1.0, "--kappa", 0.5)
    result = run(*command, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    expected = simjax.path(states, "l1", alphas=[0.1, 1.0], kappa=0.5)
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "out" / "path.json").read_text())
    assert [one["alpha"] for one in report["models"]] == [0.1, 1.0]
    assert [one["nonzeros"] for one in report["models"]] == expected.nonzeros.tolist()
    assert [one["misfit"] for one in report["models"]] == pytest.approx(expected.misfit.tolist(), rel=1e-12)
    assert {one["rows_certified"] for one in report["models"]} == {report["rows"]} == {8}
    for told, fit in zip(report["models"], expected.fits):
        saved = simjax.ImplicitModel.load(tmp_path / "out" / told["model"])
        np.testing.assert_array_equal(saved.A, fit.model.A)
        assert told["sparsity"] == fit.model.sparsity(30)
    assert (tmp_path / "out" / "path.png").read_bytes().startswith(b"\x89PNG")
    again = run(*command, "-o", tmp_path / "out")
    assert again.exit_code == 2
    assert "already holds" in again.stderr
    table = run(*command).stdout
    for told in report["models"]:
        assert f"{told['alpha']:.4g}" in table
        assert f"{told['misfit']:.2e}" in table


def test_a_path_gives_way_to_no_uncertified_one(states: simjax.States, tmp_path: Path) -> None:
    states.save(tmp_path / "s.npz")
    command = ("path", tmp_path / "s.npz", "--objective", "l1", "--alpha", 0.1, "-o", tmp_path / "out")
    assert run(*command).exit_code == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    result = run(*command, "--force", "--solver", "proximal_gradient", "--max-iters", 1, "--tol", 1e-12)
    assert result.exit_code == 1
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert {file.name for file in (tmp_path / "out.uncertified").iterdir()} == set(before)


# ---- fit ---------------------------------------------------------------------------------------------------


def test_fit_takes_the_four_arrays_of_anyone(states: simjax.States, tmp_path: Path) -> None:
    names = ("inputs", "preactivations", "activations", "outputs")
    np.savez(tmp_path / "own.npz", **{name: getattr(states, name) for name in names})
    result = run("fit", tmp_path / "own.npz", "-o", tmp_path / "m", "--json")
    assert result.exit_code == 0, result.stderr
    np.savez(tmp_path / "more.npz", extra=np.ones(1), **{name: getattr(states, name) for name in names})
    refused = run("fit", tmp_path / "more.npz", "-o", tmp_path / "n")
    assert refused.exit_code == 2
    assert "must hold the arrays activations, inputs, outputs, preactivations and no others" in refused.stderr


def test_fit_finds_the_alpha_of_a_wanted_sparsity(states: simjax.States, tmp_path: Path) -> None:
    states.save(tmp_path / "s.npz")
    command = ("fit", tmp_path / "s.npz", "-o", tmp_path / "m", "--objective", "l1", "--sparsity", 0.4)
    result = run(*command, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    expected = simjax.fit(states, "l1", sparsity=0.4)
    assert report["sparsity"] == expected.model.sparsity(30) >= 0.4
    assert report["settings"]["alpha"] == expected.settings["alpha"]
    both = run(*command, "--alpha", 0.1, "--force")
    assert (both.exit_code, "either alpha or sparsity" in both.stderr) == (2, True)
    shard = run(*command[:2], "--sparsity", 0.4, "--shard", "1/2", "--checkpoint", tmp_path / "kept")
    assert (shard.exit_code, "--sparsity is for a whole fit" in shard.stderr) == (2, True)
    assert not (tmp_path / "kept").exists()
