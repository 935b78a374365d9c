"""The examples in public docstrings run, and what people begin with has one."""

from __future__ import annotations

import doctest

import pytest

import simjax

BEGINNINGS = {
    "L1": simjax.L1,
    "L1Ball": simjax.L1Ball,
    "ImplicitModel": simjax.ImplicitModel,
    "States": simjax.States,
    "States.from_layers": simjax.States.from_layers,
    "adaptive_weights": simjax.adaptive_weights,
    "alpha_max": simjax.alpha_max,
    "certify": simjax.certify,
    "collect_states": simjax.collect_states,
    "fit": simjax.fit,
    "path": simjax.path,
    "solve_rows": simjax.solve_rows,
    "stream_states": simjax.stream_states,
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_examples_run(name: str) -> None:
    (found,) = doctest.DocTestFinder(recurse=False).find(BEGINNINGS[name], name, globs={})
    assert found.examples, f"{name} has no example"
    report: list[str] = []
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, _ = doctest.DocTestRunner(optionflags=flags).run(found, out=report.append)
    assert failed == 0, "".join(report)
