"""`simjax prune`: weights of a file made sparse by what enters its layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from numpy.testing import assert_array_equal
from typer.testing import CliRunner

import simjax
from simjax.app import cli
from simjax.pruning.weight_file import WeightFile
from tests.helpers import generator

RNG = generator(0)
FIRST, LAST = RNG.normal(size=(8, 6)), RNG.normal(size=(3, 8))
BIAS = RNG.normal(size=8)
SEEN = {"first": RNG.normal(size=(40, 6)), "last": np.abs(RNG.normal(size=(5, 8, 8)))}


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in ("prune", *arguments)])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Two layers, by PyTorch's and by Flax's names, in different types, and what is none."""
    tensors = {
        "first.weight": FIRST.astype(np.float32),
        "first.bias": BIAS.astype(np.float32),
        "last/kernel": np.ascontiguousarray(LAST.T).astype(jnp.bfloat16),
        "norm.scale": np.ones(3, np.float16),
        "steps": np.array(7),
    }
    (tmp_path / "w.safetensors").write_bytes(safetensors.numpy.save(tensors, metadata={"author": "me"}))
    return tmp_path / "w.safetensors"


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    np.savez(tmp_path / "u.npz", **SEEN)
    return tmp_path / "u.npz"


def test_layers_are_pruned_and_all_else_is_kept(weights: Path, inputs: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "s.safetensors", tmp_path / "p.png"
    result = run(weights, inputs, "-o", out, "--sparsity", 0.5, "--json", "--picture", picture)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["sparsity"] >= 0.5
    assert sorted(report["left"]) == ["norm.scale", "steps"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    before, after = WeightFile.read(weights), WeightFile.read(out)
    assert after.metadata == {"author": "me"}
    assert {k: (v.dtype, v.shape) for k, v in after.tensors.items()} == {
        k: (v.dtype, v.shape) for k, v in before.tensors.items()
    }
    for name in ("norm.scale", "steps"):
        assert_array_equal(after.tensors[name], before.tensors[name])
    for name, wanted in (("first", FIRST.astype(np.float32)), ("last", LAST.astype(jnp.bfloat16))):
        there = before.layer(name)
        assert_array_equal(there.weight, wanted.astype(np.float64))
        design = SEEN[name].reshape(-1, there.weight.shape[1])
        alone = simjax.prune_layer(design, there.weight, there.bias, sparsity=0.5)
        narrow = before.tensors[there.names[0]].dtype
        assert_array_equal(after.layer(name).weight, alone.weight.astype(narrow).astype(np.float64))
        assert report["layers"][name]["rows_certified"] == report["layers"][name]["rows"] == len(wanted)
        assert report["layers"][name]["relative_error"] == pytest.approx(alone.relative_error)


def test_the_table_patterns_and_a_shared_budget(weights: Path, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    halves = run(weights, inputs, "-o", out, "--pattern", "1:2", "--json")
    assert json.loads(halves.stdout)["sparsity"] == 0.5
    out.unlink()
    told = run(weights, inputs, "-o", out, "--pattern", "2:4")
    assert told.exit_code == 2  # six inputs are no groups of four
    assert "layer 'first'" in told.stderr
    told = run(weights, inputs, "-o", out, "--allocation", "global", "--sparsity", 0.6)
    assert told.exit_code == 0, told.output
    assert "2 layers" in told.stdout
    assert "11 of 11 rows certified" in told.stdout
    sparse = WeightFile.read(out)
    zeros = sum(np.count_nonzero(sparse.layer(name).weight == 0.0) for name in SEEN)
    assert zeros >= 0.6 * (FIRST.size + LAST.size)


def test_nothing_is_lost(weights: Path, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    out.write_bytes(b"mine")
    refused = run(weights, inputs, "-o", out)
    assert (refused.exit_code, out.read_bytes()) == (2, b"mine")
    assert "--force" in refused.stderr
    assert run(weights, inputs, "-o", out, "--force").exit_code == 0
    before = weights.read_bytes()
    in_place = run(weights, inputs, "-o", weights, "--force")
    assert (in_place.exit_code, weights.read_bytes()) == (2, before)
    assert "is what the command reads, and would be lost" in in_place.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("seen", "options", "said"),
    [
        ({}, (), "is not an .npz file"),
        ({"other": np.ones((4, 6))}, (), "inputs name a layer 'other'"),
        ({"first": np.ones((4, 5))}, (), r"must be (…, 6), got shape (4, 5)"),
        ({"first": np.full((4, 6), np.nan)}, (), "layer 'first'"),
        ({"norm": np.ones((4, 3))}, (), "inputs name a layer 'norm'"),
        (SEEN, ("--sparsity", 1.0), "sparsity"),
        (SEEN, ("--method", "best"), "--method"),
        (SEEN, ("--pattern", "rows", "--allocation", "global"), "--pattern"),
    ],
)
def test_wrong_input(weights: Path, tmp_path: Path, seen: Any, options: tuple, said: str) -> None:
    np.savez(tmp_path / "u.npz", **seen)
    result = run(weights, tmp_path / "u.npz", "-o", tmp_path / "s.safetensors", *options)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert not (tmp_path / "s.safetensors").exists()


def test_numbers_beyond_the_type_of_the_file_are_refused(tmp_path: Path) -> None:
    weight = np.full((1, 2), 6e4, np.float16)
    (tmp_path / "w.safetensors").write_bytes(safetensors.numpy.save({"a.weight": weight}))
    column = RNG.normal(size=(30, 1))
    np.savez(tmp_path / "u.npz", a=np.hstack([column, column + 1e-3 * RNG.normal(size=(30, 1))]))
    result = run(tmp_path / "w.safetensors", tmp_path / "u.npz", "-o", tmp_path / "s.safetensors", "--sparsity", 0.5)
    assert result.exit_code == 2
    assert "beyond what float16 holds" in " ".join(result.stderr.split())
    assert not (tmp_path / "s.safetensors").exists()


def test_files_that_are_none(tmp_path: Path, inputs: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not weights")
    result = run(tmp_path / "w.safetensors", inputs, "-o", tmp_path / "s.safetensors")
    assert result.exit_code == 2
    assert "not a readable safetensors file" in " ".join(result.stderr.split())
