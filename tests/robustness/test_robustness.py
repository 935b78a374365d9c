"""Certificates against sampled Jacobians, exhaustive maxima and attacks: sound, and tight where claimed."""

import itertools

import clarabel
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from simjax.implicit.activations import ACTIVATIONS
from simjax.implicit.model import ImplicitModel
from simjax.nn.mlp import MLP
from simjax.robustness import (
    certified_accuracy,
    certified_radii,
    differentiable,
    fgsm,
    lipschitz_bounds,
    lipschitz_lmi,
    matrix_measure,
    metzler,
    monotonicity,
    optimal_weights,
    output_box,
    pgd,
    residual_certificate,
    sampled_lipschitz,
)
from simjax.states.states import States

SEEDS = st.integers(0, 10**6)


def norm_inf(M):
    return np.abs(M).sum(axis=1).max()


def ball_model(rng, n=6, p=4, q=3, kappa=0.7, activation="relu"):
    A = rng.normal(size=(n, n))
    A *= kappa / np.abs(A).sum(axis=1, keepdims=True)
    return ImplicitModel(
        A,
        rng.normal(size=(n, p)),
        rng.normal(size=(q, n)),
        rng.normal(size=(q, p)),
        activation,
        b=rng.normal(size=n),
        c=rng.normal(size=q),
    )


def measure_model(rng, gamma, n=6, p=4, q=3, activation="relu"):
    """A model with μ_η(A) ≤ gamma for a random η, usually far outside the ball ‖A‖∞ < 1."""
    eta, T = np.exp(rng.normal(size=n)), rng.normal(size=(n, n))
    A = gamma * np.eye(n) + T * eta[:, None] / eta - np.diag(np.abs(T).sum(axis=1))
    return ImplicitModel(
        A,
        rng.normal(size=(n, p)),
        rng.normal(size=(q, n)),
        rng.normal(size=(q, p)),
        activation,
        b=rng.normal(size=n),
    )


def jacobian(model, s):
    """J(s) = C(I − SA)⁻¹SB + D: the change of outputs per change of inputs for slopes s in [0, 1]."""
    SA, SB = s[:, None] * model.A, s[:, None] * model.B
    return model.C @ np.linalg.solve(np.eye(model.n) - SA, SB) + model.D


def slopes(rng, n, count):
    corners = rng.integers(0, 2, size=(count, n)).astype(float)
    return np.concatenate([corners, rng.random((count, n)), np.ones((1, n))])


# ---- measures and weights --------------------------------------------------------------------------------


def test_metzler_majorant_and_measure_of_an_example():
    A = np.array([[-3.0, -0.5], [0.25, 2.0]])
    assert_array_equal(metzler(A), [[-3.0, 0.5], [0.25, 2.0]])
    assert matrix_measure(A) == 2.25
    assert matrix_measure(A, [1.0, 2.0]) == 2.125
    assert matrix_measure([[-3.0, 0.5], [0.5, -3.0]]) == -2.5


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, scale=st.sampled_from([0.1, 0.4, 1.0]))
def test_optimal_weights_exist_exactly_when_the_spectral_abscissa_is_below_one(seed, scale):
    A = scale * np.random.default_rng(seed).normal(size=(5, 5))
    assert abs(matrix_measure(A)) <= norm_inf(A) * (1 + 1e-14)
    eta = optimal_weights(A)
    abscissa = np.linalg.eigvals(metzler(A)).real.max()
    assert (eta is not None) == (abscissa < 1)
    if eta is not None:
        assert eta.min() > 0
        assert_allclose(matrix_measure(A, eta), 1 - 1 / eta.max(), rtol=0, atol=1e-10)
    if norm_inf(A) < 1 or np.abs(np.linalg.eigvals(np.abs(A))).max() < 1:
        assert eta is not None


def test_the_measure_admits_more_than_the_norm_and_the_perron_eigenvalue():
    A = np.array([[-5.0, 2.0], [3.0, -5.0]])
    assert norm_inf(A) > 1
    assert np.abs(np.linalg.eigvals(np.abs(A))).max() > 1
    assert optimal_weights(A) is not None
    assert optimal_weights(np.eye(2)) is None  # (I − ⌈A⌉) is singular


