"""scikit-learn's handwritten digits."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from simjax._extras import needs
from simjax.datasets._dataset import Dataset

DIGITS_TEST_SAMPLES = 360


def load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels, always shuffled alike; 360 are for testing.

    Raises:
      ModuleNotFoundError: scikit-learn, which brings them, is not installed.

    Examples:
      >>> from simjax.datasets import load_digits
      >>> len(load_digits().test_labels)
      360
    """
    with needs("datasets", "scikit-learn", "simjax.datasets.load_digits"):
        images, labels = _bundled()
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:DIGITS_TEST_SAMPLES], order[DIGITS_TEST_SAMPLES:]
    inputs, labels = images / 16.0, labels.astype(np.int64)
    return Dataset(
        name="digits",
        train_inputs=inputs[train],
        train_labels=labels[train],
        test_inputs=inputs[test],
        test_labels=labels[test],
        class_names=tuple("0123456789"),
    )


def _bundled() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 64) and labels, from scikit-learn's file: importing it takes a second, reading that does not."""
    spec = importlib.util.find_spec("sklearn")
    file = None if spec is None or spec.origin is None else Path(spec.origin).parent / "datasets/data/digits.csv.gz"
    if file is None or not file.is_file():  # none at all, or one that keeps it elsewhere
        from sklearn import datasets as bundled

        return bundled.load_digits(return_X_y=True)
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1]
