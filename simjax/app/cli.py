"""The command line: `simjax demo | fit | evaluate | show | verify | doctor`.

Results go to standard output, as tables or with --json as JSON and nothing else; progress, warnings and errors go to
standard error. Exit codes: 0 for success, 1 where rows are not certified or disagree, 2 for bad input, 3 for an error
of simjax itself, with its traceback; 130 and 141 where an interrupt or the end of a pipe stopped it.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import simjax
from simjax import datasets
from simjax._extras import needs
from simjax._files import check_target
from simjax.app import display, reports
from simjax.rows.options import SolveOptions
from simjax.rows.oracles.interface import OracleUnavailable
from simjax.sim.options import PlanOptions

with needs("cli", "typer", "the command simjax"):
    import typer

NOT_CERTIFIED = 1
BAD_INPUT = 2
INTERNAL_ERROR = 3
INTERRUPTED, PIPE_CLOSED = 128 + 2, 128 + 13  # as a shell reports SIGINT and SIGPIPE
_BAD_INPUT_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, ModuleNotFoundError, OracleUnavailable)

# The library's own lists of names, which `--help` shows and typer checks; a test compares them.
# The one place of the defaults of a fit; `Any`, for the choices of an option are narrower than what they go to.
_PLAN: Any = PlanOptions
_SOLVE: Any = SolveOptions

DatasetName = Literal["digits", "fashion-mnist"]
SparseObjective = Literal["perspective", "l1", "elastic_net"]
Objective = Literal["perspective", "l1", "elastic_net", "ridge", "least_squares"]
Matching = Literal["penalty", "exact"]
Reduction = Literal["sum", "mean"]
Constraint = Literal["ball", "stacked_ball", "metzler"]
Support = Literal["auto", "full", "hollow", "feedforward"]
Rescale = Literal["auto", "inner", "none"]
Units = Literal["natural", "rescaled"]
EngineName = Literal["auto", "numpy", "jax"]
Precision = Literal["auto", "float64"]
SolverName = Literal["auto", "admm", "proximal_gradient", "clarabel", "mosek"]
OracleName = Literal["clarabel", "mosek"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit status: 0 for success, 1 where rows are not certified or disagree, 2 for bad input, 3 for an error of "
    "simjax itself, 130 after an interrupt, 141 where the reader of a pipe went away.",
)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")]
_Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]


def main() -> int:
    """Runs the command that the process was started with, and leaves with its exit code."""
    for stream in (sys.stdout, sys.stderr):  # where ‖A‖∞ cannot be encoded, it is not worth an error
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    _keep_compiled_code()
    try:
        app()
    except Exception:  # not to leave with 1, which means something else
        traceback.print_exc()
    return INTERNAL_ERROR  # app itself never returns


def _keep_compiled_code() -> None:
    """Keep compiled code in the user's cache from one command to the next, unless JAX was told where already.

    A global setting, which is for a program to make and never for a library: this is the program.
    """
    import jax  # here: not needed to say what the command line can do

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
    with _reporting():
        from simjax.app.demo import run_demo  # here: the other commands need no pictures

        with display.Display() as observer:
            report = run_demo(
                output,
                dataset,
                samples=samples,
                objective=objective,
                alpha=alpha,
                seed=seed,
                quick=quick,
                overwrite=force,
                observer=observer,
            )
        if as_json:
            display.print_json(report.results | {"files": {name: str(path) for name, path in report.files.items()}})
        else:
            display.print_demo(report)
        _exit_by(report.converged)


@app.command()
def fit(
    states: Annotated[Path, typer.Argument(metavar="STATES.npz", help="Written by States.save.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="MODEL.safetensors", help="Where to save the model.")
    ],
    objective: Annotated[Objective, typer.Option(help="Penalty.")] = _PLAN.objective,
    alpha: Annotated[float, typer.Option(help="Weight of the penalty.")] = float(_PLAN.alpha),
    mu: Annotated[
        float | None, typer.Option(help="Second weight of perspective and elastic_net (default: alpha).")
    ] = None,
    kappa: Annotated[str, typer.Option(metavar="NUMBER|none", help="Bound on ‖A‖∞, in (0, 1); none removes it.")] = str(
        _PLAN.kappa
    ),
    constraint: Annotated[
        Constraint, typer.Option(help="What kappa bounds: ‖A‖∞, ‖(A B)‖∞, or the measure μ∞(A), then of any sign.")
    ] = _PLAN.constraint,
    lambda_state: Annotated[float, typer.Option(help="λ₁, weight of the loss of A, B.")] = _PLAN.lambda_state,
    lambda_output: Annotated[float, typer.Option(help="λ₂, weight of the loss of C, D.")] = _PLAN.lambda_output,
    reduction: Annotated[Reduction, typer.Option(help="The loss summed (the paper's) or averaged.")] = _PLAN.reduction,
    matching: Annotated[Matching, typer.Option(help="Match the states by penalty or exactly.")] = _PLAN.matching,
    support: Annotated[
        Support, typer.Option(help="Which entries of A may be nonzero; auto is hollow, but full for metzler.")
    ] = _PLAN.support,
    rescale: Annotated[Rescale, typer.Option(help="How the states are rescaled to fit ‖A‖∞.")] = _PLAN.rescale,
    units: Annotated[Units, typer.Option(help="Units of loss and penalty.")] = _PLAN.units,
    fit_intercept: Annotated[
        bool | None,
        typer.Option(
            help="Fit biases too, free of penalty; by default where the states come from a network with them."
        ),
    ] = None,
    refit: Annotated[
        list[str] | None,
        typer.Option(metavar="support|outputs", help="Solve again, on the support found or for C, D; repeatable."),
    ] = None,
    solver: Annotated[SolverName, typer.Option(help="Algorithm.")] = _SOLVE.solver,
    engine: Annotated[EngineName, typer.Option(help="What runs it; auto is jax on an accelerator.")] = _SOLVE.engine,
    precision: Annotated[Precision, typer.Option(help="Of passes; what decides is in float64.")] = _SOLVE.precision,
    tol: Annotated[float, typer.Option(help="Relative duality gap at which a row is certified.")] = _SOLVE.tol,
    max_iters: Annotated[int, typer.Option(help="Most passes over the states.")] = _SOLVE.max_iters,
    workers: Annotated[int, typer.Option(help="Processes for the solvers clarabel and mosek.")] = _SOLVE.workers,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep finished rows here; the same command goes on where it was stopped."),
    ] = None,
    force: _Force = False,
    as_json: _Json = False,
) -> None:
    """Fit an implicit model to saved states and certify every row of it."""
    with _reporting():
        _check_output(output, force)
        kappa_or_none = _number_or_none("kappa", kappa)
        loaded = simjax.States.load(states)
        with display.Display() as observer:
            observer.stage("Fit")
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
                fit_intercept=_PLAN.fit_intercept if fit_intercept is None else fit_intercept,
                refit=refit,
                solver=solver,
                engine=engine,
                precision=precision,
                tol=tol,
                max_iters=max_iters,
                workers=workers,
                progress=observer.rows,
                checkpoint=checkpoint,
            )
        place = _place_of(output, result.converged)
        result.model.save(place, overwrite=force)
        report = reports.fit_report(result, loaded, place)
        if as_json:
            display.print_json(report)
        else:
            display.print_fit(f"Implicit model of {states}", report)
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
            display.print_json(report)
        else:
            display.print_evaluation(f"{model} on {dataset}", report)


@app.command()
def show(
    model: Annotated[Path, typer.Argument(metavar="MODEL.safetensors", help="A saved implicit model.")],
    as_json: _Json = False,
) -> None:
    """Say what is in a saved model: sizes, nonzeros, well-posedness and how it was fitted."""
    with _reporting():
        loaded = simjax.ImplicitModel.load(model)
        report = reports.model_report(loaded)
        if as_json:
            display.print_json({"model": str(model), **report})
        else:
            display.print_model(str(model), report)


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
            display.print_json(reports.verification_report(found))
        else:
            display.print_verification(found)
        _exit_by(found.ok)


@app.command()
def doctor(as_json: _Json = False) -> None:
    """Say what simjax finds here: versions, devices, the engine auto takes, memory, oracles and their licences."""
    with _reporting():
        from simjax.app.doctor import doctor_report  # here: it asks JAX for its devices

        report = doctor_report()
        if as_json:
            display.print_json(report)
        else:
            display.print_doctor(report)


# ---- input and errors --------------------------------------------------------------------------------------


@contextmanager
def _reporting() -> Iterator[None]:
    """Shows bad input as one line and exit code 2, and the library's warnings as one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _forget_standard_output()
            raise typer.Exit(PIPE_CLOSED) from None
        except _BAD_INPUT_ERRORS as error:
            display.say_error(f"{error} Pass --force to overwrite." if isinstance(error, FileExistsError) else error)
            raise typer.Exit(BAD_INPUT) from error
        finally:
            for warning in caught:
                display.say_warning(warning.message)


def _forget_standard_output() -> None:
    """Nobody reads it any more, and what is left in its buffer shall not be an error when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_output(path: Path, force: bool) -> None:
    """Refuses, before a long computation, what saving would refuse after it."""
    try:
        check_target(path, overwrite=force, suffix=".safetensors")
    except FileExistsError:
        raise FileExistsError(f"{path} exists.") from None


def _place_of(output: Path, converged: bool) -> Path:
    """Where a model is saved: a model that is there gives way to none but a certified one."""
    if converged or not output.exists():
        return output
    place = output.with_name(f"{output.stem}.uncertified{output.suffix}")
    display.say_warning(f"{output} is left as it was, since not every row is certified; the new model is {place}.")
    return place


def _number_or_none(name: str, text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number or none, got {text!r}.") from None


def _exit_by(converged: bool) -> None:
    if not converged:
        display.say_not_certified()
        raise typer.Exit(NOT_CERTIFIED)
