"""Frames and series of pandas and polars: their numbers, their names, and what is wrong with them by name."""

from __future__ import annotations

import decimal
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pytest
from helpers import generator
from numpy.testing import assert_array_equal

import simjax
from simjax.states.names import Names

NAMES = ["age", "income", "height", "weight"]
M = 30


def numbers() -> tuple[np.ndarray, np.ndarray]:
    rng = generator(0)
    design = rng.normal(size=(M, 4))
    return design, np.stack([2.0 * design[:, 1] - design[:, 0], design[:, 2]], axis=1) + 0.01 * rng.normal(size=(M, 2))


DESIGN, TARGETS = numbers()
FRAMES = {"pandas": pandas.DataFrame, "polars": polars.DataFrame}


def frame(kind: str, array: np.ndarray, names: list[str]) -> Any:
    return FRAMES[kind]({name: array[:, k] for k, name in enumerate(names)})


def solve(design: Any, targets: Any, **options: Any) -> simjax.Solution:
    return simjax.solve_rows(design, targets, penalty=simjax.L1(0.5), fit_intercept=True, **options)


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_is_its_numbers_and_its_names_are_kept(kind: str) -> None:
    expected = solve(DESIGN, TARGETS)
    assert expected.row_names is None
    assert expected.column_names is None
    found = solve(frame(kind, DESIGN, NAMES), frame(kind, TARGETS, ["spent", "size"]))
    assert_array_equal(found.weights, expected.weights)
    assert found.row_names == ("spent", "size")
    assert found.column_names == tuple(NAMES)
    lines = found.table().splitlines()
    assert lines[0].split() == ["row", "status", "gap", "nonzeros", "largest", "weights"]
    assert "spent" in lines[1]
    assert "income +1.99" in lines[1]
    assert "age -0.99" in lines[1]
    assert "<td>spent</td>" in found._repr_html_()
    assert "<td>spent</td>" not in expected._repr_html_()
    assert expected.table().splitlines()[1].split()[0] == "0"
    assert "w[1] +1.99" in expected.table()
    again = pickle.loads(pickle.dumps(found))
    assert again.column_names == tuple(NAMES)
    # A frame beside an array, and a series for a single row.
    assert_array_equal(solve(frame(kind, DESIGN, NAMES), TARGETS).weights, expected.weights)
    assert solve(DESIGN, frame(kind, TARGETS, ["spent", "size"])).column_names is None
    one = solve(frame(kind, DESIGN, NAMES), frame(kind, TARGETS, ["spent", "size"])["size"])
    assert one.row_names == ("size",)
    assert_array_equal(one.weights, solve(DESIGN, TARGETS[:, 1:]).weights)
    largest = simjax.alpha_max(frame(kind, DESIGN, NAMES), frame(kind, TARGETS, ["spent", "size"]))
    assert_array_equal(largest, simjax.alpha_max(DESIGN, TARGETS))


def test_neither_is_needed() -> None:
    program = "import sys, numpy, simjax; simjax.solve_rows(numpy.eye(3), numpy.ones((3, 1)), penalty=simjax.L1(0.1)); "
    program += "print({'pandas', 'polars'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "set()"


# ---- types of columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column",
    [
        pandas.Series([1, 2, 3], dtype="Int64"),
        pandas.Series([1.0, 2.0, 3.0], dtype="Float32"),
        pandas.Series([True, False, True], dtype="boolean"),
        pandas.Series([True, False, True]),
        pandas.Series([1, decimal.Decimal(2), 3.0], dtype=object),
        pandas.Series(pandas.arrays.SparseArray([0.0, 0.0, 3.0])),
        polars.Series([1, 2, 3], dtype=polars.UInt8),
        polars.Series([True, False, True]),
        polars.Series([decimal.Decimal("1.5"), decimal.Decimal(2), decimal.Decimal(3)]),
    ],
    ids=lambda column: str(column.dtype),
)
def test_all_kinds_of_numbers_are_taken(column: Any) -> None:
    given = type(column)(column.to_list(), dtype=column.dtype)
    whole = pandas.DataFrame({"a": given}) if isinstance(given, pandas.Series) else polars.DataFrame({"a": given})
    problem = simjax.row_problem(whole, np.ones((3, 1)), penalty=simjax.L1(1.0))
    assert problem.design.dtype == np.float64
    assert_array_equal(problem.design[:, 0], [float(value) for value in column.to_list()])


