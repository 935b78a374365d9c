"""A model as a PyTorch module: the same outputs, and derivatives that are those of the equilibrium."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import simjax

torch = pytest.importorskip("torch")


def model_of(activation: str = "relu", *, biased: bool = True, diagonal: float = 0.0) -> simjax.ImplicitModel:
    """‖A‖∞ = 0.9 without `diagonal`, which is added to every a_ii."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((8, 8)) * (rng.random((8, 8)) < 0.5)
    A *= 0.9 / np.abs(A).sum(axis=1).max()
    parts = (A + diagonal * np.eye(8), *(rng.standard_normal(shape) for shape in ((8, 5), (3, 8), (3, 5))))
    b, c = (rng.standard_normal(8), rng.standard_normal(3)) if biased else (None, None)
    return simjax.ImplicitModel(*parts, activation=activation, b=b, c=c)


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((20, 5))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid", "identity"])
def test_outputs_are_the_models(activation: str, biased: bool, inputs: np.ndarray) -> None:
    model = model_of(activation, biased=biased)
    for stored in (model, model.to_csr()):
        module = stored.to_torch(dtype=torch.float64)
        with torch.no_grad():
            outputs = module(torch.as_tensor(inputs))
            one = module(torch.as_tensor(inputs[0]))
        assert outputs.dtype == torch.float64
        np.testing.assert_allclose(outputs.numpy(), model(inputs), rtol=0, atol=1e-9)
        np.testing.assert_allclose(one.numpy(), outputs[0].numpy(), rtol=0, atol=1e-12)
    single = model.to_torch()
    outputs = single(torch.as_tensor(inputs, dtype=torch.float32)).detach().numpy()
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, model(inputs), rtol=0, atol=2e-5)


@pytest.mark.parametrize("diagonal", [0.0, -6.0])
def test_derivatives_are_those_of_the_equilibrium(diagonal: float, inputs: np.ndarray) -> None:
    """By finite differences, of inputs and of every parameter."""
    module = model_of("tanh", diagonal=diagonal).to_torch(dtype=torch.float64)
    u = torch.as_tensor(inputs[:3]).requires_grad_()
    names = [name for name, _ in module.named_parameters()]

    def outputs(u: Any, *values: Any) -> Any:
        return torch.func.functional_call(module, dict(zip(names, values)), (u,))

    values = [value.detach().clone().requires_grad_() for value in module.parameters()]
    assert torch.autograd.gradcheck(outputs, (u, *values), eps=1e-6, atol=1e-7, rtol=1e-6)


def test_second_derivatives_are_refused(inputs: np.ndarray) -> None:
    module = model_of("tanh").to_torch(dtype=torch.float64)
    u = torch.as_tensor(inputs).requires_grad_()
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(module(u).sum(), u, create_graph=True)


def test_frozen_modules_and_inference_make_no_graph(inputs: np.ndarray) -> None:
    module = model_of().to_torch().requires_grad_(False)
    assert not module(torch.as_tensor(inputs, dtype=torch.float32)).requires_grad
    with torch.inference_mode():
        module(torch.as_tensor(inputs, dtype=torch.float32))


def test_a_missing_equilibrium_is_told(inputs: np.ndarray) -> None:
    model = simjax.ImplicitModel([[2.0]], np.ones((1, 5)), [[1.0]], np.zeros((1, 5)))
    with pytest.warns(simjax.EquilibriumWarning, match="of 20 samples did not reach an equilibrium in 50 passes"):
        model.to_torch(max_iters=50)(torch.as_tensor(inputs, dtype=torch.float32))
    with pytest.raises(ValueError, match="max_iters must be at least 1"):
        model.to_torch(max_iters=0)


def test_its_parameters_are_saved_and_loaded_by_name(inputs: np.ndarray) -> None:
    model = model_of()
    module, other = model.to_torch(), model_of("relu").scaled(np.full(8, 2.0)).to_torch()
    assert set(module.state_dict()) == {"A", "B", "C", "D", "b", "c"}
    other.load_state_dict(module.state_dict())
    u = torch.as_tensor(inputs, dtype=torch.float32)
    assert torch.equal(module(u), other(u))


@pytest.mark.parametrize("bias", [True, False])
def test_a_network_is_pruned_and_comes_back(bias: bool) -> None:
    """PyTorch to states, fit on the network's own architecture, and its weights put back into the network."""
    torch.manual_seed(0)
    nn = torch.nn
    network = nn.Sequential(nn.Linear(6, 5, bias=bias), nn.Tanh(), nn.Linear(5, 4, bias=bias), nn.Tanh())
    network.append(nn.Linear(4, 3, bias=bias))
    u = torch.randn(80, 6)
    states = simjax.collect_states(network, u)
    for objective, alpha, error in (("least_squares", None, 1e-6), ("l1", 1e-3, 0.1)):
        given = {} if alpha is None else {"alpha": alpha}
        model = simjax.fit(states, objective, support="architecture", kappa=None, **given).model
        weights, biases = model.to_layers()
        linear = [layer for layer in network if isinstance(layer, nn.Linear)]
        before = network(u).detach()
        with torch.no_grad():
            for layer, W, b in zip(linear, weights, biases, strict=True):
                layer.weight.copy_(torch.as_tensor(W))
                assert (b is not None) == bias
                if b is not None:
                    layer.bias.copy_(torch.as_tensor(b))
        after = network(u).detach()
        assert float((after - before).abs().max()) <= error
        np.testing.assert_allclose(after.numpy(), model(u.numpy()), rtol=0, atol=1e-6)
        np.testing.assert_allclose(model.to_torch()(u).detach().numpy(), model(u.numpy()), rtol=0, atol=1e-6)
