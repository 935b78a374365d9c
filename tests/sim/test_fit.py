"""fit: the contract, the identities behind its options, and its bad input."""

import json
import warnings
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import simjax
from simjax.nn import MLP
from simjax.rows import attempts, memory


def small_states(m=60, *, use_bias=False, activation="relu", seed=0):
    network = MLP((12, 8, 6, 3), activation=activation, use_bias=use_bias, rngs=nnx.Rngs(seed))
    inputs = np.random.default_rng(seed).random((m, 12))
    if use_bias:
        for _, layer in nnx.iter_graph(network):
            if isinstance(layer, nnx.Linear):
                layer.bias[...] = 0.1 * jax.numpy.arange(layer.out_features, dtype=np.float32)
    return simjax.collect_states(network, inputs)


@pytest.fixture(scope="module")
def states():
    return small_states()


@pytest.fixture(scope="module")
def result(states):
    return simjax.fit(states, alpha=1e-2)


def test_contract(states, result):
    n, p, q = states.n, states.p, states.q
    model, certificate = result.model, result.certificate
    assert (model.A.shape, model.B.shape) == ((n, n), (n, p))
    assert (model.C.shape, model.D.shape) == ((q, n), (q, p))
    for values in (
        certificate.objective,
        certificate.dual_objective,
        certificate.gap,
        certificate.relative_gap,
        certificate.infeasibility,
        result.status,
    ):
        assert values.shape == (n + q,)
    assert result.converged
    assert set(result.status) == {"SOLVED"}
    assert np.max(certificate.relative_gap) <= 1e-6
    assert model.well_posedness <= 0.99 + 1e-12
    assert np.all(np.diag(model.A) == 0.0)  # hollow is the default
    assert model(states.inputs).shape == (states.m, q)
    assert model.equilibrium(states.inputs).shape == (states.m, n)
    assert f"{n + q} of {n + q} certified" in result.summary()
    assert "solver          auto" in result.summary()


def test_rows_are_in_the_order_the_contract_says(states, result):
    """Row i of (A B) minimises its own problem: recompute objective and dual bound for it with plain NumPy."""
    scale = states.scaling("inner", 0.99)
    design = np.concatenate([states.activations, states.inputs], axis=1)
    targets = np.concatenate([states.preactivations, states.outputs], axis=1).T
    for row in (0, states.n - 1, states.n, states.n + states.q - 1):
        w = result.weights[row]
        objective = 0.1 * np.sum((targets[row] - design @ w) ** 2) + np.sum(
            np.where(np.abs(w) <= 1.0, 2e-2 * np.abs(w), 1e-2 * w**2 + 1e-2)
        )
        assert result.certificate.objective[row] == pytest.approx(objective, rel=1e-12)
    # The model is the same rows with A' = SAS⁻¹, B' = SB, C' = CS⁻¹.
    n = states.n
    np.testing.assert_allclose(result.model.A, scale[:, None] * result.weights[:n, :n] / scale, rtol=1e-14)
    np.testing.assert_allclose(result.model.C, result.weights[n:, :n] / scale, rtol=1e-14)


def test_natural_units_are_a_weighted_ball_in_the_unscaled_network(states):
    """Σ_j |A_ij| s_i/s_j ≤ κ on the rows as solved is ‖A'‖∞ ≤ κ of the model that comes out."""
    scale = states.scaling("inner", 0.5)
    assert np.any(scale != 1.0)
    bound = simjax.fit(states, alpha=1e-2, kappa=0.5, support="feedforward")
    assert bound.converged
    row_norms = np.abs(bound.weights[: states.n, : states.n] / scale).sum(axis=1) * scale
    assert row_norms.max() <= 0.5 + 1e-12
    assert bound.model.well_posedness == pytest.approx(row_norms.max(), rel=1e-12)


def test_rescaled_units_are_the_problem_of_the_rescaled_states(states):
    scale = states.scaling("inner", 0.5)
    one = simjax.fit(states, "l1", alpha=1e-2, kappa=0.5, units="rescaled")
    plain = states.rescaled(scale)
    arrays = simjax.States(plain.inputs, plain.preactivations, plain.activations, plain.outputs)
    other = simjax.fit(arrays, "l1", alpha=1e-2, kappa=0.5)
    np.testing.assert_allclose(one.certificate.objective, other.certificate.objective, rtol=2e-6)


