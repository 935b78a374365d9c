"""The programs that JAX compiles for the solvers, found without compiling them.

They can be lowered for a device that is not here, and the compiler can be asked what memory they take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.sharding import Mesh, PartitionSpec

import simjax
from simjax import functional
from simjax.rows.arrays import settings_of_its_own
from simjax.rows.attempts import RowBlock
from simjax.rows.engines.jax_engine import JaxEngine
from simjax.rows.options import SolveOptions
from simjax.rows.problem import RowProblem
from simjax.rows.progress import Reporter
from simjax.rows.workspace import Workspace


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and what it is called with.

    Attributes:
      name: for a person.
      compiled: what `jax.jit` returned.
      operands: trees of shapes and types.
    """

    name: str
    compiled: Any
    operands: tuple

    @property
    def single(self) -> bool:
        """Whether float32 is meant: nothing that goes in is float64."""
        return all(leaf.dtype != np.float64 for leaf in jax.tree.leaves(self.operands))

    def text(self, platform: str) -> str:
        """The StableHLO for the compiler of a platform, "cuda", "tpu", "rocm" or "cpu", which need not be here."""
        with settings_of_its_own():
            lowered = export.export(self.compiled, platforms=(platform,))(*self.operands)
        return str(lowered.mlir_module())

    def memory(self) -> dict[str, int]:
        """Bytes that go in, that come out and between them, as the default device's compiler sees it."""
        with settings_of_its_own():
            found = self.compiled.lower(*self.operands).compile().memory_analysis()
        return {
            "arguments": int(found.argument_size_in_bytes),
            "results": int(found.output_size_in_bytes),
            "temporaries": int(found.temp_size_in_bytes),
        }


# --- Of the engine -----------------------------------------------------------------------------------------------


class Recording(JaxEngine):
    """JAX's engine that notes what it would compile, and lets NumPy work it out, on the same padded arrays.

    Args:
      backend: for which it cuts rows into tiles, whatever is here.
    """

    def __init__(self, mesh: Mesh | None = None, *, backend: str = "cuda") -> None:
        super().__init__(mesh)
        self.backend = backend
        self.programs: dict[tuple, Program] = {}

    def _run(self, *arguments: Any) -> Any:
        function, shared, by_row, state, index, _, static = arguments
        compiled, operands = self.prepared(*arguments)
        shapes = jax.tree.map(_shape, operands)
        name = " ".join(
            [function.__name__.lstrip("_"), *(_plain(value) for value in static.values()), _precision(shapes)]
        )
        self.programs.setdefault((name, str(shapes)), Program(name, compiled, shapes))
        trees = jax.tree.map(np.array, (*shared, *by_row, *(() if state is None else (state,))))
        with np.errstate(all="ignore"):
            found = function(*trees, **static)
        if state is None:
            return found
        at_work = np.isin(np.arange(jax.tree.leaves(found)[0].shape[0]), index)
        kept = jax.tree.map(lambda old, new: np.where(at_work[:, None], new, old), trees[-1], found)
        return self.spread(kept)


def engine_programs(
    problem: RowProblem, options: SolveOptions, *, mesh: Mesh | None = None, backend: str = "cuda"
) -> list[Program]:
    """What the JAX engine compiles to solve a problem on a backend, which need not be here; each program once."""
    engine = Recording(mesh, backend=backend)
    block = RowBlock.make(problem, Workspace(problem.design), options, engine, Reporter(None, problem.count))
    block.solve(None)
    return list(engine.programs.values())


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype, sharding=getattr(leaf, "sharding", None))


def _plain(value: Any) -> str:
    return getattr(value, "__name__", str(value)).rpartition(".")[2]


def _precision(shapes: Any) -> str:
    return "float64" if any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(shapes)) else "float32"


# --- Of the functional API ---------------------------------------------------------------------------------------

Penalties = Callable[[Any], simjax.Penalty]


def functional_programs(
    m: int,
    d: int,
    rows: int,
    dtype: Any,
    *,
    penalty: Penalties = simjax.L1,
    mesh: Mesh | None = None,
    forms: tuple[str, ...] = ("solve", "vmap", "gradient", "tangent", "sharded"),
    **problem: Any,
) -> list[Program]:
    """`functional.solve_rows` of a design (m, d) by itself and under transformations, as programs of (Φ, T, α).

    Args:
      penalty: of a traced α.
      mesh: for "sharded".
      forms: "solve"; "vmap" over four designs and as many alphas; "gradient", reverse mode with respect to everything;
        "tangent", forward mode; "sharded", `shard_map` over rows.
      problem: further arguments of `solve_rows`.
    """

    def solve(design: Any, targets: Any, alpha: Any) -> functional.SolvedRows:
        return functional.solve_rows(design, targets, penalty=penalty(alpha), **problem)

    def total(design: Any, targets: Any, alpha: Any) -> Any:
        found = solve(design, targets, alpha)
        return jnp.sum(found.weights) + jnp.sum(found.dual)

    def tangent(*operands: Any) -> Any:
        return jax.jvp(solve, operands, operands)

    def sharded(*operands: Any) -> Any:
        specs = (PartitionSpec(), PartitionSpec(None, mesh.axis_names), PartitionSpec())  # type: ignore[union-attr]
        spread = PartitionSpec(mesh.axis_names)  # type: ignore[union-attr]
        return jax.shard_map(solve, mesh=mesh, in_specs=specs, out_specs=spread)(*operands)

    functions = {
        "solve": solve,
        "vmap": jax.vmap(solve),
        "gradient": jax.grad(total, argnums=(0, 1, 2)),
        "tangent": tangent,
        "sharded": sharded,
    }
    shapes = ((m, d), (m, rows), ())
    found = []
    for form in forms:
        if form == "sharded" and mesh is None:
            continue
        lead = (4,) if form == "vmap" else ()
        operands = tuple(jax.ShapeDtypeStruct((*lead, *shape), dtype) for shape in shapes)
        name = f"functional {form} {np.dtype(dtype).name}"
        found.append(Program(name, jax.jit(functions[form]), operands))
    return found
