"""Results as values: one line, a table, an answer to ==, and copies that are as read-only as what they copy."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import simjax
from simjax._values import short, text_table
from simjax.equilibrium import equilibrium
from simjax.robustness import lipschitz_bounds, output_box

RNG = np.random.default_rng(0)
STATES = simjax.States.from_layers(
    [RNG.normal(size=(4, 3)), RNG.normal(size=(3, 4)), RNG.normal(size=(2, 3))], None, "relu", RNG.normal(size=(30, 3))
)
SOLUTION = simjax.solve_rows(RNG.normal(size=(40, 10)), RNG.normal(size=(40, 24)), penalty=simjax.L1(5.0))
FIT = simjax.fit(STATES, "l1", refit=("support", "outputs"))
MANY = RNG.normal(size=(400, 34))
IN_BLOCKS = simjax.solve_rows(MANY[:, :10], MANY[:, 10:], penalty=simjax.L1(5.0), max_memory=3e5)
RESULTS: dict[str, Any] = {
    "solution": SOLUTION,
    "in blocks": IN_BLOCKS,
    "certificate": SOLUTION.certificate,
    "problem": SOLUTION.problem,
    "fit": FIT,
    "source": FIT.sources[0],
    "path": simjax.path(STATES, "l1", points=2),
    "recertified": simjax.recertify(simjax.fit(STATES, "l1"), [STATES]),
    "states": STATES,
    "streamed": simjax.stream_states([STATES]),
    "model": FIT.model,
    "penalty": simjax.L1(np.ones(3)),
    "ball": simjax.L1Ball(np.ones(3)),
    "metzler": simjax.MetzlerRow(np.ones(3), np.arange(3)),
    "bounds": lipschitz_bounds(FIT.model),
    "box": output_box(FIT.model, np.zeros((2, 3)), np.ones((2, 3))),
    "equilibrium": equilibrium(np.zeros((2, 2)), np.ones((2, 3)), np.ones((5, 3))),
}


@pytest.mark.parametrize("value", RESULTS.values(), ids=list(RESULTS))
def test_a_result_is_told_in_one_line(value: Any) -> None:
    assert "\n" not in repr(value)
    assert len(repr(value)) < 250
    assert repr(value).startswith(type(value).__name__)


@pytest.mark.parametrize("value", RESULTS.values(), ids=list(RESULTS))
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_result_is_itself_and_copies_are_told_alike(value: Any, again: Callable[[Any], Any]) -> None:
    other = again(value)
    assert value == value
    assert bool(value != other)
    assert len({value, other}) == 2
    assert repr(other) == repr(value)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_read_only_arrays_stay_so_in_copies(again: Callable[[Any], Any]) -> None:
    states, model = again(STATES), again(FIT.model)
    for array in (states.inputs, states.preactivations, states.baseline.A, model.A, model.D):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1.0
    np.testing.assert_array_equal(model.A, FIT.model.A)
    assert again(SOLUTION).weights.flags.writeable == SOLUTION.weights.flags.writeable


def test_a_fit_in_blocks_survives_pickling_with_its_problem() -> None:
    fit = simjax.fit(STATES, "l1", refit="support", max_memory=simjax.rows.memory.bytes_per_row((30, 10)) * 8)
    again = pickle.loads(pickle.dumps(fit))
    numbers = np.array([0, 8])
    for solution, other in zip(fit.solutions, again.solutions):
        assert type(other.problem).__name__ == "RowSource"
        np.testing.assert_array_equal(solution.problem.take(numbers).support, other.problem.take(numbers).support)


@pytest.mark.parametrize("name", ["solution", "fit", "path"])
def test_a_notebook_shows_a_table(name: str) -> None:
    shown = RESULTS[name]._repr_html_()
    assert shown.startswith("<table>")
    assert "certified" in shown
    assert shown.count("<tr>") == shown.count("</tr>") >= 3


def test_a_verification_is_a_table_too() -> None:
    pytest.importorskip("clarabel")
    verification = SOLUTION.verify(rows=2)
    assert repr(verification) == "Verification(2 of 2 rows agree with clarabel)"
    assert verification._repr_html_().count("<tr>") == 3
    assert len(verification.table().splitlines()) == 3


def test_columns_grow_with_their_numbers() -> None:
    table = text_table(["alpha", "nonzeros"], [["1", "123456789012"], ["2.5", "3", "DISAGREES"]], (5, 8))
    assert table.splitlines() == ["alpha     nonzeros", "    1 123456789012", "  2.5            3   DISAGREES"]


@pytest.mark.parametrize(
    ("value", "told"),
    [(np.float64(0.5), "0.5"), (np.ones((2, 3)), "<array (2, 3)>"), ("relu", "'relu'"), ((1,) * 9, "<9 entries>")],
)
def test_short(value: Any, told: str) -> None:
    assert short(value) == told
