"""Named row problems to measure on: `problem("standard-m100-l1")`; `NAMES` lists them.

    standard    Fashion-MNIST, the SIM paper's 784-64-32-16-10 network: 112 rows of (A B) in the ball, 10 of (C D) free
    digits      the same of a 64-32-16-10 network on scikit-learn's digits
    stand-in    rows like the standard ones, from made-up images and an untrained network: no data set is needed
    synthetic   Gaussian designs of a given condition number, sparse truths, up to thousands of rows
    held-out    correlated columns of unequal scale, heavy-tailed truths and noise: no solver was tuned on it
    sparse      rows of few nonzeros over a Gaussian design, without a ball: what coordinate descent is made for

The objective is L1, or the perspective penalty with μ = α ("perspective") or μ = α/100 ("perspective-100th").
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import simjax
from benchmarks.gaussian import SPARSE, sparse_rows
from simjax import datasets
from simjax._checks import choice
from simjax.datasets._files import cache_folder
from simjax.nn import MLP, RECOMMENDED, train
from simjax.rows.penalties import OBJECTIVES as PENALTIES
from simjax.rows.problem import RowProblem, row_problem
from simjax.sim.options import PlanOptions
from simjax.sim.plan import Plan

SIZES = (100, 500, 1000, 5000, 20_000, 60_000)
KAPPA, LOSS_WEIGHT, ALPHA = 0.99, 0.1, 1e-3  # the paper's defaults
NETWORKS = {"fashion-mnist": (784, 64, 32, 16, 10), "digits": (64, 32, 16, 10)}
OBJECTIVES: dict[str, tuple[str, float | None]] = {  # penalty, μ/α
    "l1": ("l1", None),
    "perspective": ("perspective", 1.0),
    "perspective-100th": ("perspective", 0.01),
}
_BALL_SHARE = 4  # of the columns of a made-up design, one in four is in the ball
_FREE_SHARE = 10  # of its rows, one in ten is free


@dataclasses.dataclass(frozen=True)
class Problem:
    """Rows to solve, and in plain numbers what a solver with arguments of its own has to be told.

        row i < inner    min_w  λ‖t − Φw‖² + h(w)    s.t.  Σ_{j<n} |w_j| ≤ κ
        row i ≥ inner    the same without the ball

    Attributes:
      name: by which records and tables call it.
      rows: the problem itself.
      objective: "l1", h = α|w|, or "perspective", h = min over t in [0, 1] of α w²/t + μ t.
      loss_weight, alpha, mu, kappa: λ, α, μ and κ; μ is None for "l1", κ is None where there is no ball.
      n: coordinates that the ball sees; where there is none, those that it would see.
      inner: rows in the ball, or that would be.
    """

    name: str
    rows: RowProblem
    objective: str
    loss_weight: float
    alpha: float
    mu: float | None
    kappa: float | None
    n: int
    inner: int

    @property
    def design(self) -> np.ndarray:
        """Φ, (m, d)."""
        return self.rows.design

    @property
    def targets(self) -> np.ndarray:
        """T, (m, R)."""
        return self.rows.targets

    def facts(self) -> dict[str, Any]:
        """Everything but the arrays, and their sizes, as JSON values."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "rows"}
        return {**plain, "m": self.design.shape[0], "d": self.rows.width, "rows": self.rows.count}

    def save(self, folder: Path) -> None:
        """Write the problem into a folder: design.npy, targets.npy and problem.json."""
        np.save(folder / "design.npy", self.design, allow_pickle=False)
        np.save(folder / "targets.npy", self.targets, allow_pickle=False)
        (folder / "problem.json").write_text(json.dumps(self.facts()))

    @classmethod
    def load(cls, folder: Path) -> Problem:
        """Read what `save` wrote."""
        facts = json.loads((folder / "problem.json").read_text())
        arrays = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("design", "targets"))
        return stated(*arrays, **{f.name: facts[f.name] for f in dataclasses.fields(cls) if f.name != "rows"})


def stated(design: np.ndarray, targets: np.ndarray, **facts: Any) -> Problem:
    """The problem with this design and these targets; `facts` are all other attributes of `Problem`."""
    constraint, inner = None, facts["inner"]
    if facts["kappa"] is not None:
        radius = np.where(np.arange(targets.shape[1]) < inner, facts["kappa"], np.inf)
        constraint = simjax.L1Ball(radius, size=facts["n"])
    rows = row_problem(
        design,
        targets,
        loss_weight=facts["loss_weight"],
        penalty=PENALTIES[facts["objective"]](facts["alpha"], facts["mu"]),
        constraint=constraint,
    )
    return Problem(rows=rows, **facts)


# --- Of trained networks -----------------------------------------------------------------------------------------


