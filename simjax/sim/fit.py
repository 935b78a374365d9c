"""`fit`: from the states of a baseline network to a certified sparse implicit model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from jax.sharding import Mesh

from simjax._typing import ArrayLike
from simjax.rows.constraints import Box
from simjax.rows.options import SolveOptions
from simjax.rows.penalties import Penalty
from simjax.rows.pool import Pool
from simjax.rows.progress import ProgressCallback
from simjax.sim.low_rank import LowRank
from simjax.sim.options import PlanOptions
from simjax.sim.plan import Plan
from simjax.sim.result import FitResult
from simjax.sim.solve_plan import fit_plan
from simjax.sim.sparsity import fit_to_sparsity
from simjax.states.kinds import AnyStates
from simjax.states.states import Rescale


def fit(
    states: AnyStates,
    objective: str | Penalty = PlanOptions.objective,
    *,
    alpha: ArrayLike = PlanOptions.alpha,
    sparsity: float | None = None,
    mu: ArrayLike | None = PlanOptions.mu,
    kappa: float | None = PlanOptions.kappa,
    lambda_state: float = PlanOptions.lambda_state,
    lambda_output: float = PlanOptions.lambda_output,
    reduction: str = PlanOptions.reduction,
    matching: str = PlanOptions.matching,
    constraint: str | LowRank | Box = PlanOptions.constraint,
    eta: ArrayLike | None = PlanOptions.eta,
    support: str | ArrayLike = PlanOptions.support,
    rescale: Rescale = PlanOptions.rescale,
    units: str = PlanOptions.units,
    sample_weight: ArrayLike | None = PlanOptions.sample_weight,
    fit_intercept: bool | str = PlanOptions.fit_intercept,
    refit: str | Sequence[str] | None = PlanOptions.refit,
    solver: str = SolveOptions.solver,
    engine: str = SolveOptions.engine,
    precision: str = SolveOptions.precision,
    tol: float = SolveOptions.tol,
    max_iters: int = SolveOptions.max_iters,
    workers: int = SolveOptions.workers,
    mesh: Mesh | None = SolveOptions.mesh,
    max_memory: float | None = SolveOptions.max_memory,
    progress: ProgressCallback | None = SolveOptions.progress,
    checkpoint: str | os.PathLike[str] | None = SolveOptions.checkpoint,
    executor: Executor | Callable[[], Executor] | Pool | None = SolveOptions.executor,
    history: bool = SolveOptions.history,
) -> FitResult:
    """Fit an implicit model x = φ(Ax + Bu), ŷ = Cx + Du to the states of a baseline (SIM paper, eq. 2 and 7).

        min  Σ h(A B C D) + λ₁‖Z − (AX + BU)‖² + λ₂‖Ŷ − (CX + DU)‖²   s.t.  ‖A‖∞ ≤ κ

    Every row of (A B) and (C D) is an independent convex problem over the same design, and each comes back certified.

    Args:
      states: what the baseline did on m inputs; `MappedStates` in files, of which only what is needed is
        read; `StreamedStates` where these samples do not fit in memory.
      objective: "perspective", "l1", "elastic_net", "ridge", "least_squares", or a penalty object.
      alpha: weight of the penalty (β of the paper for "l1"): a scalar, one per coordinate (d,), or (n + q, d), with
        d = n + p (+ 1 with a penalised intercept). To be left out with a penalty object, which brings its own.
      sparsity: in place of alpha: the least share of nonzeros that the model has fewer than the baseline, in [0, 1), as
        in `ImplicitModel.sparsity`; where the states know no baseline, than all its weights. α is found on a path of
        certified fits that start from one another and comes back in `settings["alpha"]`, and what was reached in
        `settings["sparsity"]`: the model is one of the path, no weight is cut off.
      mu: second weight of "perspective" (of Σt) and "elastic_net" (of w²); None means mu = alpha.
      kappa: bound of the constraint, in (0, 1), for "metzler" any number below 1; None removes the constraint.
      lambda_state, lambda_output: λ₁ and λ₂ > 0; not used under exact matching.
      reduction: "sum" is the paper's loss; "mean" divides it by m, or the sum of the weights of the samples, so that
        one alpha serves every m.
      matching: "penalty" (eq. 7) or "exact" (eq. 2b–2c).
      constraint: what kappa bounds, row by row: "ball" is ‖A‖∞ ≤ κ; "stacked_ball" ‖(A B)‖∞ ≤ κ; "metzler" is
        μ_η(A) = max_i a_ii + Σ_{j ≠ i} (η_j/η_i)|a_ij| ≤ κ, which lets a_ii go below −1 and is no less well-posed.
        `LowRank(r)` is A = L Rᵀ with ‖A‖∞ ≤ κ: R comes from a first fit, without a claim; the certificates of (A B) are
        those of L and B for this R (see `sim.low_rank`). It goes with a scalar alpha and support="auto" or "full".
        `Box(lower, upper)` bounds every entry of (A B) and (C D), in the units of the model, beside ‖A‖∞ ≤ κ: scalars,
        (d,) or (n + q, d), with lower ≤ 0 ≤ upper; `Box(0.0, inf)` is a model of nonnegative weights.
      eta: η > 0, (n,), of "metzler", in the units of the model; None means ones.
      support: which entries of A may be nonzero: "full", "hollow" (A_ii = 0), "feedforward" (from earlier layers only;
        needs layer sizes), "architecture" (from the layer before only, and outputs from the last: the network's own, so
        that `model.to_layers()` gives its weights back, pruned; likewise), "auto" ("hollow" for balls, otherwise
        "full"), or a boolean mask of shape (n, d) for (A B), or (n + q, d) for all rows.
      rescale: "inner" scales hidden-to-hidden weights so that the baseline itself satisfies ‖A‖∞ ≤ κ; "none" does not;
        "auto" is "inner" where the states know a layered, positively homogeneous network. Plain arrays are
        left as they are.
      units: where states are rescaled, "natural" keeps loss and penalty in the units of the unscaled network and only
        the ball sees the rescaled A; "rescaled" measures all three in rescaled units, as the paper does.
      sample_weight: v ≥ 0, (m,): the squared errors of sample i count v_i times, so that a weight of 2 is the sample
        given twice; None means ones. Those of streamed states are given where they are streamed.
      fit_intercept: whether the model has biases, x = φ(Ax + Bu + b), ŷ = Cx + Du + c. True leaves them free of
        penalty, ball and support, by centring; "penalised" appends a constant 1 to the inputs, as the paper does,
        and then they are penalised like any other weight; "auto" is True for states that are known to come from a
        network with biases (`states.has_biases`), and False otherwise.
      refit: "support" solves again by least squares on the support found (debiasing: without it "l1" loses to magnitude
        pruning whose remaining weights are fitted again, see docs/first-hour.md), "outputs" fits (C D) to the
        states the fitted (A B) produces (not from streamed states); a sequence does both in that order.
      solver, engine, precision, tol, max_iters, workers, mesh, max_memory, progress, checkpoint, executor, history:
        as in `solve_rows`; each solve of a refit or of `LowRank` has its own folder in that of the checkpoint.

    Returns:
      A `FitResult`. Rows that miss `tol` carry another status than SOLVED, and a `ConvergenceWarning` is issued.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected.
      OSError, RuntimeError: as `solve_rows`, for checkpoint and executor.

    Examples:
      >>> import numpy as np, simjax
      >>> rng = np.random.default_rng(0)
      >>> weights = [rng.normal(size=shape) for shape in ((4, 3), (2, 4))]  # of a network 3-4-2
      >>> states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(50, 3)))
      >>> result = simjax.fit(states, "l1", alpha=0.1)
      >>> result.converged, result.model.well_posedness <= 0.99
      (True, True)
    """
    stated = PlanOptions(
        objective,
        alpha=alpha,
        mu=mu,
        kappa=kappa,
        lambda_state=lambda_state,
        lambda_output=lambda_output,
        reduction=reduction,
        matching=matching,
        constraint=constraint,
        eta=eta,
        support=support,
        rescale=rescale,
        units=units,
        sample_weight=sample_weight,
        fit_intercept=fit_intercept,
        refit=refit,
    )
    options = SolveOptions(
        solver=solver,
        engine=engine,
        precision=precision,
        tol=tol,
        max_iters=max_iters,
        workers=workers,
        mesh=mesh,
        max_memory=max_memory,
        progress=progress,
        checkpoint=checkpoint,
        executor=executor,
        history=history,
    )
    options.check(matching)
    if sparsity is not None:
        with options.holding_executor():
            return fit_to_sparsity(states, stated, sparsity, options)
    plan = Plan.make(states, stated)
    with options.holding_executor():
        return fit_plan(plan, options)
