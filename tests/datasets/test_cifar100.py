"""The loader of CIFAR-100. None of these tests touches the network."""

import hashlib
import io
import lzma
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest

from simjax import datasets
from simjax.datasets import _files, cifar100, load_cifar100

OFFICIAL = datasets.find_cifar100()  # before any test moves the folders


def records(m, seed):
    """Records with random pixels; the fine label of record k is 99 − k."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 256, (m, 3074)).astype(np.uint8)
    found[:, 0], found[:, 1] = 7, 99 - np.arange(m)
    return found


TRAIN, TEST = records(6, 0), records(2, 1)


def archive(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


UNPACKED = {"train.bin": TRAIN.tobytes(), "test.bin": TEST.tobytes()}
ARCHIVE = archive(UNPACKED)
PARTS = {
    **{f"train-{k + 1}of3.bin.xz": lzma.compress(TRAIN[2 * k : 2 * k + 2].tobytes()) for k in range(3)},
    "test.bin.xz": lzma.compress(TEST.tobytes()),
}
FORMS = {"archive": {"cifar-100-binary.tar.gz": ARCHIVE}, "unpacked": UNPACKED, "parts": PARTS}


def sums(files):
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without the files and without a network; the small files are the official ones."""

    def no_network(url, timeout):
        assert timeout > 0
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("SIMJAX_DATA_DIR", str(tmp_path / "chosen"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_files, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(cifar100, "CIFAR100_ARCHIVE_SHA256", hashlib.sha256(ARCHIVE).hexdigest())
    monkeypatch.setattr(cifar100, "CIFAR100_SHA256", sums(UNPACKED))
    monkeypatch.setattr(cifar100, "CIFAR100_PARTS_SHA256", sums(PARTS))
    return tmp_path


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["chosen", "chosen/cifar-100-binary", "cache/simjax/cifar-100-binary"])
def test_each_form_in_each_place(form, place, machine):
    assert datasets.find_cifar100() is None
    write(machine / place, FORMS[form])
    assert datasets.find_cifar100() == machine / place
    data = load_cifar100()
    assert data.train_images.shape == (6, 32, 32, 3)
    assert data.train_images.dtype == np.uint8
    for images, found in ((data.train_images, TRAIN), (data.test_images, TEST)):
        for channel in range(3):  # channel by channel, row by row
            pixels = found[:, 2 + 1024 * channel : 2 + 1024 * (channel + 1)]
            np.testing.assert_array_equal(images[..., channel].reshape(len(images), -1), pixels)
    np.testing.assert_array_equal(data.train_labels, [99, 98, 97, 96, 95, 94])
    np.testing.assert_array_equal(data.test_labels, [99, 98])
    assert not data.train_images.flags.writeable
    assert repr(data) == "ImageDataset('cifar-100', 6 training and 2 test images of 32×32×3, 100 classes)"


def test_without_network_the_error_says_what_to_put_where(machine):
    with pytest.raises(FileNotFoundError) as caught:
        load_cifar100()
    message = str(caught.value)
    for part in ("cifar-100-binary.tar.gz", str(machine / "chosen"), "$SIMJAX_DATA_DIR", "no network"):
        assert part in message


def test_download_into_the_cache(machine, monkeypatch):
    served = []

    def serve(url, timeout):
        served.append(url)
        return io.BytesIO(ARCHIVE)

    monkeypatch.setattr(urllib.request, "urlopen", serve)
    assert len(load_cifar100().train_labels) == 6
    assert served == ["https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"]
    load_cifar100()
    assert len(served) == 1  # the second time from the cache


def test_a_wrong_download_is_not_kept(machine, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"<html>moved</html>"))
    with pytest.raises(ValueError, match="not the official file"):
        load_cifar100()
    assert datasets.find_cifar100() is None


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files(form, machine):
    for name, content in FORMS[form].items():
        write(machine / "chosen", {**FORMS[form], name: content[:-1] + bytes([content[-1] ^ 1])})
        with pytest.raises(ValueError, match="not the official file") as caught:
            load_cifar100()
        assert name in str(caught.value)


def test_contents_that_are_no_records(machine, monkeypatch):
    for files, match in (
        ({**UNPACKED, "test.bin": b"too short"}, "multiple of 3074"),
        ({**UNPACKED, "test.bin": b""}, "multiple of 3074"),
        ({**UNPACKED, "test.bin": b"\x00\xff" + bytes(3072)}, "label 255"),
    ):
        monkeypatch.setattr(cifar100, "CIFAR100_SHA256", sums(files))
        write(machine / "chosen", files)
        with pytest.raises(ValueError, match=match):
            load_cifar100()
    packed = archive({"train.bin": b"alone"})
    monkeypatch.setattr(cifar100, "CIFAR100_ARCHIVE_SHA256", hashlib.sha256(packed).hexdigest())
    write(machine / "chosen", {"cifar-100-binary.tar.gz": packed})
    with pytest.raises(ValueError, match=r"does not hold train\.bin and test\.bin"):
        load_cifar100()


def test_class_names():
    assert len(cifar100.CIFAR100_CLASSES) == len(set(cifar100.CIFAR100_CLASSES)) == 100
    assert list(cifar100.CIFAR100_CLASSES) == sorted(cifar100.CIFAR100_CLASSES)


@pytest.mark.slow
@pytest.mark.skipif(OFFICIAL is None, reason="CIFAR-100 is not on this machine")
def test_official_files():
    data = load_cifar100()
    np.testing.assert_array_equal(np.bincount(data.train_labels), np.full(100, 500))
    np.testing.assert_array_equal(np.bincount(data.test_labels), np.full(100, 100))
    mean, sd = (data.train_images / 255.0).mean((0, 1, 2)), (data.train_images / 255.0).std((0, 1, 2))
    np.testing.assert_allclose(mean, (0.5071, 0.4865, 0.4409), atol=1e-4)  # as widely published
    np.testing.assert_allclose(sd, (0.2673, 0.2564, 0.2762), atol=1e-4)
