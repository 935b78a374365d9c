"""Pictures show what they claim to, legibly, and leave no trace in matplotlib's global state."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import simjax
from simjax import Certificate, FitResult, ImplicitModel
from simjax.plotting import plot_gaps, plot_history, plot_sparsity_pattern, plot_trade_off
from simjax.rows.history import History
from simjax.sim.result import CertifiedBlock


@dataclass(frozen=True)
class Point:
    alpha: float
    sparsity: float
    accuracy: float


PATH = [Point(1e-2, 0.8, 0.85), Point(1e-4, -0.2, 0.884), Point(1e-3, 0.45, 0.883)]


def baseline(p: int = 30, hidden: tuple[int, ...] = (12, 8), q: int = 5) -> ImplicitModel:
    rng = np.random.default_rng(0)
    sizes = (p, *hidden, q)
    return ImplicitModel.from_layers([rng.standard_normal((b, a)) for a, b in pairwise(sizes)])


def sparse_model(like: ImplicitModel, density: float = 0.2) -> ImplicitModel:
    rng = np.random.default_rng(1)

    def block(M: np.ndarray) -> np.ndarray:
        return rng.standard_normal(M.shape) * (rng.random(M.shape) < density)

    return ImplicitModel(*(block(getattr(like, name)) for name in "ABCD"))


def fitted(gaps: list[float], tol: float = 1e-6) -> FitResult:
    """A result with the given gaps, the last five of them of output rows."""
    rows = len(gaps)
    relative = np.array(gaps)
    model = baseline(hidden=(rows - 5,), q=5)
    zeros = np.zeros(rows)
    return FitResult(
        model=model,
        certificate=Certificate(zeros, zeros, zeros, relative, zeros, np.zeros((rows, 3))),
        status=np.where(relative <= tol, "SOLVED", "MAX_ITERS"),
        weights=np.zeros((rows, model.n + model.p)),
        intercept=None,
        solutions=(),
        settings={"tol": tol},
    )


def text_boxes(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that is drawn, and where. Tick labels outside the axes' limits are not drawn."""
    figure.draw_without_rendering()
    texts: list[Text] = []
    for ax in figure.axes:
        texts += [ax.title, ax._left_title, *ax.texts, ax.xaxis.label, ax.yaxis.label]
        for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, sorted(ax.get_ylim()))):
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        legend = ax.get_legend()
        texts += legend.get_texts() if legend is not None else []
    texts += figure.texts
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text().strip()]


