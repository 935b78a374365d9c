"""`solve_rows` for JAX programs: arrays in, a tree of arrays out, one compiled loop between them.

The passes, the joint prox, the conjugate and the gap are those of the other solvers (`simjax.rows`), traced.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import lax

from simjax._checks import choice, positive_integer, positive_scalar
from simjax._typing import ArrayLike
from simjax.functional import kkt
from simjax.rows.arrays import matmul, tree_map, while_loop
from simjax.rows.boxed import BoxedPenalty, box_of
from simjax.rows.constraints import Box, Constraint, Free
from simjax.rows.group_penalty import GroupPenalty
from simjax.rows.joint_prox import moved_inside
from simjax.rows.penalties import Penalty, PiecewisePenalty
from simjax.rows.problem import MATCHINGS, RowProblem, check_groups, parameter_rows
from simjax.rows.solvers import admm
from simjax.rows.solvers.canonical import CanonicalRows, canonical_rows, judge
from simjax.rows.solvers.factor import Factorisation, in_samples, traced_factorisation
from simjax.rows.status import Status
from simjax.rows.workspace import balancing_scale

CHECK_EVERY = 3 * admm.ROUND  # passes between two gaps
_SETTLED = 3  # signs that may have changed since the last check for a polish to be worth its price
_SHARE = 0.3  # of the tolerance at which the passes end: two evaluations of a gap differ a little
_ALMOST = 100.0
_CODES = {status: code for code, status in enumerate(Status)}


class SolvedRows(NamedTuple):
    """What `solve_rows` returns, one entry for each row.

    Attributes:
      weights: w, (R, d), exactly sparse, inside the constraint and the support.
      dual: y, (R, m), the dual point behind the gap, up to the scaling that `simjax.certify` does as well.
      relative_gap: (P − D)/P as `simjax.Certificate` has it, (R,), but in the precision of the call: in float32
        it is right to about 1e-6, and no proof below that. Its derivative is zero. Under exact matching it is at least
        1e3 times the relative residual of the equations.
      iterations: passes over the design until the row was solved, (R,), int32.
      status: the number of its `simjax.Status` in the order of that class, (R,), int32; see `status_names`.

    Examples:
      >>> import jax.numpy as jnp, simjax
      >>> found = simjax.functional.solve_rows(jnp.eye(2), jnp.array([[3.0], [1.0]]), penalty=simjax.L1(2.0))
      >>> found.weights.shape, found.dual.shape, bool(found.relative_gap.max() <= 1e-4)
      ((1, 2), (1, 2), True)
    """

    weights: jax.Array
    dual: jax.Array
    relative_gap: jax.Array
    iterations: jax.Array
    status: jax.Array


def status_names(status: ArrayLike) -> np.ndarray:
    """The `simjax.Status` of each number in `SolvedRows.status`, as strings; not for traced arrays.

    Examples:
      >>> import simjax
      >>> simjax.functional.status_names([0]).tolist()
      ['SOLVED']
    """
    return np.array([str(name) for name in Status])[np.asarray(status)]


def solve_rows(
    design: ArrayLike,
    targets: ArrayLike,
    *,
    loss_weight: ArrayLike = 1.0,
    penalty: Penalty,
    constraint: Constraint | None = None,
    support: ArrayLike | None = None,
    matching: str = "penalty",
    tol: float | None = None,
    max_iters: int = 20_000,
) -> SolvedRows:
    """Solve R independent rows over one design, as a pure function of arrays.

        penalty   min_w  λ ‖t − Φw‖² + h(w)     s.t.  w in the constraint and the support
        exact     min_w  h(w)  s.t.  Φw = t,          w in the constraint and the support

    Over-relaxed ADMM with a polish of rows whose signs have settled, in one `while_loop` that ends when every row is
    solved; nothing is sent to the host. It composes with `jit`, `vmap`, `scan` and `shard_map` over rows, which
    exchange nothing, and has derivatives with respect to design, targets, loss_weight, and the parameters of
    penalty and constraint. They come from the equations on the active set, so that their memory does not grow with the
    passes; where the active set changes (a kink of the solution) they are those of the side found. Rows that are
    not at least ALMOST_SOLVED have NaN for derivatives.

    Args:
      design: Φ, (m, d), float32 or float64: the precision of all that follows.
      targets: (m, R), one column per row.
      loss_weight: λ > 0, scalar or (R,).
      penalty: h, one of simjax's; parameters scalar, (d,) or (R, d), traced or not.
      constraint: `L1Ball`, `MetzlerRow`, `Box`, `Free` or None; parameters traced or not.
      support: boolean mask (d,) or (R, d) of the entries that may be nonzero, or None.
      matching: "penalty" or "exact". Rows that are infeasible end as MAX_ITERS here: only the host proves them so.
      tol: relative gap at which a row counts as solved; None means 1e-6 in float64, 1e-4 in float32. A Python number.
      max_iters: most passes over the design. A Python number.

    Raises:
      TypeError, ValueError: naming the argument, what was got and what was expected. Of traced values only shapes and
        types are known; a row with a NaN in it ends as NONFINITE, with weights of zero.

    Examples:
      >>> import jax, jax.numpy as jnp, simjax
      >>> solve = jax.jit(simjax.functional.solve_rows)
      >>> targets = jnp.array([[3.0], [1.0]])
      >>> solve(jnp.eye(2), targets, penalty=simjax.L1(2.0)).weights.round(3).tolist()
      [[2.0, 0.0]]
    """
    with _settings():
        problem = _problem(design, targets, loss_weight, penalty, constraint, support, matching)
        single = problem.design.dtype == np.float32
        tol = (1e-4 if single else 1e-6) if tol is None else positive_scalar("tol", tol)
        return _solved(problem, tol, positive_integer("max_iters", max_iters))


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """None of the settings by which a user makes JAX strict with code of his own."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield


