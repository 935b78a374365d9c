"""Monotone operator equilibrium networks (Winston, Kolter, NeurIPS 2020), and the splittings that solve them.

z = relu(Wz + Bu + b) has one solution if I − W is strongly monotone in some diagonal metric Λ ≻ 0. Since relu
is the projection onto z ≥ 0 whatever the metric and the step, both splittings find it:

    forward–backward    z ← relu((1 − α)z + α(Wz + Bu + b)),   0 < α < 2m/L²
    Peaceman–Rachford   v ← 2t − h,   z = relu(v), h = 2z − v, t = ((1 + α)I − αW)⁻¹(h + α(Bu + b)),   any α > 0

For other activations the step would enter their prox, so these models are ReLU models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from simjax._checks import choice, positive_integer, positive_scalar
from simjax.implicit.equilibrium import Equilibrium, affine, fixed_point
from simjax.implicit.loop import Solver
from simjax.nn.base import (
    ImplicitModule,
    Matrices,
    checked_sizes,
    scaled_normal,
    spectral_norm,
)

SPLITTINGS = ("peaceman_rachford", "forward_backward")


class MonDEQ(ImplicitModule):
    """z = relu(Wz + Bu + b), y = Cz + c with I − W strongly monotone: W = (1 − m)I − PᵀP + Q − Qᵀ.

    Lipschitz in l2 with the constant ‖C‖₂‖B‖₂/m. The multi-tier form folds the upper off-diagonal blocks of
    −PᵀP onto the lower ones and keeps only diagonal blocks of Q − Qᵀ: W is lower block triangular with the
    same symmetric part, and block bidiagonal in P it is the paper's, where each tier sees the one before.

    Args:
      p, n, q: numbers of inputs, states and outputs.
      m: monotonicity m > 0.
      tiers: sizes of the tiers, summing to n; None is a single tier.
      splitting: "peaceman_rachford" (one factorisation of W a call) or "forward_backward".
      solver: settings of the iteration; "anderson" accelerates the splitting, "averaged" and "picard" are
        the splitting itself.
      rngs: random numbers for the initial weights; None means `nnx.Rngs(0)`.

    Raises:
      ValueError: a size below one, m ≤ 0, tiers that do not sum to n, an unknown splitting.
      TypeError: sizes that are not integers.

    Examples:
      >>> import numpy as np
      >>> from simjax.nn import MonDEQ
      >>> network = MonDEQ(3, 6, 2, m=0.5)
      >>> network(np.ones((4, 3), np.float32)).shape
      (4, 2)
    """

    def __init__(
        self,
        p: int,
        n: int,
        q: int,
        *,
        m: float = 1.0,
        tiers: Sequence[int] | None = None,
        splitting: str = "peaceman_rachford",
        solver: Solver | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        super().__init__("relu", solver)
        p, n, q = checked_sizes(p, n, q)
        self.m = positive_scalar("m", m)
        self.tiers = _checked_tiers(tiers, n)
        self.splitting = choice("splitting", splitting, SPLITTINGS)
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.P = scaled_normal(rngs, (n, n))
        self.Q = scaled_normal(rngs, (n, n))
        self.B = scaled_normal(rngs, (n, p))
        self.C = scaled_normal(rngs, (q, n))
        self.b = nnx.Param(jnp.zeros(n))
        self.c = nnx.Param(jnp.zeros(q))

    def matrices(self) -> Matrices:
        """A = W, B, C, b, c from the parameters."""
        P, Q = self.P[...], self.Q[...]
        n = P.shape[0]
        tier = np.repeat(np.arange(len(self.tiers)), self.tiers)
        step = tier[:, None] - tier  # 0 within a tier, 1 from a tier to the next
        P = jnp.where((step == 0) | (step == 1), P, 0.0)
        gram = P.T @ P
        folded = jnp.where(step == 0, gram, jnp.where(step > 0, 2.0 * gram, 0.0))
        skew = jnp.where(step == 0, Q - Q.T, 0.0)
        W = (1.0 - self.m) * jnp.eye(n, dtype=P.dtype) - folded + skew
        return Matrices(W, self.B[...], self.C[...], None, self.b[...], self.c[...])

    def solve(self, matrices: Matrices, u: jax.Array) -> Equilibrium:
        """The equilibrium for inputs u (m, p), with a report per sample on the splitting's own variable."""
        drive = affine(matrices.B, u, matrices.b)
        return solve_monotone(matrices.A, drive, splitting=self.splitting, solver=self.solver, m=self.m)

    def lipschitz_l2(self) -> float:
        """‖C‖₂‖B‖₂/m in float64: an l2 Lipschitz bound of u ↦ y."""
        model = self.export()
        return float(np.linalg.norm(model.C, 2) * np.linalg.norm(model.B, 2) / self.m)


