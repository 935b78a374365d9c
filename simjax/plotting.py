"""Pictures: sparsity pattern, pruned layers, row gaps and how they fell, trade-offs, the misfit along a path.

Each function returns a `matplotlib.figure.Figure` of its own: no backend is chosen, no rcParams are changed,
and nothing is shown or saved. Save one with `figure.savefig(path)`, which needs no display.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from simjax._checks import float_array
from simjax._extras import needs
from simjax._pictures import (
    BLOCK_COLOURS,
    BLUE,
    DPI,
    GREEN,
    GREY,
    RING,
    SMALL,
    SMALLEST_GAP,
    TEXT,
    TITLE,
    VERMILION,
    bars,
    label_axes,
    legend_above,
    power,
    widened,
)

with needs("plot", "matplotlib", "simjax.plotting"):
    from matplotlib.axes import Axes
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

from simjax.sim.result import FitResult

if TYPE_CHECKING:
    from simjax.implicit.model import ImplicitModel
    from simjax.pruning.network_result import PrunedNetwork
    from simjax.rows.solution import Solution
    from simjax.sim.path import Path


class TradeOffPoint(Protocol):
    """One model of a path: what `plot_trade_off` reads of it.

    Examples:
      >>> from types import SimpleNamespace
      >>> point = SimpleNamespace(alpha=1e-3, sparsity=0.5, accuracy=0.9)  # any object with these three will do
    """

    @property
    def alpha(self) -> float:
        """The penalty's weight."""
        ...

    @property
    def sparsity(self) -> float:
        """1 − nonzeros / baseline nonzeros, a fraction."""
        ...

    @property
    def accuracy(self) -> float:
        """A fraction."""
        ...


# ---- sparsity pattern --------------------------------------------------------------------------------------


def plot_sparsity_pattern(model: ImplicitModel, baseline: ImplicitModel, passes: int | None = None) -> Figure:
    """The pattern of (A B; C D) of `model` and, for comparison, of `baseline`: each nonzero weight is a dot.

    Args:
      model: the fitted model.
      baseline: the implicit form of the network imitated, such as `states.baseline`.
      passes: through A that an output of the model took, such as `EquilibriumInfo.iterations`; said below the picture
        if given, for a network takes one through each layer.

    Raises:
      ValueError: the two differ in n, p or q.

    Examples:
      >>> import numpy as np, simjax
      >>> network = simjax.ImplicitModel.from_layers([np.ones((4, 3)), np.ones((2, 4))])
      >>> sparse = simjax.ImplicitModel(network.A, network.B * [1.0, 0.0, 0.0], network.C, network.D)
      >>> figure = simjax.plotting.plot_sparsity_pattern(sparse, network)  # figure.savefig(…)
    """
    if (model.n, model.p, model.q) != (baseline.n, baseline.p, baseline.q):
        raise ValueError(
            f"baseline has n, p, q = {baseline.n}, {baseline.p}, {baseline.q}, the model has "
            f"{model.n}, {model.p}, {model.q}: expected the same"
        )
    sparsity = 100 * model.sparsity(baseline.nonzeros)
    panels = (
        (model, f"Implicit model: {model.nonzeros:,} nonzeros, sparsity {sparsity:.1f} %"),
        (baseline, f"Baseline network: {baseline.nonzeros:,} nonzeros"),
    )
    shape = (model.n + model.q) / (model.n + model.p)
    side_by_side = shape > 1 / 3
    figure = Figure(
        figsize=(7.2, 3.3 * min(shape, 1.5) + 0.95) if side_by_side else (7.2, 2 * max(6.7 * shape, 1.3) + 1.7),
        dpi=DPI,
        layout="constrained",
    )
    axes = figure.subplots(1, 2) if side_by_side else figure.subplots(2, 1)
    for ax, (shown, title) in zip(axes, panels, strict=True):
        _draw_pattern(ax, shown, title)
    if passes is not None:
        words = f"Links back within A have their price: an output is a fixed point, {passes} passes through A here."
        figure.supxlabel(words, x=0.01, ha="left", fontsize=SMALL, color=GREY)
    return figure


