"""States in files: the same fits as of states in memory, to the bit, and no more read than what is needed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import generator
from numpy.testing import assert_array_equal

import simjax
from simjax.rows.memory import bytes_per_row
from simjax.rows.solution import dense_rows
from simjax.states.states import ARRAYS

M, P, LAYERS, Q = 70, 6, (50, 21), 5
N = sum(LAYERS)
MEMORY = 8 * bytes_per_row((M, N + P + 1))  # the 76 rows in ten blocks, also with a column of ones
STATED: dict[str, Any] = {"alpha": 0.5, "kappa": 0.9, "max_memory": MEMORY, "tol": 1e-4}


@pytest.fixture(scope="module")
def states() -> simjax.States:
    rng = generator(33)
    sizes = (P, *LAYERS, Q)
    weights = [rng.normal(size=(out, into)) / np.sqrt(into) for into, out in itertools.pairwise(sizes)]
    biases = [0.1 * rng.normal(size=out) for out in sizes[1:]]
    return simjax.States.from_layers(weights, biases, "relu", rng.normal(size=(M, P)))


@pytest.fixture(scope="module")
def folder(states: simjax.States, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("states")
    for name in ARRAYS:
        array = getattr(states, name)
        np.save(path / f"{name}.npy", np.asfortranarray(array) if name == "preactivations" else array)
    (path / "states.json").write_text(json.dumps({"layer_sizes": LAYERS}))
    assert states.baseline is not None
    states.baseline.save(path / "baseline.safetensors")
    return path


def assert_same_fit(found: simjax.FitResult, wanted: simjax.FitResult) -> None:
    for name in ("A", "B", "C", "D", "b", "c"):
        ours, theirs = getattr(found.model.to_dense(), name), getattr(wanted.model.to_dense(), name)
        assert (ours is None and theirs is None) or ours.tobytes() == theirs.tobytes()
    for solution, other in zip(found.solutions, wanted.solutions, strict=True):
        assert dense_rows(solution.weights).tobytes() == dense_rows(other.weights).tobytes()
        assert solution.certificate.dual.tobytes() == other.certificate.dual.tobytes()


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"units": "rescaled", "sample_weight": np.linspace(0.5, 2.0, M), "refit": ("support", "outputs")},
        {"fit_intercept": "penalised", "support": "feedforward"},
        {"constraint": simjax.LowRank(3), "fit_intercept": False},
    ],
    ids=lambda changed: "-".join(changed) or "plain",
)
def test_fits_are_those_of_states_in_memory(states: simjax.States, folder: Path, changed: dict[str, Any]) -> None:
    mapped = simjax.MappedStates.load(folder)
    assert isinstance(mapped.arrays["preactivations"], np.memmap)
    assert (mapped.m, mapped.n, mapped.p, mapped.q) == (M, N, P, Q)
    assert (mapped.layer_sizes, mapped.has_biases, mapped.activation) == (LAYERS, True, "relu")
    assert_array_equal(mapped.scaling("inner", 0.9), states.scaling("inner", 0.9))
    found = simjax.fit(mapped, "l1", **STATED, **changed)
    assert_same_fit(found, simjax.fit(states, "l1", **STATED, **changed))
    if not changed:
        assert found.verify(rows=2).ok
        assert simjax.verify_model(found.model, mapped, rows=2).ok
        assert "MappedStates(m=70, n=71, p=6, q=5" in repr(mapped)


def test_paths_are_too(states: simjax.States, folder: Path) -> None:
    paths = [simjax.path(kind, "l1", alphas=[1.0, 0.3]) for kind in (simjax.MappedStates.load(folder), states)]
    assert_array_equal(paths[0].misfit, paths[1].misfit)
    for found, wanted in zip(paths[0].fits, paths[1].fits):
        assert_same_fit(found, wanted)


class Spy:
    """An array that says which of its entries were asked for."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.seen = array, array.shape, np.zeros(array.shape, dtype=bool)

    def __getitem__(self, key: Any) -> np.ndarray:
        self.seen[key] = True
        return self.array[key]


