"""Flax networks: baselines to imitate, and their training."""

from simjax.nn.mlp import MLP
from simjax.nn.training import RECOMMENDED, TrainingReport, accuracy, train

__all__ = ["MLP", "RECOMMENDED", "TrainingReport", "accuracy", "train"]
