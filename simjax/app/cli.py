"""The command line: `simjax demo | fit | evaluate | show | verify`. The only module that prints.

Results go to standard output, as tables or with --json as JSON and nothing else; progress, warnings and
errors go to standard error. Exit codes: 0 for success, 1 where rows are not certified or disagree, 2 for bad input.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars
from rich.table import Table

import simjax
from simjax import datasets
from simjax.app.demo import DemoReport, Observer, json_number, run_demo
from simjax.rows.oracles.interface import OracleUnavailable

NOT_CERTIFIED = 1
BAD_INPUT = 2

# The library's own lists of names, which `--help` shows and typer checks; a test compares them.
DatasetName = Literal["digits", "fashion-mnist"]
SparseObjective = Literal["perspective", "l1", "elastic_net"]
Objective = Literal["perspective", "l1", "elastic_net", "ridge", "least_squares"]
Matching = Literal["penalty", "exact"]
Reduction = Literal["sum", "mean"]
Constraint = Literal["ball", "stacked_ball", "metzler"]
Support = Literal["auto", "full", "hollow", "feedforward"]
Rescale = Literal["auto", "inner", "none"]
Units = Literal["natural", "rescaled"]
SolverName = Literal["auto", "admm", "proximal_gradient", "clarabel", "mosek"]
OracleName = Literal["clarabel", "mosek"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")]
_Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]


def main() -> None:
    """Entry point of the command `simjax`."""
    _keep_compiled_code()
    app()


def _keep_compiled_code() -> None:
    """Keep compiled code in the user's cache from one command to the next, unless JAX was told where already.

    A global setting, which is for a program to make and never for a library: this is the program.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "simjax" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"simjax {simjax.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """State-driven implicit models with a certificate for every row."""


# ---- commands ----------------------------------------------------------------------------------------------


@app.command()
def demo(
    dataset: Annotated[DatasetName, typer.Option(help="What to train the baseline on.")] = "digits",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything made.")] = Path("demo-output"),
    samples: Annotated[int | None, typer.Option(help="Samples to collect states on (default: by data set).")] = None,
    objective: Annotated[SparseObjective, typer.Option(help="Penalty.")] = "perspective",
    alpha: Annotated[float | None, typer.Option(help="Its weight (default: by data set).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the baseline and the choice of samples.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A short run, to see that everything works.")] = False,
    force: _Force = False,
    as_json: _Json = False,
) -> None:
    """Train a network, fit a certified sparse implicit model to it, evaluate, save and draw both."""
    with _reporting(), _Display() as display:
        report = run_demo(
            output,
            dataset,
            samples=samples,
            objective=objective,
            alpha=alpha,
            seed=seed,
            quick=quick,
            overwrite=force,
            observer=display,
        )
    if as_json:
        _print_json(report.results | {"files": {name: str(path) for name, path in report.files.items()}})
    else:
        _print_demo(report)
    _exit_by(report.converged)


@app.command()
def fit(
    states: Annotated[Path, typer.Argument(metavar="STATES.npz", help="Written by States.save.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="MODEL.safetensors", help="Where to save the model.")
    ],
    objective: Annotated[Objective, typer.Option(help="Penalty.")] = "perspective",
    alpha: Annotated[float, typer.Option(help="Weight of the penalty.")] = 1e-3,
    mu: Annotated[
        float | None, typer.Option(help="Second weight of perspective and elastic_net (default: alpha).")
    ] = None,
    kappa: Annotated[
        str, typer.Option(metavar="NUMBER|none", help="Bound on ‖A‖∞, in (0, 1); none removes it.")
    ] = "0.99",
    constraint: Annotated[
        Constraint, typer.Option(help="What kappa bounds: ‖A‖∞, ‖(A B)‖∞, or the measure μ∞(A), then of any sign.")
    ] = "ball",
    lambda_state: Annotated[float, typer.Option(help="λ₁, weight of the loss of A, B.")] = 0.1,
    lambda_output: Annotated[float, typer.Option(help="λ₂, weight of the loss of C, D.")] = 0.1,
    reduction: Annotated[Reduction, typer.Option(help="The loss summed (the paper's) or averaged.")] = "sum",
    matching: Annotated[Matching, typer.Option(help="Match the states by penalty or exactly.")] = "penalty",
    support: Annotated[
        Support, typer.Option(help="Which entries of A may be nonzero; auto is hollow, but full for metzler.")
    ] = "auto",
    rescale: Annotated[Rescale, typer.Option(help="How the states are rescaled to fit ‖A‖∞.")] = "auto",
    units: Annotated[Units, typer.Option(help="Units of loss and penalty.")] = "natural",
    fit_intercept: Annotated[bool, typer.Option(help="Fit biases too.")] = False,
    refit: Annotated[
        list[str] | None,
        typer.Option(metavar="support|outputs", help="Solve again, on the support found or for C, D; repeatable."),
    ] = None,
    solver: Annotated[SolverName, typer.Option(help="Algorithm.")] = "auto",
    tol: Annotated[float, typer.Option(help="Relative duality gap at which a row is certified.")] = 1e-6,
    max_iters: Annotated[int, typer.Option(help="Most passes over the states.")] = 20_000,
    workers: Annotated[int, typer.Option(help="Processes for the solvers clarabel and mosek.")] = 1,
    force: _Force = False,
    as_json: _Json = False,
) -> None:
    """Fit an implicit model to saved states and certify every row of it."""
    with _reporting():
        _check_output(output, force)
        kappa_or_none = _number_or_none("kappa", kappa)
        loaded = simjax.States.load(states)
        with _Display() as display:
            display.stage("Fit")
            result = simjax.fit(
                loaded,
                objective,
                alpha=alpha,
                mu=mu,
                kappa=kappa_or_none,
                lambda_state=lambda_state,
                lambda_output=lambda_output,
                reduction=reduction,
                matching=matching,
                constraint=constraint,
                support=support,
                rescale=rescale,
                units=units,
                fit_intercept=fit_intercept,
                refit=refit,
                solver=solver,
                tol=tol,
                max_iters=max_iters,
                workers=workers,
                progress=display.rows,
            )
        result.model.save(output, overwrite=force)
    report = _fit_report(result, loaded, output)
    if as_json:
        _print_json(report)
    else:
        _print_pairs(f"Implicit model of {states}", _fit_pairs(report))
    _exit_by(result.converged)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL.safetensors", help="A saved implicit model.")],
    dataset: Annotated[DatasetName, typer.Option(help="Whose test samples to classify.")],
    as_json: _Json = False,
) -> None:
    """Classify the test samples of a data set with a saved model."""
    with _reporting():
        loaded = simjax.ImplicitModel.load(model)
        data = datasets.load(dataset)
        report: dict[str, Any] = {
            "model": str(model),
            "dataset": dataset,
            "samples": len(data.test_labels),
            "accuracy": loaded.accuracy(data.test_inputs, data.test_labels),
            "nonzeros": loaded.nonzeros,
            "well_posedness": loaded.well_posedness,
        }
    if as_json:
        _print_json(report)
        return
    _print_pairs(
        f"{model} on {dataset}",
        {
            "test accuracy": f"{_percent(report['accuracy'])} of {report['samples']:,} samples",
            "nonzeros": f"{report['nonzeros']:,}",
            "well-posedness": f"‖A‖∞ = {report['well_posedness']:.6g}",
        },
    )


@app.command()
def show(
    model: Annotated[Path, typer.Argument(metavar="MODEL.safetensors", help="A saved implicit model.")],
    as_json: _Json = False,
) -> None:
    """Say what is in a saved model: sizes, nonzeros, well-posedness and how it was fitted."""
    with _reporting():
        loaded = simjax.ImplicitModel.load(model)
        report = _model_report(loaded)
    if as_json:
        _print_json({"model": str(model), **report})
    else:
        _print_model(str(model), report)


@app.command()
def verify(
    model: Annotated[Path, typer.Argument(metavar="MODEL.safetensors", help="A model fitted by simjax.")],
    states: Annotated[Path, typer.Argument(metavar="STATES.npz", help="The states it was fitted to.")],
    oracle: Annotated[OracleName, typer.Option(help="The interior-point solver to ask.")] = "clarabel",
    rows: Annotated[int, typer.Option(help="How many rows to solve again.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the random choice of rows.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes over which the oracle spreads the rows.")] = 1,
    as_json: _Json = False,
) -> None:
    """Have an independent solver solve a random sample of rows again, and compare."""
    with _reporting():
        loaded, collected = simjax.ImplicitModel.load(model), simjax.States.load(states)
        found = simjax.verify_model(loaded, collected, oracle, rows, seed=seed, workers=workers)
    if as_json:
        _print_json(_verification_report(found))
    else:
        _print_verification(found)
    _exit_by(found.ok)


# ---- input and errors --------------------------------------------------------------------------------------


@contextmanager
def _reporting() -> Iterator[None]:
    """Shows bad input as one line and exit code 2, and the library's warnings as one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        except (ValueError, TypeError, OSError, FloatingPointError, OracleUnavailable) as error:
            hint = " Pass --force to overwrite." if isinstance(error, FileExistsError) else ""
            _err.print(f"[bold red]Error:[/] {_literal(error)}{hint}", soft_wrap=True)
            raise typer.Exit(BAD_INPUT) from error
        finally:
            for warning in caught:
                _err.print(f"[bold yellow]Warning:[/] {_literal(warning.message)}", soft_wrap=True)


