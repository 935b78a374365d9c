"""What all peers share: the task, how an answer is judged, and how a tolerance is tightened until it is good enough."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.problems import Problem
from benchmarks.records import plain
from simjax._checks import choice, positive_integer
from simjax.rows.certificate import certify
from simjax.rows.problem import RowProblem
from simjax.rows.status import Status, row_status

REACHED = 1e-6  # the relative gap that every peer has to reach, by our certificate

MEASURED, UNAVAILABLE, NOT_OFFERED, OVER_BUDGET, FAILED = (
    "measured",
    "unavailable",
    "not offered",
    "over budget",
    "failed",
)
_MEMORY_SHARE = 0.8
STATUSES = (MEASURED, UNAVAILABLE, NOT_OFFERED, OVER_BUDGET, FAILED)


REFERENCE_FILE = "reference.npy"  # in a task's folder


class Unavailable(RuntimeError):
    """The peer cannot run here: not installed, or not licensed."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One peer on one problem.

    Attributes:
      problem: the problem.
      folder: where it is saved, with the reference duals if there are any.
      workers: cores to use: as many processes, or as many threads in one.
      repeats: timed runs.
      sample: rows to time where all would take too long; at least 12 but for a quick look.
      full_seconds: time all rows if that is predicted to take at most this long.
      seed: of the sample.
    """

    problem: Problem
    folder: Path
    workers: int
    repeats: int
    sample: int
    full_seconds: float
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("workers", "repeats", "sample"):
            positive_integer(name, getattr(self, name))
        if not self.full_seconds >= 0.0:
            raise ValueError(f"full_seconds must be >= 0, got {self.full_seconds!r}.")

    @property
    def rows(self) -> int:
        return self.problem.rows.count

    def sampled(self) -> np.ndarray:
        """The numbers of the sampled rows, as many for each worker, sorted; all rows if there are no more."""
        size = math.ceil(self.sample / self.workers) * self.workers
        return np.sort(np.random.default_rng(self.seed).permutation(self.rows)[:size])

    def note(self, event: dict[str, Any]) -> None:
        """Tell how far the peer is: one line in events.jsonl, which outlives a peer that is stopped."""
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(plain(event)) + "\n")

    def reference_duals(self, chosen: np.ndarray) -> list[np.ndarray]:
        """The dual points of a tighter solve of these rows, if one was made; see `benchmarks.peers.own.reference`."""
        file = self.folder / REFERENCE_FILE
        return [np.load(file, mmap_mode="r", allow_pickle=False)[chosen]] if file.is_file() else []


# --- Answers and what they are worth -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a peer says of some rows, and what that took.

    Attributes:
      weights: (k, d), as the peer gave them.
      seconds: wall time of these k rows.
      once: the part of it that does not grow with the number of rows.
      work: what the rest would have been had no worker run out of rows before the others; None means seconds − once.
      duals: y, (k, m), where the peer has any.
      exhausted: (k,), rows for which a tighter tolerance would change nothing: an iteration limit came first.
      details: more to say about it in the record.
    """

    weights: np.ndarray
    seconds: float
    once: float = 0.0
    work: float | None = None
    duals: np.ndarray | None = None
    exhausted: np.ndarray | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def seconds_for(self, rows: int) -> float:
        """The wall time of `rows` rows: measured if these are as many, else in proportion."""
        answered = len(self.weights)
        if rows == answered:
            return self.seconds
        work = self.seconds - self.once if self.work is None else self.work
        return self.once + work * rows / answered


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the certificate says of an answer, once the weights are scaled back onto the ball.

    Attributes:
      worst_relative_gap: over the rows answered; inf where weights are not finite.
      kappa_violation: the largest (Σ|w_j| − κ)₊/κ before that.
      certified: (k,), which rows are within `REACHED`.
      nonzeros: of all these rows.
    """

    worst_relative_gap: float
    kappa_violation: float
    certified: np.ndarray
    nonzeros: int

    @property
    def reached(self) -> bool:
        """Whether every row is."""
        return bool(self.certified.all())

    def figures(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "rows_timed": self.certified.size,
            "rows_certified": int(np.count_nonzero(self.certified)),
            "reached": self.reached,
            "worst_relative_gap": self.worst_relative_gap,
            "kappa_violation": self.kappa_violation,
            "nonzeros": self.nonzeros,
        }


def judge(problem: RowProblem, weights: np.ndarray, duals: Sequence[np.ndarray] = ()) -> Verdict:
    """Certify anybody's weights (R, d) in float64, with the best of the residual's dual point and `duals`."""
    finite = np.isfinite(weights).all(axis=1)
    weights = np.where(finite[:, None], weights, 0.0)
    inside, violation = onto_ball(problem, weights)
    certificate = certify(problem, inside, duals)
    solved = row_status(certificate, REACHED, exact=problem.exact) == Status.SOLVED
    return Verdict(
        worst_relative_gap=float(np.where(finite, certificate.relative_gap, np.inf).max()),
        kappa_violation=float(violation.max()),
        certified=finite & solved,
        nonzeros=int(np.count_nonzero(inside)),
    )


def onto_ball(problem: RowProblem, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights (R, d) with those the ball sees scaled onto it where they are outside, and (Σω|w| − κ)₊/κ, (R,)."""
    if problem.bound is None:
        return weights, np.zeros(len(weights))
    omega, radius = np.asarray(problem.bound.omega), np.asarray(problem.bound.radius)
    norm = np.sum(omega * np.abs(weights), axis=1, keepdims=True)
    outside = norm > radius
    scale = np.where(outside, radius / np.where(outside, norm, 1.0), 1.0)
    violation = np.where(outside, norm / radius - 1.0, 0.0)[:, 0]
    return np.where(omega > 0.0, weights * scale, weights), violation