# ---- Lipschitz bounds ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, gamma=st.sampled_from([None, -1.0, 0.0, 0.6, 0.9]))
def test_no_sampled_jacobian_exceeds_any_bound(seed, gamma):
    rng = np.random.default_rng(seed)
    model = ball_model(rng) if gamma is None else measure_model(rng, gamma)
    bounds = lipschitz_bounds(model)
    J = np.stack([jacobian(model, s) for s in slopes(rng, model.n, 60)])
    assert np.all(np.abs(J) <= bounds.elementwise * (1 + 1e-9))
    sampled = np.abs(J).sum(axis=2).max()
    elementwise = norm_inf(bounds.elementwise)
    assert sampled <= elementwise * (1 + 1e-9)
    for bound in (
        bounds.kappa,
        bounds.mu,
        bounds.mu_weighted,
        lipschitz_bounds(model, rng.random(6) + 0.1).mu_weighted,
    ):
        assert elementwise <= bound * (1 + 1e-9)  # the elementwise bound is the best, for any admissible η
    assert bounds.inf == elementwise
    sampled_l2 = np.linalg.norm(J, 2, axis=(1, 2)).max()
    assert sampled_l2 <= np.linalg.norm(bounds.elementwise, 2) * (1 + 1e-9)
    assert sampled_l2 <= bounds.monotone_l2 * (1 + 1e-9)
    assert bounds.l2 <= bounds.monotone_l2


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_signed_diagonals_improve_the_elementwise_bound(seed):
    """E ≤ E_abs = |C|(I − |A|)⁻¹|B| + |D|, and ‖E_abs‖∞ ≤ the κ bound."""
    model = ball_model(np.random.default_rng(seed))
    bounds = lipschitz_bounds(model)
    inverse = np.linalg.inv(np.eye(6) - np.abs(model.A))
    absolute = np.abs(model.C) @ inverse @ np.abs(model.B) + np.abs(model.D)
    assert np.all(bounds.elementwise <= absolute * (1 + 1e-12))
    assert norm_inf(absolute) <= bounds.kappa * (1 + 1e-12)
    assert bounds.mu <= bounds.kappa * (1 + 1e-12)


def test_a_negative_measure_is_used_in_full():
    """A = −3: L = ‖C‖‖B‖/(1 − μ) = 1/4 is attained, where 1/(1 − max(μ, 0)) would say 1."""
    model = ImplicitModel([[-3.0]], [[1.0]], [[1.0]], [[0.0]])
    bounds = lipschitz_bounds(model)
    assert bounds.mu == bounds.mu_weighted == bounds.inf == 0.25
    assert bounds.kappa == np.inf
    assert jacobian(model, np.ones(1)) == 0.25
    assert sampled_lipschitz(model, [[1.0]]) == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_sampled_lipschitz_is_the_jacobian_and_below_every_certificate(activation):
    rng = np.random.default_rng(0)
    for model in (ball_model(rng, activation=activation), measure_model(rng, 0.5, activation=activation)):
        U = rng.normal(size=(20, 4))
        call = differentiable(model)
        with jax.enable_x64(True):
            J = np.asarray(jax.vmap(jax.jacrev(call))(jnp.asarray(U)))
        bounds = lipschitz_bounds(model)
        for norm, order in (("inf", np.inf), ("l2", 2)):
            largest = np.linalg.norm(J, order, axis=(1, 2)).max()
            sampled = sampled_lipschitz(model, U, norm)
            assert_allclose(sampled, largest, rtol=1e-7)
            assert sampled <= getattr(bounds, norm)


def test_bounds_that_do_not_exist_are_infinite_or_none():
    model = ImplicitModel([[2.0]], [[1.0]], [[1.0]], [[0.5]])
    bounds = lipschitz_bounds(model)
    assert bounds.elementwise is None
    assert bounds.eta is None
    assert bounds.inf == bounds.l2 == np.inf


# ---- l2 --------------------------------------------------------------------------------------------------


