"""The reference on the site has every public name, once."""

from __future__ import annotations

import collections
import importlib
import re
from pathlib import Path

import pytest

import simjax

ROOT = Path(__file__).resolve().parents[1]
SHOWN = collections.Counter(
    name
    for page in sorted((ROOT / "docs" / "api").glob("*.md"))
    for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)
)


@pytest.mark.parametrize("name", simjax.__all__)
def test_every_name_of_the_package_is_in_the_reference(name):
    assert SHOWN[f"simjax.{name}"] == 1


@pytest.mark.parametrize("name", simjax._SUBMODULES)
def test_every_module_is_in_the_reference_with_its_public_names(name):
    module = importlib.import_module(f"simjax.{name}")
    assert module.__doc__
    elsewhere = {each for each in getattr(module, "__all__", ()) if SHOWN[f"simjax.{each}"]}
    assert SHOWN[f"simjax.{name}"] == 1 or elsewhere == set(module.__all__)


def test_what_the_reference_shows_exists():
    for name in SHOWN:
        module, _, attribute = name.rpartition(".")
        if name.removeprefix("simjax.") not in simjax._SUBMODULES:
            assert hasattr(importlib.import_module(module), attribute), name


def test_every_page_can_be_reached():
    navigation = re.search(r"^nav:\n(.*?)^plugins:", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE | re.DOTALL)
    reached = collections.Counter(re.findall(r"\S+\.md", navigation[1]))
    there = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert set(reached) == there
    assert max(reached.values()) == 1
