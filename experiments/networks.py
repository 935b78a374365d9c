"""Each kind of network on the digits, and sparse models fitted to it: `python -m experiments networks`.

For every baseline: how long its training takes, its accuracy, its own Lipschitz bound, the accuracy of SIM models at
three sparsities, and the share of test samples certified at ε = 0.01 in l∞, of the baseline and of those models. For
its equilibrium: how many averaged iterations the stated rate predicts at most, how many it takes, and how many with
Anderson's extrapolation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import simjax
from benchmarks.problems import KAPPA
from benchmarks.records import Record, places, plain, table
from experiments.experiment import Experiment, Job, Settings, one_after_another
from experiments.sparse import relative_weights
from simjax import datasets
from simjax.implicit.equilibrium import Equilibrium, affine, average_step, equilibrium
from simjax.implicit.loop import Solver
from simjax.implicit.model import ImplicitModel
from simjax.nn import GEQ, LBEN, MLP, NEMON, RECOMMENDED, ImplicitLayer, LinearDEQ, MonDEQ, OptEq, train
from simjax.nn.base import in_float64
from simjax.nn.geq import CURVATURE
from simjax.nn.lben import amplify, cascade, orthogonal_rows, sandwich, sll
from simjax.nn.mondeq import solve_monotone
from simjax.rescaling import diagnose, feasible
from simjax.robustness import (
    certified_accuracy,
    certified_radii,
    lipschitz_bounds,
    matrix_measure,
    optimal_weights,
)
from simjax.states.states import States

NAME = "networks"
DATASET = "digits"
HIDDEN = (32, 16)
STATES = sum(HIDDEN)
EPSILON = 0.01
ZEROS = (0.5, 0.75, 0.9)  # least shares of zeros in A, B, C, D
ALPHAS = tuple(np.geomspace(2e-5, 2e-1, 13).tolist())
SAMPLES = 1000
TOL, MAX_ITERS, SOLVED_SAMPLES = 1e-8, 20_000, 50  # of the iterations that are counted


def layers_as_lben(p: int, n: int, q: int, rngs: nnx.Rngs) -> LBEN:
    """A sandwich layer, an SLL layer and a sandwich layer, times 10, as one LBEN with n relu states."""
    h = (n - q) // 2
    rng = np.random.default_rng(np.asarray(jax.random.key_data(rngs.params())))
    first = sandwich(*orthogonal_rows(rng.normal(size=(h, h)), rng.normal(size=(h, p))))
    last = sandwich(*orthogonal_rows(rng.normal(size=(q, q)), rng.normal(size=(q, h))))
    middle = sll(rng.normal(size=(n - q - h, h)))
    return LBEN.from_form(amplify(cascade(cascade(first, middle), last), 10.0))


BASELINES: Mapping[str, Callable[[int, int, int, nnx.Rngs], nnx.Module]] = {
    "MLP": lambda p, n, q, rngs: MLP((p, *HIDDEN, q), use_bias=True, rngs=rngs),
    "ImplicitLayer": lambda p, n, q, rngs: ImplicitLayer(p, n, q, kappa=KAPPA, rngs=rngs),
    "NEMON": lambda p, n, q, rngs: NEMON(p, n, q, rngs=rngs),
    "MonDEQ": lambda p, n, q, rngs: MonDEQ(p, n, q, rngs=rngs),
    "LBEN": lambda p, n, q, rngs: LBEN(p, n, q, gamma=10.0, rngs=rngs),
    "LBEN of SLL and sandwich layers": layers_as_lben,
    "OptEq": lambda p, n, q, rngs: OptEq(p, n, q, rngs=rngs),
    "GEQ": lambda p, n, q, rngs: GEQ(p, n, q, rngs=rngs),
    "LinearDEQ": lambda p, n, q, rngs: LinearDEQ(p, n, q, rngs=rngs),
}


class Amount(NamedTuple):
    """How much is done."""

    epochs: int
    samples: int
    alphas: tuple[float, ...]
    tests: int


# --- Running -----------------------------------------------------------------------------------------------------


def jobs(settings: Settings) -> Iterator[Job]:
    """What there is to do: each baseline, with each seed."""
    amount = Amount(RECOMMENDED[DATASET]["epochs"], SAMPLES, ALPHAS, datasets.DIGITS_TEST_SAMPLES)
    if settings.quick:
        amount = Amount(2, 100, ALPHAS[3::3], 60)
    for seed in settings.seeds:
        for name in BASELINES:
            yield Job(({"baseline": name, "seed": seed},), functools.partial(of_baseline, name, seed, amount))


def of_baseline(name: str, seed: int, amount: Amount) -> Iterator[Record]:
    """The record of a baseline."""
    yield measure(name, seed, amount)


# --- One baseline ------------------------------------------------------------------------------------------------


def measure(name: str, seed: int, amount: Amount) -> Record:
    """Train a baseline, fit models to it, certify all of them and count iterations."""
    data = datasets.load(DATASET)
    tests, labels = data.test_inputs[: amount.tests], data.test_labels[: amount.tests]
    p, q = data.train_inputs.shape[1], len(data.class_names)
    module = BASELINES[name](p, STATES, q, nnx.Rngs(seed))
    recipe = {**RECOMMENDED[DATASET], "epochs": amount.epochs}
    report = train(module, data.train_inputs, data.train_labels, seed=seed, **recipe)
    tested = simjax.collect_states(module, tests)
    norm, bound = own_bound(module, tested)
    rows = np.random.default_rng(seed).permutation(len(data.train_labels))[: amount.samples]
    states = simjax.collect_states(module, data.train_inputs[rows])
    remedy, states, options = into_ball(states)
    fits = sparse_models(states, amount.alphas, options)
    counted = tests[:SOLVED_SAMPLES]
    return plain(
        {
            "baseline": name,
            "seed": seed,
            "n": states.n,
            "p": p,
            "q": q,
            "seconds": report.seconds,
            "test_accuracy": share_correct(tested.outputs, labels),
            "bound_norm": norm,
            "bound": bound,
            "certified": share_certified(tested, labels, norm, bound),
            "norm_A": None if tested.baseline is None else tested.baseline.well_posedness,
            "remedy": remedy,
            "fits": [
                {
                    "alpha": alpha,
                    "zeros": zeros(result.model),
                    "nonzeros": result.model.nonzeros,
                    "test_accuracy": result.model.accuracy(tests, labels),
                    "certified": certified_accuracy(result.model, tests, labels, EPSILON),
                    "lipschitz_inf": lipschitz_bounds(result.model).inf,
                    "rows": result.status.size,
                    "rows_certified": int(np.count_nonzero(result.status == simjax.Status.SOLVED)),
                    "fit_seconds": result.seconds,
                }
                for alpha, result in fits
            ],
            "iterations": count_iterations(module, tested.baseline, counted),
            "tests": len(labels),
            "samples": states.m,
        }
    )


def into_ball(states: States) -> tuple[str, States, dict[str, Any]]:
    """How the states' baseline comes into the ball, the states to fit, and `fit`'s arguments for it."""
    if states.layer_sizes is not None:
        return "layer by layer", states, {"rescale": "auto"}
    if states.baseline is None:
        return "relaxed matching", states, {"rescale": "none"}
    remedy = diagnose(states, KAPPA).remedies[0]
    if remedy in ("measure row", "relaxed matching"):
        return "relaxed matching", states, {"rescale": "none"}
    return remedy, feasible(states, KAPPA), {"rescale": "none"}


def sparse_models(
    states: States, alphas: Sequence[float], options: Mapping[str, Any]
) -> list[tuple[float, simjax.FitResult]]:
    """A fit for each alpha, all with the adaptive weights of one coarse fit; intercepts are not penalised."""
    relative = relative_weights(states, "perspective", fit_intercept="penalised", **options)
    relative[:, -1] = 0.0
    settings = {"kappa": KAPPA, "reduction": "mean", "support": "hollow", "fit_intercept": "penalised", **options}
    return [(alpha, simjax.fit(states, "perspective", alpha=alpha * relative, **settings)) for alpha in alphas]


def own_bound(module: nnx.Module, states: States) -> tuple[str, float]:
    """The norm in which the baseline bounds its own Lipschitz constant, and the bound."""
    if isinstance(module, NEMON):
        return "inf", module.lipschitz_inf()
    if isinstance(module, MLP):
        return "l2", math.prod(float(np.linalg.norm(np.asarray(layer.kernel[...]), 2)) for layer in module.layers)
    if isinstance(module, (MonDEQ, LBEN, OptEq, GEQ)):
        return "l2", module.lipschitz_l2()
    model = states.baseline
    assert model is not None
    if isinstance(module, ImplicitLayer):
        return "inf", lipschitz_bounds(model).kappa
    return "l2", float(np.linalg.norm(model.C @ np.linalg.solve(np.eye(model.n) - model.A, model.B), 2))


def share_correct(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Share of samples whose largest output is that of the label."""
    return float(np.mean(outputs.argmax(axis=1) == labels))


