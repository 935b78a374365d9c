"""Supports by an adaptive penalty: convex, so that the rows whose support is taken are certified themselves.

    min  ‖T − XWᵀ − 1bᵀ‖² + α Σ h(ω_ij w_ij),     ω_ij = √H_jj / (|W₀_ij| √H_jj + 0.1 rms),     H = XᵀX

    "l1"             h(u) = |u|
    "perspective"    h(u) = ½ min over t in [0, 1] of u²/t + t = |u| up to 1, ½(u² + 1) beyond

A weight pays the less the more it does in the layer as it was. 1/ω is its size there, and so perspective is the convex
relaxation of α/2 (‖W‖₀ + Σ (ω_ij w_ij)²): a weight in use costs the same whichever it is, and the more the further it
grows beyond what it was. α is the one that leaves as many weights as are wanted, found on a path of solves that start
from one another; none is cut off.

Source: Zou, The adaptive lasso and its oracle properties (2006), with the scores of Wanda (Sun et al. 2024); the
perspective relaxation of the SIM paper, eq. (4) and (10).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from simjax.pruning.problem import LayerProblem
from simjax.rows.attempts import Start
from simjax.rows.options import SolveOptions
from simjax.rows.penalties import L1, Penalty, Perspective
from simjax.rows.penalty_range import slope_factor
from simjax.rows.solution import Solution, dense_rows
from simjax.rows.solve import solve_problem
from simjax.rows.sparsity_search import search_alpha
from simjax.rows.workspace import Workspace

_LEAST_SHARE = 0.1  # of the root mean square of |W₀_ij| √H_jj
_SLACK = 2e-3  # of the weights of the layer: a search that is nearer ends


def _perspective(alpha: float, omega: np.ndarray) -> Penalty:
    return Perspective(0.5 * alpha * omega**2, mu=np.full_like(omega, 0.5 * alpha))


PENALTIES: dict[str, Callable[[float, np.ndarray], Penalty]] = {
    "l1": lambda alpha, omega: L1(alpha * omega),
    "perspective": _perspective,
}


def adaptive(problem: LayerProblem, method: str, kept: int, options: SolveOptions) -> Solution:
    """The solution with at most `kept` nonzero weights whose support is taken; certified to `options.tol`.

    Args:
      method: one of `PENALTIES`.
    """
    penalty = PENALTIES[method]
    norms = np.linalg.norm(problem.design, axis=0)
    scores = np.abs(problem.weight) * norms
    floor = _LEAST_SHARE * float(np.sqrt(np.mean(scores**2)))
    pay = scores + floor
    omega = np.where(pay > 0.0, norms / np.where(pay > 0.0, pay, 1.0), 1.0)
    workspace = Workspace(problem.design)

    def solve(alpha: float, near: Solution | None) -> tuple[int, Solution]:
        start = None if near is None else Start(dense_rows(near.weights), near.certificate.dual)
        rows = problem.rows(penalty=penalty(alpha, omega))
        found = solve_problem(rows, options, workspace=workspace, start=start)
        return int(np.count_nonzero(dense_rows(found.weights))), found

    largest = float(slope_factor(problem.rows(penalty=penalty(1.0, omega))).max())
    _, found = search_alpha(solve, largest * (1.0 + 1e-9) if largest > 0.0 else 1.0, kept, int(_SLACK * omega.size))
    return found
