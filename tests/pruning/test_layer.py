"""One layer pruned: the support is in the pattern, the refit is the best on it, and it is proved."""

import re
import tracemalloc

import numpy as np
import pytest
from helpers import generator
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import simjax
from simjax import LayerStatistics, prune_layer
from simjax.pruning.adaptive import adaptive
from simjax.pruning.problem import LayerProblem
from simjax.rows.options import SolveOptions

WIDTH, OUTPUTS, SAMPLES = 16, 6, 60


def layer(seed=0, outputs=OUTPUTS, width=WIDTH, samples=SAMPLES):
    """Inputs that depend on one another, weights and biases."""
    rng = generator(seed)
    inputs = rng.normal(size=(samples, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)
    return inputs, rng.normal(size=(outputs, width)), rng.normal(size=outputs)


def error(pruned, inputs, weight, bias=None, targets=None):
    """The relative error by its definition, from the samples."""
    plain = inputs @ weight.T
    wanted = plain + (0.0 if bias is None else bias) if targets is None else targets
    got = inputs @ pruned.weight.T + (0.0 if pruned.bias is None else pruned.bias)
    return np.sum((wanted - got) ** 2) / np.sum((wanted - (0.0 if bias is None else bias)) ** 2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    pattern=st.sampled_from(["unstructured", "2:4", "4:8", "1:2", "rows"]),
    sparsity=st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.95]),
    with_bias=st.booleans(),
    other_targets=st.booleans(),
    samples=st.sampled_from([1, 5, 60]),
)
def test_the_refit_is_least_squares_on_the_support_and_the_support_is_in_the_pattern(
    seed, pattern, sparsity, with_bias, other_targets, samples
):
    inputs, weight, bias = layer(seed, samples=samples)
    bias = bias if with_bias else None
    targets = generator(seed + 1).normal(size=(samples, OUTPUTS)) if other_targets else None
    if ":" in pattern:
        sparsity = max(sparsity, 0.5)
    pruned = prune_layer(inputs, weight, bias, targets=targets, sparsity=sparsity, pattern=pattern)
    assert pruned.converged
    assert pruned.certificate.relative_gap.max() <= 1e-6
    assert np.all(pruned.support | (pruned.weight == 0.0))
    assert (pruned.bias is None) == (bias is None)
    kept = pruned.support.any(axis=1).sum() if pattern == "rows" else pruned.support.sum()
    assert kept <= (1.0 - sparsity) * (OUTPUTS if pattern == "rows" else weight.size) * (1.0 + 1e-12)
    if ":" in pattern:
        n, m = map(int, pattern.split(":"))
        assert pruned.support.reshape(-1, m).sum(axis=1).max() <= n
    assert_allclose(pruned.relative_error, error(pruned, inputs, weight, bias, targets), rtol=1e-6, atol=1e-20)
    wanted = inputs @ weight.T + (0.0 if bias is None else bias) if targets is None else targets
    ones = np.zeros((samples, 0)) if bias is None else np.ones((samples, 1))
    for row in range(OUTPUTS):
        columns = np.concatenate([inputs[:, pruned.support[row]], ones], axis=1)
        best = columns @ np.linalg.lstsq(columns, wanted[:, row], rcond=None)[0]
        got = inputs @ pruned.weight[row] + (0.0 if bias is None else pruned.bias[row])
        assert_allclose(got, best, atol=1e-8 * (1.0 + np.abs(wanted).max()))


def test_statistics_streamed_are_the_samples():
    inputs, weight, bias = layer()
    targets = generator(1).normal(size=(SAMPLES, OUTPUTS))
    for given_targets in (None, targets):
        statistics = LayerStatistics(WIDTH, None if given_targets is None else OUTPUTS)
        for start in range(0, SAMPLES, 7):
            part = slice(start, start + 7)
            statistics.update(inputs[part], None if given_targets is None else given_targets[part])
        assert statistics.m == statistics.total_weight == SAMPLES
        for b in (None, bias):
            whole = prune_layer(inputs, weight, b, targets=given_targets, sparsity=0.6)
            streamed = prune_layer(statistics, weight, b, sparsity=0.6)
            assert_array_equal(whole.support, streamed.support)
            assert_allclose(whole.weight, streamed.weight, atol=1e-9)
            assert_allclose(whole.relative_error, streamed.relative_error, rtol=1e-9)


