"""NEMON: accuracy, Lipschitz bounds and certificates in l∞ as γ and the regulariser vary, and function estimation."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from benchmarks.records import Record, table
from experiments.claims import fitting
from experiments.claims.fitting import Recipe, Samples
from experiments.claims.paper import Claim, Paper, always, holds, said, together, told, values
from experiments.experiment import errorbars
from simjax.implicit.equilibrium import Equilibrium, affine, average_step, equilibrium
from simjax.implicit.loop import Solver
from simjax.implicit.model import ImplicitModel
from simjax.nn import NEMON, ImplicitLayer
from simjax.nn.base import ImplicitModule, Matrices, checked_sizes, scaled_normal
from simjax.nn.mondeq import solve_monotone
from simjax.robustness import (
    certified_radii,
    lipschitz_bounds,
    matrix_measure,
    monotonicity,
    optimal_weights,
    pgd,
    sampled_lipschitz,
)

GAMMAS, LAMBDAS = (-1.0, 0.5, 0.9), (0.0, 1e-4, 1e-3, 1e-2)
KAPPA = 0.95
REGULARISED, PLAIN = "NEMON γ=0 λ=0.001", "NEMON γ=0 λ=0"  # what verdicts compare
RADII = (0.005, 0.01, 0.02, 0.05)  # in l∞, inputs from 0 to 1
MAIN = 0.02
ATTACK, ATTACKED = 0.1, 200  # radius of the attack, and how many samples are attacked
DATA = {"digits": "digits", "Fashion-MNIST": "fashion-mnist"}
STATES = {"digits": 48, "Fashion-MNIST": 64}
AMOUNTS = {"digits": (1437, 360), "Fashion-MNIST": (20_000, 2_000)}
RECIPES = {"digits": Recipe(60, 64, 5e-3), "Fashion-MNIST": Recipe(8, 128, 3e-3)}
QUICK = 300
ITERATED, TOL = 50, 1e-8
CURVE = Recipe(300, 50, 1e-2)  # of function estimation
NOISE, CURVE_STATES, CURVE_SAMPLES = 0.2, 20, 100


class Way(NamedTuple):
    """A kind of network with its γ and λ; None where it has none."""

    kind: str
    gamma: float = 0.0
    weight: float = 0.0


WAYS: Mapping[str, Way] = {
    "unconstrained": Way("free"),
    f"‖A‖∞ ≤ {KAPPA:g}": Way("ball"),
    **{f"NEMON γ={gamma:g} λ=0.001": Way("nemon", gamma, 1e-3) for gamma in GAMMAS},
    **{f"NEMON γ=0 λ={weight:g}": Way("nemon", 0.0, weight) for weight in LAMBDAS},
}
CURVES = ("unconstrained", f"‖A‖∞ ≤ {KAPPA:g}", *(f"NEMON γ=0 λ={weight:g}" for weight in LAMBDAS))


def cases(quick: bool) -> Sequence[str]:
    """Every way on both data sets, and those of γ = 0 for a function; quickly fewer."""
    if quick:
        ways = ("unconstrained", f"‖A‖∞ ≤ {KAPPA:g}", PLAIN, REGULARISED)
        return (*(f"digits, {way}" for way in ways), *(f"function, {way}" for way in ways))
    every = {"digits": tuple(WAYS), "function": CURVES, "Fashion-MNIST": tuple(WAYS)}
    return tuple(f"{data}, {way}" for data, names in every.items() for way in names)


# --- Networks ----------------------------------------------------------------------------------------------------


class Free(ImplicitModule):
    """x = relu(Ax + Bu + b), y = Cx + c with A free: nothing keeps it well-posed."""

    def __init__(self, p: int, n: int, q: int, rngs: nnx.Rngs) -> None:
        super().__init__("relu", Solver(max_iters=300, unconverged="keep"))
        p, n, q = checked_sizes(p, n, q)
        self.A, self.B, self.C = (
            scaled_normal(rngs, (n, n), 0.5),
            scaled_normal(rngs, (n, p)),
            scaled_normal(rngs, (q, n)),
        )
        self.b, self.c = nnx.Param(jnp.zeros(n)), nnx.Param(jnp.zeros(q))

    def matrices(self) -> Matrices:
        """The parameters themselves."""
        return Matrices(self.A[...], self.B[...], self.C[...], None, self.b[...], self.c[...])


class Ball(ImplicitLayer):
    """The layer with ‖A‖∞ ≤ κ, without a direct term."""

    def matrices(self) -> Matrices:
        """Those of the layer, without D."""
        return super().matrices()._replace(D=None)


def made(way: Way, p: int, n: int, q: int, seed: int) -> Any:
    """An untrained network; NEMON with γ = 0, which training shifts."""
    rngs, solver = nnx.Rngs(seed), Solver("averaged", max_iters=1000)
    if way.kind == "free":
        return Free(p, n, q, rngs)
    if way.kind == "ball":
        return Ball(p, n, q, kappa=KAPPA, solver=solver, rngs=rngs)
    return NEMON(p, n, q, solver=solver, rngs=rngs)


def with_gamma(module: Any, gamma: float) -> Any:
    """A NEMON with these parameters and γ; another network as it is."""
    if not isinstance(module, NEMON):
        return module
    sizes = module.B.shape[1], module.B.shape[0], module.C.shape[0]
    other = NEMON(*sizes, gamma=gamma, solver=module.solver)
    nnx.update(other, nnx.state(module))
    return other


def responses(module: Any, u: jax.Array, gamma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Outputs, and which equilibria were found; A(γ) of a NEMON is A(0) + γI, so that one program serves every γ."""
    matrices = module.matrices()
    if isinstance(module, NEMON):
        matrices = matrices._replace(A=matrices.A + gamma * jnp.eye(len(matrices.A), dtype=matrices.A.dtype))
    return fitting.solved(module, matrices, u)


