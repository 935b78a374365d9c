"""The user's settings of JAX or PyTorch do not break `prune`; what is no plain product is never pruned silently."""

import contextlib
import functools
import warnings

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze
from jax.sharding import NamedSharding, PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal

import simjax


def samples(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Net(nnx.Module):
    """A convolution and two linear layers, or what stands for the first of these."""

    def __init__(self, middle=None):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(2, 3, (2,), padding=((1, 0),), strides=2, rngs=rngs)
        self.middle = nnx.Linear(9, 9, rngs=rngs) if middle is None else middle
        self.out = nnx.Linear(9, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return self.out(nnx.relu(self.middle(x.reshape(*x.shape[:-2], 9))))


INPUTS = samples(40, 6, 2)


def weights_of(result):
    return [np.asarray(part.kernel[...]) for part in (result.network.conv, result.network.middle, result.network.out)]


@contextlib.contextmanager
def strict():
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("strict"))
        stack.enter_context(jax.numpy_rank_promotion("raise"))
        stack.enter_context(jax.debug_nans(True))
        stack.enter_context(jax.debug_infs(True))
        stack.enter_context(jax.transfer_guard("disallow"))
        yield INPUTS


@contextlib.contextmanager
def double():
    with jax.enable_x64(True):
        yield INPUTS


@contextlib.contextmanager
def on_a_mesh():
    with jax.set_mesh(jax.make_mesh((1,), ("rows",))):
        yield INPUTS


@contextlib.contextmanager
def sharded():
    mesh = jax.make_mesh((1,), ("rows",))
    with jax.set_mesh(mesh):
        yield jax.device_put(INPUTS, NamedSharding(mesh, PartitionSpec("rows")))


@pytest.mark.parametrize("settings", [strict, double, on_a_mesh, sharded])
def test_the_users_settings_change_nothing_and_nothing_is_printed(settings, capfd):
    network = Net()
    expected = simjax.prune(network, INPUTS, 0.5)
    with settings() as inputs, warnings.catch_warnings():
        warnings.simplefilter("error")
        found = simjax.prune(network, inputs, 0.5)
    for one, other in zip(weights_of(found), weights_of(expected), strict=True):
        assert one.dtype == other.dtype == np.float32
        assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert capfd.readouterr() == ("", "")


class Scaled(nnx.Linear):
    """Multiplies by twice its kernel."""

    def __call__(self, x):
        return self.dot_general(x, 2.0 * self.kernel[...], (((x.ndim - 1,), (0,)), ((), ())))


class Stacked(nnx.Module):
    """As many layers as inputs in one kernel, run one after the other."""

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 9)
        self.layers = nnx.vmap(lambda key: nnx.Linear(9, 9, rngs=nnx.Rngs(key)))(keys)

    def __call__(self, x):
        return nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)


