"""Baselines outside the ball: which equivalent model has ‖A‖∞ ≤ κ, and what to do where none is found.

SIM asks for ‖A‖∞ ≤ κ < 1. Trained implicit networks (NEMON, monDEQ, LBEN, OptEq) are well-posed for other reasons and
need not satisfy it; then no fit contains them. Two changes of variables leave inputs and outputs as they are:

    rescaling              x′ = S⁻¹x:  A′ = S⁻¹AS, B′ = S⁻¹B, b′ = S⁻¹b, C′ = CS              φ positively homogeneous
    diagonal elimination   x′ = x:     Ã = (I − diag a)⁻¹(A − diag a), B̃ and b̃ scaled alike          φ relu or identity

Rescaling by s = (I − M/κ)⁻¹1 > 0 makes every row of S⁻¹MS sum to κ(1 − 1/s_i). With M = |A| that is ‖A′‖∞ < κ, possible
if and only if λ_pf(|A|) < κ (SIM paper, Theorem 2.4 for κ = 1; it prints SAS⁻¹, which has no such bound). With M = ⌈A⌉,
whose diagonal is signed, it is the measure μ∞(A′) that is bounded, possible if and only if the spectral abscissa of ⌈A⌉
is below κ. Elimination connects the two: ‖Ã‖∞ < 1 if and only if μ∞(A) < 1, and λ_pf(|Ã|) < 1 if and only if the
abscissa is below one (Jafarpour et al., "Robust implicit networks via non-Euclidean contractions", 2021).

Every function takes an `ImplicitModel`, or `States` that know their baseline; a whole fit is then

    simjax.fit(feasible(states, kappa), kappa=kappa, rescale="none")
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp

from simjax._checks import positive_scalar
from simjax._typing import ArrayLike, Weights
from simjax.implicit.activations import activation as find_activation
from simjax.implicit.model import ImplicitModel
from simjax.implicit.wellposed import matrix_measure, metzler, optimal_weights, perron_eigenvalue
from simjax.states.states import States

Subject = TypeVar("Subject", ImplicitModel, States)

REMEDIES = (
    "none needed",
    "diagonal elimination",
    "rescaling",
    "diagonal elimination and rescaling",
    "measure row",
    "relaxed matching",
)

_ELIMINABLE = ("relu", "identity")
_ROUNDING = 1e-12  # by which rows scaled to an absolute sum of κ may miss it


@dataclass(frozen=True)
class Diagnosis:
    """How far a model is from the ball ‖A‖∞ ≤ κ, and what helps.

    Attributes:
      kappa: κ.
      activation: name of φ.
      norm: ‖A‖∞.
      measure: μ∞(A) = max_i a_ii + Σ_{j≠i} |a_ij|.
      perron: λ_pf(|A|), below which no rescaling brings ‖A‖∞.
      abscissa: the spectral abscissa of ⌈A⌉, below which no rescaling brings μ∞(A).
      hollow_norm: ‖Ã‖∞ of the model with its diagonal eliminated; None where that is not possible.
      hollow_perron: λ_pf(|Ã|), or None likewise.

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.0, 2.0], [0.0, 0.0]], B=[[0.0], [1.0]], C=[[1.0, 0.0]], D=[[0.0]])
      >>> simjax.rescaling.diagnose(model).norm
      2.0
    """

    kappa: float
    activation: str
    norm: float
    measure: float
    perron: float
    abscissa: float
    hollow_norm: float | None
    hollow_perron: float | None

    @property
    def remedies(self) -> tuple[str, ...]:
        """Which of `REMEDIES` apply, the one to prefer first; relaxed matching is left where nothing else is."""
        ball = self.kappa * (1.0 + _ROUNDING)
        if self.norm <= ball:
            return ("none needed",)
        scalable = find_activation(self.activation).positively_homogeneous
        applies = {
            "diagonal elimination": self.hollow_norm is not None and self.hollow_norm <= ball,
            "rescaling": scalable and self.perron < self.kappa,
            "diagonal elimination and rescaling": self.hollow_perron is not None and self.hollow_perron < self.kappa,
            "measure row": self.abscissa < 1.0,
            "relaxed matching": True,
        }
        return tuple(name for name, yes in applies.items() if yes)

    def summary(self) -> str:
        """The numbers, what applies and why the rest does not, in a few lines."""
        hollow = "not possible"
        if self.hollow_norm is not None:
            hollow = f"‖Ã‖∞ = {self.hollow_norm:.6g}, λ_pf(|Ã|) = {self.hollow_perron:.6g}"
        lines = [
            f"‖A‖∞ = {self.norm:.6g}, μ∞(A) = {self.measure:.6g}, λ_pf(|A|) = {self.perron:.6g}, spectral abscissa of "
            f"⌈A⌉ = {self.abscissa:.6g}, with kappa = {self.kappa:g} and φ = {self.activation!r}",
            f"without its diagonal: {hollow}",
        ]
        remedies = self.remedies
        return "\n".join(lines + [f"- {self._said(name, name in remedies)}" for name in REMEDIES[1:]])

    def _said(self, remedy: str, applies: bool) -> str:
        """A remedy, whether it applies, and by what condition."""
        kappa = f"kappa = {self.kappa:g}"
        how = {
            "diagonal elimination": f"needs φ = relu or identity, every a_ii < 1 and ‖Ã‖∞ ≤ {kappa}",
            "rescaling": f"needs φ = relu, leaky_relu or identity and λ_pf(|A|) < {kappa}",
            "diagonal elimination and rescaling": f"needs what elimination does but λ_pf(|Ã|) < {kappa} for ‖Ã‖∞",
            "measure row": "fit(..., constraint='metzler') in place of the ball needs μ∞(A) ≤ kappa < 1, or, with "
            "eta=optimal_weights(A), an abscissa below 1",
            "relaxed matching": "a fit in the ball that imitates the states by least squares and cannot contain their "
            "baseline is always possible: matching='penalty'",
        }
        return f"{remedy}{'' if applies else ' (does not apply)'}: {how[remedy]}"


def diagnose(subject: ImplicitModel | States, kappa: float = 0.99) -> Diagnosis:
    """The numbers that decide how a baseline can be brought into the ball ‖A‖∞ ≤ kappa.

    Raises:
      TypeError: neither a model nor states.
      ValueError: states without a baseline, kappa outside (0, 1).

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.0, 2.0], [0.0, 0.0]], B=[[0.0], [1.0]], C=[[1.0, 0.0]], D=[[0.0]])
      >>> print(simjax.rescaling.diagnose(model, kappa=0.9).summary())
      ‖A‖∞ = 2, μ∞(A) = 2, ...
    """
    model = _model(subject)
    kappa = positive_scalar("kappa", kappa, below=1.0)
    A = model.to_dense().A
    hollow = eliminate_diagonal(model) if _eliminable(model) else None
    return Diagnosis(
        kappa=kappa,
        activation=model.activation,
        norm=model.well_posedness,
        measure=matrix_measure(A),
        perron=model.perron_eigenvalue,
        abscissa=spectral_abscissa(A),
        hollow_norm=None if hollow is None else hollow.well_posedness,
        hollow_perron=None if hollow is None else hollow.perron_eigenvalue,
    )


def feasible(subject: Subject, kappa: float = 0.99) -> Subject:
    """The equivalent model, or the states of the equivalent baseline, with ‖A‖∞ ≤ kappa and the same outputs.

    By the first of the `remedies` of `diagnose`: nothing, elimination of the diagonal, rescaling, or both. A fit under
    exact matching then has a solution, unless its support excludes the baseline (support="hollow" does so after
    rescaling alone where the diagonal is not zero; support="full" never does).

    Raises:
      TypeError, ValueError: as `diagnose`.
      ValueError: none of the three is possible; the message says what is.

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.0, 2.0], [0.0, 0.0]], B=[[0.0], [1.0]], C=[[1.0, 0.0]], D=[[0.0]])
      >>> inside = simjax.rescaling.feasible(model, kappa=0.9)
      >>> inside.well_posedness <= 0.9, (inside.predict([[1.0]]) - model.predict([[1.0]])).round(9).tolist()
      (True, [[0.0]])
    """
    found = diagnose(subject, kappa)
    remedy = found.remedies[0]
    if remedy == "none needed":
        return subject
    if remedy not in ("diagonal elimination", "rescaling", "diagonal elimination and rescaling"):
        raise ValueError(f"no equivalent model with ‖A‖∞ ≤ kappa was found: {found.summary()}")
    if remedy != "rescaling":
        subject = eliminate_diagonal(subject)
    if remedy != "diagonal elimination":
        scale = optimal_weights(np.abs(_model(subject).to_dense().A) / found.kappa)
        if scale is None:  # λ_pf(|A|) is below kappa by less than rounding
            raise ValueError(f"no equivalent model with ‖A‖∞ ≤ kappa was found to rounding: {found.summary()}")
        subject = _scaled(subject, 1.0 / scale)
    return subject


def rescaled_by_measure(subject: Subject) -> Subject:
    """The same outputs with μ∞(A′) = 1 − 1/max η* < 1: x′ = x/η*, with η* = (I − ⌈A⌉)⁻¹1.

    Then also a row constraint on the unweighted measure μ∞ holds for the baseline. If A has no negative diagonal entry,
    this is `ImplicitModel.rescaled` and bounds ‖A′‖∞ too.

    Raises:
      TypeError: neither a model nor states.
      ValueError: states without a baseline, a φ that is not positively homogeneous, or a spectral abscissa of ⌈A⌉
        that is not below one.

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.0, 2.0], [0.0, 0.0]], B=[[0.0], [1.0]], C=[[1.0, 0.0]], D=[[0.0]])
      >>> simjax.rescaling.rescaled_by_measure(model).well_posedness < 1
      True
    """
    A = _model(subject).to_dense().A
    eta = optimal_weights(A)
    if eta is None:
        raise ValueError(
            f"rescaling by the measure needs a spectral abscissa of ⌈A⌉ below one, it is {spectral_abscissa(A):.6g} "
            f"(‖A‖∞ = {_model(subject).well_posedness:.6g}, μ∞(A) = {matrix_measure(A):.6g}): no change of scale "
            f"brings μ∞(A) below one."
        )
    return _scaled(subject, 1.0 / eta)


def eliminate_diagonal(subject: Subject) -> Subject:
    """The same states and outputs with A_ii = 0: Ã = (I − diag a)⁻¹(A − diag a), B̃ and b̃ scaled alike.

    Each equation x_i = φ(a_ii x_i + c_i) is solved for its own state, x_i = φ(c_i)/(1 − a_ii), which only relu and the
    identity allow. Preactivations become z̃ = (z − a∘x)/(1 − a): unchanged where z = x.

    Raises:
      TypeError: neither a model nor states.
      ValueError: states without a baseline, another φ, or a diagonal entry that is not below one.

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[-1.0]], B=[[1.0]], C=[[1.0]], D=[[0.0]])
      >>> hollow = simjax.rescaling.eliminate_diagonal(model)
      >>> hollow.A.tolist(), hollow.B.tolist()
      ([[0.0]], [[0.5]])
    """
    model = _model(subject)
    if not _eliminable(model):
        raise ValueError(
            f"eliminating the diagonal needs activation 'relu' or 'identity' and every a_ii < 1; the model has "
            f"{model.activation!r} and max a_ii = {model.A.diagonal().max():.6g}."
        )
    diagonal = model.A.diagonal()
    scale = 1.0 / (1.0 - diagonal)
    off = model.A - (np.diag(diagonal) if model.storage == "dense" else sp.diags_array(diagonal))
    hollow = replace(
        model,
        A=_rows_scaled(off, scale),
        B=_rows_scaled(model.B, scale),
        b=None if model.b is None else scale * model.b,
    )
    if isinstance(subject, ImplicitModel):
        return hollow
    Z, X = subject.preactivations, subject.activations
    return replace(subject, preactivations=np.where(Z == X, Z, (Z - diagonal * X) * scale), baseline=hollow)


def spectral_abscissa(A: ArrayLike) -> float:
    """The largest real part of an eigenvalue of ⌈A⌉; below one if and only if μ_η(A) < 1 for some η > 0.

    Raises:
      ValueError, TypeError: A that is not a square matrix of finite real numbers.

    Examples:
      >>> import simjax
      >>> round(simjax.rescaling.spectral_abscissa([[0.5, -2.0], [0.0, -3.0]]), 12)
      0.5
    """
    majorant = metzler(A)
    # ⌈A⌉ + shift·I ≥ 0, whose Perron eigenvalue is found block by block, exactly for triangular blocks.
    shift = max(0.0, -float(np.diag(majorant).min()))
    return perron_eigenvalue(majorant + shift * np.eye(len(majorant))) - shift


def _model(subject: Any) -> ImplicitModel:
    if isinstance(subject, ImplicitModel):
        return subject
    if not isinstance(subject, States):
        raise TypeError(f"subject must be an ImplicitModel or simjax.States, got {type(subject).__name__}.")
    if subject.baseline is None:
        raise ValueError("states must know their baseline (States(..., baseline=model)), these do not.")
    return subject.baseline


def _eliminable(model: ImplicitModel) -> bool:
    return model.activation in _ELIMINABLE and bool(np.all(model.A.diagonal() < 1.0))


def _scaled(subject: Subject, scale: np.ndarray) -> Subject:
    return subject.scaled(scale) if isinstance(subject, ImplicitModel) else subject.rescaled(scale)


def _rows_scaled(M: Weights, scale: np.ndarray) -> Weights:
    return scale[:, None] * M if isinstance(M, np.ndarray) else sp.csr_array(sp.diags_array(scale) @ M)