def _draw_pattern(ax: Axes, model: ImplicitModel, title: str) -> None:
    model = model.to_dense()
    n, p, q = model.n, model.p, model.q
    image = np.ones((n + q, n + p, 3))
    corners = {"A": (0, 0), "B": (0, n), "C": (n, 0), "D": (n, n)}
    for name, (top, left) in corners.items():
        block = getattr(model, name)
        # A view: writing to it writes to the image.
        view = image[top : top + block.shape[0], left : left + block.shape[1]]
        view[block != 0] = to_rgb(BLOCK_COLOURS[name])
    ax.imshow(image, aspect="auto", interpolation="auto", extent=(0, n + p, n + q, 0))
    ax.axvline(n, color=GREY, linewidth=0.7)
    ax.axhline(n, color=GREY, linewidth=0.7)
    for spine in ax.spines.values():
        spine.set(color=GREY, linewidth=0.7)
    ax.set_xticks([])
    ax.set_yticks([n / 2, n + q / 2], ["x", "ŷ"], fontsize=TEXT, fontstyle="italic")
    ax.tick_params(length=0)
    ax.set_title(title, fontsize=TITLE, loc="left", pad=17)
    for name, (top, left) in corners.items():
        ax.annotate(
            _block_label(name, getattr(model, name)),
            xy=(0.0 if left == 0 else 1.0, 1.0 if top == 0 else 0.0),
            xycoords="axes fraction",
            xytext=(0, 4 if top == 0 else -4),
            textcoords="offset points",
            ha="left" if left == 0 else "right",
            va="bottom" if top == 0 else "top",
            fontsize=SMALL,
            color=BLOCK_COLOURS[name],
        )


def _block_label(name: str, block: np.ndarray) -> str:
    nonzeros = int(np.count_nonzero(block))
    rows, columns = block.shape
    return rf"$\bf{{{name}}}$  {rows}×{columns}: {nonzeros:,} nonzeros"


# ---- gaps --------------------------------------------------------------------------------------------------


def plot_gaps(result: FitResult) -> Figure:
    """Histogram of the rows' relative duality gaps, with the tolerance as a line; 0 is drawn at 1e-16.

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> states = simjax.collect_states(MLP((3, 5, 2)), np.random.default_rng(0).normal(size=(30, 3)))
      >>> figure = simjax.plotting.plot_gaps(simjax.fit(states, "l1", alpha=0.1))
    """
    gaps = np.asarray(result.certificate.relative_gap)
    finite = np.isfinite(gaps)
    tol, n = result.settings["tol"], result.model.n
    exponents = np.log10(np.maximum(np.where(finite, gaps, 1.0), SMALLEST_GAP))
    edges = _half_decades(exponents[finite], tol)
    state_rows = np.arange(gaps.size) < n
    figure = Figure(figsize=(5.2, 3.0), dpi=DPI, layout="constrained")
    ax = figure.add_subplot()
    parts = (("rows of A, B", state_rows, BLUE), ("rows of C, D", ~state_rows, VERMILION))
    ax.hist(
        [exponents[rows & finite] for _, rows, _ in parts],
        bins=list(edges),
        stacked=True,
        color=[colour for *_, colour in parts],
        label=[f"{name} ({int(np.count_nonzero(rows))})" for name, rows, _ in parts],
        edgecolor="white",
        linewidth=0.5,
    )
    ax.axvline(np.log10(tol), color="black", linewidth=1.1, linestyle="--", label=f"tolerance {power(tol)}")
    solved = int(np.count_nonzero(np.asarray(result.status) == "SOLVED"))
    title = f"{solved} of {gaps.size} rows certified"
    if not finite.all():
        title += f"; {np.count_nonzero(~finite)} without a finite gap are not drawn"
    label_axes(ax, title, "relative duality gap", "rows")
    ticks = np.arange(np.ceil(edges[0]), np.floor(edges[-1]) + 0.5)
    ax.set_xticks(ticks, [rf"$10^{{{int(tick)}}}$" for tick in ticks])
    ax.set_xlim(edges[0], edges[-1])
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    legend_above(ax)
    return figure


def _half_decades(exponents: np.ndarray, tol: float) -> np.ndarray:
    """Bin edges every half decade, around all exponents and the tolerance, which is an edge of its own."""
    anchor = float(np.log10(tol))
    lowest = min(exponents.min(initial=anchor), anchor - 1.0)
    highest = max(exponents.max(initial=anchor), anchor + 0.5)
    below = np.ceil(2 * (anchor - lowest)) + 1
    above = np.ceil(2 * (highest - anchor)) + 1
    return anchor + 0.5 * np.arange(-below, above + 1)