def overlapping_texts(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap by more than a pixel."""
    return [
        (a, b)
        for (a, box_a), (b, box_b) in combinations(text_boxes(figure), 2)
        if min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0) > 1
        and min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0) > 1
    ]


def texts_outside(figure: Figure) -> list[str]:
    """Texts that the edge of the figure cuts."""
    width, height = figure.bbox.width, figure.bbox.height
    return [
        text
        for text, box in text_boxes(figure)
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]


# ---- sparsity pattern --------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["dense", "csr"])
def test_each_nonzero_is_one_coloured_cell_of_its_block(storage: str) -> None:
    network = baseline()
    model = sparse_model(network)
    shown = model.to_csr() if storage == "csr" else model
    axes = plot_sparsity_pattern(shown, network).axes
    for ax, matrices in zip(axes, (model, network), strict=True):
        image = np.asarray(ax.images[0].get_array())
        pattern = np.block([[matrices.A, matrices.B], [matrices.C, matrices.D]]) != 0
        assert image.shape == (*pattern.shape, 3)
        np.testing.assert_array_equal((image != 1).any(axis=2), pattern)
    n = model.n
    colours = {tuple(c) for c in np.asarray(axes[0].images[0].get_array())[:n, :n].reshape(-1, 3)}
    assert colours == {(1.0, 1.0, 1.0), to_rgb("#D55E00")}


def test_pattern_states_the_counts() -> None:
    network = baseline()
    model = sparse_model(network)
    figure = plot_sparsity_pattern(model, network)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert f"{model.nonzeros:,} nonzeros, sparsity {100 * model.sparsity(network.nonzeros):.1f} %" in titles[0]
    assert f"{network.nonzeros:,} nonzeros" in titles[1]
    labels = [text.get_text() for text in figure.axes[0].texts]
    for name, label in zip("ABCD", labels, strict=True):
        block = getattr(model, name)
        assert label.endswith(f"{block.shape[0]}×{block.shape[1]}: {np.count_nonzero(block):,} nonzeros")


@pytest.mark.parametrize("passes", [None, 37])
@pytest.mark.parametrize("p", [30, 784])
def test_pattern_is_legible_side_by_side_and_stacked(p: int, passes: int | None) -> None:
    network = baseline(p, (64, 32, 16), 10)
    figure = plot_sparsity_pattern(sparse_model(network), network, passes)
    assert any("37 passes through A" in text for text, _ in text_boxes(figure)) == (passes is not None)
    assert overlapping_texts(figure) == []
    assert texts_outside(figure) == []


def test_pattern_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match="baseline has n, p, q = 20, 31, 5"):
        plot_sparsity_pattern(baseline(30), baseline(31))


# ---- gaps --------------------------------------------------------------------------------------------------


def bars(figure: Figure) -> list[tuple[float, float, float]]:
    """Left edge, right edge and height of every bar that is not empty."""
    return [
        (patch.get_x(), patch.get_x() + patch.get_width(), patch.get_height())
        for patch in figure.axes[0].patches
        if patch.get_height() > 0
    ]


def test_every_row_is_in_a_bar_on_its_side_of_the_tolerance() -> None:
    gaps = [0.0, 3e-17, 2e-9, 9.9e-7, 1.1e-6, 4e-3, 1e-12, 2e-8, 2e-8, 5e-7]
    figure = plot_gaps(fitted(gaps))
    drawn = bars(figure)
    left = sum(height for _, right, height in drawn if right <= -6 + 1e-9)
    right = sum(height for left_edge, _, height in drawn if left_edge >= -6 - 1e-9)
    assert (left, right) == (8, 2)
    (line,) = (line for line in figure.axes[0].lines if str(line.get_label()).startswith("tolerance"))
    np.testing.assert_allclose(line.get_xdata(), -6, atol=1e-12)
    assert figure.axes[0].get_title(loc="left") == "8 of 10 rows certified"
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "rows of A, B (5)" in labels
    assert "rows of C, D (5)" in labels


def test_gaps_without_end_are_counted_in_the_title() -> None:
    figure = plot_gaps(fitted([1e-8] * 7 + [np.inf, np.nan]))
    assert sum(height for *_, height in bars(figure)) == 7
    assert "2 without a finite gap are not drawn" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize("gaps", [[0.0] * 8, [np.inf] * 8, [1e-7] * 8, [1.0] * 8])
def test_gaps_are_legible_in_extreme_cases(gaps: list[float]) -> None:
    figure = plot_gaps(fitted(gaps))
    assert overlapping_texts(figure) == []
    assert texts_outside(figure) == []


def told(gap: list[list[float]], passes: list[list[int]], tol: float = 1e-6) -> FitResult:
    """A result whose rows had these gaps after these passes, (checks, rows)."""
    history = History(np.array(gap, dtype=float), np.array(passes))
    return dataclasses.replace(fitted(gap[-1], tol), sources=(history_of(history),))


def history_of(history: History) -> CertifiedBlock:
    rows = np.arange(history.gap.shape[1])
    return CertifiedBlock(SimpleNamespace(history=history), rows, rows)  # type: ignore[arg-type]


def test_every_row_has_a_line_from_its_first_check_to_its_last() -> None:
    gap = np.array([[1e-1, 1e-2, np.inf, 1e-1, 0.5, 1.0, 1.0], [1e-3, 1e-8, 0.0, 1e-7, 1e-7, 1e-7, 1e-2]])
    passes = np.array([[63] * 7, [126, 63, 126, 126, 126, 126, 189]])
    figure = plot_history(told(gap.tolist(), passes.tolist()))
    (ax,) = figure.axes
    lines = [line for line in ax.lines if line.get_linewidth() == 0.8]
    for row, line in enumerate(lines):
        expected = np.maximum(gap[:, row], 1e-16)
        np.testing.assert_array_equal(line.get_xdata(), passes[:, row])
        np.testing.assert_array_equal(line.get_ydata(), np.where(np.isfinite(expected), expected, np.nan))
    assert len(lines) == 7
    by_label = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(by_label["median"].get_ydata(), [0.5, 1e-7])
    np.testing.assert_array_equal(by_label["median"].get_xdata(), [63, 126])
    np.testing.assert_allclose(by_label["tolerance $10^{-6}$"].get_ydata(), 1e-6)
    assert ax.get_xlabel() == "passes over the design"
    assert overlapping_texts(figure) == []
    assert texts_outside(figure) == []


def test_rows_without_passes_are_drawn_by_checks() -> None:
    figure = plot_history(told([[0.5] * 6, [1e-9] * 6], [[0] * 6] * 2))
    assert figure.axes[0].get_xlabel() == "checks"
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), [1, 2])


@pytest.mark.parametrize("gaps", [[0.0] * 6, [np.inf] * 6, [1.0] * 600])
def test_histories_are_legible_in_extreme_cases(gaps: list[float]) -> None:
    figure = plot_history(told([gaps] * 3, [[0] * len(gaps), [63] * len(gaps), [63] * len(gaps)]))
    assert overlapping_texts(figure) == []
    assert texts_outside(figure) == []


def test_a_solution_has_a_history_to_draw_or_is_refused() -> None:
    design, targets = np.eye(6), np.ones((6, 2))
    solved = simjax.solve_rows(design, targets, penalty=simjax.L1(0.5), history=True)
    assert plot_history(solved).axes[0].get_title(loc="left") == "How the gaps fell"
    with pytest.raises(ValueError, match="history=True"):
        plot_history(fitted([1e-8] * 6))
    with pytest.raises(ValueError, match="history=True"):
        plot_history(simjax.solve_rows(design, targets, penalty=simjax.L1(0.5)))


# ---- accuracy against sparsity -----------------------------------------------------------------------------


def test_trade_off_draws_the_points_in_percent_by_alpha() -> None:
    figure = plot_trade_off(PATH, 0.885, marked_alpha=1e-3, marked_as="default")
    lines = {str(line.get_label()).split(",")[0].split(":")[0]: line for line in figure.axes[0].lines}
    assert set(lines) == {"baseline", "implicit models", "default"}
    np.testing.assert_allclose(lines["implicit models"].get_xdata(), [-20, 45, 80])
    np.testing.assert_allclose(lines["implicit models"].get_ydata(), [88.4, 88.3, 85])
    np.testing.assert_allclose(lines["baseline"].get_ydata(), 88.5)
    np.testing.assert_allclose([*lines["default"].get_xdata(), *lines["default"].get_ydata()], [45, 88.3])
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.0001", "0.001", "0.01"]
    assert texts_outside(figure) == []


def test_trade_off_of_one_point_has_room() -> None:
    figure = plot_trade_off(PATH[:1], 0.85)
    assert len(figure.axes[0].lines) == 2
    low, high = figure.axes[0].get_ylim()
    assert low < 85 < high


@pytest.mark.parametrize(
    ("points", "accuracy", "named"),
    [
        ([], 0.9, "points"),
        ([Point(1e-3, np.nan, 0.9)], 0.9, "sparsity of points"),
        ([Point(1e-3, 0.5, np.inf)], 0.9, "accuracy of points"),
        (PATH, np.nan, "baseline_accuracy"),
    ],
)
def test_trade_off_refuses_what_cannot_be_drawn(points: list[Point], accuracy: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        plot_trade_off(points, accuracy)


# ---- no trace ----------------------------------------------------------------------------------------------


def test_figures_are_written_without_display_and_without_pyplot(tmp_path) -> None:
    """In a process of its own: neither pyplot nor a backend is loaded, and no rcParams change."""
    program = f"""
import sys, matplotlib, types
def settings():  # without the backend, which matplotlib chooses when it is looked at
    return {{name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}}
before = settings()
from simjax.plotting import plot_trade_off
point = types.SimpleNamespace(alpha=1e-3, sparsity=0.5, accuracy=0.9)
plot_trade_off([point], 0.9).savefig({str(tmp_path / "picture.png")!r})
assert "matplotlib.pyplot" not in sys.modules
assert settings() == before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
