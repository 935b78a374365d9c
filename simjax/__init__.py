"""simjax: state-driven implicit modeling in JAX, with a certificate for every row."""

from simjax.implicit.model import EquilibriumInfo, EquilibriumWarning, ImplicitModel
from simjax.rows.certificate import Certificate, certify
from simjax.rows.constraints import Free, L1Ball, MetzlerRow
from simjax.rows.penalties import L1, ElasticNet, NoPenalty, Penalty, Perspective, Ridge
from simjax.rows.problem import RowProblem, row_problem
from simjax.rows.solution import Solution
from simjax.rows.solve import solve_rows
from simjax.rows.progress import Progress
from simjax.rows.status import ConvergenceWarning, Status
from simjax.rows.verify import Verification
from simjax.sim.fit import FitResult, adaptive_weights, fit, verify_model
from simjax.sim.low_rank import LowRank
from simjax.sim.path import Path, path
from simjax.states.states import States, collect_states
from simjax.states.streamed import StreamedCertificate, StreamedStates, SufficientStatistics, recertify, stream_states

__version__ = "0.1.0"

__all__ = [
    "L1",
    "Certificate",
    "ConvergenceWarning",
    "ElasticNet",
    "EquilibriumInfo",
    "EquilibriumWarning",
    "FitResult",
    "Free",
    "ImplicitModel",
    "L1Ball",
    "LowRank",
    "MetzlerRow",
    "NoPenalty",
    "Path",
    "Penalty",
    "Perspective",
    "Progress",
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
    "certify",
    "collect_states",
    "fit",
    "path",
    "recertify",
    "row_problem",
    "solve_rows",
    "stream_states",
    "verify_model",
]
