"""What simjax finds on this machine: versions, devices, the engine that "auto" takes, memory, oracles and licences."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from typing import Any

from simjax._version import __version__
from simjax.rows.container import cores, memory_left
from simjax.rows.engines.choose import choose
from simjax.rows.options import SolveOptions
from simjax.rows.oracles.interface import ORACLES, OracleUnavailable, oracle_module


def doctor_report() -> dict[str, Any]:
    """Everything, as JSON values; `memory_bytes` and `cores` are what is left to this process."""
    return {
        "simjax": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "devices": _devices(),
        "engine": _engine(),
        "cores": cores(),
        "memory_bytes": int(memory_left()),
        "oracles": {name: _oracle(name) for name in ORACLES},
    }


def _engine() -> dict[str, Any]:
    """The engine that "auto" takes; nameless, with the reason, where JAX lacks the platform that was asked for."""
    try:
        engine = choose(SolveOptions())
    except RuntimeError as error:
        return {"name": None, "description": _none(error)}
    return {"name": engine.name, "description": engine.describe()}


def _packages() -> dict[str, str | None]:
    """Installed versions of what simjax requires and of what its extras for users bring; None where not installed."""
    try:
        required = importlib.metadata.requires("simjax") or []
    except importlib.metadata.PackageNotFoundError:  # a source tree that was never installed
        required = []
    wanted = [line for line in required if not re.search(r"extra == .(all|test|lint|docs|package|ray).", line)]
    names = dict.fromkeys(re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in wanted)
    return {name: _version(name) for name in names}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import jax  # here: the command line needs it for nothing else

    try:
        return [f"{device.platform}:{device.id} ({device.device_kind})" for device in jax.devices()]
    except RuntimeError as error:  # a platform was asked for that is not there
        return [_none(error)]


def _none(error: RuntimeError) -> str:
    """That there is none, and the reason on one line."""
    return f"none: {' '.join(str(error).split())}"


def _oracle(name: str) -> dict[str, Any]:
    """Whether an oracle can run now, its licence included, and if not why."""
    try:
        oracle_module(name).check_available()
    except OracleUnavailable as error:
        return {"available": False, "reason": str(error)}
    return {"available": True, "reason": None}
