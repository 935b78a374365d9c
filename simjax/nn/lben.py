"""Lipschitz bounded equilibrium networks (Revay, Wang, Manchester 2020), and other Lipschitz layers as such.

z = σ(Wz + Ux + b), y = Cz + c is γ-Lipschitz in l2 if some diagonal Λ ≻ 0 satisfies

    2Λ − ΛW − WᵀΛ − γ⁻¹(CᵀC + ΛUUᵀΛ) ⪰ 0                                                            (LMI)

and has one equilibrium if also 2Λ − ΛW − WᵀΛ ≻ 0. SLL, CPL, AOL, Sandwich layers and monDEQs satisfy it
with their own constant (Havens et al., "Exploiting connections between Lipschitz structures for certifiably
robust deep equilibrium models", NeurIPS 2023), and so do cascades of them. Here σ is relu, or the identity
on chosen states, which is how a layer with a skip connection is written without a direct term; identity
states are eliminated from the matrices in use.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax._checks import float_array, matrix, positive_scalar
from simjax.implicit.equilibrium import Equilibrium, affine
from simjax.implicit.loop import Solver
from simjax.nn.base import ImplicitModule, Matrices, checked_sizes, in_float64, scaled_normal
from simjax.nn.mondeq import MonDEQ, solve_monotone

_LMI_TOL = 1e-9


class LipschitzForm(NamedTuple):
    """z = σ(Wz + Ux + b), y = Cz + c with the evidence that it is γ-Lipschitz; NumPy float64.

    Attributes:
      W: (n, n).
      U: (n, p).
      C: (q, n).
      weights: (n,) the positive diagonal of Λ.
      gamma: the constant γ that the LMI certifies.
      b: (n,).
      c: (q,).
      identity: (n,) bool, the states whose activation is the identity; the others are relu.
    """

    W: np.ndarray
    U: np.ndarray
    C: np.ndarray
    weights: np.ndarray
    gamma: float
    b: np.ndarray
    c: np.ndarray
    identity: np.ndarray

    def slack(self) -> np.ndarray:
        """The matrix 2Λ − ΛW − WᵀΛ − γ⁻¹(CᵀC + ΛUUᵀΛ) of the LMI, (n, n)."""
        LW, LU = self.weights[:, None] * self.W, self.weights[:, None] * self.U
        return 2.0 * np.diag(self.weights) - LW - LW.T - (self.C.T @ self.C + LU @ LU.T) / self.gamma


class LBEN(ImplicitModule):
    """z = σ(Wz + Ux + b), y = Cz + c, γ-Lipschitz in l2 for every value of the parameters.

        W = I − Λ⁻¹[(CᵀC + ΛUUᵀΛ)/(2γ) + VᵀV + εI + S − Sᵀ],   Λ = diag(exp λ);   U, C, V, S, λ, b, c free

    The slack of the LMI is then 2(VᵀV + εI). With identity states the exported matrices are those of the
    relu states alone, which have a direct term D and satisfy the LMI with D.

    Args:
      p, n, q: numbers of inputs, states and outputs.
      gamma: the Lipschitz constant γ > 0.
      epsilon: ε > 0, which makes the equilibrium unique.
      solver: settings of the Peaceman–Rachford iteration.
      rngs: random numbers for the initial weights; None means `nnx.Rngs(0)`.

    Raises:
      ValueError: a size below one, gamma ≤ 0, epsilon ≤ 0.
      TypeError: sizes that are not integers.

    Examples:
      >>> import numpy as np
      >>> from simjax.nn import LBEN
      >>> network = LBEN(3, 6, 2, gamma=1.0)
      >>> network(np.ones((4, 3), np.float32)).shape
      (4, 2)
    """

    def __init__(
        self,
        p: int,
        n: int,
        q: int,
        *,
        gamma: float = 1.0,
        epsilon: float = 0.01,
        solver: Solver | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        super().__init__("relu", solver)
        p, n, q = checked_sizes(p, n, q)
        self.gamma = positive_scalar("gamma", gamma)
        self.epsilon = positive_scalar("epsilon", epsilon)
        self.identity = (False,) * n
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.U = scaled_normal(rngs, (n, p))
        self.C = scaled_normal(rngs, (q, n))
        self.V = scaled_normal(rngs, (n, n))
        self.S = scaled_normal(rngs, (n, n), 0.5)
        self.log_weights = nnx.Param(jnp.zeros(n))
        self.b = nnx.Param(jnp.zeros(n))
        self.c = nnx.Param(jnp.zeros(q))

    @classmethod
    def from_form(cls, form: LipschitzForm, *, solver: Solver | None = None) -> LBEN:
        """The LBEN with the matrices of `form`.

        With M = Λ(I − W) − (CᵀC + ΛUUᵀΛ)/(2γ): VᵀV = ½(M + Mᵀ), S = ½M and ε = 0.

        Trained further it keeps γ, not the structure the form came from. A form whose slack is singular has
        ε = 0, so that uniqueness of the equilibrium rests on the form.

        Raises:
          ValueError: shapes that do not fit, or a form that does not satisfy its LMI (to 1e-9 of its size).
        """
        form = _checked_form(form)
        n, p, q = form.U.shape[0], form.U.shape[1], form.C.shape[0]
        values, vectors = np.linalg.eigh(form.slack() / 2.0)
        if values[0] < -_LMI_TOL * max(1.0, values[-1]):
            raise ValueError(
                f"form must satisfy its LMI with gamma = {form.gamma:g}; the least eigenvalue of the slack is "
                f"{2.0 * values[0]:.3g}."
            )
        LU = form.weights[:, None] * form.U
        M = np.diag(form.weights) - form.weights[:, None] * form.W
        M -= (form.C.T @ form.C + LU @ LU.T) / (2.0 * form.gamma)
        module = cls(p, n, q, gamma=form.gamma, solver=solver)
        module.epsilon = 0.0
        module.identity = tuple(bool(flag) for flag in form.identity)
        root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
        parameters = {"V": root, "S": M / 2.0, "log_weights": np.log(form.weights)}
        parameters |= {"U": form.U, "C": form.C, "b": form.b, "c": form.c}
        for name, value in parameters.items():
            getattr(module, name)[...] = jnp.asarray(value)
        return module

    def form(self) -> LipschitzForm:
        """W, U, C with their certificate (Λ, γ), in float64, identity states included."""
        with jax.enable_x64(True):
            exact = in_float64(self)
            return LipschitzForm(
                W=np.asarray(exact._W()),
                U=np.asarray(exact.U[...]),
                C=np.asarray(exact.C[...]),
                weights=np.asarray(jnp.exp(exact.log_weights[...])),
                gamma=self.gamma,
                b=np.asarray(exact.b[...]),
                c=np.asarray(exact.c[...]),
                identity=np.array(self.identity),
            )

    def matrices(self) -> Matrices:
        """The matrices of the relu states; identity states z₀ = (I − W₀₀)⁻¹(W₀₁z₁ + U₀x + b₀) are put in."""
        W, U, C, b, c = self._W(), self.U[...], self.C[...], self.b[...], self.c[...]
        if not any(self.identity):
            return Matrices(W, U, C, None, b, c)
        i, r = np.flatnonzero(self.identity), np.flatnonzero(np.logical_not(self.identity))
        joint = jnp.concatenate([W[i][:, r], U[i], b[i, None]], axis=1)
        joint = jnp.linalg.solve(jnp.eye(len(i), dtype=W.dtype) - W[i][:, i], joint)
        K, L, l = joint[:, : len(r)], joint[:, len(r) : -1], joint[:, -1]
        into, out = W[r][:, i], C[:, i]
        return Matrices(
            W[r][:, r] + into @ K, U[r] + into @ L, C[:, r] + out @ K, out @ L, b[r] + into @ l, c + out @ l
        )

    def solve(self, matrices: Matrices, u: jax.Array) -> Equilibrium:
        """The equilibrium for inputs u (m, p), with a report per sample on the splitting's own variable."""
        weights = jnp.exp(self.log_weights[...])[np.flatnonzero(np.logical_not(self.identity))]
        drive = affine(matrices.B, u, matrices.b)
        return solve_monotone(matrices.A, drive, weights=weights, solver=self.solver)

    def weights(self) -> np.ndarray:
        """The diagonal of Λ for the states of the export, which makes its `lipschitz_lmi` with γ nonnegative."""
        form = self.form()
        return form.weights[~form.identity]

    def lipschitz_l2(self) -> float:
        """γ."""
        return self.gamma

    def _W(self) -> jax.Array:
        U, C, V, S = self.U[...], self.C[...], self.V[...], self.S[...]
        weights = jnp.exp(self.log_weights[...])
        LU = weights[:, None] * U
        eye = jnp.eye(len(weights), dtype=U.dtype)
        bracket = (C.T @ C + LU @ LU.T) / (2.0 * self.gamma) + V.T @ V + self.epsilon * eye + S - S.T
        return eye - bracket / weights[:, None]


