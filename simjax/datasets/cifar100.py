"""CIFAR-100: 60,000 colour images of 32×32 pixels in 100 classes, in its official binary format."""

from __future__ import annotations

import functools
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from simjax.datasets import _files
from simjax.datasets._dataset import ImageDataset

CIFAR100_URL = "https://www.cs.toronto.edu/~kriz/"
CIFAR100_ARCHIVE = "cifar-100-binary.tar.gz"
CIFAR100_ARCHIVE_SHA256 = "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
# Other forms of the same records that are read: the unpacked files, and a copy in xz parts, shuffled so that each
# third of the training images is a fair sample of all.
CIFAR100_SHA256 = {
    "train.bin": "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
    "test.bin": "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
}
CIFAR100_PARTS_SHA256 = {
    "train-1of3.bin.xz": "19747211f12b9e552a2847830d401e5082bdc125ed7333636de045481a423e6f",
    "train-2of3.bin.xz": "b0e3300e1e985036a3cb7a381c9bf0e53b5e30359959fec2a18af17e49a92447",
    "train-3of3.bin.xz": "2f6e75696fc8d5645ca54e67daf12a5b967abd5f1d30cb8df06bdcd609960eed",
    "test.bin.xz": "b720bea27144d1f067d9ecbf070105ea6d578a79cfffc6808e1c8694a422b1c6",
}
_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_CLASSES.split())
_NAME = "cifar-100-binary"
_SIDE = 32
_RECORD = 2 + 3 * _SIDE * _SIDE  # coarse label, fine label, pixels channel by channel


def load_cifar100() -> ImageDataset:
    """CIFAR-100 with its fine labels: 50,000 training and 10,000 test images.

    Looked for in $SIMJAX_DATA_DIR and its folder cifar-100-binary, in /usr/share/datasets/cifar-100-binary and in the
    user's cache, as the official archive cifar-100-binary.tar.gz, as its files train.bin and test.bin, or as xz parts
    (`CIFAR100_PARTS_SHA256`). If it is nowhere, the official archive is downloaded into the cache. Whatever is read
    must have the checksum of its form; the archive's and the files' are the official ones.

    Raises:
      FileNotFoundError: it is nowhere and could not be downloaded; says which file to put where.
      ValueError: a file is damaged, or not the official one.

    Examples:
      >>> from simjax import datasets
      >>> if datasets.find_cifar100():  # otherwise it is downloaded
      ...     data = datasets.load_cifar100()
    """
    for files, read in _FORMS:
        folder = _files.find_folder(_NAME, files())
        if folder is not None:
            return _dataset(*read(folder))
    return _dataset(*_read_archive(_download()))


def find_cifar100() -> Path | None:
    """The first folder with CIFAR-100 in one of its forms, or None; looks at this machine only.

    Examples:
      >>> from simjax import datasets
      >>> folder = datasets.find_cifar100()  # None where it is nowhere
    """
    found = (_files.find_folder(_NAME, files()) for files, _ in _FORMS)
    return next((folder for folder in found if folder is not None), None)


def _download() -> Path:
    folder, url = _files.cache_folder(_NAME), CIFAR100_URL + CIFAR100_ARCHIVE
    check = functools.partial(_files.verified, checksum=CIFAR100_ARCHIVE_SHA256, source=url)
    try:
        _files.download(url, folder / CIFAR100_ARCHIVE, check)
    except OSError as error:
        raise _files.not_found("CIFAR-100", _NAME, [CIFAR100_ARCHIVE], CIFAR100_URL, error) from error
    return folder


def _read_archive(folder: Path) -> tuple[bytes, bytes]:
    """Contents of train.bin and test.bin, as they are in the archive."""
    source = folder / CIFAR100_ARCHIVE
    packed = _files.verified(source.read_bytes(), CIFAR100_ARCHIVE_SHA256, source)
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
            members = (archive.extractfile(f"{_NAME}/{name}") for name in CIFAR100_SHA256)
            train, test = (member.read() for member in members if member is not None)
    except (tarfile.TarError, KeyError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{source} does not hold {' and '.join(CIFAR100_SHA256)}: {error}") from error
    return train, test


def _read_files(folder: Path) -> tuple[bytes, bytes]:
    sources = {folder / name: checksum for name, checksum in CIFAR100_SHA256.items()}
    train, test = (_files.verified(source.read_bytes(), checksum, source) for source, checksum in sources.items())
    return train, test


def _read_parts(folder: Path) -> tuple[bytes, bytes]:
    contents = []
    for name, checksum in CIFAR100_PARTS_SHA256.items():
        packed = _files.verified((folder / name).read_bytes(), checksum, folder / name)
        try:
            contents.append(lzma.decompress(packed))
        except lzma.LZMAError as error:
            raise ValueError(f"{folder / name} is not a whole xz file: {error}") from error
    return b"".join(contents[:-1]), contents[-1]


# Each form: its files, and what reads them. The names are looked up late, as the checksums are.
_FORMS: tuple[tuple[Callable[[], list[str]], Callable[[Path], tuple[bytes, bytes]]], ...] = (
    (lambda: [CIFAR100_ARCHIVE], _read_archive),
    (lambda: list(CIFAR100_SHA256), _read_files),
    (lambda: list(CIFAR100_PARTS_SHA256), _read_parts),
)


def _dataset(train: bytes, test: bytes) -> ImageDataset:
    train_images, train_labels = _records(train, "the training records")
    test_images, test_labels = _records(test, "the test records")
    return ImageDataset("cifar-100", train_images, train_labels, test_images, test_labels, CIFAR100_CLASSES)


def _records(contents: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (m, 32, 32, 3) and fine labels of records: coarse label, fine label, then all red pixels, green, blue."""
    if not contents or len(contents) % _RECORD:
        raise ValueError(f"{source} of CIFAR-100 hold {len(contents)} bytes, expected a multiple of {_RECORD}.")
    records = np.frombuffer(contents, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 1].astype(np.int64)
    if labels.max() >= len(CIFAR100_CLASSES):
        raise ValueError(f"{source} of CIFAR-100 have the label {labels.max()}, expected 0 … 99.")
    images = np.ascontiguousarray(records[:, 2:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))
    images.flags.writeable = False
    return images, labels
