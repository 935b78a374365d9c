"""The whole pipeline, as `simjax demo` runs it: what it writes is what it measured."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from simjax import ImplicitModel, Progress, States, datasets
from simjax.app.demo import DemoReport, Observer, run_demo
from simjax.nn import MLP

FILES = {
    "baseline.safetensors",
    "states.npz",
    "model.safetensors",
    "results.json",
    "sparsity.png",
    "gaps.png",
    "trade_off.png",
    "results.html",
}


class Recorder(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.epochs: list[tuple[int, int]] = []
        self.last: dict[str, Progress] = {}

    def stage(self, title: str) -> None:
        self.stages.append(title)

    def epoch(self, epoch: int, epochs: int, loss: float, accuracy: float) -> None:
        assert np.isfinite(loss)
        assert 0 <= accuracy <= 1
        self.epochs.append((epoch, epochs))

    def rows(self, progress: Progress) -> None:
        self.last[self.stages[-1]] = progress


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoReport, Recorder, Path]:
    """The demo on digits with its own settings."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    recorder = Recorder()
    return run_demo(folder, observer=recorder), recorder, folder


def test_every_row_is_certified_and_the_model_well_posed(demo: tuple[DemoReport, Recorder, Path]) -> None:
    report, _, _ = demo
    assert report.converged
    assert report.result.certificate.relative_gap.max() <= 1e-6
    assert report.result.model.well_posedness <= 0.99 * (1 + 1e-12)
    assert np.all(np.diagonal(report.result.model.A) == 0)
    assert [point.rows_certified for point in report.path] == [58] * 6


def test_the_model_is_sparse_and_as_accurate_as_its_baseline_nearly(demo: tuple[DemoReport, Recorder, Path]) -> None:
    report, _, _ = demo
    assert report.results["model"]["sparsity"] >= 0.40
    assert report.results["model"]["test_accuracy"] >= report.results["baseline"]["test_accuracy"] - 0.015


def test_results_are_those_of_the_saved_files(demo: tuple[DemoReport, Recorder, Path]) -> None:
    report, _, folder = demo
    assert {path.name for path in folder.iterdir()} == FILES
    assert set(report.files.values()) == {folder / name for name in FILES}
    results = json.loads((folder / "results.json").read_text())
    assert results == report.results

    model, network = ImplicitModel.load(folder / "model.safetensors"), MLP.load(folder / "baseline.safetensors")
    states, data = States.load(folder / "states.npz"), datasets.load("digits")
    baseline = network.export()
    assert results["model"] == {
        "test_accuracy": model.accuracy(data.test_inputs, data.test_labels),
        "nonzeros": model.nonzeros,
        "sparsity": model.sparsity(baseline.nonzeros),
        "well_posedness": model.well_posedness,
        "passes": model.equilibrium(data.test_inputs, return_info=True)[1].iterations,
    }
    assert results["baseline"]["test_accuracy"] == baseline.accuracy(data.test_inputs, data.test_labels)
    assert states.m == results["samples"] == 1000
    np.testing.assert_array_equal(states.outputs, network.states(states.inputs).outputs)
    assert results["rows"]["worst_relative_gap"] == report.result.certificate.relative_gap.max()
    for name in ("sparsity.png", "gaps.png", "trade_off.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


class Page(HTMLParser):
    """The cells of the tables, the sources of pictures, and what else is asked for from outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[list[str]] = []
        self.pictures: list[str] = []
        self.outside: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        named = dict(attrs)
        self.pictures += [named["src"]] if tag == "img" else []
        self.outside += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]
        self.cells += [[]] if tag == "tr" else []
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1].append(data)


def test_the_page_is_one_file_with_all_of_it(demo: tuple[DemoReport, Recorder, Path]) -> None:
    report, _, folder = demo
    page = Page((folder / "results.html").read_text(encoding="utf-8"))
    pictures = {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.pictures}
    assert pictures == {(folder / name).read_bytes() for name in ("sparsity.png", "gaps.png", "trade_off.png")}
    assert page.outside == []
    results = report.results
    said = [cell for cell in page.cells if cell]
    assert ["rows certified", "58 of 58"] in said
    assert ["nonzero weights", f"{results['baseline']['nonzeros']:,}", f"{results['model']['nonzeros']:,}"] in said
    for point in report.path:
        row = [f"{point.alpha:.4g}", f"{100 * point.sparsity:.1f} %", f"{100 * point.accuracy:.1f} %", "58 of 58"]
        assert row in said
    for name, value in results["fit"].items():
        assert value is None or [name, str(value)] in said


def test_path_grows_sparser_with_alpha_and_holds_the_model_chosen(demo: tuple[DemoReport, Recorder, Path]) -> None:
    report, _, _ = demo
    alphas = [point.alpha for point in report.path]
    assert alphas == sorted(alphas)
    assert np.all(np.diff([point.sparsity for point in report.path]) > 0)
    chosen = report.path[alphas.index(report.results["fit"]["alpha"])]
    assert chosen.nonzeros == report.result.model.nonzeros


def test_the_observer_hears_of_every_stage(demo: tuple[DemoReport, Recorder, Path]) -> None:
    _, recorder, _ = demo
    assert recorder.stages[:4] == [
        "Loading digits",
        "Training the baseline",
        "Collecting states",
        "First fit, coarse",
    ]
    assert recorder.stages[-2:] == ["Evaluating", "Drawing"]
    assert recorder.epochs == [(k, 60) for k in range(1, 61)]
    assert list(recorder.last) == ["First fit, coarse", "Fits with 6 alphas"]
    assert all((progress.solved, progress.rows) == (58, 58) for progress in recorder.last.values())


def test_nothing_is_overwritten_unasked(demo: tuple[DemoReport, Recorder, Path]) -> None:
    _, _, folder = demo
    before = (folder / "results.json").read_bytes()
    recorder = Recorder()
    with pytest.raises(FileExistsError, match=r"already holds baseline\.safetensors, states\.npz"):
        run_demo(folder, quick=True, observer=recorder)
    assert recorder.stages == []
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"dataset": "mnist"}, ValueError, "dataset must be one of 'digits', 'fashion-mnist'"),
        ({"objective": "ridge"}, ValueError, "objective must be one of 'perspective'"),
        ({"samples": 0}, ValueError, "samples must be at least 1"),
        ({"samples": 1.5}, TypeError, "samples must be an integer"),
        ({"samples": 1438}, ValueError, "samples must be <= 1437 for digits, got 1438"),
        ({"alpha": -1.0}, ValueError, "alpha must be a positive number"),
        ({"alpha": float("nan")}, ValueError, "alpha must be finite"),
    ],
)
def test_bad_arguments_are_refused_before_training(arguments, error, named: str, tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(error, match=named):
        run_demo(tmp_path / "out", observer=recorder, **arguments)
    assert "Training the baseline" not in recorder.stages
    assert list(tmp_path.glob("out/*")) == []


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OSError, match="out"):
        run_demo(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
