"""CIFAR-100 with ResNet-20 as the SIM paper has it, for a GPU: `python -m experiments cifar-full`.

`experiments.cifar` at the full resolution of 32×32 pixels, after 200 epochs of training. The last block then has
n = 8,192 states over p = 4,096 inputs; its 8,292 rows are solved in blocks.
"""

from __future__ import annotations

from experiments.cifar import QUICK, Variant, experiment
from experiments.train_resnet import Recipe

EXPERIMENT = experiment(
    "cifar-full",
    "CIFAR-100 at full resolution: sparsity of ResNet-20's last block",
    Variant(Recipe(), max_memory=16e9, quick=QUICK),
)
