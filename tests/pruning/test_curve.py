"""What sparsity costs, and budgets shared out by it."""

import numpy as np
import pytest
import scipy.optimize
from helpers import generator
from numpy.testing import assert_allclose

from simjax import LayerStatistics, prune_layer
from simjax.pruning.curve import ErrorCurve, allocate, error_curve


def layer(seed, outputs=8, width=16):
    rng = generator(seed)
    return rng.normal(size=(60, width)) @ rng.normal(size=(width, width)), rng.normal(size=(outputs, width))


def test_the_curve_rises_from_nothing_and_is_near_what_pruning_gives():
    inputs, weight = layer(0)
    bias = np.arange(8.0)
    statistics = LayerStatistics(16)
    statistics.update(inputs)
    curve = error_curve(statistics, weight, bias, sparsities=[0.0, 0.4, 0.8])
    assert curve.worst_gap <= 1e-6
    assert curve.weights == 128
    assert curve.relative_error[0] <= 1e-20
    assert np.all(np.diff(curve.error) > 0.0)
    for share, error in zip(curve.sparsity[1:], curve.relative_error[1:]):
        assert_allclose(error, prune_layer(inputs, weight, bias, sparsity=share).relative_error, rtol=0.1)
    assert_allclose(curve.size, np.sum((inputs @ weight.T) ** 2), rtol=1e-12)


def test_a_layer_without_inputs_costs_nothing():
    curve = error_curve(np.zeros((5, 16)), layer(0)[1], sparsities=[0.5])
    assert curve.relative_error[0] == 0.0


@pytest.mark.parametrize("wanted", [0.0, 0.35, 0.6, 0.9])
def test_a_budget_is_shared_out_at_the_least_cost(wanted):
    """Against the linear program over convex combinations of the points of each curve."""
    rng = generator(4)
    curves = []
    for count in (100, 250, 40):
        shares = np.sort(rng.uniform(0.05, 0.95, size=6))
        shares[-1] = 0.95
        curves.append(ErrorCurve(shares, np.sort(rng.uniform(size=6) ** 3), 2.0, count, 0.0))
    found = allocate(curves, wanted)
    sizes = np.array([curve.weights for curve in curves])
    assert_allclose(found @ sizes, wanted * sizes.sum(), atol=1e-9)
    costs = np.concatenate([np.append(0.0, curve.relative_error) for curve in curves])
    zeros = np.concatenate([np.append(0.0, curve.sparsity) * curve.weights for curve in curves])
    equal = np.vstack([np.kron(np.eye(3), np.ones(7)), zeros])
    best = scipy.optimize.linprog(costs, A_eq=equal, b_eq=[1.0, 1.0, 1.0, wanted * sizes.sum()])
    assert best.success
    hulls = scipy.optimize.linprog(
        costs,
        A_eq=np.vstack([np.kron(np.eye(3), np.ones(7)), np.kron(np.eye(3), np.ones(7)) * zeros]),
        b_eq=[1.0, 1.0, 1.0, *(found * sizes)],
    )
    assert hulls.success
    assert_allclose(hulls.fun, best.fun, atol=1e-9)


def test_bad_arguments_are_named():
    inputs, weight = layer(0)
    with pytest.raises(ValueError, match="sparsities must be rising"):
        error_curve(inputs, weight, sparsities=[0.5, 0.5])
    with pytest.raises(ValueError, match=r"sparsity must be a number in \[0, 1\)"):
        error_curve(inputs, weight, sparsities=[0.5, 1.0])
    with pytest.raises(ValueError, match=r"must not exceed what the curves reach, 0\.5"):
        allocate([ErrorCurve(np.array([0.5]), np.ones(1), 1.0, 10, 0.0)], 0.6)


def test_weighed_errors_are_the_curves_times_the_weights():
    curves = [ErrorCurve(np.array([0.5, 0.9]), np.array([0.1, 0.9]), 1.0, count, 0.0) for count in (50, 80)]
    dearer = [ErrorCurve(np.array([0.5, 0.9]), np.array([0.3, 2.7]), 1.0, 50, 0.0), curves[1]]
    assert_allclose(allocate(curves, 0.7, [3.0, 1.0]), allocate(dearer, 0.7), rtol=1e-12)
    assert allocate(curves, 0.7, [30.0, 1.0])[0] < allocate(curves, 0.7, [0.03, 1.0])[0]
    with pytest.raises(ValueError, match=r"weights must be \(2,\)"):
        allocate(curves, 0.7, [-1.0, 1.0])
