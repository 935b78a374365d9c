"""A folder of finished blocks of rows, from which a solve that was stopped goes on.

`checkpoint.json` says of which problem the blocks are; each block is one safetensors file with the digest of its
contents. All files appear whole or not at all, so that the folder can be gone on from whenever the process ended.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import scipy.sparse

from simjax._files import atomic_file, read_safetensors, usable, write_safetensors
from simjax._version import __version__
from simjax.rows.blocks import BlockAnswers
from simjax.rows.certificate import Certificate
from simjax.rows.fingerprint import Fingerprint, digest
from simjax.rows.history import History
from simjax.rows.status import Status

_MARKER, _VERSION = "simjax-checkpoint", 1
_BLOCK_MARKER = "simjax-checkpoint-block"
_ABOUT = "checkpoint.json"
_STATUSES = [str(status) for status in Status]
_COUNTS = ("passes", "newton_steps", "polished")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The finished blocks of one solve.

    Attributes:
      folder: where they are.
      fingerprint: of the problem and the options.
      count: how many blocks there are when all are finished.
    """

    folder: Path
    fingerprint: Fingerprint
    count: int

    @classmethod
    def open(cls, folder: Path, fingerprint: Fingerprint, count: int) -> Checkpoint:
        """The checkpoint in a folder, which is made where there is none.

        Raises:
          FileExistsError: the folder holds other things than a checkpoint.
          NotADirectoryError: it is a file.
          OSError: it cannot be written.
          ValueError: it is the checkpoint of another problem or of other options; the message says what differs.
        """
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"checkpoint must be a folder, and {folder} is a file.")
        folder.mkdir(parents=True, exist_ok=True)
        about = folder / _ABOUT
        if about.exists():
            differences = fingerprint.differences(_read_about(about))
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
                "blocks": count,
                "sha256": fingerprint.digests,
                "words": fingerprint.words,
            }
            # Whoever else has the same folder writes the same.
            with atomic_file(about, overwrite=True) as file:
                file.write(json.dumps(contents, indent=1).encode())
        return cls(folder, fingerprint, count)

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

    def save(self, number: int, answers: BlockAnswers) -> BlockAnswers:
        """Write the answers of a block; they come back as `load` gives them.

        Raises:
          OSError: there is no room, or the folder cannot be written; the blocks before are as they were.
        """
        tensors = _tensors(answers)
        header = {
            "checkpoint": self.fingerprint.whole,
            "block": str(number),
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


def _read_about(path: Path) -> Fingerprint:
    with usable(path, "checkpoint"):
        contents = json.loads(path.read_text(encoding="utf-8"))
        if contents["format"] != _MARKER or contents["format_version"] != _VERSION:
            raise ValueError(
                f"its format is {contents['format']!r} {contents['format_version']!r}, not {_MARKER!r} {_VERSION}"
            )
        return Fingerprint(dict(contents["sha256"]), dict(contents["words"]))


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
        **{name: tensors[name] for name in _COUNTS},
        history=History(tensors["history.gap"], tensors["history.passes"]) if "history.gap" in tensors else None,
    )