def share_certified(states: States, labels: np.ndarray, norm: str, bound: float) -> float:
    """Share of samples that keep their right label within EPSILON in l∞, by the baseline's own bound or elementwise.

    A margin over all other outputs certifies margin/(2L) in l∞ and margin/(√2 L) in l2; an l∞ ball of radius ε lies in
    the l2 ball of radius ε√p.
    """
    rows = np.arange(len(labels))
    others = states.outputs.copy()
    others[rows, labels] = -np.inf
    margin = states.outputs[rows, labels] - others.max(axis=1)
    needed = 2.0 * bound * EPSILON if norm == "inf" else math.sqrt(2.0 * states.p) * bound * EPSILON
    certified = margin > needed
    if states.baseline is not None and optimal_weights(states.baseline.A) is not None:
        certified |= certified_radii(states.baseline, states.inputs, labels) > EPSILON
    return float(np.mean(certified))


def zeros(model: ImplicitModel) -> float:
    """Share of zeros in A, B, C and D."""
    nonzero = sum(np.count_nonzero(getattr(model.to_dense(), name)) for name in "ABCD")
    return 1.0 - nonzero / ((model.n + model.q) * (model.n + model.p))


# --- Iterations --------------------------------------------------------------------------------------------------


class Iteration(NamedTuple):
    """An averaged iteration whose residual shrinks by `factor` in a norm: max|r|/scale or (Σ(scale·r)²)^½.

    Attributes:
      name: what it is called.
      run: solves for the samples with given settings.
      step: its α, so that one step from zero is α times the first residual.
      factor: the stated contraction.
      scale: (n,) of the norm.
      order: np.inf or 2.
    """

    name: str
    run: Callable[[Solver], Equilibrium]
    step: float
    factor: float
    scale: np.ndarray
    order: float

    def bound(self, first: np.ndarray) -> int:
        """Iterations after which max|r| ≤ TOL for sure, given the first residuals (m, n)."""
        if self.order == np.inf:
            size = np.max(np.abs(first) / self.scale, axis=1) * self.scale.max()
        else:
            size = np.linalg.norm(first * self.scale, axis=1) / self.scale.min()
        worst = float(size.max())
        if worst <= TOL or self.factor == 0.0:
            return int(worst > TOL)
        return math.ceil(math.log(TOL / worst) / math.log(self.factor))


