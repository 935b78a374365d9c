"""Virtual environments of packages that simjax should not live with, and scripts run in them.

They lie in the user's cache, are made once by `make`, and hold what the scripts in `benchmarks/peers/scripts` import.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.common import Unavailable
from simjax._checks import choice
from simjax.datasets._files import cache_folder

_TAIL = 2000  # characters of a failed command's output to show


@dataclasses.dataclass(frozen=True)
class Environment:
    """Packages to install, and those to install without what they list as required."""

    packages: tuple[str, ...]
    alone: tuple[str, ...]


ENVIRONMENTS = {
    # torchidl lists torchvision and sphinx too, which it does not import and which bring another torch.
    "torchidl": Environment(
        ("torch==2.13.0", "cvxpy", "mosek", "numpy", "scipy", "scikit-learn", "matplotlib", "tqdm"),
        ("torchidl==0.0.4",),
    ),
    # celer lists plotting and data sets too.
    "celer": Environment(("numpy", "scipy", "scikit-learn"), ("celer==0.7.4",)),
    "skglm": Environment(("numpy", "scipy", "scikit-learn", "numba"), ("skglm==0.5",)),
    "adelie": Environment(("numpy<2", "scipy", "scikit-learn", "matplotlib", "ipython<9"), ("adelie==1.1.52",)),
}


def folder(name: str) -> Path:
    """Where the environment is, or would be."""
    package = ENVIRONMENTS[choice("name", name, ENVIRONMENTS)].alone[0].replace("==", "-")
    return cache_folder("environments") / f"{package}-python{sys.version_info.major}.{sys.version_info.minor}"


def exists(name: str) -> bool:
    """Whether the environment has been made, completely."""
    return (folder(name) / "complete.json").is_file()


def python(name: str) -> Path:
    """The interpreter of the environment.

    Raises:
      Unavailable: if it has not been made.
    """
    if not exists(name):
        raise Unavailable(f"the environment {name!r} is not in {folder(name)}: benchmarks.sidebyside makes it")
    return folder(name) / "bin" / "python"


def make(name: str) -> None:
    """Make the environment unless it is there: downloads packages, which takes minutes.

    Raises:
      Unavailable: if a package cannot be had.
    """
    if exists(name):
        return
    target, wanted = folder(name), ENVIRONMENTS[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    _command(sys.executable, "-m", "venv", "--clear", str(target))
    pip = (str(target / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install")
    _command(*pip, *wanted.packages)
    _command(*pip, "--no-deps", *wanted.alone)
    (target / "complete.json").write_text(json.dumps(dataclasses.asdict(wanted)))


def _command(*words: str) -> None:
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Unavailable(f"{' '.join(words)} failed: {done.stdout[-_TAIL:]}")


class Output(NamedTuple):
    """What a script wrote: arrays, and facts as JSON values."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


def run_script(
    python: str,
    script: Path,
    problem: Path,
    arrays: dict[str, np.ndarray],
    settings: dict[str, Any],
    *,
    threads: int,
) -> Output:
    """Run `python script PROBLEM INPUT OUTPUT`.

    Args:
      python: the interpreter.
      script: reads INPUT, an npz file with `arrays` and with `settings` as JSON, and writes OUTPUT, an npz file with
        arrays of its own and with `facts` as JSON.
      problem: folder of the saved problem; see `benchmarks.problems.Problem.save`.
      threads: for the linear algebra inside each of its processes.

    Raises:
      RuntimeError: if the script fails, with the end of what it printed.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    # Threads that wait are not to keep a core from those that work: on a busy machine that made torch 20 times slower.
    patient = {"OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory() as temporary:
        given, written, printed = (Path(temporary) / name for name in ("input.npz", "output.npz", "printed"))
        np.savez(given, settings=json.dumps(settings), **arrays)  # type: ignore[arg-type]
        with printed.open("wb") as file:  # a file: what it prints may be long, and needs no reader
            done = subprocess.run(
                [python, str(script), str(problem), str(given), str(written)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **dict.fromkeys(names, str(threads)), **patient},
                cwd=temporary,
            )
        if done.returncode:
            end = printed.read_text(errors="replace")[-_TAIL:]
            raise RuntimeError(f"{script.name} ended with status {done.returncode}: {end}")
        with np.load(written, allow_pickle=False) as output:
            found = {name: output[name] for name in output.files}
    return Output({name: value for name, value in found.items() if name != "facts"}, json.loads(str(found["facts"])))
