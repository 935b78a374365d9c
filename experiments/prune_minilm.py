"""The 36 matrices of MiniLM-L6 by `prune` and `prune_layer`, beside their peers: `python -m experiments prune-minilm`.

Alone, each matrix by what it sees in the trained encoder, the same for every method: its error on tokens held out. In
turn, each by what the pruned ones before it make of the texts, as `prune` does and as the peers are published: how
near the embeddings of the pruned encoder are to the trained one's, and how well 20 Newsgroups are classified by them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from benchmarks.pruning_peers import PEERS
from benchmarks.records import Record, peak_mebibytes
from experiments import minilm
from experiments.experiment import Experiment, Job, Settings, certified_layers, one_after_another
from experiments.minilm_matrices import (
    ALONE,
    CORRECTIONS,
    DENSE,
    EVALUATED,
    HOW,
    IN_TURN,
    LEVELS,
    OURS,
    Answer,
    InTurn,
    Matrix,
    Name,
    Texts,
    Tokens,
    matrices,
    pruned_in_turn,
)
from experiments.minilm_report import pictures, section
from simjax.datasets import load_newsgroups
from simjax.rows.status import Status

NAME = "prune-minilm"
EVERY_SEED = ("0.7", "0.5")  # levels that are run with every seed; the others with the first
IN_TURN_LEVELS = ("0.7", "0.5", "0.8")  # of which the accuracy is asked

# Messages are without headers, footers and quotes, and cut at so many tokens: to calibrate on and to hold out, training
# messages in the order of the seed; always the same, training messages to train a classifier on the trained encoder's
# embeddings, test messages to classify and to compare embeddings on.
MAX_TOKENS = 64
CALIBRATION, HELD_OUT = 16_000, 14_000  # tokens
TRAIN_TEXTS = 2000  # of the training messages; of the test messages all
GUIDE_TEXTS = 256  # of the training messages, on which `evaluate` compares embeddings; it needs no labels
INVERSE_PENALTY, FOLDS = 10.0, 5  # of the logistic regression; of the test messages, for one that is trained anew
KEYS = ("how", "zeros", "method", "refit", "seed")


# --- What is run -------------------------------------------------------------------------------------------------


Key = tuple[str, str, str, int]  # how, zeros, method, seed


def order(settings: Settings) -> list[Key]:
    """All jobs, the most important first: a run that is stopped has made these."""
    best, rest = (OURS, "ALPS", "SparseGPT"), ("Wanda", "magnitude", "SparseSwaps")
    first, *others = settings.seeds

    def each(how: str, levels: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> list[Key]:
        return [(how, zeros, method, seed) for seed in seeds for zeros in levels for method in methods]

    if settings.quick:
        some = [key for how in HOW for key in each(how, ("0.5", "2:4"), (OURS, "SparseGPT"), [first])]
        return [*some, (IN_TURN, "0.5", EVALUATED, first)]
    return [
        *each(IN_TURN, IN_TURN_LEVELS, best, [first]),
        *each(IN_TURN, ["0.7"], tuple(CORRECTIONS), [first]),
        *each(ALONE, ("0.5", "0.7", "0.9", "2:4", "0.8", "0.6"), best, [first]),
        *each(IN_TURN, IN_TURN_LEVELS, rest, [first]),
        *each(IN_TURN, ("0.7", "0.8"), [EVALUATED], [first]),
        *each(ALONE, EVERY_SEED, best, others),
        *each(IN_TURN, EVERY_SEED, best, others),
        *each(ALONE, LEVELS, rest, [first]),
        *each(ALONE, EVERY_SEED, rest, others),
        *each(IN_TURN, EVERY_SEED, rest, others),
    ]


def jobs(settings: Settings) -> Iterator[Job]:
    """One for each way, share of zeros, method and seed, and before them one for the trained encoder."""
    prepared = Prepared(settings.quick)
    yield Job(({"how": IN_TURN, "zeros": "0", "method": DENSE, "refit": False, "seed": 0},), prepared.dense)
    for how, zeros, method, seed in order(settings):
        keys = tuple(
            {"how": how, "zeros": zeros, "method": method, "refit": refit, "seed": seed} for refit in refits(method)
        )
        make = prepared.in_turn if how == IN_TURN else prepared.alone
        yield Job(keys, functools.partial(make, zeros, method, seed))


def refits(method: str) -> tuple[bool, ...]:
    """Peers are taken as they are and refitted, ours always is."""
    return (False, True) if method in PEERS else (True,)


class Prepared:
    """What jobs share: the encoder, the matrices with what they see, the trained encoder's embeddings; each once."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.jobs_done = 0
        self._matrices: tuple[int, dict[Name, Matrix]] | None = None

    @functools.cached_property
    def source(self) -> Source:
        return random_source() if self.quick else packaged_source()

    @functools.cached_property
    def task(self) -> Task:
        return self.source.task()

    def matrices(self, seed: int) -> dict[Name, Matrix]:
        """Those of a seed; only the last one's are kept."""
        if self._matrices is None or self._matrices[0] != seed:
            self._matrices = None
            source = self.source
            found = matrices(source.encoder, source.numbered(seed), source.calibration, source.held_out)
            self._matrices = seed, found
        return self._matrices[1]

    def dense(self) -> Iterator[Record]:
        """The trained encoder's record."""
        keys = {"how": IN_TURN, "zeros": "0", "method": DENSE, "refit": False, "seed": 0}
        nothing = {"rows": 0, "rows_certified": 0, "worst_relative_gap": 0.0, "seconds": 0.0, "mebibytes": None}
        yield {**keys, **nothing, **self.task.judged(None), **self.source.sizes()}

    def in_turn(self, zeros: str, method: str, seed: int) -> Iterator[Record]:
        """The encoder pruned map by map, and judged; a peer as it is, and refitted."""
        source = self.source
        batches = list(taken(source.numbered(seed), source.calibration))
        for refit in refits(method):
            load = os.getloadavg()[0]
            evaluate = self.task.nearness if method == EVALUATED else None
            found = pruned_in_turn(source.encoder, batches, method, zeros, refit=refit, evaluate=evaluate)
            # The peak of the process is that of this method only if nothing else has been done in it.
            peak = peak_mebibytes() if self.jobs_done == 0 else None
            self.jobs_done += 1
            yield {
                "how": IN_TURN,
                "zeros": zeros,
                "method": method,
                "refit": refit,
                "seed": seed,
                **certified_layers(found.layers),
                "seconds": found.seconds,
                "mebibytes": peak,
                "load_before": round(load, 1),
                **ways(found),
                **self.task.judged(found.encoder),
                **source.sizes(),
            }

    def alone(self, zeros: str, method: str, seed: int) -> Iterator[Record]:
        """Every matrix by what it sees in the trained encoder; a peer as it is, and refitted."""
        found = self.matrices(seed)
        refitted = {refit: Sums() for refit in refits(method)}
        for matrix in found.values():
            for refit, answer in zip(refitted, matrix.pruned(method, zeros), strict=True):
                refitted[refit].add(matrix, answer)
        self.jobs_done += 1
        for refit, sums in refitted.items():
            yield {
                "how": ALONE,
                "zeros": zeros,
                "method": method,
                "refit": refit,
                "seed": seed,
                "names": [f"{number}.{name}" for number, name in found],
                **sums.record(),
                **self.source.sizes(),
            }


