"""GEQ against OptEq at equal parameters, and under noise of the inputs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from benchmarks.records import Record, table
from experiments.claims import fitting
from experiments.claims.opteq import AMOUNTS, BOUND, DATA, QUICK, RECIPES, STATES, Shape, count, fitting_states
from experiments.claims.paper import Claim, Paper, always, together, told, values
from experiments.experiment import errorbars
from simjax.implicit.loop import Solver
from simjax.nn import GEQ, OptEq

KINDS = ("OptEq", "GEQ")
GAMMA, CONTRACTION = 0.05, 0.9
NOISE = (0.1, 0.2, 0.3, 0.4)  # standard deviations, inputs from 0 to 1
MAIN = 0.3
SOLVER = Solver("averaged", max_iters=1000)


def cases(quick: bool) -> Sequence[str]:
    """Both kinds on both data sets; quickly on the digits alone."""
    return tuple(f"{data}: {kind}" for data in (("digits",) if quick else DATA) for kind in KINDS)


def opteq(shape: Shape, seed: int) -> Any:
    """A single layer."""
    return OptEq(*shape, norm_bound=BOUND, solver=SOLVER, rngs=nnx.Rngs(seed))


def geq(shape: Shape, seed: int) -> Any:
    """A GEQ with as many features as states."""
    return GEQ(*shape, gamma=GAMMA, contraction=CONTRACTION, solver=SOLVER, rngs=nnx.Rngs(seed))


def measure(case: str, seed: int, quick: bool) -> Record:
    """Accuracy on clean inputs and on inputs with noise, the same noise for both kinds."""
    data, kind = case.split(": ")
    train, test = (QUICK, 200) if quick else AMOUNTS[data]
    images = fitting.samples(DATA[data], seed, train=train, test=test)
    shape = images.inputs.shape[1], STATES[data], images.classes
    n = shape[1]
    if kind == "GEQ":
        n = fitting_states(geq, shape, count(opteq, shape), 1, fewer=True)
    module = (geq if kind == "GEQ" else opteq)((shape[0], n, shape[2]), seed)
    recipe = RECIPES[data]._replace(epochs=5) if quick else RECIPES[data]
    skipped = fitting.train(module, fitting.cross_entropy, images.inputs, images.labels, recipe, seed)
    clean = fitting.share_correct(module, images.test_inputs, images.test_labels)
    rng = np.random.default_rng([seed, 1])
    noisy = {}
    for sigma in NOISE:
        moved = images.test_inputs + sigma * rng.normal(size=images.test_inputs.shape).astype(np.float32)
        noisy[f"noise_{sigma:g}"] = fitting.share_correct(module, moved, images.test_labels)
    kept = noisy[f"noise_{MAIN:g}"] / clean
    return {
        "parameters": fitting.parameters_of(module),
        "n": n,
        "skipped": skipped,
        "accuracy": clean,
        **noisy,
        "kept": kept,
    }


def claims(records: Sequence[Record]) -> list[Claim]:
    """Accuracy and stability."""
    ran = [data for data in DATA if values(records, f"{data}: GEQ", "accuracy")]

    def beside(key: str) -> str:
        said_of = functools.partial(told, records, key=key, form=".2f")
        return "; ".join(
            f"{data} " + ", ".join(f"{kind} {said_of(f'{data}: {kind}')}" for kind in KINDS) for data in ran
        )

    def larger(key: str) -> bool | None:
        pairs = [[values(records, f"{data}: {kind}", key) for kind in ("GEQ", "OptEq")] for data in ran]
        return together(*(always(*pair) for pair in pairs)) if pairs else None

    return [
        Claim(
            "surpassing the performance of the original OptEqs",
            f"accuracy %, GEQ with at most OptEq's parameters: {beside('accuracy')}. Shown means more for every seed",
            larger("accuracy"),
        ),
        Claim(
            "our GEQ exhibits enhanced stability when confronted with various samples",
            f"with noise of {MAIN:g} on the test inputs, accuracy %: {beside(f'noise_{MAIN:g}')}; share of the clean "
            f"accuracy "
            f"that is kept, %: {beside('kept')}. Shown means a larger share for every seed",
            larger("kept"),
        ),
    ]


def tables(records: Sequence[Record]) -> list[str]:
    """A line for each network."""
    rows = []
    for case in dict.fromkeys(record["case"] for record in records):
        first = next(record for record in records if record["case"] == case)
        noisy = [told(records, case, f"noise_{sigma:g}") for sigma in NOISE]
        sizes = [str(first["n"]), f"{first['parameters']:,}"]
        rows.append([*case.split(": "), *sizes, told(records, case, "accuracy"), *noisy])
    return table(
        ["data", "network", "states", "parameters", "accuracy %", *(f"noise {sigma:g}" for sigma in NOISE)], rows
    )


def picture(records: Sequence[Record]) -> Figure | None:
    """Accuracy against the noise."""
    ran = [data for data in DATA if values(records, f"{data}: GEQ", "accuracy")]
    if not ran:
        return None
    figure = Figure(figsize=(4.4 * len(ran), 3.6), layout="constrained")
    for axes, data in zip(np.atleast_1d(figure.subplots(1, len(ran))), ran):
        for k, kind in enumerate(KINDS):
            keys = ["accuracy", *(f"noise_{sigma:g}" for sigma in NOISE)]
            found = [values(records, f"{data}: {kind}", key) for key in keys]
            errorbars(axes, (0.0, *NOISE), found, "o-", f"C{k}", kind, scale=100.0)
        axes.set(title=data, xlabel="standard deviation of the noise", ylabel="accuracy (%)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


PAPER = Paper(
    name="geq",
    title="GEQ: Gaussian kernel inspired equilibrium models",
    source="Li et al. Only the abstract was at hand, and the paper's formula is not in it: `simjax.nn.GEQ` is a "
    "reconstruction "
    "of the idea, so that what is not shown here says nothing against the paper.",
    setting=f"One layer of each: OptEq with ‖W‖₂ ≤ {BOUND:g}, GEQ with γ = {GAMMA:g} and a contraction of "
    f"{CONTRACTION:g}, as many "
    "features as states and at most OptEq's parameters; data and training as "
    "[OptEq](#opteq-optimization-induced-equilibrium-"
    "networks). Noise is normal, not clipped, and the same for both.",
    cases=cases,
    measure=measure,
    claims=claims,
    tables=tables,
    picture=picture,
)
