"""How far outputs can move when inputs do: Lipschitz and box certificates, and attacks that probe them.

Two equilibria of x = φ(Ax + Bu + b), ŷ = Cx + Du + c, with slopes of φ in [0, 1], differ by

    Δx = S(AΔx + BΔu),   S = diag(s), s ∈ [0, 1]ⁿ        so   Δŷ = (C(I − SA)⁻¹SB + D)Δu

and everything here bounds that matrix over all S. ⌈A⌉ is the Metzler majorant (a_ii signed, off-diagonal
|a_ij|); μ_η(A) = max_i a_ii + Σ_{j≠i} |a_ij| η_j/η_i is the measure of A in the norm max|x_i|/η_i
(Jafarpour et al., "Robust implicit networks via non-Euclidean contractions", 2021; "Robustness certificates
for implicit neural networks: a mixed monotone contractive approach", L4DC 2022).

All functions take an `ImplicitModel`, compute in float64 on the host and return NumPy arrays. Attacks also
take any callable from inputs (m, p) to logits (m, q) that JAX can differentiate, such as a Flax NNX module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simjax._checks import choice, float_array, matrix, positive_integer, positive_scalar
from simjax.implicit.activations import activation as find_activation
from simjax.implicit.equilibrium import affine, eliminate_diagonal, equilibrium
from simjax.implicit.model import ImplicitModel, checked_labels
from simjax.implicit.wellposed import matrix_measure, metzler, optimal_weights, positive_weights
from simjax.states.states import States

Network = ImplicitModel | Callable[[jax.Array], jax.Array]
Call = Callable[[Any, jax.Array], jax.Array]

NORMS = ("inf", "l2")
CERTIFICATES = ("elementwise", "box")

_TOL = 1e-12
_MAX_ITERS = 20_000


# ---- Lipschitz bounds ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LipschitzBounds:
    """Upper bounds on how much outputs change per change of inputs; inf (or None) where none is known.

    Attributes:
        kappa: ‖C‖∞‖B‖∞/(1 − ‖A‖∞) + ‖D‖∞, for ‖Δŷ‖∞ ≤ L‖Δu‖∞.
        mu: the same with μ∞(A) for ‖A‖∞; valid, and smaller, for μ < 0 too.
        mu_weighted: ‖C[η]‖∞‖[η]⁻¹B‖∞/(1 − μ_η(A)) + ‖D‖∞ with `eta`.
        eta: (n,) the weights of `mu_weighted`, or None.
        elementwise: (q, p) E = |C|(I − ⌈A⌉)⁻¹|B| + |D|, so that |Δŷ| ≤ E|Δu|; ‖E‖∞ is below the bounds above.
        monotone_l2: ‖C‖₂‖B‖₂/m + ‖D‖₂ with m = λ_min(I − (A + Aᵀ)/2), for ‖Δŷ‖₂ ≤ L‖Δu‖₂.
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


def lipschitz_bounds(model: ImplicitModel, eta: Any = None) -> LipschitzBounds:
    """All Lipschitz bounds of the model.

    Args:
        model: the implicit model.
        eta: (n,) positive weights of `mu_weighted`; None is `optimal_weights(A)` where they exist.

    Raises:
        TypeError: model that is not an ImplicitModel.
        ValueError: weights that do not fit or are not positive.
    """
    A, B, C, D = _matrices(model)
    best = optimal_weights(A)
    eta = best if eta is None else positive_weights("eta", eta, len(A))
    direct = _norm_inf(D)
    product = _norm_inf(B) * _norm_inf(C)
    weighted = np.inf
    if eta is not None:
        scaled = _norm_inf(C * eta) * _norm_inf(B / eta[:, None])
        weighted = _quotient(scaled, 1.0 - matrix_measure(A, eta)) + direct
    return LipschitzBounds(
        kappa=_quotient(product, 1.0 - _norm_inf(A)) + direct,
        mu=_quotient(product, 1.0 - matrix_measure(A)) + direct,
        mu_weighted=weighted,
        eta=eta,
        elementwise=None if best is None else _sensitivity(A, B, C, D),
        monotone_l2=_quotient(_norm_2(C) * _norm_2(B), monotonicity(A)) + _norm_2(D),
    )