def ways(found: InTurn) -> Record:
    """How zeros were shared out and what `evaluate` gave for each way; nothing where it was not asked."""
    said = found.evaluation
    if said is None:
        return {}
    return {
        "ways": {way.name: way.metric for way in said.candidates},
        "chosen": said.chosen,
        "layer_zeros": {layer.name: layer.sparsity for layer in found.layers},
    }


class Sums:
    """What is kept of all matrices by one method: their weights are not."""

    def __init__(self) -> None:
        self.errors: list[float] = []
        self.seconds: list[float] = []
        self.zeros = self.weights = self.rows = self.certified = 0
        self.gap = 0.0

    def add(self, matrix: Matrix, answer: Answer) -> None:
        """One more matrix."""
        self.errors.append(matrix.error(answer.weight, answer.bias))
        self.seconds.append(answer.seconds)
        self.zeros += int(np.count_nonzero(answer.weight == 0.0))
        self.weights += answer.weight.size
        if answer.refit is not None:
            self.rows += answer.refit.status.size
            self.certified += int(np.count_nonzero(answer.refit.status == Status.SOLVED))
            self.gap = max(self.gap, float(answer.refit.certificate.relative_gap.max()))

    def record(self) -> Record:
        """All of it."""
        return {
            "reached": self.zeros / self.weights,
            "errors": self.errors,
            "matrix_seconds": self.seconds,
            "seconds": sum(self.seconds),
            "rows": self.rows,
            "rows_certified": self.certified,
            "worst_relative_gap": self.gap,
        }


def taken(batches: Iterator[Tokens], tokens: int) -> Iterator[Tokens]:
    """As many batches as have at least so many tokens."""
    done = 0
    for batch in batches:
        yield batch
        done += batch.size
        if done >= tokens:
            return


