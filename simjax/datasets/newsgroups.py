"""20 Newsgroups, from the archive of its split by date."""

from __future__ import annotations

import functools
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from simjax._checks import choice
from simjax._extras import needs
from simjax.datasets import _files
from simjax.datasets._dataset import TextDataset

NEWSGROUPS_URL = "http://qwone.com/~jason/20Newsgroups/20news-bydate.tar.gz"
# The official archive, by the checksum that scikit-learn demands too, and the same messages packed by xz.
NEWSGROUPS_SHA256 = {
    "20news-bydate.tar.gz": "8f1b2514ca22a5ade8fbb9cfa5727df95fa587f4c87b786e15c759fa66d95610",
    "20news-bydate.tar.xz": "747288aabdf61e932252bf9d89f8c3ff43c5c3bc563dd92ff2467a0628f206ee",
}
REMOVABLE = ("headers", "footers", "quotes")
_NAME = "20newsgroups"
_OFFICIAL = "20news-bydate.tar.gz"
_MEMBER = re.compile(r"20news-bydate-(train|test)/([a-z.-]+)/([0-9]+)")


def load_newsgroups(remove: Sequence[str] = ()) -> TextDataset:
    """20 Newsgroups: 11,314 training messages and 7,532 later ones for testing, in 20 classes, as raw texts.

    One of the two archives is looked for in $SIMJAX_DATA_DIR and its folder 20newsgroups, in
    /usr/share/datasets/20newsgroups, and in the user's cache; if it is nowhere, the official one is downloaded into
    the cache. Wherever it comes from, it must have the official checksum. It is read where it lies: nothing is
    unpacked to disk.

    Args:
      remove: which of "headers", "footers" (signatures) and "quotes" to strip, by scikit-learn's rules. Headers
        name the group or its readers: a classifier that sees them does better than its reading deserves.

    Raises:
      FileNotFoundError: the archive is nowhere and could not be downloaded; says which file to put where.
      ValueError: the archive is damaged or not the official one; an unknown part to remove.
      TypeError: remove is no sequence of names.
      ModuleNotFoundError: there is something to remove, and scikit-learn is not installed.

    Examples:
      >>> from simjax import datasets
      >>> if datasets.find_newsgroups():  # otherwise it is downloaded
      ...     data = datasets.load_newsgroups(remove=("headers", "footers", "quotes"))
    """
    strip = _stripping(remove)
    file = find_newsgroups() or _download_newsgroups()
    packed = _files.verified(file.read_bytes(), NEWSGROUPS_SHA256[file.name], file)
    # By group and number: the order is the same from either archive.
    messages = sorted(_messages(packed, file))
    class_names = tuple(sorted({group for _, group, _, _ in messages}))
    index = {group: k for k, group in enumerate(class_names)}

    def part(wanted: str) -> tuple[tuple[str, ...], np.ndarray]:
        mine = [(text, index[group]) for split, group, _, text in messages if split == wanted]
        return tuple(strip(text) for text, _ in mine), np.array([label for _, label in mine], dtype=np.int64)

    (train_texts, train_labels), (test_texts, test_labels) = part("train"), part("test")
    return TextDataset(_NAME, train_texts, train_labels, test_texts, test_labels, class_names)


def find_newsgroups() -> Path | None:
    """The first of the two archives in the first folder that has one, or None; looks at this machine only.

    Examples:
      >>> from simjax import datasets
      >>> archive = datasets.find_newsgroups()  # None where it is nowhere
    """
    candidates = (folder / name for folder in _files.folders(_NAME) for name in NEWSGROUPS_SHA256)
    return next((file for file in candidates if file.is_file()), None)


def _download_newsgroups() -> Path:
    target = _files.cache_folder(_NAME) / _OFFICIAL
    check = functools.partial(_files.verified, checksum=NEWSGROUPS_SHA256[_OFFICIAL], source=NEWSGROUPS_URL)
    try:
        _files.download(NEWSGROUPS_URL, target, check)
    except OSError as error:
        raise _files.not_found("20 Newsgroups", _NAME, [_OFFICIAL], NEWSGROUPS_URL, error) from error
    return target


def _messages(packed: bytes, source: object) -> list[tuple[str, str, int, str]]:
    """Split, group, number and text of every message in the archive; entries that are no messages are passed over."""
    found = []
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:*") as archive:
            for member in archive:
                name = _MEMBER.fullmatch(member.name)
                if name is None or not member.isfile():
                    continue
                contents = archive.extractfile(member)
                assert contents is not None  # for a regular file it never is
                found.append((name[1], name[2], int(name[3]), contents.read().decode("latin-1")))
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{source} is not a whole archive: {error}") from error
    return found


def _stripping(remove: Sequence[str]) -> Callable[[str], str]:
    """The function that strips these parts of a message, in the order of `REMOVABLE` whatever theirs is."""
    if isinstance(remove, str) or not all(isinstance(name, str) for name in remove):
        raise TypeError(f"remove must be a sequence of names, got {remove!r}.")
    for name in remove:
        choice("remove", name, REMOVABLE)
    if not remove:
        return lambda text: text
    with needs("datasets", "scikit-learn", "remove of simjax.datasets.load_newsgroups"):
        from sklearn.datasets import _twenty_newsgroups as rules
    functions = {
        "headers": rules.strip_newsgroup_header,
        "footers": rules.strip_newsgroup_footer,
        "quotes": rules.strip_newsgroup_quoting,
    }
    wanted = [functions[name] for name in REMOVABLE if name in remove]
    return lambda text: functools.reduce(lambda left, function: function(left), wanted, text)
