"""simjax: state-driven implicit modeling in JAX, with a certificate for every row."""

from simjax.certificate import Certificate, certify
from simjax.constraints import Free, L1Ball, MetzlerRow
from simjax.fit import FitResult, adaptive_weights, fit, verify_model
from simjax.low_rank import LowRank
from simjax.model import EquilibriumInfo, EquilibriumWarning, ImplicitModel
from simjax.path import Path, path
from simjax.penalties import L1, ElasticNet, NoPenalty, Penalty, Perspective, Ridge
from simjax.problem import RowProblem, row_problem
from simjax.solve import Solution, solve_rows
from simjax.solvers.iterate import Progress
from simjax.states import States, collect_states
from simjax.status import ConvergenceWarning, Status
from simjax.streaming import StreamedCertificate, StreamedStates, SufficientStatistics, recertify, stream_states
from simjax.verify import Verification

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
