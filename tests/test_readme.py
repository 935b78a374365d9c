"""Every Python block of README.md and of docs/ runs, in order, with warnings as errors."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
# JAX warns of the forks by which Ray starts its programs; each is another program at once.
RAY_FORKS = pytest.mark.filterwarnings(r"ignore:os.fork\(\) was called:RuntimeWarning")


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Line number and code of each fenced block whose language is python."""
    blocks = []
    for match in BLOCK.finditer(text):
        indent = match["indent"]
        lines = match["code"].splitlines()
        code = "\n".join(line.removeprefix(indent) for line in lines)
        blocks.append((text.count("\n", 0, match.start("code")), code))
    return blocks


def run_blocks(file: Path) -> int:
    """Runs the blocks of `file` in one namespace, but those for Ray where it is not; returns how many there were."""
    blocks = python_blocks(file.read_text(encoding="utf-8"))
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks:
        if "simjax.cluster.ray" in code and find_spec("ray") is None:
            continue
        # Blank lines in front, so that a traceback shows the line of the document.
        exec(compile("\n" * line + code, str(file), "exec"), namespace)
    return len(blocks)


@pytest.mark.parametrize(
    "file",
    [
        ROOT / "README.md",
        *(pytest.param(file, marks=[pytest.mark.slow, RAY_FORKS]) for file in sorted((ROOT / "docs").rglob("*.md"))),
    ],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_blocks_run(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "import torch" in file.read_text(encoding="utf-8"):
        pytest.importorskip("torch")
    count = run_blocks(file)
    assert count > 0 or file.name != "README.md", "README.md has no Python block"


def test_blocks_are_found_in_order_and_share_names(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    seen = tmp_path / "seen"
    file.write_text(
        f"text\n\n```python\nx = 1\n```\n\n```bash\nexit 1\n```\n\n"
        "- item\n\n  ```python\n  if x:\n      x += 1\n  from pathlib import Path\n"
        f"  Path({str(seen)!r}).write_text(str(x))\n  ```\n"
    )
    assert [line for line, _ in python_blocks(file.read_text())] == [3, 13]
    assert run_blocks(file) == 2
    assert seen.read_text() == "2"


def test_an_error_names_the_line_of_the_document(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("text\n\n```python\nx = 1\nx / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as error:
        run_blocks(file)
    assert error.traceback[-1].lineno + 1 == 5
    assert str(error.traceback[-1].path) == str(file)
