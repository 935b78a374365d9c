"""The row solver as a pure function of arrays, for JAX programs: jit, vmap, shard_map, scan, and derivatives of it.

`simjax.solve_rows` is for whoever wants many rows solved; `simjax.functional.solve_rows` for whoever calls a solver
inside a program of his own. docs/jax.md says when to use which.
"""

from simjax.functional.solve import SolvedRows, solve_rows, status_names
from simjax.rows.arrays import register_pytrees

register_pytrees()

__all__ = ["SolvedRows", "solve_rows", "status_names"]