# ---- layers in Lipschitz form ----------------------------------------------------------------------------


def sll(K: Any, b: Any = None, q: Any = None) -> LipschitzForm:
    """The 1-Lipschitz SDP-based layer y = x − 2KᵀT⁻¹relu(Kx + b) of Araujo et al. (2023).

    T is diagonal with T_i = Σ_j |KKᵀ|_ij q_j/q_i.

    Written with the identity state z₀ = x: W = [[0, 0], [K, 0]], U = [I; 0], C = [I, −2KᵀT⁻¹], Λ =
    blkdiag(I, 2T⁻¹).

    Args:
      K: (h, p) without zero rows.
      b: (h,), None for zero.
      q: (h,) positive, None for ones.

    Raises:
      ValueError: arrays that do not fit, a zero row of K, q not positive.
    """
    K = matrix("K", K)
    q = np.ones(len(K)) if q is None else _vector("q", q, len(K))
    if np.any(q <= 0.0):
        raise ValueError(f"q must be positive, got a least entry of {q.min():g}.")
    return _residual_layer(K, b, np.abs(K @ K.T) @ q / q)


def cpl(K: Any, b: Any = None) -> LipschitzForm:
    """The 1-Lipschitz convex potential layer y = x − 2Kᵀrelu(Kx + b)/‖K‖₂² (Meunier et al. 2022): SLL, T = ‖K‖₂²I."""
    K = matrix("K", K)
    return _residual_layer(K, b, np.full(len(K), np.linalg.norm(K, 2) ** 2))