def _literal(text: object) -> str:
    """`text` with its square brackets meant as such, not as rich's markup."""
    return str(text).replace("[", r"\[")


def _check_output(path: Path, force: bool) -> None:
    """Refuses, before a long computation, what saving would refuse after it."""
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist.")


def _number_or_none(name: str, text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number or none, got {text!r}.") from None


def _exit_by(converged: bool) -> None:
    if not converged:
        _err.print("[bold yellow]Not every row is certified.[/] What was computed is saved all the same.")
        raise typer.Exit(NOT_CERTIFIED)


# ---- progress ----------------------------------------------------------------------------------------------


class _Display(Observer):
    """Stages as progress bars on standard error."""

    def __init__(self) -> None:
        self._bars = ProgressBars(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=_err,
        )
        self._task: Any = None

    def __enter__(self) -> _Display:
        self._bars.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._finish()
        self._bars.stop()

    def stage(self, title: str) -> None:
        self._finish()
        self._task = self._bars.add_task(title, total=None, note="")

    def epoch(self, epoch: int, epochs: int, loss: float, accuracy: float) -> None:
        note = f"loss {loss:.3f}, accuracy {_percent(accuracy)}"
        self._bars.update(self._task, total=epochs, completed=epoch, note=note)

    def rows(self, progress: simjax.Progress) -> None:
        note = f"{progress.solved} of {progress.rows} rows, worst gap {progress.worst_gap:.0e}"
        self._bars.update(self._task, total=progress.rows, completed=progress.solved, note=note)

    def _finish(self) -> None:
        """Stops the stage's clock; a stage without steps counts as one."""
        if self._task is not None:
            task = next(task for task in self._bars.tasks if task.id == self._task)
            if task.total is None:
                self._bars.update(self._task, total=1, completed=1)
            self._bars.stop_task(self._task)
            self._task = None


# ---- results -----------------------------------------------------------------------------------------------


def _fit_report(result: simjax.FitResult, states: simjax.States, output: Path) -> dict[str, Any]:
    certificate, model = result.certificate, result.model
    statuses, counts = np.unique(result.status, return_counts=True)
    baseline = states.baseline
    return {
        "model": str(output),
        "rows": int(result.status.size),
        "status": dict(zip(statuses.tolist(), counts.tolist(), strict=True)),
        "certified": result.converged,
        "worst_relative_gap": json_number(certificate.relative_gap.max()),
        "worst_infeasibility": json_number(certificate.infeasibility.max()),
        "nonzeros": model.nonzeros,
        "sparsity": None if baseline is None else model.sparsity(baseline.nonzeros),
        "well_posedness": model.well_posedness,
        "seconds": round(result.seconds, 3),
        "settings": result.settings,
    }


def _fit_pairs(report: Mapping[str, Any]) -> dict[str, str]:
    sparsity = report["sparsity"]
    return {
        "rows": ", ".join(f"{count} {status}" for status, count in report["status"].items()),
        "worst relative gap": _gap(report["worst_relative_gap"]),
        "worst infeasibility": _gap(report["worst_infeasibility"]),
        "nonzeros": f"{report['nonzeros']:,}",
        **({} if sparsity is None else {"sparsity": f"{_percent(sparsity)} fewer than the baseline"}),
        "well-posedness": f"‖A‖∞ = {report['well_posedness']:.6g}",
        "seconds": f"{report['seconds']:.1f}",
        "saved as": report["model"],
    }


def _model_report(model: simjax.ImplicitModel) -> dict[str, Any]:
    dense = model.to_dense()
    return {
        "n": model.n,
        "p": model.p,
        "q": model.q,
        "activation": model.activation,
        "storage": model.storage,
        "nonzeros": model.nonzeros,
        "blocks": {
            name: {"shape": list(M.shape), "nonzeros": int(np.count_nonzero(M))}
            for name, M in ((name, getattr(dense, name)) for name in ("A", "B", "C", "D", "b", "c"))
            if M is not None
        },
        "well_posedness": model.well_posedness,
        "perron_eigenvalue": model.perron_eigenvalue,
        "metadata": model.metadata,
    }


def _print_model(name: str, report: Mapping[str, Any]) -> None:
    table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("block")
    for column in ("shape", "nonzeros", "share"):
        table.add_column(column, justify="right")
    for block, about in report["blocks"].items():
        share = about["nonzeros"] / int(np.prod(about["shape"]))
        shape = "×".join(map(str, about["shape"]))
        table.add_row(block, shape, f"{about['nonzeros']:,}", _percent(share))
    _out.print(table)
    fitted = (report["metadata"] or {}).get("fit") or {}
    _print_pairs(
        None,
        {
            "activation": report["activation"],
            "storage": report["storage"],
            "well-posedness": f"‖A‖∞ = {report['well_posedness']:.6g}",
            "Perron eigenvalue": f"λ(|A|) = {report['perron_eigenvalue']:.6g}",
            **{f"fit: {key}": str(value) for key, value in fitted.items()},
        },
    )


def _print_demo(report: DemoReport) -> None:
    results = report.results
    baseline, model, rows = results["baseline"], results["model"], results["rows"]
    table = Table(
        title=f"{results['dataset']}, {results['samples']:,} samples",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column, justify in (("", "left"), ("baseline", "right"), ("implicit model", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_row("test accuracy", _percent(baseline["test_accuracy"]), _percent(model["test_accuracy"]))
    table.add_row("nonzeros", f"{baseline['nonzeros']:,}", f"{model['nonzeros']:,}")
    table.add_row("sparsity", "", _percent(model["sparsity"]))
    table.add_row("‖A‖∞", "", f"{model['well_posedness']:.6g}")
    table.add_row("rows certified", "", f"{rows['certified']} of {rows['total']}")
    table.add_row("worst relative gap", "", _gap(rows["worst_relative_gap"]))
    table.add_row("seconds to solve", "", f"{rows['seconds']:.1f}")
    _out.print(table)
    path = Table(title="path of alphas", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("alpha", "sparsity", "test accuracy", "rows certified"):
        path.add_column(column, justify="right")
    for point in report.path:
        path.add_row(
            f"{point.alpha:g}",
            _percent(point.sparsity),
            _percent(point.accuracy),
            f"{point.rows_certified} of {rows['total']}",
        )
    _out.print(path)
    for name, file in report.files.items():
        _out.print(f"  {name.replace('_', ' '):<10} {_literal(file)}", soft_wrap=True)


def _verification_report(found: simjax.Verification) -> dict[str, Any]:
    """A verification as JSON values, a dictionary per row."""
    names = ("objective", "oracle_objective", "difference", "relative_gap", "oracle_gap")
    rows = [
        {
            "row": int(number),
            **{name: json_number(getattr(found, name)[k]) for name in names},
            "agrees": bool(found.agrees[k]),
        }
        for k, number in enumerate(found.rows)
    ]
    return {"oracle": found.oracle, "ok": found.ok, "rows": rows}


def _print_verification(found: simjax.Verification) -> None:
    table = Table(box=box.SIMPLE_HEAD, title=f"{found.rows.size} rows solved again by {found.oracle}")
    for title in ("row", "objective", found.oracle, "difference", "gap", f"gap of {found.oracle}"):
        table.add_column(title, justify="right")
    table.add_column("agrees")
    for k, number in enumerate(found.rows):
        table.add_row(
            str(number),
            f"{found.objective[k]:.9e}",
            f"{found.oracle_objective[k]:.9e}",
            f"{found.difference[k]:.1e}",
            f"{found.relative_gap[k]:.1e}",
            f"{found.oracle_gap[k]:.1e}",
            "yes" if found.agrees[k] else "[bold red]NO[/]",
        )
    _out.print(table)


def _print_pairs(title: str | None, pairs: Mapping[str, str]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="bold")
    table.add_column()
    for name, value in pairs.items():
        table.add_row(name, value)
    _out.print(table)


def _print_json(report: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(report, indent=2, allow_nan=False))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _gap(gap: float | None) -> str:
    return "not finite" if gap is None else f"{gap:.1e}"