def test_plain_arrays_are_not_rescaled(states):
    arrays = simjax.States(states.inputs, states.preactivations, states.activations, states.outputs)
    assert np.all(arrays.scaling("auto", 0.1) == 1.0)


def test_mean_reduction_is_the_sum_with_a_smaller_loss_weight(states):
    mean = simjax.fit(states, "l1", alpha=1e-4, reduction="mean")
    total = simjax.fit(
        states, "l1", alpha=1e-4, lambda_state=0.1 / states.m, lambda_output=0.1 / states.m, reduction="sum"
    )
    np.testing.assert_array_equal(mean.weights, total.weights)


@pytest.mark.parametrize("objective", ["perspective", "l1", "elastic_net", "ridge", "least_squares"])
def test_every_objective_by_name(states, objective):
    fitted = simjax.fit(states, objective)
    assert fitted.converged
    assert fitted.model.well_posedness <= 0.99 + 1e-12
    assert fitted.settings["objective"] == objective


def test_a_penalty_object_is_the_named_objective(states, result):
    same = simjax.fit(states, simjax.Perspective(1e-2))
    np.testing.assert_array_equal(same.weights, result.weights)


@pytest.mark.slow
def test_a_penalty_with_weights_per_row_and_coordinate(states):
    n, p, q = states.n, states.p, states.q
    alpha = np.random.default_rng(1).uniform(0.5, 2.0, size=(n + q, n + p)) * 1e-2
    fitted = simjax.fit(states, "l1", alpha=alpha, refit="outputs")
    assert fitted.converged
    per_column = simjax.fit(states, "l1", alpha=alpha[0])
    assert per_column.converged


@pytest.mark.parametrize("support", ["full", "hollow", "feedforward", "mask"])
def test_supports(states, support):
    n, p = states.n, states.p
    mask = np.random.default_rng(2).random((n, n + p)) < 0.5 if support == "mask" else support
    fitted = simjax.fit(states, "l1", alpha=1e-3, support=mask)
    assert fitted.converged
    A = fitted.model.A
    if support == "hollow":
        assert np.all(np.diag(A) == 0.0)
    elif support == "feedforward":
        assert fitted.model.perron_eigenvalue == 0.0
        assert not np.tril(A).any()
    elif support == "mask":
        assert not fitted.weights[:n][~mask].any()


def test_exact_matching_of_a_layered_network():
    """The baseline itself is feasible, so the sparsest exact fit exists and reproduces the outputs."""
    states = small_states(m=15)
    fitted = simjax.fit(states, "l1", matching="exact")
    assert fitted.converged
    assert np.max(fitted.certificate.infeasibility) <= 1e-8
    np.testing.assert_allclose(fitted.model(states.inputs), states.outputs, atol=1e-7)


def test_the_intercept_carries_the_biases():
    """Least squares reproduces a baseline with biases; without an intercept it cannot."""
    states = small_states(m=200, use_bias=True)
    fitted = simjax.fit(states, "least_squares", support="feedforward", kappa=None, fit_intercept=True)
    assert fitted.converged
    assert fitted.model.b.shape == (states.n,)
    assert fitted.model.c.shape == (states.q,)
    np.testing.assert_allclose(fitted.model(states.inputs), states.outputs, atol=1e-9)
    without = simjax.fit(states, "least_squares", support="feedforward", kappa=None, fit_intercept=False)
    assert np.abs(without.model(states.inputs) - states.outputs).max() > 1e-3


def test_debiasing_keeps_the_support_and_lowers_the_loss(states):
    plain = simjax.fit(states, "l1", alpha=1e-1)
    refitted = simjax.fit(states, "l1", alpha=1e-1, refit="support")
    assert refitted.converged
    assert not refitted.weights[plain.weights == 0.0].any()
    design = np.concatenate([states.activations, states.inputs], axis=1)
    targets = np.concatenate([states.preactivations, states.outputs], axis=1).T

    def loss(weights):
        return np.sum((targets - weights @ design.T) ** 2, axis=1)

    assert np.all(loss(refitted.weights) <= loss(plain.weights) * (1.0 + 1e-9) + 1e-12)
    assert refitted.model.well_posedness <= 0.99 + 1e-12
    assert len(refitted.solutions) == 2


