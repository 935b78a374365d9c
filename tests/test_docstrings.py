"""Every public function and class has an example in its docstring, which runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import simjax

ROOT = Path(__file__).resolve().parents[1]
NEEDS = {  # packages, where an example needs more than the tests' own
    "simjax.cluster.ray": "ray",
}
WITHOUT: dict[str, str] = {}  # names that have no example, and why: none at present


def public_names() -> Iterator[tuple[str, Any]]:
    """Functions and classes: those of the package, of its public submodules, and what else the reference shows."""
    modules = ["simjax", *(f"simjax.{name}" for name in simjax._SUBMODULES)]
    for module in map(importlib.import_module, modules):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", [name for name in own if not name.startswith("_")]):
            yield f"{module.__name__}.{name}", getattr(module, name)
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        for name in re.findall(r"^::: (\S+)", page.read_text(), re.M):
            module, _, attribute = name.rpartition(".")
            yield name, getattr(importlib.import_module(module), attribute)
    yield "simjax.States.from_layers", simjax.States.from_layers


PUBLIC: dict[str, Any] = {}
for _name, _value in public_names():
    if (inspect.isclass(_value) or inspect.isroutine(_value)) and _value not in PUBLIC.values():
        PUBLIC[_name] = _value


def examples(name: str) -> doctest.DocTest:
    (found,) = doctest.DocTestFinder(recurse=False, exclude_empty=False).find(PUBLIC[name], name, globs={})
    return found


def test_the_names_are_those_that_a_user_sees() -> None:
    assert len(PUBLIC) > 110
    assert {"simjax.fit", "simjax.plotting.plot_gaps", "simjax.robustness.Box", "simjax.sklearn.SparseRegressor"} < set(
        PUBLIC
    )


def test_whoever_has_no_example_is_named_with_the_reason() -> None:
    assert {name for name in PUBLIC if not examples(name).examples} == set(WITHOUT)
    assert all(WITHOUT.values())


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - set(WITHOUT)))
def test_examples_run(name: str) -> None:
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    report: list[str] = []
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, run = doctest.DocTestRunner(optionflags=flags).run(examples(name), out=report.append)
    assert run > 0
    assert failed == 0, "".join(report)


def test_examples_are_in_a_section_that_the_reference_sets_as_code() -> None:
    """griffe knows `Examples:`; `Example:` would be a note whose lines run together."""
    for name, value in PUBLIC.items():
        text = inspect.getdoc(value) or ""
        assert (">>>" not in text) or re.search(r"^Examples:\n  >>> ", text, re.M), name
