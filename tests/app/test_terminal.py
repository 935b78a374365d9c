"""What the terminal may do to the command line: names with brackets, other encodings, closed pipes, full ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import simjax
from simjax.app import cli, display, reports


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command as it is installed, in a process of its own."""
    program = "import sys, simjax.app; sys.exit(simjax.app.main())"
    words = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, env=os.environ | environment)


def run(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def small_model(metadata: dict | None = None) -> simjax.ImplicitModel:
    return simjax.ImplicitModel(np.zeros((1, 1)), [[1.0]], [[1.0]], [[0.0]], metadata=metadata)


@pytest.fixture
def states_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape) for shape in ((2, 6), (2, 2), (2, 2))]
    simjax.States.from_layers(weights, None, "relu", rng.standard_normal((40, 6))).save(tmp_path / "s[1].npz")
    return tmp_path / "s[1].npz"


@pytest.mark.parametrize("name", ["model[v2].safetensors", "[/a].safetensors", "[red]x", r"a\[b]", ":smile:"])
def test_names_are_shown_as_they_are(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[").mkdir()
    small_model({"fit": {"objective": "[bold]mine[/bold] :smile:"}}).save(name)
    shown = run("show", name)
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.splitlines()[0].strip() == name
    assert "[bold]mine[/bold] :smile:" in shown.stdout
    refused = run("show", f"{name}no")
    assert refused.stderr == f"Error: {name}no: there is no such file.\n"


def test_fit_shows_names_as_they_are(states_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m[").mkdir()
    fitted = run("fit", states_file.name, "-o", "m[/x].safetensors")
    assert fitted.exit_code == 0, fitted.stderr
    assert "Implicit model of s[1].npz" in fitted.stdout
    assert "m[/x].safetensors" in fitted.stdout


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_streams_that_are_not_utf8(encoding: str, tmp_path: Path) -> None:
    small_model().save(tmp_path / "m")
    done = command("show", tmp_path / "m", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "?A??= 0".replace(" ", "") in done.stdout.decode(encoding).replace(" ", "")


def test_an_error_of_simjax_itself_is_told_apart(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    small_model().save(tmp_path / "m")
    monkeypatch.setattr(display, "print_model", broken)
    monkeypatch.setattr(cli, "_keep_compiled_code", lambda: None)
    monkeypatch.setattr(sys, "argv", ["simjax", "show", str(tmp_path / "m")])
    assert cli.main() == 3
    assert "ZeroDivisionError: a mistake of ours" in capsys.readouterr().err


def test_interrupts_have_a_code_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    small_model().save(tmp_path / "m")
    monkeypatch.setattr(display, "print_model", interrupted)
    stopped = run("show", tmp_path / "m")
    assert (stopped.exit_code, stopped.stderr) == (130, "Interrupted; nothing saved.\n")


def test_an_interrupt_says_what_is_there_already(
    states_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(display, "print_fit", interrupted)
        stopped = run("fit", states_file, "-o", tmp_path / "m")
    assert (stopped.exit_code, (tmp_path / "m").exists()) == (130, True)
    assert stopped.stderr.endswith(f"Interrupted; saved: {tmp_path / 'm'}.\n")
    monkeypatch.setattr(simjax, "fit", interrupted)
    kept = tmp_path / "kept"
    for words in ("nothing saved.", f"saved: {kept}."):  # rows, once there are any
        stopped = run("fit", states_file, "-o", tmp_path / "n", "--checkpoint", kept)
        assert (stopped.exit_code, (tmp_path / "n").exists()) == (130, False)
        assert stopped.stderr.endswith(f"Interrupted; {words}\n")
        (kept / "rows").mkdir(parents=True, exist_ok=True)


def test_a_closed_pipe_is_no_answer(tmp_path: Path) -> None:
    small_model().save(tmp_path / "m")
    reading, writing = os.pipe()
    os.close(reading)
    program = "import sys, simjax.app; sys.exit(simjax.app.main())"
    words = [sys.executable, "-c", program, "show", str(tmp_path / "m")]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("place", [".", "n" * 300, "pipe"])
def test_fit_refuses_a_place_that_it_cannot_write_before_it_reads_anything(place: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    result = run("fit", tmp_path / "none.npz", "-o", tmp_path / place, "--force")
    assert result.exit_code == 2
    assert "none.npz" not in result.stderr
    assert any(word in result.stderr for word in ("is a folder", "too long", "not a regular file"))


def test_demo_refuses_a_folder_in_the_place_of_a_file_before_it_trains(tmp_path: Path) -> None:
    (tmp_path / "results.json").mkdir()
    result = run("demo", "--quick", "--output", tmp_path, "--force")
    assert result.exit_code == 2
    assert "results.json is a folder" in result.stderr
    assert "Loading" not in result.stderr


@pytest.mark.parametrize("fit", ["third try", ["a", 1], {"note": "mine"}, 3, {}])
def test_show_prints_what_it_finds(fit: object, tmp_path: Path) -> None:
    small_model({"fit": fit}).save(tmp_path / "m")
    shown = run("show", tmp_path / "m")
    assert shown.exit_code == 0, shown.stderr
    assert (fit["note"] if fit == {"note": "mine"} else str(fit) if fit else "") in shown.stdout
    in_json = run("show", tmp_path / "m", "--json")
    assert in_json.exit_code == 0, in_json.stderr
    assert json.loads(in_json.stdout)["metadata"] == {"fit": fit}


def test_json_has_no_infinities() -> None:
    report = {"a": [1.5, float("inf")], "b": {"c": float("nan"), "d": "φ", "e": True}}
    assert json.loads(reports.json_text(report)) == {"a": [1.5, None], "b": {"c": None, "d": "φ", "e": True}}
    assert reports.json_text(report).isascii()


@pytest.mark.parametrize("columns", ["1", "15", "40"])
def test_numbers_and_names_are_whole_where_the_terminal_is_narrow(
    columns: str, states_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    fitted = run("fit", states_file, "-o", tmp_path / "m", "--alpha", "0.1")
    assert fitted.exit_code == 0, fitted.stderr
    assert str(tmp_path / "m") in fitted.stdout
    path = run("path", states_file, "--points", 2, "--ratio", 0.01)
    shown = run("show", tmp_path / "m")
    for result in (fitted, path, shown):
        assert result.exit_code == 0, result.stderr
        assert "…" not in result.stdout + result.stderr
        assert all("\n" not in line for line in result.stdout.splitlines())
    assert "6 of 6 rows" in fitted.stderr
    models = json.loads(run("path", states_file, "--points", 2, "--ratio", 0.01, "--json").stdout)["models"]
    for one in models:
        assert any(
            f"{one['misfit']:.2e}" in line and f"{one['alpha']:.4g}" in line for line in path.stdout.splitlines()
        )


@pytest.mark.slow
def test_output_that_nobody_takes_is_no_traceback(tmp_path: Path) -> None:
    small_model().save(tmp_path / "m")
    np.savez(tmp_path / "u.npz", inputs=np.ones((3, 1)))
    program = "import sys, simjax.app; sys.exit(simjax.app.main())"
    for arguments in (["show", tmp_path / "m"], ["predict", tmp_path / "m", tmp_path / "u.npz"]):
        words = " ".join(f"'{word}'" for word in (sys.executable, "-c", program, *arguments))
        full = subprocess.run(["sh", "-c", f"{words} > /dev/full"], capture_output=True, text=True)
        assert (full.returncode, full.stderr) == (2, "Error: [Errno 28] No space left on device\n")
        closed = subprocess.run(["sh", "-c", f"{words} >&-"], capture_output=True, text=True)
        assert (closed.returncode, closed.stderr) == (0, "")


def test_outputs_do_not_replace_their_inputs(tmp_path: Path) -> None:
    small_model().save(tmp_path / "m")
    np.savez(tmp_path / "u.npz", inputs=np.ones((3, 1)))
    (tmp_path / "link.npz").symlink_to("u.npz")
    before = (tmp_path / "u.npz").read_bytes()
    result = run("predict", tmp_path / "m", tmp_path / "u.npz", "-o", tmp_path / "link.npz", "--force")
    assert (result.exit_code, "is what the command reads, and would be lost" in result.stderr) == (2, True)
    assert (tmp_path / "u.npz").read_bytes() == before


@pytest.mark.parametrize("place", ["file", "dangling", "pipe"])
def test_what_is_no_folder_is_not_taken_for_one(place: str, states_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for arguments in (["path", states_file, "--points", 2], ["demo", "--quick"]):
        result = run(*arguments, "-o", tmp_path / place)
        assert result.exit_code == 2
        assert result.stderr.endswith(f"Error: {tmp_path / place} is not a folder; give another name.\n")
