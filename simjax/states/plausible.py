"""States that pass every check and are most likely not what they are taken for: a word before they are fitted.

A fit of such states is certified row by row, and its model wrong all the same.
"""

from __future__ import annotations

import numpy as np

from simjax._warnings import warn
from simjax.states.states import States

# Relative residuals: what a layer explains is explained to the rounding of float32, what it does not is far from it.
_EXPLAINED, _UNEXPLAINED = 1e-3, 1e-2


def warn_if_implausible(states: States) -> None:
    """Warn of activations in the place of preactivations, labels in that of outputs, and layers in the wrong order.

    States of a known baseline are what it computes, and raise no doubt.
    """
    if states.baseline is not None:
        return
    if states.activation == "relu" and not np.any(states.preactivations < 0.0):
        warn_of_no_negative_preactivation()
    if _like_labels(states.outputs):
        low, high = states.outputs.min(), states.outputs.max()
        warn(
            f"outputs is one column of whole numbers from {low:g} to {high:g}, which look like labels; expected are "
            f"the network's own outputs, (m, q), such as its logits."
        )
    if _first_layer_first(states):
        warn(
            f"the last {states.layer_sizes[0]} columns of preactivations, which layer_sizes={states.layer_sizes} takes "  # type: ignore[index]
            "for the first hidden layer, are not linear in the inputs, but the first columns are: states are stacked "
            "last hidden layer first. A list with an array for each layer, first hidden layer first, does it for you."
        )


def warn_of_no_negative_preactivation() -> None:
    """The warning for ReLU states in which max(z, 0) = z throughout."""
    warn(
        "preactivations has no negative entry, so that the ReLU changes nothing: if these are activations, the fit "
        "will be certified and its model wrong; pass what goes into the activation."
    )


def _like_labels(outputs: np.ndarray) -> bool:
    if outputs.shape[1] != 1 or np.any(outputs != np.round(outputs)):
        return False
    return 2 <= np.unique(outputs).size <= outputs.shape[0] / 2


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