def _problem(
    design: Any, targets: Any, loss_weight: Any, penalty: Any, constraint: Any, support: Any, matching: str
) -> RowProblem:
    """The rows in arrays of one precision, their shapes checked."""
    design, targets = _real("design", design), _real("targets", targets)
    for name, array in (("design", design), ("targets", targets)):
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"{name} must be a matrix that is not empty, got shape {array.shape}.")
    if targets.shape[0] != design.shape[0]:
        raise ValueError(
            f"targets must have as many rows as design ({design.shape[0]} samples), got shape {targets.shape}."
        )
    dtype = jnp.promote_types(jnp.result_type(design, targets), np.float32)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"design and targets must be float32 or float64, got {dtype}.")
    (d, rows), loss_weight = (design.shape[1], targets.shape[1]), _real("loss_weight", loss_weight)
    choice("matching", matching, MATCHINGS)
    if loss_weight.shape not in ((), (rows,)):
        raise ValueError(f"loss_weight must be a scalar or ({rows},), got shape {loss_weight.shape}.")
    if not isinstance(penalty, PiecewisePenalty | GroupPenalty):
        raise TypeError(
            f"penalty must be one of simjax's here, got {type(penalty).__name__}: a penalty of your own is for "
            "simjax.solve_rows."
        )
    constraint = Free() if constraint is None else constraint
    if not isinstance(constraint, Constraint):
        got = type(constraint).__name__
        raise TypeError(f"constraint must be an L1Ball, a MetzlerRow, a Box, Free or None, got {got}.")
    penalty, constraint = (_in_precision(dtype, part) for part in (penalty, constraint))
    if support is not None:
        support = jnp.asarray(support)
        if support.dtype != np.bool_ or support.shape not in ((d,), (rows, d)):
            raise ValueError(
                f"support must be a boolean mask ({d},) or ({rows}, {d}), got {support.dtype} of shape {support.shape}."
            )
        support = jnp.broadcast_to(support, (rows, d))

    def cast(array: Any) -> Any:
        return jnp.asarray(array, dtype) if jnp.issubdtype(array.dtype, np.floating) else jnp.asarray(array)

    own: Any = penalty.checked(rows, d) if isinstance(penalty, GroupPenalty) else penalty
    check_groups(own, constraint)
    if isinstance(own, PiecewisePenalty):
        parameters = (own.slope, own.curvature, own.knot)
        own = PiecewisePenalty(*(cast(parameter_rows(jnp.asarray(x), rows, d)) for x in parameters))
    else:
        own = GroupPenalty(cast(jnp.asarray(own.level)), jnp.asarray(own.labels))
    if isinstance(constraint, Box):
        own = BoxedPenalty(own, *(cast(jnp.asarray(side)) for side in constraint.sides(rows, d, support)))
    make: Any = RowProblem  # whose arrays are NumPy's elsewhere
    return make(
        design=cast(design),
        targets=cast(targets),
        loss_weight=jnp.broadcast_to(cast(loss_weight), (rows,)),
        penalty=own,
        bound=tree_map(cast, constraint.bound(rows, d, support)),
        support=support,
        matching=matching,
    )