def test_a_weight_of_two_is_the_sample_given_twice():
    inputs, weight, bias = layer()
    counts = generator(2).integers(1, 4, SAMPLES)
    weighted, repeated = LayerStatistics(WIDTH), LayerStatistics(WIDTH)
    weighted.update(inputs, sample_weight=counts)
    repeated.update(np.repeat(inputs, counts, axis=0))
    one, other = (prune_layer(statistics, weight, bias, sparsity=0.6) for statistics in (weighted, repeated))
    assert_array_equal(one.support, other.support)
    assert_allclose(one.weight, other.weight, atol=1e-9)
    assert_allclose(one.relative_error, other.relative_error, rtol=1e-9)


@pytest.mark.parametrize("method", ["cardinality", "l1", "perspective"])
def test_a_sparse_layer_is_found_again(method):
    """Where the layer is sparse already, its own support explains everything, and no other does."""
    inputs, weight, bias = layer()
    weight[generator(3).random(weight.shape) < 0.7] = 0.0
    share = np.mean(weight == 0.0)
    pruned = prune_layer(inputs, weight, bias, sparsity=share, method=method)
    assert_array_equal(pruned.support, weight != 0.0)
    assert_allclose(pruned.weight, weight, atol=1e-9)
    assert_allclose(pruned.bias, bias, atol=1e-8)
    assert pruned.relative_error <= 1e-20


def test_without_zeros_nothing_changes():
    inputs, weight, bias = layer()
    pruned = prune_layer(inputs, weight, bias, sparsity=0.0)
    assert_allclose(pruned.weight, weight, atol=1e-9)
    assert_allclose(pruned.bias, bias, atol=1e-8)
    assert pruned.sparsity == 0.0


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_units_do_not_matter(scale):
    inputs, weight, bias = layer()
    targets = generator(1).normal(size=(SAMPLES, OUTPUTS))
    plain = prune_layer(inputs, weight, bias, targets=targets)
    scaled = prune_layer(inputs * scale, weight, bias * scale, targets=targets * scale)
    assert_array_equal(scaled.support, plain.support)
    assert_allclose(scaled.weight, plain.weight, atol=1e-9)
    other = prune_layer(inputs, weight * scale, bias * scale)
    assert_array_equal(other.support, prune_layer(inputs, weight, bias).support)
    far = prune_layer(inputs, weight * 1e-200, bias, targets=targets)  # a W₀ that says nothing
    assert far.converged
    assert far.support.sum() == plain.support.sum()


def test_rows_are_removed_where_they_cost_least():
    inputs, weight, bias = layer()
    pruned = prune_layer(inputs, weight, bias, sparsity=0.5, pattern="rows")
    outputs = inputs @ weight.T
    costs = np.sum((outputs - outputs.mean(axis=0)) ** 2, axis=0)
    removed = ~pruned.support.any(axis=1)
    assert set(np.flatnonzero(removed)) == set(np.argsort(costs)[:3])
    assert_allclose(pruned.relative_error, np.sort(costs)[:3].sum() / np.sum(outputs**2), rtol=1e-9)
    assert_allclose(pruned.bias[removed], (outputs + bias).mean(axis=0)[removed], rtol=1e-9)


