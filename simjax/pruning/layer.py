"""`prune_layer`: one linear layer made sparse, its weights refitted and certified."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from simjax._checks import choice, positive_scalar
from simjax._typing import ArrayLike
from simjax._values import Unstated
from simjax.pruning.adaptive import PENALTIES, adaptive
from simjax.pruning.cardinality import CardinalityProblem
from simjax.pruning.kept import KeptLayer
from simjax.pruning.patterns import SPARSITY, Pattern
from simjax.pruning.problem import LayerProblem
from simjax.pruning.result import PrunedLayer
from simjax.pruning.statistics import LayerStatistics
from simjax.rows.memory import give_back_freed
from simjax.rows.options import SolveOptions
from simjax.rows.solution import dense_rows
from simjax.rows.solve import solve_problem

METHODS = ("auto", "cardinality", *PENALTIES)


def prune_layer(
    inputs: ArrayLike | LayerStatistics,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    targets: ArrayLike | None = None,
    sparsity: float = SPARSITY,
    pattern: str = "unstructured",
    method: str = "auto",
    tol: float = SolveOptions.tol,
) -> PrunedLayer:
    """Make a linear layer sparse: find a support, and refit the weights that are left by least squares.

        min  ‖T − XWᵀ − 1bᵀ‖²    s.t.  W in the pattern, with the share of zeros asked for

    Given the support, every row is a convex problem of its own over the same inputs, and comes back certified.

    Args:
      inputs: X, (samples, in), what the layer sees; or `LayerStatistics` of it, where samples do not fit in memory.
      weight: W₀, (out, in), of the layer as it was trained.
      bias: b₀, (out,); None for a layer without one, which stays without one. A bias is refitted too.
      targets: T, (samples, out), what the layer is to give, bias included; None means what it gives, XW₀ᵀ + 1b₀ᵀ. They
        differ where the layers before it have been pruned. With statistics they are given to their `update`.
      sparsity: the least share of zeros, in [0, 1). Left out with n:m, it is what the pattern leaves zero.
      pattern: "unstructured"; n:m such as "2:4": at most n of each m inputs that follow one another; or "rows": whole
        outputs, those are removed that cost least, which leaves them constant with a bias, and zero without.
      method: how the support is found: "cardinality" by ADMM on the number of weights of the layer; "l1" and
        "perspective" as that of an adaptive penalty, certified too, for "unstructured" only, slower and in all that was
        measured further off; "auto" is "cardinality", and for "rows" the choice that is provably best. See
        docs/pruning.md.
      tol: relative duality gap at which a refitted row counts as solved.

    Returns:
      A `PrunedLayer`. Rows that miss `tol` carry another status than SOLVED, and a `ConvergenceWarning` is issued.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.

    Source: layer-wise reconstruction as in Frantar, Alistarh, SparseGPT (2023), and Meng et al., ALPS (2024).

    Examples:
      >>> import numpy as np, simjax
      >>> rng = np.random.default_rng(0)
      >>> inputs, weight = rng.normal(size=(50, 8)), rng.normal(size=(3, 8))
      >>> pruned = simjax.prune_layer(inputs, weight, sparsity=0.5)
      >>> bool(pruned.sparsity >= 0.5), pruned.converged
      (True, True)
    """
    began = time.perf_counter()
    choice("method", method, METHODS)
    positive_scalar("tol", tol)
    problem = LayerProblem.make(inputs, weight, bias, targets)
    return pruned_layer(problem, sparsity=sparsity, pattern=pattern, method=method, tol=tol, began=began)


def pruned_layer(
    problem: LayerProblem,
    *,
    sparsity: Any,
    pattern: str,
    method: str,
    tol: float,
    began: float,
    keep: Callable[[LayerProblem], KeptLayer] | None = None,
) -> PrunedLayer:
    """`prune_layer` of compressed samples, whose support and refit may be kept, or taken from where they have been.

    Args:
      problem: the layer.
      sparsity, pattern, method, tol: as in `prune_layer`.
      began: from when on its time is counted.
      keep: where support and refit are kept; None for nowhere.
    """
    options = SolveOptions(tol=tol)
    place = None if keep is None else keep(problem)
    refit = options if place is None else dataclasses.replace(options, checkpoint=place.rows)

    def supported(find: Callable[[], np.ndarray]) -> np.ndarray:
        support = find() if place is None else place.support(find)
        give_back_freed()  # the search took as much as the refit will
        return support

    allowed = Pattern.make(pattern, sparsity, problem.weight.shape, stated=not isinstance(sparsity, Unstated))
    if allowed.name == "rows":
        if method != "auto":
            raise ValueError(f"method must be 'auto' for pattern 'rows', which needs no other; got {method!r}.")
        # A row left out costs ‖t‖², about the mean with a bias, whatever becomes of the others: the choice is exact.
        support = supported(lambda: allowed.project(np.sum(problem.targets**2, axis=0)[:, None]) & problem.seen)
        return refitted(problem, support, allowed.name, "the cost of each row, which is exact", refit, began)
    if method in PENALTIES:
        if allowed.group is not None:
            raise ValueError(
                f"pattern must be 'unstructured' for method {method!r}, which cannot count groups; got {pattern!r}."
            )
        penalised = adaptive(problem, method, allowed.kept, options)
        support = dense_rows(penalised.weights) != 0.0
        pruned = refitted(problem, support, allowed.name, method, refit, began)
        return dataclasses.replace(pruned, penalised=penalised)
    support = supported(lambda: CardinalityProblem.make(problem).support(allowed))
    return refitted(problem, support, allowed.name, "cardinality", refit, began)


def refitted(
    problem: LayerProblem, support: np.ndarray, pattern: str, method: str, options: SolveOptions, began: float
) -> PrunedLayer:
    """The layer by least squares on a support (out, in), certified."""
    rows = problem.rows(support)
    solution = solve_problem(rows, options)
    weight, errors = dense_rows(solution.weights), solution.certificate.objective
    size, total = problem.size, float(problem.size.sum())
    return PrunedLayer(
        weight=weight,
        bias=solution.intercept,
        support=support if rows.support is None else rows.support,  # held once, for these may be large
        relative_error=float(errors.sum()) / total if total > 0.0 else 0.0,
        size=total,
        row_errors=np.where(size > 0.0, errors / np.where(size > 0.0, size, 1.0), 0.0),
        method=method,
        pattern=pattern,
        unseen=int(np.count_nonzero(~problem.seen)),
        solution=solution,
        seconds=time.perf_counter() - began,
    )
