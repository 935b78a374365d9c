"""OptEq: the problem that an equilibrium solves, selection by a prior, and deep networks against a single layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from scipy.optimize import nnls

from benchmarks.records import Record, table
from experiments.claims import fitting
from experiments.claims.fitting import Recipe
from experiments.claims.paper import Claim, Paper, always, holds, said, together, told, values
from experiments.experiment import errorbars
from simjax.implicit.loop import Solver
from simjax.nn import ImplicitLayer, MonDEQ, OptEq
from simjax.nn.opteq import select_fixed_point

PRIOR, PROX = "selection by a prior", "the problem it solves"
DATA = {"digits": "digits", "Fashion-MNIST": "fashion-mnist"}
DEEP, SINGLE = ("OptEq, 2 layers", "OptEq, 3 layers"), "OptEq, 1 layer"
OTHERS = ("MonDEQ", "‖A‖∞ ≤ 0.95")
STATES = {"digits": 48, "Fashion-MNIST": 64}  # of the single layer; the others follow from its parameters
AMOUNTS = {"digits": (1437, 360), "Fashion-MNIST": (20_000, 10_000)}
RECIPES = {"digits": Recipe(60, 64, 5e-3), "Fashion-MNIST": Recipe(8, 128, 3e-3)}
QUICK = 300
BOUND = 0.95  # on ‖W‖₂
ITERATIONS = (500, 1000, 2000, 4000, 8000)
Shape = tuple[int, int, int]  # inputs, states, outputs


def cases(quick: bool) -> Sequence[str]:
    """The theory, and every network on both data sets; quickly on the digits alone."""
    data = ("digits",) if quick else tuple(DATA)
    return (PRIOR, PROX, *(f"{name}: {kind}" for name in data for kind in (SINGLE, *DEEP, *OTHERS)))


# --- What is proved ----------------------------------------------------------------------------------------------


def selection(seed: int, quick: bool) -> Record:
    """Distance to argmin ½‖z − a‖² over Fix f = {Wᵀs: s ≥ 0}, W with orthonormal rows, after so many iterations."""
    rng = np.random.default_rng(seed)
    d, h, m = 12, 6, 50
    W = np.linalg.qr(rng.normal(size=(d, h)))[0].T
    a, begin = rng.normal(size=(m, d)), rng.normal(size=(m, d))
    expected = np.maximum(a @ W.T, 0.0) @ W
    with jax.enable_x64(True):
        graph, state = nnx.split(OptEq(1, h, 1, d=d, norm_bound=1.0))
        module = nnx.merge(graph, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), state))
        module.W[0][...] = jnp.asarray(W)
        f = module.layer(jnp.zeros((m, 1)))
        counts = ITERATIONS[:3] if quick else ITERATIONS
        chosen = [select_fixed_point(f, begin, lambda z: z - a, step=1.0, iterations=count) for count in counts]
        errors = [float(np.abs(np.asarray(z) - expected).max()) for z in chosen]
        plain = np.asarray(f(jnp.asarray(begin)))  # a fixed point, where the plain iteration ends from there
        still = float(np.abs(np.asarray(f(jnp.asarray(plain))) - plain).max())
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    apart = float(np.abs(plain - expected).max())
    return {
        "iterations": list(counts),
        "errors": errors,
        "error": errors[-1],
        "order": float(order),
        "plain": apart,
        "still": still,
    }


def problem_solved(seed: int) -> Record:
    """The equilibrium beside nonnegative least squares, and ⟨Δf, Δz⟩/‖Δf‖² of a unit layer, at least 1 for a prox."""
    rng = np.random.default_rng(seed)
    p, n, m = 8, 20, 50
    with jax.enable_x64(True):
        graph, state = nnx.split(OptEq(p, n, 3, norm_bound=BOUND))
        module = nnx.merge(graph, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), state))
        U = rng.normal(size=(m, p))
        states, model = module.states(U), module.export()
        f = module.layer(jnp.asarray(U))
        z, w = (jnp.asarray(3.0 * rng.normal(size=(m, n))) for _ in range(2))
        moved = f(z) - f(w)
        firm = float(jnp.min(jnp.sum(moved * (z - w), axis=1) / jnp.sum(moved**2, axis=1)))
    factor = np.linalg.cholesky(np.eye(n) - model.A)
    drives = U @ model.B.T + model.b
    best = np.stack([nnls(factor.T, np.linalg.solve(factor, drive))[0] for drive in drives])
    return {"difference": float(np.abs(states.activations - best).max()), "firm": firm}


# --- Networks of as many parameters ------------------------------------------------------------------------------


def makers() -> dict[str, Callable[[Shape, int], Any]]:
    """Each kind of network of a shape and a seed."""
    averaged = Solver("averaged", max_iters=1000)

    def opteq(layers: int) -> Callable[[Shape, int], Any]:
        return lambda shape, seed: OptEq(*shape, layers=layers, norm_bound=BOUND, solver=averaged, rngs=nnx.Rngs(seed))

    return {
        SINGLE: opteq(1),
        DEEP[0]: opteq(2),
        DEEP[1]: opteq(3),
        OTHERS[0]: lambda shape, seed: MonDEQ(*shape, rngs=nnx.Rngs(seed)),
        OTHERS[1]: lambda shape, seed: ImplicitLayer(*shape, kappa=0.95, solver=averaged, rngs=nnx.Rngs(seed)),
    }


def count(make: Callable[[Shape, int], Any], shape: Shape) -> int:
    """The parameters of a network of that shape, without making them."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(lambda: make(shape, 0)))))


