"""Linear DEQs: conservation, conditioning and the linear rate of gradient descent."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp

from benchmarks.records import Record, table
from experiments.claims.paper import Claim, Paper, always, holds, together, told, values
from experiments.experiment import grouped
from simjax import datasets
from simjax.nn import LinearDEQ

CASES = ("synthetic", "digits")
STATES = 16
SYNTHETIC = (6, 3, 200)  # inputs, outputs, samples
COMPONENTS = 12  # of the digits
TIME = 20.0  # of the flow
STEPS = {"small": 0.02, "large": 2.0}
DESCENT = 10_000  # steps
POINTS = 60  # of a curve that is kept
DRIFT = 1e-8  # of the integrated flow, against numbers of size one
Parts = tuple[Any, Any, Any]


class Problem(NamedTuple):
    """½ mean‖ŷ − y‖² less its least value, in the map M from inputs to outputs: ½⟨(M − M*)S, M − M*⟩.

    Attributes:
      best: (q, p) M*, the least-squares solution.
      second: (p, p) S, the mean of uuᵀ.
    """

    best: np.ndarray
    second: np.ndarray


def problem(case: str, seed: int) -> Problem:
    """Noisy outputs of a random linear map, or the digits' labels from their leading principal components."""
    rng = np.random.default_rng(seed)
    if case == "digits":
        data = datasets.load("digits")
        centred = data.train_inputs - data.train_inputs.mean(axis=0)
        left, _, _ = np.linalg.svd(centred, full_matrices=False)
        U = left[:, :COMPONENTS] * np.sqrt(len(left))  # of variance one
        Y = np.eye(len(data.class_names))[data.train_labels] - 1.0 / len(data.class_names)
    else:
        p, q, m = SYNTHETIC
        U = rng.normal(size=(m, p))
        Y = U @ rng.normal(size=(p, q)) + 0.1 * rng.normal(size=(m, q))
    return Problem(np.linalg.lstsq(U, Y, rcond=None)[0].T, U.T @ U / len(U))


def start(p: int, q: int, seed: int) -> tuple[Any, Parts]:
    """The module's graph, and A = 0, B, C as it draws them, in float64."""
    graph, state = nnx.split(LinearDEQ(p, STATES, q, rngs=nnx.Rngs(seed)))
    parts = tuple(jnp.asarray(state[name][...], jnp.float64) for name in "ABC")
    return graph, (parts[0], parts[1], parts[2])


def excess_of(graph: Any, given: Problem) -> Callable[[Parts], jax.Array]:
    """(A, B, C) → the loss above its least value, through the module."""
    best, second, eye = (jnp.asarray(part) for part in (*given, np.eye(len(given.second))))

    def excess(parts: Parts) -> jax.Array:
        module = nnx.merge(graph, nnx.State({name: nnx.Param(part) for name, part in zip("ABC", parts)}))
        away = module(eye).T - best
        return 0.5 * jnp.sum((away @ second) * away)

    return excess


