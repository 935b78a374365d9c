"""What a terminal shows: tables on standard output; progress, warnings and errors on standard error.

The only module that prints. Names of files and other people's words are shown as they are: no markup, no emoji codes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simjax._extras import needs
from simjax.app import interrupts
from simjax.app.observer import Observer
from simjax.app.reports import json_text

with needs("cli", "rich", "the command simjax"):
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as ProgressBars
    from rich.table import Table
    from rich.text import Text

if TYPE_CHECKING:
    from simjax.app.demo import DemoReport
    from simjax.rows.progress import Progress
    from simjax.rows.verify import Verification


class _Terminal(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # what to do about it is for the command to say


# Tables are as wide as what is in them, whatever the terminal: rich would cut numbers and names of files. Bars that are
# drawn over one another have to fit.
_UNCUT = 100_000
_plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
_out = _Terminal(width=_UNCUT, **_plain)
_err = _Terminal(stderr=True, width=None if sys.stderr is not None and sys.stderr.isatty() else _UNCUT, **_plain)


# ---- words -------------------------------------------------------------------------------------------------


def say_error(message: object) -> None:
    """One line on standard error."""
    _say("Error:", "bold red", message)


def say_warning(message: object) -> None:
    """One line on standard error."""
    _say("Warning:", "bold yellow", message)


def say_interrupted(saved: Sequence[Path]) -> None:
    """One line on standard error: what there is to show for it."""
    head, _, rest = interrupts.NOTHING_SAVED.partition(" ")
    _say(head, "bold yellow", f"saved: {', '.join(map(str, saved))}." if saved else rest)


def say_not_certified(rest: str) -> None:
    """One line on standard error."""
    _say("Not every row is certified.", "bold yellow", rest)


def _say(head: str, style: str, rest: object) -> None:
    _err.print(Text.assemble((head, style), " ", str(rest)), soft_wrap=True)


# ---- progress ----------------------------------------------------------------------------------------------


class Display(Observer):
    """Stages as progress bars on standard error.

    Args:
      saved: files that are written are added to it.
    """

    def __init__(self, saved: list[Path]) -> None:
        self._saved = saved
        self._bars = ProgressBars(
            SpinnerColumn(finished_text=Text("✓", style="green")),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=_err,
        )
        self._task: Any = None

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._finish()
        self._bars.stop()

    def stage(self, title: str) -> None:
        interrupts.check()
        self._finish()
        self._task = self._bars.add_task(title, total=None, note="")

    def epoch(self, epoch: int, epochs: int, loss: float, accuracy: float) -> None:
        interrupts.check()
        note = f"loss {loss:.3f}, accuracy {_percent(accuracy)}"
        self._bars.update(self._task, total=epochs, completed=epoch, note=note)

    def rows(self, progress: Progress) -> None:
        interrupts.check()
        note = f"{progress.solved} of {progress.rows} rows, worst gap {progress.worst_gap:.0e}"
        self._bars.update(self._task, total=progress.rows, completed=progress.solved, note=note)

    def written(self, file: Path) -> None:
        self._saved.append(file)

    def _finish(self) -> None:
        """Stops the stage's clock; a stage without steps counts as one."""
        if self._task is not None:
            task = next(task for task in self._bars.tasks if task.id == self._task)
            if task.total is None:
                self._bars.update(self._task, total=1, completed=1)
            self._bars.stop_task(self._task)
            self._task = None


# ---- tables ------------------------------------------------------------------------------------------------


def print_json(report: Mapping[str, Any]) -> None:
    """The report, and nothing else, on standard output."""
    print(json_text(report), flush=True)


def print_text(text: str) -> None:
    """Lines as they are, on standard output."""
    print(text, flush=True)


def print_numbers(rows: np.ndarray) -> None:
    """A line for each row on standard output, in digits enough to read the same numbers again; commas between them."""
    print("\n".join(",".join(map(repr, row)) for row in rows.tolist()), flush=True)