def penalty(module: Any, gamma: jax.Array) -> jax.Array | float:
    """(‖[η]⁻¹B‖∞² + ‖C[η]‖∞²)/(2(1 − max(γ, 0))) of a NEMON that is made with γ = 0."""
    return module.lipschitz_penalty() / (1.0 - jnp.maximum(gamma, 0.0)) if isinstance(module, NEMON) else 0.0


def classified(module: Any, batch: tuple[jax.Array, jax.Array], hyper: Any) -> jax.Array:
    """Cross-entropy of the samples whose equilibrium was found, and λ times the penalty."""
    gamma, weight = hyper
    logits, found = responses(module, batch[0], gamma)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return jnp.where(found, losses, 0.0).mean() + weight * penalty(module, gamma)


def estimated(module: Any, batch: tuple[jax.Array, jax.Array], hyper: Any) -> jax.Array:
    """Half the squared error likewise."""
    gamma, weight = hyper
    y, found = responses(module, batch[0], gamma)
    return 0.5 * jnp.where(found, (y[:, 0] - batch[1]) ** 2, 0.0).mean() + weight * penalty(module, gamma)


# --- Measuring ---------------------------------------------------------------------------------------------------


def measure(case: str, seed: int, quick: bool) -> Record:
    """Train a network on images or on samples of a function, and bound, certify and attack it."""
    data, _, name = case.partition(", ")
    way = WAYS[name]
    common = {"data": data, "way": name, "gamma": way.gamma, "weight": way.weight}
    return {**common, **(of_function(way, seed, quick) if data == "function" else of_images(data, way, seed, quick))}


def of_images(data: str, way: Way, seed: int, quick: bool) -> Record:
    """Accuracy, bounds, certified accuracy, accuracy under attack and iterations."""
    train, test = (QUICK, 200) if quick else AMOUNTS[data]
    images = fitting.samples(DATA[data], seed, train=train, test=test)
    recipe = RECIPES[data]._replace(epochs=5) if quick else RECIPES[data]
    module = made(way, images.inputs.shape[1], STATES[data], images.classes, seed)
    hyper = way.gamma, way.weight
    skipped = fitting.train(module, classified, images.inputs, images.labels, recipe, seed, hyper)
    logits, found = called(module, images.test_inputs, way.gamma)
    right = fitting.correct(logits, images.test_labels) & found
    exact = with_gamma(module, way.gamma)
    model = exact.export()
    return {
        "parameters": fitting.parameters_of(module),
        "skipped": skipped,
        "accuracy": float(right.mean()),
        "lost": float(1.0 - found.mean()),
        "norm": float(np.abs(model.A).sum(axis=1).max()),
        "measure": least_measure(model),
        **bounds(exact, model, images.test_inputs[found][:300]),
        **certified(model, exact, images),
        "attacked": attacked(module, model, way, images, seed),
        **iterations(model, images.test_inputs[:ITERATED]),
    }


