"""States: what a baseline network did on m inputs; checks, subsets, rescaling and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from os import PathLike
from typing import Any, Literal

import numpy as np

from simjax._checks import boolean, choice, matrix, positive_integer, positive_scalar
from simjax._files import read_npz, usable, write_npz
from simjax._frames import column_names
from simjax._typing import ArrayLike
from simjax._values import Value
from simjax._warnings import warn_of_half_precision
from simjax.implicit.activations import activation as find_activation
from simjax.implicit.layered import checked_layers
from simjax.implicit.matrices import outputs, preactivations
from simjax.implicit.model import ImplicitModel
from simjax.implicit.tensors import parts_of_model, tensors_of_model
from simjax.implicit.wellposed import checked_scale
from simjax.states.names import Names
from simjax.states.samples import check_activations, checked_layer_sizes, chosen_rows, largest_deviation

Rescale = Literal["auto", "inner", "none"]

FORMAT = "simjax-states"
FORMAT_VERSION = 1

# Relative to max(1, largest entry).
_BASELINE_TOLERANCE = 1e-4  # float32 sums of many terms round more than φ does

ARRAYS = ("inputs", "preactivations", "activations", "outputs")
_BASELINE_PREFIX = "baseline."


@dataclass(frozen=True, eq=False, repr=False)
class States(Value):
    """States Z, X = φ(Z) and outputs Y of a baseline network on m inputs U (SIM paper, §2), a row per sample.

    Args:
      inputs: U (m, p).
      preactivations: Z (m, n), stacked last hidden layer first; or a list with an array for each hidden layer, FIRST
        hidden layer first, which are stacked here.
      activations: X (m, n) = φ(Z); or a list, likewise.
      outputs: Y (m, q), the baseline's own outputs.
      activation: name of φ (see `simjax.implicit.activations`).
      layer_sizes: widths of the hidden layers, FIRST hidden layer first, summing to n; None if not layered, or as
        the lists say.
      baseline: the exact implicit form of the network that produced the states, or None if unknown.
      has_biases: whether it has biases, which `fit` then fits by default; None if unknown, or as the baseline says.
      names: what inputs, states and outputs are called; None means as frames call them, if they came as such.

    All array-likes of real numbers are accepted, frames too, and kept in float64, read-only.

    Raises:
      ValueError: shapes that do not fit, empty arrays, NaN or inf, X ≠ φ(Z), an unknown activation, layer
        sizes that do not sum to n, frames with indices that differ, or a baseline that does not produce these states.
      TypeError: arrays that are not real numbers, a baseline that is not an ImplicitModel.

    Examples:
      >>> import numpy as np, simjax
      >>> U, Z1 = np.ones((2, 3)), np.array([[1.0, -2.0], [0.5, 3.0]])
      >>> Z2 = np.array([[0.1], [-0.2]])  # another hidden layer
      >>> X1, X2 = np.maximum(Z1, 0), np.maximum(Z2, 0)
      >>> simjax.States(inputs=U, preactivations=[Z1, Z2], activations=[X1, X2], outputs=3.0 * X2)
      States(m=2, n=3, p=3, q=1, activation='relu', layer_sizes=(2, 1), baseline unknown)
    """

    inputs: Any
    preactivations: Any
    activations: Any
    outputs: Any
    activation: str = "relu"
    layer_sizes: tuple[int, ...] | None = None
    baseline: ImplicitModel | None = None
    has_biases: bool | None = None
    names: Names | None = None

    def __post_init__(self) -> None:
        if self.names is None:
            read = Names.read(self.inputs, self.preactivations, self.activations, self.outputs)
            object.__setattr__(self, "names", read)
        warn_of_half_precision(**{name: getattr(self, name) for name in ARRAYS})
        self._stack_layers()
        for name in ARRAYS:
            array = matrix(name, getattr(self, name))
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        object.__setattr__(self, "activation", find_activation(self.activation).name)
        self._check_shapes()
        check_activations(self.preactivations, self.activations, self.activation)
        if self.names is not None:
            self.names.check(self.p, self.n, self.q)
        if self.layer_sizes is not None:
            object.__setattr__(self, "layer_sizes", checked_layer_sizes(self.layer_sizes, self.n))
        if self.baseline is not None:
            self._check_baseline(self.baseline)
            object.__setattr__(self, "has_biases", self.baseline.b is not None or self.baseline.c is not None)
        elif self.has_biases is not None:
            object.__setattr__(self, "has_biases", boolean("has_biases", self.has_biases))

    @classmethod
    def from_layers(
        cls,
        weights: Sequence[ArrayLike],
        biases: Sequence[ArrayLike | None] | None,
        activation: str,
        inputs: ArrayLike,
        layers: int | None = None,
    ) -> States:
        """The float64 states of a layered network x_ℓ = φ(W_ℓ x_{ℓ−1} + b_ℓ), ŷ = W_{L+1} x_L + b_{L+1}.

        Args:
          weights: W_1, …, W_{L+1} from the input to the output, each (outputs, inputs) of its layer, as the `weight` of
            a torch.nn.Linear is, or the transposed `kernel` of a Flax one; L ≥ 1.
          biases: b_1, …, b_{L+1}, each a vector or None; None means no bias anywhere.
          activation: name of φ.
          inputs: U (m, p).
          layers: how many of the last hidden layers are states, 1 … L; what feeds the first of them is then the
            input u. None means all.

        Raises:
          ValueError, TypeError: as `ImplicitModel.from_layers`, inputs that do not fit the first layer, and layers
            that are not a number of hidden layers.

        Examples:
          >>> import simjax
          >>> simjax.States.from_layers([[[1.0]], [[2.0]]], [[-1.0], None], "relu", inputs=[[3.0], [0.0]]).outputs
          array([[4.],
                 [0.]])
        """
        weights, biases = checked_layers(weights, biases)
        phi = find_activation(activation)
        U = matrix("inputs", inputs)
        if U.shape[1] != weights[0].shape[1]:
            raise ValueError(f"inputs has {U.shape[1]} columns, the network expects {weights[0].shape[1]}.")
        own, hidden = column_names(inputs), len(weights) - 1
        count = hidden if layers is None else positive_integer("layers", layers)
        if count > hidden:
            raise ValueError(f"layers must be in 1 … {hidden}, the number of hidden layers, got {layers}.")
        names = None if own is None or count < hidden else Names(inputs=own)
        Zs: list[np.ndarray] = []
        Xs: list[np.ndarray] = [U]
        for W, b in zip(weights, biases):
            Z = Xs[0] @ W.T if b is None else Xs[0] @ W.T + b
            Zs.insert(0, Z)
            Xs.insert(0, phi.host(Z))
        # The outputs come first, then the hidden layers from the last on, then what feeds the first of them.
        weights, biases = weights[hidden - count :], biases[hidden - count :]
        return cls(
            inputs=Xs[count + 1],
            preactivations=np.hstack(Zs[1 : count + 1]),
            activations=np.hstack(Xs[1 : count + 1]),
            outputs=Zs[0],
            activation=phi.name,
            layer_sizes=tuple(W.shape[0] for W in weights[:-1]),
            baseline=ImplicitModel.from_layers(weights, biases, phi.name),
            names=names,
        )

    # ---- what they are -------------------------------------------------------------------------------------

    @property
    def m(self) -> int:
        """Number of samples."""
        return self.inputs.shape[0]

    @property
    def n(self) -> int:
        """Number of states."""
        return self.activations.shape[1]

    @property
    def p(self) -> int:
        """Number of inputs."""
        return self.inputs.shape[1]

    @property
    def q(self) -> int:
        """Number of outputs."""
        return self.outputs.shape[1]

    def __repr__(self) -> str:
        known = "known" if self.baseline is not None else "unknown"
        return (
            f"States(m={self.m}, n={self.n}, p={self.p}, q={self.q}, activation={self.activation!r}, "
            f"layer_sizes={self.layer_sizes}, baseline {known})"
        )

    def layer_slices(self) -> tuple[slice, ...]:
        """Where each hidden layer lies in the stacked state, last hidden layer first.

        Raises:
          ValueError: the layer sizes are unknown.
        """
        if self.layer_sizes is None:
            raise ValueError("layer_sizes is unknown: pass States(..., layer_sizes=...) to say where layers lie.")
        ends = np.cumsum(self.layer_sizes[::-1])
        return tuple(slice(int(end - size), int(end)) for end, size in zip(ends, self.layer_sizes[::-1], strict=True))

    # ---- parts and scales ----------------------------------------------------------------------------------

    def subset(self, indices_or_count: int | ArrayLike, seed: int | None = None) -> States:
        """Some of the samples.

        Args:
          indices_or_count: sample indices (k,), a mask (m,) of booleans, or a number of samples.
          seed: with a number, draw that many without replacement; None takes the first ones.

        Raises:
          ValueError: no or too many samples asked for, indices out of range, a seed where nothing is drawn.
          TypeError: neither whole numbers nor booleans.
        """
        rows = chosen_rows(indices_or_count, self.m, seed)
        return replace(self, **{name: getattr(self, name)[rows] for name in ARRAYS})

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """The columns of [Z Y] with the numbers `rows` (k,), (m, k)."""
        hidden = rows < self.n
        found = np.empty((self.m, rows.size))
        found[:, hidden] = self.preactivations[:, rows[hidden]]
        found[:, ~hidden] = self.outputs[:, rows[~hidden] - self.n]
        return found

    def scaling(self, rescale: Rescale = "auto", kappa: float | None = 0.99) -> np.ndarray:
        """The factors s > 0, (n,), by which `rescale` multiplies the states: x′ = s·x, z′ = s·z.

        "none" gives ones. "inner" scales only hidden-to-hidden weights: with c_ℓ = min(1, kappa / ‖W_ℓ‖∞) for
        ℓ = 2 … L, layer ℓ gets s = c_2 ⋯ c_ℓ, and the first hidden layer 1 since B has no norm limit. Then
        A′ = SAS⁻¹ has ‖A′‖∞ ≤ kappa, and with B′ = SB and C′ = CS⁻¹ the outputs stay as they are. "auto" is
        "inner" where that is possible and "none" elsewhere. kappa=None sets no limit: nothing is rescaled.

        Raises:
          ValueError: "inner" with unknown layers or baseline, with a baseline not from layer to layer, or
            with an activation that is not positively homogeneous; kappa outside (0, 1); an unknown name.
        """
        choice("rescale", rescale, ("auto", "inner", "none"))
        if kappa is not None:
            kappa = positive_scalar("kappa", kappa, below=1.0)
        obstacle = self._inner_obstacle()
        if rescale == "inner" and obstacle is not None:
            raise ValueError(f"rescale='inner' is not possible: {obstacle}.")
        if rescale == "none" or obstacle is not None or kappa is None:
            return np.ones(self.n)
        assert self.baseline is not None
        norms = [np.abs(W).sum(axis=1).max() for W in self._inner_weights(self.baseline)]
        factors = [1.0 if norm <= kappa else kappa / norm for norm in norms[::-1]]  # c_2, …, c_L
        s = np.empty(self.n)
        for rows, product in zip(self.layer_slices()[::-1], np.cumprod([1.0, *factors])):
            s[rows] = product
        return s

    def rescaled(self, scale: ArrayLike) -> States:
        """These states with z′ = s·z and x′ = s·x, and a baseline with unchanged outputs that produces them.

        Raises:
          ValueError: scale not (n,) or not positive, or φ not positively homogeneous.
        """
        s = checked_scale(scale, self.n, self.activation)
        return replace(
            self,
            preactivations=self.preactivations * s,
            activations=self.activations * s,
            baseline=None if self.baseline is None else self.baseline.scaled(s),
        )

    def _inner_obstacle(self) -> str | None:
        """Why "inner" cannot be applied, or None if it can."""
        if not find_activation(self.activation).positively_homogeneous:
            return f"activation {self.activation!r} is not positively homogeneous (φ(s·z) = s·φ(z) for s > 0)"
        if self.layer_sizes is None or self.baseline is None:
            missing = "layer_sizes" if self.layer_sizes is None else "baseline"
            return f"{missing} is unknown; states from collect_states know both"
        weights = self._inner_weights(self.baseline)
        if np.count_nonzero(self.baseline.to_dense().A) != sum(np.count_nonzero(W) for W in weights):
            return "the baseline has weights in A other than from one hidden layer to the next"
        return None

    def _inner_weights(self, baseline: ImplicitModel) -> list[np.ndarray]:
        """W_L, …, W_2: the hidden-to-hidden blocks of A, last first."""
        A = baseline.to_dense().A
        return [A[rows, columns] for rows, columns in pairwise(self.layer_slices())]

    # ---- files ---------------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str], overwrite: bool = False) -> None:
        """Writes the states to `path` as .npz (no pickle), including what is known of the baseline.

        The file appears complete or not at all.

        Raises:
          FileExistsError: `path` exists and `overwrite` is False.
          FileNotFoundError: its folder does not exist.
        """
        arrays = {name: getattr(self, name) for name in ARRAYS}
        about: dict[str, Any] = {"activation": self.activation, "layer_sizes": self.layer_sizes, "baseline": None}
        about["has_biases"] = self.has_biases
        about["names"] = None if self.names is None else self.names.as_json()
        if self.baseline is not None:
            tensors, about["baseline"] = tensors_of_model(self.baseline)
            arrays |= {_BASELINE_PREFIX + name: tensor for name, tensor in tensors.items()}
        write_npz(path, arrays, about, marker=FORMAT, version=FORMAT_VERSION, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> States:
        """Reads states that `save` wrote, or an .npz of anyone's with exactly the arrays inputs, preactivations,
        activations and outputs, which are taken for those of a ReLU network.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is truncated, pickled, foreign, of a newer format version or inconsistent.
        """
        arrays, about = read_npz(path, FORMAT, FORMAT_VERSION, plain=frozenset(ARRAYS))
        with usable(path, "simjax states file"):
            return _states_from(arrays, about)

    # ---- checks --------------------------------------------------------------------------------------------

    def _stack_layers(self) -> None:
        """Put lists of an array for each layer into one array each, and read the layer sizes from them."""
        for name in ("preactivations", "activations"):
            layers = getattr(self, name)
            if not (isinstance(layers, list | tuple) and layers and all(np.ndim(layer) == 2 for layer in layers)):
                continue
            arrays = [matrix(f"{name}[{k}]", layer) for k, layer in enumerate(layers)]
            samples, sizes = {array.shape[0] for array in arrays}, tuple(array.shape[1] for array in arrays)
            if len(samples) > 1:
                raise ValueError(f"{name} must have one row per sample in every layer, got {sorted(samples)} rows.")
            if self.layer_sizes is not None and tuple(self.layer_sizes) != sizes:
                raise ValueError(f"{name} has layers of sizes {sizes}, but layer_sizes is {self.layer_sizes}.")
            object.__setattr__(self, name, np.concatenate(arrays[::-1], axis=1))
            object.__setattr__(self, "layer_sizes", sizes)

    def _check_shapes(self) -> None:
        for name in ARRAYS[1:]:
            if getattr(self, name).shape[0] != self.m:
                raise ValueError(
                    f"{name} has {getattr(self, name).shape[0]} rows, but inputs has m = {self.m}: "
                    f"expected one row per sample."
                )
        if self.preactivations.shape != self.activations.shape:
            raise ValueError(
                f"preactivations has shape {self.preactivations.shape} and activations "
                f"{self.activations.shape}: expected the same (m, n)."
            )

    def _check_baseline(self, baseline: Any) -> None:
        if not isinstance(baseline, ImplicitModel):
            raise TypeError(f"baseline must be an ImplicitModel or None, got {type(baseline).__name__}.")
        if (baseline.n, baseline.p, baseline.q) != (self.n, self.p, self.q):
            raise ValueError(
                f"baseline has n, p, q = {baseline.n}, {baseline.p}, {baseline.q}, the states have "
                f"{self.n}, {self.p}, {self.q}."
            )
        if baseline.activation != self.activation:
            raise ValueError(f"baseline has activation {baseline.activation!r}, the states {self.activation!r}.")
        X, U = self.activations, self.inputs
        for name, found, expected in (
            ("preactivations", self.preactivations, preactivations(baseline, X, U)),
            ("outputs", self.outputs, outputs(baseline, X, U)),
        ):
            off, allowed = largest_deviation(found, expected, _BASELINE_TOLERANCE)
            if off > allowed:
                order = " States are stacked last hidden layer first." if name == "preactivations" else ""
                raise ValueError(
                    f"baseline does not produce these states: {name} differ by up to {off:.3g} "
                    f"(allowed {allowed:.3g}).{order}"
                )


def _states_from(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> States:
    if not about:
        four: dict[str, Any] = dict(arrays)
        return States(**four)
    baseline = None
    if about["baseline"] is not None:
        tensors = {
            name.removeprefix(_BASELINE_PREFIX): array
            for name, array in arrays.items()
            if name.startswith(_BASELINE_PREFIX)
        }
        baseline = ImplicitModel(**parts_of_model(tensors, about["baseline"]))
    return States(
        **{name: arrays[name] for name in ARRAYS},
        activation=about["activation"],
        layer_sizes=about["layer_sizes"],
        baseline=baseline,
        has_biases=about.get("has_biases"),
        names=Names.of_json(about.get("names")),
    )