def monotonicity(A: Any) -> float:
    """The m = λ_min(I − (A + Aᵀ)/2); if positive the equilibrium is unique and ‖Δx‖₂ ≤ ‖BΔu‖₂/m (monDEQ)."""
    A = matrix("A", A)
    return float(1.0 - np.linalg.eigvalsh((A + A.T) / 2.0).max())


def lipschitz_lmi(model: ImplicitModel, weights: Any, gamma: float) -> float:
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
    """
    A, B, C, D = _matrices(model)
    weights, gamma = positive_weights("weights", weights, len(A)), positive_scalar("gamma", gamma)
    LA, LB = weights[:, None] * A, weights[:, None] * B
    CD = np.hstack([C, D])
    block = np.block([[2.0 * np.diag(weights) - LA - LA.T, -LB], [-LB.T, gamma * np.eye(B.shape[1])]])
    return float(np.linalg.eigvalsh(block - CD.T @ CD / gamma).min())


def sampled_lipschitz(model: ImplicitModel, inputs: Any, norm: str = "inf") -> float:
    """The largest ‖∂ŷ/∂u‖ at the inputs: a lower bound on the Lipschitz constant, hence on every certificate.

    Args:
        model: the implicit model.
        inputs: (m, p) where to differentiate.
        norm: "inf" or "l2".

    Raises:
        ValueError: inputs that do not fit, an unknown norm, no sample that converges.
    """
    order = {"inf": np.inf, "l2": 2}[choice("norm", norm, NORMS)]
    A, B, C, D = _matrices(model)
    largest = -np.inf
    for U in _batches(_checked_inputs(model, inputs), 256):
        X = _equilibrium(model, U)
        X, U = X[np.isfinite(X).all(axis=1)], U[np.isfinite(X).all(axis=1)]
        S = _slopes(model.activation, _preactivations(model, X, U))
        # (C(I − SA)⁻¹)ᵀ by one solve with q right-hand sides a sample
        left = np.linalg.solve(
            np.eye(len(A)) - np.swapaxes(S[:, :, None] * A, 1, 2), np.broadcast_to(C.T, (len(S), *C.T.shape))
        )
        jacobians = np.swapaxes(left, 1, 2) @ (S[:, :, None] * B) + D
        largest = max(largest, np.linalg.norm(jacobians, order, axis=(1, 2)).max(initial=-np.inf))
    if largest == -np.inf:
        raise ValueError("inputs must have a sample whose equilibrium iteration converges, got none.")
    return float(largest)


# ---- boxes -----------------------------------------------------------------------------------------------


class Box(NamedTuple):
    """Elementwise bounds on outputs: lower (m, q) ≤ ŷ ≤ upper (m, q)."""

    lower: np.ndarray
    upper: np.ndarray


def output_box(model: ImplicitModel, lower: Any, upper: Any, *, transform: Any = None) -> Box:
    """Bounds on the outputs for all inputs in a box, by the mixed-monotone embedding (L4DC 2022).

    With A = ⌈A⌉ᴹ + ⌊A⌋, where ⌈A⌉ᴹ keeps the diagonal and the nonnegative entries off it, the states lie
    between the two halves of the equilibrium of

        x̲ = φ(⌈A⌉ᴹ x̲ + ⌊A⌋ x̄ + B⁺u̲ + B⁻ū + b)        x̄ = φ(⌈A⌉ᴹ x̄ + ⌊A⌋ x̲ + B⁺ū + B⁻u̲ + b)

    which has the measure of A. The distance of the computed equilibrium from the exact one is bounded by its
    residual and added to the box.

    Args:
        model: the implicit model, with μ_η(A) < 1 for some η.
        lower, upper: (m, p) the boxes of inputs, one a sample.
        transform: (k, q) matrix T to bound Tŷ instead of ŷ, tighter than T on the box; None is the identity.

    Raises:
        TypeError: model that is not an ImplicitModel.
        ValueError: a model without such weights, boxes that do not fit or are empty, a transform that does
            not fit.
    """
    lower, upper = _checked_inputs(model, lower, "lower"), _checked_inputs(model, upper, "upper")
    if lower.shape != upper.shape or np.any(lower > upper):
        raise ValueError("lower and upper must have one shape with lower ≤ upper everywhere.")
    X_lower, X_upper = _state_box(model, lower, upper)
    T = np.eye(model.q) if transform is None else matrix("transform", transform)
    if T.shape[1] != model.q:
        raise ValueError(f"transform must have shape (k, {model.q}), got {T.shape}.")
    return _linear_box(model, T, X_lower, X_upper, lower, upper)


def _state_box(model: ImplicitModel, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (m, n) on the states."""
    A, B, _, _ = _matrices(model)
    keep = np.where(np.eye(len(A), dtype=bool), A, np.maximum(A, 0.0))
    swap = A - keep
    doubled = ImplicitModel(
        A=np.block([[keep, swap], [swap, keep]]),
        B=np.block([[np.maximum(B, 0.0), np.minimum(B, 0.0)], [np.minimum(B, 0.0), np.maximum(B, 0.0)]]),
        C=np.ones((1, 2 * len(A))),  # outputs are not used
        D=np.zeros((1, 2 * B.shape[1])),
        activation=model.activation,
        b=None if model.b is None else np.tile(model.b, 2),
    )
    X, error = _equilibrium_and_error(doubled, np.hstack([lower, upper]))
    X_lower, X_upper = np.split(X, 2, axis=1)
    error_lower, error_upper = np.split(error, 2, axis=1)
    return X_lower - error_lower, X_upper + error_upper


