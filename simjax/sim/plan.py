"""A fit as row problems: everything that follows from the states and the arguments, before any solve."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from simjax._checks import choice, positive_scalar
from simjax._typing import Weights
from simjax.implicit.matrices import model_rows
from simjax.implicit.model import ImplicitModel
from simjax.implicit.tensors import tensors_of_model
from simjax.rows.centring import checked_sample_weight
from simjax.rows.checkpoint import Origin
from simjax.rows.constraints import Box, Constraint, L1Ball, MetzlerRow
from simjax.rows.penalties import NoPenalty, Penalty, take_rows
from simjax.rows.problem import MATCHINGS, RowProblem, RowSource, checked_samples, rows_over
from simjax.rows.solution import dense_rows
from simjax.sim.form import ModelForm
from simjax.sim.low_rank import LowRank
from simjax.sim.options import (
    CONSTRAINTS,
    REDUCTIONS,
    RESCALES,
    UNITS,
    PlanOptions,
    as_json,
    check_low_rank,
    checked_box,
    checked_eta,
    checked_intercept,
    checked_kappa,
    checked_penalty,
    checked_refits,
)
from simjax.sim.samples import Samples
from simjax.sim.supports import SUPPORTS, RowSupports
from simjax.states.kinds import AnyStates
from simjax.states.plausible import warn_if_implausible
from simjax.states.states import Rescale, States
from simjax.states.streamed import StreamedStates


@dataclasses.dataclass(frozen=True)
class Plan:
    """A fit as row problems: everything that follows from the states and the arguments, before any solve."""

    data: Samples
    unit: np.ndarray  # (n,): the states are those given times this
    scale: np.ndarray  # s, (n,): the model has x' = s x, and the ball sees A' = SAS⁻¹
    penalty: Penalty
    kappa: float | None
    constraint: str  # what kappa bounds; "ball" where the rank is bounded too
    rank: int | None  # of A
    box: Box | None  # of every entry of (A B) and (C D), in the units of the model
    eta: np.ndarray  # (n,)
    loss_weight: np.ndarray  # (n + q,)
    matching: str
    support: RowSupports
    intercept: str
    refits: tuple[str, ...]
    settings: dict[str, Any]
    given: AnyStates  # in the units of the caller
    stated: PlanOptions

    @classmethod
    def make(cls, states: AnyStates, options: PlanOptions, like: Plan | None = None) -> Plan:
        """Check every argument of `fit` and put them together.

        Args:
          like: a plan of the same states, whose samples are shared if they are the same.
        """
        if not isinstance(states, AnyStates):
            raise TypeError(
                f"states must be simjax.States, MappedStates or StreamedStates, got {type(states).__name__}; "
                f"build one from arrays with States(...)."
            )
        support, matching = options.support, options.matching
        intercept = checked_intercept(options.fit_intercept, states)
        weight = _checked_weight(options.sample_weight, states)
        penalty = checked_penalty(options, states, intercept)
        rank, box, constraint, named = None, None, options.constraint, options.constraint
        if isinstance(constraint, LowRank):
            rank, named = constraint.rank, f"LowRank({constraint.rank})"
            check_low_rank(rank, states, options)
            constraint = "ball"
        elif isinstance(constraint, Box):
            box = checked_box(constraint, states, intercept)
            constraint, named = "ball", f"Box({as_json(box.lower)}, {as_json(box.upper)})"
        elif not isinstance(constraint, str):
            got = type(constraint).__name__
            raise TypeError(f"constraint must be a name, LowRank(rank) or a Box, got {got}.")
        choice("constraint", constraint, CONSTRAINTS)
        kappa = checked_kappa(options.kappa, constraint)
        eta = checked_eta(options.eta, constraint, states.n)
        lambda_state = positive_scalar("lambda_state", options.lambda_state)
        lambda_output = positive_scalar("lambda_output", options.lambda_output)
        choice("reduction", options.reduction, REDUCTIONS)
        choice("matching", matching, MATCHINGS)
        choice("rescale", options.rescale, RESCALES)
        choice("units", options.units, UNITS)
        refits = checked_refits(options.refit)
        if "outputs" in refits and isinstance(states, StreamedStates):
            raise ValueError(
                "refit='outputs' needs the inputs of every sample, to find the states that the fitted (A B) produces, "
                "and streamed states do not keep them: pass States, e.g. of fewer samples, or another refit."
            )
        if isinstance(support, str) and choice("support", support, SUPPORTS) == "auto":
            support = "full" if constraint == "metzler" or rank is not None else "hollow"
        scale = state_scale(states, options.rescale, kappa)
        allowed = RowSupports.make(support, states, states.n + states.p + int(intercept == "penalised"))
        loss_weight = np.repeat([lambda_state, lambda_output], [states.n, states.q])
        if options.reduction == "mean":
            loss_weight = loss_weight / _total_weight(states, weight)
        settings = {
            "objective": as_json(options.objective),
            "alpha": as_json(options.alpha) if isinstance(options.objective, str) else None,
            "mu": as_json(options.mu),
            "kappa": kappa,
            "lambda_state": lambda_state,
            "lambda_output": lambda_output,
            "reduction": options.reduction,
            "matching": matching,
            "constraint": named,
            "eta": as_json(options.eta),
            "support": support if isinstance(support, str) else f"mask {np.shape(support)}",
            "rescale": options.rescale,
            "units": options.units,
            "sample_weight": as_json(options.sample_weight),
            "fit_intercept": {"none": False, "free": True}.get(intercept, intercept),
            "refit": list(refits),
        }
        unit, scale = (scale, np.ones(states.n)) if options.units == "rescaled" else (np.ones(states.n), scale)
        if like is not None and like.intercept == intercept and np.array_equal(like.unit, unit):
            data = like.data
        else:
            if like is None and not isinstance(states, StreamedStates):
                unasked = isinstance(options.fit_intercept, str) and states.has_biases is None
                seen = states if isinstance(states, States) else states.sample
                warn_if_implausible(seen, without_biases=unasked and intercept == "none")
            data = Samples(states.rescaled(unit) if np.any(unit != 1.0) else states, intercept, weight)
        return cls(
            data=data,
            unit=unit,
            scale=scale,
            penalty=penalty,
            kappa=kappa,
            constraint=constraint,
            rank=rank,
            box=box,
            eta=eta,
            loss_weight=loss_weight,
            matching=matching,
            support=allowed,
            intercept=intercept,
            refits=refits,
            settings=settings,
            given=states,
            stated=options,
        )

    @property
    def states(self) -> AnyStates:
        """In the units of the fit."""
        return self.data.states

    @property
    def design(self) -> np.ndarray:
        """Φ of all rows."""
        return self.data.design

    def rows(self) -> RowSource:
        """All n + q rows."""
        return self._source(self.data, np.arange(self.loss_weight.size), self.support.rows)

    def rows_on_support(self, weights: Weights) -> RowSource:
        """All rows by least squares on the support of `weights`: debiasing."""
        every = np.arange(self.loss_weight.size)
        return self._source(self.data, every, functools.partial(_nonzero, weights), NoPenalty())

    def output_rows(self, weights: Weights, intercept: np.ndarray | None) -> RowSource:
        """The q rows of (C D), on the states that the (A B) in `weights` produces."""
        n = self.states.n
        assert not isinstance(self.states, StreamedStates)  # `make` refuses this refit of them
        activations = self.model(weights, intercept, {}).equilibrium(self.states.inputs) / self.scale
        samples = dataclasses.replace(self.data, activations=activations)
        return self._source(samples, np.arange(n, self.loss_weight.size), self.support.rows)

    def rows_of_low_rank(self, basis: np.ndarray) -> RowProblem:
        """The n rows of (L B) for A = L Rᵀ with R = `basis` (n, r): see `simjax.sim.low_rank`."""
        n, rank = self.states.n, basis.shape[1]
        design = self.design
        targets, centring = self.data.rows(np.arange(n))
        constraint = None
        if self.kappa is not None:  # Σ_j |A_ij|/s_j ≤ Σ_k |L_ik| Σ_j |R_jk|/s_j ≤ κ/s_i
            reach = (np.abs(basis) / self.scale[:, None]).sum(axis=0)
            constraint = L1Ball(self.kappa / self.scale, size=rank, weights=np.where(reach > 0.0, reach, 1.0))
        if centring is not None:
            means = np.concatenate([centring.design[:n] @ basis, centring.design[n:]])
            centring = dataclasses.replace(centring, design=means)
        return rows_over(
            *checked_samples(np.concatenate([design[:, :n] @ basis, design[:, n:]], axis=1), targets),
            centring=centring,
            loss_weight=self.loss_weight[:n],
            penalty=self.penalty,
            constraint=constraint,
            support=None,
            matching=self.matching,
        )

    def model(self, weights: Weights, intercept: np.ndarray | None, settings: dict[str, Any]) -> ImplicitModel:
        """The rows (n + q, d), and their intercepts (n + q,), as a model in the units in which ‖A‖∞ ≤ kappa holds."""
        return self.form.model(weights, intercept, settings)

    @property
    def form(self) -> ModelForm:
        """How the rows lie in the model."""
        layers = list(self.support.layer_sizes) if self.support.kind == "architecture" else None
        states, names = self.states, _names(self.states)
        return ModelForm(states.n, states.p, states.activation, self.intercept, self.scale, layers, names)

    @property
    def origin(self) -> Origin:
        """What a checkpoint of these rows is told: every argument that they follow from, and how they make a model."""
        states = self.given
        arguments = {
            field.name: getattr(self.stated, field.name)
            for field in dataclasses.fields(self.stated)
            if field.name != "refit"  # which comes after these rows
        }
        arguments |= {name: getattr(states, name) for name in ("activation", "layer_sizes", "has_biases")}
        arguments["names"] = _names(states)
        arguments["baseline"] = None if states.baseline is None else tensors_of_model(states.baseline)[0]
        about = {"form": self.form.as_json(), "settings": {**self.settings, "refit": []}}
        return Origin(arguments, {} if self.rank is not None else {"fit": about})

    def weights(self, model: ImplicitModel) -> tuple[np.ndarray, np.ndarray | None]:
        """The rows (n + q, d) of a model and their free intercepts in the units of the fit: the inverse of `model`."""
        if (model.n, model.p, model.q) != (self.states.n, self.states.p, self.states.q):
            raise ValueError(
                f"model has n, p, q = {model.n}, {model.p}, {model.q}, the states {self.states.n}, {self.states.p}, "
                f"{self.states.q}: they do not belong together."
            )
        dense = model.to_dense()
        dense = dense.scaled(1.0 / self.scale) if np.any(self.scale != 1.0) else dense
        rows = model_rows(dense, intercept=self.intercept != "none")
        return (rows[:, :-1], rows[:, -1]) if self.intercept == "free" else (rows, None)

    def _source(
        self,
        samples: Samples,
        numbers: np.ndarray,
        support: Callable[[np.ndarray], np.ndarray | None],
        penalty: Penalty | None = None,
    ) -> RowSource:
        """The rows with these numbers of the n + q, each made when it is asked for."""
        take = functools.partial(self._taken, samples, numbers, support, penalty)  # which can be pickled
        return RowSource(samples.design, numbers.size, self.matching, take)

    def _taken(
        self,
        samples: Samples,
        numbers: np.ndarray,
        support: Callable[[np.ndarray], np.ndarray | None],
        penalty: Penalty | None,
        index: np.ndarray,
    ) -> RowProblem:
        rows = numbers[index]
        targets, centring = samples.rows(rows)
        penalty = self.penalty if penalty is None else penalty
        return rows_over(
            samples.design,
            targets,
            centring=centring,
            loss_weight=self.loss_weight[rows],
            penalty=penalty if rows.size == self.loss_weight.size else take_rows(penalty, rows),
            constraint=self._constraint(rows),
            support=support(rows),
            matching=self.matching,
        )

    def _constraint(self, rows: np.ndarray) -> Constraint | None:
        """What kappa bounds in the rows with these numbers; those of (C D) are free. With s the scale,

        ball            Σ_j |A_ij|/s_j ≤ κ/s_i                              ‖SAS⁻¹‖∞ ≤ κ
        stacked_ball    Σ_j |A_ij|/s_j + Σ_k |B_ik| ≤ κ/s_i                 ‖(SAS⁻¹ SB)‖∞ ≤ κ
        metzler         A_ii + Σ_{j ≠ i} (s_i η_j)/(s_j η_i) |A_ij| ≤ κ     μ_η(SAS⁻¹) ≤ κ

        A box bounds the entries of SAS⁻¹, SB, CS⁻¹ and D in all rows.
        """
        if self.box is None:
            return self._bound(rows)
        width, count = self.support.width, self.loss_weight.size
        columns = np.concatenate([self.scale, np.ones(width - self.scale.size)])
        units = columns / np.concatenate([self.scale, np.ones(self.states.q)])[rows, None]
        lower, upper = (np.broadcast_to(x, (count, width))[rows] * units for x in (self.box.lower, self.box.upper))
        ball: Any = self._bound(rows)
        return Box(lower, upper, ball)

    def _bound(self, rows: np.ndarray) -> L1Ball | MetzlerRow | None:
        if self.kappa is None:
            return None
        n, q, scale = self.states.n, self.states.q, self.scale
        if self.constraint == "metzler":
            relative = np.concatenate([self.eta / scale, np.ones(q)])
            weights = relative[:n] / relative[rows][:, None]
            diagonal = np.where(rows < n, rows, -1)
            upper = np.flatnonzero(rows < n)
            weights[upper, rows[upper]] = 1.0
            radius = np.where(rows < n, self.kappa, np.inf)
            return MetzlerRow(radius, diagonal, size=n, weights=weights)
        radius = np.concatenate([self.kappa / scale, np.full(q, np.inf)])[rows]
        if self.constraint == "ball":
            return L1Ball(radius, size=n, weights=1.0 / scale)
        return L1Ball(radius, size=n + self.states.p, weights=np.concatenate([1.0 / scale, np.ones(self.states.p)]))


def _names(states: AnyStates) -> dict[str, list[str] | None] | None:
    """The names of inputs, states and outputs as values of JSON."""
    return None if states.names is None else states.names.as_json()


def _nonzero(weights: Weights, index: np.ndarray) -> np.ndarray:
    return dense_rows(weights[index]) != 0.0


def _checked_weight(sample_weight: Any, states: AnyStates) -> np.ndarray | None:
    if sample_weight is not None and isinstance(states, StreamedStates):
        raise ValueError(
            "sample_weight must be None for streamed states, which do not keep their samples: give it to stream_states "
            "or StreamedStates.from_arrays."
        )
    return checked_sample_weight(sample_weight, states.m)


def _total_weight(states: AnyStates, sample_weight: np.ndarray | None) -> float:
    """Σ v, by which the mean loss is divided: the number of samples where they have no weights."""
    if isinstance(states, StreamedStates):
        return states.statistics.total_weight
    return float(states.m) if sample_weight is None else float(sample_weight.sum())


def state_scale(states: AnyStates, rescale: Rescale, kappa: float | None) -> np.ndarray:
    """`states.scaling` for any kappa: one that is not positive has no rescaling to go with it."""
    return states.scaling(rescale, kappa if kappa is None or kappa > 0.0 else None)
