"""What the loaders return."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simjax._values import Value


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Value):
    """A classification data set, split into training and test samples.

    Attributes:
      name: the name by which `load` knows it.
      train_inputs, test_inputs: (m, p) float64 in [0, 1].
      train_labels, test_labels: (m,) int64 class indices.
      class_names: what the indices mean.

    Examples:
      >>> from simjax import datasets
      >>> data = datasets.load("digits")  # needs the extra datasets
      >>> data.name, data.train_inputs.shape, data.test_labels.shape
      ('digits', (1437, 64), (360,))
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


@dataclass(frozen=True, eq=False, repr=False)
class TextDataset(Value):
    """A classification data set of texts, split into training and test samples; who wants numbers vectorises them.

    Attributes:
      name: of the data set.
      train_texts, test_texts: m texts each.
      train_labels, test_labels: (m,) int64 class indices.
      class_names: what the indices mean.

    Examples:
      >>> import numpy as np
      >>> from simjax.datasets import TextDataset
      >>> data = TextDataset("words", ("good", "bad"), np.array([1, 0]), ("fine",), np.array([1]), ("no", "yes"))
      >>> data.class_names[data.test_labels[0]]
      'yes'
    """

    name: str
    train_texts: tuple[str, ...]
    train_labels: np.ndarray
    test_texts: tuple[str, ...]
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"TextDataset({self.name!r}, {len(self.train_labels)} training and {len(self.test_labels)} test texts, "
            f"{len(self.class_names)} classes)"
        )


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset(Value):
    """Images to classify, as bytes: as numbers of eight bytes they would not fit into the memory of many machines.

    Attributes:
      name: of the data set.
      train_images, test_images: (m, height, width, 3) uint8, read-only.
      train_labels, test_labels: (m,) int64 class indices.
      class_names: what the indices mean.

    Examples:
      >>> import numpy as np
      >>> from simjax.datasets import ImageDataset
      >>> images, labels = np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1])
      >>> ImageDataset("squares", images, labels, images, labels, ("dark", "light")).train_images.shape
      (2, 4, 4, 3)
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    def __repr__(self) -> str:
        height, width, channels = self.train_images.shape[1:]
        return (
            f"ImageDataset({self.name!r}, {len(self.train_labels)} training and {len(self.test_labels)} test images "
            f"of {height}×{width}×{channels}, {len(self.class_names)} classes)"
        )