def smallest_l2_certificate(model):
    """(γ, Λ) of the SDP min ρ s.t. [[2Λ − ΛA − AᵀΛ − CᵀC, −ΛB − CᵀD], [·, ρI − DᵀD]] ⪰ 0, with γ = √ρ."""
    n, p = model.n, model.p
    size = n + p

    def scaled_triangle(M):
        """Clarabel's order: the upper triangle by columns, off-diagonal entries times √2."""
        return np.array([M[i, j] * (1 if i == j else np.sqrt(2)) for j in range(size) for i in range(j + 1)])

    columns = []
    for i in range(n):
        e = np.zeros((n, n))
        e[i, i] = 1
        block = np.zeros((size, size))
        block[:n, :n] = 2 * e - e @ model.A - model.A.T @ e
        block[:n, n:] = -e @ model.B
        block[n:, :n] = block[:n, n:].T
        columns.append(scaled_triangle(block))
    identity = np.zeros((size, size))
    identity[n:, n:] = np.eye(p)
    columns.append(scaled_triangle(identity))
    CD = np.hstack([model.C, model.D])
    offset = scaled_triangle(CD.T @ CD)
    bounds = np.hstack([np.eye(n), np.zeros((n, 1))])  # Λ ≥ 0
    rows = sp.csc_matrix(np.vstack([-np.array(columns).T, -bounds]))
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    cones = [clarabel.PSDTriangleConeT(size), clarabel.NonnegativeConeT(n)]
    solver = clarabel.DefaultSolver(
        sp.csc_matrix((n + 1, n + 1)),
        np.r_[np.zeros(n), 1.0],
        rows,
        np.r_[-offset, np.zeros(n)],
        cones,
        settings,
    )
    solution = solver.solve()
    assert str(solution.status) == "Solved"
    x = np.array(solution.x)
    return np.sqrt(x[n]), x[:n]


@pytest.mark.parametrize("seed", range(5))
def test_the_lmi_certificate_is_sound_and_nearly_tight(seed):
    """The best LMI constant is between the exact maximum over slopes in {0, 1}ⁿ and 1.03 times it."""
    rng = np.random.default_rng(seed)
    model = ball_model(rng)
    gamma, weights = smallest_l2_certificate(model)
    exact = max(np.linalg.norm(jacobian(model, np.array(s)), 2) for s in itertools.product([0.0, 1.0], repeat=6))
    assert exact * (1 - 1e-6) <= gamma <= 1.03 * exact
    assert gamma <= lipschitz_bounds(model).l2
    # The SDP is γ times the LMI with Λ in units of γ.
    assert lipschitz_lmi(model, weights / gamma, gamma * (1 + 1e-5)) >= 0
    assert lipschitz_lmi(model, weights / gamma, 0.99 * exact) < 0
    assert not any(lipschitz_lmi(model, np.exp(rng.normal(size=6)), 0.99 * exact) >= 0 for _ in range(100))


def test_monotone_bound_of_a_symmetric_model():
    """A = WWᵀ with ‖W‖₂ < 1: m = 1 − ‖W‖₂²."""
    W = np.random.default_rng(1).normal(size=(6, 3))
    W *= 0.9 / np.linalg.norm(W, 2)
    assert_allclose(monotonicity(W @ W.T), 1 - 0.81, rtol=0, atol=1e-12)


# ---- boxes -----------------------------------------------------------------------------------------------


def test_box_of_the_published_example():
    """The box is [0.3939, 1.6061] × [0.6364, 2.0303]; norm bound 3 (Jafarpour et al., L4DC 2022)."""
    A, B = [[-0.25, -0.25], [0.75, -0.25]], [[0.5, 1.0], [1.0, 0.5]]
    model = ImplicitModel(A, B, np.eye(2), np.zeros((2, 2)))
    box = output_box(model, [[0.0, 1.0]], [[1 / 3, 2.0]])
    assert_allclose(box.lower, [[0.3939, 0.6364]], rtol=0, atol=5e-5)
    assert_allclose(box.upper, [[1.6061, 2.0303]], rtol=0, atol=5e-5)
    assert_allclose(lipschitz_bounds(model).mu, 3.0, rtol=0, atol=1e-12)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, activation=st.sampled_from(["relu", "sigmoid"]), kind=st.sampled_from(["ball", "measure"]))
