"""A model as named arrays and strings, as files hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from simjax._version import __version__
from simjax.implicit.matrices import Parts, is_sparse

FORMAT = "simjax-implicit-model"
FORMAT_VERSION = 1


class Described(Parts, Protocol):
    """An `ImplicitModel`, as far as a file holds it."""

    @property
    def activation(self) -> str: ...

    @property
    def storage(self) -> str: ...

    @property
    def metadata(self) -> Any: ...


def tensors_of_model(model: Described) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The model as named arrays and strings, from which `parts_of_model` makes its parts again."""
    tensors: dict[str, np.ndarray] = {}
    for name in "ABCD":
        M = getattr(model, name)
        if is_sparse(M):
            tensors[f"{name}.data"] = M.data
            tensors[f"{name}.indices"] = M.indices.astype(np.int64)
            tensors[f"{name}.indptr"] = M.indptr.astype(np.int64)
        else:
            tensors[name] = np.ascontiguousarray(M)
    tensors |= {name: getattr(model, name) for name in "bc" if getattr(model, name) is not None}
    header = {
        "format_version": str(FORMAT_VERSION),
        "simjax_version": __version__,
        "activation": model.activation,
        "storage": model.storage,
        "shapes": json.dumps({name: list(getattr(model, name).shape) for name in "ABCD"}),
        "metadata": json.dumps(model.metadata),
    }
    return tensors, header


def parts_of_model(tensors: Mapping[str, np.ndarray], header: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of `ImplicitModel` that `tensors_of_model` took apart.

    Raises:
      KeyError, TypeError, ValueError: something is missing or does not fit.
    """
    shapes = {name: tuple(shape) for name, shape in json.loads(header["shapes"]).items()}
    read = {"csr": _read_csr, "dense": _read_dense}.get(header["storage"])
    if read is None:
        raise ValueError(f"its storage is {header['storage']!r}, expected 'dense' or 'csr'.")
    return {
        **{name: read(tensors, name, shapes[name]) for name in "ABCD"},
        "activation": header["activation"],
        "b": tensors.get("b"),
        "c": tensors.get("c"),
        "metadata": json.loads(header["metadata"]),
    }


def _read_dense(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, int]) -> np.ndarray:
    if tensors[name].shape != shape:
        raise ValueError(f"{name} has shape {tensors[name].shape}, its header says {shape}.")
    return tensors[name]


def _read_csr(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, int]) -> sp.csr_array:
    csr = sp.csr_array((tensors[f"{name}.data"], tensors[f"{name}.indices"], tensors[f"{name}.indptr"]), shape=shape)
    csr.check_format(full_check=True)  # indices within the shape, so that no product reads out of bounds
    return csr