def print_fit(title: str, report: Mapping[str, Any]) -> None:
    """What `fit_report` says."""
    sparsity = report["sparsity"]
    pairs = {
        **_rows(report),
        "nonzeros": f"{report['nonzeros']:,}",
        **({} if sparsity is None else {"sparsity": f"{_percent(sparsity)} fewer than the baseline"}),
        "well-posedness": f"‖A‖∞ = {report['well_posedness']:.6g}",
        **({} if report["seconds"] is None else {"seconds": f"{report['seconds']:.1f}"}),
        "saved as": report["model"],
    }
    _print_pairs(title, pairs)


def print_shard(title: str, report: Mapping[str, Any]) -> None:
    """What `shard_report` says."""
    first, rows = report["first_row"], report["rows"]
    pairs = {
        "numbers": f"{first} to {first + rows - 1}",
        **_rows(report),
        "seconds": f"{report['seconds']:.1f}",
        "kept in": report["checkpoint"],
    }
    _print_pairs(title, pairs)


def _rows(report: Mapping[str, Any]) -> dict[str, str]:
    return {
        "rows": ", ".join(f"{count} {status}" for status, count in report["status"].items()),
        "worst relative gap": _gap(report["worst_relative_gap"]),
        "worst infeasibility": _gap(report["worst_infeasibility"]),
    }


def print_evaluation(title: str, report: Mapping[str, Any]) -> None:
    """Accuracy on the samples, how far from a network's outputs, nonzeros, well-posedness."""
    pairs = {"samples": f"{report['samples']:,}"}
    if "accuracy" in report:
        pairs["accuracy"] = _percent(report["accuracy"])
    if "relative_error" in report:
        pairs["error of the outputs"] = f"{report['relative_error']:.3g}, relative"
    if "agreement" in report:
        pairs["same class as the outputs"] = _percent(report["agreement"])
    pairs["nonzeros"] = f"{report['nonzeros']:,}"
    pairs["well-posedness"] = f"‖A‖∞ = {report['well_posedness']:.6g}"
    _print_pairs(title, pairs)


def print_prediction(title: str, report: Mapping[str, Any]) -> None:
    """How many samples, and where their outputs are."""
    pairs = {"samples": f"{report['samples']:,}", "outputs": f"{report['q']:,} a sample", "saved as": report["outputs"]}
    _print_pairs(title, pairs)


def print_path(title: str, report: Mapping[str, Any], saved: str | None) -> None:
    """What `path_report` says, a line for each model, numbered as the files are."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("model", "alpha", "nonzeros", "sparsity", "misfit", "worst gap", "rows certified"):
        table.add_column(column, justify="right")
    for number, one in enumerate(report["models"]):
        certified = f"{one['rows_certified']} of {report['rows']}"
        share = "" if one["sparsity"] is None else _percent(one["sparsity"])
        cells = (f"{one['alpha']:.4g}", f"{one['nonzeros']:,}", share, f"{one['misfit']:.2e}")
        table.add_row(str(number), *cells, _gap(one["worst_relative_gap"]), certified)
    _print_table(title, table)
    if saved is not None:
        _out.print(f"  saved in {saved}")


def print_model(title: str, report: Mapping[str, Any]) -> None:
    """What `model_report` says."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("block")
    for column in ("shape", "nonzeros", "share"):
        table.add_column(column, justify="right")
    for block, about in report["blocks"].items():
        share = about["nonzeros"] / int(np.prod(about["shape"]))
        shape = "×".join(map(str, about["shape"]))
        table.add_row(block, shape, f"{about['nonzeros']:,}", _percent(share))
    _print_table(title, table)
    pairs = {
        "activation": report["activation"],
        "storage": report["storage"],
        "well-posedness": f"‖A‖∞ = {report['well_posedness']:.6g}",
        "Perron eigenvalue": f"λ(|A|) = {report['perron_eigenvalue']:.6g}",
        **_fit_settings(report["metadata"]),
    }
    _print_pairs(None, pairs)