def plot_history(result: Solution | FitResult) -> Figure:
    """The relative duality gap of every row against the passes over the design that it took, the tolerance as a line.

    A line for each row, which ends with its last check, and the median of gaps and passes at each check, those that
    have ended as they ended. If no row took a pass, as those that working sets solve, the number of checks is in its
    place. Gaps below 1e-16 are drawn there, infinite ones not.

    Args:
      result: from `solve_rows` or `fit` with `history=True`.

    Raises:
      ValueError: without a history.

    Examples:
      >>> import numpy as np, simjax
      >>> solution = simjax.solve_rows(np.eye(2), [[3.0], [1.0]], penalty=simjax.L1(1.0), solver="admm", history=True)
      >>> figure = simjax.plotting.plot_history(solution)
    """
    history = result.history
    if history is None:
        raise ValueError("result must have a history, got None: ask for it by history=True where rows are solved.")
    tol = result.settings["tol"] if isinstance(result, FitResult) else result.tol
    gap = np.where(np.isfinite(history.gap), np.maximum(history.gap, SMALLEST_GAP), np.nan)
    checks, rows = gap.shape
    took_passes = bool(history.passes.any())
    places = history.passes if took_passes else np.tile(np.arange(1, checks + 1)[:, None], (1, rows))
    figure = Figure(figsize=(5.2, 3.3), dpi=DPI, layout="constrained")
    ax = figure.add_subplot()
    opacity = float(np.clip(12.0 / rows, 0.06, 0.8))
    for row in range(rows):
        label = f"rows ({rows})" if row == 0 else None
        ax.semilogy(places[:, row], gap[:, row], color=BLUE, linewidth=0.8, alpha=opacity, label=label)
        ax.plot(places[-1:, row], gap[-1:, row], color=BLUE, marker=".", markersize=4, alpha=opacity)
    middle = np.median(np.where(np.isnan(gap), np.inf, gap), axis=1)
    middle[~np.isfinite(middle)] = np.nan
    ax.plot(np.median(places, axis=1), middle, color=VERMILION, linewidth=1.6, label="median")
    ax.axhline(tol, color="black", linewidth=1.1, linestyle="--", label=f"tolerance {power(tol)}")
    label_axes(ax, "How the gaps fell", "passes over the design" if took_passes else "checks", "relative duality gap")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    legend_above(ax)
    return figure


# ---- pruned networks ---------------------------------------------------------------------------------------


def plot_prune(result: PrunedNetwork) -> Figure:
    """Of each layer the share of zeros and the relative error, from the first layer that runs to the last.

    With `evaluate` also what it gave for each way to share out zeros, beside the network as it was.

    Args:
      result: from `prune`.

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> inputs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
      >>> figure = simjax.plotting.plot_prune(simjax.prune(MLP((4, 6, 2)), inputs, sparsity=0.5))
    """
    names, layers, compared = list(result.layers), list(result.layers.values()), result.evaluation
    panels = 2 if compared is None else 3
    rows = max(len(names), 0 if compared is None else len(compared.candidates))
    figure = Figure(figsize=(3.2 * panels, 1.2 + 0.24 * rows), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, panels)
    bars(axes[0], names, [layer.sparsity for layer in layers], "share of zeros", BLUE, ".1%")
    bars(axes[1], [""] * len(names), [layer.relative_error for layer in layers], "relative error", VERMILION, ".2g")
    if compared is not None:
        ways = [f"{one.name}{', kept' if one.name == compared.chosen else ''}" for one in compared.candidates]
        bars(axes[2], ways, [one.metric for one in compared.candidates], "evaluate", GREEN, ".4g")
        axes[2].axvline(compared.dense, color="black", linewidth=1.1, linestyle="--")
        ends = (*axes[2].get_xlim(), 1.25 * compared.dense)
        axes[2].set_xlim(min(ends), max(ends))
        label_axes(axes[2], f"dashed: as it was, {compared.dense:.4g}", "evaluate", "")
    figure.suptitle(f"{result.sparsity:.1%} zeros in {len(names)} layers", fontsize=TITLE)
    return figure


# ---- accuracy against sparsity -----------------------------------------------------------------------------