def _residual_layer(K: np.ndarray, b: Any, T: np.ndarray) -> LipschitzForm:
    """The layer y = x − 2KᵀT⁻¹relu(Kx + b) with an identity state for x."""
    if np.any(T <= 0.0):
        raise ValueError("K must have no zero row.")
    h, p = K.shape
    return LipschitzForm(
        W=np.block([[np.zeros((p, p + h))], [K, np.zeros((h, h))]]),
        U=np.vstack([np.eye(p), np.zeros((h, p))]),
        C=np.hstack([np.eye(p), -2.0 * K.T / T]),
        weights=np.concatenate([np.ones(p), 2.0 / T]),
        gamma=1.0,
        b=np.concatenate([np.zeros(p), _vector("b", b, h)]),
        c=np.zeros(p),
        identity=np.arange(p + h) < p,
    )


def aol(P: Any, b: Any = None) -> LipschitzForm:
    """The 1-Lipschitz almost orthogonal layer y = relu(Pt^−½x + b), t_j = Σ_k |PᵀP|_jk (Prach, Lampert 2022).

    W = 0, U = Pt^−½, C = I, Λ = I.

    Args:
      P: (h, p) without zero columns.
      b: (h,), None for zero.

    Raises:
      ValueError: arrays that do not fit, a zero column of P.
    """
    P = matrix("P", P)
    t = np.abs(P.T @ P).sum(axis=1)
    if np.any(t <= 0.0):
        raise ValueError("P must have no zero column.")
    return _relu_layer(P / np.sqrt(t), np.eye(len(P)), np.ones(len(P)), b)


def sandwich(G: Any, H: Any, psi: Any = None, b: Any = None) -> LipschitzForm:
    """The 1-Lipschitz sandwich layer y = √2 GᵀΨ relu(√2 Ψ⁻¹Hx + b), GGᵀ + HHᵀ = I (Wang, Manchester 2023).

    W = 0, U = √2 Ψ⁻¹H, C = √2 GᵀΨ, Λ = Ψ², without slack.

    Args:
      G: (h, q).
      H: (h, p).
      psi: (h,) the positive diagonal of Ψ; None is ones.
      b: (h,), None for zero.

    Raises:
      ValueError: arrays that do not fit, GGᵀ + HHᵀ ≠ I (to 1e-9), psi not positive.
    """
    G, H = matrix("G", G), matrix("H", H)
    if len(G) != len(H):
        raise ValueError(f"G and H must have the same number of rows, got {G.shape} and {H.shape}.")
    psi = np.ones(len(G)) if psi is None else _vector("psi", psi, len(G))
    if np.any(psi <= 0.0):
        raise ValueError(f"psi must be positive, got a least entry of {psi.min():g}.")
    error = np.abs(G @ G.T + H @ H.T - np.eye(len(G))).max()
    if error > _LMI_TOL:
        raise ValueError(f"G and H must satisfy GGᵀ + HHᵀ = I, which fails by {error:.3g}; see `orthogonal_rows`.")
    return _relu_layer(np.sqrt(2.0) * H / psi[:, None], np.sqrt(2.0) * (G.T * psi), psi**2, b)


def orthogonal_rows(free_G: Any, free_H: Any) -> tuple[np.ndarray, np.ndarray]:
    """(G, H) with GGᵀ + HHᵀ = I from free (h, q) and (h, p), h ≤ q + p: the polar factor of [G H].

    Raises:
      ValueError: arrays that do not fit, or [G H] without full row rank.
    """
    G, H = matrix("free_G", free_G), matrix("free_H", free_H)
    if len(G) != len(H):
        raise ValueError(f"free_G and free_H must have the same number of rows, got {G.shape} and {H.shape}.")
    left, values, right = np.linalg.svd(np.hstack([G, H]), full_matrices=False)
    if len(values) < len(G) or values[-1] <= 1e-12 * values[0]:
        raise ValueError("[free_G free_H] must have full row rank.")
    factor = left @ right
    return factor[:, : G.shape[1]], factor[:, G.shape[1] :]


