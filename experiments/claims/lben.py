"""LBEN: what its five special cases keep, and what tuning it adds to networks of such layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from benchmarks.records import Record, table
from experiments.claims import fitting
from experiments.claims.fitting import Recipe, Samples
from experiments.claims.lipschitz_nets import LipschitzNetwork
from experiments.claims.paper import Claim, Paper, always, holds, together, told, values
from experiments.experiment import errorbars
from simjax.nn import LBEN, MonDEQ
from simjax.nn.base import outputs
from simjax.nn.lben import LipschitzForm, aol, cpl, mondeq_form, orthogonal_rows, sandwich, sll
from simjax.robustness import lipschitz_lmi

LAYERS = ("SLL", "CPL", "AOL", "Sandwich", "MonDEQ")
SIZES = (16, 24, 10)  # of a layer: inputs, states, outputs
DRAWS, ACTIVITIES = 20, 200  # random layers of a kind, and random S of each
TUNED = ("Sandwich, digits", "SLL, digits", "Sandwich, Fashion-MNIST")
WIDTHS = {  # SLL layers, sandwich layers
    "Sandwich, digits": ((), ((40, 32), (20, 10))),
    "SLL, digits": ((24, 24), ((20, 10),)),
    "Sandwich, Fashion-MNIST": ((), ((48, 32), (20, 10))),
}
GAMMA = 10.0
RADII = (0.1, 0.2, 0.3, 0.5)  # in l2, inputs from 0 to 1
MAIN = 0.3  # the radius of the verdict
STRUCTURE = 1e-2  # weight of what lies outside the structure
TRAINING = {"digits": Recipe(60, 64, 5e-3), "fashion-mnist": Recipe(8, 128, 5e-3)}
TUNING = {"digits": Recipe(30, 64, 1e-3), "fashion-mnist": Recipe(4, 128, 1e-3)}
AMOUNTS = {"digits": (1437, 360), "fashion-mnist": (20_000, 2_000)}
QUICK = 300  # samples
WAYS = {
    "trained": "the network",
    "further": "the network, trained further",
    "structured": "LBEN, structure kept",
    "free": "LBEN, tuned freely",
}


def cases(quick: bool) -> Sequence[str]:
    """The layers and the networks; quickly without Fashion-MNIST."""
    return (*LAYERS, *(TUNED[:2] if quick else TUNED))


# --- Special cases -----------------------------------------------------------------------------------------------


def drawn(layer: str, rng: np.random.Generator) -> tuple[LipschitzForm, Callable[[np.ndarray], np.ndarray]]:
    """A random layer as a form, and the function of rows that it is by its own definition."""
    p, h, q = SIZES
    K, b, weights = rng.normal(size=(h, p)), rng.normal(size=h), np.exp(rng.normal(size=h))
    if layer in ("SLL", "CPL"):
        T = np.full(h, np.linalg.norm(K, 2) ** 2) if layer == "CPL" else np.abs(K @ K.T) @ weights / weights
        form = cpl(K, b) if layer == "CPL" else sll(K, b, weights)
        return form, lambda x: x - np.maximum(x @ K.T + b, 0.0) @ (2.0 * K / T[:, None])
    if layer == "AOL":
        scaled = K / np.sqrt(np.abs(K.T @ K).sum(axis=1))
        return aol(K, b), lambda x: np.maximum(x @ scaled.T + b, 0.0)
    if layer == "Sandwich":
        G, H = orthogonal_rows(rng.normal(size=(h, q)), K)
        form = sandwich(G, H, weights, b)
        return form, lambda x: np.sqrt(2.0) * (weights * np.maximum(np.sqrt(2.0) * x @ H.T / weights + b, 0.0)) @ G
    module = MonDEQ(p, h, q, m=float(np.exp(rng.normal())), rngs=nnx.Rngs(int(rng.integers(2**31))))
    module.b[...] = jnp.asarray(b, module.b.dtype)
    return mondeq_form(module), lambda x: module.states(x).outputs


def gains(form: LipschitzForm, rng: np.random.Generator) -> float:
    """The largest ‖C(I − SW)⁻¹SU‖₂ over random diagonal S in [0, 1], half of them 0 or 1; 1 for identity states."""
    n = len(form.W)
    corners = rng.integers(0, 2, (ACTIVITIES // 2, n)).astype(float)
    S = np.where(form.identity, 1.0, np.vstack([corners, rng.random((ACTIVITIES // 2, n))]))
    inner = np.linalg.solve(np.eye(n) - S[:, :, None] * form.W, S[:, :, None] * form.U)
    return float(np.linalg.norm(form.C @ inner, 2, axis=(1, 2)).max())


def special_case(layer: str, seed: int, quick: bool) -> Record:
    """The LMI, the sampled gains and the outputs of random layers of a kind."""
    rng = np.random.default_rng([seed, LAYERS.index(layer)])
    least, share, away = np.inf, 0.0, 0.0
    for k in range(3 if quick else DRAWS):
        form, function = drawn(layer, rng)
        slack = form.slack()
        least = min(least, float(np.linalg.eigvalsh(slack)[0] / np.abs(np.diag(slack)).max(initial=1.0)))
        share = max(share, gains(form, rng) / form.gamma)
        if k < 2:  # by the equilibrium itself
            x = rng.normal(size=(50, SIZES[0]))
            with jax.enable_x64(True):
                found = LBEN.from_form(form).states(x).outputs
            away = max(away, float(np.abs(found - function(x)).max() / np.abs(found).max()))
    return {"least": least, "share": share, "away": away}


# --- Networks of such layers, tuned ------------------------------------------------------------------------------


def tuned(case: str, seed: int, quick: bool) -> Record:
    """Train a network, write it as an LBEN, and train both further for as long."""
    dataset = "digits" if case.endswith("digits") else "fashion-mnist"
    train, test = (QUICK, 200) if quick else AMOUNTS[dataset]
    data = fitting.samples(dataset, seed, train=train, test=test)
    first, second = (recipe._replace(epochs=3) if quick else recipe for recipe in (TRAINING[dataset], TUNING[dataset]))
    residual, sandwiches = WIDTHS[case]
    network = LipschitzNetwork(data.inputs.shape[1], residual, sandwiches, GAMMA, nnx.Rngs(seed))
    fitting.train(network, fitting.cross_entropy, data.inputs, data.labels, first, seed)
    form = network.form()
    as_lben = LBEN.from_form(form)
    own = np.asarray(network(jnp.asarray(data.test_inputs)))
    found = as_lben.states(data.test_inputs).outputs
    graph, parameters = nnx.split(network)
    further = nnx.merge(graph, parameters)
    fitting.train(further, fitting.cross_entropy, data.inputs, data.labels, second, seed + 1)
    measured = {"trained": checked(as_lben, data), "further": checked(LBEN.from_form(further.form()), data)}
    structure = tuple(jnp.asarray(mask) for mask in outside(as_lben))
    for way, weight in (("structured", STRUCTURE), ("free", 0.0)):
        module = LBEN.from_form(form)
        hyper = weight, structure
        skipped = fitting.train(module, kept_structure, data.inputs, data.labels, second, seed + 1, hyper)
        measured[way] = {**checked(module, data), "skipped": skipped}
    flat = {f"{way}_{key}": value for way, found in measured.items() for key, value in found.items()}
    away = float(np.abs(found - own).max() / np.abs(found).max())
    return {"states": as_lben.export().n, "train": train, "test": len(data.test_labels), "away": away, **flat}


def outside(module: LBEN) -> list[np.ndarray]:
    """Where A, B, C and D are zero but for rounding, as 0/1: what a network of this structure does not have."""
    parts = [np.abs(getattr(module.export(), name)) for name in "ABCD"]
    return [(part <= 1e-5 * part.max()).astype(np.float32) for part in parts]


def kept_structure(module: LBEN, batch: tuple[jax.Array, jax.Array], hyper: Any) -> jax.Array:
    """The mean cross-entropy, plus weight·Σ of squares of the entries outside the structure."""
    weight, masks = hyper
    matrices = module.matrices()
    logits = outputs(matrices, module.solve(matrices, batch[0]).x, batch[0])
    D = jnp.zeros((matrices.C.shape[0], matrices.B.shape[1])) if matrices.D is None else matrices.D
    parts = zip((matrices.A, matrices.B, matrices.C, D), masks, strict=True)
    other = sum(jnp.sum(mask * part**2) for part, mask in parts)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean() + weight * other


def checked(module: LBEN, data: Samples) -> Record:
    """Accuracy, certified accuracy at every radius, by margins over √2 γ, and the least eigenvalue of the LMI."""
    logits = module.states(data.test_inputs).outputs
    rows = np.arange(len(logits))
    others = logits.copy()
    others[rows, data.test_labels] = -np.inf
    radius = (logits[rows, data.test_labels] - others.max(axis=1)) / (np.sqrt(2.0) * module.lipschitz_l2())
    with jax.enable_x64(True):
        weights = module.weights()
        least = lipschitz_lmi(module.export(), weights, module.gamma) / max(1.0, float(weights.max()))
    certified = {f"certified_{radius_:g}": float(np.mean(radius > radius_)) for radius_ in RADII}
    return {"accuracy": fitting.correct(logits, data.test_labels).mean(), **certified, "least": least}


def measure(case: str, seed: int, quick: bool) -> Record:
    """A kind of layer, or a network of them."""
    return special_case(case, seed, quick) if case in LAYERS else tuned(case, seed, quick)


# --- The page ----------------------------------------------------------------------------------------------------


def claims(records: Sequence[Record]) -> list[Claim]:
    """The reparameterisations, and tuning."""

    def every(of: Sequence[str], key: str) -> list[float]:
        return [value for case in of for value in values(records, case, key)]

    def certified(way: str) -> str:
        return "; ".join(f"{case}: {told(records, case, f'{way}_certified_{MAIN:g}')}" for case in TUNED)

    def better(way: str, than: str) -> bool | None:
        key = f"certified_{MAIN:g}"
        judged = [
            always(values(records, case, f"{way}_{key}"), values(records, case, f"{than}_{key}")) for case in TUNED
        ]
        ran = [one for one in judged if one is not None]
        return together(*ran) if ran else None

    least, share, away = (every(LAYERS, key) for key in ("least", "share", "away"))
    return [
        Claim(
            "convex potential layers (CPL), SDP-based Lipschitz layers (SLL), almost orthogonal layers (AOL), Sandwich "
            "layers, and monotone DEQs (MonDEQ) can all be reparameterized as special cases of the Lipschitz-bounded "
            "equilibrium networks (LBEN) without changing the prescribed Lipschitz constant",
            f"least eigenvalue of the LMI over its largest diagonal entry {min(least, default=np.nan):.0e}; largest "
            f"sampled "
            f"‖J‖₂/γ {max(share, default=np.nan):.6f}; outputs differ from the layer's own by at most "
            f"{max(away, default=np.nan):.0e} of the largest (whole networks in float32: "
            f"{max(every(TUNED, 'away'), default=np.nan):.0e})",
            together(holds([-value for value in least], 1e-9), holds(share, 1.0 + 1e-9), holds(away, 1e-8)),
        ),
        Claim(
            "improved certified robustness of DEQs via a combination of network reparameterization … and LBEN-based "
            "fine-tuning",
            f"certified % at {MAIN:g} in l2. The network: {certified('trained')}. Trained further: "
            f"{certified('further')}. "
            f"As LBEN, tuned freely: {certified('free')}. Shown means more than the network trained further, for every "
            "seed",
            better("free", "further"),
        ),
        Claim(
            "structure-preserving regularization",
            f"the same with entries outside the structure held down: {certified('structured')}. Shown means more than "
            "without, for every seed",
            better("structured", "free"),
        ),
    ]


def tables(records: Sequence[Record]) -> list[str]:
    """A line for each kind of layer, then one for each network and way."""
    layers = []
    for case in (case for case in LAYERS if values(records, case, "least")):
        say = functools.partial(told, records, case, scale=1.0)
        layers.append([case, say("least", ".0e"), say("share", ".4f"), say("away", ".0e")])
    heads = ["layer", "least eigenvalue of the LMI", "largest sampled ‖J‖₂/γ", "difference of outputs"]
    lines = table(heads, layers)
    networks = []
    for case in (case for case in TUNED if values(records, case, "states")):
        for way, name in WAYS.items():
            keys = ["accuracy", *(f"certified_{radius:g}" for radius in RADII)]
            numbers = [told(records, case, f"{way}_{key}") for key in keys]
            networks.append([case, name, *numbers, told(records, case, f"{way}_least", ".0e", 1.0)])
    heads = ["layers, data", "what", "accuracy %", *(f"certified % at {radius:g}" for radius in RADII)]
    return [*lines, "", *table([*heads, "least eigenvalue of the LMI"], networks)]


def picture(records: Sequence[Record]) -> Figure | None:
    """Certified accuracy against the radius, a panel for each network."""
    there = [case for case in TUNED if values(records, case, "states")]
    if not there:
        return None
    figure = Figure(figsize=(4.0 * len(there), 3.6), layout="constrained")
    for axes, case in zip(np.atleast_1d(figure.subplots(1, len(there))), there):
        for k, (way, name) in enumerate(WAYS.items()):
            found = [values(records, case, f"{way}_certified_{radius:g}") for radius in RADII]
            errorbars(
                axes,
                (0.0, *RADII),
                [values(records, case, f"{way}_accuracy"), *found],
                "o-",
                f"C{k}",
                name,
                scale=100.0,
            )
        axes.set(title=case, xlabel="radius in l2", ylabel="certified accuracy (%)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


PAPER = Paper(
    name="lben",
    title="LBEN: exploiting connections between Lipschitz structures",
    source="Havens et al., *Exploiting connections between Lipschitz structures for certifiably robust deep "
    "equilibrium "
    "models*. Only the abstract was at hand: the forms of the layers are derived and proved in `simjax.nn.lben`; the "
    "networks, the tuning and the regulariser are a reconstruction.",
    setting=f"**Layers**: {DRAWS} random ones of each kind with {SIZES[0]} inputs, {SIZES[1]} states and {SIZES[2]} "
    f"outputs; J "
    f"for {ACTIVITIES} random slopes of each. **Networks**: sandwich layers, or two SLL layers and a sandwich layer, "
    f"times "
    f"γ = {GAMMA:g}, trained by Adam on the cross-entropy for {TRAINING['digits'].epochs} epochs (digits; "
    f"{AMOUNTS['digits'][1]} test samples) or {TRAINING['fashion-mnist'].epochs} (Fashion-MNIST: "
    f"{AMOUNTS['fashion-mnist'][0]:,} training samples, the first {AMOUNTS['fashion-mnist'][1]:,} test samples), "
    f"then all "
    f"of them tuned from there for {TUNING['digits'].epochs} or {TUNING['fashion-mnist'].epochs} epochs more with a "
    f"step "
    f"of {TUNING['digits'].learning_rate:g}. A sample is certified where its margin exceeds √2 γ times the radius. The "
    f"regulariser is {STRUCTURE:g} times the squares of the entries of A, B, C and D that are zero in the network.",
    cases=cases,
    measure=measure,
    claims=claims,
    tables=tables,
    picture=picture,
)