def fitting_states(make: Callable[[Shape, int], Any], shape: Shape, wanted: int, multiple: int, *, fewer: bool) -> int:
    """The most states with at most that many parameters, or the fewest with at least as many; divided by `multiple`."""
    p, _, q = shape
    n = multiple
    while count(make, (p, n + multiple, q)) <= wanted:
        n += multiple
    return n if fewer or count(make, (p, n, q)) >= wanted else n + multiple


def accuracy(data: str, kind: str, seed: int, quick: bool) -> Record:
    """Train a network whose size follows from the single layer's: deep ones no larger, other kinds no smaller."""
    train, test = (QUICK, 200) if quick else AMOUNTS[data]
    images = fitting.samples(DATA[data], seed, train=train, test=test)
    shape = images.inputs.shape[1], STATES[data], images.classes
    make = makers()
    wanted = count(make[SINGLE], shape)
    layers = 1 + (DEEP.index(kind) + 1 if kind in DEEP else 0)
    n = shape[1]
    if kind != SINGLE:
        n = fitting_states(make[kind], shape, wanted, layers, fewer=kind in DEEP)
    module = make[kind]((shape[0], n, shape[2]), seed)
    recipe = RECIPES[data]._replace(epochs=5) if quick else RECIPES[data]
    skipped = fitting.train(module, fitting.cross_entropy, images.inputs, images.labels, recipe, seed)
    right = fitting.share_correct(module, images.test_inputs, images.test_labels)
    return {"parameters": fitting.parameters_of(module), "n": n, "skipped": skipped, "accuracy": right}


def measure(case: str, seed: int, quick: bool) -> Record:
    """A part of the theory, or a network."""
    if case == PRIOR:
        return selection(seed, quick)
    if case == PROX:
        return problem_solved(seed)
    data, kind = case.split(": ")
    return accuracy(data, kind, seed, quick)


# --- The page ----------------------------------------------------------------------------------------------------


def claims(records: Sequence[Record]) -> list[Claim]:
    """The unit layer, the objective, the prior, and deep networks."""

    def at(data: str, kind: str) -> list[float]:
        return values(records, f"{data}: {kind}", "accuracy")

    ran = [data for data in DATA if at(data, SINGLE)]
    accuracies = "; ".join(
        f"{data} " + ", ".join(f"{kind} {said(at(data, kind), '.2f', 100.0)}" for kind in (SINGLE, *DEEP, *OTHERS))
        for data in ran
    )
    deeper = [always(at(data, DEEP[0]), at(data, SINGLE)) for data in ran]
    previous = [always(at(data, DEEP[0]), at(data, other)) for data in ran for other in OTHERS]
    order = values(records, PRIOR, "order")
    return [
        Claim(
            "a new class of unit layer that is the proximal operator of an implicit convex function",
            f"least ⟨Δf, Δz⟩/‖Δf‖² over random pairs: {told(records, PROX, 'firm', '.2f', 1.0)}; a prox has at least 1",
            holds([-value for value in values(records, PROX, "firm")], -1.0 + 1e-12),
        ),
        Claim(
            "The equilibrium point of OptEq can be theoretically connected to the solution of its corresponding convex "
            "optimization problem",
            "largest difference from the minimiser, by nonnegative least squares: "
            f"{told(records, PROX, 'difference', '.0e', 1.0)}",
            holds(values(records, PROX, "difference"), 1e-8),
        ),
        Claim(
            "guarantees to choose the desired equilibrium point when the fixed point set is non-singleton",
            f"distance to the prior's minimiser in the set {told(records, PRIOR, 'error', '.1e', 1.0)} after the last "
            f"iteration, falling like k to the power −{said(order, '.3f')}; the plain iteration ends "
            f"{told(records, PRIOR, 'plain', '.1f', 1.0)} away",
            together(holds(values(records, PRIOR, "error"), 1e-2), holds([-one for one in order], -0.95)),
        ),
        Claim(
            "deep OptEq outperforms [a single layer] …",
            f"accuracy % at no more parameters: {accuracies}. Shown means two layers above one for every seed",
            together(*deeper) if deeper else None,
        ),
        Claim(
            "… previous implicit models even with fewer parameters",
            "as above; shown means two layers above both other kinds for every seed",
            together(*previous) if previous else None,
        ),
    ]


