"""What a solve's answers depend on, as SHA-256 digests by name: two solves with the same ones are the same solve."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse

from simjax._version import __version__
from simjax.rows.attempts import Start
from simjax.rows.engines import Engine
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.options import SolveOptions
from simjax.rows.penalties import PiecewisePenalty
from simjax.rows.problem import RowProblem, RowSource

_ROWS = 1024  # that are looked at at once, whatever the blocks are in which they are solved
# The options that change no answer. Every other field, also one that is added, is part of the fingerprint.
WITHOUT_EFFECT = frozenset({"workers", "progress", "checkpoint", "executor"})
_NAMES = {"bound": "constraint", "centring": "fit_intercept"}  # what a user calls the field


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Digests by the name of what they are of, and what can be said of it in a word.

    Attributes:
      digests: SHA-256, hexadecimal.
      words: the values of numbers and names, by the same names; arrays have none.
    """

    digests: dict[str, str]
    words: dict[str, str]

    @property
    def whole(self) -> str:
        """The digest of all."""
        return digest(self.digests)

    def differences(self, there: Fingerprint) -> list[str]:
        """What differs from another fingerprint, in words."""
        found = []
        for name in dict.fromkeys([*self.digests, *there.digests]):
            if self.digests.get(name) != there.digests.get(name):
                words = self.words.get(name), there.words.get(name)
                found.append(f"{name}" if None in words else f"{name} ({words[1]} there, {words[0]} here)")
        return found


def fingerprint(
    problem: RowProblem | RowSource, options: SolveOptions, engine: Engine, start: Start | None, block: int
) -> Fingerprint:
    """All that the answers follow from: every field of the problem and of the options, the start, and the blocks.

    Args:
      block: how many rows are solved together.

    Raises:
      ValueError: for a penalty of the user's own: what its code does cannot be told.
    """
    values: dict[str, Any] = {"simjax version": __version__, "rows": problem.count, "rows of a block": block}
    for field in dataclasses.fields(options):
        if field.name not in WITHOUT_EFFECT:
            values[field.name] = getattr(options, field.name)
    values["engine"], values["mesh"] = engine.name, _mesh_in_words(options.mesh)
    values["design"], values["start"] = problem.design, start
    digests = {name: digest(value) for name, value in values.items()}
    words = {
        name: str(value) for name, value in values.items() if value is None or isinstance(value, str | int | float)
    }
    return Fingerprint(digests | _digests_of_rows(problem), words | {"matching": problem.matching})


def _digests_of_rows(problem: RowProblem | RowSource) -> dict[str, str]:
    """Of every field of the rows but the design; rows that are made when they are asked for are never all there."""
    names = [field.name for field in dataclasses.fields(RowProblem) if field.name != "design"]
    sums = {name: hashlib.sha256() for name in names}
    for first in range(0, problem.count, _ROWS):
        part = problem.take(np.arange(first, min(first + _ROWS, problem.count)))
        if not isinstance(part.penalty, PiecewisePenalty | GroupPenalty):
            raise ValueError(
                f"checkpoint cannot be used with a penalty of your own, {type(part.penalty).__name__}: whether its "
                "code is that of the run before cannot be told. Use one of simjax's penalties, or no checkpoint."
            )
        for name in names:
            sums[name].update(bytes.fromhex(digest(getattr(part, name))))
    return {_NAMES.get(name, name): total.hexdigest() for name, total in sums.items()}


def _mesh_in_words(mesh: Any) -> str | None:
    if mesh is None:
        return None
    kinds = sorted({f"{device.platform} {device.device_kind}" for device in mesh.devices.flat})
    return f"{dict(mesh.shape)} of {', '.join(kinds)}"


def digest(value: Any) -> str:
    """SHA-256 of a value made of arrays, numbers, strings, containers and dataclasses.

    Raises:
      TypeError: for anything else.
    """
    total = hashlib.sha256()
    for piece in _pieces(value):
        total.update(piece)
    return total.hexdigest()


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    """The bytes that tell a value from every other one."""
    if value is None or isinstance(value, str | bool | int | float):
        text = repr(value).encode()
        yield f"{type(value).__name__} {len(text)} ".encode()
        yield text
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _pieces({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)} ".encode()
        for key, entry in value.items():
            yield from _pieces(key)
            yield from _pieces(entry)
    elif isinstance(value, tuple | list):
        yield f"sequence {len(value)} ".encode()
        for entry in value:
            yield from _pieces(entry)
    elif scipy.sparse.issparse(value):
        given: Any = value
        entries = given.tocsr()
        yield from _pieces({"sparse": entries.shape, "data": entries.data})
        yield from _pieces([entries.indices.astype(np.int64), entries.indptr.astype(np.int64)])
    elif hasattr(value, "__array__"):
        array = np.ascontiguousarray(value)
        if array.dtype.hasobject:
            raise TypeError(f"an array of dtype {array.dtype} has no fingerprint.")
        yield f"array {array.dtype.str} {np.shape(value)} ".encode()
        yield array.reshape(-1).view(np.uint8).data
    else:
        raise TypeError(f"{type(value).__name__} has no fingerprint.")
