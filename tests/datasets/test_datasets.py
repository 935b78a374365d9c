"""The data set loaders. None of these tests touches the network."""

import gzip
import hashlib
import io
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest

from simjax import datasets
from simjax.datasets import (
    FASHION_MNIST_SHA256,
    Dataset,
    TextDataset,
    _files,
    fashion_mnist,
    load,
    load_digits,
    load_fashion_mnist,
    load_newsgroups,
    newsgroups,
)

OFFICIAL = datasets.find_fashion_mnist()  # before any test moves the folders
OFFICIAL_NEWS = datasets.find_newsgroups()


def idx(array):
    lengths = b"".join(int(length).to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.astype(np.uint8).tobytes()


def small_files():
    """Contents like Fashion-MNIST's, with five training and three test images of 2×2 pixels."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (5, 2, 2)),
        rng.integers(0, 10, 5),
        rng.integers(0, 256, (3, 2, 2)),
        [0, 9, 4],
    ]
    return dict(zip(FASHION_MNIST_SHA256, (idx(np.asarray(array)) for array in arrays), strict=True))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without the files and without a network; the small files are the official ones."""

    def no_network(url, timeout):
        assert timeout > 0
        raise urllib.error.URLError("no network")

    monkeypatch.delenv("SIMJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_files, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in small_files().items()}
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST_SHA256", checksums)
    return tmp_path


def write(folder, files=None):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (files or small_files()).items():
        (folder / name).write_bytes(gzip.compress(content, mtime=0))


# ---- digits ----------------------------------------------------------------------------------------------


def test_digits():
    data = load("digits")
    assert data.train_inputs.shape == (1437, 64)
    assert data.test_inputs.shape == (360, 64)
    assert (data.train_labels.shape, data.test_labels.shape) == ((1437,), (360,))
    assert data.class_names == tuple("0123456789")
    assert data.train_inputs.dtype == np.float64
    assert data.train_labels.dtype == np.int64
    assert (data.train_inputs.min(), data.train_inputs.max()) == (0.0, 1.0)
    assert np.bincount(data.test_labels).min() >= 25  # every class is tested
    again = load_digits()
    np.testing.assert_array_equal(data.test_inputs, again.test_inputs)
    np.testing.assert_array_equal(data.train_labels, again.train_labels)
    from sklearn.datasets import load_digits as original

    images, labels = original(return_X_y=True)
    ours = np.column_stack(
        [
            np.vstack([data.train_inputs, data.test_inputs]),
            np.concatenate([data.train_labels, data.test_labels]),
        ]
    )
    theirs = np.column_stack([images / 16, labels])
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])  # each sample once
    assert repr(data) == "Dataset('digits', 1437 training and 360 test samples, 64 inputs, 10 classes)"


def test_unknown_name():
    with pytest.raises(ValueError, match="name must be one of 'digits', 'fashion-mnist'; got 'mnist'"):
        load("mnist")


# ---- Fashion-MNIST ---------------------------------------------------------------------------------------


