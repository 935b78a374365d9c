"""Attacks that probe the certificates: perturbed inputs that raise a network's cross-entropy.

They take an `ImplicitModel`, or any callable from inputs (m, p) to logits (m, q) that JAX can differentiate, such as a
Flax NNX module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simjax._checks import float_array, matrix, positive_integer, positive_scalar
from simjax._typing import ArrayLike
from simjax.implicit.equilibrium import affine, equilibrium
from simjax.implicit.model import ImplicitModel, checked_labels
from simjax.robustness._model import MAX_ITERS, batches, checked_inputs, dense_matrices, nonnegative, state_equation

Network = ImplicitModel | Callable[[jax.Array], jax.Array]
Call = Callable[[Any, jax.Array], jax.Array]


def differentiable(model: ImplicitModel) -> Callable[[jax.Array], jax.Array]:
    """The model as a JAX function from inputs (m, p) to outputs (m, q), with implicit derivatives.

    Computes in the precision of JAX's current mode; a sample that does not converge has outputs NaN.

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.5]], B=[[1.0]], C=[[2.0], [0.0]], D=[[0.0], [0.0]])
      >>> import jax
      >>> network = simjax.robustness.differentiable(model)
      >>> jax.grad(lambda u: network(u)[0, 0])(jax.numpy.ones((1, 1))).round(3).tolist()
      [[4.0]]
    """
    call, parameters = _implicit_call(model.activation), _parameters(model)
    return lambda u: call(parameters, u)


def fgsm(
    network: Network,
    inputs: ArrayLike,
    labels: ArrayLike,
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

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.5]], B=[[1.0]], C=[[2.0], [0.0]], D=[[0.0], [0.0]])
      >>> simjax.robustness.fgsm(model, [[1.0]], [0], epsilon=0.1).round(6).tolist()  # away from class 0
      [[0.9]]
    """
    U, labels, epsilon, bounds = _checked_attack(network, inputs, labels, epsilon, bounds)
    mask = _pixels(U.shape, fraction, seed)
    step = epsilon * mask * np.sign(_loss_gradient(network, batch_size)(U, labels))
    return _clipped(U + step, U, epsilon, bounds)


def pgd(
    network: Network,
    inputs: ArrayLike,
    labels: ArrayLike,
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

    Examples:
      >>> import simjax
      >>> model = simjax.ImplicitModel(A=[[0.5]], B=[[1.0]], C=[[2.0], [0.0]], D=[[0.0], [0.0]])
      >>> attacked = simjax.robustness.pgd(model, [[1.0]], [0], epsilon=0.1, steps=5)
      >>> attacked.round(6).tolist()
      [[0.9]]
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
        x, _ = equilibrium(A, B, u, b, activation=name, max_iters=MAX_ITERS)
        return affine(jnp.asarray(C), x, c) + affine(jnp.asarray(D), u)

    return call


def _parameters(model: ImplicitModel) -> tuple:
    A, B, b = state_equation(model)
    _, _, C, D = dense_matrices(model)
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
                for u, y in zip(batches(U, size), batches(labels, size), strict=True)
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


def _clipped(attacked: np.ndarray, U: np.ndarray, epsilon: float, bounds: tuple[float, float] | None) -> np.ndarray:
    attacked = np.clip(attacked, U - epsilon, U + epsilon)
    return attacked if bounds is None else np.clip(attacked, *bounds)


def _checked_attack(
    network: Network, inputs: ArrayLike, labels: ArrayLike, epsilon: float, bounds: tuple[float, float] | None
) -> tuple[np.ndarray, np.ndarray, float, tuple[float, float] | None]:
    if not callable(network):
        raise TypeError(f"network must be an ImplicitModel or a callable, got {type(network).__name__}.")
    U = matrix("inputs", inputs)
    if isinstance(network, ImplicitModel):
        U, q = checked_inputs(network, U), network.q
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
    return U, checked_labels(labels, len(U), q), nonnegative("epsilon", epsilon), bounds
