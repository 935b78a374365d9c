"""Which engine a solve runs on."""

from __future__ import annotations

import sys

from simjax.rows.engines.interface import Engine
from simjax.rows.engines.numpy_engine import NumpyEngine
from simjax.rows.options import SolveOptions
from simjax.rows.oracles.interface import ORACLES

_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin", "libtpu", "jax_metal")


def choose(options: SolveOptions, threads: int | None = None) -> Engine:
    """The engine that the options ask for; "auto" is JAX's for a mesh or an accelerator, NumPy's for a CPU.

    Args:
      threads: that NumPy's may use; None means all processors of this process.
    """
    if options.engine == "numpy" or options.solver in ORACLES:
        return NumpyEngine(threads=threads)
    if options.engine == "jax" or options.mesh is not None:
        return _jax_engine(options, "as asked" if options.engine == "jax" else "a mesh was given")
    if options.executor is not None:
        return NumpyEngine("workers of an executor", threads)
    backend = _accelerator()
    if backend is not None:
        return _jax_engine(options, f"the default backend is {backend}")
    return NumpyEngine("no accelerator and no mesh", threads)


def _jax_engine(options: SolveOptions, reason: str) -> Engine:
    from simjax.rows.engines.jax_engine import JaxEngine

    return JaxEngine(options.mesh, reason)


def _accelerator() -> str | None:
    """JAX's default backend, unless it is the CPU; without loading JAX where there is none but the CPU."""
    if "jax" not in sys.modules:
        from importlib.util import find_spec

        # What JAX runs accelerators by is a package of its own: where there is none, JAX would say "cpu".
        if not any(map(find_spec, _PLUGINS)):
            return None
    import jax

    backend = jax.default_backend()
    return None if backend == "cpu" else backend