@pytest.mark.skipif(OFFICIAL is None, reason="the Fashion-MNIST files are not on this machine")
def test_official_files():
    data = load("fashion-mnist")
    assert data.train_inputs.shape == (60_000, 784)
    assert data.test_inputs.shape == (10_000, 784)
    assert (data.train_inputs.min(), data.train_inputs.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(np.bincount(data.train_labels), np.full(10, 6000))
    np.testing.assert_array_equal(np.bincount(data.test_labels), np.full(10, 1000))
    assert data.class_names[data.test_labels[0]] == "Ankle boot"
    assert len(data.class_names) == 10


@pytest.mark.parametrize(
    "place", ["chosen", "chosen/fashion-mnist", "system/fashion-mnist", "cache/simjax/fashion-mnist"]
)
def test_files_are_found_in_each_place(place, machine, monkeypatch):
    monkeypatch.setenv("SIMJAX_DATA_DIR", str(machine / "chosen"))
    assert datasets.find_fashion_mnist() is None
    write(machine / place)
    assert datasets.find_fashion_mnist() == machine / place
    data = load_fashion_mnist()
    contents = list(small_files().values())
    assert isinstance(data, Dataset)
    np.testing.assert_array_equal(data.train_inputs * 255, np.frombuffer(contents[0][16:], np.uint8).reshape(5, 4))
    np.testing.assert_array_equal(data.test_inputs * 255, np.frombuffer(contents[2][16:], np.uint8).reshape(3, 4))
    np.testing.assert_array_equal(data.train_labels, list(contents[1][8:]))
    np.testing.assert_array_equal(data.test_labels, [0, 9, 4])


def test_the_chosen_folder_comes_first_and_incomplete_ones_are_passed_over(machine, monkeypatch):
    monkeypatch.setenv("SIMJAX_DATA_DIR", str(machine / "chosen"))
    write(machine / "system" / "fashion-mnist")
    write(machine / "chosen", {name: content for name, content in small_files().items() if "train" in name})
    assert datasets.find_fashion_mnist() == machine / "system" / "fashion-mnist"
    write(machine / "chosen")
    assert datasets.find_fashion_mnist() == machine / "chosen"


def test_without_network_the_error_says_what_to_put_where(machine, monkeypatch):
    monkeypatch.setenv("SIMJAX_DATA_DIR", str(machine / "chosen"))
    with pytest.raises(FileNotFoundError) as caught:
        load_fashion_mnist()
    message = str(caught.value)
    for part in (
        *FASHION_MNIST_SHA256,
        str(machine / "chosen"),
        str(machine / "system" / "fashion-mnist"),
        "no network",
    ):
        assert part in message
    assert "dataset-fashion-mnist" in message
    assert str(machine / "cache" / "simjax" / "fashion-mnist") in message


def test_download_into_the_cache(machine, monkeypatch):
    served = []

    def serve(url, timeout):
        served.append(url)
        return io.BytesIO(gzip.compress(small_files()[url.rpartition("/")[2]]))

    monkeypatch.setattr(urllib.request, "urlopen", serve)
    assert load_fashion_mnist().train_inputs.shape == (5, 4)
    assert served == [datasets.FASHION_MNIST_URL + name for name in FASHION_MNIST_SHA256]
    folder = machine / "cache" / "simjax" / "fashion-mnist"
    assert {entry.name for entry in folder.iterdir()} == set(FASHION_MNIST_SHA256)
    load_fashion_mnist()
    assert len(served) == 4  # the second time from the cache


@pytest.mark.parametrize(
    "answer", [b"<html>moved</html>", gzip.compress(b"other", mtime=0), gzip.compress(b"cut", mtime=0)[:-3]]
)
def test_a_wrong_download_is_not_kept(answer, machine, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(answer))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is not"):
        load_fashion_mnist()
    assert not (machine / "cache" / "simjax" / "fashion-mnist").exists()


def test_damaged_files(machine):
    write(machine / "system" / "fashion-mnist")
    path = machine / "system" / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content, match in (
        (whole[:-5], "not a whole gzip file"),
        (b"", "not a whole gzip file|not the official file"),
        (b"not gzip at all", "not a whole gzip file"),
        (bytes(flipped), "not a whole gzip file"),
        (gzip.compress(b"other contents", mtime=0), "not the official file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=match) as caught:
            load_fashion_mnist()
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\x00\x00\x08",
        b"\x00\x00\x0d\x01\x00\x00\x00\x01x",
        b"\x00\x00\x08\x02\x00\x00",
        b"P5 2 2 255 abcd",
    ],
)
def test_contents_that_are_no_idx_file(contents):
    with pytest.raises(ValueError, match="here"):
        fashion_mnist._parse_idx(contents, "here")


def test_idx_header_must_fit():
    array = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(fashion_mnist._parse_idx(idx(array), "here"), array)
    for contents in (idx(array)[:-1], idx(array) + b"x"):
        with pytest.raises(ValueError, match=r"does not fit its header's shape \(2, 3, 4\)"):
            fashion_mnist._parse_idx(contents, "here")


# ---- 20 Newsgroups ---------------------------------------------------------------------------------------

MESSAGE = "From: a@b.c\nSubject: caf\u00e9\n\nX wrote:\n> quoted\nAn answer.\n\n--\nsignature\n"
MESSAGES = {  # not in the order of their groups and numbers
    "20news-bydate-test/sci.space/7": MESSAGE,
    "20news-bydate-train/sci.space/10": "ten",
    "20news-bydate-train/sci.space/9": "nine",
    "20news-bydate-train/alt.atheism/3": "three",
    "20news-bydate-test/alt.atheism/4": "four",
}


def archive(compression="gz", others=()):
    """An archive of `MESSAGES`, with `others` as (TarInfo, contents) in front."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as tar:
        folder = tarfile.TarInfo("20news-bydate-train/sci.space")
        folder.type = tarfile.DIRTYPE
        messages = [(tarfile.TarInfo(name), text.encode("latin-1")) for name, text in MESSAGES.items()]
        for info, contents in [(folder, b""), *others, *messages]:
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
    return file.getvalue()


def put_archive(monkeypatch, folder, contents, name="20news-bydate.tar.gz"):
    """The file in a folder, as the official one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(contents)
    monkeypatch.setitem(newsgroups.NEWSGROUPS_SHA256, name, hashlib.sha256(contents).hexdigest())


@pytest.mark.skipif(OFFICIAL_NEWS is None, reason="20 Newsgroups is not on this machine")
def test_official_newsgroups():
    data = load_newsgroups()
    assert (len(data.train_texts), len(data.test_texts)) == (11_314, 7_532)
    assert (data.train_labels.shape, data.test_labels.shape) == ((11_314,), (7_532,))
    assert len(data.class_names) == 20
    assert np.bincount(data.train_labels)[[0, 10]].tolist() == [480, 600]
    assert data.class_names[10] == "rec.sport.hockey"
    assert all("\n\n" in text for text in data.train_texts)  # the headers are there


@pytest.mark.parametrize("place", ["chosen", "chosen/20newsgroups", "system/20newsgroups", "cache/simjax/20newsgroups"])
@pytest.mark.parametrize("compression", ["gz", "xz"])
def test_newsgroups_are_found_in_each_place(compression, place, machine, monkeypatch):
    monkeypatch.setenv("SIMJAX_DATA_DIR", str(machine / "chosen"))
    assert datasets.find_newsgroups() is None
    put_archive(monkeypatch, machine / place, archive(compression), f"20news-bydate.tar.{compression}")
    data = load_newsgroups()
    assert isinstance(data, TextDataset)
    assert data.class_names == ("alt.atheism", "sci.space")
    assert data.train_texts == ("three", "nine", "ten")
    assert data.test_texts == ("four", MESSAGE)
    np.testing.assert_array_equal(data.train_labels, [0, 1, 1])
    np.testing.assert_array_equal(data.test_labels, [0, 1])
    assert data.train_labels.dtype == np.int64
    assert repr(data) == "TextDataset('20newsgroups', 3 training and 2 test texts, 2 classes)"


@pytest.mark.parametrize(
    ("remove", "left"),
    [
        (("headers",), "X wrote:\n> quoted\nAn answer.\n\n--\nsignature\n"),
        (["footers"], "From: a@b.c\nSubject: caf\u00e9\n\nX wrote:\n> quoted\nAn answer.\n"),
        (("quotes",), "From: a@b.c\nSubject: caf\u00e9\n\nAn answer.\n\n--\nsignature\n"),
        (("quotes", "headers", "footers"), "An answer.\n"),
    ],
)
def test_what_is_stripped_of_a_message(remove, left, machine, monkeypatch):
    put_archive(monkeypatch, machine / "cache" / "simjax" / "20newsgroups", archive())
    assert load_newsgroups(remove).test_texts[1] == left


def test_what_cannot_be_removed(machine):
    with pytest.raises(ValueError, match="remove must be one of 'headers', 'footers', 'quotes'; got 'body'"):
        load_newsgroups(("headers", "body"))
    for remove in ("headers", (1,)):
        with pytest.raises(TypeError, match="remove must be a sequence of names"):
            load_newsgroups(remove)


def test_only_messages_are_read_and_nothing_is_written(machine, monkeypatch):
    outside, link = tarfile.TarInfo("../../escaped"), tarfile.TarInfo("20news-bydate-train/sci.space/1")
    absolute = tarfile.TarInfo(str(machine / "absolute"))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    contents = archive(others=[(outside, b"out"), (absolute, b"out"), (link, b"")])
    put_archive(monkeypatch, machine / "system" / "20newsgroups", contents)
    before = set(machine.rglob("*"))
    assert load_newsgroups().train_texts == ("three", "nine", "ten")
    assert set(machine.rglob("*")) == before


def test_newsgroups_without_network(machine, monkeypatch):
    monkeypatch.setenv("SIMJAX_DATA_DIR", str(machine / "chosen"))
    with pytest.raises(FileNotFoundError, match=r"Put 20news-bydate\.tar\.gz into one of") as caught:
        load_newsgroups()
    for part in (newsgroups.NEWSGROUPS_URL, "no network", str(machine / "chosen"), str(machine / "cache")):
        assert part in str(caught.value)


def test_newsgroups_are_downloaded_into_the_cache(machine, monkeypatch):
    served = []

    def serve(url, timeout):
        served.append(url)
        return io.BytesIO(archive())

    monkeypatch.setattr(urllib.request, "urlopen", serve)
    with pytest.raises(ValueError, match=r"20news-bydate\.tar\.gz is not the official file: sha256 is"):
        load_newsgroups()
    assert datasets.find_newsgroups() is None  # a wrong download is not kept
    # gzip stores the time in its head: the checksum is of these very bytes.
    contents = archive()
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: served.append(url) or io.BytesIO(contents))
    monkeypatch.setitem(newsgroups.NEWSGROUPS_SHA256, "20news-bydate.tar.gz", hashlib.sha256(contents).hexdigest())
    assert len(load_newsgroups().train_texts) == 3
    assert datasets.find_newsgroups() == machine / "cache" / "simjax" / "20newsgroups" / "20news-bydate.tar.gz"
    load_newsgroups()
    assert served == [newsgroups.NEWSGROUPS_URL] * 2  # the third time from the cache


@pytest.mark.parametrize("compression", ["gz", "xz"])
def test_damaged_newsgroups(compression, machine, monkeypatch):
    folder, name = machine / "system" / "20newsgroups", f"20news-bydate.tar.{compression}"
    whole = archive(compression)
    put_archive(monkeypatch, folder, whole, name)
    (folder / name).write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="is not the official file"):
        load_newsgroups()
    # Right by its checksum, and yet no archive: only a test can make such a file.
    for contents in (whole[: len(whole) // 2], b"", b"no archive at all"):
        put_archive(monkeypatch, folder, contents, name)
        with pytest.raises(ValueError, match="is not a whole archive"):
            load_newsgroups()