def count_iterations(module: nnx.Module, model: ImplicitModel | None, inputs: np.ndarray) -> Record | None:
    """The most iterations that a sample needs, and what the stated rate promises; None without a rate."""
    with jax.enable_x64(True):
        iteration = stated_iteration(module, model, jnp.asarray(inputs))
        if iteration is None:
            return None
        first = iteration.run(Solver("averaged", TOL, 1, unconverged="keep")).x / iteration.step
        counts = {}
        for method in ("averaged", "anderson"):
            report = iteration.run(Solver(method, TOL, MAX_ITERS, unconverged="keep")).report
            counts[method] = int(np.max(report.iterations)) if bool(report.converged.all()) else None
    return {
        "name": iteration.name,
        "factor": iteration.factor,
        "predicted": iteration.bound(np.asarray(first)),
        **counts,
    }


def stated_iteration(module: nnx.Module, model: ImplicitModel | None, u: jax.Array) -> Iteration | None:
    """The iteration whose rate the baseline's theory states, or None; call it inside enable_x64."""
    if isinstance(module, GEQ):
        exact = in_float64(module)
        W, H = (np.linalg.norm(np.asarray(part), 2) for part in exact.bounded_weights())

        def run(solver: Solver) -> Equilibrium:
            exact.solver = solver
            return exact.equilibrium(u)

        n = exact.W.shape[0]
        return Iteration("Picard", run, 1.0, float(W**2 * (1.0 + CURVATURE * H**2)), np.ones(n), 2)
    assert model is not None
    A = model.A
    if isinstance(module, (MonDEQ, LBEN)):
        weights = module.weights() if isinstance(module, LBEN) else np.ones(model.n)
        root = np.sqrt(weights)
        scaled = np.eye(model.n) - root[:, None] * A / root  # I − W̃
        m = float(np.linalg.eigvalsh((scaled + scaled.T) / 2.0)[0])
        L = float(np.linalg.norm(scaled, 2))
        drive = affine(jnp.asarray(model.B), u, jnp.asarray(model.b))

        def split(solver: Solver) -> Equilibrium:
            return solve_monotone(
                jnp.asarray(A),
                drive,
                weights=jnp.asarray(weights),
                splitting="forward_backward",
                solver=solver,
                alpha=m / L**2,
            )

        return Iteration("forward–backward", split, m / L**2, math.sqrt(1.0 - (m / L) ** 2), root, 2)
    step = float(average_step(A))

    def average(solver: Solver) -> Equilibrium:
        return equilibrium(
            A,
            model.B,
            u,
            model.b,
            activation=model.activation,
            method=solver.method,
            tol=solver.tol,
            max_iters=solver.max_iters,
            unconverged=solver.unconverged,
        )

    if isinstance(module, OptEq):
        contraction = 1.0 - step * (1.0 - float(np.linalg.norm(A, 2)))
        return Iteration("averaged", average, step, contraction, np.ones(model.n), 2)
    eta = module.weights() if isinstance(module, NEMON) else None
    if eta is None:
        eta = np.ones(model.n) if matrix_measure(A) < 1.0 else optimal_weights(A)
    if eta is None:
        return None
    factor = 1.0 - step * (1.0 - max(matrix_measure(A, eta), 0.0))
    return Iteration("averaged", average, step, factor, eta, np.inf)