def invariants(parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """PPᵀ + BBᵀ and PᵀP + CᵀC."""
    A, B, C = (np.asarray(part) for part in parts)
    P = np.eye(len(A)) - A
    return P @ P.T + B @ B.T, P.T @ P + C.T @ C


def conditioning(parts: Parts, first: np.ndarray) -> tuple[float, float, float]:
    """σ_min(P)², what the law of conservation says it is at least, and ‖P‖₂/σ_min(P)."""
    A, B, _ = (np.asarray(part) for part in parts)
    P = np.eye(len(A)) - A
    singular = np.linalg.svd(P, compute_uv=False)
    bound = np.linalg.eigvalsh(first)[0] / (1.0 + np.linalg.norm(np.linalg.solve(P, B), 2) ** 2)
    return float(singular[-1] ** 2), float(bound), float(singular[0] / singular[-1])


def flow(gradient: Callable[[Parts], Parts], begin: Parts, times: np.ndarray) -> list[Parts]:
    """The parameters at these times of gradient flow, integrated to 1e-11."""
    shapes = [part.shape for part in begin]
    splits = np.cumsum([part.size for part in begin])[:-1]

    def unpacked(vector: np.ndarray) -> Parts:
        A, B, C = (part.reshape(shape) for part, shape in zip(np.split(vector, splits), shapes))
        return A, B, C

    def velocity(_: float, vector: np.ndarray) -> np.ndarray:
        return -np.concatenate([np.asarray(part).ravel() for part in gradient(unpacked(vector))])

    packed = np.concatenate([np.asarray(part).ravel() for part in begin])
    found = solve_ivp(velocity, (0.0, times[-1]), packed, t_eval=times, method="DOP853", rtol=1e-11, atol=1e-12)
    return [unpacked(vector) for vector in found.y.T]


def descent(excess: Callable[[Parts], jax.Array], begin: Parts, eta: float, steps: int) -> tuple[Parts, np.ndarray]:
    """Where gradient descent ends, and the excess loss before every step and after the last."""

    def step(parts: Parts, _: None) -> tuple[Parts, jax.Array]:
        loss, slopes = jax.value_and_grad(excess)(parts)
        A, B, C = (part - eta * slope for part, slope in zip(parts, slopes))
        return (A, B, C), loss

    end, losses = jax.jit(lambda parts: jax.lax.scan(step, parts, length=steps))(begin)
    return end, np.append(np.asarray(losses), float(excess(end)))


def linear_rate(losses: np.ndarray) -> tuple[float, float]:
    """The factor by which the loss falls a step, and R² of the straight line in log L, where 1e-2 ≥ L/L₀ ≥ 1e-14."""
    share = losses / losses[0]
    inside = np.flatnonzero((share <= 1e-2) & (share >= 1e-14))
    if len(inside) < 3 or not np.isfinite(losses).all():
        return float("nan"), float("nan")
    logs = np.log(share[inside])
    slope, constant = np.polyfit(inside, logs, 1)
    rest = logs - slope * inside - constant
    return float(np.exp(slope)), float(1.0 - rest.var() / logs.var())


def thinned(curve: Sequence[float]) -> list[float]:
    """Some points of a curve, the first and the last among them."""
    rows = np.linspace(0, len(curve) - 1, min(POINTS, len(curve))).round().astype(int)
    return [float(curve[row]) for row in rows]


def measure(case: str, seed: int, quick: bool) -> Record:
    """The integrated flow, and descent with a small and with a large step, from the same start."""
    with jax.enable_x64(True):
        given = problem(case, seed)
        q, p = given.best.shape
        graph, begin = start(p, q, seed)
        excess = excess_of(graph, given)
        first = invariants(begin)
        times = np.linspace(0.0, 2.0 if quick else TIME, POINTS)
        path = flow(jax.jit(jax.grad(excess)), begin, times)
        changes = [[after - before for after, before in zip(invariants(parts), first)] for parts in path]
        conditions = np.array([conditioning(parts, first[0]) for parts in path])
        steps = 300 if quick else DESCENT
        (_, losses), (_, wild) = (descent(excess, begin, eta, steps) for eta in STEPS.values())
    rate, straightness = linear_rate(losses)
    size = np.sqrt(sum(float(np.sum(np.asarray(part) ** 2)) for part in begin))
    moved = np.sqrt(sum(float(np.sum((a - np.asarray(b)) ** 2)) for a, b in zip(path[-1], begin)))
    return {
        "p": p,
        "q": q,
        "n": STATES,
        "time": float(times[-1]),
        "moved": moved / size,
        "spheres": max(float(np.abs(np.diag(change[0])).max()) for change in changes),
        "drift": max(float(np.abs(part).max()) for change in changes for part in change),
        "smallest": float(np.sqrt(conditions[:, 0].min())),
        "bound_ratio": float((conditions[:, 0] / conditions[:, 1]).min()),
        "condition": float(conditions[:, 2].max()),
        "steps": steps,
        "rate": rate,
        "straightness": straightness,
        "left": float(losses[-1] / losses[0]),
        "large_left": float(wild[-1] / wild[0]),
        "curve": thinned(losses / losses[0]),
        "sigma": thinned(np.sqrt(conditions[:, 0]).tolist()),
        "sigma_bound": thinned(np.sqrt(conditions[:, 1]).tolist()),
    }


def claims(records: Sequence[Record]) -> list[Claim]:
    """Three claims of the abstract about linear DEQs."""

    def both(key: str, form: str, scale: float = 1.0) -> str:
        return "; ".join(f"{case}: {told(records, case, key, form, scale)}" for case in CASES)

    drift = [value for case in CASES for value in values(records, case, "drift")]
    ratios = [value for case in CASES for value in values(records, case, "bound_ratio")]
    left = [value for case in CASES for value in values(records, case, "left")]
    straight = [value for case in CASES for value in values(records, case, "straightness")]
    return [
        Claim(
            "a conservation law for linear DEQs which implies that the parameters remain trapped on spheres during "
            "training",
            f"largest change of ‖(P_i, B_i)‖² along the flow: {both('spheres', '.0e')}; of any entry of PPᵀ + BBᵀ "
            f"and PᵀP + CᵀC: {both('drift', '.0e')}; the parameters moved by (% of their norm) "
            f"{both('moved', '.0f', 100.0)}",
            holds(drift, DRIFT),
        ),
        Claim(
            "gradient flow remains well-conditioned for all time",
            f"σ_min(P) stays above {both('smallest', '.2f')}, at least the bound that follows from the law times "
            f"{both('bound_ratio', '.2f')} (squares); ‖P‖₂/σ_min(P) at most {both('condition', '.1f')}",
            holds([-ratio for ratio in ratios], -1.0 + 1e-9),
        ),
        Claim(
            "linear convergence of gradient descent to a global minimizer for linear DEQs … with a sufficiently small "
            "step size",
            f"with η = {STEPS['small']:g} the excess loss falls by a factor a step of {both('rate', '.4f')}, on a "
            f"line in "
            f"log L with R² {both('straightness', '.4f')}, to a share of the first one of {both('left', '.0e')}; with "
            f"η = {STEPS['large']:g} a share of {both('large_left', '.0e')} is left",
            together(holds(left, 1e-8), always(straight, [0.95] * len(straight))),
        ),
    ]


def tables(records: Sequence[Record]) -> list[str]:
    """A line for each problem."""
    heads = ["problem", "p, n, q", "drift of the spheres", "min σ_min(P)", "max ‖P‖₂/σ_min(P)", "factor a step"]
    heads += ["excess left", f"with η = {STEPS['large']:g}"]
    lines = []
    for (case,), mine in grouped(records, "case").items():
        say = functools.partial(told, mine, case, scale=1.0)
        sizes = f"{mine[0]['p']}, {mine[0]['n']}, {mine[0]['q']}"
        numbers = [say("spheres", ".0e"), say("smallest", ".2f"), say("condition", ".1f"), say("rate", ".4f")]
        lines.append([case, sizes, *numbers, say("left", ".0e"), say("large_left", ".0e")])
    return table(heads, lines)


def picture(records: Sequence[Record]) -> Figure | None:
    """The excess loss of descent, and σ_min(P) of the flow above its bound."""
    if not records:
        return None
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    loss, sigma = figure.subplots(1, 2)
    colours = dict(zip(CASES, ("tab:blue", "tab:orange")))
    for k, record in enumerate(records):
        first = record["seed"] == records[0]["seed"]
        colour, label = colours[record["case"]], record["case"] if first else None
        loss.plot(np.linspace(0, record["steps"], len(record["curve"])), record["curve"], color=colour, label=label)
        times = np.linspace(0, record["time"], len(record["sigma"]))
        sigma.plot(times, record["sigma"], color=colour, label=label)
        sigma.plot(times, record["sigma_bound"], color=colour, linestyle=":", label="its bound" if k == 0 else None)
    loss.set(xlabel="steps of gradient descent", ylabel="excess loss over the first", yscale="log", ylim=(1e-20, 3))
    sigma.set(xlabel="time of gradient flow", ylabel="σ_min(P)", ylim=(0, None))
    for axes in (loss, sigma):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


PAPER = Paper(
    name="linear-deq",
    title="Linear DEQs: gradient flow for deep equilibrium single-index models",
    source="Dandapanthula & Ramdas. Only the abstract was at hand: the scaling of the loss, the start and the step "
    "are a "
    "reconstruction, and the law and its consequences are derived in `simjax.nn.LinearDEQ`. Single-index models have "
    "[their own section](#single-index-deqs-the-same-paper).",
    setting=f"z = Az + Bu, ŷ = Cz with {STATES} states, P = I − A, from A = 0 and normal B and C; mean squared "
    f"error, full "
    f"batches, float64. *synthetic*: noisy outputs of a random linear map. *digits*: labels from the {COMPONENTS} "
    f"leading "
    f"principal components, each of variance one. The flow is integrated to time {TIME:g} with relative tolerance "
    f"1e-11; "
    f"descent takes {DESCENT:,} steps. The loss is counted above that of least squares, which is the global minimum.",
    cases=lambda quick: CASES,
    measure=measure,
    claims=claims,
    tables=tables,
    picture=picture,
)