def _linear_box(model: ImplicitModel, T: Any, X_lower: Any, X_upper: Any, lower: Any, upper: Any) -> Box:
    """Bounds on T(Cx + Du + c) for x and u in their boxes."""
    _, _, C, D = _matrices(model)
    M, low, high = np.hstack([T @ C, T @ D]), np.hstack([X_lower, lower]), np.hstack([X_upper, upper])
    plus, minus = np.maximum(M, 0.0).T, np.minimum(M, 0.0).T
    constant = 0.0 if model.c is None else T @ model.c
    return Box(low @ plus + high @ minus + constant, high @ plus + low @ minus + constant)


# ---- classification --------------------------------------------------------------------------------------


def certified_radii(
    model: ImplicitModel, inputs: Any, labels: Any, *, norm: str = "inf", lipschitz: float | None = None
) -> np.ndarray:
    """Radii (m,) within which no perturbation changes a sample's correct label; 0 where the label is wrong.

    Without `lipschitz` the bound is elementwise, label against label: with t_j = e_label − e_j and
    k_j = |t_jᵀC|(I − ⌈A⌉)⁻¹|B| + |t_jᵀD|, the radius is min_j margin_j / ‖k_j‖ (‖·‖₁ for l∞, ‖·‖₂ for l2).
    With a Lipschitz constant L of the outputs it is margin/(2L) for l∞ and margin/(√2 L) for l2.

    The elementwise margins are reduced by what the error of the computed equilibrium may cost. With
    `lipschitz`, outputs are as exact as the equilibrium (1e-12), and a sample whose equilibrium was not
    found has radius 0.

    Raises:
        TypeError: model that is not an ImplicitModel, labels that are not integers.
        ValueError: inputs or labels that do not fit, an unknown norm, lipschitz not positive; without it, a
            model with μ_η(A) < 1 for no weights η.
        RuntimeError: without `lipschitz`, an equilibrium that was not found.
    """
    choice("norm", norm, NORMS)
    if lipschitz is not None:
        lipschitz = positive_scalar("lipschitz", lipschitz)
    A, B, C, D = _matrices(model)
    U = _checked_inputs(model, inputs)
    labels = checked_labels(labels, len(U), model.q)
    if lipschitz is None:
        X, error = _equilibrium_and_error(model, U)
    else:
        X = _equilibrium(model, U)
        error = np.zeros_like(X)
    Y = _outputs(model, X, U)
    radii = np.zeros(len(U))
    for label in np.unique(labels):
        rows, T = labels == label, _contrasts(model.q, label)
        margins = Y[rows] @ T.T - error[rows] @ np.abs(T @ C).T
        if lipschitz is None:
            reaction = _sensitivity(A, B, T @ C, T @ D)
            reaction = reaction.sum(axis=1) if norm == "inf" else np.linalg.norm(reaction, axis=1)
        else:
            reaction = np.full(len(T), lipschitz * (2.0 if norm == "inf" else np.sqrt(2.0)))
        radii[rows] = np.min(_safe_divide(margins, reaction), axis=1, initial=np.inf)
    return radii