def test_regenerated_outputs_match_better_at_the_equilibrium(states):
    plain = simjax.fit(states, "l1", alpha=3e-2)
    regenerated = simjax.fit(states, "l1", alpha=3e-2, refit="outputs")
    np.testing.assert_array_equal(plain.model.A, regenerated.model.A)

    def error(model):
        return np.sum((model(states.inputs) - states.outputs) ** 2)

    assert error(regenerated.model) < error(plain.model)
    # The rows of (C D) are certified on the regenerated design: recompute one objective there.
    reached = regenerated.model.equilibrium(states.inputs) / states.scaling("inner", 0.99)
    design = np.concatenate([reached, states.inputs], axis=1)
    w = regenerated.weights[states.n]
    objective = 0.1 * np.sum((states.outputs[:, 0] - design @ w) ** 2) + 3e-2 * np.abs(w).sum()
    assert regenerated.certificate.objective[states.n] == pytest.approx(objective, rel=1e-8)


def test_adaptive_weights(states, result):
    weights = simjax.adaptive_weights(result, epsilon=0.1)
    np.testing.assert_allclose(weights, 1.0 / (np.abs(result.weights) + 0.1))
    from_baseline = simjax.adaptive_weights(states.baseline)
    assert from_baseline.shape == result.weights.shape
    fitted = simjax.fit(states, "l1", alpha=1e-3 * from_baseline)
    assert fitted.converged
    with pytest.raises(ValueError, match="epsilon"):
        simjax.adaptive_weights(result, epsilon=0.0)


def test_model_metadata_are_json_and_say_how_it_was_fitted(result, tmp_path):
    settings = json.loads(json.dumps(result.model.metadata["fit"]))
    assert settings["alpha"] == 1e-2
    assert settings["support"] == "hollow"
    result.model.save(tmp_path / "m.safetensors")
    loaded = simjax.ImplicitModel.load(tmp_path / "m.safetensors")
    assert loaded.metadata["fit"] == settings


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"objective": "l0"}, "objective must be one of 'perspective', 'l1'"),
        ({"alpha": -1.0}, "alpha must be >= 0"),
        ({"alpha": np.nan}, "alpha must be finite"),
        ({"mu": -1.0}, "mu must be >= 0"),
        ({"objective": "l1", "mu": 1.0}, "mu must be None"),
        ({"objective": simjax.L1(1e-3), "alpha": 1.0}, "alpha and mu"),
        ({"lambda_state": 0.0}, "lambda_state"),
        ({"lambda_output": -0.1}, "lambda_output"),
        ({"kappa": 1.0}, "kappa"),
        ({"kappa": 0.0}, "kappa"),
        ({"kappa": np.inf}, "kappa"),
        ({"reduction": "max"}, "reduction must be one of 'sum', 'mean'"),
        ({"matching": "close"}, "matching must be one of 'penalty', 'exact'"),
        ({"support": "diagonal"}, "support must be one of 'auto', 'full', 'hollow', 'feedforward'"),
        ({"support": np.ones((2, 2), dtype=bool)}, "support"),
        ({"rescale": "outer"}, "rescale must be one of"),
        ({"units": "imperial"}, "units must be one of"),
        ({"refit": "all"}, "refit must be one of"),
        ({"solver": "simplex"}, "solver must be one of 'auto', 'admm'"),
        ({"solver": "proximal_gradient", "matching": "exact"}, "no smooth loss"),
        ({"tol": 0.0}, "tol"),
        ({"max_iters": 0}, "max_iters"),
        (
            {"alpha": np.ones(3)},
            r"alpha must be .*\(d,\) = \(26,\) or \(n \+ q, d\) = \(17, 26\), d = n \+ p; got shape \(3,\)",
        ),
        ({"alpha": np.ones(26), "fit_intercept": "penalised"}, r"\(27,\).* d = n \+ p \+ 1; got shape \(26,\)"),
        ({"mu": np.ones(3)}, r"mu must be .*got shape \(3,\)"),
        ({"alpha": None}, "alpha must be a number >= 0, .*; got None"),
        ({"alpha": "large"}, "alpha must be a number >= 0, .*; got 'large'"),
        ({"kappa": "none"}, r"kappa must be a number in \(0, 1\), or None for no bound, got 'none'"),
        ({"kappa": "none", "constraint": "metzler"}, "kappa must be a number below 1, or None for no bound"),
        ({"lambda_state": "1"}, "lambda_state must be a positive number, got '1'"),
        ({"objective": simjax.Perspective}, r"objective must be .*got Perspective itself, .*Perspective\(1e-3\)"),
        ({"objective": simjax.L1}, r"objective must be .*got L1 itself, .*L1\(1e-3\)"),
        ({"objective": 0.1}, "objective must be one of .* or a penalty object, got 0.1"),
        ({"objective": "L1"}, r"got 'L1'\. Did you mean 'l1'\?"),
        ({"objective": "lasso"}, r"got 'lasso'\. Did you mean 'l1'\?"),
        ({"objective": "elastic net"}, r"Did you mean 'elastic_net'\?"),
        ({"refit": True}, "refit must be None, 'support', 'outputs' or a sequence of these, got True"),
    ],
)
def test_bad_input(states, arguments, match):
    with pytest.raises((ValueError, TypeError), match=match):
        simjax.fit(states, **arguments)


