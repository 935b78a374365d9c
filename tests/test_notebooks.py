"""The notebooks of docs/notebooks/ run from a clean kernel, and say what they said when their outputs were kept."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
# What each states, and by how much a run elsewhere may differ: training depends on the machine's arithmetic a little.
STATED: dict[str, list[tuple[str, float]]] = {
    "lasso-rows": [
        (r"(\d+) of 2000 certified", 0),
        (r"largest relative gap of ([\d,]+) rows", 0),
        (r"^ *(?:\d+) +(?:[\d.e+]+ +){2}([-\d.e+]+) ", 1e-6),
        (r"(True|False) 0\.0 \(200,\)", 0),
    ],
    "robust-networks": [
        (r"γ = −1 +test accuracy ([\d.]+)%", 4.0),
        (r"κ = 0\.95 +test accuracy ([\d.]+)%", 4.0),
        (r"ε = 0\.010: certified +([\d.]+)%", 10.0),
        (r"(\d+) of 34 certified", 0),
        (r"certified at ε = 0\.01: ([\d.]+)%", 10.0),
    ],
    "sparse-model": [
        (r"the network on test samples: ([\d.]+)%", 3.0),
        (r"(\d+) of 82 certified", 0),
        (r"^accuracy ([\d.]+)%", 4.0),
        (r"([\d.]+)% fewer weights, ‖A‖∞ = 0\.990", 6.0),
    ],
}


def test_every_notebook_is_looked_at_and_has_its_outputs() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(STATED)
    for name in STATED:
        notebook = read(name)
        assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
        assert "image/png" in (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
        assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 200_000
        for pattern, _ in STATED[name]:
            assert numbers(pattern, said(notebook)), f"{name} states nothing like {pattern}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STATED))
def test_notebooks_run_and_say_the_same(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), path))))
    kept, again = said(read(name)), read(name)
    for cell in again.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(again, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    for pattern, tolerance in STATED[name]:
        before, now = numbers(pattern, kept), numbers(pattern, said(again))
        assert len(now) == len(before), pattern
        assert all(abs(a - b) <= tolerance for a, b in zip(now, before)), f"{pattern}: {before} before, {now} now"


def read(name: str) -> Any:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def said(notebook: Any) -> str:
    """All text among the outputs."""
    return "\n".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def numbers(pattern: str, text: str) -> list[float]:
    words = re.findall(pattern, text, re.MULTILINE)
    return [
        {"True": 1.0, "False": 0.0}[word] if word in ("True", "False") else float(word.replace(",", ""))
        for word in words
    ]
