"""What a paper's section of the page is made of: cases that are measured, and claims that are judged by them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from benchmarks.records import Record, places, table
from experiments.experiment import grouped, spread

VERDICTS = {True: "shown", False: "**not shown here**", None: "not run"}


class Claim(NamedTuple):
    """A claim beside what was measured.

    Attributes:
      words: the paper's.
      measured: our numbers.
      shown: whether they show it; None where they are missing.
    """

    words: str
    measured: str
    shown: bool | None


@dataclasses.dataclass(frozen=True)
class Paper:
    """A paper, and how its claims are tried.

    Attributes:
      name: on the command line.
      title: of its section.
      source: what of the paper was at hand, and what is a reconstruction.
      setting: what is run, in a paragraph.
      cases: quick → names of what is measured, once for each seed.
      measure: (case, seed, quick) → numbers.
      claims: records → the claims, judged.
      tables: records → lines of markdown.
      picture: records → a figure, or None where there is none to draw.
    """

    name: str
    title: str
    source: str
    setting: str
    cases: Callable[[bool], Sequence[str]]
    measure: Callable[[str, int, bool], Record]
    claims: Callable[[Sequence[Record]], Sequence[Claim]]
    tables: Callable[[Sequence[Record]], Sequence[str]]
    picture: Callable[[Sequence[Record]], Figure | None]

    def section(self, records: Sequence[Record]) -> str:
        """The claims as a table, the setting, the numbers, the picture, and where and in what time they were made."""
        heads = ["in the paper's words", "measured here", ""]
        claims = [[quoted(words), measured, VERDICTS[shown]] for words, measured, shown in self.claims(records)]
        lines = [f"## {self.title}", "", self.source, "", *table(heads, claims), "", self.setting, ""]
        lines += [*self.tables(records), ""]
        if self.picture(records) is not None:
            lines += [f"![{self.title}](../images/paper-claims-{self.name}.png)", ""]
        if not records:
            return "\n".join(lines)
        seeds = ", ".join(str(seed) for (seed,) in grouped(records, "seed"))
        seconds = sum(record["wall_seconds"] for record in records)
        lines += [f"`python -m experiments claims {self.name}`: seeds {seeds}, {seconds:,.0f} s in all."]
        every, counts = (
            grouped(records, "seed"),
            {case: len(mine) for (case,), mine in grouped(records, "case").items()},
        )
        lost = [case for case in self.cases(False) if case not in counts]
        few = [f"{case} ({count} of {len(every)})" for case, count in counts.items() if count < len(every)]
        if lost and not any(record["quick"] for record in records):
            lines += ["", f"**Not run yet**, and in no number above: {'; '.join(lost)}."]
        if few:
            lines += ["", f"With fewer seeds: {'; '.join(few)}."]
        return "\n".join([*lines, "", *places(records)])


def quoted(words: str) -> str:
    """In quotation marks; words in brackets are ours."""
    return words if words.startswith("(") else f"“{words}”"


# --- What claims are judged by -----------------------------------------------------------------------------------


def values(records: Sequence[Record], case: str, key: str) -> list[float]:
    """An entry of a case, one for each seed."""
    mine = sorted((record for record in records if record["case"] == case), key=lambda record: record["seed"])
    return [float(record[key]) for record in mine]


def told(records: Sequence[Record], case: str, key: str, form: str = ".1f", scale: float = 100.0) -> str:
    """An entry of a case as mean ± standard deviation over seeds; in percent unless `scale` says otherwise."""
    return said(values(records, case, key), form, scale)


def said(found: Sequence[float], form: str = ".1f", scale: float = 1.0) -> str:
    """Mean ± standard deviation, or how many numbers are none."""
    lost = sum(not math.isfinite(value) for value in found)
    return f"not finite for {lost} of {len(found)} seeds" if lost else spread(found, form, scale)


def always(better: Sequence[float], worse: Sequence[float]) -> bool | None:
    """Whether the first is larger than the second for every seed; None where one was not run."""
    if not better or len(better) != len(worse):
        return None
    return all(a > b for a, b in zip(better, worse, strict=True))


def together(*judged: bool | None) -> bool | None:
    """Whether all hold; None where one was not run."""
    return None if None in judged else all(judged)


def holds(found: Sequence[float], limit: float) -> bool | None:
    """Whether all are at most `limit`; None where there are none."""
    return all(value <= limit for value in found) if found else None
