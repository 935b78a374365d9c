"""Three clusters under the name of the digits, for the experiments that train on them."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import simjax
from experiments import against_implicit, networks
from simjax.app.demo import Recipe
from simjax.datasets import Dataset

P, Q = 6, 3


@pytest.fixture
def tiny(monkeypatch):
    """Three clusters under the name of the digits, with a small network for them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, Q, 90)
    inputs = np.clip(0.5 + 0.3 * np.eye(P)[labels] + 0.1 * rng.normal(size=(90, P)), 0, 1)
    data = Dataset("digits", inputs[:60], labels[:60], inputs[60:], labels[60:], ("a", "b", "c"))
    for module in (against_implicit, networks):
        monkeypatch.setattr(module.datasets, "load", lambda name: data)
        monkeypatch.setattr(module, "RECOMMENDED", {"digits": {"epochs": 8, "batch_size": 20, "learning_rate": 2e-2}})
    # One method instead of the portfolio, for the sake of its shorter compilation.
    monkeypatch.setattr(simjax, "fit", functools.partial(simjax.fit, solver="admm"))
    monkeypatch.setattr(against_implicit, "RECIPES", {"digits": Recipe((P, 5, 4, Q), samples=40, alpha=1e-3)})
    monkeypatch.setattr(against_implicit, "QUICK_SAMPLES", 40)
    monkeypatch.setattr(networks, "STATES", 9)
    monkeypatch.setattr(networks, "HIDDEN", (5, 4))
    return data
