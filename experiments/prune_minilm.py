"""The 36 matrices of MiniLM-L6 by `prune_layer`, beside its peers: `python -m experiments prune-minilm`.

Every method gets the statistics of what the matrices see in the trained encoder. Measured are the errors of all
matrices on tokens held out, and what the encoder that is put together from exactly these weights does: how near its
embeddings are to the trained encoder's, and how well messages of 20 Newsgroups are classified by them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from benchmarks.pruning_peers import PEERS
from benchmarks.records import Record, peak_mebibytes, places, table
from experiments import minilm
from experiments.experiment import Experiment, Job, Settings, all_certified, grouped, one_after_another, spread
from experiments.minilm_matrices import OURS, Batch, Matrix, Name, Texts, matrices, with_weights
from simjax.datasets import load_newsgroups
from simjax.rows.status import Status

NAME = "prune-minilm"
DENSE = "dense"
METHODS = (OURS, *reversed(PEERS))
LEVELS = ("0.5", "0.6", "0.7", "0.8", "0.9", "2:4")
EVERY_SEED = ("0.7", "0.5")  # levels that are run with every seed; the others with the first

# Of messages, chosen by the seed. The numbers of tokens are those of one pass of the encoder.
CALIBRATION, HELD_OUT = 16_000, 14_000
# Always the same, without headers, footers and quotes: training messages to train a classifier on the trained encoder's
# embeddings, test messages to classify and to compare embeddings on.
TRAIN_TEXTS, TEST_TEXTS, MAX_TOKENS = 2000, 2000, 64
INVERSE_PENALTY, FOLDS = 10.0, 5  # of the logistic regression; of the test messages, for one that is trained anew
KEYS = ("zeros", "method", "refit", "seed")


# --- What is run -------------------------------------------------------------------------------------------------


def order(settings: Settings) -> list[tuple[str, str, int]]:
    """(zeros, method, seed) of all jobs, the most important first: a run that is stopped has made these."""
    if settings.quick:
        return [(zeros, method, settings.seeds[0]) for zeros in ("0.5", "2:4") for method in (OURS, "SparseGPT")]
    first, *others = settings.seeds
    best = (OURS, "ALPS", "SparseGPT")
    rest = [method for method in METHODS if method not in best]
    return [
        *((zeros, method, first) for zeros in ("0.7", "0.5", "0.9", "2:4") for method in best),
        *((zeros, method, first) for zeros in ("0.8", "0.6") for method in best),
        *((zeros, method, first) for method in reversed(rest) for zeros in ("0.7", "0.8", "0.5", "0.9", "0.6", "2:4")),
        *((zeros, method, seed) for seed in others for zeros in EVERY_SEED for method in (*best, *reversed(rest))),
    ]


def jobs(settings: Settings) -> Iterator[Job]:
    """One for each share of zeros, method and seed, and before them one for the trained encoder."""
    prepared = Prepared(settings.quick)
    yield Job(({"zeros": "0", "method": DENSE, "refit": False, "seed": 0},), lambda: iter([prepared.dense()]))
    for zeros, method, seed in order(settings):
        refits = (True,) if method == OURS else (False, True)
        keys = tuple({"zeros": zeros, "method": method, "refit": refit, "seed": seed} for refit in refits)
        yield Job(keys, functools.partial(prepared.measured, zeros, method, seed))


class Prepared:
    """What jobs share: the encoder, the matrices with what they see, the trained encoder's embeddings; each once."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.jobs_done = 0
        self._matrices: tuple[int, dict[Name, Matrix]] | None = None

    @functools.cached_property
    def source(self) -> Source:
        return random_source() if self.quick else packaged_source()

    def matrices(self, seed: int) -> dict[Name, Matrix]:
        """Those of a seed; only the last one's are kept."""
        if self._matrices is None or self._matrices[0] != seed:
            self._matrices = None
            source = self.source
            found = matrices(source.encoder, source.numbered(seed), source.calibration, source.held_out)
            self._matrices = seed, found
        return self._matrices[1]

    @functools.cached_property
    def task(self) -> Task:
        return self.source.task()

    def common(self) -> Record:
        """What every record says of how it was made."""
        source = self.source
        return {
            "calibration_tokens": source.calibration,
            "held_out_tokens": source.held_out,
            "train_texts": source.train_texts,
            "test_texts": source.test_texts,
            "max_tokens": source.max_tokens,
            "load": round(os.getloadavg()[0], 1),
            "threads": os.environ.get("OPENBLAS_NUM_THREADS", ""),
        }

    def dense(self) -> Record:
        """The trained encoder's record."""
        facts = {"rows": 0, "rows_certified": 0, "worst_relative_gap": 0.0, "reached": 0.0, "errors": [], "seconds": []}
        keys = {"zeros": "0", "method": DENSE, "refit": False, "seed": 0}
        return {**keys, **facts, **self.task.judged(None), "prepared_seconds": 0.0, "mebibytes": None, **self.common()}

    def measured(self, zeros: str, method: str, seed: int) -> Iterator[Record]:
        """A record of the peer as it is and one of it refitted, or one of ours."""
        began = time.perf_counter()
        found = self.matrices(seed)
        prepared = time.perf_counter() - began
        answers = [list(matrix.pruned(method, zeros)) for matrix in found.values()]
        # The peak of the process is that of this method only if nothing else has been done in it.
        peak = peak_mebibytes() if self.jobs_done == 0 else None
        self.jobs_done += 1
        for of_all in zip(*answers, strict=True):
            refits = [answer.refit for answer in of_all if answer.refit is not None]
            encoder = with_weights(
                self.source.encoder, {name: (one.weight, one.bias) for name, one in zip(found, of_all)}
            )
            zero = sum(np.count_nonzero(one.weight == 0.0) for one in of_all)
            yield {
                "zeros": zeros,
                "method": method,
                "refit": bool(refits),
                "seed": seed,
                "names": [f"{number}.{name}" for number, name in found],
                "reached": float(zero / sum(one.weight.size for one in of_all)),
                "errors": [matrix.error(one.weight, one.bias) for matrix, one in zip(found.values(), of_all)],
                "seconds": [one.seconds for one in of_all],
                "rows": sum(refit.status.size for refit in refits),
                "rows_certified": sum(int(np.count_nonzero(refit.status == Status.SOLVED)) for refit in refits),
                "worst_relative_gap": max((float(r.certificate.relative_gap.max()) for r in refits), default=0.0),
                "prepared_seconds": prepared,
                "mebibytes": peak,
                **self.task.judged(encoder),
                **self.common(),
            }


