"""Row problems with a known answer, and the certificate worked out again in plain NumPy, without the library's code."""

import dataclasses
import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

import simjax
from simjax.rows.penalties import PiecewisePenalty

# JAX compiles once per shape, so that the tests share these few.
WIDTH = 20
ROWS = 6
BOUND = 14  # coordinates the ball sees
WIDE, SQUARISH, TALL = 12, 30, 90  # samples: fewer than coordinates, a few more, enough for the Gram factorisation

PENALTIES = {
    "l1": simjax.L1(0.5),
    "perspective": simjax.Perspective(0.4),
    "perspective-knot": simjax.Perspective(0.5, 0.005),
    "elastic_net": simjax.ElasticNet(0.3, 0.2),
    "ridge": simjax.Ridge(0.5),
    "least_squares": simjax.NoPenalty(),
}


def generator(*seed):
    return np.random.default_rng(seed)


def sparse_rows(m, d=WIDTH, rows=ROWS, *, nonzeros=4, noise=0.1, seed=0):
    """A Gaussian design (m, d) and targets (m, rows) of sparse weights with noise."""
    rng = generator(seed, m, d, rows)
    weights = np.zeros((rows, d))
    for row in weights:
        row[rng.choice(d, min(nonzeros, d), replace=False)] = rng.normal(size=min(nonzeros, d))
    design = rng.normal(size=(m, d))
    return design, design @ weights.T + noise * rng.normal(size=(m, rows))


def with_condition(rng, m, d, condition):
    """A design (m, d) with singular values from 1 down to 1/condition, equally spaced on a logarithmic scale."""
    rank = min(m, d)
    left, _ = np.linalg.qr(rng.normal(size=(m, rank)))
    right, _ = np.linalg.qr(rng.normal(size=(d, rank)))
    return (left * np.geomspace(1.0, 1.0 / condition, rank)) @ right.T


