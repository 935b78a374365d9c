"""Status of a row, and the one warning a solve may raise about those that missed the tolerance."""

from __future__ import annotations

import enum

import numpy as np

from simjax.rows.certificate import Certificate


class Status(enum.StrEnum):
    """How a row ended; compares equal to its name.

    SOLVED: certified to the tolerance that was asked for.
    ALMOST_SOLVED: certified, but only to within 100 times the tolerance.
    MAX_ITERS: the iteration limit came first; the certificate says how good the weights are.
    INFEASIBLE: no weights satisfy the constraints; the dual is a ray that proves it.
    NONFINITE: the row produced no finite weights; zeros are returned in their place.
    STALLED: the solver stopped before its limit, as more passes gain nothing at this precision; else as MAX_ITERS.

    Examples:
      >>> import simjax
      >>> simjax.Status.SOLVED == "SOLVED"
      True
    """

    SOLVED = "SOLVED"
    ALMOST_SOLVED = "ALMOST_SOLVED"
    MAX_ITERS = "MAX_ITERS"
    INFEASIBLE = "INFEASIBLE"
    NONFINITE = "NONFINITE"
    STALLED = "STALLED"  # the last, for the numbers of the others are kept in files


class ConvergenceWarning(UserWarning):
    """Some rows missed the tolerance.

    Examples:
      >>> import warnings, numpy as np, simjax
      >>> with warnings.catch_warnings():
      ...     warnings.simplefilter("error", simjax.ConvergenceWarning)  # a row that misses ends the program
      ...     solution = simjax.solve_rows(np.eye(2), [[3.0], [1.0]], penalty=simjax.L1(1.0))
    """


_ALMOST = 100.0
FEASIBILITY_TOL = 1e-9
EXACT_FEASIBILITY_TOL = 1e-8


def row_status(certificate: Certificate, tol: float, *, exact: bool) -> np.ndarray:
    """The status each row deserves by its certificate alone, an array of strings (R,)."""
    feasibility = EXACT_FEASIBILITY_TOL if exact else FEASIBILITY_TOL
    gap, violation = certificate.relative_gap, certificate.infeasibility
    solved = (gap <= tol) & (violation <= feasibility)
    almost = (gap <= _ALMOST * tol) & (violation <= _ALMOST * feasibility)
    return np.where(solved, Status.SOLVED, np.where(almost, Status.ALMOST_SOLVED, Status.MAX_ITERS)).astype("<U13")


def told_apart(status: np.ndarray, passes: np.ndarray, max_iters: int) -> np.ndarray:
    """The status with rows that stopped of themselves, short of `max_iters` passes, called STALLED."""
    return np.where((status == Status.MAX_ITERS) & (passes < max_iters), Status.STALLED, status).astype("<U13")


def convergence_message(
    status: np.ndarray, certificate: Certificate, tol: float, solver: str, limited: np.ndarray | None = None
) -> str:
    """How many rows missed, how far, and what to try; `limited` says of each row whether it used all its passes."""
    missed = status != Status.SOLVED
    kinds = ", ".join(f"{np.count_nonzero(status == kind)} {kind}" for kind in Status if (status == kind).any())
    open_ = missed & (status != Status.INFEASIBLE)
    if not open_.any():
        return (
            f"{np.count_nonzero(missed)} of {status.size} rows are infeasible, each proved by the dual ray in its "
            f"certificate: relax kappa or the support, or match by penalty."
        )
    worst = float(np.max(certificate.relative_gap[open_]))
    violation = float(np.max(certificate.infeasibility[open_]))
    advice = "raise max_iters or tol"
    if limited is not None and not limited[open_].any():
        advice = "raise tol, rescale nearly dependent columns or take a larger penalty: more passes would gain nothing"
    if solver != "auto":
        advice += ', or use solver="auto"'
    return (
        f"{np.count_nonzero(missed)} of {status.size} rows are not certified at tol={tol:g} ({kinds}): worst relative "
        f"gap {worst:.1e}, worst infeasibility {violation:.1e}. To get there, {advice}; the weights returned are "
        f"feasible as far as the certificate says, and their gaps are true bounds."
    )