def certified_accuracy(
    model: ImplicitModel, inputs: Any, labels: Any, epsilon: float, *, certificate: str = "elementwise"
) -> float:
    """Share of samples certified to be classified correctly for every input within ε of theirs in l∞.

    Args:
        model: the implicit model, with μ_η(A) < 1 for some η.
        inputs: (m, p).
        labels: (m,) class indices.
        epsilon: radius ε ≥ 0 in the units of the inputs.
        certificate: "elementwise" (`certified_radii`) or "box" (`output_box` of the margins).

    Raises:
        TypeError, ValueError: as `certified_radii`; epsilon negative or not finite; an unknown certificate.
    """
    epsilon = _nonnegative("epsilon", epsilon)
    if choice("certificate", certificate, CERTIFICATES) == "elementwise":
        return float(np.mean(certified_radii(model, inputs, labels) > epsilon))
    U = _checked_inputs(model, inputs)
    labels = checked_labels(labels, len(U), model.q)
    lower, upper = U - epsilon, U + epsilon
    X_lower, X_upper = _state_box(model, lower, upper)
    certified = np.zeros(len(U), dtype=bool)
    for label in np.unique(labels):
        k, T = labels == label, _contrasts(model.q, label)
        certified[k] = np.all(_linear_box(model, T, X_lower[k], X_upper[k], lower[k], upper[k]).lower > 0.0, axis=1)
    return float(np.mean(certified))


def _contrasts(q: int, label: int) -> np.ndarray:
    """(q − 1, q) rows t_j = e_label − e_j, j ≠ label."""
    T = -np.eye(q)
    T[:, label] += 1.0
    return np.delete(T, label, axis=0)


# ---- the fitted model against its baseline ---------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ResidualCertificate:
    """How far the model's equilibrium can be from the baseline's states, without solving for it.

    Attributes:
        states: (m, n) bounds (I − ⌈A⌉)⁻¹|r| on |x̂ − x|, with r = z − (Ax + Bu + b).
        outputs: (m, q) bounds |C|·states + |y − (Cx + Du + c)| on |ŷ − y|.
        uniform: (m,) the coarser ‖r‖∞/(1 − μ∞(A)) on ‖x̂ − x‖∞; inf if μ∞(A) ≥ 1.
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
    """
    A, _, C, _ = _matrices(model)
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
    r = states.preactivations - _preactivations(model, X, U)
    bound = _inverse_majorant(A, np.abs(r).T).T
    slack = 1.0 - matrix_measure(A)
    return ResidualCertificate(
        states=bound,
        outputs=bound @ np.abs(C).T + np.abs(states.outputs - _outputs(model, X, U)),
        uniform=np.abs(r).max(axis=1) / slack if slack > 0.0 else np.full(len(r), np.inf),
    )


# ---- attacks ---------------------------------------------------------------------------------------------


def differentiable(model: ImplicitModel) -> Callable[[jax.Array], jax.Array]:
    """The model as a JAX function from inputs (m, p) to outputs (m, q), with implicit derivatives.

    Computes in the precision of JAX's current mode; a sample that does not converge has outputs NaN.
    """
    call, parameters = _implicit_call(model.activation), _parameters(model)
    return lambda u: call(parameters, u)


