"""First-order methods are found by their names, which stand in one place."""

import sys
import types

import pytest
from helpers import BOUND, PENALTIES, WIDE, assert_solved, sparse_rows

import simjax
from simjax.rows import options
from simjax.rows.solvers import proximal_gradient
from simjax.rows.solvers.first_order import first_order_method

FUNCTIONS = ("start", "restart", "advance", "point")


@pytest.mark.parametrize("name", options.FIRST_ORDER)
def test_a_name_is_a_module_with_the_functions_of_a_method(name):
    method = first_order_method(name)
    assert method.__name__ == f"simjax.rows.solvers.{name}"
    assert all(callable(getattr(method, function)) for function in FUNCTIONS)


@pytest.mark.parametrize("engine", ["numpy", "jax"])
def test_a_method_of_another_name_needs_its_module_and_its_name(monkeypatch, engine):
    method = types.ModuleType("simjax.rows.solvers.another")
    for function in FUNCTIONS:
        setattr(method, function, getattr(proximal_gradient, function))
    design, targets = sparse_rows(WIDE)
    problem = {"loss_weight": 0.7, "penalty": PENALTIES["l1"], "constraint": simjax.L1Ball(0.9, size=BOUND)}
    with pytest.raises(ValueError, match="another"):
        simjax.solve_rows(design, targets, solver="another", **problem)
    monkeypatch.setitem(sys.modules, method.__name__, method)
    monkeypatch.setattr(options, "SOLVERS", (*options.SOLVERS, "another"))
    solution = simjax.solve_rows(design, targets, solver="another", engine=engine, **problem)
    assert solution.engine.startswith(engine)
    assert_solved(design, targets, solution, **problem)