def plot_trade_off(
    points: Sequence[TradeOffPoint],
    baseline_accuracy: float,
    marked_alpha: float | None = None,
    marked_as: str = "marked",
) -> Figure:
    """Accuracy against sparsity over a path of alphas, beside the baseline's accuracy.

    Args:
      points: at least one; each has `alpha`, `sparsity` and `accuracy`, the latter two as fractions.
      baseline_accuracy: a fraction.
      marked_alpha: the point with this alpha is marked.
      marked_as: why, in a word or two for the legend.

    Raises:
      ValueError: no points, or numbers that are not finite.

    Examples:
      >>> from types import SimpleNamespace
      >>> import simjax
      >>> points = [SimpleNamespace(alpha=a, sparsity=s, accuracy=0.9 - s / 9) for a, s in ((1e-4, 0.4), (1e-3, 0.8))]
      >>> figure = simjax.plotting.plot_trade_off(points, baseline_accuracy=0.9)
    """
    if not points:
        raise ValueError("points must hold at least one point, got none")
    ordered = sorted(points, key=lambda point: point.alpha)
    sparsity = 100 * float_array("sparsity of points", [point.sparsity for point in ordered])
    accuracy = 100 * float_array("accuracy of points", [point.accuracy for point in ordered])
    baseline = 100 * float(float_array("baseline_accuracy", baseline_accuracy))
    figure = Figure(figsize=(5.2, 3.3), dpi=DPI, layout="constrained")
    ax = figure.add_subplot()
    ax.axhline(baseline, color="black", linewidth=1.1, linestyle="--", label=f"baseline, {baseline:.1f} %")
    ax.plot(
        sparsity, accuracy, color=BLUE, linewidth=1.4, marker="o", markersize=5, label=r"implicit models, by $\alpha$"
    )
    for point, x, y in zip(ordered, sparsity, accuracy, strict=True):
        if point.alpha == marked_alpha:
            ax.plot([x], [y], label=f"{marked_as}: {x:.1f} %, {y:.1f} %", **RING)
        # Below and left of the point, since the curve falls to the right; slanted, so that near labels fit.
        ax.annotate(
            f"{point.alpha:.2g}",
            (x, y),
            xytext=(-5, -7),
            textcoords="offset points",
            rotation=40,
            rotation_mode="anchor",
            ha="right",
            va="center",
            fontsize=SMALL,
            color=GREY,
        )
    label_axes(ax, "Accuracy against sparsity", "sparsity: fewer nonzeros than the baseline (%)", "test accuracy (%)")
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
    legend_above(ax)
    # Room for the labels of the points.
    ax.set_xlim(*widened(sparsity.min(), sparsity.max(), 0.12, 0.06, least=5.0))
    ax.set_ylim(*widened(min(accuracy.min(), baseline), max(accuracy.max(), baseline), 0.18, 0.08, least=1.0))
    return figure


def plot_path(path: Path) -> Figure:
    """What the models of a path leave unexplained, against how many weights they have.

    Args:
      path: from `simjax.path`; each point is labelled with its alpha or kappa.

    Examples:
      >>> import numpy as np, simjax
      >>> from simjax.nn import MLP
      >>> states = simjax.collect_states(MLP((3, 5, 2)), np.random.default_rng(0).normal(size=(30, 3)))
      >>> figure = simjax.plotting.plot_path(simjax.path(states, "l1", points=3))
    """
    order = np.argsort(path.nonzeros, kind="stable")
    nonzeros, misfit = path.nonzeros[order], np.maximum(path.misfit[order], SMALLEST_GAP)
    figure = Figure(figsize=(5.2, 3.3), dpi=DPI, layout="constrained")
    ax = figure.add_subplot()
    symbol = rf"$\{path.parameter}$"
    ax.semilogy(nonzeros, misfit, color=BLUE, linewidth=1.4, marker="o", markersize=4, label=f"models, by {symbol}")
    if not path.converged:
        missed = [k for k, position in enumerate(order) if not path.fits[position].converged]
        ax.plot(nonzeros[missed], misfit[missed], label="not all rows certified", **RING)
    # At most eight labels, so that a long path stays legible.
    for k in np.unique(np.linspace(0, order.size - 1, min(order.size, 8)).round().astype(int)):
        ax.annotate(
            f"{path.values[order[k]]:.2g}",
            (nonzeros[k], misfit[k]),
            xytext=(4, 5),
            textcoords="offset points",
            fontsize=SMALL,
            color=GREY,
        )
    label_axes(ax, "What is left unexplained", "nonzero weights", "misfit")
    legend_above(ax)
    ax.set_xlim(*widened(nonzeros.min(), nonzeros.max(), 0.05, 0.12, least=1.0))
    return figure