def tables(records: Sequence[Record]) -> list[str]:
    """A line for each network."""
    rows = []
    for data in DATA:
        for kind in (SINGLE, *DEEP, *OTHERS):
            case = f"{data}: {kind}"
            mine = [record for record in records if record["case"] == case]
            if mine:
                rows.append(
                    [
                        data,
                        kind,
                        str(mine[0]["n"]),
                        f"{mine[0]['parameters']:,}",
                        told(records, case, "accuracy", ".2f"),
                    ]
                )
    return table(["data", "network", "states", "parameters", "accuracy %"], rows)


def picture(records: Sequence[Record]) -> Figure | None:
    """The error of the selected point against iterations, and accuracies."""
    if not records:
        return None
    ran = [data for data in DATA if values(records, f"{data}: {SINGLE}", "accuracy")]
    figure = Figure(figsize=(4.2 * (1 + len(ran)), 3.6), layout="constrained")
    first, *others = np.atleast_1d(figure.subplots(1, 1 + len(ran)))
    for k, record in enumerate(record for record in records if record["case"] == PRIOR):
        counts, errors = np.array(record["iterations"]), np.array(record["errors"])
        first.plot(counts, errors, "o-", color="tab:blue", label="selected" if k == 0 else None)
        first.plot(counts, errors[0] * counts[0] / counts, ":", color="black", label="1/k" if k == 0 else None)
    first.set(xscale="log", yscale="log", xlabel="iterations", ylabel="distance to the prior's choice")
    first.set_xticks(ITERATIONS, [str(count) for count in ITERATIONS])
    first.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    first.legend(fontsize=8)
    for axes, data in zip(others, ran):
        for k, kind in enumerate((SINGLE, *DEEP, *OTHERS)):
            found = values(records, f"{data}: {kind}", "accuracy")
            if found:
                errorbars(axes, (k,), [found], "o", f"C{k}", kind, scale=100.0)
        axes.set(title=data, ylabel="accuracy (%)", xticks=[])
        axes.legend(fontsize=7)
    for axes in (first, *others):
        axes.grid(alpha=0.3)
    return figure


PAPER = Paper(
    name="opteq",
    title="OptEq: optimization induced equilibrium networks",
    source="Xie et al. Only the abstract was at hand: the unit layer, the iteration with a prior and the networks "
    "are a "
    "reconstruction (`simjax.nn.OptEq`); the paper's accuracies are not known to us.",
    setting=f"**Theory**: random layers in float64; the prior is ½‖z − a‖² and the layer one with orthonormal rows, "
    f"whose "
    "fixed points are a cone, so that its choice is known in closed form. **Networks**: ‖W‖₂ ≤ "
    f"{BOUND:g}; a single layer of {STATES['digits']} (digits) or {STATES['Fashion-MNIST']} states (Fashion-MNIST), "
    f"deep ones "
    "with at most its parameters, the other kinds with at least as many; Adam on the cross-entropy, "
    f"{RECIPES['digits'].epochs} epochs (digits, {AMOUNTS['digits'][1]} test samples) or "
    f"{RECIPES['Fashion-MNIST'].epochs} "
    f"(Fashion-MNIST, {AMOUNTS['Fashion-MNIST'][0]:,} training and {AMOUNTS['Fashion-MNIST'][1]:,} test samples).",
    cases=cases,
    measure=measure,
    claims=claims,
    tables=tables,
    picture=picture,
)
