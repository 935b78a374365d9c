"""What the pictures of `simjax.plotting` have in common: colours, sizes, labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# After Okabe and Ito: told apart by all common kinds of colour vision.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#A0488A"
BLOCK_COLOURS = {"A": VERMILION, "B": BLUE, "C": PURPLE, "D": GREEN}
GREY = "#666666"

TITLE, TEXT, SMALL = 9.5, 8.5, 7.5  # points
DPI = 200
RING: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 10,
    "markerfacecolor": "none",
    "markeredgecolor": VERMILION,
    "markeredgewidth": 1.6,
}
SMALLEST_GAP = 1e-16  # gaps below, 0 among them, are drawn here: float64 tells no smaller ones apart


def widened(low: float, high: float, below: float, above: float, *, least: float) -> tuple[float, float]:
    """The interval with margins as parts of its length, which counts as `least` at least."""
    length = max(high - low, least)
    return low - below * length, high + above * length


def label_axes(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, fontsize=TITLE, loc="left", pad=17)
    ax.set_xlabel(x, fontsize=TEXT)
    ax.set_ylabel(y, fontsize=TEXT)
    ax.tick_params(labelsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)


def legend_above(ax: Axes) -> None:
    """A legend in one line between the title and the axes, where it hides nothing."""
    ax.legend(
        fontsize=SMALL,
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(-0.015, 0.98),
        borderpad=0.2,
        ncols=3,
        columnspacing=1.4,
        handlelength=1.8,
    )


def power(value: float) -> str:
    """1e-6 as 10⁻⁶, other numbers as they are."""
    exponent = np.log10(value)
    return rf"$10^{{{round(exponent)}}}$" if abs(exponent - round(exponent)) < 1e-9 else f"{value:g}"


def bars(ax: Axes, names: Sequence[str], values: Sequence[float], what: str, colour: str, form: str) -> None:
    """Numbers as horizontal bars, the first on top, each with its value in words."""
    places = np.arange(len(names))
    ax.barh(places, values, color=colour, height=0.7)
    ax.set_yticks(places, names, fontsize=SMALL)
    ax.invert_yaxis()
    for place, value in enumerate(values):
        far = max(value, 0.0), place
        # On white, so that no line is drawn through a number.
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        ax.annotate(
            f"{value:{form}}", far, (3, 0), textcoords="offset points", va="center", fontsize=SMALL, bbox=behind
        )
    ax.set_xlim(1.25 * min(min(values), 0.0), 1.25 * max(max(values), 1e-12))
    label_axes(ax, "", what, "")
