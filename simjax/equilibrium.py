"""The equilibrium x = φ(Ax + Bu + b) and its implicit derivatives: the public face of `simjax.implicit.equilibrium`."""

from simjax.implicit.equilibrium import (
    Equilibrium,
    affine,
    average_step,
    eliminate_diagonal,
    equilibrium,
    fixed_point,
)
from simjax.implicit.loop import Solver
from simjax.implicit.report import EquilibriumInfo as Report

__all__ = [
    "Equilibrium",
    "Report",
    "Solver",
    "affine",
    "average_step",
    "eliminate_diagonal",
    "equilibrium",
    "fixed_point",
]
