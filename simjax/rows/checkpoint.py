"""A folder of finished blocks of rows, from which a solve that was stopped goes on.

`checkpoint.json` says of which problem the blocks are; each block is one safetensors file with the digest of its
contents. All files appear whole or not at all, so that the folder can be gone on from whenever the process ended.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from simjax._checks import positive_integer
from simjax._files import atomic_file, read_safetensors, usable, write_safetensors
from simjax._version import __version__
from simjax.rows.blocks import BlockAnswers
from simjax.rows.certificate import Certificate
from simjax.rows.fingerprint import DIVISION, Fingerprint, digest
from simjax.rows.history import History
from simjax.rows.status import Status

_MARKER, _VERSION = "simjax-checkpoint", 2
_BLOCK_MARKER = "simjax-checkpoint-block"
_ABOUT = "checkpoint.json"
_STATUSES = [str(status) for status in Status]
_COUNTS = ("passes", "newton_steps", "polished")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Whose solve it is, for its checkpoint.

    Attributes:
      arguments: what the user stated of the problem, by name: so a difference is named, and shards agree in more than
        the rows that each of them has.
      about: of JSON; kept with the blocks, for who makes something of them without the caller.
    """

    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The finished blocks of one solve.

    Attributes:
      folder: where they are.
      fingerprint: of the problem and the options.
      rows: how many rows there are.
      block: how many of them a block has; the last one may have fewer.
      about: see `Origin`, with "sparse": whether all weights together are kept as CSR.
    """

    folder: Path
    fingerprint: Fingerprint
    rows: int
    block: int
    about: Mapping[str, Any]

    @property
    def count(self) -> int:
        """How many blocks there are when all are finished."""
        return -(-self.rows // self.block)

    def begin(self, numbers: Iterable[int], digests: Callable[[int], Mapping[str, str]]) -> None:
        """Make the folder, or compare it with what it shall be gone on with.

        Args:
          numbers: of the blocks that are to be had.
          digests: of what the rows of a block have of their own, see `fingerprint_of_rows`.

        Raises:
          FileExistsError: the folder holds other things than a checkpoint.
          NotADirectoryError: it is a file.
          OSError: it cannot be written.
          ValueError: it is the checkpoint of another problem or of other options; the message says what differs.
        """
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"checkpoint must be a folder, and {folder} is a file.")
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / _ABOUT).exists():
            differences = self._differences(numbers, digests)
            if differences:
                raise ValueError(
                    f"checkpoint {folder} is that of another problem or of other options, and is left as it is; what "
                    f"differs: {', '.join(differences)}. Give the same arguments, or another folder."
                )
        elif any(not file.name.endswith(".part") for file in folder.iterdir()):
            raise FileExistsError(f"checkpoint must be a new or empty folder or hold a checkpoint; {folder} does not.")
        else:
            contents = {
                "format": _MARKER,
                "format_version": _VERSION,
                "simjax_version": __version__,
                "rows": self.rows,
                "rows_of_a_block": self.block,
                "sha256": self.fingerprint.digests,
                "words": self.fingerprint.words,
                "about": self.about,
            }
            # Whoever else has the same folder writes the same.
            with atomic_file(folder / _ABOUT, overwrite=True) as file:
                file.write(json.dumps(contents, indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """The checkpoint that a folder says it is.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it is damaged, or of another version.
        """
        path = folder / _ABOUT
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no checkpoint: there is no {path.name} in it.")
        with usable(path, "checkpoint"):
            contents = json.loads(path.read_text(encoding="utf-8"))
            if contents["format"] != _MARKER or contents["format_version"] != _VERSION:
                raise ValueError(
                    f"its format is {contents['format']!r} {contents['format_version']!r}, not {_MARKER!r} {_VERSION}"
                )
            mark = Fingerprint(dict(contents["sha256"]), dict(contents["words"]))
            rows, block = (
                positive_integer("rows", contents["rows"]),
                positive_integer("rows", contents["rows_of_a_block"]),
            )
            return cls(folder, mark, rows, block, dict(contents["about"]))

    def _differences(self, numbers: Iterable[int], digests: Callable[[int], Mapping[str, str]]) -> list[str]:
        """In words; of the rows, those of the first block that is there and differs."""
        there, mark = Checkpoint.read(self.folder), self.fingerprint
        names = mark.differences(there.fingerprint)
        found = [mark.told(name, there.fingerprint) for name in names]
        divided = [name for name in DIVISION if mark.digests[name] != there.fingerprint.digests.get(name)]
        if mark.arguments.intersection(names) or divided:
            return found  # from which what the rows have follows, or these are not the same rows
        for number in numbers:
            kept = self._digests(number)
            if kept is not None:
                mine = digests(number)
                other = [name for name in dict.fromkeys([*mine, *kept]) if mine.get(name) != kept.get(name)]
                if other:
                    last = min((number + 1) * self.block, self.rows) - 1
                    return [*found, f"{' and '.join(other)} of rows {number * self.block} to {last}"]
        return found

    def _digests(self, number: int) -> dict[str, str] | None:
        """Of the rows of a block that is there and readable; otherwise None."""
        try:
            _, header = read_safetensors(self._path(number), _BLOCK_MARKER, _VERSION, header_only=True)
            return dict(json.loads(header["rows"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def load(self, number: int) -> BlockAnswers | None:
        """The answers of a block, or None where it is not there or damaged.

        Raises:
          ValueError: it is whole, and a block of another checkpoint.
        """
        path = self._path(number)
        if not path.exists():
            return None
        try:
            tensors, header = read_safetensors(path, _BLOCK_MARKER, _VERSION)
        except ValueError:  # truncated
            return None
        if header.get("sha256") != digest(dict(sorted(tensors.items()))):
            return None
        if (header.get("checkpoint"), header.get("block")) != (self.fingerprint.whole, str(number)):
            raise ValueError(f"{path} belongs to another checkpoint and is left as it is: take it out of the folder.")
        return _answers(tensors)

    def save(self, number: int, answers: BlockAnswers, digests: Mapping[str, str]) -> BlockAnswers:
        """Write the answers of a block; they come back as `load` gives them.

        Args:
          digests: of what its rows have of their own, see `fingerprint_of_rows`.

        Raises:
          OSError: there is no room, or the folder cannot be written; the blocks before are as they were.
        """
        tensors = _tensors(answers)
        header = {
            "checkpoint": self.fingerprint.whole,
            "block": str(number),
            "rows": json.dumps(digests),
            "sha256": digest(dict(sorted(tensors.items()))),
        }
        path = self._path(number)
        try:
            write_safetensors(path, tensors, header, marker=_BLOCK_MARKER, version=_VERSION, overwrite=True)
        except OSError as error:
            raise OSError(
                error.errno,
                f"block {number + 1} of {self.count} could not be written ({error.strerror or error}); the finished "
                "blocks are whole, and the same call goes on from them once it can",
                str(path),
            ) from error
        return _answers(tensors)

    def _path(self, number: int) -> Path:
        return self.folder / f"block-{number:06d}.safetensors"


def _tensors(answers: BlockAnswers) -> dict[str, np.ndarray]:
    weights = scipy.sparse.csr_array(answers.weights)
    tensors = {
        "weights.data": weights.data,
        "weights.indices": weights.indices.astype(np.int64),
        "weights.indptr": weights.indptr.astype(np.int64),
        "weights.shape": np.array(weights.shape, dtype=np.int64),
        "status": np.array([_STATUSES.index(status) for status in answers.status], dtype=np.uint8),
    }
    tensors |= {name: getattr(answers, name) for name in _COUNTS}
    if answers.intercept is not None:
        tensors["intercept"] = answers.intercept
    for field in dataclasses.fields(Certificate):
        tensors[f"certificate.{field.name}"] = getattr(answers.certificate, field.name)
    if answers.history is not None:
        tensors |= {"history.gap": answers.history.gap, "history.passes": answers.history.passes}
    return tensors


def _answers(tensors: dict[str, np.ndarray]) -> BlockAnswers:
    parts = tensors["weights.data"], tensors["weights.indices"], tensors["weights.indptr"]
    names = [field.name for field in dataclasses.fields(Certificate)]
    return BlockAnswers(
        weights=scipy.sparse.csr_array(parts, shape=tuple(tensors["weights.shape"].tolist())),
        certificate=Certificate(*(tensors[f"certificate.{name}"] for name in names)),
        status=np.array(_STATUSES, dtype="<U13")[tensors["status"]],
        intercept=tensors.get("intercept"),
        **{name: tensors[name] for name in _COUNTS},
        history=History(tensors["history.gap"], tensors["history.passes"]) if "history.gap" in tensors else None,
    )