def solve_quietly(*args, **kwargs):
    """`solve_rows` for rows that may miss the tolerance; the status says which."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", simjax.ConvergenceWarning)
        return simjax.solve_rows(*args, **kwargs)


def compiled_and_not(function):
    """The function as JAX compiles it; each call is compared with what NumPy makes of the same arrays."""
    compiled = jax.jit(function)

    def both(*arguments):
        found = compiled(*arguments)
        plain = function(*jax.tree.map(np.asarray, arguments))
        for ours, theirs in zip(jax.tree.leaves(plain), jax.tree.leaves(found), strict=True):
            assert type(ours) is np.ndarray
            assert ours.dtype == theirs.dtype
            size = np.max(np.abs(theirs), where=np.isfinite(theirs), initial=1.0)
            assert_allclose(ours, theirs, rtol=1e-11, atol=1e-13 * size)
        return found

    return both


# --- The formulas of the certificate, row by row, in NumPy -------------------------------------------------------


@dataclasses.dataclass
class Row:
    """One row of a `RowProblem` with everything written out; a constraint that is absent has κ = inf, ω = 0."""

    design: np.ndarray
    target: np.ndarray
    loss_weight: float
    slope: np.ndarray
    curvature: np.ndarray
    knot: np.ndarray
    omega: np.ndarray
    kappa: float
    allowed: np.ndarray
    exact: bool

    def value(self, w):
        """h(w) = Σ c|w| + a(|w| − b)₊²."""
        size = np.abs(w)
        return np.sum(self.slope * size + self.curvature * np.maximum(size - self.knot, 0.0) ** 2)

    def objective(self, w):
        fit = 0.0 if self.exact else self.loss_weight * np.sum((self.target - self.design @ w) ** 2)
        return fit + self.value(w)

    def conjugate_sum(self, s, theta, rounding):
        """κθ + Σ h*(soft(s, θω)) over the support, with h*(s) = b e + e²/(4a), e = (|s| − c)₊."""
        size = np.maximum(np.abs(s) - theta * self.omega, 0.0)[self.allowed]
        excess = np.maximum(size - self.slope[self.allowed], 0.0)
        curvature = self.curvature[self.allowed]
        flat = curvature < 1e-300  # a curvature whose inverse overflows demands as much as none
        # A demand |s| ≤ c that fails by no more than rounding holds.
        if np.any((excess > rounding[self.allowed] + 1e-12 * size)[flat]):
            return np.inf
        curved = excess[~flat]
        conjugate = np.sum(curved * (self.knot[self.allowed][~flat] + curved / (4.0 * curvature[~flat])))
        return conjugate + (self.kappa * theta if theta > 0.0 else 0.0)

    def support_function(self, s, rounding):
        """g*(s) = min over θ ≥ 0 of `conjugate_sum`, convex and piecewise quadratic: piece by piece, exactly."""
        if not np.isfinite(self.kappa):
            return self.conjugate_sum(s, 0.0, rounding)
        seen = self.allowed & (self.omega > 0.0)
        reach = (np.abs(s) - self.slope)[seen] / self.omega[seen]
        knots = np.unique(np.concatenate([[0.0], reach[reach > 0.0]]))
        candidates = list(knots)
        for low, high in itertools.pairwise(knots):
            inside = seen & (np.abs(s) - self.slope > 0.5 * (low + high) * self.omega)
            if not inside.any() or np.any(self.curvature[inside] < 1e-300):
                continue  # between two knots that are one but for rounding, or where the sum is infinite
            # κ − Σ ω (b + (|s| − θω − c)/(2a)) = 0
            a, omega = self.curvature[inside], self.omega[inside]
            rate = np.sum(omega**2 / (2.0 * a))
            level = np.sum(omega * (self.knot[inside] + (np.abs(s) - self.slope)[inside] / (2.0 * a)))
            candidates.append(np.clip((level - self.kappa) / rate, low, high))
        return min(self.conjugate_sum(s, theta, rounding) for theta in candidates)

    def dual_objective(self, y):
        """D(y) = yᵀt − ‖y‖²/(4λ) − g*(Φᵀy); without the square under exact matching."""
        smooth = 0.0 if self.exact else np.sum(y**2) / (4.0 * self.loss_weight)
        return y @ self.target - smooth - self.support_function(self.design.T @ y, self.slope_rounding(y))

    def slope_rounding(self, y):
        """How far each entry of Φᵀy can be off in float64."""
        return 1e-15 * (np.abs(self.design).T @ np.abs(y))

    def rounding(self, w, y):
        """How far P(w) and P(w) − D(y) can be off in float64."""
        residual = 1e-15 * np.linalg.norm(np.abs(self.design) @ np.abs(w) + np.abs(self.target))
        loss = 0.0 if self.exact else self.loss_weight
        fit = 2.0 * np.linalg.norm(self.target - self.design @ w) * residual + residual**2
        terms = self.value(w) + np.abs(y) @ np.abs(self.target) + 2.0 * loss * np.sum(self.target**2)
        return 1e-300 + 1e-14 * terms + 10.0 * (loss * fit + self.slope_rounding(y) @ np.abs(w))

    def farkas_margin(self, y):
        """(yᵀt − sup {yᵀΦw : w in the ball and the support}) / (‖y‖‖t‖): positive if y proves Φw = t impossible."""
        s = np.where(self.allowed, self.design.T @ y, 0.0)
        bounded = (self.omega > 0.0) & np.isfinite(self.kappa)
        size = np.linalg.norm(y)
        if np.any(np.abs(s[~bounded]) > 1e-11 * size * np.linalg.norm(self.design, axis=0)[~bounded]):
            return -np.inf
        reach = self.kappa * np.max(np.abs(s[bounded]) / self.omega[bounded]) if bounded.any() else 0.0
        return (y @ self.target - reach) / (size * np.linalg.norm(self.target))


def row_of(problem, index):
    """Row `index` of a checked `RowProblem` whose penalty is one of the built-in ones."""
    rows, d = problem.count, problem.width
    penalty = problem.penalty
    assert isinstance(penalty, PiecewisePenalty)

    def full(parameter):
        return np.broadcast_to(np.asarray(parameter), (rows, d))[index]

    ball = problem.bound
    return Row(
        design=problem.design,
        target=problem.targets[:, index],
        loss_weight=problem.loss_weight[index],
        slope=full(penalty.slope),
        curvature=full(penalty.curvature),
        knot=full(penalty.knot),
        omega=np.zeros(d) if ball is None else full(ball.omega),
        kappa=np.inf if ball is None else float(ball.radius[index, 0]),
        allowed=np.ones(d, dtype=bool) if problem.support is None else problem.support[index],
        exact=problem.exact,
    )


def rows_of(problem):
    return [row_of(problem, index) for index in range(problem.count)]


def assert_proved(design, targets, solution, **problem):
    """Check what a solution claims without the library: shapes, feasibility, and the gap of every row called SOLVED.

    Rows with another status only have to be finite, inside the ball and the support, with a true bound; INFEASIBLE ones
    need a ray that proves it.
    """
    checked = simjax.row_problem(design, targets, **problem)
    certificate = solution.certificate
    assert solution.weights.shape == (checked.count, checked.width)
    assert np.all(np.isfinite(solution.weights))
    assert np.all(np.isfinite(certificate.dual))
    for i, row in enumerate(rows_of(checked)):
        w, y = solution.weights[i], certificate.dual[i]
        assert np.all(w[~row.allowed] == 0.0)
        if np.isfinite(row.kappa):
            assert np.sum(row.omega * np.abs(w)) <= row.kappa * (1.0 + 1e-12)
        if solution.status[i] == "INFEASIBLE":
            assert row.exact
            assert row.farkas_margin(y) > 0.0
            continue
        objective, bound = row.objective(w), row.dual_objective(y)
        rounding = row.rounding(w, y)
        assert abs(objective - certificate.objective[i]) <= rounding
        if solution.status[i] == "SOLVED":
            floor = 0.0 if row.exact else 1e-12 * row.loss_weight * np.sum(row.target**2)
            assert objective - bound <= 1.001 * solution.tol * max(objective, floor) + rounding
            assert certificate.relative_gap[i] <= solution.tol
            if row.exact:
                residual = np.linalg.norm(row.design @ w - row.target)
                assert residual <= 1e-8 * np.linalg.norm(row.target)


def assert_solved(design, targets, solution, **problem):
    """Every row is certified, and NumPy agrees."""
    assert solution.converged, solution.summary()
    assert_proved(design, targets, solution, **problem)


# --- Penalties of a user's own -----------------------------------------------------------------------------------


class Huber:
    """h(w) = scale · (w²/2 up to |w| = 1, |w| − 1/2 beyond): bounded slope, so that its conjugate has a domain."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def value(self, weights):
        size = jnp.abs(weights)
        return self.scale * jnp.where(size <= 1.0, 0.5 * weights * weights, size - 0.5)

    def prox(self, points, step):
        step = self.scale * step
        inner = points / (1.0 + step)
        return jnp.where(jnp.abs(inner) <= 1.0, inner, points - step * jnp.sign(points))

    def conjugate(self, slopes):
        slopes = slopes / self.scale
        return self.scale * jnp.where(jnp.abs(slopes) <= 1.0, 0.5 * slopes * slopes, jnp.inf)


