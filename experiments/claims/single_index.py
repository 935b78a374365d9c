"""The deep equilibrium single-index model: what its flow conserves, and descent to the global minimum."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp

from benchmarks.records import Record, table
from experiments.claims.linear_deq import DRIFT, linear_rate, thinned
from experiments.claims.paper import Claim, Paper, always, holds, together, told, values
from simjax.nn import SingleIndexDEQ

CASES = ("identity", "leaky_relu", "tanh")
INPUTS, SAMPLES = 10, 400
START = 0.3  # of a
TIME = 10.0
STEPS = {"small": 0.1, "large": 20.0}
DESCENT = 6000
Parts = tuple[Any, Any]


def problem(activation: str, seed: int) -> tuple[np.ndarray, Callable[[Parts], jax.Array], Parts]:
    """The index θ* behind the samples, ½ mean (ŷ − y)² of (a, b) through the module, and a start."""
    rng = np.random.default_rng(seed)
    inputs, truth = jnp.asarray(rng.normal(size=(SAMPLES, INPUTS))), rng.normal(size=INPUTS) / np.sqrt(INPUTS)
    graph, _ = nnx.split(SingleIndexDEQ(INPUTS, activation=activation))

    def outputs(a: Any, b: Any) -> jax.Array:
        return nnx.merge(graph, nnx.State({"a": nnx.Param(a), "b": nnx.Param(b)}))(inputs)

    targets = outputs(jnp.zeros(()), jnp.asarray(truth))

    def loss(parts: Parts) -> jax.Array:
        return 0.5 * jnp.mean((outputs(*parts) - targets) ** 2)

    return truth, loss, (jnp.asarray(START), jnp.asarray(rng.normal(size=INPUTS) / np.sqrt(INPUTS)))


def invariant(a: Any, b: Any) -> float:
    """(1 − a)² + ‖b‖²."""
    return (1.0 - float(a)) ** 2 + float(np.sum(np.asarray(b) ** 2))


def flow(gradient: Callable[[Parts], Parts], begin: Parts, times: np.ndarray) -> list[Parts]:
    """The parameters at these times of gradient flow, integrated to 1e-11."""

    def velocity(_: float, vector: np.ndarray) -> np.ndarray:
        a, b = gradient((vector[0], vector[1:]))
        return -np.append(np.asarray(a), np.asarray(b))

    packed = np.append(np.asarray(begin[0]), np.asarray(begin[1]))
    found = solve_ivp(velocity, (0.0, times[-1]), packed, t_eval=times, method="DOP853", rtol=1e-11, atol=1e-12)
    return [(vector[0], vector[1:]) for vector in found.y.T]


def descent(
    loss: Callable[[Parts], jax.Array], begin: Parts, eta: float, steps: int
) -> tuple[Parts, float, np.ndarray]:
    """Where gradient descent ends, η²Σ‖gradient‖², and the losses before every step and after the last."""

    def step(carry: tuple[Parts, jax.Array], _: None) -> tuple[tuple[Parts, jax.Array], jax.Array]:
        (a, b), added = carry
        value, (slope_a, slope_b) = jax.value_and_grad(loss)((a, b))
        added = added + eta**2 * (slope_a**2 + slope_b @ slope_b)
        return ((a - eta * slope_a, b - eta * slope_b), added), value

    (end, added), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))((begin, jnp.zeros(())))
    return end, float(added), np.append(np.asarray(losses), float(loss(end)))


def measure(case: str, seed: int, quick: bool) -> Record:
    """The integrated flow, and descent with a small and with a large step, from the same start."""
    with jax.enable_x64(True):
        truth, loss, begin = problem(case, seed)
        path = flow(jax.jit(jax.grad(loss)), begin, np.linspace(0.0, 1.0 if quick else TIME, 12))
        steps = 300 if quick else DESCENT
        (end, added, losses), (_, _, wild) = (descent(loss, begin, eta, steps) for eta in STEPS.values())
    first = invariant(*begin)
    a, b = (np.asarray(part) for part in end)
    rate, straightness = linear_rate(losses)
    return {
        "moved": float(np.linalg.norm(path[-1][1] - np.asarray(begin[1])) / np.linalg.norm(begin[1])),
        "drift": max(abs(invariant(*parts) - first) for parts in path),
        "discrete": abs(invariant(a, b) - first - added),
        "distance": float(np.linalg.norm(b / (1.0 - a) - truth)),
        "left": float(losses[-1] / losses[0]),
        "large_left": float(wild[-1] / wild[0]),
        "rate": rate,
        "straightness": straightness,
        "steps": steps,
        "curve": thinned(losses / losses[0]),
    }


def claims(records: Sequence[Record]) -> list[Claim]:
    """What the abstract says of single-index models."""

    def all_of(key: str, form: str) -> str:
        return "; ".join(f"{case}: {told(records, case, key, form, 1.0)}" for case in CASES)

    def every(key: str) -> list[float]:
        return [value for case in CASES for value in values(records, case, key)]

    straight = every("straightness")
    return [
        Claim(
            "the parameters remain trapped on spheres during training",
            "said there of linear DEQs; in our parameterisation it holds here too. Largest change of (1 − a)² + ‖b‖² "
            f"along the flow: {all_of('drift', '.0e')}; descent adds η²Σ‖gradient‖² exactly, to "
            f"{all_of('discrete', '.0e')}",
            together(holds(every("drift"), DRIFT), holds(every("discrete"), DRIFT)),
        ),
        Claim(
            "linear convergence of gradient descent to a global minimizer for … deep equilibrium single-index models "
            "under appropriate initialization and with a sufficiently small step size",
            f"from a = {START:g} and normal b with η = {STEPS['small']:g}: ‖θ − θ*‖ at the end "
            f"{all_of('distance', '.0e')}; "
            f"factor of the loss a step {all_of('rate', '.4f')}, R² of the line in log L "
            f"{all_of('straightness', '.4f')}",
            together(holds(every("left"), 1e-12), always(straight, [0.95] * len(straight))),
        ),
    ]


def tables(records: Sequence[Record]) -> list[str]:
    """A line for each activation."""
    heads = ["φ", "drift of the sphere", "‖θ − θ*‖", "factor a step", "loss left", f"with η = {STEPS['large']:g}"]
    lines = []
    for case in (case for case in CASES if values(records, case, "left")):
        say = functools.partial(told, records, case, scale=1.0)
        numbers = [say("drift", ".0e"), say("distance", ".0e"), say("rate", ".4f"), say("left", ".0e")]
        lines.append([case, *numbers, say("large_left", ".0e")])
    return table(heads, lines)


def picture(records: Sequence[Record]) -> Figure | None:
    """The loss of descent, a line for each activation and seed."""
    if not records:
        return None
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for record in records:
        label = record["case"] if record["seed"] == records[0]["seed"] else None
        steps = np.linspace(0, record["steps"], len(record["curve"]))
        axes.plot(steps, np.maximum(record["curve"], 1e-32), color=f"C{CASES.index(record['case'])}", label=label)
    axes.set(xlabel="steps of gradient descent", ylabel="loss over the first", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


PAPER = Paper(
    name="single-index",
    title="Single-index DEQs: the same paper",
    source="Dandapanthula & Ramdas, *Gradient flow for deep equilibrium single-index models*. Only the abstract was "
    "at hand: "
    "the parameterisation z = az + bᵀu, y = φ(z) is a reconstruction (`simjax.nn.SingleIndexDEQ`).",
    setting=f"Outputs of an index θ* on {SAMPLES} normal inputs in {INPUTS} dimensions; mean squared error, full "
    f"batches, "
    f"float64, {DESCENT:,} steps; the flow to time {TIME:g}. Every activation is measured with the same seeds.",
    cases=lambda quick: CASES,
    measure=measure,
    claims=claims,
    tables=tables,
    picture=picture,
)
