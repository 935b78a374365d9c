"""What every benchmark writes: records as JSON, where and with what they were made, and generated parts of pages."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

import simjax
from simjax._files import atomic_file
from simjax.rows.container import cores

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CODE = ("simjax", "benchmarks", "experiments")  # folders whose code makes records

Record = dict[str, Any]


# --- Files -------------------------------------------------------------------------------------------------------


def read(file: Path) -> list[Record]:
    """The records in a results file; none where there is no such file.

    Raises:
      ValueError: if it is another kind of file.
    """
    if not file.is_file():
        return []
    try:
        return json.loads(file.read_text(encoding="utf-8"))["records"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a file of records: {error!r}") from error


def write(file: Path, records: Sequence[Record]) -> None:
    """Replace a results file by these records."""
    text = json.dumps({"records": list(records)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(file, text)


def merge(file: Path, record: Record, keys: Sequence[str]) -> None:
    """Put a record into a results file, in the place of the one that agrees with it in `keys`, or at the end."""
    records = read(file)
    same = (k for k, other in enumerate(records) if all(other[key] == record[key] for key in keys))
    position = next(same, len(records))
    records[position : position + 1] = [record]
    write(file, records)


def write_text(file: Path, text: str) -> None:
    """Replace a text file, or leave it as it was."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file, overwrite=True) as out:
        out.write(text.encode())


def plain(value: Any) -> Any:
    """`value` in JSON's terms; JSON has no inf and no NaN: they become strings."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# --- Pages -------------------------------------------------------------------------------------------------------


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Put `text` between two markers of a page.

    Raises:
      ValueError: if the page does not have each marker once, in order.
    """
    old = page.read_text(encoding="utf-8")
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise ValueError(f"{page} must have the markers {begin} and {end} once each, in this order.")
    write_text(page, f"{old[: old.index(begin)]}{begin}\n{text.strip()}\n{old[old.index(end) :]}")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in markdown, with a cell of each row for each of the `heads`.

    Raises:
      ValueError: for a row of another length.
    """
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        if len(row) != len(heads):
            raise ValueError(f"rows must have {len(heads)} cells like the heads, got {list(row)}.")
        lines.append(f"| {' | '.join(row)} |")
    return lines


def places(records: Sequence[Record]) -> list[str]:
    """Machines, versions, commits and dates of records, as a list with a line for each combination."""
    lines: dict[str, None] = {}
    for record in records:
        packages = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
        mark = "+" if record["changed_since"] else ""
        lines[
            f"- {record['cores']} cores of {record['cpu']}, device {record['device']}, {packages}, Python "
            f"{record['python']}, commit {(record['commit'] or 'unknown')[:12]}{mark}, {record['date'][:10]}"
            f"{', a quick run' if record.get('quick') else ''}"
        ] = None
    return list(lines)


# --- Where and with what -----------------------------------------------------------------------------------------


def place() -> Record:
    """Where, when and with what a record was made."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "device": str(jax.devices()[0].device_kind),
        "python": platform.python_version(),
        "versions": {"simjax": simjax.__version__, **versions("jax", "flax", "optax", "numpy")},
        **commit(),
        "date": now(),
    }


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def peak_mebibytes() -> float:
    """The most memory this process has had so far.

    Linux carries what `getrusage` tells from the process that started this one; its own is in /proc.
    """
    with contextlib.suppress(OSError):
        for entry in Path("/proc/self/status").read_text().splitlines():
            if entry.startswith("VmHWM:"):
                return float(entry.split()[1]) / 2**10  # kibibytes
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def versions(*packages: str) -> dict[str, str]:
    """The versions of installed packages; simjax says its own, for a source tree may be newer than its installation."""
    own = {"simjax": simjax.__version__}
    return {package: own.get(package) or importlib.metadata.version(package) for package in packages}


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    with contextlib.suppress(OSError):
        for entry in Path("/proc/cpuinfo").read_text().splitlines():
            if entry.startswith("model name"):
                return entry.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> Record:
    """The commit of this checkout, and whether its code differs from it; None for both where there is none."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *(f":(glob){folder}/**/*.py" for folder in CODE))
        return {"commit": git("rev-parse", "HEAD"), "changed_since": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed_since": None}
