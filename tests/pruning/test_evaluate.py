"""Zeros shared out by the user's own metric: what it is given, what is kept, and what is said of it."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import simjax
from simjax import plotting
from simjax.pruning.evaluation import weights_by_loss
from simjax.pruning.networks.linear_map import narrowed


def samples(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


INPUTS = samples(120, 6)


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(6, 20, rngs=rngs), nnx.Linear(20, 3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.second(self.drop(nnx.relu(self.first(x))))


def fidelity(network):
    """The smaller the error of the outputs, the better."""
    dense = Net()
    dense.eval()
    return -jnp.mean((network(INPUTS) - dense(INPUTS)) ** 2)


def test_the_best_by_the_users_metric_is_kept_and_all_are_reported():
    network, given, told = Net(), [], []

    def evaluate(candidate):
        assert type(candidate) is Net
        assert candidate.drop.deterministic  # evaluation mode
        given.append(fidelity(candidate))
        candidate.second.kernel[...] *= 0.0  # a copy, which may be spoilt
        return given[-1]

    result = simjax.prune(network, INPUTS, 0.6, allocation="global", evaluate=evaluate, progress=told.append)
    found = result.evaluation
    assert found.dense == given[0] == 0.0
    assert list(found.alone) == ["first", "second"]
    assert [one.name for one in found.candidates] == ["error curves", "sensitivity", "even"]
    assert [one.metric for one in found.candidates] == [float(value) for value in given[3:]]
    assert found.metric == max(one.metric for one in found.candidates)
    assert all(one.sparsity >= 0.6 - 1e-9 for one in found.candidates)
    assert found.candidates[2].shares == {"first": (0.6,), "second": (0.6,)}
    assert not result.network.drop.deterministic  # the modes of the one passed in
    result.network.eval()
    assert_allclose(fidelity(result.network), found.metric, rtol=1e-5)
    alike = simjax.prune(network, INPUTS, 0.6, allocation="global")
    # The share asked of a layer, to a whole weight of its 120.
    assert_allclose(alike.layers["first"].sparsity, found.candidates[0].shares["first"][0], atol=1.0 / 120.0)
    assert {each.stage for each in told} == {"one layer alone", "error curves", "sensitivity", "even"}
    assert [each.done for each in told] == [1, 2] * 4
    words = result.summary()
    assert f"{found.metric:.6g}" in words
    assert words.count("kept") == 1
    assert "kept" in repr(result.evaluation) or found.chosen in repr(result.evaluation)
    assert len(plotting.plot_prune(result).axes) == 3


def test_a_metric_that_only_likes_even_shares_gets_them():
    even = simjax.prune(Net(), INPUTS, 0.5)

    def evaluate(candidate):
        return float(np.count_nonzero(candidate.first.kernel[...]) == 60)

    result = simjax.prune(Net(), INPUTS, 0.5, allocation="global", evaluate=evaluate)
    assert result.evaluation.chosen == "even"
    assert_array_equal(result.network.first.kernel[...], even.network.first.kernel[...])
    assert_array_equal(result.network.second.kernel[...], even.network.second.kernel[...])


def test_without_any_loss_there_is_no_sensitivity_and_the_first_is_kept():
    result = simjax.prune(Net(), INPUTS, 0.5, allocation="global", evaluate=lambda network: 1)
    assert [one.name for one in result.evaluation.candidates] == ["error curves", "even"]
    assert result.evaluation.chosen == "error curves"


def test_a_layer_weighs_what_its_error_costs_and_never_nothing():
    found = weights_by_loss(1.0, {"a": 0.6, "b": 1.2, "c": 0.9}, {"a": 0.1, "b": 0.5, "c": 0.0})
    assert_allclose([found["a"], found["b"], found["c"]], [4.0, 0.1 * 0.5 / 3.0 / 0.5, 0.0])
    assert weights_by_loss(1.0, {"a": 1.0}, {"a": 0.1}) is None


def test_linen_variables_are_what_is_evaluated():
    network = linen.Sequential([linen.Dense(8), linen.relu, linen.Dense(2)])
    variables = network.init(jax.random.key(0), INPUTS[:1])

    def evaluate(candidate):
        return -np.abs(network.apply(candidate, INPUTS) - network.apply(variables, INPUTS)).mean()

    result = simjax.prune(network, INPUTS, 0.5, variables=variables, allocation="global", evaluate=evaluate)
    assert_allclose(evaluate(result.network), result.evaluation.metric, rtol=1e-6)


def test_what_evaluate_raises_comes_through():
    class Mine(Exception):
        pass

    def evaluate(network):
        raise Mine

    with pytest.raises(Mine):
        simjax.prune(Net(), INPUTS, 0.5, allocation="global", evaluate=evaluate)


@pytest.mark.parametrize(
    ("evaluate", "allocation", "error", "message"),
    [
        (
            lambda network: np.nan,
            "global",
            ValueError,
            "evaluate must give a finite number, got nan for the network as",
        ),
        (lambda network: np.inf, "global", ValueError, "evaluate must give a finite number, got inf"),
        (lambda network: None, "global", TypeError, "evaluate must give a number, the larger the better, got None"),
        (lambda network: np.ones(2), "global", TypeError, "evaluate must give a number.* got a ndarray"),
        ("accuracy", "global", TypeError, "evaluate must be callable or None, got str"),
        (lambda network: 1.0, "layer", ValueError, "evaluate needs allocation='global'"),
    ],
)
def test_bad_metrics_are_named(evaluate, allocation, error, message):
    with pytest.raises(error, match=message):
        simjax.prune(Net(), INPUTS, 0.5, allocation=allocation, evaluate=evaluate)


# ---- types ---------------------------------------------------------------------------------------------------------


def test_numbers_are_narrowed_as_far_as_they_fit():
    assert narrowed(np.array([65504.0, -65519.0]), np.float16).tolist() == [65504.0, -65504.0]
    with pytest.raises(ValueError, match="beyond what"):
        narrowed(np.array([65520.0]), np.dtype(np.float16))


# ---- PyTorch -------------------------------------------------------------------------------------------------------


def torch_net(torch):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))


def test_a_torch_network_is_evaluated_as_a_copy_without_hooks():
    torch = pytest.importorskip("torch")
    network, x = torch_net(torch), torch.as_tensor(INPUTS)

    def evaluate(candidate):
        assert not candidate.training
        assert not candidate[0]._forward_pre_hooks
        with torch.no_grad():
            found = -(candidate(x) - network.eval()(x)).square().mean()
            candidate[0].weight.zero_()
        return found

    network.eval()
    result = simjax.prune(network, INPUTS, 0.5, allocation="global", evaluate=evaluate)
    metric = result.evaluation.metric
    assert_allclose(float(evaluate(result.network)), metric, rtol=1e-5)


def test_torch_masks_are_refused_with_what_to_do():
    torch = pytest.importorskip("torch")
    import torch.nn.utils.prune as masks

    network = torch_net(torch)
    masks.l1_unstructured(network[0], "weight", amount=0.5)
    network(torch.as_tensor(INPUTS))
    with pytest.raises(ValueError, match=r"network has masks of torch\.nn\.utils\.prune on 0\.weight: .*remove"):
        simjax.prune(network, INPUTS, 0.5)
    masks.remove(network[0], "weight")
    assert simjax.prune(network, INPUTS, 0.5).converged


def test_torch_parametrisations_are_left_alone_with_what_to_do():
    torch = pytest.importorskip("torch")
    network = torch_net(torch)
    network[3] = torch.nn.utils.parametrizations.weight_norm(network[3])
    result = simjax.prune(network, INPUTS, 0.5)
    assert any("remove_parametrizations first" in other for other in result.others)
    with pytest.raises(ValueError, match=r"no linear layer.*remove_parametrizations"):
        simjax.prune(network[3:], samples(30, 8), 0.5)
