"""Fashion-MNIST, from the four files in which it is published."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np

from simjax.datasets import _files
from simjax.datasets._dataset import Dataset

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
_NAME = "fashion-mnist"  # Debian's package dataset-fashion-mnist uses it too


def load_fashion_mnist() -> Dataset:
    """Zalando's Fashion-MNIST: 60,000 training and 10,000 test images of 28×28 pixels in 10 classes.

    The four official files are looked for in $SIMJAX_DATA_DIR and its folder fashion-mnist, in Debian's
    /usr/share/datasets/fashion-mnist, and in the user's cache; if they are nowhere, they are downloaded from
    the official address into the cache. Wherever they come from, their contents must have the official
    checksums.

    Raises:
      FileNotFoundError: the files are nowhere and could not be downloaded; says which to put where.
      ValueError: a file is damaged, or not the official one.

    Examples:
      >>> from simjax import datasets
      >>> if datasets.find_fashion_mnist():  # otherwise it is downloaded
      ...     data = datasets.load_fashion_mnist()
    """
    folder = find_fashion_mnist()
    if folder is None:
        folder = _download_fashion_mnist()
    arrays = [
        _parse_idx(_files.gunzipped((folder / name).read_bytes(), checksum, folder / name), folder / name)
        for name, checksum in FASHION_MNIST_SHA256.items()
    ]
    train_images, train_labels, test_images, test_labels = arrays
    return Dataset(
        name=_NAME,
        train_inputs=train_images.reshape(len(train_images), -1) / 255.0,
        train_labels=train_labels.astype(np.int64),
        test_inputs=test_images.reshape(len(test_images), -1) / 255.0,
        test_labels=test_labels.astype(np.int64),
        class_names=FASHION_MNIST_CLASSES,
    )


def find_fashion_mnist() -> Path | None:
    """The first folder that has all four Fashion-MNIST files, or None; looks at this machine only.

    Examples:
      >>> from simjax import datasets
      >>> folder = datasets.find_fashion_mnist()  # None where it is nowhere
    """
    return _files.find_folder(_NAME, FASHION_MNIST_SHA256)


def _download_fashion_mnist() -> Path:
    folder = _files.cache_folder(_NAME)
    try:
        for name, checksum in FASHION_MNIST_SHA256.items():
            if not (folder / name).is_file():
                url = FASHION_MNIST_URL + name
                check = functools.partial(_files.gunzipped, checksum=checksum, source=url)
                _files.download(url, folder / name, check)
    except OSError as error:
        hint = ", or install the Debian package dataset-fashion-mnist"
        raise _files.not_found("Fashion-MNIST", _NAME, FASHION_MNIST_SHA256, FASHION_MNIST_URL, error, hint) from error
    return folder


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