def _in_precision(dtype: Any, parameterised: Any) -> Any:
    """A penalty or constraint with parameters of one precision, before anything is worked out of them.

    Another class of the same family, of the user's own, is no tree of its parameters, and is left as it is.
    """
    if jax.tree_util.all_leaves((parameterised,)):
        return parameterised

    def cast(leaf: Any) -> Any:
        leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, np.floating) else leaf

    return jax.tree.map(cast, parameterised)


def _real(name: str, value: Any) -> jax.Array:
    if scipy.sparse.issparse(value):
        raise TypeError(
            f"{name} must be a dense array here, got a sparse matrix: simjax.solve_rows takes sparse designs."
        )
    array = jnp.asarray(value)
    if not (jnp.issubdtype(array.dtype, np.floating) or jnp.issubdtype(array.dtype, np.integer)):
        raise TypeError(f"{name} must be an array of real numbers, got dtype {array.dtype}.")
    return array


@functools.partial(jax.jit, static_argnums=(1, 2))
def _solved(problem: RowProblem, tol: float, max_iters: int) -> SolvedRows:
    found = _found(lax.stop_gradient(problem), tol, max_iters)
    proved = (found.status <= _CODES[Status.ALMOST_SOLVED])[:, None]
    known = jnp.where(proved, jnp.ones_like(found.weights[:, :1]), jnp.nan)
    weights, dual = _moving_with(problem, found.weights, found.dual, known)
    return found._replace(weights=weights, dual=dual)


@jax.custom_jvp
def _moving_with(problem: RowProblem, weights: Any, dual: Any, known: Any) -> tuple[Any, Any]:
    """Weights and dual points as they are, with the derivatives of a solution of the problem, times `known` (R, 1)."""
    return weights, dual