# --- The page ----------------------------------------------------------------------------------------------------


def section(records: Sequence[Record]) -> str:
    """The records as two tables, and where they were made."""
    return "\n".join(
        [
            "## The networks, and sparse models fitted to them",
            "",
            "SIM models: test accuracy, certified accuracy in brackets, share of zeros.",
            "",
            *models_table(records),
            "",
            "## Iterations and their stated rates",
            "",
            f"Most iterations of a sample, of {SOLVED_SAMPLES}, to a residual of {TOL:g} in float64.",
            "",
            *iterations_table(records),
            "",
            *places(records),
        ]
    )


def models_table(records: Sequence[Record]) -> list[str]:
    """A line for each baseline."""
    heads = ["baseline", "training (s)", "accuracy %", "own Lipschitz bound", "certified %", "‖A‖∞", "into the ball by"]
    heads += [f"SIM, ≥ {100 * share:.0f} % zeros" for share in ZEROS]
    rows = []
    for record in records:
        norm = {"inf": "l∞", "l2": "l2"}[record["bound_norm"]]
        bound = record["bound"] if isinstance(record["bound"], str) else f"{record['bound']:.3g}"
        rows.append(
            [
                record["baseline"],
                f"{record['seconds']:.1f}",
                f"{100 * record['test_accuracy']:.1f}",
                f"{bound} ({norm})",
                f"{100 * record['certified']:.1f}",
                "–" if record["norm_A"] is None else f"{record['norm_A']:.3g}",
                record["remedy"],
                *(_fit(record["fits"], share) for share in ZEROS),
            ]
        )
    return table(heads, rows)


def _fit(fits: Sequence[Record], share: float) -> str:
    """The most accurate model on the path is not chosen, but the densest one with at least this share of zeros."""
    sparse = [fit for fit in fits if fit["zeros"] >= share]
    if not sparse:
        return "–"
    fit = min(sparse, key=lambda fit: fit["zeros"])
    return f"{100 * fit['test_accuracy']:.1f} ({100 * fit['certified']:.1f}), {100 * fit['zeros']:.0f} %"


def iterations_table(records: Sequence[Record]) -> list[str]:
    """Iterations of every baseline, where it states a rate."""
    heads = ["baseline", "iteration", "stated factor", "predicted at most", "averaged", "Anderson"]
    return table(heads, [[record["baseline"], *_iterations(record["iterations"])] for record in records])


def _iterations(found: Record | None) -> list[str]:
    if found is None:
        return ["none with a stated rate", *("–" for _ in range(4))]
    counts = (found[method] for method in ("averaged", "anderson"))
    counted = (f"{count:,}" if count is not None else f"> {MAX_ITERS:,}" for count in counts)
    return [found["name"], f"{found['factor']:.6g}", f"{found['predicted']:,}", *counted]


EXPERIMENT = Experiment(
    name=NAME,
    title="Every implicit network on the digits",
    keys=("baseline", "seed"),
    run=one_after_another(jobs),
    section=section,
    pictures=lambda _: {},
    jobs=jobs,
)
