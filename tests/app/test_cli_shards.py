"""`simjax fit --shard` and `simjax merge`: files alone between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from typer.testing import CliRunner

import simjax
from simjax.app import cli
from simjax.rows.memory import bytes_per_row

M, P, N, Q = 24, 5, 33, 4
MEMORY = 8 * bytes_per_row((M, N + P))  # the 37 rows in five blocks


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def states_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    Z, U = rng.standard_normal((M, N)), rng.standard_normal((M, P))
    states = simjax.States(inputs=U, preactivations=Z, activations=np.maximum(Z, 0), outputs=Z[:, :Q])
    path = tmp_path_factory.mktemp("states") / "states.npz"
    states.save(path)
    return path


def test_shards_and_merge_are_the_fit(states_file: Path, tmp_path: Path) -> None:
    folder, stated = tmp_path / "fit.checkpoint", ["--alpha", 0.3, "--max-memory", MEMORY]
    for number in (2, 1, 3):
        result = run("fit", states_file, "--checkpoint", folder, "--shard", f"{number}/3", *stated, "--json")
        assert result.exit_code == 0, result.stderr
        printed = json.loads(result.stdout)
        blocks = range((number - 1) * 5 // 3, number * 5 // 3)
        assert (printed["shard"], printed["checkpoint"]) == (f"{number}/3", str(folder))
        assert printed["first_row"] == 8 * blocks.start
        assert printed["rows"] == printed["status"]["SOLVED"] == min(8 * blocks.stop, N + Q) - 8 * blocks.start
        assert printed["certified"]
        assert printed["worst_relative_gap"] <= 1e-6
    merged = run("merge", folder, "-o", tmp_path / "merged.safetensors", "--json")
    assert merged.exit_code == 0, merged.stderr
    whole = run("fit", states_file, "-o", tmp_path / "whole.safetensors", *stated, "--json")
    assert whole.exit_code == 0, whole.stderr
    with (
        safetensors.safe_open(tmp_path / "merged.safetensors", "numpy") as one,
        safetensors.safe_open(tmp_path / "whole.safetensors", "numpy") as other,
    ):
        assert one.metadata() == other.metadata()
        assert set(one.keys()) == set(other.keys())
        for name in one.keys():  # noqa: SIM118 (not a dict)
            assert one.get_tensor(name).tobytes() == other.get_tensor(name).tobytes()
    ours, theirs = json.loads(merged.stdout), json.loads(whole.stdout)
    assert ours.pop("seconds") is None
    assert {name: ours[name] for name in ours if name != "model"} == {
        name: theirs[name] for name in ours if name != "model"
    }
    table = run("fit", states_file, "--checkpoint", folder, "--shard", "3/3", *stated)
    assert "24 to 36" in table.stdout
    again = run("merge", folder, "-o", tmp_path / "merged.safetensors")
    assert again.exit_code == 2
    assert "Pass --force to overwrite." in again.stderr
    table = run("merge", folder, "-o", tmp_path / "merged.safetensors", "--force")
    assert table.exit_code == 0
    assert "37 SOLVED" in table.stdout
    assert "seconds" not in table.stdout


def test_what_is_missing_and_what_does_not_go_together_is_said(states_file: Path, tmp_path: Path) -> None:
    def refused(match: str, *arguments: object) -> None:
        result = run(*arguments)
        assert result.exit_code == 2
        assert match in " ".join(result.stderr.split())
        assert result.stdout == ""

    output, folder = ("-o", tmp_path / "m.safetensors"), ("--checkpoint", tmp_path / "fit")
    refused("--output MODEL.safetensors is needed", "fit", states_file, *folder)
    refused("--output does not go with --shard", "fit", states_file, *output, *folder, "--shard", "1/2")
    refused("--shard needs --checkpoint FOLDER", "fit", states_file, "--shard", "1/2")
    refused("--shard must be K/N, as in 3/16, got '1'", "fit", states_file, *folder, "--shard", "1")
    refused("--shard must be K/N, as in 3/16, got '-1/2'", "fit", states_file, *folder, "--shard", "-1/2")
    refused("1 <= k <= n, got (3, 2)", "fit", states_file, *folder, "--shard", "3/2")
    refused("refit must be None for a shard", "fit", states_file, *folder, "--shard", "1/2", "--refit", "support")
    refused("holds no checkpoint", "merge", tmp_path / "fit", *output)
    assert list(tmp_path.iterdir()) == []
    assert run("fit", states_file, *folder, "--shard", "1/2", "--max-memory", MEMORY).exit_code == 0
    refused("missing: shard 2/2 (21 of 21 rows, not begun)", "merge", tmp_path / "fit", *output)
    assert not (tmp_path / "m.safetensors").exists()


def test_a_folder_of_arrays_is_fitted_in_shards(states_file: Path, tmp_path: Path) -> None:
    states = simjax.States.load(states_file)
    (tmp_path / "states").mkdir()
    for name in ("inputs", "preactivations", "activations", "outputs"):
        np.save(tmp_path / "states" / f"{name}.npy", getattr(states, name))
    stated = ["--alpha", 0.3, "--max-memory", MEMORY]
    for number in (1, 2):
        shard = ("--checkpoint", tmp_path / "fit", "--shard", f"{number}/2")
        assert run("fit", tmp_path / "states", *shard, *stated).exit_code == 0
    assert run("merge", tmp_path / "fit", "-o", tmp_path / "merged.safetensors").exit_code == 0
    assert run("fit", states_file, "-o", tmp_path / "whole.safetensors", *stated).exit_code == 0
    merged, whole = (simjax.ImplicitModel.load(tmp_path / f"{name}.safetensors") for name in ("merged", "whole"))
    assert (merged.A != whole.A).nnz == 0
    checked = run("verify", tmp_path / "merged.safetensors", tmp_path / "states", "--rows", 2)
    assert checked.exit_code == 0, checked.stderr
    missing = run("fit", tmp_path, "-o", tmp_path / "m.safetensors")
    assert missing.exit_code == 2
    assert "is no folder of states" in missing.stderr