def standard_states(m: int = 500, seed: int = 0, cache: Path | None = None) -> simjax.States:
    """States of the trained Fashion-MNIST network on m random training samples."""
    return network_states("fashion-mnist", m, seed, cache)


def network_states(dataset: str, m: int, seed: int = 0, cache: Path | None = None) -> simjax.States:
    """States of the network of `NETWORKS` trained on `dataset`, on m random training samples.

    Args:
      dataset: "fashion-mnist" or "digits".
      m: at most the number of training samples.
      seed: of the training, and of the choice of samples.
      cache: folder for the trained weights; None means the user's cache. Nothing else is kept there.

    Raises:
      ValueError: for another data set, or more samples than it has.
    """
    choice("dataset", dataset, NETWORKS)
    data = _data(dataset)
    if not 1 <= m <= len(data.train_labels):
        raise ValueError(f"m must be in 1..{len(data.train_labels)} for {dataset}, got {m}.")
    network = trained_network(dataset, seed, cache)
    chosen = np.random.default_rng(seed).permutation(len(data.train_labels))[:m]
    return simjax.collect_states(network, data.train_inputs[chosen])


@functools.lru_cache(maxsize=1)
def _data(dataset: str) -> datasets.Dataset:
    return datasets.load(dataset)


def trained_network(dataset: str, seed: int = 0, cache: Path | None = None) -> MLP:
    """The network of `NETWORKS` trained on `dataset`, from the cache if it is there; arguments as `network_states`."""
    sizes, recipe = NETWORKS[choice("dataset", dataset, NETWORKS)], dict(RECOMMENDED[dataset])

    def make() -> MLP:
        network, data = MLP(sizes), _data(dataset)
        train(network, data.train_inputs, data.train_labels, seed=seed, **recipe)
        return network

    name = f"benchmark-{dataset}-{'-'.join(map(str, sizes))}-seed{seed}"
    return kept(name, [dataset, sizes, seed, recipe], make, cache)


def kept(name: str, facts: Any, make: Callable[[], MLP], cache: Path | None = None) -> MLP:
    """A network from the cache, or made and put there.

    Args:
      name: what its file's name begins with.
      facts: everything that it is made with, in JSON's terms; other facts, another file.
      make: makes it.
      cache: folder; None means the user's cache.
    """
    folder = cache_folder() if cache is None else Path(cache)
    file = folder / f"{name}-{digest(facts)}.safetensors"
    if file.is_file():
        return MLP.load(file)
    network = make()
    folder.mkdir(parents=True, exist_ok=True)
    network.save(file, overwrite=True)
    return network


