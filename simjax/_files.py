"""Files: written whole or not at all, and read with an error that says what is wrong with them.

Two containers, each with a format marker and a format version: safetensors, whose header holds strings, and npz without
pickles, whose array "about" holds a JSON object.
"""

from __future__ import annotations

import json
import os
import stat
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from simjax._version import __version__

_ABOUT = "about"
# Ends of names by which other programs, and people, tell a file's format.
_SUFFIXES = frozenset(
    [
        ".safetensors",
        ".npz",
        ".npy",
        ".pkl",
        ".pickle",
        ".pt",
        ".pth",
        ".h5",
        ".hdf5",
        ".json",
        ".csv",
        ".mat",
        ".onnx",
        ".parquet",
        ".txt",
        ".zip",
        ".gz",
        ".png",
        ".html",
    ]
)
_ZIP = b"PK\x03\x04"
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError)


# ---- writing -----------------------------------------------------------------------------------------------


@contextmanager
def atomic_file(path: str | PathLike[str], overwrite: bool) -> Iterator[BinaryIO]:
    """A binary file to write that appears under `path` only when complete.

    A symbolic link is followed, and stays; a file that is replaced keeps its permissions.

    Raises:
      FileExistsError: `path` exists and `overwrite` is False.
      FileNotFoundError: its folder does not exist.
      IsADirectoryError: `path` is a folder.
      OSError: `path` is neither a file nor free (a device, a pipe), or cannot be written.
    """
    target = _target(path, overwrite)
    temporary = target.with_name(f".{uuid.uuid4().hex}.part")  # not longer for a long name, which has its limit
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or the name could survive a power cut, and the contents not
        mode = _mode(_target(path, overwrite))  # again: something may have appeared meanwhile
        if mode is not None:
            temporary.chmod(stat.S_IMODE(mode))
        temporary.replace(target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder written down, where the system can."""
    if os.name == "nt":  # folders cannot be opened there
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError:  # some network file systems cannot
        pass
    finally:
        os.close(number)


def check_target(path: str | PathLike[str], overwrite: bool, suffix: str | None = None) -> None:
    """Refuses, before a long computation, what `atomic_file` would refuse after it; raises what that raises.

    With a `suffix` also a name that ends as another format's does (ValueError); it may end in no known one at all.

    An empty file is made beside the target and removed again, which says whether the folder can be written.
    """
    if suffix is not None:
        _check_suffix(path, suffix)
    trial = _target(path, overwrite).with_name(f".{uuid.uuid4().hex}.part")
    try:
        trial.open("xb").close()
    finally:
        trial.unlink(missing_ok=True)


def make_folder(path: str | PathLike[str]) -> Path:
    """Makes the folder, and those that it is in, unless it is there.

    Raises:
      NotADirectoryError: something else is there.
      OSError: it cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"{path} is not a folder; give another name.") from None
    return folder


def _check_suffix(path: str | PathLike[str], suffix: str) -> None:
    found = Path(path).suffix.lower()
    if found in _SUFFIXES and found != suffix:
        raise ValueError(f"{path} would hold {suffix[1:]}, whatever its name says: give a name that ends in {suffix}.")


def _target(path: str | PathLike[str], overwrite: bool) -> Path:
    """Where `path` leads, if a file may be written there."""
    target = Path(os.path.realpath(path))
    mode = _mode(target)
    if mode is not None:
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{path} is a folder; give a file name.")
        if not stat.S_ISREG(mode):
            raise OSError(f"{path} is not a regular file, and would be replaced by one.")
        if not overwrite:
            raise FileExistsError(f"{path} exists; choose another name or pass overwrite=True.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {target.parent} does not exist.")
    return target


def _mode(target: Path) -> int | None:
    """Type and permissions of what is there, None where nothing is; other troubles of the name are raised."""
    try:
        return target.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_safetensors(
    path: str | PathLike[str],
    tensors: Mapping[str, np.ndarray],
    header: Mapping[str, str],
    *,
    marker: str,
    version: int,
    overwrite: bool,
) -> None:
    """Writes tensors and header as safetensors, with the format `marker`, its version and simjax's own.

    Raises:
      OSError: as `atomic_file`.
      ValueError: a name that ends as another format's does.
    """
    _check_suffix(path, ".safetensors")
    full = {"format": marker, "format_version": str(version), "simjax_version": __version__, **header}
    contents = safetensors.numpy.save({k: np.asarray(v, order="C") for k, v in tensors.items()}, metadata=full)
    with atomic_file(path, overwrite) as file:
        file.write(contents)


