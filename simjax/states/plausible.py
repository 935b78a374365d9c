"""States that pass every check and are most likely not what they are taken for: a word before they are fitted.

A fit of such states is certified row by row, and its model wrong all the same.
"""

from __future__ import annotations

import numpy as np

from simjax._warnings import warn
from simjax.states.states import States

# Relative residuals: what a layer explains is explained to the rounding of float32, what it does not is far from it.
_EXPLAINED, _UNEXPLAINED = 1e-3, 1e-2
_SUM_OF_PROBABILITIES = 1e-3  # float16 rounds so
# No more than this many coefficients are looked for: it would take longer than it is worth.
_MOST = 1000


def warn_if_implausible(states: States, *, without_biases: bool) -> None:
    """Warn of activations in the place of preactivations, labels or probabilities in that of outputs, layers in the
    wrong order, and biases that nobody spoke of.

    States of a known baseline are what it computes, and raise no doubt.

    Args:
      without_biases: whether the fit has none because nothing is known of the network's.
    """
    if states.baseline is not None:
        return
    if states.activation == "relu" and not np.any(states.preactivations < 0.0):
        warn_of_no_negative_preactivation()
    warn_of_other_doubts(states, without_biases=without_biases)


def warn_of_other_doubts(states: States, *, without_biases: bool) -> None:
    """The warnings that some of the samples give reason for as well as all of them."""
    if states.baseline is not None:
        return
    like = _like_labels(states.outputs)
    if like is not None:
        warn(f"outputs {like}; expected are the network's own outputs, (m, q), before any softmax, such as its logits.")
    if _first_layer_first(states):
        warn(
            f"the last {states.layer_sizes[0]} columns of preactivations, which layer_sizes={states.layer_sizes} takes "  # type: ignore[index]
            "for the first hidden layer, are not linear in the inputs, but the first columns are: states are stacked "
            "last hidden layer first. A list with an array for each layer, first hidden layer first, does it for you."
        )
    if without_biases and _needs_biases(states):
        warn(
            "preactivations and outputs are linear in states and inputs with a constant only: the network seems to "
            "have biases, and the model will have none. Say States(..., has_biases=True) or fit_intercept=True; False "
            "where none are meant."
        )


def warn_of_no_negative_preactivation() -> None:
    """The warning for ReLU states in which max(z, 0) = z throughout."""
    warn(
        "preactivations has no negative entry, so that the ReLU changes nothing: if these are activations, the fit "
        "will be certified and its model wrong; pass what goes into the activation."
    )


def _like_labels(outputs: np.ndarray) -> str | None:
    """What is said of outputs that are answers instead of what a linear layer gives."""
    if outputs.shape[1] == 1:
        whole = bool(np.all(outputs == np.round(outputs)))
        if whole and 2 <= np.unique(outputs).size <= outputs.shape[0] / 2:
            return f"is one column of whole numbers from {outputs.min():g} to {outputs.max():g}, which look like labels"
    elif np.all(outputs >= 0.0) and np.all(np.abs(outputs.sum(axis=1) - 1.0) <= _SUM_OF_PROBABILITIES):
        hot = bool(np.all((outputs == 0.0) | (outputs == 1.0)))
        return f"has rows that sum to 1, which look like {'labels, one-hot' if hot else 'probabilities'}"
    return None


def _first_layer_first(states: States) -> bool:
    """Whether layer_sizes fits in the wrong order only: of a first layer Z₁ = W₁U + b₁ is linear in the inputs."""
    if states.layer_sizes is None or len(states.layer_sizes) < 2:
        return False
    few = 4 * (states.p + 1)
    design = np.concatenate([states.inputs[:few], np.ones((min(few, states.m), 1))], axis=1)
    if design.shape[0] <= np.linalg.matrix_rank(design):  # so few samples are linear in anything
        return False
    width, Z = states.layer_sizes[0], states.preactivations[:few]
    return _residual(design, Z[:, -width:]) > _UNEXPLAINED and _residual(design, Z[:, :width]) <= _EXPLAINED


def _residual(design: np.ndarray, targets: np.ndarray) -> float:
    """‖T − ΦW‖ / ‖T‖ for the best W."""
    weights = np.linalg.lstsq(design, targets, rcond=None)[0]
    size = float(np.linalg.norm(targets))
    return float(np.linalg.norm(targets - design @ weights)) / size if size > 0.0 else 0.0


def _needs_biases(states: States) -> bool:
    """Whether Z and Y are what W[X U] + b can be, for some b alone."""
    d = states.n + states.p
    few = 2 * (d + 1)
    if d > _MOST or states.m < few:  # so few samples are linear in anything
        return False
    design = np.concatenate([states.activations[:few], states.inputs[:few], np.ones((few, 1))], axis=1)
    targets = np.concatenate([states.preactivations[:few], states.outputs[:few]], axis=1)
    basis = np.linalg.qr(design)[0]
    with_constant = np.linalg.norm(targets - basis @ (basis.T @ targets))
    without = np.linalg.norm(targets - basis[:, :-1] @ (basis[:, :-1].T @ targets))
    size = np.linalg.norm(targets)
    return bool(with_constant <= _EXPLAINED * size and without > _UNEXPLAINED * size)