WRONG = {
    "missing": ([1, None, 3], ValueError, "with 1 missing or NaN entries of 3"),
    "NaN": ([1.0, float("nan"), 3.0], ValueError, "with 1 missing or NaN entries of 3"),
    "infinite": ([1.0, float("inf"), 3.0], ValueError, "1 NaN or infinite entries of 6, in column 'b'"),
    "text": (["x", "y", "z"], TypeError, "of dtype .*, expected real numbers"),
    "dates": (np.array(["2020-01-01"] * 3, dtype="datetime64[us]"), TypeError, "of dtype [dD]atetime.*, expected real"),
}


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_of_the_column(what: str, kind: str) -> None:
    values, error, message = WRONG[what]
    given = FRAMES[kind]({"a": [1.0, 2.0, 3.0], "b": values})
    with pytest.raises(error, match=message) as raised:
        solve(given, np.ones((3, 1)))
    assert "design" in str(raised.value)
    assert "'b'" in str(raised.value)
    with pytest.raises(error, match="targets"):
        solve(np.ones((3, 2)), given)


@pytest.mark.parametrize(
    "column",
    [
        pandas.Series([1, 2, 1], dtype="category"),
        pandas.Series([1, None, 2], dtype="Int64"),
        pandas.Series([True, None, False], dtype="boolean"),
        pandas.Series([1.0, "2", 3.0], dtype=object),
        pandas.Series(pandas.to_timedelta([1, 2, 3], unit="s")),
        pandas.Series([1j, 2.0, 3.0]),
        polars.Series("b", ["1", "2", "3"], dtype=polars.Categorical),
        polars.Series("b", [[1.0], [2.0], [3.0]]),
        polars.Series("b", [True, None, False]),
    ],
    ids=lambda column: str(column.dtype),
)
def test_what_only_looks_like_numbers_is_refused(column: Any) -> None:
    given: Any = {"b": column}
    given = pandas.DataFrame(given) if isinstance(column, pandas.Series) else polars.DataFrame(given)
    with pytest.raises((TypeError, ValueError), match="design has column 'b'"):
        solve(given, np.ones((3, 1)))


# ---- which rows belong together ----------------------------------------------------------------------------


def test_indices_that_differ_are_refused() -> None:
    design, targets = frame("pandas", DESIGN, NAMES), frame("pandas", TARGETS, ["a", "b"])
    shuffled = targets.sample(frac=1.0, random_state=0)
    with pytest.raises(ValueError, match="targets must have the index of design, got the same one in another order"):
        solve(design, shuffled)
    assert_array_equal(solve(design, shuffled.loc[design.index]).weights, solve(DESIGN, TARGETS).weights)
    assert_array_equal(solve(DESIGN, shuffled).row_names, ("a", "b"))  # an array has no index to differ from
    with pytest.raises(ValueError, match="targets must have the index of design, got another one"):
        solve(design, targets.set_index(np.arange(1, M + 1)))
    with pytest.raises(ValueError, match="sample_weight must have the index of design"):
        solve(design, targets, sample_weight=pandas.Series(np.ones(M), index=np.arange(M)[::-1]))
    with pytest.raises(ValueError, match="targets must have as many rows as design"):
        solve(design, targets[:7])
    weight = pandas.Series(np.arange(1.0, M + 1.0))
    assert_array_equal(
        solve(design, targets, sample_weight=weight).weights,
        solve(DESIGN, TARGETS, sample_weight=np.arange(1.0, M + 1.0)).weights,
    )


def test_frames_go_with_checkpoints_and_shards(tmp_path: Path) -> None:
    design, weight = frame("pandas", DESIGN, NAMES), pandas.Series(np.arange(1, M + 1), dtype="Int64")
    targets = pandas.DataFrame(np.tile(TARGETS, 10), columns=[f"row {k}" for k in range(20)])
    options: dict[str, Any] = {"sample_weight": weight, "checkpoint": tmp_path / "kept", "max_memory": 3e4}
    parts = [solve(design, targets, shard=(k, 2), **options) for k in (1, 2)]
    assert sum((part.row_names for part in parts), ()) == tuple(targets.columns)
    assert "row 19" in parts[1].table()
    whole = solve(design, targets, **options)
    assert whole.row_names == tuple(targets.columns)
    with pytest.raises(ValueError, match="sample_weight"):
        solve(design, targets, **{**options, "sample_weight": weight[::-1].reset_index(drop=True)})


def test_names_that_are_no_text_or_there_twice() -> None:
    twice = pandas.DataFrame(DESIGN, columns=["a", "a", ("b", 1), 7])
    assert solve(twice, TARGETS).column_names == ("a", "a", "b 1", "7")
    plain = pandas.DataFrame(DESIGN)
    assert solve(plain, TARGETS).column_names == ("0", "1", "2", "3")


def test_a_mask_may_be_a_frame() -> None:
    mask = pandas.DataFrame([[True, False, True, True], [True, True, True, False]], columns=NAMES)
    found = solve(frame("pandas", DESIGN, NAMES), TARGETS, support=mask)
    assert_array_equal(found.weights, solve(DESIGN, TARGETS, support=mask.to_numpy()).weights)
    with pytest.raises(ValueError, match=r"support must have the columns of the design, .* column 0 is 'weight'"):
        solve(frame("pandas", DESIGN, NAMES), TARGETS, support=mask[NAMES[::-1]])


