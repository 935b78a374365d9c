"""Samples and layers of states: which are meant, and how far two arrays of them are apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from simjax._checks import plain_array
from simjax.implicit.activations import activation as find_activation

# Relative to max(1, largest entry): states collected in float32 pass, another activation does not.
_ACTIVATION_TOLERANCE = 1e-5


def largest_deviation(found: np.ndarray, expected: np.ndarray, tolerance: float) -> tuple[float, float]:
    """Largest difference, and the largest allowed at this scale."""
    scale = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(found - expected).max()), tolerance * scale


def checked_layer_sizes(layer_sizes: Any, n: int) -> tuple[int, ...]:
    sizes = plain_array("layer_sizes", layer_sizes)
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or sizes.size == 0 or sizes.min() < 1:
        raise ValueError(f"layer_sizes must be positive whole numbers, got {layer_sizes!r}.")
    if sizes.sum() != n:
        raise ValueError(f"layer_sizes {tuple(sizes.tolist())} sum to {sizes.sum()}, expected n = {n}.")
    return tuple(sizes.tolist())


def chosen_rows(indices_or_count: Any, m: int, seed: int | None) -> np.ndarray:
    chosen = plain_array("indices_or_count", indices_or_count)
    if chosen.dtype.kind not in "iub" or (chosen.ndim == 0 and chosen.dtype.kind == "b"):
        raise TypeError(f"indices_or_count must be a number, indices or a mask, got dtype {chosen.dtype}.")
    if chosen.ndim == 0:
        if not 1 <= chosen <= m:
            raise ValueError(f"indices_or_count must lie in 1 … m = {m} as a number, got {chosen}.")
        return np.arange(int(chosen)) if seed is None else np.random.default_rng(seed).permutation(m)[:chosen]
    if seed is not None:
        raise ValueError("seed draws a number of samples; with indices or a mask it must be None.")
    if chosen.ndim != 1 or (chosen.dtype.kind == "b" and chosen.size != m):
        raise ValueError(f"indices_or_count has shape {chosen.shape}, expected indices (k,) or a mask ({m},).")
    rows = np.flatnonzero(chosen) if chosen.dtype.kind == "b" else chosen
    if rows.size == 0 or rows.min() < 0 or rows.max() >= m:
        raise ValueError(f"indices_or_count must name at least one sample, all within 0 … {m - 1}.")
    return rows


def check_activations(preactivations: np.ndarray, activations: np.ndarray, activation: str) -> None:
    """Refuse X ≠ φ(Z) for φ of this name."""
    expected = find_activation(activation).host(preactivations)
    off, allowed = largest_deviation(activations, expected, _ACTIVATION_TOLERANCE)
    if off > allowed:
        raise ValueError(
            f"activations must be φ(preactivations) with φ = {activation!r}, but they differ by up to {off:.3g} "
            f"(allowed {allowed:.3g})."
        )