class Squares(simjax.Penalty):
    """h(w) = scale · w², one scale per row: what `Ridge` does, by hand."""

    def __init__(self, scale):
        self.scale = np.asarray(scale, dtype=float).reshape(-1, 1)

    def value(self, weights):
        return self.scale * weights * weights

    def prox(self, points, step):
        return points / (1.0 + 2.0 * self.scale * step)

    def conjugate(self, slopes):
        return slopes * slopes / (4.0 * self.scale)

    def rows(self, index):
        return Squares(self.scale[index])


class NonnegativeL1:
    """h(w) = scale · w for w ≥ 0, +inf below: not symmetric, not finite."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def value(self, weights):
        return jnp.where(weights >= 0.0, self.scale * weights, jnp.inf)

    def prox(self, points, step):
        return jnp.maximum(points - self.scale * step, 0.0)

    def conjugate(self, slopes):
        return jnp.where(slopes <= self.scale, 0.0, jnp.inf)


class ByHand:
    """The three functions of another penalty and nothing else, so that the library takes the path of user penalties."""

    def __init__(self, penalty):
        self.value, self.prox, self.conjugate = penalty.value, penalty.prox, penalty.conjugate


def on_eight_devices(program):
    """What a program prints in a process of its own, where JAX's CPU is eight devices."""
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
