"""Results as values: told in one line, shown as a table in a notebook, compared by identity, copied as they are.

Arrays have no one truth value, so that comparing results field by field would only raise; NumPy forgets on copying and
pickling that an array was read-only.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import scipy.sparse

from simjax._checks import is_traced

T = TypeVar("T", bound=type)


class Unstated(float):
    """A default that can be told from the same number given by the user."""


class Value:
    """Mixin of frozen dataclasses made with eq=False and repr=False."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._told()})"

    def _told(self) -> str:
        """What stands between the brackets of `repr`: one line."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return ", ".join(f"{field.name}={short(getattr(self, field.name))}" for field in fields)

    def __getstate__(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        fields = dict(self.__dict__)
        return fields, tuple(
            name for name, value in fields.items() if not all(a.flags.writeable for a in _arrays(value))
        )

    def __setstate__(self, state: tuple[dict[str, Any], tuple[str, ...]]) -> None:
        fields, locked = state
        for name in locked:
            for array in _arrays(fields[name]):
                array.flags.writeable = False
        self.__dict__.update(fields)


def compared_by_identity(cls: T) -> T:
    """A decorator for a NamedTuple of arrays: as `Value`, == answers and repr is one line."""
    names = cls._fields  # type: ignore[attr-defined]

    def told(self: Any) -> str:
        return f"{cls.__name__}({', '.join(f'{name}={short(getattr(self, name))}' for name in names)})"

    methods = {
        "__eq__": lambda self, other: self is other,
        "__ne__": lambda self, other: self is not other,
        "__hash__": object.__hash__,
        "__repr__": told,
    }
    for name, method in methods.items():
        setattr(cls, name, method)
    return cls


def short(value: Any) -> str:
    """A number as it is, an array by its shape, a long list by its length, anything else as it is told."""
    if isinstance(value, tuple | list) and len(value) > 4:
        return f"<{len(value)} entries>"
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return repr(value)
    if value.shape == () and not is_traced(value):
        return repr(value.item())
    return f"<array {tuple(value.shape)}>"


def html_facts(lines: Sequence[str], indent: int) -> str:
    """Lines of a word and what is to be said of it, which begins at `indent`, as a table; others stand across it."""
    rows = []
    for line in lines:
        word, rest = html.escape(line[:indent].strip()), html.escape(line[indent:].strip())
        if line.startswith("--"):
            rows.append(f'<tr><th colspan="2" style="text-align:left">{html.escape(line.strip("- "))}</th></tr>')
        else:
            rows.append(f'<tr><th style="text-align:left">{word}</th><td style="text-align:left">{rest}</td></tr>')
    return f"<table>{''.join(rows)}</table>"


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as a table."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """Cells as plain text, right-aligned in columns that grow with them; further cells follow as they are."""
    every = [list(header), *map(list, rows)]
    sizes = [max(width, *(len(row[k]) for row in every)) for k, width in enumerate(widths)]
    lines = []
    for row in every:
        aligned = " ".join(cell.rjust(size) for cell, size in zip(row, sizes))
        lines.append("   ".join([aligned, *(cell for cell in row[len(sizes) :] if cell)]))
    return "\n".join(lines)


def _arrays(value: Any) -> list[np.ndarray]:
    """The arrays of NumPy's that a field holds."""
    if isinstance(value, np.ndarray):
        return [value]
    return [value.data, value.indices, value.indptr] if isinstance(value, scipy.sparse.csr_array) else []