def fgsm(
    network: Network,
    inputs: Any,
    labels: Any,
    epsilon: float,
    *,
    fraction: float = 1.0,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    batch_size: int = 1000,
) -> np.ndarray:
    """Fast gradient sign method: u + ε·sign(∇_u cross-entropy), (m, p), on all or some of the pixels.

    The gradient goes through the equilibrium of the network under attack (Goodfellow et al. 2015; the SIM
    paper perturbs a random half of the pixels). A sample whose gradient is not finite, because its
    equilibrium was not found, is left as it is.

    Args:
        network: an ImplicitModel, or a callable from inputs to logits that JAX can differentiate.
        inputs: (m, p).
        labels: (m,) class indices.
        epsilon: ε ≥ 0 in the units of the inputs.
        fraction: share of the pixels that may change, drawn for each sample by `seed`; in (0, 1].
        bounds: clip the result to this range of valid inputs, such as (0, 1); None does not clip.
        seed: of the pixels.
        batch_size: samples differentiated at a time.

    Raises:
        ValueError: shapes that do not fit, numbers out of range, inputs outside the bounds.
        TypeError: labels that are not integers.
    """
    U, labels, epsilon, bounds = _checked_attack(network, inputs, labels, epsilon, bounds)
    mask = _pixels(U.shape, fraction, seed)
    step = epsilon * mask * np.sign(_loss_gradient(network, batch_size)(U, labels))
    return _clipped(U + step, U, epsilon, bounds)


def pgd(
    network: Network,
    inputs: Any,
    labels: Any,
    epsilon: float,
    *,
    steps: int = 20,
    step_size: float | None = None,
    fraction: float = 1.0,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    batch_size: int = 1000,
) -> np.ndarray:
    """Projected gradient ascent of the cross-entropy in the l∞ ball from a random start (Madry et al. 2018).

    Args:
        network, inputs, labels, epsilon, fraction, bounds, batch_size: as `fgsm`.
        steps: gradient steps.
        step_size: length of one, in the units of the inputs; None is 2.5·ε/steps.
        seed: of the start and the pixels.

    Raises:
        ValueError, TypeError: as `fgsm`.
    """
    U, labels, epsilon, bounds = _checked_attack(network, inputs, labels, epsilon, bounds)
    steps = positive_integer("steps", steps)
    size = 2.5 * epsilon / steps if step_size is None else positive_scalar("step_size", step_size)
    mask = _pixels(U.shape, fraction, seed)
    start = np.random.default_rng([seed, 1]).uniform(-epsilon, epsilon, U.shape)
    attacked = _clipped(U + mask * start, U, epsilon, bounds)
    gradient = _loss_gradient(network, batch_size)
    for _ in range(steps):
        attacked = _clipped(attacked + size * mask * np.sign(gradient(attacked, labels)), U, epsilon, bounds)
    return attacked


@functools.cache
def _implicit_call(name: str) -> Call:
    """Outputs from (A, B, C, D, b, c) and inputs; one function an activation, so that it compiles once."""

    def call(parameters: Any, u: jax.Array) -> jax.Array:
        A, B, C, D, b, c = parameters
        x, _ = equilibrium(A, B, u, b, activation=name, max_iters=_MAX_ITERS)
        return affine(jnp.asarray(C), x, c) + affine(jnp.asarray(D), u)

    return call


def _parameters(model: ImplicitModel) -> tuple:
    A, B, b = _state_equation(model)
    _, _, C, D = _matrices(model)
    return A, B, C, D, b, model.c