class Mapped(nnx.Module):
    def __init__(self):
        self.inner = nnx.Linear(9, 9, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return jax.vmap(self.inner)(x)


class Checkpointed(Mapped):
    def __call__(self, x):
        return jax.checkpoint(self.inner)(x)


@pytest.mark.parametrize(
    ("middle", "why"),
    [
        (lambda: Scaled(9, 9, use_bias=False, rngs=nnx.Rngs(0)), "middle (Scaled, multiplied by something other"),
        (Stacked, "middle.layers (Linear)"),
        (Mapped, "middle.inner (Linear, run inside a transformation"),
        (Checkpointed, "middle.inner (Linear, run inside a transformation"),
    ],
)
def test_what_is_no_plain_product_is_left_alone_and_named(middle, why):
    network = Net(middle())
    result = simjax.prune(network, INPUTS, 0.5)
    assert list(result.layers) == ["conv", "out"]
    assert any(other.startswith(why) for other in result.others), result.others
    assert why in result.summary()
    jax.tree.map(assert_array_equal, nnx.state(result.network.middle, nnx.Param), nnx.state(network.middle, nnx.Param))


def test_kernels_that_the_network_itself_rescales_are_no_answer():
    network = Net(nnx.WeightNorm(nnx.Linear(9, 9, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1)))
    network(jnp.asarray(INPUTS))  # from here on the kernel is what it is made to be
    name = "middle.layer_instance"
    result = simjax.prune(network, INPUTS, 0.5)
    assert f"{name} (Linear, multiplied by something other than its kernel)" in result.others
    assert list(result.layers) == ["conv", "out"]


class Subclass(nnx.Linear):
    def __call__(self, x):
        return 3.0 * super().__call__(nnx.tanh(x))


def counted(calls):
    def product(*args, **kwargs):
        calls.append(args[0].shape)
        return jax.lax.dot_general(*args, **kwargs)

    return product


@pytest.mark.parametrize("kind", ["subclass", "dot_general_cls", "preferred_element_type"])
def test_a_product_of_ones_own_is_kept_and_read(kind):
    calls = []
    middle = {
        "subclass": lambda: Subclass(9, 9, rngs=nnx.Rngs(0)),
        "dot_general_cls": lambda: nnx.LinearGeneral(9, 9, dot_general_cls=lambda: counted(calls), rngs=nnx.Rngs(0)),
        "preferred_element_type": lambda: nnx.Linear(
            9, 9, dtype=jnp.bfloat16, preferred_element_type=jnp.float32, rngs=nnx.Rngs(0)
        ),
    }[kind]()
    network = Net(middle)
    same, result = simjax.prune(network, INPUTS, 0.0), simjax.prune(network, INPUTS, 0.5)
    assert list(result.layers) == ["conv", "middle", "out"]
    assert result.converged
    assert bool(calls) == (kind == "dot_general_cls")
    assert result.network.middle.kernel[...].dtype == jnp.float32
    assert_allclose(same.network(INPUTS), network(INPUTS), rtol=1e-2, atol=1e-2)


def test_samples_with_more_axes_and_one_without_its_own():
    network = Net()
    expected = simjax.prune(network, INPUTS, 0.5)
    deeper = simjax.prune(network, [INPUTS.reshape(4, 10, 6, 2)], 0.5)
    singly = simjax.prune(network, list(INPUTS), 0.5)
    for found in (deeper, singly):
        for one, other in zip(weights_of(found), weights_of(expected), strict=True):
            assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batches", [[[1.0, 2.0]], [(INPUTS, np.zeros(40))], {"inputs": INPUTS}, [INPUTS, None]])
def test_batches_that_are_no_arrays_are_refused(batches):
    with pytest.raises(TypeError, match="inputs must be"):
        simjax.prune(Net(), batches, 0.5)


def test_a_call_that_takes_more_and_a_callback_that_is_none():
    class Two(Net):
        def __call__(self, x, mask):
            return super().__call__(x * mask)

    with pytest.raises(ValueError, match=r"inputs could not be run through Two: TypeError.*mask"):
        simjax.prune(Two(), INPUTS, 0.5)
    with pytest.raises(TypeError, match="progress must be callable"):
        simjax.prune(Net(), INPUTS, 0.5, progress=True)


# --- Linen -------------------------------------------------------------------------------------------------------


class Step(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        return linen.relu(linen.Dense(3, name="inner")(x)), None


class LinenNet(linen.Module):
    """As many steps as inputs, in one kernel; a layer with a product of its own; boxed parameters."""

    @linen.compact
    def __call__(self, x):
        scan = linen.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scan(name="steps")(x, None)
        boxed = linen.with_partitioning(linen.initializers.lecun_normal(), (None, "rows"))
        x = linen.relu(linen.Dense(4, dot_general_cls=lambda: counted([]), name="own")(x))
        return linen.Dense(2, kernel_init=boxed, name="boxed")(x)


def test_linen_modules_that_are_scanned_boxed_or_have_their_own_product():
    network, inputs = LinenNet(), samples(30, 3)
    variables = network.init(jax.random.key(0), inputs)
    result = simjax.prune(network, inputs, 0.5, variables=variables)
    assert list(result.layers) == ["own", "boxed"]
    assert result.others == ("steps.inner (multiplied by something other than its kernel)",)
    assert jax.tree.structure(result.network) == jax.tree.structure(variables)
    assert np.count_nonzero(result.network["params"]["boxed"]["kernel"].unbox()) <= 4
    assert network.apply(result.network, inputs).shape == (30, 2)


def test_a_linen_layer_alone_and_frozen_variables():
    network, inputs = linen.Dense(2), samples(30, 3)
    variables = freeze(network.init(jax.random.key(0), inputs))
    with strict():
        result = simjax.prune(network, inputs, 0.5, variables=variables)
    assert list(result.layers) == [""]
    assert type(result.network) is type(variables)
    assert np.count_nonzero(result.network["params"]["kernel"]) <= 3


# --- PyTorch -----------------------------------------------------------------------------------------------------


def torch_net(torch, middle):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), middle, torch.nn.ReLU(), torch.nn.Linear(4, 2))


def test_torch_layers_whose_weights_are_computed_are_left_alone():
    torch = pytest.importorskip("torch")

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return torch.nn.functional.linear(x, 2.0 * self.weight, self.bias)

    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4))
    for middle in (Doubled(4, 4), normed):
        network = torch_net(torch, middle)
        result = simjax.prune(network, samples(30, 4), 0.5)
        assert list(result.layers) == ["0", "3"]
        assert any(other.startswith("1") for other in result.others)
        assert_array_equal(result.network[1](torch.ones(1, 4)).detach(), middle(torch.ones(1, 4)).detach())


def test_torch_settings_change_nothing_and_nothing_is_printed(capfd):
    torch = pytest.importorskip("torch")

    class Named(torch.nn.Linear):
        pass

    class Call(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Named(4, 4)

        def forward(self, x):
            return self.inner(input=x)

    network, inputs = torch_net(torch, Call()), samples(30, 4)
    expected = simjax.prune(network, inputs, 0.5)
    assert list(expected.layers) == ["0", "1.inner", "3"]
    inputs.flags.writeable = False
    given = (inputs, jnp.asarray(inputs))
    default = functools.partial(torch.set_default_dtype, torch.float32)
    with contextlib.ExitStack() as stack:
        stack.callback(default)
        torch.set_default_dtype(torch.float64)
        stack.enter_context(torch.device("meta"))
        stack.enter_context(strict())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("error")
        found = [simjax.prune(network, each, 0.5) for each in given]
    for each in found:
        for one, other in zip(each.network.parameters(), expected.network.parameters(), strict=True):
            assert one.dtype == torch.float32
            assert_allclose(one.detach(), other.detach(), rtol=1e-5, atol=1e-7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = simjax.prune(network, inputs, 0.5)
    assert half.converged
    assert half.network[0].weight.dtype == torch.float32
    assert_allclose(half.network[0].weight.detach(), expected.network[0].weight.detach(), rtol=1e-5, atol=1e-7)
    assert capfd.readouterr() == ("", "")
