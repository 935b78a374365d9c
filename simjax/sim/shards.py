"""`fit_shard` and `merge`: a fit made by jobs that meet in nothing but a folder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from simjax._files import usable
from simjax._warnings import warn
from simjax.rows.blocks import AnswersOfBlocks, BlockAnswers
from simjax.rows.checkpoint import Checkpoint
from simjax.rows.options import SolveOptions
from simjax.rows.penalties import Penalty
from simjax.rows.shards import Shard, announced, missing_in_words, overlaps, overlaps_in_words
from simjax.rows.solution import Solution
from simjax.rows.solve import solve_problem
from simjax.rows.status import ConvergenceWarning, Status, convergence_message
from simjax.sim.form import ModelForm
from simjax.sim.low_rank import LowRank
from simjax.sim.options import PlanOptions, checked_refits
from simjax.sim.plan import Plan
from simjax.sim.result import FitResult
from simjax.states.kinds import AnyStates

_ROWS = "rows"  # the stage of a fit that shards solve
_PLAN_NAMES = {field.name for field in dataclasses.fields(PlanOptions)} - {"objective"}
_SOLVE_NAMES = {field.name for field in dataclasses.fields(SolveOptions)} - {"checkpoint", "shard"}


def fit_shard(
    states: AnyStates,
    objective: str | Penalty = PlanOptions.objective,
    *,
    shard: tuple[int, int],
    checkpoint: str | os.PathLike[str],
    **options: Any,
) -> Solution:
    """Solve one shard of the n + q rows of a `fit` into a folder, from which `merge` makes the model.

    All shards have the same arguments. They need not run at the same time, nor know of one another; one that was
    stopped is called again, and goes on. Which rows a shard has follows from the arguments: the rows are divided into
    blocks, by `max_memory`, and shard k of n has about every n-th part of the blocks, in a row. The merged model and
    certificates are those of `fit` with the same arguments, to the bit on the same software and number of cores.

    Args:
      states, objective: as in `fit`.
      shard: (k, n), shard k of n, counted from 1; not more shards than blocks.
      checkpoint: the folder of all shards, as in `fit`.
      options: the other arguments of `fit`; no `refit` and no `LowRank`, which need all rows. A refit is had of `fit`
        with the same folder: it takes the rows from there.

    Returns:
      A `Solution` of the shard's rows; its `first` is the number of the first of them in the fit.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.
      OSError: a checkpoint that cannot be written; what it has is whole.

    Examples:
      >>> import tempfile, numpy as np, simjax
      >>> rng = np.random.default_rng(0)
      >>> weights = [rng.normal(size=shape) for shape in ((14, 3), (2, 14))]
      >>> states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(50, 3)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     shards = [simjax.fit_shard(states, "l1", shard=(k, 2), checkpoint=folder, max_memory=1e5) for k in (1, 2)]
      ...     result = simjax.merge(folder)
      >>> [shard.first for shard in shards], result.converged
      ([0, 8], True)
    """
    unknown = sorted(set(options) - _PLAN_NAMES - _SOLVE_NAMES)
    if unknown:
        raise TypeError(f"fit_shard got unknown arguments: {', '.join(unknown)}.")
    stated = PlanOptions(objective, **{name: value for name, value in options.items() if name in _PLAN_NAMES})
    solve = SolveOptions(
        checkpoint=checkpoint, shard=shard, **{name: value for name, value in options.items() if name in _SOLVE_NAMES}
    )
    Shard.make(solve.shard)  # None is no shard
    if checked_refits(stated.refit):
        raise ValueError(
            f"refit must be None for a shard, got {stated.refit!r}: it needs all rows. Once the shards are finished, "
            "fit with refit and the same checkpoint takes their rows from there."
        )
    if isinstance(stated.constraint, LowRank):
        raise ValueError(f"constraint must not be {stated.constraint!r} for a shard: R is made of all rows. Use fit.")
    solve.check(stated.matching)
    plan = Plan.make(states, stated)
    return solve_problem(plan.rows(), solve.stage(_ROWS), origin=plan.origin)


def merge(checkpoint: str | os.PathLike[str]) -> FitResult:
    """The model and the certificates of a fit whose rows are all in a folder, without the states.

    Args:
      checkpoint: the folder of `fit_shard`, or of a `fit` without refit.

    Returns:
      A `FitResult` without `solutions`, since nothing is solved here: to have it verified, use `verify_model`.
      A `ConvergenceWarning` is issued as by `fit`, and another warning where shards overlap.

    Raises:
      FileNotFoundError: the folder holds no checkpoint of a fit.
      ValueError: rows are missing: which shards, and how many rows; or the folder is that of a refit or of `LowRank`.

    Examples:
      >>> import numpy as np, simjax
      >>> rng = np.random.default_rng(0)
      >>> weights = [rng.normal(size=shape) for shape in ((4, 3), (2, 4))]  # of a network 3-4-2
      >>> states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(50, 3)))
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     result = simjax.fit(states, "l1", alpha=0.1, checkpoint=folder)
      ...     merged = simjax.merge(folder)  # without the states
      >>> bool(np.all(merged.model.A == result.model.A))
      True
    """
    folder = Path(checkpoint) / _ROWS
    kept = Checkpoint.read(folder)
    others = sorted(other.name for other in Path(checkpoint).iterdir() if other.is_dir() and other.name != _ROWS)
    if others or "fit" not in kept.about:
        raise ValueError(
            f"checkpoint {checkpoint} is not one that merge can make a model of: it needs the rows of one fit without "
            f"refit and LowRank{f', and there are solves of {chr(44).join(others)} too' if others else ''}. The fit "
            "itself, with the same arguments and checkpoint, goes on from it."
        )
    answers = _all_answers(kept)
    with usable(folder / "checkpoint.json", "checkpoint of a fit"):
        about = kept.about["fit"]
        settings, words = dict(about["settings"]), kept.fingerprint.words
        settings |= {"solver": words["solver"], "tol": float(words["tol"])}
        model = ModelForm.from_json(about["form"]).model(answers.weights, answers.intercept, settings)
        limited = answers.passes >= int(words["max_iters"])
    if np.any(answers.status != Status.SOLVED):
        message = convergence_message(answers.status, answers.certificate, settings["tol"], settings["solver"], limited)
        warn(message, ConvergenceWarning)
    return FitResult(
        model=model,
        certificate=answers.certificate,
        status=answers.status,
        weights=answers.weights,
        intercept=answers.intercept,
        solutions=(),
        settings=settings,
    )


def _all_answers(kept: Checkpoint) -> BlockAnswers:
    """Those of all blocks, or an error that says which are missing."""
    shards, count, missing = announced(kept.folder), kept.count, []
    answers = AnswersOfBlocks(count, sparse=bool(kept.about["sparse"]))
    for number in range(count):
        found = kept.load(number)
        if found is None:
            missing.append(number)
        elif not missing:
            answers.put(number, found)
    if missing:
        words = missing_in_words(missing, shards, count, kept.block, kept.rows)
        raise ValueError(f"checkpoint {kept.folder.parent} has not all rows, missing: {words}.")
    double = overlaps(shards, count, kept.block, kept.rows)
    if double:
        warn(overlaps_in_words(double, kept.folder.parent), UserWarning)
    return answers.joined()
