"""The implicit model x = φ(Ax + Bu + b), ŷ = Cx + Du + c: prediction, well-posedness, scale and files."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import scipy.sparse as sp

from simjax._checks import checked_labels, matrix, positive_integer, positive_scalar
from simjax._files import read_safetensors, usable, write_safetensors
from simjax._frames import check_names
from simjax._values import Value
from simjax._warnings import warn
from simjax.implicit.activations import activation as find_activation
from simjax.implicit.iteration import iterate
from simjax.implicit.layered import implicit_form, layers_of
from simjax.implicit.matrices import (
    Storage,
    checked_bias,
    checked_matrix,
    count_nonzero,
    dense,
    drive,
    is_sparse,
    outputs,
    scaled,
)
from simjax.implicit.report import EquilibriumInfo, EquilibriumWarning, not_converged
from simjax.implicit.tensors import FORMAT, FORMAT_VERSION, parts_of_model, tensors_of_model
from simjax.implicit.wellposed import checked_scale, perron_eigenvalue, perron_scale

if TYPE_CHECKING:
    from simjax.implicit.loop import Solver


# Of the fixed-point iteration: with ‖A‖∞ = 0.99 it takes log(TOL) / log(0.99) = 2,300 passes at worst.
TOL = 1e-10
MAX_ITERS = 3000


@dataclass(frozen=True, eq=False, repr=False)
class ImplicitModel(Value):
    """x = φ(Ax + Bu + b), ŷ = Cx + Du + c (SIM paper, eq. 1, with optional biases).

    Args:
      A, B, C, D: (n, n), (n, p), (q, n), (q, p) array-likes or scipy.sparse matrices, stored in float64.
        If any of them is sparse, all four are stored as CSR.
      activation: name of φ (see `simjax.implicit.activations`).
      b, c: biases (n,) and (q,), or None.
      metadata: what to remember about the model, such as the settings of a fit: a mapping that JSON holds.

    Raises:
      ValueError: shapes that do not fit, empty matrices, NaN or inf, an unknown activation.
      TypeError: matrices that are not real numbers, metadata that JSON cannot hold.

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.5]], B=[[1.0]], C=[[2.0]], D=[[0.0]])
      >>> model.predict([[1.0], [-1.0]]).round(6)  # x = max(0.5 x + 1, 0) = 2, and x = 0
      array([[4.], [0.]])
    """

    A: Any
    B: Any
    C: Any
    D: Any
    activation: str = "relu"
    b: Any = None
    c: Any = None
    metadata: Any = None

    def __post_init__(self) -> None:
        sparse = any(is_sparse(getattr(self, name)) for name in "ABCD")
        for name in "ABCD":
            _set(self, name, checked_matrix(getattr(self, name), name, sparse))
        n, p, q = self.n, self.p, self.q
        for name, shape in (("A", (n, n)), ("B", (n, p)), ("C", (q, n)), ("D", (q, p))):
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"{name} has shape {getattr(self, name).shape}, expected {shape}: "
                    f"A's rows give n = {n}, B's columns p = {p}, C's rows q = {q}."
                )
        for name, size in (("b", n), ("c", q)):
            _set(self, name, checked_bias(getattr(self, name), name, size))
        _set(self, "activation", find_activation(self.activation).name)
        _set(self, "metadata", _checked_metadata(self.metadata))

    @classmethod
    def from_layers(
        cls,
        weights: Sequence[Any],
        biases: Sequence[Any] | None = None,
        activation: str = "relu",
        *,
        storage: Storage = "dense",
    ) -> ImplicitModel:
        """The exact implicit form of a layered network x_ℓ = φ(W_ℓ x_{ℓ−1} + b_ℓ), ŷ = W_{L+1} x_L + b_{L+1}.

        States are stacked last hidden layer first, which makes A strictly upper block triangular.

        Args:
          weights: W_1, …, W_{L+1} from the input to the output, each (outputs, inputs) of its layer; L ≥ 1.
          biases: b_1, …, b_{L+1}, each a vector or None; None means no bias anywhere.
          activation: name of φ, the same in all hidden layers.
          storage: "dense", or "csr" to build a large network without an (n, n) array.

        Raises:
          ValueError: fewer than two layers, shapes that do not chain, an unknown activation or storage.
          TypeError: weights or biases that are not real numbers.
        """
        return cls(**implicit_form(weights, biases, storage), activation=activation)

    # ---- what it is ----------------------------------------------------------------------------------------

    @property
    def n(self) -> int:
        """Number of states."""
        return self.A.shape[0]

    @property
    def p(self) -> int:
        """Number of inputs."""
        return self.B.shape[1]

    @property
    def q(self) -> int:
        """Number of outputs."""
        return self.C.shape[0]

    @property
    def storage(self) -> Storage:
        """How A, B, C, D are stored: "dense" or "csr"."""
        return "csr" if is_sparse(self.A) else "dense"

    @property
    def nonzeros(self) -> int:
        """Number of parameters that are exactly nonzero, over A, B, C, D, b and c."""
        matrices = sum(count_nonzero(getattr(self, name)) for name in "ABCD")
        return matrices + sum(int(np.count_nonzero(v)) for v in (self.b, self.c) if v is not None)

    def sparsity(self, baseline_nonzeros: int) -> float:
        """1 − nonzeros / ‖N‖₀ as a fraction; ‖N‖₀ counts the baseline's nonzero parameters (SIM paper).

        It is negative for a model with more nonzeros than its baseline.

        Raises:
          ValueError, TypeError: `baseline_nonzeros` is not a positive integer.
        """
        return 1.0 - self.nonzeros / positive_integer("baseline_nonzeros", baseline_nonzeros)

    @property
    def well_posedness(self) -> float:
        """‖A‖∞, the largest absolute row sum; below 1 the equilibrium is unique for every input."""
        return float(abs(self.A).sum(axis=1).max())

    @property
    def perron_eigenvalue(self) -> float:
        """λ_pf(|A|): below 1 the equilibrium is unique for every input; exactly 0 for a feed-forward A."""
        return perron_eigenvalue(abs(self.A))

    def __repr__(self) -> str:
        biased = self.b is not None or self.c is not None
        return (
            f"ImplicitModel(n={self.n}, p={self.p}, q={self.q}, activation={self.activation!r}, "
            f"nonzeros={self.nonzeros}, storage={self.storage!r}{', biased' if biased else ''})"
        )

    # ---- what it does --------------------------------------------------------------------------------------

    def predict(self, inputs: Any) -> np.ndarray:
        """Outputs ŷ = Cx + Du + c at the equilibrium x, (m, q) float64, for `inputs` (m, p).

        `model(inputs)` is the same in short. Warns and raises as `equilibrium`, with its default tolerance and limit.
        """
        return self._outputs(self._checked_inputs(inputs))

    __call__ = predict

    @overload
    def equilibrium(
        self, inputs: Any, tol: float = ..., max_iters: int = ..., *, return_info: Literal[False] = ...
    ) -> np.ndarray: ...

    @overload
    def equilibrium(
        self, inputs: Any, tol: float = ..., max_iters: int = ..., *, return_info: Literal[True]
    ) -> tuple[np.ndarray, EquilibriumInfo]: ...

    def equilibrium(
        self, inputs: Any, tol: float = TOL, max_iters: int = MAX_ITERS, *, return_info: bool = False
    ) -> Any:
        """States x = φ(Ax + Bu + b), (m, n) float64, for `inputs` (m, p), by averaged iteration from 0.

            x ← (1 − α) x + α φ(Ax + Bu + b),     α = 1 / (1 − min(0, min_i a_ii))

        It converges for μ∞(A) < 1, whatever ‖A‖∞ is; without negative diagonal entries α = 1. A sample has converged
        when its last step is at most α · tol · max(1, max|x⁺|). With ‖A‖∞ = κ < 1 its distance from the equilibrium is
        then at most κ / (1 − κ) times that step. A feed-forward A with L layers is exact after L passes; one more
        confirms it.

        Returns:
          The states, or `(states, EquilibriumInfo)` with `return_info=True`.

        Warns:
            EquilibriumWarning: some samples did not converge and `return_info` is False.

        Raises:
          ValueError: inputs of another shape or not finite, tol or max_iters not positive.
          TypeError: inputs that are not real numbers.
        """
        U = self._checked_inputs(inputs)
        tol, max_iters = positive_scalar("tol", tol), positive_integer("max_iters", max_iters)
        X, info = self._iterate(U, tol, max_iters)
        if return_info:
            return X, info
        if not info.converged.all():
            warn(not_converged(info, tol, self.well_posedness), EquilibriumWarning)
        return X

    def accuracy(self, inputs: Any, labels: Any) -> float:
        """Share of samples whose largest output has the index `labels` (m,), as a fraction in [0, 1].

        Raises:
          ValueError: labels of another length, or outside 0 … q − 1.
          TypeError: labels that are not whole numbers.
        """
        U = self._checked_inputs(inputs)
        wanted = checked_labels(labels, U.shape[0], self.q)
        return float(np.mean(np.argmax(self._outputs(U), axis=1) == wanted))

    def _iterate(self, U: np.ndarray, tol: float, max_iters: int) -> tuple[np.ndarray, EquilibriumInfo]:
        X, residual, iterations = iterate(self.A, drive(self, U), self.activation, tol, max_iters)
        return X, EquilibriumInfo(residual <= tol, residual, iterations)

    def _outputs(self, U: np.ndarray) -> np.ndarray:
        X, info = self._iterate(U, TOL, MAX_ITERS)
        if not info.converged.all():
            warn(not_converged(info, TOL, self.well_posedness), EquilibriumWarning)
        with np.errstate(over="ignore", invalid="ignore"):  # diverged samples, warned about above
            return outputs(self, X, U)

    # ---- the same model otherwise written ------------------------------------------------------------------

    def to_csr(self) -> ImplicitModel:
        """The same model with A, B, C, D as scipy.sparse.csr_array (explicit zeros removed)."""
        matrices: dict[str, Any] = {name: sp.csr_array(getattr(self, name)) for name in "ABCD"}
        return replace(self, **matrices)

    def to_dense(self) -> ImplicitModel:
        """The same model with A, B, C, D as NumPy arrays."""
        matrices: dict[str, Any] = {name: dense(getattr(self, name)) for name in "ABCD"}
        return replace(self, **matrices)

    def to_flax(
        self,
        *,
        kappa: float = 0.99,
        constraint: str = "parameterised",
        keep_support: bool = False,
        solver: Solver | None = None,
    ) -> Any:
        """The model as a `simjax.nn.ImplicitLayer` with ‖A‖∞ ≤ kappa, to be trained; `layer.export()` is the way back.

        Its parameters take JAX's default precision, float32 outside `jax.enable_x64(True)`. A model with only one of
        the biases b and c gets the other too, at zero.

        Args:
          kappa: bound on ‖A‖∞ in (0, 1), which training keeps.
          constraint: how it is kept, "parameterised" or "projected": see `simjax.nn.ImplicitLayer`.
          keep_support: whether zeros of A, B, C, D stay zero in training.
          solver: settings of the fixed-point iteration; None is `simjax.equilibrium.Solver()`.

        Raises:
          ValueError: ‖A‖∞ above kappa (`rescaled` may bring it below one), kappa outside (0, 1), an unknown
            constraint.
        """
        # By its name, as something that is plugged in: networks are built on this module.
        nn = importlib.import_module("simjax.nn.implicit")
        return nn.layer_of_model(self, kappa=kappa, constraint=constraint, keep_support=keep_support, solver=solver)

    def to_torch(self, *, dtype: Any = None, max_iters: int = MAX_ITERS) -> Any:
        """The model as a `torch.nn.Module` on the CPU: u (…, p) to ŷ (…, q), with implicit derivatives.

        A, B, C, D, b and c are its parameters, zeros among them; training by them keeps neither ‖A‖∞ < 1 nor zeros.

        Args:
          dtype: of the parameters; None means PyTorch's default, float32 unless it was changed.
          max_iters: most passes through A, of the states and of their gradients.

        Raises:
          ModuleNotFoundError: PyTorch is not installed.
          ValueError, TypeError: max_iters is not a positive integer.
        """
        positive_integer("max_iters", max_iters)
        torch_module = importlib.import_module("simjax.implicit.torch_module")  # by its name, as something plugged in
        return torch_module.TorchImplicit(self, dtype, max_iters)

    def to_layers(self, layer_sizes: Sequence[int] | None = None) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
        """Weights W_1, …, W_{L+1} and biases b_1, …, b_{L+1} of the network that the model is: `from_layers` undone.

        Args:
          layer_sizes: widths of the hidden layers, first hidden layer first; None means those in the metadata, where
            a fit with support="architecture" puts them.

        Raises:
          ValueError: sizes that are unknown or do not fit, or weights from elsewhere than the layer before.
        """
        sizes = self.metadata.get("layer_sizes") if layer_sizes is None else layer_sizes
        if sizes is None:
            raise ValueError(
                "layer_sizes must be given: only models of support='architecture' know those of their own."
            )
        return layers_of(self, sizes)

    def scaled(self, scale: Any) -> ImplicitModel:
        """The model with states x′ = s·x and unchanged outputs: A′ = SAS⁻¹, B′ = SB, b′ = Sb, C′ = CS⁻¹.

        Args:
          scale: s, (n,), positive.

        Raises:
          ValueError: scale of another shape or not positive, or φ not positively homogeneous.
        """
        s = checked_scale(scale, self.n, self.activation)
        return replace(
            self,
            A=scaled(self.A, s, 1 / s),
            B=scaled(self.B, s, None),
            C=scaled(self.C, None, 1 / s),
            b=None if self.b is None else s * self.b,
        )

    def rescaled(self) -> ImplicitModel:
        """The same outputs with ‖A‖∞ = 1 − 1/max s < 1, for any A with λ_pf(|A|) < 1.

        With s = (I − |A|)⁻¹ 1, row i of |S⁻¹AS| sums to (|A|s)_i / s_i = 1 − 1/s_i. So A′ = S⁻¹AS, B′ = S⁻¹B,
        b′ = S⁻¹b, C′ = CS (SIM paper, Theorem 2.4, which prints SAS⁻¹: that matrix has no such bound).

        Raises:
          ValueError: λ_pf(|A|) ≥ 1, or φ not positively homogeneous.
        """
        checked_scale(np.ones(self.n), self.n, self.activation)
        return self.scaled(1 / perron_scale(abs(self.A)))

    def _checked_inputs(self, inputs: Any) -> np.ndarray:
        U = matrix("inputs", inputs)
        check_names("inputs", inputs, ((self.metadata or {}).get("names") or {}).get("inputs"))
        if U.shape[1] != self.p:
            raise ValueError(f"inputs has {U.shape[1]} columns, the model expects p = {self.p}.")
        return U

    # ---- files ---------------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str], overwrite: bool = False) -> None:
        """Writes the model to `path` as safetensors, with shapes, φ, versions and metadata in its header.

        The file appears complete or not at all.

        Raises:
          FileExistsError: `path` exists and `overwrite` is False.
          FileNotFoundError: its folder does not exist.
        """
        tensors, header = tensors_of_model(self)
        write_safetensors(path, tensors, header, marker=FORMAT, version=FORMAT_VERSION, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> ImplicitModel:
        """Reads a model that `save` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is truncated, foreign, of a newer format version or inconsistent; says which.
        """
        tensors, header = read_safetensors(path, FORMAT, FORMAT_VERSION)
        with usable(path, "simjax model"):
            return cls(**parts_of_model(tensors, header))


def _checked_metadata(metadata: Any) -> dict[str, Any]:
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping or None, got {type(metadata).__name__}.")
    try:
        return json.loads(json.dumps(dict(metadata or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata must hold only what JSON can: {error}") from error


def _set(instance: Any, name: str, value: Any) -> None:
    object.__setattr__(instance, name, value)  # frozen dataclasses normalise their fields this way
