"""Layered networks x_ℓ = φ(W_ℓ x_{ℓ−1} + b_ℓ), ŷ = W_{L+1} x_L + b_{L+1}: weights, and A, B, C, D made of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from simjax._checks import choice, matrix, positive_integer
from simjax._typing import ArrayLike
from simjax.implicit.matrices import Parts, Storage, assembled, checked_bias


def implicit_form(
    weights: Sequence[ArrayLike], biases: Sequence[ArrayLike | None] | None, storage: Storage
) -> dict[str, Any]:
    """A, B, C, D, b and c of a layered network, by name; states are stacked last hidden layer first.

        A = [0 W_L; … 0 W_2; 0],   B = [0; …; W_1],   C = [W_{L+1} 0 …],   D = 0

    Raises:
      ValueError, TypeError: as `ImplicitModel.from_layers`.
    """
    choice("storage", storage, ("dense", "csr"))
    Ws, bs = checked_layers(weights, biases)
    sizes = [W.shape[0] for W in Ws[:-1]]
    n, p, q = sum(sizes), Ws[0].shape[1], Ws[-1].shape[0]
    start = n - np.cumsum(sizes)  # where hidden layer ℓ begins in the stack, first hidden layer last
    inner = [(start[k], start[k - 1], Ws[k]) for k in range(1, len(sizes))]
    has_bias = any(bias is not None for bias in bs)
    full = [np.zeros(W.shape[0]) if bias is None else bias for bias, W in zip(bs, Ws)]
    return {
        "A": assembled((n, n), inner, storage),
        "B": assembled((n, p), [(start[0], 0, Ws[0])], storage),
        "C": assembled((q, n), [(0, start[-1], Ws[-1])], storage),
        "D": assembled((q, p), [], storage),
        "b": np.concatenate(full[-2::-1]) if has_bias else None,
        "c": full[-1] if has_bias else None,
    }


def layers_of(model: Parts, layer_sizes: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Weights W_1, …, W_{L+1} and biases of the layered network whose implicit form the model is.

    Args:
      layer_sizes: widths of the hidden layers, the first hidden layer first.

    Raises:
      ValueError: sizes that are not positive or do not sum to n, or a weight from another layer than the one before.
    """
    sizes = [positive_integer(f"layer_sizes[{k}]", size) for k, size in enumerate(layer_sizes)]
    if sum(sizes) != model.n:
        raise ValueError(f"layer_sizes {tuple(sizes)} sum to {sum(sizes)}, expected the model's n = {model.n}.")
    dense = model.to_dense()
    ends = model.n - np.cumsum([0, *sizes])  # hidden layer ℓ is ends[ℓ] … ends[ℓ − 1] of the stack
    parts = [slice(int(low), int(high)) for high, low in pairwise(ends)]
    inner = [dense.A[own, before] for before, own in pairwise(parts)]
    weights = [dense.B[parts[0]], *inner, dense.C[:, parts[-1]]]
    kept = sum(np.count_nonzero(W) for W in weights)
    there = sum(np.count_nonzero(getattr(dense, name)) for name in "ABCD")
    if kept < there:
        raise ValueError(
            f"model has {there - kept} weights from elsewhere than the layer before, which a network of the layers "
            f"{tuple(sizes)} has not: fit with support='architecture'."
        )
    biases = [*(None if model.b is None else model.b[part] for part in parts), model.c]
    return [W.copy() for W in weights], [None if b is None else b.copy() for b in biases]


def checked_layers(
    weights: Sequence[ArrayLike], biases: Sequence[ArrayLike | None] | None
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
    return Ws, [checked_bias(b, f"biases[{k}]", W.shape[0]) for k, (b, W) in enumerate(zip(given, Ws))]
