"""Data sets, loaders only: inputs in float64 from 0 to 1, one flattened image a row, and class indices.

`load_cifar100` is apart: its images stay bytes, and are no flat rows (`ImageDataset`).
"""

from __future__ import annotations

from collections.abc import Callable

from simjax._checks import choice
from simjax.datasets._dataset import Dataset
from simjax.datasets.cifar100 import CIFAR100_CLASSES, ImageDataset, find_cifar100, load_cifar100
from simjax.datasets.digits import DIGITS_TEST_SAMPLES, load_digits
from simjax.datasets.fashion_mnist import (
    FASHION_MNIST_CLASSES,
    FASHION_MNIST_SHA256,
    FASHION_MNIST_URL,
    find_fashion_mnist,
    load_fashion_mnist,
)

__all__ = [
    "CIFAR100_CLASSES",
    "DIGITS_TEST_SAMPLES",
    "FASHION_MNIST_CLASSES",
    "FASHION_MNIST_SHA256",
    "FASHION_MNIST_URL",
    "LOADERS",
    "Dataset",
    "ImageDataset",
    "find_cifar100",
    "find_fashion_mnist",
    "load",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
]

LOADERS: dict[str, Callable[[], Dataset]] = {"digits": load_digits, "fashion-mnist": load_fashion_mnist}


def load(name: str) -> Dataset:
    """The data set of that name: "digits" or "fashion-mnist".

    Raises:
        ValueError: an unknown name; else as the loader of that data set.
    """
    return LOADERS[choice("name", name, LOADERS)]()
