"""Data sets, loaders only: inputs in float64 from 0 to 1, one flattened image a row, and class indices."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simjax._checks import choice
from simjax.model import atomic_file

DIGITS_TEST_SAMPLES = 360

FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Of the unpacked contents: packages and mirrors compress the same contents into different files.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
_TIMEOUT = 60.0  # seconds without an answer from the server


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A classification data set, split into training and test samples.

    Attributes:
        name: the name by which `load` knows it.
        train_inputs, test_inputs: (m, p) float64 in [0, 1].
        train_labels, test_labels: (m,) int64 class indices.
        class_names: what the indices mean.
    """

    name: str
    train_inputs: np.ndarray
    train_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {len(self.train_labels)} training and {len(self.test_labels)} test "
            f"samples, {self.train_inputs.shape[1]} inputs, {len(self.class_names)} classes)"
        )


def load(name: str) -> Dataset:
    """The data set of that name: "digits" or "fashion-mnist".

    Raises:
        ValueError: an unknown name; else as the loader of that data set.
    """
    return LOADERS[choice("name", name, LOADERS)]()


def load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels, always shuffled alike; 360 are for testing."""
    from sklearn.datasets import (
        load_digits as sklearn_digits,
    )  # here: the library itself needs no scikit-learn

    images, labels = sklearn_digits(return_X_y=True)
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


def load_fashion_mnist() -> Dataset:
    """Zalando's Fashion-MNIST: 60,000 training and 10,000 test images of 28×28 pixels in 10 classes.

    The four official files are looked for in $SIMJAX_DATA_DIR and its folder fashion-mnist, in Debian's
    /usr/share/datasets/fashion-mnist, and in the user's cache; if they are nowhere, they are downloaded from
    the official address into the cache. Wherever they come from, their contents must have the official
    checksums.

    Raises:
        FileNotFoundError: the files are nowhere and could not be downloaded; says which to put where.
        ValueError: a file is damaged, or not the official one.
    """
    folder = find_fashion_mnist()
    if folder is None:
        folder = _download_fashion_mnist()
    arrays = [
        _parse_idx(_verified((folder / name).read_bytes(), checksum, folder / name), folder / name)
        for name, checksum in FASHION_MNIST_SHA256.items()
    ]
    train_images, train_labels, test_images, test_labels = arrays
    return Dataset(
        name="fashion-mnist",
        train_inputs=train_images.reshape(len(train_images), -1) / 255.0,
        train_labels=train_labels.astype(np.int64),
        test_inputs=test_images.reshape(len(test_images), -1) / 255.0,
        test_labels=test_labels.astype(np.int64),
        class_names=FASHION_MNIST_CLASSES,
    )


LOADERS: dict[str, Callable[[], Dataset]] = {"digits": load_digits, "fashion-mnist": load_fashion_mnist}


def find_fashion_mnist() -> Path | None:
    """The first folder that has all four Fashion-MNIST files, or None; looks at this machine only."""
    for folder in _folders():
        if all((folder / name).is_file() for name in FASHION_MNIST_SHA256):
            return folder
    return None


def _folders() -> list[Path]:
    chosen = os.environ.get("SIMJAX_DATA_DIR")
    own = [Path(chosen), Path(chosen) / "fashion-mnist"] if chosen else []
    return [*own, _SYSTEM_FOLDER, _cache_folder()]


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "simjax" / "fashion-mnist"


def _download_fashion_mnist() -> Path:
    folder = _cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, checksum in FASHION_MNIST_SHA256.items():
            if not (folder / name).is_file():
                _download(FASHION_MNIST_URL + name, folder / name, checksum)
    except OSError as error:  # no network, server trouble, an unwritable cache
        places = ", ".join(str(place) for place in _folders())
        raise FileNotFoundError(
            f"Fashion-MNIST is not on this machine and could not be downloaded from {FASHION_MNIST_URL} "
            f"({error}). Put {', '.join(FASHION_MNIST_SHA256)} into one of {places}, or name their folder in "
            f"$SIMJAX_DATA_DIR, or install the Debian package dataset-fashion-mnist."
        ) from error
    return folder


def _download(url: str, target: Path, checksum: str) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
        packed = response.read()
    _verified(packed, checksum, url)
    with atomic_file(target, overwrite=True) as file:
        file.write(packed)


def _verified(packed: bytes, checksum: str, source: object) -> bytes:
    """The contents of a gzip file, if they are what the checksum says."""
    try:
        contents = gzip.decompress(packed)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{source} is not a whole gzip file: {error}") from error
    found = hashlib.sha256(contents).hexdigest()
    if found != checksum:
        raise ValueError(f"{source} is not the official file: sha256 of its contents is {found}, not {checksum}.")
    return contents


def _parse_idx(contents: bytes, source: object) -> np.ndarray:
    """The array of an IDX file, the format of MNIST.

    The bytes 0, 0, 8 (for unsigned bytes) and the number of axes, then each axis' length as a big-endian
    32-bit integer, then the values in C order.
    """
    if len(contents) < 4 or contents[:3] != b"\x00\x00\x08":
        raise ValueError(f"{source} is not an IDX file of unsigned bytes.")
    axes = contents[3]
    start = 4 + 4 * axes
    shape = tuple(np.frombuffer(contents[4:start], dtype=">u4").tolist()) if len(contents) >= start else None
    if shape is None or len(contents) - start != math.prod(shape):
        raise ValueError(f"{source} holds {len(contents)} bytes, which does not fit its header's shape {shape}.")
    return np.frombuffer(contents, dtype=np.uint8, offset=start).reshape(shape)
