"""One contract of inputs for every implicit network: a batch (m, p) or one sample (p,), of real numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from simjax.nn import GEQ, LBEN, NEMON, ImplicitLayer, LinearDEQ, MonDEQ, OptEq

NETWORKS = (ImplicitLayer, NEMON, OptEq, MonDEQ, LBEN, GEQ, LinearDEQ)


@pytest.fixture(params=NETWORKS, ids=lambda network: network.__name__)
def network(request):
    return request.param(3, 4, 2)


def test_one_sample_gives_what_a_batch_gives_it(network):
    batch = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    outputs = network(batch)
    assert outputs.shape == (2, 2)
    assert_allclose(network(batch[1]), outputs[1], rtol=0, atol=1e-4)
    x, report = network.equilibrium(batch[1])
    assert x.shape == (4,)
    assert report.converged.shape == report.residual.shape == ()
    assert_allclose(x, network.equilibrium(batch).x[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (1, 2, 3), ()])
def test_another_shape_is_refused(network, shape):
    for call in (network, network.equilibrium):
        with pytest.raises(ValueError, match=r"inputs must have shape \(m, 3\), or \(3,\) for one sample, got \("):
            call(jnp.ones(shape))


def test_precisions(network):
    assert network(jnp.ones((2, 3), jnp.int32)).dtype == jnp.float32
    assert_allclose(network(jnp.ones((2, 3), jnp.int32)), network(jnp.ones((2, 3))))
    with jax.enable_x64(True):
        assert network(jnp.ones((2, 3), jnp.float64)).dtype == jnp.float64
    for dtype in (jnp.bfloat16, jnp.float16, jnp.complex64, bool):
        with pytest.raises(TypeError, match="inputs must be float32 or float64, got "):
            network(jnp.ones((2, 3), dtype))