def test_an_alpha_beside_a_penalty_object_is_refused_whatever_its_value(states):
    with pytest.raises(ValueError, match="alpha and mu must be left alone"):
        simjax.fit(states, simjax.L1(1e-3), alpha=1e-3)


def test_states_must_be_states(states):
    with pytest.raises(TypeError, match=r"simjax\.States"):
        simjax.fit(states.inputs)


def test_a_rescaling_the_activation_does_not_allow():
    states = small_states(activation="tanh")
    with pytest.raises(ValueError, match="positively homogeneous"):
        simjax.fit(states, rescale="inner")
    assert simjax.fit(states, "l1", alpha=1e-3).converged  # "auto" leaves tanh as it is


def test_feedforward_needs_layer_sizes(states):
    arrays = simjax.States(states.inputs, states.preactivations, states.activations, states.outputs)
    with pytest.raises(ValueError, match="layer_sizes"):
        simjax.fit(arrays, support="feedforward")


def test_no_global_setting_changes(states):
    before = (jax.config.jax_enable_x64, jax.config.jax_default_device, jax.config.jax_default_matmul_precision)
    simjax.fit(states, "l1", alpha=1e-2)
    after = (jax.config.jax_enable_x64, jax.config.jax_default_device, jax.config.jax_default_matmul_precision)
    assert before == after
    assert jax.numpy.ones(1).dtype == np.float32


def test_a_row_that_misses_says_so(states):
    with pytest.warns(simjax.ConvergenceWarning, match="rows are not certified"):
        fitted = simjax.fit(states, "l1", alpha=1e-7, solver="proximal_gradient", max_iters=1)
    assert not fitted.converged
    missed = fitted.status != "SOLVED"
    assert np.all(fitted.certificate.relative_gap[missed] > 1e-6)
    assert np.all(np.isfinite(fitted.weights))


def test_warnings_point_at_the_line_that_called(states):
    hard = {"solver": "proximal_gradient", "max_iters": 1}
    calls = (
        lambda: simjax.fit(states, "l1", alpha=1e-7, **hard),
        lambda: simjax.path(states, "l1", alphas=[1e-7], **hard),
        lambda: simjax.solve_rows(states.inputs, states.outputs, penalty=simjax.L1(1e-7), **hard),
    )
    for call in calls:
        with pytest.warns(simjax.ConvergenceWarning) as caught:
            call()
        assert {Path(warning.filename).name for warning in caught} == {"test_fit.py"}
    model = simjax.ImplicitModel([[1e200]], [[1.0]], [[1.0]], [[0.0]])
    for call in (lambda: model([[1.0]]), lambda: model.equilibrium([[1.0]])):
        with pytest.warns(simjax.EquilibriumWarning) as caught:
            call()
        assert Path(caught[0].filename).name == "test_fit.py"


def test_short_memory_changes_neither_the_weights_nor_what_can_be_recertified(states, result, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 0.0)
    blocks = simjax.fit(states, alpha=1e-2)  # in blocks of eight rows
    assert isinstance(blocks.weights, np.ndarray)
    assert isinstance(blocks.model.A, np.ndarray)
    np.testing.assert_allclose(blocks.certificate.objective, result.certificate.objective, rtol=2e-6)
    second = simjax.recertify(blocks, [states])
    assert np.max(second.relative_gap) <= 1e-6
    np.testing.assert_allclose(second.objective, blocks.certificate.objective, rtol=1e-9)


