"""The implicit model x = φ(Ax + Bu + b), ŷ = Cx + Du + c: prediction, well-posedness, scale and files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from simjax._checks import choice, float_array, matrix, positive_integer, positive_scalar
from simjax._files import (
    package_version,
    read_safetensors,
    usable,
    write_safetensors,
)
from simjax._warnings import warn
from simjax.implicit.activations import activation as find_activation
from simjax.implicit.wellposed import checked_scale, perron_eigenvalue, perron_scale

if TYPE_CHECKING:
    from simjax.implicit.equilibrium import Solver
    from simjax.nn.implicit import ImplicitLayer

Matrix = Any  # np.ndarray or scipy.sparse.csr_array
Storage = Literal["dense", "csr"]

# Of the fixed-point iteration: with ‖A‖∞ = 0.99 it takes log(TOL) / log(0.99) = 2,300 passes at worst.
TOL = 1e-10
MAX_ITERS = 3000

FORMAT = "simjax-implicit-model"
FORMAT_VERSION = 1


class EquilibriumWarning(UserWarning):
    """The fixed-point iteration did not reach its tolerance for some samples."""


class EquilibriumInfo(NamedTuple):
    """How a fixed-point iteration x⁺ = φ(Ax + Bu + b) ended.

    Attributes:
        converged: (m,) bool, which samples met the tolerance.
        residual: (m,) float64, the size max|x⁺ − x| / max(1, max|x⁺|) of each sample's last step.
        iterations: passes made over the batch.
    """

    converged: np.ndarray
    residual: np.ndarray
    iterations: int


@dataclass(frozen=True, eq=False, repr=False)
class ImplicitModel:
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
    """

    A: Matrix
    B: Matrix
    C: Matrix
    D: Matrix
    activation: str = "relu"
    b: Any = None
    c: Any = None
    metadata: Any = None

    def __post_init__(self) -> None:
        sparse = any(_is_sparse(getattr(self, name)) for name in "ABCD")
        for name in "ABCD":
            _set(self, name, _checked_weights(getattr(self, name), name, sparse))
        n, p, q = self.n, self.p, self.q
        for name, shape in (("A", (n, n)), ("B", (n, p)), ("C", (q, n)), ("D", (q, p))):
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"{name} has shape {getattr(self, name).shape}, expected {shape}: "
                    f"A's rows give n = {n}, B's columns p = {p}, C's rows q = {q}."
                )
        for name, size in (("b", n), ("c", q)):
            _set(self, name, _checked_bias(getattr(self, name), name, size))
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
        choice("storage", storage, ("dense", "csr"))
        weights, biases = checked_layers(weights, biases)
        sizes = [W.shape[0] for W in weights[:-1]]
        n, p, q = sum(sizes), weights[0].shape[1], weights[-1].shape[0]
        start = n - np.cumsum(sizes)  # where hidden layer ℓ begins in the stack, first hidden layer last
        inner = [(start[k], start[k - 1], weights[k]) for k in range(1, len(sizes))]
        has_bias = any(bias is not None for bias in biases)
        return cls(
            A=_assemble((n, n), inner, storage),
            B=_assemble((n, p), [(start[0], 0, weights[0])], storage),
            C=_assemble((q, n), [(0, start[-1], weights[-1])], storage),
            D=_assemble((q, p), [], storage),
            activation=activation,
            b=np.concatenate(_filled(biases, weights)[-2::-1]) if has_bias else None,
            c=_filled(biases, weights)[-1] if has_bias else None,
        )

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
        return "csr" if _is_sparse(self.A) else "dense"

    @property
    def nonzeros(self) -> int:
        """Number of parameters that are exactly nonzero, over A, B, C, D, b and c."""
        matrices = sum(_count_nonzero(getattr(self, name)) for name in "ABCD")
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

    def __call__(self, inputs: Any) -> np.ndarray:
        """Outputs ŷ = Cx + Du + c at the equilibrium x, (m, q) float64, for `inputs` (m, p).

        Warns and raises as `equilibrium`, whose default tolerance and limit it uses.
        """
        return self._outputs(self._checked_inputs(inputs))

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
            warn(_not_converged(info, tol, self), EquilibriumWarning)
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
        drive = U @ self.B.T
        if self.b is not None:
            drive = drive + self.b
        iterate = _averaged_csr if self.storage == "csr" else _averaged_dense
        lowest = min(0.0, float(self.A.diagonal().min(initial=0.0)))
        step = 1.0 / (1.0 - lowest) if lowest < 0.0 else None  # None keeps the plain iteration exact
        X, residual, iterations = iterate(self.A, drive, self.activation, step, tol, max_iters)
        return X, EquilibriumInfo(residual <= tol, residual, iterations)

    def _outputs(self, U: np.ndarray) -> np.ndarray:
        X, info = self._iterate(U, TOL, MAX_ITERS)
        if not info.converged.all():
            warn(_not_converged(info, TOL, self), EquilibriumWarning)
        with np.errstate(over="ignore", invalid="ignore"):  # diverged samples, warned about above
            Y = X @ self.C.T + U @ self.D.T
        return Y if self.c is None else Y + self.c

    # ---- the same model otherwise written ------------------------------------------------------------------

    def to_csr(self) -> ImplicitModel:
        """The same model with A, B, C, D as scipy.sparse.csr_array (explicit zeros removed)."""
        matrices: dict[str, Any] = {name: sp.csr_array(getattr(self, name)) for name in "ABCD"}
        return replace(self, **matrices)

    def to_dense(self) -> ImplicitModel:
        """The same model with A, B, C, D as NumPy arrays."""
        matrices: dict[str, Any] = {name: _dense(getattr(self, name)) for name in "ABCD"}
        return replace(self, **matrices)

    def to_flax(
        self,
        *,
        kappa: float = 0.99,
        constraint: str = "parameterised",
        keep_support: bool = False,
        solver: Solver | None = None,
    ) -> ImplicitLayer:
        """The model as a Flax NNX layer with ‖A‖∞ ≤ kappa, to be trained further; `layer.export()` is the way back.

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
        from simjax.nn.implicit import layer_of_model  # here: simjax.nn builds on this module, and needs Flax

        return layer_of_model(self, kappa=kappa, constraint=constraint, keep_support=keep_support, solver=solver)

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
            A=_scaled(self.A, s, 1 / s),
            B=_scaled(self.B, s, None),
            C=_scaled(self.C, None, 1 / s),
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
        tensors, header = model_to_tensors(self)
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
            return model_from_tensors(tensors, header)


# ---- fixed-point iteration ---------------------------------------------------------------------------------


def _averaged_dense(
    A: np.ndarray, drive: np.ndarray, name: str, step: float | None, tol: float, max_iters: int
) -> tuple:
    """Iterates x ← (1 − α) x + α φ(Ax + drive) from 0 in float64 until every sample has converged or overflowed."""
    with jax.enable_x64(True):
        X, residual, iterations = _averaged(jnp.asarray(A.T), jnp.asarray(drive), name, step, tol, max_iters)
        return np.array(X), np.array(residual), int(iterations)


@partial(jax.jit, static_argnames="name")
def _averaged(A_T: jax.Array, drive: jax.Array, name: str, step: float | None, tol: float, max_iters: int) -> tuple:
    phi = find_activation(name)

    def advance(carry: tuple) -> tuple:
        X, _, k = carry
        X_next = _averaged_with(X, phi(X @ A_T + drive), step)
        return X_next, _last_step(X_next, X, step, jnp), k + 1

    def unfinished(carry: tuple) -> jax.Array:
        _, residual, k = carry
        return (k < max_iters) & jnp.any((residual > tol) & jnp.isfinite(residual))

    start = advance((jnp.zeros_like(drive), jnp.zeros(drive.shape[0]), jnp.asarray(0)))
    return jax.lax.while_loop(unfinished, advance, start)


def _averaged_csr(
    A: sp.csr_array, drive: np.ndarray, name: str, step: float | None, tol: float, max_iters: int
) -> tuple:
    """The same iteration with SciPy's sparse product."""
    phi, A_T = find_activation(name).host, A.T
    X, residual, k = np.zeros_like(drive), np.full(drive.shape[0], np.finfo(float).max), 0
    with np.errstate(over="ignore", invalid="ignore"):  # divergence shows in the residual
        while k < max_iters and np.any((residual > tol) & np.isfinite(residual)):
            X, previous, k = _averaged_with(X, phi(X @ A_T + drive), step), X, k + 1
            residual = _last_step(X, previous, step, np)
    return X, residual, k


