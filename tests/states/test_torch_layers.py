"""PyTorch networks: their states are what they compute, and what is not read is named."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import simjax

torch = pytest.importorskip("torch")
nn = torch.nn


def chain(*sizes: int, activation: Any = nn.ReLU, bias: bool = True, dtype: Any = torch.float32) -> Any:
    torch.manual_seed(0)
    layers: list[Any] = []
    for k, (p, q) in enumerate(pairwise(sizes)):
        layers += ([activation()] if k else []) + [nn.Linear(p, q, bias=bias, dtype=dtype)]
    return nn.Sequential(*layers)


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((30, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("activation", "name"),
    [(nn.ReLU, "relu"), (nn.Tanh, "tanh"), (nn.Sigmoid, "sigmoid"), (nn.LeakyReLU, "leaky_relu")],
)
def test_states_are_those_of_the_network(activation: Any, name: str, dtype: Any, inputs: np.ndarray) -> None:
    network = chain(6, 5, 4, 3, activation=activation, dtype=dtype)
    states = simjax.collect_states(network, inputs)
    assert (states.activation, states.layer_sizes, states.has_biases) == (name, (5, 4), True)
    with torch.no_grad():
        outputs = network(torch.as_tensor(inputs, dtype=dtype)).numpy()
    np.testing.assert_allclose(states.outputs, outputs, atol=1e-6 if dtype == torch.float32 else 1e-14)


def test_the_network_is_left_as_it_is(inputs: np.ndarray) -> None:
    network = chain(6, 5, 3).train()
    network.append(nn.Dropout(0.5))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    simjax.collect_states(network, torch.as_tensor(inputs, dtype=torch.float32, device="cpu").requires_grad_())
    assert network.training
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    assert torch.equal(torch.get_rng_state(), state)


class Own(nn.Module):
    """Layers in another order than they run in, functional activations, one layer used twice, images as inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.middle, self.first = nn.Linear(4, 2), nn.Linear(4, 4, bias=False), nn.Linear(6, 4)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.first(x.flatten(1)))
        return self.last(torch.relu(self.middle(torch.relu(self.middle(x)))))


def test_how_the_network_is_written_does_not_matter(inputs: np.ndarray) -> None:
    network = Own()
    states = simjax.collect_states(network, inputs.reshape(30, 2, 3))
    assert states.layer_sizes == (4, 4, 4)
    with torch.no_grad():
        outputs = network(torch.as_tensor(inputs.reshape(30, 2, 3), dtype=torch.float32)).numpy()
    np.testing.assert_allclose(states.outputs, outputs, atol=1e-6)
    assert simjax.collect_states(network, inputs, layers=1).layer_sizes == (4,)


class Gelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        return self.b(nn.functional.gelu(self.a(x)))


def between(*layers: Any) -> Any:
    return nn.Sequential(nn.Linear(6, 4), *layers, nn.Linear(4, 2))


class Failing(nn.Linear):
    def forward(self, x: Any) -> Any:
        raise RuntimeError("mine\nand more")


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (between(nn.BatchNorm1d(4), nn.ReLU()), TypeError, r"BatchNorm1d \(1\)"),
        (between(nn.GELU()), TypeError, r"between linear layers 1.*GELU \(1\)"),
        (Gelu(), TypeError, r"It is gelu \(exact\)"),
        (chain(7, 4, 2), ValueError, "takes 7 numbers a sample; it received 6"),
        (nn.Sequential(nn.Linear(6, 4)), ValueError, "no hidden layer"),
        (nn.Sequential(*chain(6, 4, 2), nn.Softmax(1)), TypeError, "logits, not softmax"),
        (nn.ReLU(), TypeError, "ran no linear layer"),
        (Failing(6, 2), TypeError, r"Failing could not be run on its inputs.*RuntimeError: mine\)"),
    ],
)
def test_what_is_not_read_is_named(network: Any, error: Any, message: str, inputs: np.ndarray) -> None:
    with pytest.raises(error, match=message):
        simjax.collect_states(network, inputs)


def test_variables_are_for_linen(inputs: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a PyTorch module carries its own"):
        simjax.collect_states(chain(6, 4, 2), inputs, variables={"params": {}})
