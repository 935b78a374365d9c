"""What every oracle over conic programs offers, and how it is found by name."""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType

import numpy as np

ORACLES = ("clarabel", "mosek")

SOLVED, ALMOST_SOLVED, MAX_ITERS = "SOLVED", "ALMOST_SOLVED", "MAX_ITERS"
INFEASIBLE, NONFINITE = "INFEASIBLE", "NONFINITE"


class OracleUnavailable(RuntimeError):
    """The oracle that was asked for cannot run here: its package or its licence is missing."""


@dataclasses.dataclass(frozen=True)
class ConicSolution:
    """A solver's answer to a `ConicProgram`.

    Attributes:
      x: the point, (n,).
      z: the multiplier of Gx + s = h in the dual cone, (k,): Px + q + Gᵀz = 0. For INFEASIBLE the ray with
        Gᵀz = 0 and hᵀz < 0.
      status: SOLVED, ALMOST_SOLVED, MAX_ITERS (stopped short, for whatever reason) or INFEASIBLE.
      solver_status: the solver's own word for it.
      iterations: how many it took.
    """

    x: np.ndarray
    z: np.ndarray
    status: str
    solver_status: str
    iterations: int


def oracle_module(name: str) -> ModuleType:
    """The module of an oracle; it has `check_available()` and `solve_conic(program, tol)`."""
    return importlib.import_module(f"simjax.rows.oracles.{name}")


def missing_package(package: str) -> OracleUnavailable:
    """The error for an oracle whose package is not installed."""
    return OracleUnavailable(f"the package {package!r} is not installed; get it with: pip install 'simjax[oracles]'")