def test_a_shard_reads_the_columns_of_its_rows_alone(states: simjax.States, tmp_path: Path) -> None:
    whole = simjax.fit(states, "l1", **STATED, fit_intercept=True)
    union = np.zeros((M, N + Q), dtype=int)
    for number in (1, 2, 3):
        spies = {name: Spy(getattr(states, name)) for name in ARRAYS}
        mapped = simjax.MappedStates.from_arrays(**spies, layer_sizes=LAYERS, baseline=states.baseline)
        for spy in spies.values():
            assert spy.seen[:64].all()  # the sample
            spy.seen[:] = False
        for _ in range(2):  # the second time it reads what it has to compare
            part = simjax.fit_shard(mapped, "l1", **STATED, fit_intercept=True, checkpoint=tmp_path, shard=(number, 3))
        seen = np.concatenate([spies["preactivations"].seen, spies["outputs"].seen], axis=1)
        mine = np.zeros(N + Q, dtype=bool)
        mine[part.first : part.first + part.status.size] = True
        assert_array_equal(seen, np.broadcast_to(mine, seen.shape))
        union += seen
    assert np.all(union == 1)
    merged = simjax.merge(tmp_path)
    assert merged.certificate.dual.tobytes() == whole.certificate.dual.tobytes()
    assert merged.weights.data.tobytes() == whole.weights.data.tobytes()
    assert merged.model.b.tobytes() == whole.model.b.tobytes()  # type: ignore[union-attr]


def test_other_types_are_what_they_are_in_memory(states: simjax.States, tmp_path: Path) -> None:
    arrays = {name: getattr(states, name).astype(np.float32) for name in ARRAYS}
    for name, array in arrays.items():
        np.save(tmp_path / name, array)
    mapped = simjax.MappedStates.from_arrays(**{name: str(tmp_path / f"{name}.npy") for name in ARRAYS})
    assert_same_fit(simjax.fit(mapped, "l1", **STATED), simjax.fit(simjax.States(**arrays), "l1", **STATED))


# ---- refused -----------------------------------------------------------------------------------------------


def test_what_is_read_is_checked(states: simjax.States, tmp_path: Path) -> None:
    def refused(match: str, **changed: Any) -> None:
        arrays = {name: getattr(states, name).copy() for name in ARRAYS} | changed
        with pytest.raises((ValueError, TypeError), match=match):
            simjax.fit(simjax.MappedStates.from_arrays(**arrays), "l1", **STATED)

    def spoilt(name: str, value: float, column: int = -1) -> dict[str, Any]:
        array = getattr(states, name).copy()
        array[-1, column] = value  # no sample
        return {name: array}

    refused("preactivations must be finite, got 1 NaN", **spoilt("preactivations", np.nan))
    refused("inputs must be finite", **spoilt("inputs", np.inf))
    refused("targets must not exceed 1e\\+151", **spoilt("outputs", -1e200))
    refused(r"activations must be φ\(preactivations\)", **spoilt("preactivations", 77.0))
    refused("outputs has 69 rows, but inputs has m = 70", outputs=states.outputs[:-1])
    refused("outputs must not be empty", outputs=states.outputs[:, :0])
    refused("must be a path or a 2-D array that can be sliced, got list", outputs=[[1.0]])
    refused(r"must be a path or a 2-D array that can be sliced, got shape \(70,\)", outputs=states.outputs[:, 0])
    refused("must be an array of real numbers", outputs=np.full((M, Q), "a"))
    np.save(tmp_path / "objects.npy", np.array([[object()]]), allow_pickle=True)
    refused("objects.npy is not a .npy file of numbers that can be mapped", outputs=tmp_path / "objects.npy")
    (tmp_path / "half.npy").write_bytes(b"\x93NUMPY")
    refused("half.npy is not a .npy file of numbers", outputs=tmp_path / "half.npy")
    with pytest.raises(FileNotFoundError, match=r"none\.npy is not a file"):
        refused("not reached", outputs=tmp_path / "none.npy")


def test_folders_are_checked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"is no folder of states: inputs\.npy, preactivations\.npy, activations"
    ):
        simjax.MappedStates.load(tmp_path)
    for name in ARRAYS:
        (tmp_path / f"{name}.npy").symlink_to(folder / f"{name}.npy")
    assert simjax.MappedStates.load(tmp_path).layer_sizes is None
    for text, match in (("{", "is not a usable description"), ('{"layers": 3}', "layer_sizes, has_biases, got layers")):
        (tmp_path / "states.json").write_text(text)
        with pytest.raises(ValueError, match=match):
            simjax.MappedStates.load(tmp_path)
    (tmp_path / "states.json").write_text('{"layer_sizes": [3, 4]}')
    with pytest.raises(ValueError, match=r"is not a usable folder of states: layer_sizes \(3, 4\) sum to 7"):
        simjax.MappedStates.load(tmp_path)
    (tmp_path / "states.json").write_text('{"activation": "tanh"}')
    with pytest.raises(ValueError, match="φ = 'tanh'"):
        simjax.MappedStates.load(tmp_path)