@pytest.mark.parametrize("method", ["l1", "perspective"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_support_by_a_penalty_is_that_of_certified_rows(with_bias, method):
    inputs, weight, bias = layer()
    bias = bias if with_bias else None
    pruned = prune_layer(inputs, weight, bias, sparsity=0.6, method=method)
    assert pruned.converged
    assert pruned.penalised.converged
    assert_array_equal(pruned.support, pruned.penalised.weights != 0.0)
    assert 0.6 <= pruned.sparsity <= 0.6 + 2.0 / weight.size
    assert "6 of 6 penalised rows certified" in pruned.summary()
    assert pruned.relative_error <= np.sum(pruned.penalised.certificate.objective) / np.sum((inputs @ weight.T) ** 2)
    zero = prune_layer(np.zeros((9, WIDTH)), weight, bias, sparsity=0.5, method=method)
    assert zero.converged
    assert not zero.weight.any()


def test_the_perspective_penalty_is_that_of_the_module_docstring():
    inputs, weight, _ = layer()
    statistics = LayerStatistics(WIDTH)
    statistics.update(inputs)
    problem = LayerProblem.make(statistics, weight, None, None)
    norms = np.linalg.norm(inputs, axis=0)
    scores = np.abs(weight) * norms
    omega = norms / (scores + 0.1 * np.sqrt(np.mean(scores**2)))
    penalised = adaptive(problem, "perspective", 40, SolveOptions())
    found = penalised.weights
    assert np.count_nonzero(found) <= 40
    # Optimal for some α: where a weight is in use, 2Hw − 2Tᵀφ + α ω h′(ωw) = 0 gives the same α everywhere.
    slope = 2.0 * (weight - found) @ (inputs.T @ inputs)
    used = omega * found
    derivative = omega * np.where(np.abs(used) > 1.0, used, np.sign(used))
    alphas = slope[found != 0.0] / derivative[found != 0.0]
    assert_allclose(alphas, alphas.mean(), rtol=1e-3)
    assert np.all((np.abs(slope) <= alphas.mean() * omega * (1.0 + 1e-3))[found == 0.0])


@pytest.mark.parametrize("with_bias", [False, True])
def test_inputs_that_say_nothing_have_no_weights(with_bias):
    inputs, weight, bias = layer()
    inputs[:, 3] = 0.0
    inputs[:, 5] = 7.0
    inputs = inputs if with_bias else np.delete(inputs, 5, axis=1)
    weight = weight if with_bias else np.delete(weight, 5, axis=1)
    pruned = prune_layer(inputs, weight, bias if with_bias else None, sparsity=0.2)
    assert pruned.unseen == 1 + with_bias
    assert not pruned.weight[:, [3, 5] if with_bias else [3]].any()
    assert f"{1 + with_bias} of" in pruned.summary()
    assert_allclose(pruned.relative_error, error(pruned, inputs, weight, bias if with_bias else None), rtol=1e-6)


def test_a_layer_that_sees_only_zeros_is_zero_and_its_bias_all_there_is():
    _, weight, bias = layer()
    for pattern in ("unstructured", "2:4", "rows"):
        pruned = prune_layer(np.zeros((9, WIDTH)), weight, bias, sparsity=0.5, pattern=pattern)
        assert pruned.converged
        assert pruned.relative_error == 0.0
        assert not pruned.weight.any()
        assert_allclose(pruned.bias, bias, rtol=1e-14)
        assert "all are constant in all samples" in pruned.summary()
    assert not prune_layer(np.zeros((9, WIDTH)), weight, sparsity=0.5).weight.any()


def test_one_output_and_one_input():
    inputs, weight, bias = layer()
    one = prune_layer(inputs, weight[:1], bias[:1], sparsity=0.5)
    assert one.support.sum() == WIDTH // 2
    narrow = prune_layer(inputs[:, :1], weight[:, :1], bias, sparsity=0.5)
    assert narrow.support.sum() == OUTPUTS // 2
    # With one input the layer is a choice of rows, and the largest weights are the best.
    assert_array_equal(narrow.support[:, 0], np.abs(weight[:, 0]) >= np.sort(np.abs(weight[:, 0]))[OUTPUTS // 2])


def test_what_a_result_says_of_itself():
    inputs, weight, bias = layer()
    pruned = prune_layer(inputs, weight, bias, pattern="2:4")
    assert pruned.sparsity == 0.5
    assert re.fullmatch(r"PrunedLayer\(6×16, 50\.0% zeros, relative error .*, 6 of 6 rows certified.*\)", repr(pruned))
    assert "6 of 6 rows certified at relative gap 1e-06 on their support" in pruned.summary()
    assert pruned.certificate is pruned.solution.certificate
    assert prune_layer(inputs, weight, bias).sparsity >= 0.8
    ok = pruned.solution.verify("clarabel", rows=2)
    assert ok.ok


INPUTS, WEIGHT, BIAS = layer()
BAD = [
    ({"sparsity": 1.0}, ValueError, r"sparsity must be a number in \[0, 1\)"),
    ({"sparsity": -0.1}, ValueError, r"sparsity must be a number in \[0, 1\)"),
    ({"sparsity": np.nan}, ValueError, "sparsity must be finite"),
    ({"sparsity": "half"}, TypeError, "sparsity must be a number"),
    ({"sparsity": 0.4, "pattern": "2:4"}, ValueError, "sparsity must be at least 0.5 for pattern '2:4'"),
    ({"pattern": "4:2"}, ValueError, "must keep fewer weights"),
    ({"pattern": "2:5"}, ValueError, "needs inputs in groups of 5, but the layer has 16"),
    ({"pattern": "columns"}, ValueError, "pattern must be 'unstructured', 'rows' or 'n:m'"),
    ({"pattern": 2}, ValueError, "pattern must be"),
    ({"method": "magic"}, ValueError, "method must be one of"),
    ({"method": "cardinality", "pattern": "rows"}, ValueError, "method must be 'auto' for pattern 'rows'"),
    ({"method": "l1", "pattern": "2:4"}, ValueError, "pattern must be 'unstructured' for method 'l1'"),
    ({"method": "perspective", "pattern": "2:4"}, ValueError, "'unstructured' for method 'perspective'"),
    ({"tol": 0.0}, ValueError, "tol must be a positive number"),
    ({"inputs": np.full_like(INPUTS, np.nan)}, ValueError, "inputs must be finite, got 960 NaN"),
    ({"inputs": INPUTS[:, :4]}, ValueError, "inputs must be .* in = 16 .* got shape"),
    ({"inputs": INPUTS[0]}, ValueError, "inputs must be a 2-D array"),
    ({"inputs": 1e160 * INPUTS}, ValueError, "inputs must not exceed 1e.151"),
    ({"weight": 1e160 * WEIGHT}, ValueError, "weight must not give outputs beyond 1e.151"),
    ({"weight": WEIGHT[0]}, ValueError, "weight must be a 2-D array"),
    ({"weight": np.where(WEIGHT > 0, np.inf, 0)}, ValueError, "weight must be finite"),
    ({"bias": BIAS[:2]}, ValueError, r"bias must be \(6,\)"),
    ({"bias": np.full(OUTPUTS, np.nan)}, ValueError, "bias must be finite"),
    ({"targets": INPUTS}, ValueError, r"targets must be \(60, 6\)"),
    ({"inputs": LayerStatistics(3)}, ValueError, "statistics of 3 inputs"),
    ({"inputs": LayerStatistics(16)}, ValueError, "statistics without samples"),
    ({"inputs": LayerStatistics(16, 2)}, ValueError, "statistics with 2 targets"),
    ({"inputs": LayerStatistics(16), "targets": INPUTS[:, :6]}, ValueError, "targets must be None with statistics"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), BAD)
def test_bad_arguments_are_named(changes, kind, message):
    arguments = {"inputs": INPUTS, "weight": WEIGHT, "bias": BIAS, **changes}
    with pytest.raises(kind, match=message):
        prune_layer(**arguments)


def test_bad_batches_are_named_and_leave_the_statistics_alone():
    statistics = LayerStatistics(WIDTH)
    statistics.update(INPUTS)
    before = statistics.compressed()
    for arguments, message in (
        ((INPUTS[:, :3],), "inputs must have 16 columns"),
        ((INPUTS, INPUTS), "targets must be None without outputs"),
        ((np.where(INPUTS > 0, np.nan, 0.0),), "inputs must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            statistics.update(*arguments)
    with pytest.raises(ValueError, match=r"targets must be \(60, 6\), got None"):
        LayerStatistics(WIDTH, OUTPUTS).update(INPUTS)
    assert_array_equal(before[0], statistics.compressed()[0])
    with pytest.raises(TypeError, match="inputs must be an integer"):
        LayerStatistics(2.5)
    assert "m=60" in repr(statistics)


def test_memory_does_not_grow_with_the_samples():
    """100,000 samples of 16 numbers are 13 MB."""
    rng, statistics = generator(0), LayerStatistics(WIDTH, OUTPUTS)
    tracemalloc.start()
    try:
        for _ in range(40):
            statistics.update(rng.random((2500, WIDTH)), rng.random((2500, OUTPUTS)))
        pruned = prune_layer(statistics, WEIGHT, BIAS, sparsity=0.5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pruned.converged
    assert statistics.m == 100_000
    assert peak < 3e6


def test_nothing_of_the_users_is_changed():
    inputs, weight, bias = layer()
    copies = [array.copy() for array in (inputs, weight, bias)]
    for array in (inputs, weight, bias):
        array.flags.writeable = False
    simjax.prune_layer(inputs, weight, bias)
    for array, copy in zip((inputs, weight, bias), copies):
        assert_array_equal(array, copy)
