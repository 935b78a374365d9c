"""Data sets, loaders only.

Images: inputs in float64 from 0 to 1, one flattened image a row, and class indices; those of `load_cifar100` stay bytes
and keep their shape. Texts (`load_newsgroups`): as they are, and class indices.
"""

from __future__ import annotations

from collections.abc import Callable

from simjax._checks import choice
from simjax.datasets._dataset import Dataset, ImageDataset, TextDataset
from simjax.datasets.cifar100 import CIFAR100_CLASSES, find_cifar100, load_cifar100
from simjax.datasets.digits import DIGITS_TEST_SAMPLES, load_digits
from simjax.datasets.fashion_mnist import (
    FASHION_MNIST_CLASSES,
    FASHION_MNIST_SHA256,
    FASHION_MNIST_URL,
    find_fashion_mnist,
    load_fashion_mnist,
)
from simjax.datasets.newsgroups import (
    NEWSGROUPS_SHA256,
    NEWSGROUPS_URL,
    find_newsgroups,
    load_newsgroups,
)

__all__ = [
    "CIFAR100_CLASSES",
    "DIGITS_TEST_SAMPLES",
    "FASHION_MNIST_CLASSES",
    "FASHION_MNIST_SHA256",
    "FASHION_MNIST_URL",
    "LOADERS",
    "NEWSGROUPS_SHA256",
    "NEWSGROUPS_URL",
    "Dataset",
    "ImageDataset",
    "TextDataset",
    "find_cifar100",
    "find_fashion_mnist",
    "find_newsgroups",
    "load",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
    "load_newsgroups",
]

LOADERS: dict[str, Callable[[], Dataset]] = {"digits": load_digits, "fashion-mnist": load_fashion_mnist}


def load(name: str) -> Dataset:
    """The data set of that name: "digits" or "fashion-mnist".

    Raises:
      ValueError: an unknown name; else as the loader of that data set.

    Examples:
      >>> import simjax
      >>> simjax.datasets.load("digits").train_inputs.shape  # needs the extra datasets
      (1437, 64)
    """
    return LOADERS[choice("name", name, LOADERS)]()