def write_npz(
    path: str | PathLike[str],
    arrays: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
    *,
    marker: str,
    version: int,
    overwrite: bool,
) -> None:
    """Writes arrays as npz and the JSON object `about`, with the format `marker`, its version and simjax's own.

    Raises:
      OSError: as `atomic_file`.
      ValueError: a name that ends as another format's does.
    """
    _check_suffix(path, ".npz")
    full = {"format": marker, "format_version": version, "simjax_version": __version__, **about}
    with atomic_file(path, overwrite) as file:
        np.savez(file, **{_ABOUT: np.array(json.dumps(full)), **arrays})  # type: ignore[arg-type]


# ---- reading -----------------------------------------------------------------------------------------------


def read_safetensors(
    path: str | PathLike[str], marker: str, newest_version: int, *, header_only: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and header of a safetensors file that carries the format `marker`; no tensors with `header_only`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: truncated or foreign, or of a newer version.
    """
    _check_source(path)
    with Path(path).open("rb") as opened:
        if opened.read(4) == _ZIP:
            raise ValueError(
                f"{path} is not a readable safetensors file (truncated or foreign): it is an .npz, as states are."
            )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            names = () if header_only else file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, TypeError, ValueError, AttributeError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file (truncated or foreign): {error}") from error
    if header.get("format") != marker:
        raise ValueError(f"{path} is a safetensors file, but not a {marker}: its format is {header.get('format')!r}.")
    _check_version(path, header.get("format_version"), newest_version)
    return tensors, header


def read_npz(
    path: str | PathLike[str], marker: str, newest_version: int, plain: frozenset[str] = frozenset()
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and the JSON object `about` of an npz file that carries the format `marker`; no pickle is executed.

    A file of anyone's that holds exactly the arrays `plain` is read too; its `about` is empty.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: truncated, pickled or foreign, or of a newer version.
    """
    arrays = read_arrays(path)
    if plain and plain == set(arrays):
        return arrays, {}
    try:
        about = json.loads(str(arrays.pop(_ABOUT)[()]))
    except (KeyError, ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or about.get("format") != marker:
        raise ValueError(
            f"{path} is an .npz file, but not of {marker.replace('-', ' ')}: its format marker is missing."
            + (f" A file of anyone's must hold the arrays {', '.join(sorted(plain))} and no others." if plain else "")
        )
    _check_version(path, about.get("format_version"), newest_version)
    return arrays, about


def read_arrays(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an npz file, whoever wrote it; no pickle is executed.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: truncated, pickled or no npz.
    """
    _check_source(path)
    try:
        with Path(path).open("rb") as file:  # np.load leaves its own handle open when it fails
            _check_zip(file)
            loaded = np.load(file, allow_pickle=False)
            return {name: loaded[name] for name in loaded.files}
    except (*_ZIP_ERRORS, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not an .npz file (truncated, pickled or foreign): {error}") from error


@contextmanager
def usable(path: str | PathLike[str], what: str) -> Iterator[None]:
    """While something is made of a file's contents: whatever does not fit there becomes a ValueError with its name.

    Args:
      path: of the file.
      what: it should be, e.g. "simjax model".
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} is not a usable {what}: {error} is missing.") from error
    except (AttributeError, IndexError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a usable {what}: {error}") from error


def _check_zip(file: BinaryIO) -> None:
    """A ValueError that says what the file is instead of an archive; NumPy would advise to allow pickles."""
    start = file.read(9)
    file.seek(0)
    if start.startswith(b"\x93NUMPY"):
        raise ValueError("it is a single array")
    if not start.startswith(_ZIP):
        raise ValueError("it is a safetensors file, as models are saved" if start[8:] == b"{" else "it is no archive")


def _check_source(path: str | PathLike[str]) -> None:
    if not Path(path).is_file():
        known = Path(path).exists()
        raise FileNotFoundError(f"{path}: {'not a regular file' if known else 'there is no such file'}.")


def _check_version(path: str | PathLike[str], version: object, newest: int) -> None:
    if str(version) not in {str(v) for v in range(1, newest + 1)}:
        raise ValueError(f"{path} has format version {version!r}, but this simjax reads versions up to {newest}.")