def _averaged_with(X: Any, image: Any, step: float | None) -> Any:
    return image if step is None else (1.0 - step) * X + step * image


def _last_step(X_next: Any, X: Any, step: float | None, xp: Any) -> Any:
    return xp.max(xp.abs(X_next - X), axis=1) / (
        (1.0 if step is None else step) * xp.maximum(1.0, xp.max(xp.abs(X_next), axis=1))
    )


def _not_converged(info: EquilibriumInfo, tol: float, model: ImplicitModel) -> str:
    failed = ~info.converged
    finite = info.residual[failed & np.isfinite(info.residual)]
    worst = f"worst last step {finite.max():.2e}" if finite.size else "all of them diverged"
    return (
        f"{failed.sum()} of {failed.size} samples did not reach an equilibrium to tol = {tol:g} in "
        f"{info.iterations} passes ({worst}; ‖A‖∞ = {model.well_posedness:.4g}). Try more max_iters or a "
        f"larger tol; with ‖A‖∞ ≥ 1 there may be no equilibrium: fit with a kappa below 1."
    )


# ---- checks and small matrix helpers -----------------------------------------------------------------------


def checked_labels(labels: Any, m: int, classes: int) -> np.ndarray:
    """`labels` as an integer vector of m class indices below `classes`.

    Raises:
        ValueError: another length, or an index out of range.
        TypeError: not whole numbers.
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels must be whole numbers, got dtype {array.dtype}.")
    if array.shape != (m,):
        raise ValueError(f"labels has shape {array.shape}, expected ({m},): one per sample.")
    if array.size and (array.min() < 0 or array.max() >= classes):
        raise ValueError(f"labels must lie in 0 … {classes - 1}, got {array.min()} … {array.max()}.")
    return array


def checked_layers(
    weights: Sequence[Any], biases: Sequence[Any] | None
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Weights (outputs, inputs) and biases of a layered network, in float64, one of each per layer.

    Raises:
        ValueError: fewer than two layers, shapes that do not chain, NaN or inf.
        TypeError: not real numbers.
    """
    Ws = [matrix(f"weights[{k}]", W) for k, W in enumerate(weights)]
    if len(Ws) < 2:
        raise ValueError(f"weights must hold at least one hidden and one output layer, got {len(Ws)}.")
    for k in range(1, len(Ws)):
        if Ws[k].shape[1] != Ws[k - 1].shape[0]:
            raise ValueError(
                f"weights[{k}] takes {Ws[k].shape[1]} inputs, but weights[{k - 1}] gives {Ws[k - 1].shape[0]} outputs."
            )
    given = [None] * len(Ws) if biases is None else list(biases)
    if len(given) != len(Ws):
        raise ValueError(f"biases must hold one vector or None per layer, got {len(given)} for {len(Ws)} layers.")
    return Ws, [_checked_bias(b, f"biases[{k}]", W.shape[0]) for k, (b, W) in enumerate(zip(given, Ws))]


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _checked_weights(value: Any, name: str, sparse: bool) -> Matrix:
    if not _is_sparse(value):
        dense = _read_only(matrix(name, value))
        return sp.csr_array(dense) if sparse else dense
    if value.ndim != 2 or 0 in value.shape:
        raise ValueError(f"{name} must be two-dimensional and not empty, got shape {value.shape}.")
    csr = sp.csr_array(value, copy=True)  # a copy: cleaning up must not touch the caller's matrix
    csr.data = float_array(name, csr.data)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return csr


