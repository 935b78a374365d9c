"""What a solve's answers depend on, as SHA-256 digests by name: two solves with the same ones are the same solve."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse

from simjax._frames import frame_array, is_frame, is_series
from simjax._version import __version__
from simjax.rows.attempts import Start
from simjax.rows.boxed import box_of, unboxed
from simjax.rows.engines import Engine
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.options import SolveOptions
from simjax.rows.penalties import Penalty, PiecewisePenalty
from simjax.rows.problem import RowProblem, RowSource

# The options that change no answer. Every other field, also one that is added, is part of the fingerprint.
WITHOUT_EFFECT = frozenset({"workers", "progress", "checkpoint", "executor", "shard"})
DIVISION = ("rows", "rows of a block")
_NAMES = {"bound": "constraint", "centring": "fit_intercept"}  # what a user calls the field


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Digests by the name of what they are of, and what can be said of it in a word.

    Attributes:
      digests: SHA-256, hexadecimal.
      words: the values of numbers and names, by the same names; arrays have none.
      arguments: the names of what the user stated of the problem, from which all else of the problem follows.
    """

    digests: dict[str, str]
    words: dict[str, str]
    arguments: frozenset[str] = frozenset()

    @property
    def whole(self) -> str:
        """The digest of all."""
        return digest(self.digests)

    def differences(self, there: Fingerprint) -> list[str]:
        """The names of what differs from another fingerprint, but for what only follows from something named."""
        names = dict.fromkeys([*self.digests, *there.digests])
        found = [name for name in names if self.digests.get(name) != there.digests.get(name)]
        reasons = {"design": self.arguments, "rows of a block": {"rows", "max_memory"}}
        return [name for name in found if not set(found) & set(reasons.get(name, ()))]

    def told(self, name: str, there: Fingerprint) -> str:
        """A difference in words: its name, with the values where they have words."""
        words = self.words.get(name), there.words.get(name)
        return name if None in words else f"{name} ({words[1]} there, {words[0]} here)"


def fingerprint(
    problem: RowProblem | RowSource,
    options: SolveOptions,
    engine: Engine,
    block: int,
    arguments: Mapping[str, Any],
) -> Fingerprint:
    """All that the answers follow from and that all blocks share: the options, the design, what the user stated.

    Args:
      block: how many rows are solved together.
      arguments: what the user stated of the problem, by name.
    """
    values: dict[str, Any] = {"simjax version": __version__, **dict(zip(DIVISION, (problem.count, block)))}
    for field in dataclasses.fields(options):
        if field.name not in WITHOUT_EFFECT:
            values[field.name] = getattr(options, field.name)
    values["engine"], values["mesh"] = engine.name, _mesh_in_words(options.mesh)
    stated = {name: _plain(value) for name, value in arguments.items()}
    values |= {"matching": problem.matching, **stated, "design": problem.design}
    digests = {name: digest(value) for name, value in values.items()}
    words = {
        name: str(value) for name, value in values.items() if value is None or isinstance(value, str | int | float)
    }
    return Fingerprint(digests, words, frozenset(stated))


def fingerprint_of_rows(rows: RowProblem, start: Start | None) -> dict[str, str]:
    """Digests of what the rows of a block have of their own, by the names that the user knows."""
    box = box_of(rows.penalty)
    names = {field.name for field in dataclasses.fields(rows)} - {"design", "matching"}  # which all rows share
    own = {name: getattr(rows, name) for name in sorted(names)}
    if box is not None:
        own |= {"penalty": box.base, "bound": (rows.bound, box.lower, box.upper)}
    return {_NAMES.get(name, name): digest(value) for name, value in {**own, "start": start}.items()}


def refuse_own_penalty(penalty: Penalty) -> None:
    """There is no fingerprint with a penalty of the user's own: what its code does cannot be told.

    Raises:
      ValueError: for such a one.
    """
    penalty = unboxed(penalty)
    if not isinstance(penalty, PiecewisePenalty | GroupPenalty):
        raise ValueError(
            f"checkpoint cannot be used with a penalty of your own, {type(penalty).__name__}: whether its code is that "
            "of the run before cannot be told. Use one of simjax's penalties, or no checkpoint."
        )


def _plain(argument: Any) -> Any:
    """An argument as a number, a string, an array or what else has a digest; otherwise the name of its type."""
    if argument is None or isinstance(argument, bool | str):
        return argument
    if isinstance(argument, Mapping):
        return {name: _plain(value) for name, value in argument.items()}
    if dataclasses.is_dataclass(argument):
        fields = {field.name: _plain(getattr(argument, field.name)) for field in dataclasses.fields(argument)}
        return {type(argument).__name__: fields}
    try:
        array = np.asarray(argument)
    except Exception:  # anyone's __array__ runs here
        array = np.asarray(None)
    if array.dtype.hasobject or array.dtype.kind == "U":
        return [_plain(entry) for entry in argument] if isinstance(argument, tuple | list) else type(argument).__name__
    return float(array) if array.ndim == 0 and array.dtype.kind in "fiu" else array


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
    elif is_frame(value) or is_series(value):
        yield from _pieces(frame_array("frame", value))
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