def mondeq_form(module: MonDEQ) -> LipschitzForm:
    """A monDEQ in Lipschitz form: Λ = (‖C‖₂/‖U‖₂)I, γ = ‖C‖₂‖U‖₂/m.

    Raises:
      TypeError: module that is not a MonDEQ.
      ValueError: C or U that is zero.
    """
    if not isinstance(module, MonDEQ):
        raise TypeError(f"module must be a MonDEQ, got {type(module).__name__}.")
    model = module.export()
    output, injection = np.linalg.norm(model.C, 2), np.linalg.norm(model.B, 2)
    if output == 0.0 or injection == 0.0:
        raise ValueError("module must have nonzero C and B.")
    return LipschitzForm(
        W=model.A,
        U=model.B,
        C=model.C,
        weights=np.full(model.n, output / injection),
        gamma=float(output * injection / module.m),
        b=model.b,
        c=model.c,
        identity=np.zeros(model.n, dtype=bool),
    )


def cascade(first: LipschitzForm, second: LipschitzForm) -> LipschitzForm:
    """`second` after `first`, with the product of their constants: Λ = blkdiag(γ₂Λ₁, Λ₂/γ₁), γ = γ₁γ₂.

    Raises:
      ValueError: outputs of `first` that are not as many as inputs of `second`.
    """
    first, second = _checked_form(first), _checked_form(second)
    if first.C.shape[0] != second.U.shape[1]:
        raise ValueError(f"first has {first.C.shape[0]} outputs, second has {second.U.shape[1]} inputs.")
    n1, n2 = len(first.W), len(second.W)
    return LipschitzForm(
        W=np.block([[first.W, np.zeros((n1, n2))], [second.U @ first.C, second.W]]),
        U=np.vstack([first.U, np.zeros((n2, first.U.shape[1]))]),
        C=np.hstack([np.zeros((len(second.C), n1)), second.C]),
        weights=np.concatenate([second.gamma * first.weights, second.weights / first.gamma]),
        gamma=first.gamma * second.gamma,
        b=np.concatenate([first.b, second.b + second.U @ first.c]),
        c=second.c,
        identity=np.concatenate([first.identity, second.identity]),
    )


def amplify(form: LipschitzForm, factor: float) -> LipschitzForm:
    """`factor` times the outputs, which are then factor·γ-Lipschitz, with factor·Λ.

    Raises:
      ValueError: factor that is not positive.
    """
    form, factor = _checked_form(form), positive_scalar("factor", factor)
    return form._replace(C=factor * form.C, c=factor * form.c, weights=factor * form.weights, gamma=factor * form.gamma)


def _relu_layer(U: np.ndarray, C: np.ndarray, weights: np.ndarray, b: Any) -> LipschitzForm:
    """The layer y = C relu(Ux + b), certified 1-Lipschitz by Λ = diag(weights)."""
    h = len(U)
    none = np.zeros(h, dtype=bool)
    return LipschitzForm(np.zeros((h, h)), U, C, weights, 1.0, _vector("b", b, h), np.zeros(len(C)), none)


def _vector(name: str, value: Any, size: int) -> np.ndarray:
    array = np.zeros(size) if value is None else float_array(name, value)
    if array.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {array.shape}.")
    return array


def _checked_form(form: Any) -> LipschitzForm:
    if not isinstance(form, LipschitzForm):
        raise TypeError(f"form must be a LipschitzForm, got {type(form).__name__}.")
    W, U, C = matrix("form.W", form.W), matrix("form.U", form.U), matrix("form.C", form.C)
    n = len(W)
    if W.shape != (n, n) or len(U) != n or C.shape[1] != n:
        raise ValueError(f"form must have W (n, n), U (n, p), C (q, n), got {W.shape}, {U.shape}, {C.shape}.")
    weights = _vector("form.weights", form.weights, n)
    if np.any(weights <= 0.0):
        raise ValueError(f"form.weights must be positive, got a least entry of {weights.min():g}.")
    identity = np.asarray(form.identity)
    if identity.shape != (n,) or identity.dtype != bool or identity.all():
        raise ValueError(f"form.identity must be {n} booleans, not all True.")
    gamma = positive_scalar("form.gamma", form.gamma)
    return LipschitzForm(
        W, U, C, weights, gamma, _vector("form.b", form.b, n), _vector("form.c", form.c, len(C)), identity
    )