def _checked_bias(value: Any, name: str, size: int) -> np.ndarray | None:
    if value is None:
        return None
    array = float_array(name, value)
    if array.shape != (size,):
        raise ValueError(f"{name} has shape {array.shape}, expected ({size},).")
    return _read_only(array)


def _checked_metadata(metadata: Any) -> dict[str, Any]:
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping or None, got {type(metadata).__name__}.")
    try:
        return json.loads(json.dumps(dict(metadata or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata must hold only what JSON can: {error}") from error


def _set(instance: Any, name: str, value: Any) -> None:
    object.__setattr__(instance, name, value)  # frozen dataclasses normalise their fields this way


def _is_sparse(M: Any) -> bool:
    return sp.issparse(M)


def _dense(M: Matrix) -> np.ndarray:
    return M.toarray() if _is_sparse(M) else M


def _count_nonzero(M: Matrix) -> int:
    return int(M.count_nonzero() if _is_sparse(M) else np.count_nonzero(M))


def _scaled(M: Matrix, left: np.ndarray | None, right: np.ndarray | None) -> Matrix:
    """diag(left) M diag(right); None stands for the identity."""
    if _is_sparse(M):
        M = M if left is None else sp.diags_array(left) @ M
        return sp.csr_array(M if right is None else M @ sp.diags_array(right))
    M = M if left is None else left[:, None] * M
    return M if right is None else M * right


def _assemble(shape: tuple[int, int], blocks: list[tuple[int, int, np.ndarray]], storage: Storage) -> Matrix:
    """A zero matrix with (first row, first column, block) placed in it."""
    if storage == "dense":
        M = np.zeros(shape)
        for row, column, block in blocks:
            M[row : row + block.shape[0], column : column + block.shape[1]] = block
        return M
    parts = [(row, column, sp.coo_array(block)) for row, column, block in blocks]
    empty = np.zeros(0, dtype=int)
    rows = np.concatenate([empty, *(row + part.coords[0] for row, _, part in parts)])
    columns = np.concatenate([empty, *(column + part.coords[1] for _, column, part in parts)])
    values = np.concatenate([np.zeros(0), *(part.data for *_, part in parts)])
    return sp.csr_array((values, (rows, columns)), shape=shape)


def _filled(biases: list[np.ndarray | None], weights: list[np.ndarray]) -> list[np.ndarray]:
    return [np.zeros(W.shape[0]) if b is None else b for b, W in zip(biases, weights)]


# ---- files -------------------------------------------------------------------------------------------------


def model_to_tensors(model: ImplicitModel) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The model as named arrays and strings, from which `model_from_tensors` makes it again."""
    tensors: dict[str, np.ndarray] = {}
    for name in "ABCD":
        M = getattr(model, name)
        if _is_sparse(M):
            tensors[f"{name}.data"] = M.data
            tensors[f"{name}.indices"] = M.indices.astype(np.int64)
            tensors[f"{name}.indptr"] = M.indptr.astype(np.int64)
        else:
            tensors[name] = np.ascontiguousarray(M)
    tensors |= {name: getattr(model, name) for name in "bc" if getattr(model, name) is not None}
    header = {
        "format_version": str(FORMAT_VERSION),
        "simjax_version": package_version(),
        "activation": model.activation,
        "storage": model.storage,
        "shapes": json.dumps({name: list(getattr(model, name).shape) for name in "ABCD"}),
        "metadata": json.dumps(model.metadata),
    }
    return tensors, header


def model_from_tensors(tensors: Mapping[str, np.ndarray], header: Mapping[str, str]) -> ImplicitModel:
    """The model that `model_to_tensors` took apart.

    Raises:
        KeyError, TypeError, ValueError: something is missing or does not fit.
    """
    shapes = {name: tuple(shape) for name, shape in json.loads(header["shapes"]).items()}
    read = _read_csr if header["storage"] == "csr" else _read_dense
    return ImplicitModel(
        **{name: read(tensors, name, shapes[name]) for name in "ABCD"},
        activation=header["activation"],
        b=tensors.get("b"),
        c=tensors.get("c"),
        metadata=json.loads(header["metadata"]),
    )


def _read_dense(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, int]) -> np.ndarray:
    if tensors[name].shape != shape:
        raise ValueError(f"{name} has shape {tensors[name].shape}, its header says {shape}.")
    return tensors[name]


def _read_csr(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, int]) -> sp.csr_array:
    csr = sp.csr_array((tensors[f"{name}.data"], tensors[f"{name}.indices"], tensors[f"{name}.indptr"]), shape=shape)
    csr.check_format(full_check=True)  # indices within the shape, so that no product reads out of bounds
    return csr
