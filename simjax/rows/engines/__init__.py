"""Two engines for one source: NumPy over threads, and JAX, compiled, on any of its devices.

Solvers are written once, as functions of arrays (`simjax.rows.arrays`); an engine runs them on tiles of rows.
"""

from simjax.rows.engines.choose import choose
from simjax.rows.engines.interface import Engine

__all__ = ["Engine", "choose"]