@functools.partial(jax.jit, static_argnums=0)
def _batch_gradient(call: Call, parameters: Any, u: jax.Array, labels: jax.Array) -> jax.Array:
    def loss(u: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(call(parameters, u), labels).sum()

    return jax.grad(loss)(u)


def _loss_gradient(network: Network, batch_size: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The gradient ∇_u of each sample's cross-entropy, (m, p) float64, zero where it is not finite."""
    size = positive_integer("batch_size", batch_size)
    call: Call
    if isinstance(network, ImplicitModel):
        call, parameters = _implicit_call(network.activation), _parameters(network)
    else:  # a fresh function: whatever the callable closes over may have changed since it was last attacked
        call, parameters = lambda _, u: network(u), ()

    def gradient(U: np.ndarray, labels: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            parts = [
                np.asarray(_batch_gradient(call, parameters, jnp.asarray(u), jnp.asarray(y)))
                for u, y in zip(_batches(U, size), _batches(labels, size), strict=True)
            ]
        G = np.concatenate(parts).astype(np.float64)
        return np.where(np.isfinite(G).all(axis=1, keepdims=True), G, 0.0)

    return gradient


def _pixels(shape: tuple[int, ...], fraction: float, seed: int) -> np.ndarray:
    """0/1 (m, p): the same number of random pixels in every sample."""
    fraction = positive_scalar("fraction", fraction)
    if fraction > 1.0:
        raise ValueError(f"fraction must be in (0, 1], got {fraction:g}.")
    chosen = round(fraction * shape[1])
    ranks = np.random.default_rng([seed, 0]).random(shape).argsort(axis=1).argsort(axis=1)
    return (ranks < chosen).astype(np.float64)


def _clipped(attacked: np.ndarray, U: np.ndarray, epsilon: float, bounds: tuple[float, float] | None) -> Any:
    attacked = np.clip(attacked, U - epsilon, U + epsilon)
    return attacked if bounds is None else np.clip(attacked, *bounds)


def _checked_attack(network: Network, inputs: Any, labels: Any, epsilon: Any, bounds: Any) -> tuple:
    if not callable(network):
        raise TypeError(f"network must be an ImplicitModel or a callable, got {type(network).__name__}.")
    U = matrix("inputs", inputs)
    if isinstance(network, ImplicitModel):
        U, q = _checked_inputs(network, U), network.q
    else:
        with jax.enable_x64(True):
            logits = jax.eval_shape(network, jax.ShapeDtypeStruct(U.shape, np.float64))
        if len(logits.shape) != 2 or logits.shape[0] != len(U):
            raise ValueError(f"network must return logits (m, q), got {logits.shape} for m = {len(U)}.")
        q = logits.shape[1]
    if bounds is not None:
        low, high = (float(float_array("bounds", bound)) for bound in bounds)
        if not low < high or U.min() < low or U.max() > high:
            raise ValueError(
                f"bounds must be (low, high) around all inputs, got {bounds!r} for inputs in "
                f"[{U.min():g}, {U.max():g}]."
            )
        bounds = (low, high)
    return U, checked_labels(labels, len(U), q), _nonnegative("epsilon", epsilon), bounds


# ---- small helpers ---------------------------------------------------------------------------------------


def _matrices(model: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if not isinstance(model, ImplicitModel):
        raise TypeError(f"model must be an ImplicitModel, got {type(model).__name__}.")
    dense = model.to_dense()
    return dense.A, dense.B, dense.C, dense.D


def _sensitivity(A: np.ndarray, B: np.ndarray, C: np.ndarray, D: np.ndarray) -> np.ndarray:
    """E = |C|(I − ⌈A⌉)⁻¹|B| + |D|, by a solve with the fewer right-hand sides."""
    if C.shape[0] < B.shape[1]:
        return _inverse_majorant(A.T, np.abs(C).T).T @ np.abs(B) + np.abs(D)
    return np.abs(C) @ _inverse_majorant(A, np.abs(B)) + np.abs(D)


def _inverse_majorant(A: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(I − ⌈A⌉)⁻¹·columns, for columns ≥ 0; an error where the inverse is not nonnegative."""
    if optimal_weights(A) is None:
        raise ValueError(
            "model must have μ_η(A) < 1 for some weights η > 0 (spectral abscissa of A's Metzler majorant "
            f"below one) for this bound to exist; it has ‖A‖∞ = {_norm_inf(A):.4g} and "
            f"μ∞(A) = {matrix_measure(A):.4g}."
        )
    return np.linalg.solve(np.eye(len(A)) - metzler(A), columns)


def _state_equation(model: ImplicitModel) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A, B and b, or those of the equivalent hollow model where there is one: it needs fewer iterations."""
    A, B, _, _ = _matrices(model)
    if model.activation not in ("relu", "identity") or np.diag(A).max() >= 1.0:
        return A, B, model.b
    with jax.enable_x64(True):
        bias = None if model.b is None else jnp.asarray(model.b)
        hollow, scaled, bias = eliminate_diagonal(jnp.asarray(A), jnp.asarray(B), bias)
        return np.asarray(hollow), np.asarray(scaled), None if bias is None else np.asarray(bias)


def _equilibrium(model: ImplicitModel, U: np.ndarray) -> np.ndarray:
    """(m, n) states; NaN for a sample that did not converge."""
    A, B, b = _state_equation(model)
    with jax.enable_x64(True):
        parts = [
            equilibrium(A, B, u, b, activation=model.activation, tol=_TOL, max_iters=_MAX_ITERS).x
            for u in _batches(U, 1000)
        ]
        return np.concatenate([np.asarray(x) for x in parts])


def _equilibrium_and_error(model: ImplicitModel, U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States X (m, n) and elementwise bounds on their error.

    With r = φ(Ax + Bu + b) − x the error is at most (I − ⌈A⌉)⁻¹ max(1, 1 − a_ii)|r|.

    Raises:
        ValueError: a model with μ_η(A) < 1 for no weights η.
        RuntimeError: the iteration ended before it converged.
    """
    A, *_ = _matrices(model)
    _inverse_majorant(A, np.ones((len(A), 1)))  # fail before the iteration, not after it
    X = _equilibrium(model, U)
    lost = ~np.isfinite(X).all(axis=1)
    if lost.any():
        raise RuntimeError(f"{lost.sum()} of {len(U)} equilibria were not found in {_MAX_ITERS} iterations.")
    r = find_activation(model.activation).host(_preactivations(model, X, U)) - X
    return X, _inverse_majorant(A, np.maximum(1.0, 1.0 - np.diag(A))[:, None] * np.abs(r).T).T


def _preactivations(model: ImplicitModel, X: np.ndarray, U: np.ndarray) -> np.ndarray:
    return X @ model.A.T + U @ model.B.T + (0.0 if model.b is None else model.b)


def _outputs(model: ImplicitModel, X: np.ndarray, U: np.ndarray) -> np.ndarray:
    return X @ model.C.T + U @ model.D.T + (0.0 if model.c is None else model.c)


def _slopes(name: str, Z: np.ndarray) -> np.ndarray:
    """φ′(Z), of the shape of Z."""
    phi = find_activation(name).function
    with jax.enable_x64(True):
        return np.asarray(jax.jvp(phi, (jnp.asarray(Z),), (jnp.ones(Z.shape),))[1])


def _norm_inf(M: np.ndarray) -> float:
    return float(np.abs(M).sum(axis=1).max())


def _norm_2(M: np.ndarray) -> float:
    return float(np.linalg.norm(M, 2))


def _quotient(numerator: float, slack: float) -> float:
    return float(numerator / slack) if slack > 0.0 else np.inf


def _safe_divide(margins: np.ndarray, sensitivities: np.ndarray) -> np.ndarray:
    """margins/sensitivities; 0 for margins ≤ 0 and inf where nothing can react."""
    quotient = np.full(margins.shape, np.inf)
    np.divide(margins, sensitivities, out=quotient, where=np.broadcast_to(sensitivities > 0.0, margins.shape))
    return np.where(margins > 0.0, quotient, 0.0)


def _batches(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (array[k : k + size] for k in range(0, len(array), size))


def _checked_inputs(model: ImplicitModel, inputs: Any, name: str = "inputs") -> np.ndarray:
    _matrices(model)
    U = matrix(name, inputs)
    if U.shape[1] != model.p:
        raise ValueError(f"{name} must have shape (m, {model.p}), got {U.shape}.")
    return U


def _nonnegative(name: str, value: Any) -> float:
    array = float_array(name, value)
    if array.ndim != 0 or array < 0.0:
        raise ValueError(f"{name} must be a number >= 0, got {value!r}.")
    return float(array)
