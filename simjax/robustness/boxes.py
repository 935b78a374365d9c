"""Boxes: elementwise bounds on outputs, and how far inputs may move before a sample's class can change.

All functions take an `ImplicitModel`, compute in float64 on the host and return NumPy arrays; ⌈A⌉ and μ_η as in
`simjax.implicit.wellposed`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simjax._checks import choice, matrix, positive_scalar
from simjax._typing import ArrayLike
from simjax._values import compared_by_identity
from simjax.implicit.matrices import outputs as outputs_of
from simjax.implicit.model import ImplicitModel, checked_labels
from simjax.robustness._model import (
    NORMS,
    checked_inputs,
    dense_matrices,
    equilibrium_and_error,
    host_equilibrium,
    nonnegative,
    sensitivity,
)

CERTIFICATES = ("elementwise", "box")


@compared_by_identity
class Box(NamedTuple):
    """Elementwise bounds on outputs: lower (m, q) ≤ ŷ ≤ upper (m, q).

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.5]], B=[[1.0]], C=[[2.0], [0.0]], D=[[0.0], [0.0]])
      >>> box = simjax.robustness.output_box(model, lower=[[1.0]], upper=[[2.0]])
      >>> bool((box.lower <= box.upper).all())
      True
    """

    lower: np.ndarray
    upper: np.ndarray


def output_box(model: ImplicitModel, lower: ArrayLike, upper: ArrayLike, *, transform: ArrayLike | None = None) -> Box:
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

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.5]], B=[[1.0]], C=[[2.0], [0.0]], D=[[0.0], [0.0]])
      >>> lower, upper = simjax.robustness.output_box(model, lower=[[1.0]], upper=[[2.0]])
      >>> lower.round(6).tolist(), upper.round(6).tolist()
      ([[4.0, 0.0]], [[8.0, 0.0]])
    """
    lower, upper = checked_inputs(model, lower, "lower"), checked_inputs(model, upper, "upper")
    if lower.shape != upper.shape or np.any(lower > upper):
        raise ValueError("lower and upper must have one shape with lower ≤ upper everywhere.")
    X_lower, X_upper = _state_box(model, lower, upper)
    T = np.eye(model.q) if transform is None else matrix("transform", transform)
    if T.shape[1] != model.q:
        raise ValueError(f"transform must have shape (k, {model.q}), got {T.shape}.")
    return _linear_box(model, T, X_lower, X_upper, lower, upper)


def _state_box(model: ImplicitModel, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (m, n) on the states."""
    A, B, _, _ = dense_matrices(model)
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
    X, error = equilibrium_and_error(doubled, np.hstack([lower, upper]))
    X_lower, X_upper = np.split(X, 2, axis=1)
    error_lower, error_upper = np.split(error, 2, axis=1)
    return X_lower - error_lower, X_upper + error_upper


def _linear_box(
    model: ImplicitModel,
    T: np.ndarray,
    X_lower: np.ndarray,
    X_upper: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
) -> Box:
    """Bounds on T(Cx + Du + c) for x and u in their boxes."""
    _, _, C, D = dense_matrices(model)
    M, low, high = np.hstack([T @ C, T @ D]), np.hstack([X_lower, lower]), np.hstack([X_upper, upper])
    plus, minus = np.maximum(M, 0.0).T, np.minimum(M, 0.0).T
    constant = 0.0 if model.c is None else T @ model.c
    return Box(low @ plus + high @ minus + constant, high @ plus + low @ minus + constant)


# ---- classification --------------------------------------------------------------------------------------


def certified_radii(
    model: ImplicitModel, inputs: ArrayLike, labels: ArrayLike, *, norm: str = "inf", lipschitz: float | None = None
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

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.5]], B=[[1.0]], C=[[2.0], [0.0]], D=[[0.0], [0.0]])
      >>> simjax.robustness.certified_radii(model, [[1.0]], [0]).round(6)  # outputs (4, 0); slope 4
      array([1.])
    """
    choice("norm", norm, NORMS)
    if lipschitz is not None:
        lipschitz = positive_scalar("lipschitz", lipschitz)
    A, B, C, D = dense_matrices(model)
    U = checked_inputs(model, inputs)
    labels = checked_labels(labels, len(U), model.q)
    if lipschitz is None:
        X, error = equilibrium_and_error(model, U)
    else:
        X = host_equilibrium(model, U)
        error = np.zeros_like(X)
    Y = outputs_of(model, X, U)
    radii = np.zeros(len(U))
    for label in np.unique(labels):
        rows, T = labels == label, _contrasts(model.q, label)
        margins = Y[rows] @ T.T - error[rows] @ np.abs(T @ C).T
        if lipschitz is None:
            reaction = sensitivity(A, B, T @ C, T @ D)
            reaction = reaction.sum(axis=1) if norm == "inf" else np.linalg.norm(reaction, axis=1)
        else:
            reaction = np.full(len(T), lipschitz * (2.0 if norm == "inf" else np.sqrt(2.0)))
        radii[rows] = np.min(_safe_divide(margins, reaction), axis=1, initial=np.inf)
    return radii


def certified_accuracy(
    model: ImplicitModel, inputs: ArrayLike, labels: ArrayLike, epsilon: float, *, certificate: str = "elementwise"
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

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.5]], B=[[1.0]], C=[[2.0], [0.0]], D=[[0.0], [0.0]])
      >>> simjax.robustness.certified_accuracy(model, [[1.0], [0.2]], [0, 0], epsilon=0.5)
      0.5
    """
    epsilon = nonnegative("epsilon", epsilon)
    if choice("certificate", certificate, CERTIFICATES) == "elementwise":
        return float(np.mean(certified_radii(model, inputs, labels) > epsilon))
    U = checked_inputs(model, inputs)
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


def _safe_divide(margins: np.ndarray, sensitivities: np.ndarray) -> np.ndarray:
    """margins/sensitivities; 0 for margins ≤ 0 and inf where nothing can react."""
    quotient = np.full(margins.shape, np.inf)
    np.divide(margins, sensitivities, out=quotient, where=np.broadcast_to(sensitivities > 0.0, margins.shape))
    return np.where(margins > 0.0, quotient, 0.0)
