"""How far an output can move: Lipschitz bounds, boxes, attacks."""

from simjax.implicit.wellposed import matrix_measure, metzler, optimal_weights
from simjax.robustness.attacks import differentiable, fgsm, pgd
from simjax.robustness.boxes import Box, certified_accuracy, certified_radii, output_box
from simjax.robustness.lipschitz import (
    LipschitzBounds,
    ResidualCertificate,
    lipschitz_bounds,
    lipschitz_lmi,
    monotonicity,
    residual_certificate,
    sampled_lipschitz,
)

__all__ = [
    "Box",
    "LipschitzBounds",
    "ResidualCertificate",
    "certified_accuracy",
    "certified_radii",
    "differentiable",
    "fgsm",
    "lipschitz_bounds",
    "lipschitz_lmi",
    "matrix_measure",
    "metzler",
    "monotonicity",
    "optimal_weights",
    "output_box",
    "pgd",
    "residual_certificate",
    "sampled_lipschitz",
]