def test_boxes_contain_the_outputs_and_shrink_to_them(seed, activation, kind):
    rng = np.random.default_rng(seed)
    model = ball_model(rng, activation=activation) if kind == "ball" else measure_model(rng, 0.5, activation=activation)
    centre, radius = rng.normal(size=4), 0.3 * rng.random(4)
    T = rng.normal(size=(2, 3))
    box = output_box(model, [centre - radius], [centre + radius])
    transformed = output_box(model, [centre - radius], [centre + radius], transform=T)
    U = np.concatenate([centre + radius * rng.uniform(-1, 1, (40, 4)), centre + radius * rng.choice([-1, 1], (24, 4))])
    with jax.enable_x64(True):
        Y = np.asarray(differentiable(model)(jnp.asarray(U)))
    for found, bound in ((Y, box), (Y @ T.T, transformed)):
        assert np.all(found >= bound.lower - 1e-8)
        assert np.all(found <= bound.upper + 1e-8)
    middle, half = (box.upper + box.lower) / 2, (box.upper - box.lower) / 2
    assert np.all(transformed.lower >= middle @ T.T - half @ np.abs(T).T - 1e-9)
    assert np.all(transformed.upper <= middle @ T.T + half @ np.abs(T).T + 1e-9)
    point = output_box(model, [centre], [centre])
    with jax.enable_x64(True):
        assert_allclose(point.lower[0], differentiable(model)(jnp.asarray(centre[None]))[0], rtol=0, atol=1e-8)
    assert_allclose(point.upper, point.lower, rtol=0, atol=1e-8)


def test_the_box_is_within_the_elementwise_certificate():
    rng = np.random.default_rng(2)
    for model in (ball_model(rng), measure_model(rng, 0.5), measure_model(rng, -0.5, activation="tanh")):
        u, radius = rng.normal(size=(1, 4)), 0.1
        box = output_box(model, u - radius, u + radius)
        widest = 2 * radius * lipschitz_bounds(model).elementwise.sum(axis=1)
        assert np.all(box.upper - box.lower <= widest * (1 + 1e-9))


# ---- classification --------------------------------------------------------------------------------------


