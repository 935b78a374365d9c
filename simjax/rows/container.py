"""What of the machine is left to this process: less than there is, in a container, a batch job or under ulimit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import PurePosixPath

_CGROUPS = PurePosixPath("/sys/fs/cgroup")
_GUESS = 2.0**31  # where a system says nothing of its memory


def memory_left() -> float:
    """Bytes: the smallest of what the machine has free and what the limits of control groups and ulimit leave."""
    return max(0.0, min(_machine(), _control_groups(), _ulimits()))


def cores() -> int:
    """How many threads can run at once: those this process may run on, within the quota of its control groups."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = math.inf
    for folder in _folders("cpu"):
        words = (_read(folder / "cpu.max") or "").split()  # version 2: "quota period" or "max period"
        if not words:
            words = [_read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""]
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]) > 0:
            quota = min(quota, int(words[0]) / int(words[1]))
    return max(1, min(allowed, math.ceil(quota) if quota < math.inf else allowed))


def _machine() -> float:
    """What Linux would find for a new process, caches given up; half of the memory elsewhere."""
    for line in (_read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return 1024.0 * float(line.split()[1])
    try:
        return 0.5 * float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return _GUESS


def _control_groups() -> float:
    """What the limits of this process's control groups leave, caches given up; infinite without any."""
    left = math.inf
    for folder in _folders("memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, used = _number(folder / limit), _number(folder / usage)
            if most is not None and used is not None:
                left = min(left, most - max(0.0, used - _reclaimable(folder)))
    return left


def _reclaimable(folder: PurePosixPath) -> float:
    for line in (_read(folder / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return float(value)
    return 0.0


def _folders(controller: str) -> Iterator[PurePosixPath]:
    """The folders of this process's control groups and of those they are in, of both versions of the interface."""
    paths = {_CGROUPS: {PurePosixPath("/")}, _CGROUPS / controller: {PurePosixPath("/")}}
    for line in (_read("/proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            paths[_CGROUPS].add(PurePosixPath(path))
        elif controller in names.split(","):
            paths[_CGROUPS / controller].add(PurePosixPath(path))
    for root, below in paths.items():
        for folder in {parent for path in below for parent in (path, *path.parents)}:
            yield root / folder.relative_to("/")


def _ulimits() -> float:
    """What ulimit leaves of addresses and data; infinite without a limit."""
    try:
        import resource
    except ImportError:  # Windows has none
        return math.inf
    left, status = math.inf, _read("/proc/self/status") or ""
    used = {line.partition(":")[0]: line.split()[1] for line in status.splitlines() if line.endswith("kB")}
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            left = min(left, soft - 1024.0 * float(used.get(name, 0)))
    return left


def _number(path: PurePosixPath) -> float | None:
    """The number in a file; None where there is no file or no limit in it."""
    text = (_read(path) or "").strip()
    return float(text) if text.isdecimal() else None


def _read(path: PurePosixPath | str) -> str | None:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None
