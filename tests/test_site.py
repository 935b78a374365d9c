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


def test_the_site_loads_nothing_from_elsewhere():
    settings = (ROOT / "mkdocs.yml").read_text()
    extras = re.search(r"^extra_javascript:\n(.*?)^validation:", settings, re.MULTILINE | re.DOTALL)
    files = re.findall(r"^  - (\S+)$", extras[1], re.MULTILINE)
    assert len(files) == 5
    assert all((ROOT / "docs" / file).is_file() for file in files)
    assert "  font: false" in settings
    fonts = re.findall(r"url\(([^)]+)\)", (ROOT / "docs/assets/katex/katex.min.css").read_text())
    assert fonts
    assert all((ROOT / "docs/assets/katex" / font).is_file() for font in fonts)


@pytest.mark.parametrize("page", ["theory", "implicit", "glossary", "estimators", "jax"])
def test_formulas_are_set_as_formulas(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / "docs" / f"{page}.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"^    \S", text, re.MULTILINE), "an indented block, as formulas in plain text were"
    displays = re.findall(r"^\$\$\n(.*?)\n\$\$$", text, re.MULTILINE | re.DOTALL)
    inline = re.sub(r"^\$\$\n.*?\n\$\$$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert displays or page in ("implicit", "glossary")
    for paragraph in re.split(r"\n\n|\n(?=[-|\d])", inline):
        assert re.sub(r"`[^`]*`", "", paragraph).count("$") % 2 == 0, paragraph
    for formula in [*displays, *re.findall(r"\$([^$]+)\$", re.sub(r"`[^`]*`", "", inline))]:
        assert formula.count("{") - formula.count(r"\{") == formula.count("}") - formula.count(r"\}"), formula
        assert not re.search(r"[^\x00-\x7f]", formula), f"{formula}: symbols are written as TeX names them"


def test_the_gallery_shows_every_picture_below_its_code():
    text = (ROOT / "docs" / "gallery.md").read_text()
    assert set(re.findall(r"plotting\.(plot_\w+)\(", text)) == {
        name for name in vars(simjax.plotting) if name.startswith("plot_")
    }
    drawn = re.findall(r'savefig\("([^"]+)"', text)
    assert drawn == re.findall(r"\]\(images/([^)]+)\)", text)
    assert all((ROOT / "docs" / "images" / name).is_file() for name in drawn)


@pytest.mark.parametrize("page", ["prune-flax", "prune-pytorch"])
def test_a_tutorial_draws_the_picture_that_it_shows(page):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    (shown,) = re.findall(r"\]\(images/([^)]+)\)", text)
    assert shown in re.findall(r'savefig\("([^"]+)"', text[: text.index(f"](images/{shown})")])
    assert f'"{page}.md"' in (ROOT / "docs" / "pictures.py").read_text(), "`make pictures` does not draw it"


def test_every_picture_is_shown_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = set(re.findall(r"images/([\w-]+\.png)", "".join(page.read_text() for page in pages)))
    assert shown == {path.name for path in (ROOT / "docs" / "images").iterdir()}


def test_the_parts_of_the_manual_come_before_the_experiments():
    navigation = re.search(r"^nav:\n(.*?)^plugins:", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE | re.DOTALL)
    tabs = re.findall(r"^  - ([\w ]+):", navigation[1], re.MULTILINE)
    assert tabs == ["Start", "Tutorials", "How to", "Theory", "API", "Experiments", "Performance"]