def classifier(rng, m=40, **kwargs):
    model = ball_model(rng, n=8, p=5, q=3, **kwargs)
    U = rng.normal(size=(m, 5))
    labels = model(U).argmax(axis=1)
    labels[: m // 4] = (labels[: m // 4] + 1) % 3  # a quarter is wrong
    return model, U, labels


@pytest.mark.parametrize("norm", ["inf", "l2"])
def test_certified_radii_are_the_formula(norm):
    model, U, labels = classifier(np.random.default_rng(3))
    radii = certified_radii(model, U, labels, norm=norm)
    assert_array_equal(radii[:10], 0)
    assert radii[10:].min() > 0
    Y = model(U)
    inner = np.linalg.inv(np.eye(8) - metzler(model.A)) @ np.abs(model.B)
    for k in range(10, 40):
        expected = []
        for j in range(3):
            if j != labels[k]:
                t = np.eye(3)[labels[k]] - np.eye(3)[j]
                weight = np.abs(t @ model.C) @ inner + np.abs(t @ model.D)
                expected.append(t @ Y[k] / (weight.sum() if norm == "inf" else np.linalg.norm(weight)))
        assert_allclose(radii[k], min(expected), rtol=1e-8)


def test_no_attack_within_the_certified_radius_succeeds():
    model, U, labels = classifier(np.random.default_rng(4))
    radii = certified_radii(model, U, labels)
    for k in range(10, 20):
        attacked = pgd(model, U[k : k + 1], labels[k : k + 1], 0.999 * radii[k], steps=5)
        assert model(attacked).argmax() == labels[k]
    bounds = lipschitz_bounds(model)
    for norm, constant in (("inf", bounds.inf), ("l2", bounds.l2)):
        by_constant = certified_radii(model, U, labels, norm=norm, lipschitz=constant)
        assert np.all(by_constant <= certified_radii(model, U, labels, norm=norm) * (1 + 1e-9)) or norm == "l2"
        top = np.sort(model(U), axis=1)
        factor = 2 if norm == "inf" else np.sqrt(2)
        assert_allclose(by_constant[10:], (top[10:, -1] - top[10:, -2]) / (factor * constant), rtol=1e-8)


@pytest.mark.parametrize("certificate", ["elementwise", "box"])
def test_certified_accuracy_falls_from_the_accuracy_to_zero(certificate):
    model, U, labels = classifier(np.random.default_rng(5))
    shares = [certified_accuracy(model, U, labels, eps, certificate=certificate) for eps in (0, 1e-3, 1e-2, 0.1, 10)]
    assert shares[0] == model.accuracy(U, labels) == 0.75
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[2] < 0.75
    assert shares[-1] == 0
    attacked = fgsm(model, U, labels, 1e-2)
    assert shares[2] <= model.accuracy(attacked, labels)


# ---- the residual certificate ----------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, kind=st.sampled_from(["ball", "measure"]), activation=st.sampled_from(["relu", "tanh"]))
def test_residual_certificate_bounds_the_distance_to_the_baseline(seed, kind, activation):
    rng = np.random.default_rng(seed)
    model = ball_model(rng, activation=activation) if kind == "ball" else measure_model(rng, 0.6, activation=activation)
    U, Z, Y = rng.normal(size=(9, 4)), rng.normal(size=(9, 6)), rng.normal(size=(9, 3))
    X = ACTIVATIONS[activation].host(Z)
    certificate = residual_certificate(
        model, States(inputs=U, preactivations=Z, activations=X, outputs=Y, activation=activation)
    )
    from simjax.implicit.equilibrium import equilibrium

    with jax.enable_x64(True):
        exact, report = equilibrium(model.A, model.B, U, model.b, activation=activation, tol=1e-12, max_iters=20000)
    assert report.converged.all()
    exact = np.asarray(exact)
    outputs = exact @ model.C.T + U @ model.D.T + (0 if model.c is None else model.c)
    assert np.all(np.abs(exact - X) <= certificate.states + 1e-9)
    assert np.all(np.abs(outputs - Y) <= certificate.outputs + 1e-8)
    if kind == "ball":
        residual = np.abs(Z - X @ model.A.T - U @ model.B.T - model.b).max(axis=1)
        assert np.all(certificate.states.max(axis=1) <= certificate.uniform * (1 + 1e-12))
        assert np.all(certificate.uniform <= residual / (1 - norm_inf(model.A)) * (1 + 1e-12))


def test_residual_certificate_of_an_exact_fit_is_zero():
    rng = np.random.default_rng(6)
    weights = [rng.normal(size=(5, 4)), rng.normal(size=(3, 5)), rng.normal(size=(2, 3))]
    states = States.from_layers(weights, None, "relu", rng.normal(size=(7, 4)))
    certificate = residual_certificate(states.baseline, states)
    assert certificate.states.max() <= 1e-12
    assert certificate.outputs.max() <= 1e-12


# ---- attacks ---------------------------------------------------------------------------------------------


def test_fgsm_of_a_linear_classifier_is_known():
    """With two classes the gradient of the cross-entropy is a positive multiple of w_other − w_label."""
    rng = np.random.default_rng(7)
    D = rng.normal(size=(2, 6))
    model = ImplicitModel([[0.0]], np.zeros((1, 6)), np.zeros((2, 1)), D)
    U, labels = rng.normal(size=(5, 6)), np.array([0, 1, 0, 1, 1])
    expected = U + 0.1 * np.sign(D[1 - labels] - D[labels])
    assert_allclose(fgsm(model, U, labels, 0.1), expected, rtol=0, atol=1e-15)
    assert_allclose(pgd(model, U, labels, 0.1), expected, rtol=0, atol=1e-15)
    assert_array_equal(fgsm(model, U, labels, 0.0), U)


def test_half_of_the_pixels_move_the_same_way_on_every_run():
    model, U, labels = classifier(np.random.default_rng(8))
    U = np.clip(np.abs(U), 0, 1)
    full = fgsm(model, U, labels, 0.05, fraction=0.8)
    moved = np.abs(full - U) > 0
    assert_array_equal(moved.sum(axis=1), 4)  # 80 % of 5
    assert len(np.unique(moved, axis=0)) > 1
    assert_allclose(np.abs(full - U)[moved], 0.05, rtol=1e-12)
    assert_array_equal(full, fgsm(model, U, labels, 0.05, fraction=0.8, batch_size=7))
    assert np.any(full != fgsm(model, U, labels, 0.05, fraction=0.8, seed=1))
    inside = fgsm(model, U, labels, 0.05, bounds=(0, 1))
    assert inside.min() >= 0
    assert inside.max() <= 1
    strong = pgd(model, U, labels, 0.05, fraction=0.8, bounds=(0, 1))
    assert np.abs(strong - U).max() <= 0.05 * (1 + 1e-12)
    assert np.all((np.abs(strong - U) > 0).sum(axis=1) <= 4)


def cross_entropy(model, U, labels):
    Y = model(U)
    return np.log(np.exp(Y).sum(axis=1)) - Y[np.arange(len(U)), labels]


def test_pgd_is_at_least_as_strong_as_fgsm():
    model, U, labels = classifier(np.random.default_rng(9), activation="tanh")
    before = cross_entropy(model, U, labels)
    one = cross_entropy(model, fgsm(model, U, labels, 0.3), labels)
    many = cross_entropy(model, pgd(model, U, labels, 0.3, steps=40), labels)
    assert np.all(one > before)
    assert np.mean(many >= one - 1e-3) > 0.8  # a random start may end in another local maximum
    assert many.sum() > one.sum()


def test_the_implicit_form_of_a_network_is_attacked_as_the_network_itself():
    network = MLP((6, 8, 5, 3), use_bias=True)
    rng = np.random.default_rng(10)
    U, labels = rng.normal(size=(30, 6)), rng.integers(0, 3, 30)
    assert_array_equal(fgsm(network, U, labels, 0.1), fgsm(network.export(), U, labels, 0.1))
    assert_allclose(
        pgd(network, U, labels, 0.1, steps=3),
        pgd(network.export(), U, labels, 0.1, steps=3),
        rtol=0,
        atol=1e-12,
    )


def test_a_sample_without_an_equilibrium_is_not_moved():
    model = ImplicitModel([[2.0]], [[1.0]], [[1.0], [-1.0]], [[0.0], [1.0]])
    attacked = fgsm(model, [[1.0], [-1.0]], [0, 0], 0.5)
    assert_array_equal(attacked, [[1.0], [-0.5]])


# ---- errors ----------------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    rng = np.random.default_rng(11)
    model, U, labels = classifier(rng)
    wild = ImplicitModel([[2.0]], [[1.0]], [[1.0], [0.0]], [[0.0], [0.0]])
    cases = [
        (lambda: metzler(np.ones((2, 3))), "A must be square"),
        (lambda: matrix_measure(np.eye(2), [1.0, 0.0]), "eta must be 2 positive"),
        (lambda: lipschitz_bounds(model, np.ones(3)), "eta must be 8 positive"),
        (lambda: lipschitz_lmi(model, np.ones(3), 1.0), "weights must be 8 positive"),
        (lambda: lipschitz_lmi(model, np.ones(8), -1.0), "gamma must be a positive"),
        (lambda: sampled_lipschitz(model, U, "l1"), "norm must be one of"),
        (lambda: sampled_lipschitz(wild, [[1.0]]), "inputs must have a sample"),
        (lambda: sampled_lipschitz(model, U[:, :2]), r"inputs must have shape \(m, 5\)"),
        (lambda: output_box(model, U, U - 1), "lower ≤ upper"),
        (lambda: output_box(model, U, U, transform=np.eye(2)), r"transform must have shape \(k, 3\)"),
        (lambda: output_box(wild, [[0.0]], [[1.0]]), "μ_η"),
        (lambda: certified_radii(wild, [[0.0]], [0]), "μ_η"),
        (lambda: certified_radii(model, U, labels[:-1]), "labels has shape"),
        (lambda: certified_radii(model, U, labels, lipschitz=0.0), "lipschitz must be a positive"),
        (lambda: certified_accuracy(model, U, labels, -0.1), "epsilon must be a number >= 0"),
        (lambda: certified_accuracy(model, U, labels, 0.1, certificate="ibp"), "certificate must be one of"),
        (lambda: fgsm(model, U, labels, np.nan), "epsilon must be finite"),
        (lambda: fgsm(model, U, labels, 0.1, fraction=1.5), "fraction must be in"),
        (lambda: fgsm(model, U, labels, 0.1, bounds=(0, 1)), "bounds must be"),
        (lambda: fgsm(model, U, labels, 0.1, batch_size=0), "batch_size must be at least 1"),
        (lambda: pgd(model, U, labels, 0.1, steps=0), "steps must be at least 1"),
        (lambda: pgd(model, U, labels, 0.1, step_size=-1.0), "step_size must be a positive"),
        (lambda: fgsm(lambda u: u[:, 0], U, labels, 0.1), "network must return logits"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    states = States(inputs=U, preactivations=U, activations=np.maximum(U, 0), outputs=U)
    with pytest.raises(ValueError, match="states must have n, p, q = 8, 5, 3"):
        residual_certificate(model, states)
    with pytest.raises(TypeError, match="states must be a"):
        residual_certificate(model, U)
    with pytest.raises(TypeError, match="model must be an ImplicitModel"):
        lipschitz_bounds(np.eye(2))
    with pytest.raises(TypeError, match="network must be"):
        fgsm(np.eye(2), U, labels, 0.1)
    with pytest.raises(TypeError, match="labels must be whole numbers"):
        fgsm(model, U, labels * 1.0, 0.1)
