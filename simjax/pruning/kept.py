"""A folder of finished layers, from which a `prune` that was stopped goes on.

`checkpoint.json` says of which network, inputs and settings they are. Each layer has a folder named by its number and
by the digest of all that it follows from: what it saw, its weights, its share of zeros. In it are its support and
the checkpoint of its refit. So a layer is taken from it only where it would come out the same.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from simjax._files import read_safetensors, write_safetensors
from simjax._version import __version__
from simjax.pruning.problem import LayerProblem
from simjax.rows.checkpoint import Checkpoint
from simjax.rows.fingerprint import DIVISION, Fingerprint, digest

_MARKER, _VERSION = "simjax-pruned-support", 1


@dataclasses.dataclass(frozen=True)
class KeptLayer:
    """What is kept of one layer, or of one group of its channels.

    Attributes:
      folder: where it is.
    """

    folder: Path

    @property
    def rows(self) -> Path:
        """The checkpoint of the refit."""
        return self.folder / "rows"

    def support(self, find: Callable[[], np.ndarray]) -> np.ndarray:
        """The support (out, in) that is kept, or what `find` gives, which is kept then.

        Raises:
          OSError: there is no room, or the folder cannot be written; the layers before are as they were.
        """
        path = self.folder / "support.safetensors"
        try:
            tensors, header = read_safetensors(path, _MARKER, _VERSION)
            if header.get("sha256") == digest(tensors):
                return tensors["support"]
        except (FileNotFoundError, ValueError):  # not there, or truncated
            pass
        tensors = {"support": find()}
        self.folder.mkdir(exist_ok=True)
        header = {"sha256": digest(tensors)}
        write_safetensors(path, tensors, header, marker=_MARKER, version=_VERSION, overwrite=True)
        return tensors["support"]


@dataclasses.dataclass(frozen=True)
class KeptLayers:
    """The finished layers of one call of `prune`.

    Attributes:
      folder: where they are.
    """

    folder: Path

    @classmethod
    def begin(cls, folder: str | PathLike[str], settings: Mapping[str, Any]) -> KeptLayers:
        """Make the folder, or compare it with what it shall be gone on with.

        Args:
          settings: all that the layers follow from, by name: numbers, names, arrays and containers of them.

        Raises:
          FileExistsError, NotADirectoryError, OSError, ValueError: as `Checkpoint.begin`.
        """
        values = {"simjax version": __version__, **settings, **dict.fromkeys(DIVISION, 1)}
        words = {name: str(value) for name, value in values.items() if isinstance(value, str | int | float)}
        mark = Fingerprint({name: digest(value) for name, value in values.items()}, words)
        path = Path(os.fspath(folder))
        Checkpoint(path, mark, rows=1, block=1, about={}).begin((), lambda number: {})
        return cls(path)

    def layer(self, number: int, group: int, settings: Mapping[str, Any], problem: LayerProblem) -> KeptLayer:
        """The place of a layer, by its number in the network's order, a group of its channels, and its problem."""
        own = digest({"problem": problem, **settings})
        return KeptLayer(self.folder / f"layer-{number:04d}-{group}-{own[:16]}")