def _fit_settings(metadata: Mapping[str, Any]) -> dict[str, str]:
    """How the model was fitted, if it says so; what is called "fit" may as well be somebody's note."""
    fitted = metadata.get("fit")
    if isinstance(fitted, Mapping):
        return {f"fit: {key}": str(value) for key, value in fitted.items()}
    return {} if fitted is None else {"fit": str(fitted)}


def print_doctor(report: Mapping[str, Any]) -> None:
    """What `doctor_report` says, a line for each; reasons are not cut."""
    pairs = {
        "simjax": report["simjax"],
        "Python": f"{report['python']}, {report['platform']}",
        **{f"  {name}": version or "not installed" for name, version in report["packages"].items()},
        "devices": ", ".join(report["devices"]),
        'engine "auto"': report["engine"]["description"],
        "cores": str(report["cores"]),
        "memory left": f"{report['memory_bytes'] / 2**30:.1f} GiB",
        **{f"oracle {name}": found["reason"] or "available" for name, found in report["oracles"].items()},
    }
    width = max(map(len, pairs))
    for name, value in pairs.items():
        _out.print(f"{name:<{width}}  {value}")


def print_demo(report: DemoReport) -> None:
    """Baseline beside implicit model, the path, and the files written."""
    results = report.results
    baseline, model, rows = results["baseline"], results["model"], results["rows"]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("baseline", "implicit model"):
        table.add_column(column, justify="right")
    table.add_row("test accuracy", _percent(baseline["test_accuracy"]), _percent(model["test_accuracy"]))
    table.add_row("nonzeros", f"{baseline['nonzeros']:,}", f"{model['nonzeros']:,}")
    table.add_row("sparsity", "", _percent(model["sparsity"]))
    table.add_row("‖A‖∞", "", f"{model['well_posedness']:.6g}")
    table.add_row("rows certified", "", f"{rows['certified']} of {rows['total']}")
    table.add_row("worst relative gap", "", _gap(rows["worst_relative_gap"]))
    table.add_row("seconds to solve", "", f"{rows['seconds']:.1f}")
    _print_table(f"{results['dataset']}, {results['samples']:,} samples", table)
    path = Table(box=box.SIMPLE_HEAD)
    for column in ("alpha", "sparsity", "test accuracy", "rows certified"):
        path.add_column(column, justify="right")
    for point in report.path:
        path.add_row(
            f"{point.alpha:g}",
            _percent(point.sparsity),
            _percent(point.accuracy),
            f"{point.rows_certified} of {rows['total']}",
        )
    _print_table("path of alphas", path)
    for name, file in report.files.items():
        _out.print(f"  {name.replace('_', ' '):<10} {file}")


def print_verification(found: Verification) -> None:
    """Row by row: what was claimed, what the oracle found, whether they agree."""
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("row", "objective", found.oracle, "difference", "gap", f"gap of {found.oracle}"):
        table.add_column(title, justify="right")
    table.add_column("agrees")
    for k, number in enumerate(found.rows):
        table.add_row(
            str(number),
            f"{found.objective[k]:.9e}",
            f"{found.oracle_objective[k]:.9e}",
            f"{found.difference[k]:.1e}",
            f"{found.relative_gap[k]:.1e}",
            f"{found.oracle_gap[k]:.1e}",
            "yes" if found.agrees[k] else Text("NO", style="bold red"),
        )
    _print_table(f"{found.rows.size} rows solved again by {found.oracle}", table)


def _print_pairs(title: str | None, pairs: Mapping[str, str]) -> None:
    table = Table(show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="bold")
    table.add_column()
    for name, value in pairs.items():
        table.add_row(name, value)
    _print_table(title, table)


def _print_table(title: str | None, table: Table) -> None:
    if title is not None:
        _out.print(Text(title, style="italic"))
    _out.print(table)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _gap(gap: float | None) -> str:
    return "not finite" if gap is None else f"{gap:.1e}"