# --- From answers to a record ------------------------------------------------------------------------------------


def tighten(
    task: Task,
    ladder: Sequence[Any],
    solve: Callable[[np.ndarray, Any], Answer],
    *,
    whole: bool = False,
) -> dict[str, Any]:
    """The first tolerance of `ladder` at which every row is certified to `REACHED`, and the time at that tolerance.

    The tolerance is looked for on a sample of rows; then all rows are timed, tightening further where they need it, if
    that is predicted to take no more than `task.full_seconds`. Otherwise the time of the sample is scaled to all rows.

    Args:
      ladder: tolerances in the peer's own terms, loose to tight.
      solve: (row numbers, tolerance) → answer.
      whole: for a peer that solves all rows at once: there is no sample.

    Returns:
      The record's figures. A peer that never gets there has "reached" false, and its figures at the last tolerance.
    """
    everything = np.arange(task.rows)
    chosen = everything if whole else task.sampled()
    attempts: list[dict[str, Any]] = []
    place = 0
    while True:
        answer = solve(chosen, ladder[place])
        duals = ([] if answer.duals is None else [answer.duals]) + task.reference_duals(chosen)
        verdict = judge(task.problem.rows.take(chosen), answer.weights, duals)
        attempts.append({"tolerance": ladder[place], "seconds": answer.seconds, **verdict.figures()})
        task.note({"attempt": attempts[-1]})
        stuck = answer.exhausted is not None and np.any(answer.exhausted & ~verdict.certified)
        if not verdict.reached and not stuck and place + 1 < len(ladder):
            place += 1
        elif chosen.size < task.rows and answer.seconds_for(task.rows) <= task.full_seconds:
            chosen = everything
        else:
            break
    seconds = [answer.seconds_for(task.rows)]
    once_more = answer.seconds * task.repeats <= task.full_seconds
    while once_more and len(seconds) < task.repeats:
        seconds.append(solve(chosen, ladder[place]).seconds_for(task.rows))
    return {
        **figures(task, verdict, seconds),
        "tolerance": ladder[place],
        "attempts": attempts,
        **answer.details,
    }


def figures(task: Task, verdict: Verdict, seconds: Sequence[float]) -> dict[str, Any]:
    """The part of a record that every peer has. Counts are over `rows_timed` rows, seconds for all of them."""
    return {
        "status": MEASURED,
        "seconds": statistics.median(seconds),
        "seconds_all": list(seconds),
        "extrapolated": verdict.certified.size < task.rows,
        **verdict.figures(),
    }


def memory_limit(workers: int) -> int:
    """Bytes for each of so many processes: most of what the machine has, shared equally."""
    return int(_MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / workers)


def without_figures(status: str, reason: str) -> dict[str, Any]:
    """The record of a peer that has no time to show, and why."""
    return {"status": choice("status", status, STATUSES), "reason": reason}