# --- Texts and the encoder ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Source:
    """An encoder and texts for it.

    Attributes:
      encoder: a `minilm.SentenceEncoder`.
      numbered: seed → batches (tokens, mask) to calibrate on and then to hold out.
      labelled: token numbers and labels of the texts to train and to test a classifier on.
      calibration, held_out: tokens.
      max_tokens: at which texts to classify are cut.
    """

    encoder: Any
    numbered: Callable[[int], Iterator[Batch]]
    labelled: tuple[list[list[int]], np.ndarray, list[list[int]], np.ndarray]
    calibration: int
    held_out: int
    max_tokens: int

    @property
    def train_texts(self) -> int:
        return len(self.labelled[0])

    @property
    def test_texts(self) -> int:
        return len(self.labelled[2])

    def task(self) -> Task:
        return Task.make(self.encoder, *self.labelled)


def packaged_source() -> Source:
    """MiniLM-L6 and 20 Newsgroups.

    Raises:
      ModuleNotFoundError: saying what to install, without the packages that hold the encoder and read its texts.
      FileNotFoundError, ValueError: as `load_newsgroups`.
    """
    encoder, tokenizer = minilm.load()
    texts = load_newsgroups().train_texts

    def numbered(seed: int) -> Iterator[Batch]:
        tokenizer.enable_truncation(minilm.MAX_TOKENS)
        tokenizer.enable_padding()
        chosen = np.random.default_rng(seed).permutation(len(texts))
        return minilm.token_batches(tokenizer, [texts[k] for k in chosen])

    plain = load_newsgroups(remove=("headers", "footers", "quotes"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    labelled: list[Any] = []
    for texts_, labels, count in (
        (plain.train_texts, plain.train_labels, TRAIN_TEXTS),
        (plain.test_texts, plain.test_labels, TEST_TEXTS),
    ):
        some = [k for k in np.random.default_rng(0).permutation(len(texts_)) if texts_[k].strip()][:count]
        labelled += [[found.ids for found in tokenizer.encode_batch([texts_[k] for k in some])], labels[some]]
    train, train_labels, test, test_labels = labelled
    return Source(encoder, numbered, (train, train_labels, test, test_labels), CALIBRATION, HELD_OUT, MAX_TOKENS)


def random_source() -> Source:
    """A small encoder as it is initialised, and texts of random tokens from a range for each class: proves nothing."""
    sizes = minilm.Sizes(vocabulary=40, positions=16, width=8, layers=1, heads=2, hidden=8)

    def texts(rng: np.random.Generator, count: int) -> tuple[list[list[int]], np.ndarray]:
        labels = np.arange(count) % 4
        return [rng.integers(10 * k, 10 * k + 10, rng.integers(3, 17)).tolist() for k in labels], labels

    def numbered(seed: int) -> Iterator[Batch]:
        rng = np.random.default_rng(seed)
        for _ in range(8):
            yield rng.integers(0, sizes.vocabulary, (8, 16)), np.arange(16) < rng.integers(3, 17, (8, 1))

    rng = np.random.default_rng(0)
    return Source(
        minilm.SentenceEncoder(sizes, nnx.Rngs(0)), numbered, (*texts(rng, 40), *texts(rng, 20)), 200, 100, 16
    )


@dataclasses.dataclass(frozen=True)
class Task:
    """Messages to classify by their embeddings.

    Attributes:
      test: the test texts, which are embedded by every encoder.
      labels: theirs, (texts,).
      dense: the trained encoder's embeddings of them, (texts, width).
      classifier: logistic regression on the trained encoder's embeddings of the training texts.
    """

    test: Texts
    labels: np.ndarray
    dense: np.ndarray
    classifier: Any

    @classmethod
    def make(
        cls, encoder: Any, train: list[list[int]], train_labels: np.ndarray, test: list[list[int]], labels: np.ndarray
    ) -> Task:
        texts = Texts(test)
        classifier = regression().fit(Texts(train).embedded(encoder), train_labels)
        return cls(texts, labels, texts.embedded(encoder), classifier)

    def judged(self, encoder: Any | None) -> Record:
        """How near an encoder's embeddings are to the trained one's, and how well they are classified.

        Args:
          encoder: None for the trained one itself.
        """
        embedded = self.dense if encoder is None else self.test.embedded(encoder)
        return {
            "cosine": float(np.mean(np.sum(embedded * self.dense, axis=1))),  # both have norm one
            "accuracy": float(self.classifier.score(embedded, self.labels)),
            "accuracy_retrained": float(np.mean(cross_val_score(regression(), embedded, self.labels, cv=FOLDS))),
        }


def regression() -> LogisticRegression:
    """The classifier, not yet trained."""
    return LogisticRegression(C=INVERSE_PENALTY, max_iter=1000)


# --- What is reported --------------------------------------------------------------------------------------------

TITLES = {OURS: "simjax", DENSE: "the trained encoder"}
COLOURS = {
    OURS: "tab:blue",
    "ALPS": "tab:orange",
    "SparseGPT": "tab:green",
    "SparseSwaps": "tab:purple",
    "Wanda": "tab:brown",
    "magnitude": "tab:gray",
}
Cell = Mapping[tuple[str, str, bool], list[Record]]  # zeros, method, refit → records of the seeds


def cells(records: Sequence[Record]) -> dict[tuple[str, str, bool], list[Record]]:
    return {key: mine for key, mine in grouped(records, "zeros", "method", "refit").items()}


def shown(zeros: str) -> str:
    """A level for a person."""
    return zeros if ":" in zeros else f"{100 * float(zeros):.0f} %"


def levels(records: Sequence[Record]) -> list[str]:
    """Those there are, in the order of `LEVELS`."""
    there = {record["zeros"] for record in records}
    return [zeros for zeros in LEVELS if zeros in there]


def mean_error(record: Record) -> float:
    """Over all matrices, on tokens held out."""
    return float(np.mean(record["errors"]))


def section(records: Sequence[Record]) -> str:
    """The tables, what was aimed at, the certificates, and where made."""
    by = cells(records)
    one = records[0]
    lines = [
        f"Calibrated on {one['calibration_tokens']:,} tokens, errors on {one['held_out_tokens']:,} others; embeddings "
        f"of {one['test_texts']:,} test messages, a classifier trained on {one['train_texts']:,}, both cut at "
        f"{one['max_tokens']} tokens. Where there are several seeds: mean ± standard deviation over them.",
        "",
        "## Relative error",
        "",
        "Mean over the matrices, on tokens held out; as it is → with our refit on its support.",
        "",
        *error_table(by, levels(records)),
        "",
        "## The encoder put together",
        "",
        *accuracy_table(by, levels(records)),
        "",
        "## Matrix by matrix",
        "",
        *duel_table(by, levels(records)),
        "",
        "## Which matrices cost what",
        "",
        "Relative error of ours, mean over the layers and seeds; the seconds at 70 %, all layers together.",
        "",
        *kind_table(by, levels(records)),
        "",
        all_certified(records),
        "",
        *places(records),
    ]
    return "\n".join(lines)


def error_table(by: Cell, shares: Sequence[str]) -> list[str]:
    """Methods in columns, levels in rows."""
    rows = []
    for zeros in shares:
        row = [shown(zeros)]
        for method in METHODS:
            found = [by.get((zeros, method, refit), []) for refit in (False, True)]
            texts = [spread([mean_error(record) for record in mine], ".3g") for mine in found if mine]
            row.append(" → ".join(texts) or "–")
        rows.append([*row, seeds_of(by, zeros)])
    return table(["zeros", *(TITLES.get(method, method) for method in METHODS), "seeds"], rows)


def seeds_of(by: Cell, zeros: str) -> str:
    """How many seeds each number of a level is a mean of: one number, or the methods with more than the fewest."""
    counts = {method: len(by.get((zeros, method, True), [])) for method in METHODS}
    counts = {method: count for method, count in counts.items() if count}
    least = min(counts.values())
    more = [f"{count} {TITLES.get(method, method)}" for method, count in counts.items() if count > least]
    return ", ".join([str(least), *more])


def accuracy_table(by: Cell, shares: Sequence[str]) -> list[str]:
    """A line for each level, method and whether refitted."""
    dense = by.get(("0", DENSE, False), [])
    rows = []
    for (zeros, method, refit), mine in [
        *(((zeros, DENSE, False), dense) for zeros in ("0",) if dense),
        *((key, by[key]) for key in itertools.product(shares, METHODS, (False, True)) if key in by),
    ]:
        title = TITLES.get(method, method) + (" + refit" if refit and method != OURS else "")
        numbers = [spread([r[key] for r in mine], ".2f", 100.0) for key in ("accuracy", "accuracy_retrained")]
        lost = spread([r["accuracy"] - dense[0]["accuracy"] for r in mine], "+.2f", 100.0) if dense else "–"
        cosine = spread([r["cosine"] for r in mine], ".4f")
        rows.append([shown(zeros), title, cosine, numbers[0], lost, numbers[1], str(len(mine))])
    heads = [
        "zeros",
        "method",
        "cosine",
        "accuracy (%)",
        "against trained (points)",
        "trained anew (%)",
        "seeds",
    ]
    return table(heads, rows)


def duel_table(by: Cell, shares: Sequence[str]) -> list[str]:
    """On how many matrices ours is at or below each peer, certified rows, time and memory; first seed."""
    rivals = [(method, refit) for method in ("ALPS", "SparseGPT") for refit in (False, True)]
    rows = []
    for zeros in shares:
        ours = by.get((zeros, OURS, True), [])
        if not ours:
            continue
        row = [shown(zeros)]
        for method, refit in rivals:
            pairs = [
                (mine, peer)
                for mine in ours
                for peer in by.get((zeros, method, refit), [])
                if mine["seed"] == peer["seed"]
            ]
            won = [sum(a <= b for a, b in zip(mine["errors"], peer["errors"], strict=True)) for mine, peer in pairs]
            row.append(f"{spread(won, '.3g')} of {len(ours[0]['errors'])}" if won else "–")
        solved, rows_there = (sum(record[key] for record in ours) for key in ("rows_certified", "rows"))
        memory = [record["mebibytes"] for record in ours if record["mebibytes"]]
        seconds = [sum(record["seconds"]) + record["prepared_seconds"] for record in ours if record["mebibytes"]]
        loads = [record["load"] for record in ours if record["mebibytes"]]
        rows.append(
            [
                *row,
                f"{solved:,} of {rows_there:,}",
                spread([sum(record["seconds"]) for record in ours], ".0f"),
                f"{seconds[0]:.0f}" if seconds else "–",
                f"{memory[0]:,.0f}" if memory else "–",
                f"{loads[0]:g}" if loads else spread([record["load"] for record in ours], ".1f"),
            ]
        )
    names = [f"≤ {method}{' + refit' if refit else ''}" for method, refit in rivals]
    return table(["zeros", *names, "rows certified", "s", "with calibration, s", "MiB", "load"], rows)


def kind_table(by: Cell, shares: Sequence[str]) -> list[str]:
    """Error of ours by kind of matrix."""
    rows = []
    for kind in kinds(by):
        row = [kind]
        for zeros in shares:
            row.append(
                spread([float(np.mean(of_kind(r, kind, "errors"))) for r in by.get((zeros, OURS, True), [])], ".3g")
            )
        row.append(spread([sum(of_kind(r, kind, "seconds")) for r in by.get(("0.7", OURS, True), [])], ".0f"))
        rows.append(row)
    return table(["matrix", *map(shown, shares), "s"], rows)


def kinds(by: Cell) -> list[str]:
    """Those of the matrices of ours that there are."""
    there = {name.split(".")[1] for (_, method, _), mine in by.items() if method == OURS for name in mine[0]["names"]}
    return [kind for kind in minilm.LINEAR if kind in there]


def of_kind(record: Record, kind: str, entry: str) -> list[float]:
    """The numbers of the matrices of one kind, layer by layer."""
    return [value for name, value in zip(record["names"], record[entry], strict=True) if name.endswith(f".{kind}")]


def pictures(records: Sequence[Record]) -> Mapping[str, Figure]:
    """Error and accuracy against zeros, and the error of each matrix."""
    by = cells(records)
    figure = Figure(figsize=(12.0, 4.6), layout="constrained")
    error, accuracy, matrices_ = figure.subplots(1, 3)
    shares = [zeros for zeros in levels(records) if ":" not in zeros]
    for method, refit in itertools.product(METHODS, (True, False)):
        drawn(error, by, method, refit, shares, mean_error)
        drawn(accuracy, by, method, refit, shares, lambda record: 100 * record["accuracy"])
    for record in by.get(("0", DENSE, False), []):
        accuracy.axhline(100 * record["accuracy"], color="black", linestyle=":", label="the trained encoder")
    error.set(xlabel="zeros (%)", ylabel="relative error, mean over the matrices", yscale="log")
    accuracy.set(xlabel="zeros (%)", ylabel="accuracy of the trained encoder's classifier (%)")
    for zeros, line in zip(("0.5", "0.7", "0.9"), (":", "--", "-")):
        ours = by.get((zeros, OURS, True), [])
        for kind, colour in zip(
            kinds(by), ("tab:blue", "tab:cyan", "tab:green", "tab:orange", "tab:red", "tab:purple")
        ):
            if ours:
                values = np.mean([of_kind(record, kind, "errors") for record in ours], axis=0)
                label = kind if zeros == "0.9" or len(shares) == 1 else None
                matrices_.plot(np.arange(1, len(values) + 1), values, line, color=colour, marker=".", label=label)
    matrices_.set(xlabel="layer", ylabel="relative error, ours at 50 % (···), 70 % (– –), 90 % (––)", yscale="log")
    for axis in (error, accuracy, matrices_):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return {NAME: figure}


def drawn(
    axes: Axes, by: Cell, method: str, refit: bool, shares: Sequence[str], value: Callable[[Record], float]
) -> None:
    """A method's line; dashed as it is, full with a refit."""
    points = [(100 * float(zeros), by[zeros, method, refit]) for zeros in shares if (zeros, method, refit) in by]
    if points:
        means = [np.mean([value(record) for record in mine]) for _, mine in points]
        label = TITLES.get(method, method) + (" + refit" if refit and method != OURS else "")
        style, width = ("-" if refit else "--"), (2.2 if method == OURS else 1.2)
        axes.plot(
            [x for x, _ in points],
            means,
            style,
            color=COLOURS[method],
            linewidth=width,
            marker="o",
            markersize=3,
            label=label,
        )


EXPERIMENT = Experiment(
    name=NAME,
    title="The matrices of MiniLM-L6, pruned",
    keys=KEYS,
    run=one_after_another(jobs),
    section=section,
    pictures=pictures,
    jobs=jobs,
)