@_moving_with.defjvp
def _derivative(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    problem, known = primals[0], primals[-1]
    weights, dual = _moving_with(*primals)  # which again move with the problem, for higher derivatives
    moved = kkt.tangents(problem, tangents[0], weights, dual)
    return (weights, dual), tuple(known * part for part in moved)


def _found(problem: RowProblem, tol: float, max_iters: int) -> SolvedRows:
    scale = balancing_scale(problem.design, problem.penalty)
    factorisation, left = traced_factorisation(problem.design / scale)
    rows = canonical_rows(problem, factorisation, matmul(problem.targets.T, left), scale)
    weights, dual, passes = _passes(factorisation, rows, _SHARE * tol, max_iters)

    # The gap that counts is that of the weights in their own units, in the samples.
    box, scaled = box_of(problem.penalty), box_of(rows.penalty)
    found, weights = weights, weights * rows.point_scale
    finite = jnp.isfinite(weights).all(axis=1)
    weights = jnp.where(finite[:, None], weights, 0.0)
    if box is not None and scaled is not None:  # those on a bound stay there: a change of units rounds
        weights = jnp.where(found >= scaled.upper, box.upper, jnp.where(found <= scaled.lower, box.lower, weights))
        weights = box.clip(weights)
    weights = moved_inside(problem.penalty, problem.bound, weights)
    inside = dual * rows.dual_scale
    inside = inside if rows.exact else inside - rows.targets * rows.dual_scale
    dual = matmul(inside, left.T)
    if not rows.exact:
        dual = dual + 2.0 * problem.loss_weight[:, None] * problem.targets.T
    samples = in_samples(problem.design)
    stated = canonical_rows(problem, samples, problem.targets.T, jnp.ones_like(scale))
    scaled = box_of(stated.penalty)
    found = weights / stated.point_scale
    if box is not None and scaled is not None:  # a compiler may divide the bounds in another order
        found = jnp.where(weights == box.upper, scaled.upper, jnp.where(weights == box.lower, scaled.lower, found))
    judged: Any = judge(samples, stated, found, dual / stated.dual_scale)
    dual, gap = judged
    finite = finite & ~jnp.isnan(gap)
    gap = jnp.where(finite, gap, jnp.inf)
    status = jnp.where(gap <= _ALMOST * tol, _CODES[Status.ALMOST_SOLVED], _CODES[Status.MAX_ITERS])
    status = jnp.where(gap <= tol, _CODES[Status.SOLVED], status)
    status = jnp.where(finite, status, _CODES[Status.NONFINITE]).astype(np.int32)
    return SolvedRows(jnp.asarray(weights), dual * stated.dual_scale, gap, passes, status)


class _Carry(NamedTuple):
    state: admm.AdmmState
    weights: Any  # (R, d), the best so far, in canonical units
    dual: Any  # (R, r)
    gap: Any  # (R,)
    passes: Any  # (R,), until now or until the row was solved
    sign: Any  # (R, d), of the weights at the last check
    polished: Any  # (R, d), and at the last polish
    count: Any  # passes until now


def _passes(factorisation: Factorisation, rows: CanonicalRows, tol: float, max_iters: int) -> tuple[Any, Any, Any]:
    """Canonical weights (R, d), dual points (R, r) and how many passes each row took, (R,)."""
    make: Any = RowProblem
    reduced = make(
        design=factorisation.singular_values[:, None] * factorisation.basis.T,
        targets=rows.targets.T,
        loss_weight=jnp.full_like(rows.targets[:, 0], 0.5),
        penalty=rows.penalty,
        bound=rows.bound,
        support=rows.support,
        matching="exact" if rows.exact else "penalty",
    )
    gram, box = None if rows.exact else matmul(reduced.design.T, reduced.design), box_of(rows.penalty)
    rounding = 100.0 * float(jnp.finfo(rows.targets.dtype).eps)

    def judged(weights: Any, dual: Any) -> tuple[Any, Any, Any]:
        weights = rows.inside(weights)
        dual, gap = judge(factorisation, rows, weights, dual)
        return weights, dual, jnp.where(jnp.isnan(gap), jnp.inf, gap)

    # Always as many: what depends on the number of a pass is then the same for all problems of a batch.
    stretch = min(CHECK_EVERY, max_iters)

    def unfinished(carry: _Carry) -> Any:
        return jnp.any(carry.gap > tol) & (carry.count + stretch <= max_iters)

    def check(carry: _Carry) -> _Carry:
        state = admm.advance(factorisation, rows, carry.state, passes=stretch)
        weights, dual, gap = judged(*admm.point(state))
        open_ = carry.gap > tol
        sign = jnp.sign(weights)
        if box is not None:  # on a bound other than zero, a weight counts as having another sign
            sign = jnp.where(box.fixed(weights), 3.0 * sign, sign)
        settled = jnp.sum(sign != carry.sign, axis=1) <= _SETTLED
        # The same signs again would be polished to the same point.
        # With groups a polish depends on more than signs.
        fresh = jnp.any(sign != carry.polished, axis=1) | (not rows.penalty.separable)
        worth = open_ & (settled | (gap <= tol)) & fresh
        better, better_dual, better_gap = judged(*kkt.polish(reduced, gram, weights, dual, worth))
        # As good a gap is taken as well: where its signs are right, the polished point is exact to rounding.
        won = worth & (better_gap <= jnp.maximum(gap, rounding))
        weights = jnp.where(won[:, None], better, weights)
        dual = jnp.where(won[:, None], better_dual, dual)
        gap = jnp.where(won, better_gap, gap)
        moved = admm.restart(factorisation, state, weights, dual)
        state = jax.tree.map(lambda old, new: jnp.where(won[:, None], new, old), state, moved)
        improved = open_ & (gap < carry.gap)
        return _Carry(
            state,
            jnp.where(improved[:, None], weights, carry.weights),
            jnp.where(improved[:, None], dual, carry.dual),
            jnp.where(improved, gap, carry.gap),
            jnp.where(open_, carry.passes + stretch, carry.passes),
            sign,
            jnp.where(worth[:, None], sign, carry.polished),
            carry.count + stretch,
        )

    state = admm.start(factorisation, rows)
    weights, dual, gap = judged(*admm.point(state))
    passes = jnp.zeros_like(gap, dtype=np.int32)
    unknown = jnp.full_like(weights, 2.0)
    first = _Carry(state, weights, dual, gap, passes, unknown, unknown, jnp.zeros((), np.int32))
    last = while_loop(unfinished, check, first, jnp)
    return last.weights, last.dual, last.passes
