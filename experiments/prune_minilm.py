"""The 36 matrices of MiniLM-L6 by `prune_layer`, beside its peers: `python -m experiments prune-minilm`.

Every method gets the statistics of what the matrices see in the trained encoder. Measured are the errors of all
matrices on tokens held out, and what the encoder that is put together from exactly these weights does: how near its
embeddings are to the trained encoder's, and how well messages of 20 Newsgroups are classified by them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from benchmarks.records import Record, peak_mebibytes
from experiments import minilm
from experiments.experiment import Experiment, Job, Settings, one_after_another
from experiments.minilm_matrices import DENSE, METHODS, OURS, Batch, Matrix, Name, Texts, matrices, with_weights
from experiments.minilm_report import pictures, section
from simjax.datasets import load_newsgroups
from simjax.rows.status import Status

NAME = "prune-minilm"
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


EXPERIMENT = Experiment(
    name=NAME,
    title="The matrices of MiniLM-L6, pruned",
    keys=KEYS,
    run=one_after_another(jobs),
    section=section,
    pictures=pictures,
    jobs=jobs,
)