def solve_monotone(
    W: jax.Array,
    drive: jax.Array,
    *,
    weights: jax.Array | None = None,
    splitting: str = "peaceman_rachford",
    solver: Solver | None = None,
    m: float | None = None,
    alpha: Any = None,
) -> Equilibrium:
    """Solve z = relu(Wz + drive) for every row of drive.

    There is one solution if Λ(I − W) + (I − W)ᵀΛ ≻ 0 for Λ = diag(weights), and both splittings find it.
    Differentiable in W and drive. Residuals in the report are of the splitting's variable, divided by its
    step so that they are of the size of those of the equation.

    Args:
      W: (n, n).
      drive: (m, n), Bu + b.
      weights: (n,) diagonal of Λ; None is the identity.
      splitting: "peaceman_rachford" or "forward_backward".
      solver: settings, by default `Solver()`.
      m: a lower bound on the monotonicity λ_min(I − (W̃ + W̃ᵀ)/2) of W̃ = Λ^½WΛ^−½, where it is known; None
        computes it. Only forward–backward needs it.
      alpha: the step; None is 1/‖I − W̃‖₂ for Peaceman–Rachford and m/‖I − W̃‖₂² for forward–backward.

    Raises:
      ValueError: an unknown splitting.
    """
    choice("splitting", splitting, SPLITTINGS)
    solver = Solver() if solver is None else solver
    if solver.method == "picard":  # the splitting itself: its step is part of its map
        solver = dataclasses.replace(solver, method="averaged")
    W, drive = W.astype(jnp.result_type(W, drive)), drive.astype(jnp.result_type(W, drive))
    eye = jnp.eye(W.shape[0], dtype=W.dtype)
    root = jnp.ones(W.shape[0], W.dtype) if weights is None else jnp.sqrt(weights).astype(W.dtype)
    scaled = lax.stop_gradient(eye - root[:, None] * W / root[None])  # I − W̃
    if alpha is None:
        alpha = 1.0 / spectral_norm(scaled)
        if splitting == "forward_backward":
            bound = jnp.linalg.eigvalsh((scaled + scaled.T) / 2.0)[0] if m is None else m
            alpha = bound * alpha**2
    alpha = lax.stop_gradient(jnp.asarray(alpha, W.dtype))
    start = jnp.zeros_like(drive)
    if splitting == "forward_backward":
        return fixed_point(_forward_backward, (W, drive, alpha), start, solver=solver, step=alpha)
    inverse = jnp.linalg.inv((1.0 + alpha) * eye - alpha * W)
    step = 2.0 * alpha / (1.0 + alpha)
    v, report = fixed_point(_peaceman_rachford, (inverse, drive, alpha), start, solver=solver, step=step)
    return Equilibrium(jax.nn.relu(v), report)


def _forward_backward(params: tuple, z: jax.Array) -> jax.Array:
    """The map z + (z⁺ − z)/α: its averaged step α is the forward–backward step, and residuals keep their size.

    (relu(z + α(w − z)) − z)/α = max(w − z, −z/α) with w = Wz + drive: no cancellation.
    """
    W, drive, alpha = params
    return z + jnp.maximum(affine(W, z, drive) - z, -z / alpha)


def _peaceman_rachford(params: tuple, v: jax.Array) -> jax.Array:
    """The map v + (v⁺ − v)(1 + 1/α)/2, likewise: z's residual is (t − z)(1 + 1/α − W) and v⁺ − v = 2(t − z)."""
    inverse, drive, alpha = params
    h = 2.0 * jax.nn.relu(v) - v
    following = 2.0 * affine(inverse, h + alpha * drive) - h
    return v + (following - v) * ((1.0 + 1.0 / alpha) / 2.0)


def _checked_tiers(tiers: Sequence[int] | None, n: int) -> tuple[int, ...]:
    if tiers is None:
        return (n,)
    sizes = tuple(positive_integer("tiers", size) for size in tiers)
    if sum(sizes) != n:
        raise ValueError(f"tiers must sum to n = {n}, got {sizes}.")
    return sizes
