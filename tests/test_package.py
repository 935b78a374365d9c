"""The package as it is published: one version, citation and links."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import simjax

ROOT = Path(__file__).resolve().parents[1]
absolute_links = runpy.run_path(str(ROOT / ".github" / "absolute_links.py"))["absolute_links"]


def test_the_version_is_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "simjax._version.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", simjax.__version__)
    written = [path for path in (ROOT / "simjax").rglob("*.py") if f'"{simjax.__version__}"' in path.read_text("utf-8")]
    assert written == [ROOT / "simjax" / "_version.py"]


def test_pythons_that_are_promised_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = [line.rpartition(" ")[2] for line in project["classifiers"] if ":: 3." in line]
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    tested = re.search(r"python: \[(.*)\]", workflow)
    assert tested is not None
    assert promised == re.findall(r'"(.*?)"', tested[1])


def test_links_of_the_readme_lead_to_files_and_become_absolute() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)
    assert relative
    assert [path for path in relative if not (ROOT / path.partition("#")[0]).is_file()] == []
    published = absolute_links(text, "https://host/owner/name", "v1.0.0")
    assert re.findall(r"\]\((?!https?:|#)([^)]+)\)", published) == []
    assert "(https://host/owner/name/blob/v1.0.0/docs/theory.md)" in published


def test_links_become_absolute_by_what_they_lead_to() -> None:
    text = "![two\nlines](docs/a.png) [page](docs/b.md#part) [there](https://x.org/y) [here](#part)"
    assert absolute_links(text, "https://host/o/n", "main") == (
        "![two\nlines](https://host/o/n/raw/main/docs/a.png) [page](https://host/o/n/blob/main/docs/b.md#part) "
        "[there](https://x.org/y) [here](#part)"
    )
