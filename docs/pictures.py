"""Makes the pictures of the README, the gallery and the tutorials, and runs the notebooks: `make pictures`.

python docs/pictures.py [overview] [gallery] [tutorials] [notebooks]   from the root of the repository; none means all
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

DOCS = Path(__file__).resolve().parent
IMAGES = DOCS / "images"
TUTORIALS = ("prune-flax.md", "prune-pytorch.md")
INK, BLUE, VERMILION, PURPLE, GREEN = "#24292f", "#0072B2", "#D55E00", "#A0488A", "#009E73"


def overview() -> None:
    """What simjax is in one picture: a network, its states, certified rows, a sparse implicit model; all are run."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    import simjax
    from simjax import datasets
    from simjax.nn import MLP, accuracy, train

    sizes = (64, 1024, 512, 10)
    data = datasets.load("digits")
    network = MLP(sizes)
    train(
        network, data.train_inputs, data.train_labels, epochs=20, batch_size=32, learning_rate=2e-3, weight_decay=1e-2
    )
    states = simjax.collect_states(network, data.train_inputs)
    result = simjax.fit(states, "l1", alpha=3e-4, reduction="mean")
    model, gaps, rows = result.model, np.sort(result.certificate.relative_gap), result.status.size
    certified = int((result.status == "SOLVED").sum())
    dense, sparse = (100 * share for share in (accuracy(network, data.test_inputs, data.test_labels),
                                                model.accuracy(data.test_inputs, data.test_labels)))  # fmt: skip
    print(result.summary())

    figure = Figure(figsize=(11, 3.5), dpi=200, facecolor="none")
    whole = figure.add_axes((0, 0, 1, 1), xlim=(0, 11), ylim=(0, 3.5))
    whole.axis("off")
    # A card of its own, white in both themes of whoever shows it.
    whole.add_patch(FancyBboxPatch((0.1, 0.1), 10.8, 3.3, "round,pad=0,rounding_size=0.12", fc="white", ec="#d0d7de"))
    words = (
        ("a trained network", f"{states.baseline.nonzeros:,} weights\n{dense:.1f} % on test samples"),
        ("its states", f"{states.m:,} samples ×\n{states.n:,} states"),
        ("a problem for each row", f"{certified:,} of {rows:,} rows\nproved optimal to $10^{{-6}}$"),
        (
            "a sparse implicit model",
            f"{model.nonzeros:,} weights, {100 * model.sparsity(states.baseline.nonzeros):.0f} % fewer\n"
            f"{sparse:.1f} % on test samples",
        ),
    )
    lefts = (0.35, 3.05, 5.75, 8.45)
    for left, (title, text) in zip(lefts, words, strict=True):
        whole.text(left + 1.1, 3.12, title, ha="center", va="center", fontsize=11, color=INK, weight="bold")
        whole.text(left + 1.1, 0.44, text, ha="center", va="center", fontsize=9, color=INK, linespacing=1.4)
    for left in lefts[:-1]:
        arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
        whole.annotate("", (left + 2.62, 1.85), (left + 2.3, 1.85), arrowprops=arrow)

    def axes(number: int, shift: float = 0.0):
        return figure.add_axes(((lefts[number] + 0.15 + shift) / 11, 0.95 / 3.5, (1.95 - shift) / 11, 1.9 / 3.5))

    ax = axes(0)
    ax.axis("off")
    heights = [np.linspace(-1, 1, 7) * scale for scale in (0.55, 1.0, 0.85, 0.4)]
    for k, (before, after) in enumerate(pairwise(heights)):
        for y in before:
            ax.plot(
                np.array([[k] * 7, [k + 1] * 7]), np.array([[y] * 7, after]), color="#b8c4d0", linewidth=0.5, zorder=1
            )
    for k, (column, size) in enumerate(zip(heights, sizes, strict=True)):
        ax.scatter([k] * 7, column, s=26, color=GREEN if k in (0, 3) else BLUE, zorder=2)
        ax.text(k, 1.22, f"{size}", ha="center", fontsize=8, color=INK)
    ax.set(xlim=(-0.3, 3.3), ylim=(-1.15, 1.35))

    ax = axes(1)
    shown = states.activations[:: states.m // 90, :: states.n // 90]
    ax.imshow(np.sqrt(shown / shown.max()), cmap="Blues", aspect="auto", interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel("states", fontsize=8, color=INK, labelpad=2)
    ax.set_ylabel("samples", fontsize=8, color=INK, labelpad=2)

    ax = axes(2, 0.3)
    ax.semilogy(np.arange(1, rows + 1), np.maximum(gaps, 1e-16), color=BLUE, linewidth=2)
    ax.axhline(1e-6, color=VERMILION, linestyle="--", linewidth=1.2)
    ax.text(rows, 2e-6, "tolerance", ha="right", fontsize=8, color=VERMILION)
    ax.set(xlim=(0, rows * 1.02), ylim=(5e-17, 3e-5), xticks=[1, rows], yticks=[1e-16, 1e-11, 1e-6])
    ax.tick_params(labelsize=7.5, length=2, colors=INK)
    ax.set_xlabel("rows", fontsize=8, color=INK, labelpad=-6)
    ax.set_title("duality gap of each row", fontsize=8, color=INK, pad=3)
    ax.spines[["top", "right"]].set_visible(False)

    ax = axes(3)
    side = 96
    image = np.ones((side, side, 3))
    cut = side - 12  # outputs and inputs are drawn wider than they are, to be seen
    colours = {"A": (213, 94, 0), "B": (0, 114, 178), "C": (160, 72, 138), "D": (0, 158, 115)}
    upper, lower, first, last = slice(0, cut), slice(cut, side), slice(0, cut), slice(cut, side)
    corners = {"A": (upper, first), "B": (upper, last), "C": (lower, first), "D": (lower, last)}
    for name, (down, across) in corners.items():
        block = np.abs(np.asarray(getattr(model.to_dense(), name))) > 0
        height, width = image[down, across].shape[:2]
        # One dot for each place that is sampled: its own weight is there or not.
        places = np.ix_(np.linspace(0, block.shape[0] - 1, height).round().astype(int),
                        np.linspace(0, block.shape[1] - 1, width).round().astype(int))  # fmt: skip
        image[down, across][block[places]] = np.array(colours[name]) / 255
    ax.imshow(image, interpolation="nearest", extent=(0, side, side, 0))
    ax.axvline(cut, color="#8c959f", linewidth=0.7)
    ax.axhline(cut, color="#8c959f", linewidth=0.7)
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(r"$x = \varphi(Ax + Bu)$,  $\hat y = Cx + Du$", fontsize=8, color=INK, labelpad=3)
    figure.savefig(IMAGES / "overview.png", transparent=False, facecolor="none")


def gallery() -> None:
    """Runs the blocks of docs/gallery.md where its pictures belong."""
    _run_blocks("gallery.md", IMAGES)


def tutorials() -> None:
    """Runs the blocks of the tutorials in a folder that goes again, and keeps the pictures that they show."""
    for name in TUTORIALS:
        text = (DOCS / name).read_text(encoding="utf-8")
        if "import torch" in text and find_spec("torch") is None:
            print(f"{name} needs PyTorch, which is not installed: its picture stays as it is")
            continue
        with tempfile.TemporaryDirectory() as folder:
            _run_blocks(name, Path(folder))
            for picture in re.findall(r"\]\(images/([^)]+)\)", text):
                shutil.copyfile(Path(folder) / picture, IMAGES / picture)


def _run_blocks(page: str, folder: Path) -> None:
    """Runs the Python blocks of a page, in order and in one namespace, in a folder."""
    text = (DOCS / page).read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "__main__"}
    with contextlib.chdir(folder):
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            exec(compile(block, f"docs/{page}", "exec"), namespace)


def notebooks() -> None:
    """Runs every notebook from a clean kernel and keeps what it says."""
    import nbformat
    from nbclient import NotebookClient

    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(DOCS)}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day, which differ from run to run
        nbformat.write(notebook, path)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(DOCS.parent))
    known = {"overview": overview, "gallery": gallery, "tutorials": tutorials, "notebooks": notebooks}
    asked = sys.argv[1:] or list(known)
    if set(asked) - set(known):
        sys.exit(f"pictures: one of {', '.join(known)}, got {' '.join(asked)}")
    for name in asked:
        print(name)
        known[name]()
