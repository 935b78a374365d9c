"""Models in a box: nonnegative weights, bounds in the units of the model, certified again and verified."""

import numpy as np
import pytest
from test_fit import small_states

import simjax


@pytest.fixture(scope="module")
def states():
    return small_states()


@pytest.mark.parametrize("units", ["natural", "rescaled"])
def test_a_model_of_bounded_weights_is_certified_twice(states, units):
    """The bounds are those of the entries of A, B, C and D, whatever the states are rescaled by."""
    assert np.any(states.scaling("inner", 0.3) != 1.0)
    width, rows = states.n + states.p, states.n + states.q
    upper = np.where(np.arange(width) % 2, 0.05, np.inf) * np.linspace(0.5, 1.5, rows)[:, None]
    result = simjax.fit(states, "l1", alpha=1e-2, kappa=0.3, units=units, constraint=simjax.Box(-0.04, upper))
    assert result.converged
    model = result.model
    entries = np.block([[model.A, model.B], [model.C, model.D]])
    assert entries.min() >= -0.04 * (1 + 1e-12)
    assert np.all(entries <= upper * (1 + 1e-12))
    assert np.isclose(entries, upper, rtol=1e-12).sum() > 5
    assert np.isclose(entries, -0.04, rtol=1e-12).sum() > 5
    assert model.well_posedness <= 0.3 * (1 + 1e-12)
    assert result.settings["constraint"].startswith("Box(-0.04, array")
    second = simjax.recertify(result, [states.subset(25), states.subset(np.arange(25, states.m))])
    assert second.relative_gap.max() <= 1e-6


def test_nonnegative_least_squares_of_states(states):
    result = simjax.fit(states, "least_squares", kappa=None, constraint=simjax.Box(0.0, np.inf), refit="support")
    assert result.converged
    model = result.model
    assert min(part.min() for part in (model.A, model.B, model.C, model.D)) == 0.0
    assert simjax.recertify(result, [states]).relative_gap.max() <= 1e-5
    pytest.importorskip("clarabel")
    assert result.verify(rows=3).ok
    with pytest.raises(ValueError, match="constraint"):
        simjax.verify_model(model, states)


@pytest.mark.parametrize(
    ("box", "match"),
    [
        (simjax.Box(0.1, 1.0), "allows zero"),
        (simjax.Box(np.zeros(3), 1.0), "lower must be a scalar"),
        (simjax.Box(0.0, 1.0, ball=simjax.L1Ball(0.5)), "without a ball"),
    ],
)
def test_bad_boxes_are_named(states, box, match):
    with pytest.raises(ValueError, match=match):
        simjax.fit(states, constraint=box)


def test_a_path_begins_where_all_weights_are_zero(states):
    path = simjax.path(states, "l1", points=3, ratio=0.1, constraint=simjax.Box(0.0, np.inf))
    assert path.fits[0].model.nonzeros == 0
    assert path.fits[1].model.nonzeros > 0
    assert all(fit.converged for fit in path.fits)
