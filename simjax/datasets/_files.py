"""Finding, downloading and checking the files of a data set."""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.request
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from simjax._files import atomic_file

SYSTEM_FOLDER = Path("/usr/share/datasets")
_TIMEOUT = 60.0  # seconds without an answer from the server


def folders(name: str) -> list[Path]:
    """Where the files of the data set of that name may be, the first to be looked in first.

    $SIMJAX_DATA_DIR and its folder of that name, the system's folder, the user's cache.
    """
    chosen = os.environ.get("SIMJAX_DATA_DIR")
    own = [Path(chosen), Path(chosen) / name] if chosen else []
    return [*own, SYSTEM_FOLDER / name, cache_folder(name)]


def cache_folder(*names: str) -> Path:
    """The user's cache of this package, or a folder in it: that of a data set's name keeps its downloads."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").joinpath("simjax", *names)


def find_folder(name: str, files: Iterable[str]) -> Path | None:
    """The first of `folders` that has all these files, or None."""
    wanted = tuple(files)
    for folder in folders(name):
        if all((folder / file).is_file() for file in wanted):
            return folder
    return None


def download(url: str, target: Path, check: Callable[[bytes], object]) -> None:
    """Keep what is at `url` as `target`, unless `check` raises.

    Raises:
      OSError: no network, server trouble, an unwritable folder.
    """
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
        contents = response.read()
    check(contents)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target, overwrite=True) as file:
        file.write(contents)


def not_found(
    title: str, name: str, files: Iterable[str], url: str, error: OSError, hint: str = ""
) -> FileNotFoundError:
    """The error that says which files to put where; to be raised from `error`, why there was no download."""
    places = ", ".join(str(place) for place in folders(name))
    return FileNotFoundError(
        f"{title} is not on this machine and could not be downloaded from {url} ({error}). Put {', '.join(files)} "
        f"into one of {places}, or name their folder in $SIMJAX_DATA_DIR{hint}."
    )


def verified(contents: bytes, checksum: str, source: object, what: str = "") -> bytes:
    """The contents, if their sha256 is `checksum`; `what` they are of the source, e.g. "its contents"."""
    found = hashlib.sha256(contents).hexdigest()
    if found != checksum:
        of = f" of {what}" if what else ""
        raise ValueError(f"{source} is not the official file: sha256{of} is {found}, not {checksum}.")
    return contents


def gunzipped(packed: bytes, checksum: str, source: object) -> bytes:
    """The contents of a gzip file, if they are what the checksum says."""
    try:
        contents = gzip.decompress(packed)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{source} is not a whole gzip file: {error}") from error
    return verified(contents, checksum, source, "its contents")
