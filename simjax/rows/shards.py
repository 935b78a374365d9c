"""Shards: the blocks of a solve shared out over jobs that know nothing of one another but a folder.

Blocks are the same whatever the shards, so that a folder's answers do not depend on who made them: shard k of n has the
blocks ⌊(k − 1)B/n⌋, …, ⌊kB/n⌋ − 1 of B. Each leaves a file with its name in the folder when it begins.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

from simjax._files import atomic_file
from simjax.rows.memory import bytes_per_row

_NAME = re.compile(r"shard-(\d+)-of-(\d+)")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Shard `number` of `of`, counted from 1."""

    number: int
    of: int

    @classmethod
    def make(cls, shard: Any) -> Shard:
        """What `shard=` was given: (k, n) with 1 ≤ k ≤ n.

        Raises:
          TypeError, ValueError: for anything else.
        """
        if isinstance(shard, Shard):
            return shard
        expected = "shard must be two integers (k, n), shard k of n, with 1 <= k <= n,"
        if not isinstance(shard, tuple | list) or len(shard) != 2:
            raise TypeError(f"{expected} got {shard!r}.")
        if any(isinstance(part, bool) or not isinstance(part, int | np.integer) for part in shard):
            raise TypeError(f"{expected} got {shard!r}.")
        number, of = (int(part) for part in shard)
        if not 1 <= number <= of:
            raise ValueError(f"{expected} got ({number}, {of}).")
        return cls(number, of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def blocks(self, count: int) -> range:
        """The numbers of its blocks, of so many."""
        return range((self.number - 1) * count // self.of, self.number * count // self.of)

    def check(self, blocks: list[np.ndarray], shape: tuple[int, int]) -> None:
        """Refuse more shards than blocks.

        Args:
          blocks: the numbers of the rows of each.
          shape: (m, d) of the design.

        Raises:
          ValueError: if there are; the message says which max_memory makes more blocks, if any does.
        """
        if self.of <= len(blocks):
            return
        rows = sum(block.size for block in blocks)
        each = max(rows // self.of, 8)
        enough = -(-rows // each) >= self.of
        hint = f"max_memory={each * bytes_per_row(shape)} makes enough" if enough else "a block has eight rows at least"
        raise ValueError(
            f"shard must be one of at most {len(blocks)}, as the {rows} rows make {len(blocks)} "
            f"block{'s' if len(blocks) > 1 else ''}; got {self}; {hint}."
        )

    def announce(self, folder: Path) -> None:
        """Leave its name in the folder of the blocks.

        Raises:
          OSError: if that cannot be written.
        """
        with atomic_file(folder / f"shard-{self.number}-of-{self.of}", overwrite=True):
            pass


def announced(folder: Path) -> list[Shard]:
    """The shards that have begun in a folder."""
    found = (_NAME.fullmatch(file.name) for file in folder.iterdir())
    return sorted(
        (Shard(int(name[1]), int(name[2])) for name in found if name), key=lambda shard: (shard.of, shard.number)
    )


def overlaps(shards: list[Shard], count: int, block: int, rows: int) -> list[tuple[Shard, Shard, int]]:
    """Which of the shards have the same rows, and how many.

    Args:
      count: of all blocks.
      block: rows of one of them.
      rows: of all of them.
    """
    found = []
    for place, one in enumerate(shards):
        for other in shards[:place]:
            first = max(one.blocks(count).start, other.blocks(count).start)
            stop = min(one.blocks(count).stop, other.blocks(count).stop)
            if first < stop:
                found.append((other, one, min(stop * block, rows) - first * block))
    return found


def overlaps_in_words(found: list[tuple[Shard, Shard, int]], folder: Path) -> str:
    """What `overlaps` found, as a warning."""
    pairs = ", ".join(f"{one} and {other} ({rows} rows)" for one, other, rows in found)
    return f"shards overlap in {folder}: {pairs}. Such rows may be solved twice; the answers are the same."


def missing_in_words(missing: list[int], shards: list[Shard], count: int, block: int, rows: int) -> str:
    """Whose blocks, and which rows, are missing: by shards where all that have begun are of one number of shards."""

    def sizes(numbers: list[int]) -> int:
        return sum(min((number + 1) * block, rows) - number * block for number in numbers)

    numbers = {shard.of for shard in shards}
    if len(numbers) != 1:
        parts = np.split(np.array(missing), np.flatnonzero(np.diff(missing) > 1) + 1)
        ranges = (f"{part[0] * block} to {min((part[-1] + 1) * block, rows) - 1}" for part in parts)
        return f"rows {', '.join(ranges)} ({sizes(missing)} rows)"
    of, begun, words = numbers.pop(), set(shards), []
    for shard in (Shard(number, of) for number in range(1, of + 1)):
        mine = [number for number in missing if number in shard.blocks(count)]
        if mine:
            known = "" if shard in begun else ", not begun"
            words.append(f"{shard} ({sizes(mine)} of {sizes(list(shard.blocks(count)))} rows{known})")
    return f"shard{'s' if len(words) > 1 else ''} {', '.join(words)}"
