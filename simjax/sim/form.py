"""ModelForm: what makes a model of the rows of a fit, without the states."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from simjax._typing import Weights
from simjax.implicit.model import ImplicitModel
from simjax.rows.solution import dense_rows


@dataclasses.dataclass(frozen=True)
class ModelForm:
    """How the rows (n + q, d) of a fit lie in a model.

    Attributes:
      n, p: states and inputs.
      activation: name of φ.
      intercept: "none"; "free"; or "penalised": the last column of the rows.
      scale: s, (n,): the model has x' = s x in the units of the rows.
      layer_sizes: widths of the hidden layers, where the model knows them: of support="architecture".
      names: of inputs, states and outputs, where they have any.
    """

    n: int
    p: int
    activation: str
    intercept: str
    scale: np.ndarray
    layer_sizes: list[int] | None = None
    names: dict[str, list[str] | None] | None = None

    def model(self, weights: Weights, intercept: np.ndarray | None, settings: dict[str, Any]) -> ImplicitModel:
        """The rows (n + q, d), and their intercepts (n + q,), as a model in the units in which ‖A‖∞ ≤ kappa holds."""
        n, p = self.n, self.p
        if self.intercept == "penalised":
            intercept = dense_rows(weights[:, [-1]])[:, 0]
        upper, lower = weights[:n], weights[n:]
        layers = {} if self.layer_sizes is None else {"layer_sizes": self.layer_sizes}
        names = {} if self.names is None else {"names": self.names}
        model = ImplicitModel(
            upper[:, :n],
            upper[:, n : n + p],
            lower[:, :n],
            lower[:, n : n + p],
            activation=self.activation,
            b=None if intercept is None else intercept[:n],
            c=None if intercept is None else intercept[n:],
            metadata={"fit": settings, **layers, **names},
        )
        return model.scaled(self.scale) if np.any(self.scale != 1.0) else model

    def as_json(self) -> dict[str, Any]:
        """As values of JSON, of which `from_json` makes the same to the bit."""
        scale = self.scale.tolist() if np.any(self.scale != 1.0) else None
        return {**dataclasses.asdict(self), "scale": scale}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelForm:
        """The opposite of `as_json`.

        Raises:
          KeyError, TypeError, ValueError: something is missing or does not fit.
        """
        scale = values["scale"]
        array = np.ones(values["n"]) if scale is None else np.array(scale, dtype=np.float64)
        if array.shape != (values["n"],):
            raise ValueError(f"scale has shape {array.shape}, expected ({values['n']},)")
        return cls(**{**values, "scale": array})