# ---- fits --------------------------------------------------------------------------------------------------


def states(kind: str | None = "pandas", m: int = M) -> simjax.States:
    rng = generator(1)
    inputs = rng.normal(size=(m, 4))
    preactivations = inputs @ rng.normal(size=(4, 3))
    activations = np.maximum(preactivations, 0.0)
    arrays = inputs, preactivations, activations, activations @ rng.normal(size=(3, 2))
    if kind is None:
        return simjax.States(*arrays)
    names = NAMES, ["z1", "z2", "z3"], ["x1", "x2", "x3"], ["up", "down"]
    return simjax.States(*(frame(kind, array, name) for array, name in zip(arrays, names, strict=True)))


@pytest.mark.parametrize("kind", FRAMES)
def test_names_go_through_fit_save_and_load(kind: str, tmp_path: Path) -> None:
    named = states(kind)
    assert named.names == Names(tuple(NAMES), ("x1", "x2", "x3"), ("up", "down"))
    result = simjax.fit(named, "l1", alpha=0.01, fit_intercept="penalised")
    assert_array_equal(result.weights, simjax.fit(states(None), "l1", alpha=0.01, fit_intercept="penalised").weights)
    assert result.row_names == ("x1", "x2", "x3", "up", "down")
    assert result.column_names == ("x1", "x2", "x3", *NAMES, "1")
    assert "down" in result.table()
    assert "<td>down</td>" in result._repr_html_()
    result.model.save(tmp_path / "model.safetensors")
    model = simjax.ImplicitModel.load(tmp_path / "model.safetensors")
    assert model.metadata["names"] == {"inputs": NAMES, "states": ["x1", "x2", "x3"], "outputs": ["up", "down"]}
    inputs = frame(kind, named.inputs, NAMES)
    assert_array_equal(model.predict(inputs), model.predict(named.inputs))
    with pytest.raises(ValueError, match="inputs must have the columns of the fit, in its order: column 0 is 'income'"):
        model.predict(inputs[["income", "age", "height", "weight"]])
    named.save(tmp_path / "states.npz")
    assert simjax.States.load(tmp_path / "states.npz").names == named.names
    assert named.subset(10).names == named.names


def test_what_has_no_names_is_numbered() -> None:
    result = simjax.fit(states(None), "l1", alpha=0.01)
    assert result.row_names == ("x[0]", "x[1]", "x[2]", "y[0]", "y[1]")
    assert result.column_names == ("x[0]", "x[1]", "x[2]", "u[0]", "u[1]", "u[2]", "u[3]")
    assert "names" not in result.model.metadata
    assert "largest weights" not in result._repr_html_()


def test_layers_are_frames_and_batches_agree() -> None:
    whole = states()
    layers = [frame("pandas", whole.activations[:, :1], ["h"]), frame("pandas", whole.activations[:, 1:], ["k", "l"])]
    before = [whole.preactivations[:, :1], whole.preactivations[:, 1:]]
    stacked = simjax.States(whole.inputs, before, layers, whole.outputs)
    assert stacked.names == Names(states=("k", "l", "h"))
    other = simjax.States(whole.inputs, whole.preactivations, whole.activations, whole.outputs)
    assert other.names is None
    streamed = simjax.stream_states([whole.subset(20), whole.subset(15)])
    assert simjax.fit(streamed, "l1", alpha=0.01).row_names == ("x1", "x2", "x3", "up", "down")
    with pytest.raises(ValueError, match="batch 1 has names"):
        simjax.stream_states([whole, other])
    with pytest.raises(ValueError, match=r"names.inputs must be 4 names, got 1"):
        simjax.States(whole.inputs, whole.preactivations, whole.activations, whole.outputs, names=Names(("a",)))


def test_states_with_indices_that_differ_are_refused() -> None:
    whole = states()
    outputs = frame("pandas", whole.outputs, ["up", "down"])[::-1]
    with pytest.raises(ValueError, match="outputs must have the index of inputs, got the same one in another order"):
        simjax.States(frame("pandas", whole.inputs, NAMES), whole.preactivations, whole.activations, outputs)


def test_a_network_run_on_a_frame_has_the_names_of_its_inputs() -> None:
    network = simjax.nn.MLP((4, 3, 2, 2))
    inputs = frame("pandas", DESIGN, NAMES)
    collected = simjax.collect_states(network, inputs)
    assert collected.names == Names(inputs=tuple(NAMES))
    assert_array_equal(collected.outputs, simjax.collect_states(network, DESIGN).outputs)
    weights = [np.ones((3, 4)), np.ones((3, 3)), np.ones((1, 3))]
    assert simjax.States.from_layers(weights, None, "relu", inputs).names == Names(inputs=tuple(NAMES))
    assert simjax.States.from_layers(weights, None, "relu", inputs, layers=1).names is None
