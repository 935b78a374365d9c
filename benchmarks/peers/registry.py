"""The peers by name, and what they need. The package itself imports nothing: see `__main__.use_cores`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from benchmarks.peers import conic, lasso, own, torchidl
from benchmarks.peers.common import Task
from benchmarks.problems import Problem

REFERENCE = "reference"  # not a peer: the dual points by which the others' weights are judged


def _solves_all(_: Problem) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class Peer:
    """A solver.

    Attributes:
      run: a task to the peer's record.
      refuses: why the peer does not solve a problem, or None if it does.
      environment: the one it runs in, by its name in `benchmarks.peers.environments`; None for this one.
    """

    run: Callable[[Task], dict[str, Any]]
    refuses: Callable[[Problem], str | None] = _solves_all
    environment: str | None = None


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "simjax": Peer(own.run),
        "clarabel-residual": Peer(functools.partial(conic.clarabel, form="residual")),
        "clarabel-gram": Peer(functools.partial(conic.clarabel, form="gram")),
        "mosek": Peer(conic.mosek),
        "torchidl-cvx": Peer(torchidl.cvx, torchidl.refuses, "torchidl"),
        "torchidl-admm": Peer(torchidl.admm, torchidl.refuses, "torchidl"),
        "scikit-learn": Peer(functools.partial(lasso.run, solver="scikit-learn"), lasso.refuses),
        **{
            name: Peer(functools.partial(lasso.run, solver=name), lasso.refuses, name)
            for name in ("celer", "skglm", "adelie")
        },
    }
)
