"""A plan solved: its rows, the refits that were asked for, and what comes of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse

from simjax._typing import Weights
from simjax.rows.attempts import Start
from simjax.rows.certificate import Certificate, joined_certificates
from simjax.rows.options import SolveOptions
from simjax.rows.solution import dense_rows
from simjax.rows.solve import solve_problem
from simjax.rows.workspace import Workspace
from simjax.sim.low_rank import reduced_rank_basis
from simjax.sim.plan import Plan
from simjax.sim.result import CertifiedBlock, FitResult


def fit_plan(
    plan: Plan, options: SolveOptions, *, workspace: Workspace | None = None, start: Start | None = None
) -> FitResult:
    """Solve what a plan states.

    Args:
      workspace, start: of the first solve, see `solve_problem`.
    """
    if plan.rank is not None:
        return _fit_low_rank(plan, plan.rank, workspace, start, options)
    origin = plan.origin
    solutions = [solve_problem(plan.rows(), options.stage("rows"), workspace=workspace, start=start, origin=origin)]
    origin = dataclasses.replace(origin, about={})  # of the rows above alone a model is made without the states
    if "support" in plan.refits:
        rows_on_support = plan.rows_on_support(solutions[-1].weights)
        on_support = options.stage("support")
        solutions.append(solve_problem(rows_on_support, on_support, workspace=workspace, origin=origin))
    last, every = solutions[-1], np.arange(plan.states.n + plan.states.q)
    weights, intercept, certificate, status = last.weights, last.intercept, last.certificate, last.status
    sources = [CertifiedBlock(last, every, every)]
    if "outputs" in plan.refits:
        output_rows = plan.output_rows(weights, intercept)
        solutions.append(solve_problem(output_rows, options.stage("outputs"), origin=origin))
        upper, rows = every[: plan.states.n], every[plan.states.n :]
        sources = [CertifiedBlock(last, upper, upper), CertifiedBlock(solutions[-1], rows, rows - plan.states.n)]
        last = solutions[-1]
        status = status.copy()
        status[rows] = last.status
        weights = _replace_weights(weights, rows, last.weights)
        if intercept is not None and last.intercept is not None:
            intercept = np.concatenate([intercept[: plan.states.n], last.intercept])
        certificate = _replace_rows(certificate, rows, last.certificate)
    settings = {**plan.settings, "solver": last.solver, "tol": last.tol}
    return FitResult(
        model=plan.model(weights, intercept, settings),
        certificate=certificate,
        status=status,
        weights=weights,
        intercept=intercept,
        solutions=tuple(solutions),
        settings=settings,
        sources=tuple(sources),
    )


def _fit_low_rank(
    plan: Plan, rank: int, workspace: Workspace | None, start: Start | None, options: SolveOptions
) -> FitResult:
    """A = L Rᵀ: R from a fit without a limit on the rank, then the rows of (L B) for that R; (C D) stay as they are."""
    n, every = plan.states.n, np.arange(plan.states.n + plan.states.q)
    origin = plan.origin
    first = solve_problem(plan.rows(), options.stage("rows"), workspace=workspace, start=start, origin=origin)
    design = plan.design
    basis = reduced_rank_basis(dense_rows(first.weights[:n])[:, :n], design[:, :n], rank)
    upper = solve_problem(plan.rows_of_low_rank(basis), options.stage("low-rank"), origin=origin)
    factor = dense_rows(upper.weights)
    weights = dense_rows(first.weights).copy()
    weights[:n] = np.concatenate([factor[:, :rank] @ basis.T, factor[:, rank:]], axis=1)
    certificate = joined_certificates([upper.certificate, first.certificate.take(every[n:])])
    intercept = None
    if upper.intercept is not None and first.intercept is not None:
        intercept = np.concatenate([upper.intercept, first.intercept[n:]])
    settings = {**plan.settings, "solver": upper.solver, "tol": upper.tol}
    return FitResult(
        model=plan.model(weights, intercept, settings),
        certificate=certificate,
        status=np.concatenate([upper.status, first.status[n:]]),
        weights=weights,
        intercept=intercept,
        solutions=(first, upper),
        settings=settings,
        sources=(CertifiedBlock(upper, every[:n], every[:n]), CertifiedBlock(first, every[n:], every[n:])),
        factors=(plan.scale[:, None] * factor[:, :rank], basis / plan.scale[:, None]),
    )


def _replace_weights(weights: Weights, rows: np.ndarray, other: Weights) -> Weights:
    """The weights with their last `rows` replaced, CSR if either part is."""
    if isinstance(weights, np.ndarray) and isinstance(other, np.ndarray):
        return np.concatenate([weights[: rows[0]], other])
    parts = [scipy.sparse.csr_array(part) for part in (weights[: rows[0]], other)]
    return scipy.sparse.csr_array(scipy.sparse.vstack(parts))


def _replace_rows(certificate: Certificate, rows: np.ndarray, other: Certificate) -> Certificate:
    merged = {}
    for field in dataclasses.fields(Certificate):
        values = getattr(certificate, field.name).copy()
        values[rows] = getattr(other, field.name)
        merged[field.name] = values
    return Certificate(**merged)