def digest(facts: Any) -> str:
    """Twelve hexadecimal digits of the facts, in JSON's terms."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def of_states(
    name: str, states: simjax.States, objective: str, lam: float, alpha: float, kappa: float | None
) -> Problem:
    """The rows of `simjax.fit(states, …, support="full", rescale="inner", units="rescaled")`.

    With kappa None they are the same rows, from states rescaled for κ = 0.99, without the ball: n + q plain lassos.
    """
    penalty, share = OBJECTIVES[choice("objective", objective, OBJECTIVES)]
    mu = None if share is None else share * alpha
    options = PlanOptions(
        penalty,
        alpha=alpha,
        mu=mu,
        kappa=KAPPA if kappa is None else kappa,
        lambda_state=lam,
        lambda_output=lam,
        support="full",
        rescale="inner",
        units="rescaled",
    )
    plan = Plan.make(states, options)
    rows = plan.rows().all()
    rows = rows if kappa is not None else dataclasses.replace(rows, bound=None)
    return Problem(name, rows, penalty, lam, alpha, mu, kappa, n=states.n, inner=states.n)


def standard(
    m: int,
    objective: str = "l1",
    lam: float = LOSS_WEIGHT,
    alpha: float = ALPHA,
    *,
    kappa: float | None = KAPPA,
    cache: Path | None = None,
) -> Problem:
    """The 122 rows of the Fashion-MNIST network on m training samples.

    Args:
      m: up to 60,000.
      objective: a name in `OBJECTIVES`.
      lam, alpha: λ = λ₁ = λ₂ and α.
      kappa: κ, or None for no ball.
      cache: as in `network_states`.
    """
    weights = "" if (lam, alpha) == (LOSS_WEIGHT, ALPHA) else f"-lambda{lam:g}-alpha{alpha:g}"
    name = f"standard-m{m}-{objective}{weights}{_ball_suffix(kappa)}"
    return of_states(name, standard_states(m, cache=cache), objective, lam, alpha, kappa)


def digits(m: int = 1000, objective: str = "l1", *, kappa: float | None = KAPPA, cache: Path | None = None) -> Problem:
    """The 58 rows of the digits network on m training samples; arguments as in `standard`."""
    name = f"digits-m{m}-{objective}{_ball_suffix(kappa)}"
    return of_states(name, network_states("digits", m, cache=cache), objective, LOSS_WEIGHT, ALPHA, kappa)


def stand_in(
    m: int, objective: str = "l1", *, sizes: tuple[int, ...] = NETWORKS["fashion-mnist"], kappa: float | None = KAPPA
) -> Problem:
    """The rows of an untrained network of the standard one's sizes on images made of blobs, dark towards the edges.

    Where no data set is at hand it stands in for `standard`: the same shapes, pixels of very different norms, many of
    them zero, states that depend on one another. Its times are not those of `standard`.

    Args:
      m: any number of images.
      objective: a name in `OBJECTIVES`.
      sizes: of the network; the images are square, and `sizes[0]` their pixels.
      kappa: κ, or None for no ball.
    """
    side = round(sizes[0] ** 0.5)
    rng = np.random.default_rng((m, *sizes))
    places, widths = rng.uniform(0.2, 0.8, (64, 2)), rng.uniform(0.05, 0.15, (64, 1))
    grid = (np.arange(side) + 0.5) / side
    down, across = (np.exp(-(((grid - places[:, k, None]) / widths) ** 2)) for k in range(2))
    blobs = (down[:, :, None] * across[:, None, :]).reshape(64, side**2)
    images = np.clip(rng.gamma(0.15, 1.0, (m, 64)) @ blobs, 0.0, 1.0)
    states = simjax.collect_states(MLP(sizes), np.rint(255.0 * images) / 255.0)
    name = f"stand-in-m{m}-{'-'.join(map(str, sizes))}-{objective}{_ball_suffix(kappa)}"
    return of_states(name, states, objective, LOSS_WEIGHT, ALPHA, kappa)


# --- Made up -----------------------------------------------------------------------------------------------------


def synthetic(
    n_rows: int,
    p: int,
    m: int,
    condition: float = 100.0,
    sparsity: float = 0.9,
    seed: int = 0,
    objective: str = "l1",
    *,
    kappa: float | None = KAPPA,
) -> Problem:
    """Rows with sparse Gaussian truths and 1 % noise over a design with singular values from √m down to √m/condition.

    Args:
      n_rows: rows; the last tenth is free, the others are in the ball. Their truths are, in the norm of the ball, from
        0.3 to 3 times as large as κ, so that some balls bind and some do not.
      p: columns, of which the ball sees the first quarter.
      m: samples.
      condition: ≥ 1.
      sparsity: the share of zeros in the truths, in [0, 1).
      seed: of everything random.
      objective: a name in `OBJECTIVES`; α is 1 % of the smallest α at which the median row's answer is w = 0.
      kappa: κ, or None for no ball.
    """
    rng = np.random.default_rng((seed, n_rows, p, m))
    rank = min(m, p)
    left, _ = np.linalg.qr(rng.normal(size=(m, rank)))
    right, _ = np.linalg.qr(rng.normal(size=(p, rank)))
    design = (left * np.geomspace(1.0, 1.0 / condition, rank)) @ right.T * np.sqrt(m)
    truth = rng.normal(size=(n_rows, p)) * (rng.random((n_rows, p)) >= sparsity)
    targets = design @ _around_the_ball(rng, truth).T
    targets = targets + 0.01 * np.linalg.norm(targets, axis=0) / np.sqrt(m) * rng.normal(size=targets.shape)
    name = f"synthetic-{n_rows}x{p}-m{m}-condition{condition:g}-sparsity{sparsity:g}-seed{seed}-{objective}"
    return _made_up(name, design, targets, objective, kappa)


def held_out(
    n_rows: int, p: int, m: int, seed: int = 0, objective: str = "l1", *, kappa: float | None = KAPPA
) -> Problem:
    """Rows unlike the synthetic ones: neighbouring columns correlated by 0.95, their scales over two decades, three
    common factors, Student-t truths and noise (2 degrees of freedom). Arguments as in `synthetic`.
    """
    rng = np.random.default_rng((seed, n_rows, p, m, 1))
    design = rng.normal(size=(m, p))
    for j in range(1, p):
        design[:, j] = 0.95 * design[:, j - 1] + np.sqrt(1.0 - 0.95**2) * design[:, j]
    design = design + rng.normal(size=(m, 3)) @ rng.normal(size=(3, p))
    design = design * 10.0 ** rng.uniform(-1.0, 1.0, p)
    truth = rng.standard_t(2, size=(n_rows, p)) * (rng.random((n_rows, p)) < 0.2)
    targets = design @ _around_the_ball(rng, truth).T
    targets = targets + 0.1 * np.median(np.abs(targets), axis=0) * rng.standard_t(2, size=targets.shape)
    return _made_up(f"held-out-{n_rows}x{p}-m{m}-seed{seed}-{objective}", design, targets, objective, kappa)


def sparse(m: int, d: int, rows: int, nonzeros: int, alpha: float) -> Problem:
    """Plain lassos of `benchmarks.gaussian.sparse_rows` with λ = ½."""
    design, targets = sparse_rows(m, d, rows, nonzeros)
    facts = {"objective": "l1", "loss_weight": 0.5, "alpha": alpha, "mu": None, "kappa": None, "n": d, "inner": 0}
    return stated(design, targets, name=f"sparse-{rows}x{d}-m{m}-l1-free", **facts)


def _around_the_ball(rng: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    """Truths (R, p) scaled to norms of 0.3 to 3 times κ on the coordinates of the ball."""
    seen = max(truth.shape[1] // _BALL_SHARE, 1)
    norm = np.abs(truth[:, :seen]).sum(axis=1, keepdims=True)
    wanted = KAPPA * 10.0 ** rng.uniform(np.log10(0.3), np.log10(3.0), norm.shape)
    return truth * np.where(norm > 0.0, wanted / np.where(norm > 0.0, norm, 1.0), 1.0)


def _made_up(name: str, design: np.ndarray, targets: np.ndarray, objective: str, kappa: float | None) -> Problem:
    penalty, share = OBJECTIVES[choice("objective", objective, OBJECTIVES)]
    rows, width = targets.shape[1], design.shape[1]
    n, inner = max(width // _BALL_SHARE, 1), rows - max(rows // _FREE_SHARE, 1)
    # w = 0 is optimal for a row without a ball as soon as the slope of h at 0 is 2λ‖Φᵀt‖∞.
    zero = float(np.median(np.abs(design.T @ targets).max(axis=0))) * 2.0 * LOSS_WEIGHT
    alpha = 0.01 * zero if share is None else 0.01 * zero / (2.0 * np.sqrt(share))
    mu = None if share is None else share * alpha
    return stated(
        design,
        targets,
        name=name + _ball_suffix(kappa),
        objective=penalty,
        loss_weight=LOSS_WEIGHT,
        alpha=alpha,
        mu=mu,
        kappa=kappa,
        n=n,
        inner=inner,
    )


def _ball_suffix(kappa: float | None) -> str:
    return "-free" if kappa is None else "" if kappa == KAPPA else f"-kappa{kappa:g}"


# --- By name -----------------------------------------------------------------------------------------------------


def _named() -> dict[str, Callable[[], Problem]]:
    makers: dict[str, Callable[[], Problem]] = {}
    for m in SIZES:
        for objective in OBJECTIVES:
            makers[f"standard-m{m}-{objective}"] = functools.partial(standard, m, objective)
            makers[f"standard-m{m}-{objective}-lambda0.01-alpha0.01"] = functools.partial(
                standard, m, objective, 0.01, 0.01
            )
        makers[f"standard-m{m}-l1-free"] = functools.partial(standard, m, kappa=None)
        for objective in OBJECTIVES:
            name = f"stand-in-m{m}-784-64-32-16-10-{objective}"
            makers[name] = functools.partial(stand_in, m, objective)
    for objective in OBJECTIVES:
        makers[f"digits-m1000-{objective}"] = functools.partial(digits, 1000, objective)
    for shape, condition, sparsity in (
        ((60, 80, 50), 100.0, 0.9),
        ((300, 300, 150), 100.0, 0.9),
        ((1000, 300, 1000), 1e4, 0.8),
        ((4000, 400, 300), 1000.0, 0.9),
        ((8192, 9216, 4096), 100.0, 0.99),  # for accelerators
    ):
        for objective in OBJECTIVES:
            name = f"synthetic-{shape[0]}x{shape[1]}-m{shape[2]}-condition{condition:g}-sparsity{sparsity:g}-seed0"
            makers[f"{name}-{objective}"] = functools.partial(synthetic, *shape, condition, sparsity, 0, objective)
    for shape in ((100, 300, 200), (100, 300, 2000), (2000, 300, 500)):
        for objective in OBJECTIVES:
            name = f"held-out-{shape[0]}x{shape[1]}-m{shape[2]}-seed0-{objective}"
            makers[name] = functools.partial(held_out, *shape, 0, objective)
    for each in SPARSE:
        m, d, rows, *_ = each
        makers[f"sparse-{rows}x{d}-m{m}-l1-free"] = functools.partial(sparse, *each)
    return makers


_MAKERS = _named()
NAMES = tuple(_MAKERS)


def problem(name: str) -> Problem:
    """The problem of that name; `NAMES` has them all.

    Raises:
      ValueError: for a name that is none.
      FileNotFoundError: if its data set is not on this machine.
    """
    if name not in _MAKERS:
        raise ValueError(f"name must be one of benchmarks.problems.NAMES ({len(NAMES)} names), got {name!r}.")
    made = _MAKERS[name]()
    if made.name != name:
        raise RuntimeError(f"the maker of {name!r} made {made.name!r}: its name is written wrongly.")
    return made