@functools.partial(jax.jit, static_argnums=0)
def _responses(graph: Any, parameters: Any, u: jax.Array, gamma: jax.Array) -> tuple[jax.Array, jax.Array]:
    return responses(nnx.merge(graph, parameters), u, gamma)


def called(module: Any, inputs: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Outputs, and which equilibria were found, on the host."""
    logits, found = _responses(*nnx.split(module), jnp.asarray(inputs), gamma)
    return np.asarray(logits), np.asarray(found)


def least_measure(model: ImplicitModel) -> float:
    """The least μ_η(A) over weights η if that is below one, else μ∞(A)."""
    return matrix_measure(model.A, optimal_weights(model.A))


def bounds(module: Any, model: ImplicitModel, inputs: np.ndarray) -> Record:
    """The network's own l∞ bound, the elementwise one, and the largest sampled ‖J‖∞ (‖J‖∞ of no sample is 0)."""
    found = lipschitz_bounds(model)
    own = module.lipschitz_inf() if isinstance(module, NEMON) else min(found.kappa, found.mu_weighted)
    return {
        "bound": own,
        "elementwise": found.inf,
        "sampled": sampled_lipschitz(model, inputs) if len(inputs) else 0.0,
    }


def certified(model: ImplicitModel, module: Any, images: Samples) -> Record:
    """Certified accuracy at every radius by the bound of the network, and elementwise; none without a bound."""
    shares: Record = {}
    for name in ("bound", "elementwise"):
        if optimal_weights(model.A) is None:
            radii = np.zeros(len(images.test_labels))
        else:
            lipschitz = bounds(module, model, images.test_inputs[:0])["bound"] if name == "bound" else None
            radii = certified_radii(model, images.test_inputs, images.test_labels, lipschitz=lipschitz)
        shares |= {f"{name}_{radius:g}": float(np.mean(radii > radius)) for radius in RADII}
    return shares


def attacked(module: Any, model: ImplicitModel, way: Way, images: Samples, seed: int) -> float:
    """Accuracy under projected gradient ascent; of a network that may not converge, by its own limited iteration."""
    inputs, labels = images.test_inputs[:ATTACKED], images.test_labels[:ATTACKED]
    graph, state = nnx.split(module)

    def limited(u: jax.Array) -> jax.Array:
        exact = nnx.merge(graph, jax.tree.map(lambda leaf: jnp.asarray(leaf, u.dtype), state))
        return responses(exact, u, jnp.asarray(way.gamma, u.dtype))[0]

    network: Any = limited if way.kind == "free" else model
    moved = pgd(network, inputs, labels, ATTACK, steps=10, bounds=(0.0, 1.0), seed=seed)
    logits, found = called(module, moved.astype(np.float32), way.gamma)
    return float((fitting.correct(logits, labels) & found).mean())


def iterations(model: ImplicitModel, inputs: np.ndarray) -> Record:
    """The most iterations of a sample to 1e-8: averaged with α*, plain, and forward–backward with m/L²; None: more."""
    with jax.enable_x64(True):
        u, b = jnp.asarray(inputs, jnp.float64), jnp.asarray(model.b)
        A, B = jnp.asarray(model.A), jnp.asarray(model.B)
        settings: dict[str, Any] = {"tol": TOL, "max_iters": 2000, "unconverged": "keep"}
        found = {method: equilibrium(A, B, u, b, method=method, **settings) for method in ("averaged", "picard")}
        m = monotonicity(model.A)
        if m > 0.0:
            solver = Solver("averaged", **settings)
            drive = affine(B, u, b)
            found["monotone"] = solve_monotone(A, drive, splitting="forward_backward", solver=solver, m=m)
        counts = {f"{name}_iterations": most(one) for name, one in found.items()}
        step = float(average_step(A))
    return {"monotone_iterations": None, **counts, "step": step}


def most(found: Equilibrium) -> int | None:
    """The most iterations of a sample; None where one did not converge."""
    return int(np.max(found.report.iterations)) if bool(np.all(found.report.converged)) else None


def target(u: np.ndarray) -> np.ndarray:
    """The function to estimate on [−1, 1]."""
    return np.sin(np.pi * u) + 0.5 * np.sin(3.0 * np.pi * u)


def of_function(way: Way, seed: int, quick: bool) -> Record:
    """Error of an estimate from noisy samples, against the function itself, and the estimate's Lipschitz bound."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(-1.0, 1.0, (CURVE_SAMPLES, 1)).astype(np.float32)
    y = (target(u[:, 0]) + NOISE * rng.normal(size=len(u))).astype(np.float32)
    module = made(way, 1, CURVE_STATES, 1, seed)
    recipe = CURVE._replace(epochs=20) if quick else CURVE
    skipped = fitting.train(module, estimated, u, y, recipe, seed, (way.gamma, way.weight))
    grid = np.linspace(-1.0, 1.0, 401, dtype=np.float32)[:, None]
    estimate, found = called(module, grid, way.gamma)
    error = np.where(found, estimate[:, 0] - target(grid[:, 0]), target(grid[:, 0]))  # 0 where there is no answer
    exact = with_gamma(module, way.gamma)
    return {
        "skipped": skipped,
        "lost": float(1.0 - found.mean()),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "estimate": np.where(found, estimate[:, 0], 0.0)[::8].tolist(),
        **bounds(exact, exact.export(), grid[found][::4]),
    }


# --- The page ----------------------------------------------------------------------------------------------------


def claims(records: Sequence[Record]) -> list[Claim]:
    """What the abstract says of the condition, the iteration, the bound, and the experiments."""
    nemons = [record for record in records if record["way"].startswith("NEMON")]
    images = [record for record in nemons if record["data"] != "function"]

    def at(data: str, way: str, key: str) -> list[float]:
        return values(records, f"{data}, {way}", key)

    def on_both(way: str, key: str, form: str = ".1f", scale: float = 100.0) -> str:
        return "; ".join(f"{data} {said(at(data, way, key), form, scale)}" for data in DATA if at(data, way, key))

    def both(key: str, *, than: str, sign: float = 1.0) -> bool | None:
        pairs = [(at(data, REGULARISED, key), at(data, than, key)) for data in DATA if at(data, REGULARISED, key)]
        judged = [always([sign * x for x in ours], [sign * x for x in theirs]) for ours, theirs in pairs]
        return together(*judged) if judged else None

    ratio = [float(record["bound"]) / max(float(record["sampled"]), 1e-12) for record in nemons]
    plain = [record["picard_iterations"] for record in images]
    averaged = [record["averaged_iterations"] for record in images]
    least = max((float(record["measure"]) for record in images), default=np.nan)
    free = [record for record in records if record["way"] == "unconstrained" and record["data"] != "function"]
    outside = min((float(record["norm"]) for record in images), default=np.nan)
    key = f"elementwise_{MAIN:g}"
    curve = [at("function", way, "rmse") for way in (REGULARISED, "unconstrained")]
    return [
        Claim(
            "Our ℓ∞ well-posedness condition leads to a larger polytopic training search space than existing "
            "conditions",
            f"all {len(images)} trained NEMONs have μ_η(A) ≤ {least:.2f} and ‖A‖∞ ≥ {outside:.1f}: outside ‖A‖∞ < 1; "
            f"every "
            f"equilibrium was found. The unconstrained network: μ from "
            f"{min((float(record['measure']) for record in free), default=np.nan):.1f}; its solver gave up on "
            f"{said([record['lost'] for record in free], '.1f', 100.0)} % of the test samples and on "
            f"{sum(record['skipped'] for record in free)} steps of training",
            outside > 1.0 > least and not any(record["lost"] for record in images) if images else None,
        ),
        Claim(
            "our average iteration enjoys accelerated convergence",
            f"most iterations to {TOL:g} over all trained NEMONs: averaged with α* {largest(averaged)}, the plain "
            f"iteration "
            f"{largest(plain)}, forward–backward with the l2 theory's step "
            f"{largest([record['monotone_iterations'] for record in images])} (failed means some sample was not "
            f"found in "
            "2,000, or no such step is known)",
            all(
                count is not None and all(other is None or count <= other for other in others)
                for count, *others in (
                    (record["averaged_iterations"], record["picard_iterations"], record["monotone_iterations"])
                    for record in images
                )
            )
            if images
            else None,
        ),
        Claim(
            "explicit estimates on input-output Lipschitz constants",
            f"the bound is {min(ratio, default=np.nan):.1f} to {max(ratio, default=np.nan):.1f} times the largest "
            f"sampled "
            "‖∂y/∂u‖∞, never below it",
            holds([-value for value in ratio], -1.0),
        ),
        Claim(
            "improved … robustness of the implicit models with smaller input-output Lipschitz bounds",
            f"bound with λ = 0.001: {on_both(REGULARISED, 'bound', '.3g', 1.0)}; with λ = 0: "
            f"{on_both(PLAIN, 'bound', '.3g', 1.0)}. Certified % at {MAIN:g}: {on_both(REGULARISED, key)} against "
            f"{on_both(PLAIN, key)}; % right under attack at {ATTACK:g}: {on_both(REGULARISED, 'attacked')} against "
            f"{on_both(PLAIN, 'attacked')}, and {on_both('unconstrained', 'attacked')} of the unconstrained network",
            together(
                both("bound", than=PLAIN, sign=-1.0), both(key, than=PLAIN), both("attacked", than="unconstrained")
            ),
        ),
        Claim(
            "improved accuracy",
            f"accuracy %: {on_both(REGULARISED, 'accuracy')}; unconstrained {on_both('unconstrained', 'accuracy')}; "
            f"‖A‖∞ ≤ {KAPPA:g}: {on_both(f'‖A‖∞ ≤ {KAPPA:g}', 'accuracy')}. Shown means more than both for every seed",
            together(both("accuracy", than="unconstrained"), both("accuracy", than=f"‖A‖∞ ≤ {KAPPA:g}")),
        ),
        Claim(
            "numerical experiments for function estimation",
            f"root mean square error {said(curve[0], '.3f')} with λ = 0.001, {said(curve[1], '.3f')} unconstrained; "
            f"bounds "
            f"{said(at('function', REGULARISED, 'bound'), '.3g')} and "
            f"{said(at('function', 'unconstrained', 'bound'), '.3g')}. "
            "Shown means a smaller error for every seed",
            always(curve[1], curve[0]),
        ),
    ]


def largest(counts: Sequence[int | None]) -> str:
    """The largest count, or how many failed."""
    known = [count for count in counts if count is not None]
    lost = len(counts) - len(known)
    told = f"{max(known):,}" if known else "–"
    return f"{told}, and {lost} of {len(counts)} failed" if lost else told


def tables(records: Sequence[Record]) -> list[str]:
    """Networks on images, then estimates of the function."""
    rows, curves = [], []
    for case in dict.fromkeys(record["case"] for record in records):
        data, _, way = case.partition(", ")
        say = functools.partial(told, records, case)
        if data == "function":
            curves.append([way, say("rmse", ".3f", 1.0), say("bound", ".3g", 1.0), say("sampled", ".3g", 1.0)])
            continue
        own = [say("bound", ".3g", 1.0), say("elementwise", ".3g", 1.0), say("sampled", ".3g", 1.0)]
        proofs = [f"{say(f'bound_{radius:g}')} / {say(f'elementwise_{radius:g}')}" for radius in RADII]
        rows.append([data, way, say("accuracy"), *own, *proofs, say("attacked"), say("norm", ".1f", 1.0)])
    heads = ["data", "network", "accuracy %", "own l∞ bound", "‖E‖∞", "largest sampled"]
    heads += [f"certified % at {radius:g}, by the bound / elementwise" for radius in RADII]
    lines = table([*heads, f"% right under attack at {ATTACK:g}", "‖A‖∞"], rows)
    return [
        *lines,
        "",
        *table(["function estimation", "root mean square error", "l∞ bound", "largest sampled"], curves),
    ]


def picture(records: Sequence[Record]) -> Figure | None:
    """Accuracy and certified accuracy against the Lipschitz bound, and the estimated function."""
    if not records:
        return None
    nemons = {record["data"] for record in records if record["way"].startswith("NEMON")}
    panels = [data for data in DATA if data in nemons]
    figure = Figure(figsize=(4.2 * (len(panels) + 1), 3.8), layout="constrained")
    *axes, last = np.atleast_1d(figure.subplots(1, len(panels) + 1))
    for panel, data in zip(axes, panels):
        ways = [way for way in WAYS if way.startswith("NEMON") and values(records, f"{data}, {way}", "bound")]
        ways.sort(key=lambda way: np.mean(values(records, f"{data}, {way}", "bound")))
        x = [float(np.mean(values(records, f"{data}, {way}", "bound"))) for way in ways]
        series = {"accuracy": "accuracy", f"certified at {MAIN:g}": f"elementwise_{MAIN:g}"}
        series[f"under attack at {ATTACK:g}"] = "attacked"
        for k, (label, key) in enumerate(series.items()):
            found = [values(records, f"{data}, {way}", key) for way in ways]
            errorbars(panel, x, found, "o-", f"C{k}", label, scale=100.0)
            other = values(records, f"{data}, unconstrained", key)
            if other:
                panel.axhline(100.0 * float(np.mean(other)), color=f"C{k}", linestyle=":", linewidth=1.0)
        panel.set(
            title=f"{data} (dotted: unconstrained)", xlabel="l∞ Lipschitz bound of NEMONs", ylabel="%", xscale="log"
        )
        panel.legend(fontsize=7)
        panel.grid(alpha=0.3)
    grid = np.linspace(-1.0, 1.0, 401)
    last.plot(grid, target(grid), color="black", label="the function")
    for k, way in enumerate(way for way in CURVES if values(records, f"function, {way}", "rmse")):
        first = next(record for record in records if record["case"] == f"function, {way}")
        last.plot(grid[::8], first["estimate"], color=f"C{k}", linewidth=1.0, label=way)
    last.set(title="function estimation, one seed", xlabel="u", ylabel="y")
    last.legend(fontsize=6)
    last.grid(alpha=0.3)
    return figure


PAPER = Paper(
    name="nemon",
    title="NEMON: robust implicit networks via non-Euclidean contractions",
    source="Jafarpour et al. Only the abstract was at hand here: the regulariser's form, the networks' sizes and the "
    "function "
    "that is estimated are a reconstruction, and Fashion-MNIST stands for MNIST. The parameterisation and the bounds "
    "are "
    "those of `simjax.nn.NEMON`.",
    setting=f"relu networks without a direct term, {STATES['digits']} states (digits) and {STATES['Fashion-MNIST']} "
    f"(Fashion-MNIST: {AMOUNTS['Fashion-MNIST'][0]:,} training samples, the first {AMOUNTS['Fashion-MNIST'][1]:,} test "
    f"samples), trained by Adam for {RECIPES['digits'].epochs} and {RECIPES['Fashion-MNIST'].epochs} epochs on the "
    "cross-entropy plus λ(‖[η]⁻¹B‖∞² + ‖C[η]‖∞²)/(2(1 − max(γ, 0))). The unconstrained network has a free A; samples "
    "whose "
    "equilibrium is not found in 300 iterations have no loss and count as wrong. Certified accuracy is by the "
    "network's own "
    f"bound, which is the paper's, and elementwise; the attack is ten steps of projected gradient ascent on "
    f"{ATTACKED} test "
    f"samples. *Function*: sin πu + ½ sin 3πu from {CURVE_SAMPLES} samples with noise of {NOISE:g}, {CURVE_STATES} "
    f"states.",
    cases=cases,
    measure=measure,
    claims=claims,
    tables=tables,
    picture=picture,
)
