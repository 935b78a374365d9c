"""Memory and cores left by control groups and ulimit; shared memory that is too small; workers of workers."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

import simjax
from simjax.rows import container
from simjax.rows.memory import free_memory

GIB = 2.0**30
V2 = {"/proc/self/cgroup": "0::/a/b\n", "/proc/meminfo": "MemTotal: 9\nMemAvailable: 67108864 kB\n"}
V1 = {
    "/proc/self/cgroup": "5:cpu,cpuacct:/job\n4:memory:/job/step\n0::/\n",
    "/proc/meminfo": "MemAvailable: 67108864 kB\n",
}
ROOT = "/sys/fs/cgroup"


@pytest.fixture
def files(monkeypatch):
    """The files of /proc and /sys, none to begin with."""
    contents: dict[str, str] = {}
    monkeypatch.setattr(container, "_read", lambda path: contents.get(str(path)))
    return contents


@pytest.mark.parametrize(
    ("given", "gib"),
    [
        ({}, 64.0),
        ({f"{ROOT}/memory.max": f"{2**30}", f"{ROOT}/memory.current": "0"}, 1.0),
        ({f"{ROOT}/a/b/memory.max": "max\n", f"{ROOT}/a/b/memory.current": "0"}, 64.0),
        ({f"{ROOT}/a/memory.max": f"{4 * 2**30}", f"{ROOT}/a/memory.current": f"{2**30}"}, 3.0),
        (
            {
                f"{ROOT}/a/b/memory.max": f"{4 * 2**30}",
                f"{ROOT}/a/b/memory.current": f"{3 * 2**30}",
                f"{ROOT}/a/b/memory.stat": f"anon 1\ninactive_file {2 * 2**30}\n",  # caches, given up when needed
            },
            3.0,
        ),
        ({f"{ROOT}/a/memory.max": f"{2**30}", f"{ROOT}/a/memory.current": f"{2 * 2**30}"}, 0.0),
    ],
)
def test_memory_left_by_control_groups(files, given, gib):
    files.update(V2 | given)
    assert container.memory_left() == gib * GIB


@pytest.mark.parametrize("place", ["", "/job", "/job/step"])
def test_memory_left_by_control_groups_of_version_one(files, place):
    folder = f"{ROOT}/memory{place}"
    limits = {f"{folder}/memory.limit_in_bytes": f"{2**31}\n", f"{folder}/memory.usage_in_bytes": f"{2**30}\n"}
    files.update(V1 | limits)
    assert container.memory_left() == GIB


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (V2, 64),
        (V2 | {f"{ROOT}/a/cpu.max": "150000 100000\n"}, 2),
        (V2 | {f"{ROOT}/a/b/cpu.max": "max 100000\n"}, 64),
        (V2 | {f"{ROOT}/cpu.max": "20000 100000"}, 1),
        (V1 | {f"{ROOT}/cpu/job/cpu.cfs_quota_us": "300000", f"{ROOT}/cpu/job/cpu.cfs_period_us": "100000"}, 3),
        (V1 | {f"{ROOT}/cpu/job/cpu.cfs_quota_us": "-1", f"{ROOT}/cpu/job/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_cores_within_the_quota(files, monkeypatch, given, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    files.update(given)
    assert container.cores() == expected


def test_ulimit_counts_what_is_used_already(files, monkeypatch):
    files.update(V2 | {"/proc/self/status": "Name:\tx\nVmSize:\t 1048576 kB\nVmData:\t 524288 kB\n"})
    limits = {resource.RLIMIT_AS: 8 * 2**30, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], resource.RLIM_INFINITY))
    assert container.memory_left() == 7 * GIB
    limits[resource.RLIMIT_DATA] = 2**30
    assert container.memory_left() == 0.5 * GIB


def test_a_system_that_says_nothing_is_taken_for_a_small_one(files, monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    assert container.memory_left() == 2 * GIB


def test_the_real_files_are_read_and_blocks_follow_them(monkeypatch):
    assert 0.0 < free_memory() < math.inf
    assert 1 <= container.cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr("simjax.rows.memory.memory_left", lambda: 123.0)
    assert free_memory() == 123.0


PROBLEM = "simjax.solve_rows(rng.normal(size=(2000, 150)), rng.normal(size=(2000, 4)), penalty=simjax.L1(400.0))"
SMALL = f"""
import numpy as np, simjax
if __name__ == "__main__":
    rng = np.random.default_rng(0)
    try:
        {PROBLEM}.verify(rows=2, workers=2)
    except OSError as error:
        print(error)
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root for a /dev/shm of its own")
def test_shared_memory_that_is_too_small_is_an_error_and_no_signal(tmp_path):
    pytest.importorskip("clarabel")
    (tmp_path / "job.py").write_text(SMALL)
    shell = f"mount -t tmpfs -o size=1m tmpfs /dev/shm && exec {sys.executable} {tmp_path}/job.py"
    done = subprocess.run(["unshare", "-m", "bash", "-c", shell], capture_output=True, text=True)
    if "Operation not permitted" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 0, done.stderr
    assert "1.0 MiB free of the 2.3 MiB needed" in done.stdout
    assert "workers=1" in done.stdout


def test_a_daemon_asks_for_no_workers(monkeypatch):
    pytest.importorskip("clarabel")
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    rng = np.random.default_rng(0)
    design, targets = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    with pytest.raises(RuntimeError, match="workers must be 1 here, got 2: this process is a worker"):
        simjax.solve_rows(design, targets, penalty=simjax.L1(0.1), solver="clarabel", workers=2)
    with pytest.raises(RuntimeError, match="workers must be 1 here, got 2"):
        simjax.solve_rows(design, targets, penalty=simjax.L1(0.1)).verify(rows=2, workers=2)
