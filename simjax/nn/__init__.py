"""Flax networks: baselines to imitate, implicit layers among them, and their training."""

from simjax.nn.geq import GEQ
from simjax.nn.implicit import ImplicitLayer, ImplicitRNN
from simjax.nn.lben import LBEN
from simjax.nn.linear_deq import LinearDEQ
from simjax.nn.mlp import MLP
from simjax.nn.mondeq import MonDEQ
from simjax.nn.nemon import NEMON
from simjax.nn.opteq import OptEq
from simjax.nn.resnet import ResNet
from simjax.nn.single_index import SingleIndexDEQ
from simjax.nn.training import RECOMMENDED, TrainingReport, accuracy, train

__all__ = [
    "GEQ",
    "LBEN",
    "MLP",
    "NEMON",
    "RECOMMENDED",
    "ImplicitLayer",
    "ImplicitRNN",
    "LinearDEQ",
    "MonDEQ",
    "OptEq",
    "ResNet",
    "SingleIndexDEQ",
    "TrainingReport",
    "accuracy",
    "train",
]