# --- Texts and the encoder ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Source:
    """An encoder and texts for it.

    Attributes:
      encoder: a `minilm.SentenceEncoder`.
      numbered: seed → batches of token numbers to calibrate on and then to hold out.
      labelled: token numbers and labels of the texts to train and to test a classifier on.
      calibration, held_out: tokens.
      max_tokens: at which texts to classify are cut.
    """

    encoder: Any
    numbered: Callable[[int], Iterator[Tokens]]
    labelled: tuple[list[list[int]], np.ndarray, list[list[int]], np.ndarray]
    calibration: int
    held_out: int
    max_tokens: int

    def sizes(self) -> Record:
        """What every record says of how it was made."""
        return {
            "calibration_tokens": self.calibration,
            "held_out_tokens": self.held_out,
            "train_texts": len(self.labelled[0]),
            "test_texts": len(self.labelled[2]),
            "guide_texts": GUIDE_TEXTS,
            "max_tokens": self.max_tokens,
            "load": round(os.getloadavg()[0], 1),
            "threads": os.environ.get("OPENBLAS_NUM_THREADS", ""),
        }

    def task(self) -> Task:
        return Task.make(self.encoder, *self.labelled)


def packaged_source() -> Source:
    """MiniLM-L6 and 20 Newsgroups.

    Raises:
      ModuleNotFoundError: saying what to install, without the packages that hold the encoder and read its texts.
      FileNotFoundError, ValueError: as `load_newsgroups`.
    """
    encoder, tokenizer = minilm.load()
    plain = load_newsgroups(remove=("headers", "footers", "quotes"))

    def numbered(seed: int) -> Iterator[Tokens]:
        chosen = np.random.default_rng(seed).permutation(len(plain.train_texts))
        return minilm.whole_batches(tokenizer, [plain.train_texts[k] for k in chosen], MAX_TOKENS)

    labelled: list[Any] = []
    for texts_, labels, count in (
        (plain.train_texts, plain.train_labels, TRAIN_TEXTS),
        (plain.test_texts, plain.test_labels, None),
    ):
        some = [k for k in np.random.default_rng(0).permutation(len(texts_)) if texts_[k].strip()][:count]
        numbers = [tokenizer.encode(texts_[k]).ids for k in some]
        labelled += [[minilm.cut(ids, MAX_TOKENS) for ids in numbers], labels[some]]
    train, train_labels, test, test_labels = labelled
    return Source(encoder, numbered, (train, train_labels, test, test_labels), CALIBRATION, HELD_OUT, MAX_TOKENS)


def random_source() -> Source:
    """A small encoder as it is initialised, and texts of random tokens from a range for each class: proves nothing."""
    sizes = minilm.Sizes(vocabulary=40, positions=16, width=8, layers=1, heads=2, hidden=8)

    def texts(rng: np.random.Generator, count: int) -> tuple[list[list[int]], np.ndarray]:
        labels = np.arange(count) % 4
        return [rng.integers(10 * k, 10 * k + 10, rng.integers(3, 17)).tolist() for k in labels], labels

    def numbered(seed: int) -> Iterator[Tokens]:
        rng = np.random.default_rng(seed)
        for _ in range(8):
            yield rng.integers(0, sizes.vocabulary, (8, 16))

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
      guide: some of the training texts.
      guide_dense: the trained encoder's embeddings of them.
    """

    test: Texts
    labels: np.ndarray
    dense: np.ndarray
    classifier: Any
    guide: Texts
    guide_dense: np.ndarray

    @classmethod
    def make(
        cls, encoder: Any, train: list[list[int]], train_labels: np.ndarray, test: list[list[int]], labels: np.ndarray
    ) -> Task:
        texts, trained = Texts(test), Texts(train).embedded(encoder)
        classifier, guide = regression().fit(trained, train_labels), slice(GUIDE_TEXTS)
        return cls(texts, labels, texts.embedded(encoder), classifier, Texts(train[guide]), trained[guide])

    def nearness(self, encoder: Any) -> float:
        """What `prune` is given as `evaluate`: the mean cosine between embeddings of the guide and the trained ones."""
        return float(np.mean(np.sum(self.guide.embedded(encoder) * self.guide_dense, axis=1)))

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


EXPERIMENT = Experiment(
    name=NAME,
    title="The matrices of MiniLM-L6, pruned",
    keys=KEYS,
    run=one_after_another(jobs),
    section=section,
    pictures=pictures,
    jobs=jobs,
)
