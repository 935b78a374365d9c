"""The standard problem on real data: 784-64-32-16-10 on Fashion-MNIST, m = 500, certified and checked by an oracle."""

import numpy as np
import pytest

import simjax
from simjax import datasets
from simjax.nn import MLP, RECOMMENDED, accuracy, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(datasets.find_fashion_mnist() is None, reason="the Fashion-MNIST files are not on this machine"),
]


@pytest.fixture(scope="module")
def trained():
    data, network = datasets.load("fashion-mnist"), MLP()
    train(network, data.train_inputs, data.train_labels, **RECOMMENDED["fashion-mnist"])
    assert accuracy(network, data.test_inputs, data.test_labels) >= 0.87
    return simjax.collect_states(network, data.train_inputs[:200])


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("l1", {"support": "full", "units": "rescaled"}),  # the paper's own setting
        ("perspective", {"mu": 1e-5, "support": "feedforward"}),
    ],
)
def test_every_row_is_certified_and_a_sample_verified(trained, objective, options):
    pytest.importorskip("clarabel")
    result = simjax.fit(trained, objective, **options)
    assert result.converged
    assert result.status.size == 122
    assert result.certificate.relative_gap.max() <= 1e-6
    assert result.model.well_posedness <= 0.99 + 1e-12
    verification = result.verify(rows=4)
    assert verification.ok
    assert np.abs(verification.difference).max() <= 1e-6
