"""simjax: state-driven implicit modeling in JAX, with a certificate for every row.

Names and submodules are imported when first asked for (PEP 562), so that `import simjax` costs almost nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from simjax._version import __version__ as __version__

if TYPE_CHECKING:  # what type checkers and editors read; the same as `_NAMES`, which a test compares
    from simjax import cluster, datasets, equilibrium, functional, nn, plotting, rescaling, robustness, sklearn, states  # noqa: F401
    from simjax.implicit.model import ImplicitModel
    from simjax.implicit.report import EquilibriumInfo, EquilibriumWarning
    from simjax.pruning.layer import prune_layer
    from simjax.pruning.network_result import PrunedMap, PrunedNetwork, PruneProgress
    from simjax.pruning.prune import prune
    from simjax.pruning.result import PrunedLayer
    from simjax.pruning.statistics import LayerStatistics
    from simjax.rows.certificate import Certificate, certify
    from simjax.rows.constraints import Box, Free, L1Ball, MetzlerRow
    from simjax.rows.group_penalty import GroupL1
    from simjax.rows.penalties import L1, ElasticNet, NoPenalty, Penalty, Perspective, Ridge
    from simjax.rows.penalty_range import alpha_max
    from simjax.rows.problem import RowProblem, row_problem
    from simjax.rows.progress import Progress
    from simjax.rows.solution import Solution
    from simjax.rows.solve import solve_rows
    from simjax.rows.statistics import SufficientStatistics
    from simjax.rows.status import ConvergenceWarning, Status
    from simjax.rows.verify import Verification
    from simjax.sim.adaptive import adaptive_weights
    from simjax.sim.fit import fit
    from simjax.sim.low_rank import LowRank
    from simjax.sim.path import Path, path
    from simjax.sim.recertify import StreamedCertificate, recertify
    from simjax.sim.result import FitResult
    from simjax.sim.shards import fit_shard, merge
    from simjax.sim.verify_model import verify_model
    from simjax.states.collect import collect_states
    from simjax.states.mapped import MappedStates
    from simjax.states.states import States
    from simjax.states.streamed import StreamedStates, stream_states

_NAMES = {
    "simjax.implicit.model": ("ImplicitModel",),
    "simjax.implicit.report": ("EquilibriumInfo", "EquilibriumWarning"),
    "simjax.pruning.layer": ("prune_layer",),
    "simjax.pruning.network_result": ("PruneProgress", "PrunedMap", "PrunedNetwork"),
    "simjax.pruning.prune": ("prune",),
    "simjax.pruning.result": ("PrunedLayer",),
    "simjax.pruning.statistics": ("LayerStatistics",),
    "simjax.rows.certificate": ("Certificate", "certify"),
    "simjax.rows.constraints": ("Box", "Free", "L1Ball", "MetzlerRow"),
    "simjax.rows.group_penalty": ("GroupL1",),
    "simjax.rows.penalties": ("L1", "ElasticNet", "NoPenalty", "Penalty", "Perspective", "Ridge"),
    "simjax.rows.penalty_range": ("alpha_max",),
    "simjax.rows.problem": ("RowProblem", "row_problem"),
    "simjax.rows.progress": ("Progress",),
    "simjax.rows.solution": ("Solution",),
    "simjax.rows.solve": ("solve_rows",),
    "simjax.rows.statistics": ("SufficientStatistics",),
    "simjax.rows.status": ("ConvergenceWarning", "Status"),
    "simjax.rows.verify": ("Verification",),
    "simjax.sim.adaptive": ("adaptive_weights",),
    "simjax.sim.fit": ("fit",),
    "simjax.sim.low_rank": ("LowRank",),
    "simjax.sim.path": ("Path", "path"),
    "simjax.sim.recertify": ("StreamedCertificate", "recertify"),
    "simjax.sim.result": ("FitResult",),
    "simjax.sim.shards": ("fit_shard", "merge"),
    "simjax.sim.verify_model": ("verify_model",),
    "simjax.states.collect": ("collect_states",),
    "simjax.states.mapped": ("MappedStates",),
    "simjax.states.states": ("States",),
    "simjax.states.streamed": ("StreamedStates", "stream_states"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
_SUBMODULES = (
    "cluster",
    "datasets",
    "equilibrium",
    "functional",
    "nn",
    "plotting",
    "rescaling",
    "robustness",
    "sklearn",
    "states",
)

__all__ = [
    "L1",
    "Box",
    "Certificate",
    "ConvergenceWarning",
    "ElasticNet",
    "EquilibriumInfo",
    "EquilibriumWarning",
    "FitResult",
    "Free",
    "GroupL1",
    "ImplicitModel",
    "L1Ball",
    "LayerStatistics",
    "LowRank",
    "MappedStates",
    "MetzlerRow",
    "NoPenalty",
    "Path",
    "Penalty",
    "Perspective",
    "Progress",
    "PruneProgress",
    "PrunedLayer",
    "PrunedMap",
    "PrunedNetwork",
    "Ridge",
    "RowProblem",
    "Solution",
    "States",
    "Status",
    "StreamedCertificate",
    "StreamedStates",
    "SufficientStatistics",
    "Verification",
    "adaptive_weights",
    "alpha_max",
    "certify",
    "collect_states",
    "fit",
    "fit_shard",
    "merge",
    "path",
    "prune",
    "prune_layer",
    "recertify",
    "row_problem",
    "solve_rows",
    "stream_states",
    "verify_model",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"simjax.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'simjax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
