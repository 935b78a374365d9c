"""Arguments and options that commands share; the library's own lists of names are what they offer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from simjax._checks import choice
from simjax._extras import needs
from simjax._files import check_target
from simjax.app import display
from simjax.rows.options import ENGINES, PRECISIONS, SOLVERS, SolveOptions
from simjax.rows.oracles.interface import ORACLES
from simjax.rows.penalties import OBJECTIVES
from simjax.rows.problem import MATCHINGS
from simjax.sim.options import CONSTRAINTS, REDUCTIONS, RESCALES, SYNONYMS, UNITS, PlanOptions
from simjax.sim.supports import SUPPORTS
from simjax.states.kinds import AnyStates
from simjax.states.mapped import MappedStates
from simjax.states.states import States as KeptStates

with needs("cli", "typer", "the command simjax"):
    import typer

# The one place of the defaults of a fit; `Any`, for the options are narrower than what they go to.
_PLAN: Any = PlanOptions
_SOLVE: Any = SolveOptions


def one_of(names: Iterable[str], text: str, *, synonyms: Mapping[str, str] | None = None) -> Any:
    """An option that takes one of the names, completes them, and says which is close to a wrong one."""
    names = tuple(names)

    def checked(value: str) -> str:
        try:
            return choice("it", value, names, synonyms=synonyms)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    def completed(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return typer.Option(parser=checked, metavar=f"[{'|'.join(names)}]", autocompletion=completed, help=text)


Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL.safetensors", help="A saved implicit model.")]
States = Annotated[
    Path,
    typer.Argument(
        metavar="STATES.npz|FOLDER",
        help="Written by States.save, or any .npz with the arrays inputs, preactivations, activations and outputs; or "
        "a folder with inputs.npy and so on, of which only what is needed is read.",
    ),
]
DEFAULT_ALPHA = float(_PLAN.alpha)
Checkpoint = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Keep finished rows here; the same command goes on where it was stopped."),
]

# ---- of a fit ----------------------------------------------------------------------------------------------

# What says how to fit, by the names of the arguments of `simjax.fit`: each with its type and its default.
FIT: dict[str, tuple[Any, Any]] = {
    "objective": (Annotated[str, one_of(OBJECTIVES, "Penalty.", synonyms=SYNONYMS)], _PLAN.objective),
    "kappa": (
        Annotated[str, typer.Option(metavar="NUMBER|none", help="Bound on ‖A‖∞, in (0, 1); none removes it.")],
        str(_PLAN.kappa),
    ),
    "constraint": (
        Annotated[
            str, one_of(CONSTRAINTS, "What kappa bounds: ‖A‖∞, ‖(A B)‖∞, or the measure μ∞(A), then of any sign.")
        ],
        _PLAN.constraint,
    ),
    "lambda_state": (Annotated[float, typer.Option(help="λ₁, weight of the loss of A, B.")], _PLAN.lambda_state),
    "lambda_output": (Annotated[float, typer.Option(help="λ₂, weight of the loss of C, D.")], _PLAN.lambda_output),
    "reduction": (Annotated[str, one_of(REDUCTIONS, "The loss summed (the paper's) or averaged.")], _PLAN.reduction),
    "matching": (Annotated[str, one_of(MATCHINGS, "Match the states by penalty or exactly.")], _PLAN.matching),
    "support": (
        Annotated[str, one_of(SUPPORTS, "Which entries of A may be nonzero; auto is hollow, but full for metzler.")],
        _PLAN.support,
    ),
    "rescale": (Annotated[str, one_of(RESCALES, "How the states are rescaled to fit ‖A‖∞.")], _PLAN.rescale),
    "units": (Annotated[str, one_of(UNITS, "Units of loss and penalty.")], _PLAN.units),
    "fit_intercept": (
        Annotated[
            bool | None,
            typer.Option(
                help="Fit biases too, free of penalty; by default where the states come from a network with them."
            ),
        ],
        None,
    ),
    "refit": (
        Annotated[
            list[str] | None,
            typer.Option(metavar="support|outputs", help="Solve again, on the support found or for C, D; repeatable."),
        ],
        None,
    ),
    "solver": (Annotated[str, one_of((*SOLVERS, *ORACLES), "Algorithm.")], _SOLVE.solver),
    "engine": (Annotated[str, one_of(ENGINES, "What runs it; auto is jax on an accelerator.")], _SOLVE.engine),
    "precision": (Annotated[str, one_of(PRECISIONS, "Of passes; what decides is in float64.")], _SOLVE.precision),
    "tol": (
        Annotated[float, typer.Option(help="Relative duality gap at which a row is certified.")],
        _SOLVE.tol,
    ),
    "max_iters": (Annotated[int, typer.Option(help="Most passes over the states.")], _SOLVE.max_iters),
    "workers": (Annotated[int, typer.Option(help="Processes for the solvers clarabel and mosek.")], _SOLVE.workers),
    "max_memory": (
        Annotated[
            float | None,
            typer.Option(metavar="BYTES", help="Solve as many rows at once as fit into this, and keep weights sparse."),
        ],
        _SOLVE.max_memory,
    ),
}


def with_fit_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command takes the options of `FIT`, too, in its keywords `**options`; typer reads them from its signature."""
    signature = inspect.signature(command, eval_str=True)
    kept = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in FIT.items()
    ]
    command.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in (*kept, *added)}
    return command


def fit_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `FIT` as arguments of `simjax.fit`."""
    named = dict(options)
    named["kappa"] = _number_or_none("kappa", named["kappa"])
    if named["fit_intercept"] is None:
        named["fit_intercept"] = _PLAN.fit_intercept
    return named


def load_states(path: Path) -> AnyStates:
    """The states in an .npz, or in a folder of .npy files."""
    return MappedStates.load(path) if path.is_dir() else KeptStates.load(path)


def _number_or_none(name: str, text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number or none, got {text!r}.") from None


def check_output(path: Path, force: bool, suffix: str = ".safetensors", *, read: Sequence[Path] = ()) -> None:
    """Refuses, before a long computation, what saving would refuse after it, and a file that the command reads."""
    for source in read:
        if path.exists() and source.exists() and path.samefile(source):
            raise ValueError(f"{path} is what the command reads, and would be lost: give the output another name.")
    try:
        check_target(path, overwrite=force, suffix=suffix)
    except FileExistsError:
        raise FileExistsError(f"{path} exists.") from None


def shard_of(text: str, output: Path | None, checkpoint: Path | None) -> tuple[int, int]:
    """What --shard says, and that the other options go with it."""
    if output is not None:
        raise ValueError("--output does not go with --shard: the model is made by simjax merge, of all shards.")
    if checkpoint is None:
        raise ValueError("--shard needs --checkpoint FOLDER, the same for all shards.")
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise ValueError(f"--shard must be K/N, as in 3/16, got {text!r}.")
    return int(number), int(of)


def place_of(output: Path, converged: bool) -> Path:
    """Where a result is saved: one that is there gives way to none but a certified one."""
    if converged or not output.exists():
        return output
    place = output.with_name(f"{output.stem}.uncertified{output.suffix}")
    display.say_warning(f"{output} is left as it was, since not every row is certified; what is new is {place}.")
    return place
