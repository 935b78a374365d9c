"""How far outputs can move when inputs do: Lipschitz bounds.

Two equilibria of x = φ(Ax + Bu + b), ŷ = Cx + Du + c, with slopes of φ in [0, 1], differ by

    Δx = S(AΔx + BΔu),   S = diag(s), s ∈ [0, 1]ⁿ        so   Δŷ = (C(I − SA)⁻¹SB + D)Δu

and everything here bounds that matrix over all S. ⌈A⌉ is the Metzler majorant (a_ii signed, off-diagonal
|a_ij|); μ_η(A) = max_i a_ii + Σ_{j≠i} |a_ij| η_j/η_i is the measure of A in the norm max|x_i|/η_i
(Jafarpour et al., "Robust implicit networks via non-Euclidean contractions", 2021; "Robustness certificates
for implicit neural networks: a mixed monotone contractive approach", L4DC 2022).


All functions take an `ImplicitModel`, compute in float64 on the host and return NumPy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from simjax._checks import choice, matrix, positive_scalar
from simjax._typing import ArrayLike
from simjax._values import Value
from simjax.implicit.activations import activation as find_activation
from simjax.implicit.matrices import outputs as outputs_of
from simjax.implicit.matrices import preactivations
from simjax.implicit.model import ImplicitModel
from simjax.implicit.wellposed import matrix_measure, optimal_weights, positive_weights
from simjax.robustness._model import (
    NORMS,
    batches,
    checked_inputs,
    dense_matrices,
    host_equilibrium,
    inverse_majorant,
    norm_inf,
    sensitivity,
)
from simjax.states.states import States


@dataclass(frozen=True, eq=False, repr=False)
class LipschitzBounds(Value):
    """Upper bounds on how much outputs change per change of inputs; inf (or None) where none is known.

    Attributes:
      kappa: ‖C‖∞‖B‖∞/(1 − ‖A‖∞) + ‖D‖∞, for ‖Δŷ‖∞ ≤ L‖Δu‖∞.
      mu: the same with μ∞(A) for ‖A‖∞; valid, and smaller, for μ < 0 too.
      mu_weighted: ‖C[η]‖∞‖[η]⁻¹B‖∞/(1 − μ_η(A)) + ‖D‖∞ with `eta`.
      eta: (n,) the weights of `mu_weighted`, or None.
      elementwise: (q, p) E = |C|(I − ⌈A⌉)⁻¹|B| + |D|, so that |Δŷ| ≤ E|Δu|; ‖E‖∞ is below the bounds above.
      monotone_l2: ‖C‖₂‖B‖₂/m + ‖D‖₂ with m = λ_min(I − (A + Aᵀ)/2), for ‖Δŷ‖₂ ≤ L‖Δu‖₂.

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.5]], B=[[1.0]], C=[[2.0], [0.0]], D=[[0.0], [0.0]])
      >>> bounds = simjax.robustness.lipschitz_bounds(model)
      >>> round(bounds.inf, 9), round(bounds.l2, 9)
      (4.0, 4.0)
    """

    kappa: float
    mu: float
    mu_weighted: float
    eta: np.ndarray | None
    elementwise: np.ndarray | None
    monotone_l2: float

    @property
    def inf(self) -> float:
        """The smallest l∞ bound: ‖E‖∞, or a norm bound where E is not known."""
        known = [self.kappa, self.mu, self.mu_weighted]
        if self.elementwise is not None:
            known.append(float(np.abs(self.elementwise).sum(axis=1).max()))
        return min(known)

    @property
    def l2(self) -> float:
        """The smaller of ‖E‖₂ (loose) and the monotone bound."""
        known = [self.monotone_l2]
        if self.elementwise is not None:
            known.append(float(np.linalg.norm(self.elementwise, 2)))
        return min(known)


def lipschitz_bounds(model: ImplicitModel, eta: ArrayLike | None = None) -> LipschitzBounds:
    """All Lipschitz bounds of the model.

    Args:
      model: the implicit model.
      eta: (n,) positive weights of `mu_weighted`; None is `optimal_weights(A)` where they exist.

    Raises:
      TypeError: model that is not an ImplicitModel.
      ValueError: weights that do not fit or are not positive.

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.5]], B=[[1.0]], C=[[2.0], [0.0]], D=[[0.0], [0.0]])
      >>> simjax.robustness.lipschitz_bounds(model).kappa  # ‖C‖‖B‖/(1 − ‖A‖) + ‖D‖
      4.0
    """
    A, B, C, D = dense_matrices(model)
    best = optimal_weights(A)
    eta = best if eta is None else positive_weights("eta", eta, len(A))
    direct = norm_inf(D)
    product = norm_inf(B) * norm_inf(C)
    weighted = np.inf
    if eta is not None:
        scaled = norm_inf(C * eta) * norm_inf(B / eta[:, None])
        weighted = _quotient(scaled, 1.0 - matrix_measure(A, eta)) + direct
    return LipschitzBounds(
        kappa=_quotient(product, 1.0 - norm_inf(A)) + direct,
        mu=_quotient(product, 1.0 - matrix_measure(A)) + direct,
        mu_weighted=weighted,
        eta=eta,
        elementwise=None if best is None else sensitivity(A, B, C, D),
        monotone_l2=_quotient(_norm_2(C) * _norm_2(B), monotonicity(A)) + _norm_2(D),
    )


def monotonicity(A: ArrayLike) -> float:
    """The m = λ_min(I − (A + Aᵀ)/2); if positive the equilibrium is unique and ‖Δx‖₂ ≤ ‖BΔu‖₂/m (monDEQ).

    Examples:
      >>> import simjax
      >>> round(simjax.robustness.monotonicity([[0.5, 1.0], [-1.0, 0.5]]), 12)
      0.5
    """
    A = matrix("A", A)
    return float(1.0 - np.linalg.eigvalsh((A + A.T) / 2.0).max())


def lipschitz_lmi(model: ImplicitModel, weights: ArrayLike, gamma: float) -> float:
    """The least eigenvalue of the LMI that certifies ‖Δŷ‖₂ ≤ γ‖Δu‖₂; the certificate holds if it is ≥ 0.

        [[2Λ − ΛA − AᵀΛ, −ΛB], [−BᵀΛ, γI]] − γ⁻¹[C D]ᵀ[C D]   with Λ = diag(weights)

    (Revay, Wang, Manchester, "Lipschitz bounded equilibrium networks", 2020.)

    Args:
      model: the implicit model.
      weights: (n,) the positive diagonal of Λ.
      gamma: γ > 0.

    Raises:
      TypeError: model that is not an ImplicitModel.
      ValueError: weights that do not fit or are not positive, gamma not positive.

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.5]], B=[[1.0]], C=[[2.0], [0.0]], D=[[0.0], [0.0]])
      >>> simjax.robustness.lipschitz_lmi(model, weights=[2.0], gamma=5.0) >= 0
      True
    """
    A, B, C, D = dense_matrices(model)
    weights, gamma = positive_weights("weights", weights, len(A)), positive_scalar("gamma", gamma)
    LA, LB = weights[:, None] * A, weights[:, None] * B
    CD = np.hstack([C, D])
    block = np.block([[2.0 * np.diag(weights) - LA - LA.T, -LB], [-LB.T, gamma * np.eye(B.shape[1])]])
    return float(np.linalg.eigvalsh(block - CD.T @ CD / gamma).min())


def sampled_lipschitz(model: ImplicitModel, inputs: ArrayLike, norm: str = "inf") -> float:
    """The largest ‖∂ŷ/∂u‖ at the inputs: a lower bound on the Lipschitz constant, hence on every certificate.

    Args:
      model: the implicit model.
      inputs: (m, p) where to differentiate.
      norm: "inf" or "l2".

    Raises:
      ValueError: inputs that do not fit, an unknown norm, no sample that converges.

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.5]], B=[[1.0]], C=[[2.0], [0.0]], D=[[0.0], [0.0]])
      >>> round(simjax.robustness.sampled_lipschitz(model, [[1.0]]), 6)
      4.0
    """
    order = {"inf": np.inf, "l2": 2}[choice("norm", norm, NORMS)]
    A, B, C, D = dense_matrices(model)
    largest = -np.inf
    for U in batches(checked_inputs(model, inputs), 256):
        X = host_equilibrium(model, U)
        X, U = X[np.isfinite(X).all(axis=1)], U[np.isfinite(X).all(axis=1)]
        S = _slopes(model.activation, preactivations(model, X, U))
        # (C(I − SA)⁻¹)ᵀ by one solve with q right-hand sides a sample
        left = np.linalg.solve(
            np.eye(len(A)) - np.swapaxes(S[:, :, None] * A, 1, 2), np.broadcast_to(C.T, (len(S), *C.T.shape))
        )
        jacobians = np.swapaxes(left, 1, 2) @ (S[:, :, None] * B) + D
        largest = max(largest, np.linalg.norm(jacobians, order, axis=(1, 2)).max(initial=-np.inf))
    if largest == -np.inf:
        raise ValueError("inputs must have a sample whose equilibrium iteration converges, got none.")
    return float(largest)


# ---- the fitted model against its baseline ---------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class ResidualCertificate(Value):
    """How far the model's equilibrium can be from the baseline's states, without solving for it.

    Attributes:
      states: (m, n) bounds (I − ⌈A⌉)⁻¹|r| on |x̂ − x|, with r = z − (Ax + Bu + b).
      outputs: (m, q) bounds |C|·states + |y − (Cx + Du + c)| on |ŷ − y|.
      uniform: (m,) the coarser ‖r‖∞/(1 − μ∞(A)) on ‖x̂ − x‖∞; inf if μ∞(A) ≥ 1.

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> states = simjax.collect_states(MLP((3, 5, 2)), np.random.default_rng(0).normal(size=(30, 3)))
      >>> model = simjax.fit(states, "l1", alpha=0.1).model
      >>> certificate = simjax.robustness.residual_certificate(model, states)
      >>> certificate.states.shape, certificate.outputs.shape, certificate.uniform.shape
      ((30, 5), (30, 2), (30,))
    """

    states: np.ndarray
    outputs: np.ndarray
    uniform: np.ndarray


def residual_certificate(model: ImplicitModel, states: States) -> ResidualCertificate:
    """Bounds on how far the equilibrium x̂ of a fitted model is from the states x = φ(z) it was fitted to.

    The x solve the model's equation with its drive shifted by the residual r, so |x̂ − x| ≤ (I − ⌈A⌉)⁻¹|r|.

    Raises:
      TypeError: model or states of another type.
      ValueError: sizes or activations that differ, a model without weights η with μ_η(A) < 1.

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> states = simjax.collect_states(MLP((3, 5, 2)), np.random.default_rng(0).normal(size=(30, 3)))
      >>> model = simjax.fit(states, "l1", alpha=0.1).model
      >>> certificate = simjax.robustness.residual_certificate(model, states)
      >>> bool(np.all(np.abs(model.predict(states.inputs) - states.outputs) <= certificate.outputs + 1e-9))
      True
    """
    A, _, C, _ = dense_matrices(model)
    if not isinstance(states, States):
        raise TypeError(f"states must be a simjax.States, got {type(states).__name__}.")
    if (states.n, states.p, states.q) != (model.n, model.p, model.q):
        raise ValueError(
            f"states must have n, p, q = {model.n}, {model.p}, {model.q} as the model, "
            f"got {states.n}, {states.p}, {states.q}."
        )
    if states.activation != model.activation:
        raise ValueError(f"states must have activation {model.activation!r}, got {states.activation!r}.")
    X, U = states.activations, states.inputs
    r = states.preactivations - preactivations(model, X, U)
    bound = inverse_majorant(A, np.abs(r).T).T
    slack = 1.0 - matrix_measure(A)
    return ResidualCertificate(
        states=bound,
        outputs=bound @ np.abs(C).T + np.abs(states.outputs - outputs_of(model, X, U)),
        uniform=np.abs(r).max(axis=1) / slack if slack > 0.0 else np.full(len(r), np.inf),
    )


def _slopes(name: str, Z: np.ndarray) -> np.ndarray:
    """φ′(Z), of the shape of Z."""
    phi = find_activation(name).function
    with jax.enable_x64(True):
        return np.asarray(jax.jvp(phi, (jnp.asarray(Z),), (jnp.ones(Z.shape),))[1])


def _norm_2(M: np.ndarray) -> float:
    return float(np.linalg.norm(M, 2))


def _quotient(numerator: float, slack: float) -> float:
    return float(numerator / slack) if slack > 0.0 else np.inf
