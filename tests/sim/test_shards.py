"""A fit made by shards that meet in a folder: the same as one run, to the bit; what is missing or double is named."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import generator, sparse_rows
from numpy.testing import assert_array_equal

import simjax
from simjax.rows.memory import bytes_per_row
from simjax.rows.shards import Shard

M, P, LAYERS, Q = 24, 6, (90, 45), 9
ROWS, WIDTH = sum(LAYERS) + Q, sum(LAYERS) + P
MEMORY = 8 * bytes_per_row((M, WIDTH))  # the 144 rows in 18 blocks of eight
STATED: dict[str, Any] = {"alpha": 0.3, "kappa": 0.9, "max_memory": MEMORY, "tol": 1e-4}


@pytest.fixture(scope="module")
def states() -> simjax.States:
    """Of a network with biases, whose states are rescaled and whose rows are centred."""
    rng = generator(31)
    sizes = (P, *LAYERS, Q)
    weights = [rng.normal(size=(out, into)) / np.sqrt(into) for into, out in itertools.pairwise(sizes)]
    biases = [0.1 * rng.normal(size=out) for out in sizes[1:]]
    return simjax.States.from_layers(weights, biases, "relu", rng.normal(size=(M, P)))


@pytest.fixture(scope="module")
def whole(states: simjax.States, tmp_path_factory: pytest.TempPathFactory) -> simjax.FitResult:
    return simjax.fit(states, "l1", **STATED, checkpoint=tmp_path_factory.mktemp("whole") / "fit")


def fit_shards(states: simjax.States, folder: Path, of: int, numbers: Any = None, **changed: Any) -> None:
    for number in range(1, of + 1) if numbers is None else numbers:
        simjax.fit_shard(states, "l1", **{**STATED, **changed}, checkpoint=folder, shard=(number, of))


def assert_same_bits(found: simjax.FitResult, wanted: simjax.FitResult) -> None:
    assert type(found.weights) is type(wanted.weights)
    assert found.model.storage == wanted.model.storage
    for name in ("A", "B", "C", "D"):
        ours, theirs = getattr(found.model, name), getattr(wanted.model, name)
        if found.model.storage == "dense":
            assert ours.tobytes() == theirs.tobytes()
        else:
            for part in ("data", "indices", "indptr"):
                assert_array_equal(getattr(ours, part), getattr(theirs, part))
            assert ours.data.tobytes() == theirs.data.tobytes()
    for name in ("b", "c"):
        ours, theirs = getattr(found.model, name), getattr(wanted.model, name)
        assert (ours is None and theirs is None) or ours.tobytes() == theirs.tobytes()
    for field in dataclasses.fields(simjax.Certificate):
        ours, theirs = getattr(found.certificate, field.name), getattr(wanted.certificate, field.name)
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes()
    assert_array_equal(found.status, wanted.status)
    assert found.settings == wanted.settings == found.model.metadata["fit"]


def test_sixteen_shards_merged_are_one_run_to_the_bit(
    states: simjax.States, whole: simjax.FitResult, tmp_path: Path, solves: list[int]
) -> None:
    assert states.scaling("auto", 0.9).min() < 1.0  # something is rescaled
    seen = []
    for number in generator(5).permutation(16) + 1:
        part = simjax.fit_shard(states, "l1", **STATED, checkpoint=tmp_path, shard=(int(number), 16))
        assert part.converged
        seen.append(np.arange(part.first, part.first + part.status.size))
        assert part.problem.count == part.status.size
        rows = simjax.certify(part.problem.all(), part.weights.toarray(), [part.certificate.dual])
        assert np.all(rows.relative_gap <= part.certificate.relative_gap + 1e-9)
    assert_array_equal(np.sort(np.concatenate(seen)), np.arange(ROWS))
    assert solves == [8] * 18
    merged = simjax.merge(tmp_path)
    assert_same_bits(merged, whole)
    assert merged.model.b is not None
    assert merged.converged
    assert f"{ROWS} of {ROWS} rows certified" in merged.summary()
    assert simjax.verify_model(merged.model, states, rows=3).ok
    with pytest.raises(ValueError, match="verify_model"):
        merged.verify()
    # Nothing is left to do for a shard that is called again, nor for a fit, which goes on to its refit.
    solves.clear()
    again = simjax.fit_shard(states, "l1", **STATED, checkpoint=tmp_path, shard=(3, 16))
    assert solves == []
    assert again.first == 16
    refitted = simjax.fit(states, "l1", **STATED, checkpoint=tmp_path, refit="outputs")
    assert sum(solves) == Q  # in blocks of their own
    assert refitted.solutions[0].weights.data.tobytes() == whole.weights.data.tobytes()
    with pytest.raises(ValueError, match="solves of outputs too"):
        simjax.merge(tmp_path)


def test_dense_weights_and_a_single_block_are_the_same_too(states: simjax.States, tmp_path: Path) -> None:
    stated: dict[str, Any] = {"alpha": 0.3, "fit_intercept": "penalised", "units": "rescaled", "tol": 1e-4}
    wanted = simjax.fit(states, "elastic_net", **stated, checkpoint=tmp_path / "whole")
    simjax.fit_shard(states, "elastic_net", **stated, checkpoint=tmp_path / "shards", shard=(1, 1))
    found = simjax.merge(tmp_path / "shards")
    assert_same_bits(found, wanted)
    assert isinstance(found.weights, np.ndarray)


def test_rows_that_are_no_fit_are_shared_out_as_well(tmp_path: Path) -> None:
    design, targets = sparse_rows(30, 20, 40)
    options: dict[str, Any] = {"penalty": simjax.L1(0.5), "max_memory": 10 * bytes_per_row((30, 20))}
    wanted = simjax.solve_rows(design, targets, **options)
    parts = [simjax.solve_rows(design, targets, **options, checkpoint=tmp_path, shard=[k, 3]) for k in (1, 2, 3)]
    assert [part.first for part in parts] == [0, 10, 20]
    assert np.concatenate([part.weights.toarray() for part in parts]).tobytes() == wanted.weights.toarray().tobytes()
    found = simjax.solve_rows(design, targets, **options, checkpoint=tmp_path)
    assert found.certificate.dual.tobytes() == wanted.certificate.dual.tobytes()
    assert [row.split()[0] for row in parts[2].verify(rows=2).table().splitlines()[-2:]] != []


# ---- named -------------------------------------------------------------------------------------------------


def test_missing_shards_are_named_with_their_rows(states: simjax.States, tmp_path: Path) -> None:
    fit_shards(states, tmp_path, 6, (1, 2, 4, 6))
    (tmp_path / "rows" / "block-000004.safetensors").unlink()
    (tmp_path / "rows" / "block-000010.safetensors").write_bytes(b"half")
    named = r"missing: shards 2/6 \(8 of 24 rows\), 3/6 \(24 of 24 rows, not begun\), 4/6 \(8 of 24 rows\), 5/6 \(24 of"
    with pytest.raises(ValueError, match=named):
        simjax.merge(tmp_path)
    with pytest.warns(UserWarning, match=r"shards overlap .*: 1/2 and 1/6 \(24 rows\), 1/2 and 2/6 \(24 rows\)\. "):
        fit_shards(states, tmp_path, 2, (1,))
    with pytest.raises(ValueError, match=r"missing: rows 80 to 87, 96 to 119 \(32 rows\)"):
        simjax.merge(tmp_path)


def test_overlapping_shards_are_named_and_do_no_harm(
    states: simjax.States, whole: simjax.FitResult, tmp_path: Path, solves: list[int]
) -> None:
    fit_shards(states, tmp_path, 2)
    with pytest.warns(UserWarning, match=r"1/2 and 2/3 \(24 rows\), 2/2 and 2/3 \(24 rows\)"):
        fit_shards(states, tmp_path, 3, (2,))
    assert solves == [8] * 18
    with pytest.warns(UserWarning, match=r"shards overlap in .*: 1/2 and 2/3 \(24 rows\), 2/2 and 2/3 \(24 rows\)\. "):
        assert_same_bits(simjax.merge(tmp_path), whole)


def test_other_options_are_refused_with_what_differs(states: simjax.States, tmp_path: Path) -> None:
    """Also by a shard that has no rows there yet."""
    fit_shards(states, tmp_path, 16, (1,))
    before = {file.name: file.read_bytes() for file in (tmp_path / "rows").iterdir()}
    weight = np.linspace(0.5, 1.5, M)
    plain = simjax.States(*(getattr(states, name) for name in ("inputs", "preactivations", "activations", "outputs")))
    double = states.subset(np.r_[0, 0 : M - 1])
    cases: list[tuple[simjax.States, dict[str, Any], str]] = [
        (states, {"alpha": 0.2}, r"alpha \(0\.3 there, 0\.2 here\)"),
        (states, {"kappa": 0.8}, r"kappa \(0\.9 there, 0\.8 here\)"),
        (states, {"rescale": "none"}, r"rescale \(auto there, none here\)"),
        (states, {"units": "rescaled"}, r"units \(natural there, rescaled here\)"),
        (states, {"support": "full"}, r"support \(auto there, full here\)"),
        (states, {"sample_weight": weight}, "sample_weight"),
        (states, {"fit_intercept": False}, r"fit_intercept \(auto there, False here\)"),
        (states, {"tol": 1e-5}, r"tol \(0\.0001 there, 1e-05 here\)"),
        (plain, {}, r"layer_sizes, has_biases \(True there, None here\), baseline"),
        (double, {}, "design"),
    ]
    for given, changed, named in cases:
        with pytest.raises(ValueError, match=rf"what differs: {named}\. Give"):
            fit_shards(given, tmp_path, 16, (2,), **changed)
    assert {file.name: file.read_bytes() for file in (tmp_path / "rows").iterdir()} == before


def test_every_argument_of_a_fit_is_in_its_fingerprint(states: simjax.States) -> None:
    from simjax.sim.options import PlanOptions
    from simjax.sim.plan import Plan

    plan = Plan.make(states, PlanOptions("l1", alpha=0.3))
    names = {field.name for field in dataclasses.fields(PlanOptions)} - {"refit"}
    seen_in_design_and_targets = {"inputs", "activations", "preactivations", "outputs"}
    names |= {field.name for field in dataclasses.fields(simjax.States)} - seen_in_design_and_targets
    assert set(plan.origin.arguments) == names


def test_what_needs_all_rows_and_wrong_shards_are_refused(states: simjax.States, tmp_path: Path) -> None:
    def refused(kind: type[Exception], match: str, shard: Any = (1, 2), **changed: Any) -> None:
        with pytest.raises(kind, match=match):
            simjax.fit_shard(states, "l1", **{**STATED, "checkpoint": tmp_path / "fit", "shard": shard, **changed})

    refused(ValueError, r"refit must be None for a shard, got 'support'.* takes their rows from there", refit="support")
    refused(ValueError, r"constraint must not be LowRank\(rank=2\) for a shard", constraint=simjax.LowRank(2))
    refused(TypeError, "unknown arguments: lambda_sate", lambda_sate=1.0)
    refused(ValueError, r"with 1 <= k <= n, got \(3, 2\)", (3, 2))
    refused(ValueError, r"with 1 <= k <= n, got \(0, 2\)", (0, 2))
    refused(TypeError, r"two integers .* got \(1\.0, 2\)", (1.0, 2))
    refused(TypeError, "two integers .* got '1/2'", "1/2")
    refused(TypeError, "two integers .* got None", None)
    refused(TypeError, "checkpoint must be a folder's path", checkpoint=3)
    refused(ValueError, "checkpoint must be a folder for shard=1/2", checkpoint=None)
    refused(ValueError, r"at most 18, as the 144 rows make 18 blocks; got 1/19; a block has eight rows at", (1, 19))
    refused(ValueError, r"at most 1, .*; got 1/16; max_memory=419904 makes enough\.", (1, 16), max_memory=None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError, match="unknown arguments: shard"):
        simjax.path(states, "l1", alphas=[0.1], shard=(1, 2), checkpoint=tmp_path / "fit")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        simjax.merge(tmp_path / "fit")
    simjax.fit(states, "l1", **{**STATED, "constraint": simjax.LowRank(2)}, checkpoint=tmp_path / "low")
    with pytest.raises(ValueError, match=r"without refit and LowRank, and there are solves of low-rank too\. The fit"):
        simjax.merge(tmp_path / "low")


def test_a_merged_fit_warns_of_rows_that_are_not_certified(states: simjax.States, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", simjax.ConvergenceWarning)
        fit_shards(states, tmp_path, 2, tol=1e-12, max_iters=63, solver="proximal_gradient")
    with pytest.warns(simjax.ConvergenceWarning, match="144 of 144 rows are not certified"):
        assert not simjax.merge(tmp_path).converged


@pytest.mark.parametrize("count", [1, 7, 16, 100])
@pytest.mark.parametrize("of", [1, 3, 16])
def test_every_block_is_in_one_shard(count: int, of: int) -> None:
    parts = [Shard(number, of).blocks(count) for number in range(1, of + 1)]
    assert [number for part in parts for number in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