def test_dead_units_and_constant_outputs():
    """Units that never fire give zero columns and zero rows; both are solved exactly."""
    rng = np.random.default_rng(3)
    inputs = rng.random((40, 6))
    preactivations = inputs @ rng.normal(size=(6, 5))
    preactivations[:, 1] = -1.0 - inputs[:, 0]
    preactivations[:, 2] = 0.0
    states = simjax.States(inputs, preactivations, np.maximum(preactivations, 0.0), np.ones((40, 1)))
    fitted = simjax.fit(states, alpha=1e-3, fit_intercept=False)
    assert fitted.converged
    assert not fitted.weights[2].any()


def test_progress_is_reported(states):
    seen = []
    simjax.fit(states, alpha=1e-2, progress=seen.append)
    assert seen
    assert seen[-1].rows == states.n + states.q
    assert seen[-1].solved == seen[-1].rows
    assert all(b.solved >= a.solved for a, b in pairwise(seen))


def test_fit_prints_nothing_and_warns_about_nothing(states, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simjax.fit(states, alpha=1e-2)
    assert capsys.readouterr() == ("", "")


# --- What kappa bounds -------------------------------------------------------------------------------------------


def measure(A, eta=None):
    """μ_η(A) = max_i a_ii + Σ_{j ≠ i} (η_j/η_i)|a_ij|."""
    eta = np.ones(A.shape[0]) if eta is None else eta
    size = np.abs(A) * eta / eta[:, None]
    return np.max(np.diag(A) + size.sum(axis=1) - np.abs(np.diag(A)))


def implicit_states(*, measure_bound=-0.5, m=80, n=8, p=5, q=3, seed=4):
    """States of a random model with μ∞(A) = `measure_bound` and ‖A‖∞ well above one."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, n))
    off = np.abs(A).sum(axis=1) - np.abs(np.diag(A))
    np.fill_diagonal(A, measure_bound - off)
    B, C, D = rng.normal(size=(n, p)), rng.normal(size=(q, n)), rng.normal(size=(q, p))
    model = simjax.ImplicitModel(A, B, C, D, activation="relu")
    inputs = rng.normal(size=(m, p))
    X = model.equilibrium(inputs, tol=1e-14, max_iters=5000)
    Z = X @ A.T + inputs @ B.T
    return model, simjax.States(inputs, Z, X, model(inputs), activation="relu")


def test_metzler_rows_take_in_baselines_that_no_ball_does():
    model, states = implicit_states()
    assert model.well_posedness > 3.0
    fitted = simjax.fit(states, alpha=1e-6, kappa=-0.4, constraint="metzler")
    assert fitted.converged
    assert measure(fitted.model.A) <= -0.4 + 1e-12
    X, info = fitted.model.equilibrium(states.inputs, return_info=True)
    assert info.converged.all()
    np.testing.assert_allclose(X, states.activations, atol=1e-3)
    ball = simjax.fit(states, alpha=1e-6, support="full")
    error = [np.abs(result.model(states.inputs) - states.outputs).max() for result in (fitted, ball)]
    assert error[0] < 1e-2 * error[1]


def test_metzler_weights_are_those_of_the_model():
    _, states = implicit_states()
    eta = np.linspace(0.5, 2.0, states.n)
    result = simjax.fit(states, alpha=1e-3, kappa=-2.0, constraint="metzler", eta=eta)
    assert result.converged
    assert measure(result.model.A, eta) == pytest.approx(-2.0, abs=1e-6)
    assert result.settings["constraint"] == "metzler"
    assert "eta" in str(result.settings)


def test_a_stacked_ball_bounds_a_and_b_together(states):
    result = simjax.fit(states, alpha=1e-4, kappa=0.3, constraint="stacked_ball")
    assert result.converged
    stacked = np.abs(np.concatenate([result.model.A, result.model.B], axis=1)).sum(axis=1)
    # In the units of the model B' = SB: the bound is on ‖(A' B')‖∞ whatever the scale.
    assert stacked.max() <= 0.3 + 1e-12
    assert stacked.max() >= 0.3 - 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("constraint", ["metzler", "stacked_ball"])
def test_other_constraints_agree_with_the_oracle(constraint, states):
    pytest.importorskip("clarabel")
    result = simjax.fit(states, alpha=1e-3, kappa=0.2, constraint=constraint)
    assert result.converged
    verification = result.verify(rows=8)
    assert verification.ok, verification.table()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"constraint": "sphere"}, "constraint"),
        ({"constraint": "metzler", "kappa": 1.0}, "kappa"),
        ({"constraint": "metzler", "kappa": np.nan}, "kappa"),
        ({"constraint": "ball", "kappa": -0.5}, "kappa"),
        ({"constraint": "ball", "eta": np.ones(14)}, "eta"),
        ({"constraint": "metzler", "eta": np.zeros(14)}, "eta"),
        ({"constraint": "metzler", "eta": np.ones(3)}, "eta"),
        ({"constraint": "metzler", "kappa": -0.5, "support": "hollow"}, "radius"),
    ],
)
def test_bad_constraints_are_named(states, options, name):
    with pytest.raises(ValueError, match=name):
        simjax.fit(states, **options)


# --- Low rank ----------------------------------------------------------------------------------------------------


def test_a_low_rank_is_kept_and_what_is_convex_is_certified(states):
    result = simjax.fit(states, alpha=1e-4, kappa=0.9, constraint=simjax.LowRank(3))
    assert result.converged
    L, R = result.factors
    assert (L.shape, R.shape) == ((states.n, 3), (states.n, 3))
    np.testing.assert_allclose(L @ R.T, result.model.A, atol=1e-12)
    assert np.linalg.matrix_rank(result.model.A) <= 3
    assert result.model.well_posedness <= 0.9 + 1e-12
    # By hand: row i of (L B) minimises λ‖z − X R l − U b‖² + h(l, b) for the R that was chosen.
    upper = result.solutions[1]
    design = np.concatenate([states.activations @ (R * states.scaling("inner", 0.9)[:, None]), states.inputs], axis=1)
    np.testing.assert_allclose(upper.problem.design, design, atol=1e-12)
    for row in (0, states.n - 1):
        w = upper.weights[row]
        residual = states.preactivations[:, row] - design @ w
        penalty = np.where(np.abs(w) <= 1.0, 2e-4 * np.abs(w), 1e-4 * w**2 + 1e-4).sum()
        assert result.certificate.objective[row] == pytest.approx(0.1 * residual @ residual + penalty, rel=1e-9)
    assert "rank 3" in result.summary()


def test_low_rank_rows_agree_with_the_oracle_and_more_rank_fits_better(states):
    pytest.importorskip("clarabel")
    objective = []
    for rank in (2, 14):
        result = simjax.fit(states, "l1", alpha=1e-5, constraint=simjax.LowRank(rank))
        assert result.converged
        assert result.verify(rows=5).ok
        design = np.concatenate([states.activations, states.inputs], axis=1)
        objective.append(np.sum((states.preactivations - design @ result.weights[: states.n].T) ** 2))
    assert objective[1] < objective[0]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"constraint": simjax.LowRank(15)}, ValueError, "at most the 14 states, got 15"),
        ({"constraint": simjax.LowRank(3), "alpha": np.ones(26)}, ValueError, "scalar alpha"),
        ({"constraint": simjax.LowRank(3), "support": "hollow"}, ValueError, "support must be 'auto' or 'full'"),
        ({"constraint": simjax.LowRank(3), "refit": "support"}, ValueError, "refit must be None"),
        ({"constraint": 3}, TypeError, "constraint must be a name, LowRank\\(rank\\) or a Box"),
    ],
)
def test_bad_low_ranks_are_named(states, options, error, match):
    with pytest.raises(error, match=match):
        simjax.fit(states, **options)


def test_a_rank_is_a_positive_integer():
    for rank, error in ((0, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="rank must be"):
            simjax.LowRank(rank)


@pytest.mark.parametrize("stream", [False, True])
def test_every_row_is_certified_once(states, monkeypatch, stream):
    real, certified = attempts.certify_until, []

    def counted(problem, weights, duals, enough):
        certified.append(len(weights))
        return real(problem, weights, duals, enough)

    monkeypatch.setattr(attempts, "certify_until", counted)
    given = simjax.stream_states([states]) if stream else states
    assert simjax.fit(given, "l1", alpha=1e-2).converged
    assert sum(certified) == states.n + states.q
