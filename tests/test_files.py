"""Files appear whole or not at all, nothing is replaced that should not be, and what is foreign is named."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

import simjax
from simjax._files import atomic_file, check_target, read_npz, read_safetensors, usable, write_npz, write_safetensors


def save(path: Path, content: bytes = b"new", overwrite: bool = False) -> None:
    with atomic_file(path, overwrite) as file:
        file.write(content)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_file(tmp_path / "a", overwrite=False) as file:
            file.write(b"half")
            assert not (tmp_path / "a").exists()
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    save(tmp_path / "a")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a", b"new")]


def test_what_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    def overtaken() -> None:
        with atomic_file(tmp_path / "a", overwrite=False) as file:
            file.write(b"late")
            (tmp_path / "a").write_bytes(b"early")

    with pytest.raises(FileExistsError, match="exists"):
        overtaken()
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a", b"early")]


@pytest.mark.parametrize("write", [save, check_target], ids=["atomic_file", "check_target"])
def test_refusals(write, tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"mine")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    before = set(tmp_path.iterdir())
    for name, overwrite, error, match in (
        ("taken", False, FileExistsError, "taken exists"),
        ("nowhere/a", True, FileNotFoundError, "folder"),
        ("taken/a", True, FileNotFoundError, "folder"),
        (".", True, IsADirectoryError, "is a folder"),
        ("pipe", True, OSError, "pipe is not a regular file"),
        ("pipe", False, OSError, "pipe is not a regular file"),
        ("to_pipe", True, OSError, "to_pipe is not a regular file"),
        ("loop", True, OSError, "loop"),
        ("n" * 300, True, OSError, "too long"),
    ):
        with pytest.raises(error, match=match):
            write(tmp_path / name, overwrite=overwrite)
    assert set(tmp_path.iterdir()) == before
    assert (tmp_path / "taken").read_bytes() == b"mine"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_found_out_before(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            check_target(tmp_path / "a", overwrite=False)
    finally:
        tmp_path.chmod(0o700)


def test_a_check_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"mine")
    check_target(tmp_path / "free", overwrite=False)
    check_target(tmp_path / "taken", overwrite=True)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("taken", b"mine")]


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    save(tmp_path / ("n" * 255))
    assert (tmp_path / ("n" * 255)).read_bytes() == b"new"


def test_links_stay_and_permissions_are_kept(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real = tmp_path / "store" / "real"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(Path("store") / "real")
    save(link, overwrite=True)
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    dangling = tmp_path / "dangling"
    dangling.symlink_to(Path("store") / "later")
    save(dangling)
    assert dangling.is_symlink()
    assert (tmp_path / "store" / "later").read_bytes() == b"new"


def test_safetensors_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a"
    tensors = {"M": np.arange(6.0).reshape(2, 3).T, "k": np.array(3)}
    write_safetensors(path, tensors, {"note": "φ"}, marker="simjax-test", version=2, overwrite=False)
    found, header = read_safetensors(path, "simjax-test", 2)
    assert {name: array.shape for name, array in found.items()} == {"M": (3, 2), "k": ()}
    np.testing.assert_array_equal(found["M"], tensors["M"])
    assert header.pop("simjax_version")
    assert header == {"format": "simjax-test", "format_version": "2", "note": "φ"}
    with pytest.raises(ValueError, match="not a simjax-other: its format is 'simjax-test'"):
        read_safetensors(path, "simjax-other", 2)
    with pytest.raises(ValueError, match="format version '2', but this simjax reads versions up to 1"):
        read_safetensors(path, "simjax-test", 1)


def test_npz_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, {"M": np.eye(2)}, {"note": None}, marker="simjax-test", version=2, overwrite=False)
    arrays, about = read_npz(path, "simjax-test", 2)
    np.testing.assert_array_equal(arrays.pop("M"), np.eye(2))
    assert arrays == {}
    assert about.pop("simjax_version")
    assert about == {"format": "simjax-test", "format_version": 2, "note": None}
    with pytest.raises(ValueError, match="not of simjax other: its format marker is missing"):
        read_npz(path, "simjax-other", 2)
    with pytest.raises(ValueError, match="format version 2, but this simjax reads versions up to 1"):
        read_npz(path, "simjax-test", 1)
    np.savez(path, about=np.array("[" * 100_000))
    with pytest.raises(ValueError, match="its format marker is missing"):
        read_npz(path, "simjax-test", 2)


@pytest.mark.parametrize("read", [read_safetensors, read_npz])
def test_sources_that_are_no_files(read, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read(tmp_path / "absent", "simjax-test", 1)
    with pytest.raises(FileNotFoundError, match="not a regular file"):
        read(tmp_path, "simjax-test", 1)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({}, "'sizes' is missing"),
        ({"sizes": "{"}, "Expecting"),
        ({"sizes": "3"}, "subscriptable"),
        ({"sizes": "[" * 100_000}, "recursion"),
        ({"sizes": "[]"}, "index"),
    ],
)
def test_foreign_headers_are_named(header: dict[str, str], match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught, usable("the/file", "simjax network"):
        json.loads(header["sizes"])[0]
    assert "the/file is not a usable simjax network" in str(caught.value)


@pytest.mark.parametrize("name", ["m.npz", "m.NPZ", "m.pkl", "runs.d/m.pt"])
def test_a_name_says_what_a_file_holds(name: str, tmp_path: Path) -> None:
    (tmp_path / "runs.d").mkdir()
    model = simjax.ImplicitModel([[0.5]], [[1.0]], [[1.0]], [[0.0]])
    with pytest.raises(ValueError, match=r"give a name that ends in \.safetensors"):
        model.save(tmp_path / name)
    with pytest.raises(ValueError, match=r"give a name that ends in \.safetensors"):
        check_target(tmp_path / name, overwrite=False, suffix=".safetensors")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs.d"]
    model.save(tmp_path / "v1.2")  # the end of no format
    assert simjax.ImplicitModel.load(tmp_path / "v1.2").n == 1


Z = -np.ones((3, 1))
ARRAYS = {"inputs": np.ones((3, 2)), "preactivations": Z, "activations": 0.0 * Z, "outputs": -Z}


def test_states_are_read_from_a_file_with_the_four_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "four.npz", **ARRAYS)
    states = simjax.States.load(tmp_path / "four.npz")
    assert (states.m, states.n, states.p, states.q, states.activation) == (3, 1, 2, 1, "relu")
    np.savez(tmp_path / "five.npz", **ARRAYS, more=np.ones(1))
    with pytest.raises(ValueError, match="arrays activations, inputs, outputs, preactivations and no others"):
        simjax.States.load(tmp_path / "five.npz")


def test_the_wrong_one_of_our_files_is_named(tmp_path: Path) -> None:
    simjax.ImplicitModel([[0.5]], [[1.0]], [[1.0]], [[0.0]]).save(tmp_path / "m.safetensors")
    simjax.States(**ARRAYS).save(tmp_path / "s.npz")
    with pytest.raises(ValueError, match="it is a safetensors file, as models are saved"):
        simjax.States.load(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"it is an \.npz, as states are"):
        simjax.ImplicitModel.load(tmp_path / "s.npz")
    (tmp_path / "t.npz").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ValueError, match=r"truncated, pickled or foreign\): it is no archive"):
        simjax.States.load(tmp_path / "t.npz")
