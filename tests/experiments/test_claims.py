"""The papers' claims: what is measured, how it is judged, and what is written."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from benchmarks.records import ROOT
from experiments import claims
from experiments.__main__ import main
from experiments.claims import fitting, geq, lben, linear_deq, nemon, opteq, paper, single_index
from experiments.claims.lipschitz_nets import LipschitzNetwork
from simjax.nn import LBEN, NEMON
from simjax.robustness import sampled_lipschitz

# --- What is measured --------------------------------------------------------------------------------------------


def test_a_linear_rate_is_found():
    losses = 3.0 * 0.9 ** np.arange(400)
    rate, straightness = linear_deq.linear_rate(losses)
    assert rate == pytest.approx(0.9, rel=1e-9)
    assert straightness == pytest.approx(1.0)
    crooked = 1.0 / (1.0 + np.arange(4000.0)) ** 2  # not a linear rate
    assert linear_deq.linear_rate(crooked)[1] < 0.95
    assert np.isnan(linear_deq.linear_rate(np.array([1.0, np.inf, np.nan, 1.0]))).all()


def test_linear_deqs_conserve_and_converge(monkeypatch):
    monkeypatch.setattr(linear_deq, "STATES", 4)
    monkeypatch.setattr(linear_deq, "SYNTHETIC", (2, 2, 30))
    monkeypatch.setattr(linear_deq, "POINTS", 5)
    found = linear_deq.measure("synthetic", 0, True)
    assert found["drift"] < linear_deq.DRIFT < 1e-3 < found["moved"]
    assert found["bound_ratio"] >= 1.0
    assert found["left"] < found["curve"][0] == 1.0


def test_the_bound_on_conditioning_is_broken_by_other_parameters():
    """It follows from the law, so parameters off the sphere need not keep it."""
    first = np.eye(2)
    near = np.diag([1.0 - 1e-3, 0.0]), np.zeros((2, 1)), np.zeros((1, 2))
    square, bound, condition = linear_deq.conditioning(near, first)
    assert square < bound
    assert condition == pytest.approx(1e3)


def test_single_index_models_reach_the_index(monkeypatch):
    monkeypatch.setattr(single_index, "INPUTS", 2)
    found = single_index.measure("identity", 0, True)
    assert found["drift"] < 1e-9
    assert found["discrete"] < 1e-12
    assert found["distance"] < 1e-3


@pytest.mark.parametrize("layer", lben.LAYERS[:4])
def test_random_layers_are_the_functions_of_their_forms(layer):
    rng = np.random.default_rng(0)
    form, function = lben.drawn(layer, rng)
    x = rng.normal(size=(7, lben.SIZES[0]))
    z = np.zeros((7, len(form.W)))
    for _ in range(3):  # W is nilpotent
        z = z @ form.W.T + x @ form.U.T + form.b
        z = np.where(form.identity, z, np.maximum(z, 0.0))
    assert_allclose(z @ form.C.T + form.c, function(x), atol=1e-12)
    gain = lben.gains(form, np.random.default_rng(1))
    assert 0.1 < gain <= 1.0 + 1e-12
    doubled = form._replace(C=4.0 * form.C, U=4.0 * form.U)
    assert lben.gains(doubled, np.random.default_rng(1)) > 1.0


def test_a_trainable_network_is_its_form_and_lipschitz():
    network = LipschitzNetwork(5, (6,), ((7, 4), (5, 3)), 2.0, nnx.Rngs(0))
    u = np.random.default_rng(0).normal(size=(20, 5))
    with jax.enable_x64(True):
        module = LBEN.from_form(network.form())
        assert module.gamma == 2.0
        assert_allclose(module.states(u).outputs, network(jnp.asarray(u, jnp.float32)), atol=1e-5)
        assert sampled_lipschitz(module.export(), u, "l2") <= 2.0 * (1 + 1e-9)
    structure = lben.outside(module)
    assert structure[0][:6, :].all()  # the first layer sees no states
    assert not structure[1][:6].any()  # but all inputs


def test_one_program_serves_every_gamma():
    module = NEMON(3, 6, 2, rngs=nnx.Rngs(1))
    u = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    for gamma in (-1.0, 0.5):
        exact = nemon.with_gamma(module, gamma)
        assert exact.gamma == gamma
        outputs, found = nemon.responses(module, u, jnp.asarray(gamma))
        assert bool(found.all())
        assert_allclose(outputs, exact(u), atol=1e-5)
        assert_allclose(nemon.penalty(module, jnp.asarray(gamma)), exact.lipschitz_penalty(), rtol=1e-6)


def test_what_an_unconstrained_network_does_not_find_is_wrong():
    free = nemon.Free(1, 1, 2, nnx.Rngs(0))
    free.A[...], free.B[...], free.b[...] = jnp.array([[2.0]]), jnp.array([[1.0]]), jnp.array([0.0])
    inputs = np.array([[1.0], [-1.0]], np.float32)  # x = relu(2x + u) has no solution for u > 0
    _, found = nemon.called(free, inputs, 0.0)
    assert found.tolist() == [False, True]
    loss = nemon.classified(free, (jnp.asarray(inputs), jnp.array([0, 0])), (0.0, 0.0))
    assert float(loss) == pytest.approx(np.log(2.0) / 2.0, rel=1e-5)  # that of the second sample alone
    assert nemon.most(free.equilibrium(inputs)) is None
    assert nemon.most(free.equilibrium(inputs[1:])) == 0


def test_a_prior_selects_at_the_stated_rate():
    found = opteq.selection(0, True)
    assert found["order"] == pytest.approx(1.0, abs=0.05)
    assert found["still"] < 1e-12 < found["error"] < found["plain"]


def test_the_equilibrium_is_the_minimiser():
    found = opteq.problem_solved(1)
    assert found["difference"] < 1e-8
    assert found["firm"] >= 1.0 - 1e-12


def test_sizes_follow_from_the_single_layer():
    made, shape = opteq.makers(), (6, 12, 3)
    wanted = opteq.count(made[opteq.SINGLE], shape)
    assert wanted == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(made[opteq.SINGLE](shape, 0))))
    deep = opteq.fitting_states(made[opteq.DEEP[0]], shape, wanted, 2, fewer=True)
    assert deep % 2 == 0
    assert opteq.count(made[opteq.DEEP[0]], (6, deep, 3)) <= wanted < opteq.count(made[opteq.DEEP[0]], (6, deep + 2, 3))
    other = opteq.fitting_states(made["MonDEQ"], shape, wanted, 1, fewer=False)
    assert opteq.count(made["MonDEQ"], (6, other - 1, 3)) < wanted <= opteq.count(made["MonDEQ"], (6, other, 3))
    assert opteq.count(geq.geq, (6, 4, 3)) == 2 * 16 + 4 * 6 + 3 * 4 + 4 + 3


def test_steps_without_a_gradient_are_left_out():
    def loss(module, batch, hyper):
        return hyper * jnp.sum(module.c[...] ** 2) * jnp.where(batch[1].sum() > 0, jnp.nan, 1.0)

    module = nemon.Free(1, 1, 1, nnx.Rngs(0))
    module.c[...] = jnp.ones(1)
    inputs, recipe = np.zeros((4, 1), np.float32), fitting.Recipe(5, 2, 0.1)
    assert fitting.train(module, loss, inputs, np.ones(4), recipe, 0, 1.0) == 10
    assert float(module.c[0]) == 1.0
    assert fitting.train(module, loss, inputs, np.zeros(4), recipe, 0, 1.0) == 0
    assert abs(float(module.c[0])) < 0.9


# --- How it is judged --------------------------------------------------------------------------------------------


def test_verdicts_ask_for_every_seed():
    assert paper.always([2.0, 3.0], [1.0, 2.0]) is True
    assert paper.always([2.0, 3.0], [1.0, 3.0]) is False
    assert paper.always([], []) is None
    assert paper.together(True, None) is None
    assert paper.together(True, False) is False
    assert paper.holds([1.0, 2.0], 1.5) is False
    assert paper.holds([], 1.0) is None
    assert paper.said([1.0, float("nan")]) == "not finite for 1 of 2 seeds"


@pytest.mark.parametrize(("kept", "verdict"), [(0.9, True), (0.6, False)])
def test_geq_is_judged_by_what_is_kept(kept, verdict):
    records = []
    for seed in (0, 1):
        for kind, share, accuracy in (("OptEq", 0.7, 0.95), ("GEQ", kept, 0.94)):
            noisy = {f"noise_{sigma:g}": share * accuracy for sigma in geq.NOISE}
            found = {"accuracy": accuracy, "kept": share, "n": 3, "parameters": 10, **noisy}
            records.append({"case": f"digits: {kind}", "seed": seed, **found})
    first, second = geq.claims(records)
    assert (first.shown, second.shown) == (False, verdict)
    assert "95.00 ± 0.00" in first.measured
    assert len(geq.tables(records)) == 4
    assert len(geq.picture(records).axes) == 1


@pytest.mark.parametrize("name", claims.PAPERS)
def test_every_section_is_written_without_records(name):
    found = claims.PAPERS[name]
    text = found.section([])
    assert all(claim.shown is None for claim in found.claims([])) or name == "sim"
    assert text.count("not run") == (0 if name == "sim" else len(found.claims([])))
    assert found.picture([]) is None
    assert name == "sim" or set(found.cases(True)) <= set(found.cases(False))


def test_links_of_the_short_form_lead_somewhere():
    pages = {page.name for page in (ROOT / "docs" / "experiments").glob("*.md")}
    linked = {part.split(")")[0] for claim in claims.sim.claims([]) for part in claim.measured.split("](")[1:]}
    assert linked
    assert linked <= pages


# --- The command -------------------------------------------------------------------------------------------------


def test_an_unknown_paper_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["claims", "nemo", "--quick"])
    assert "claims has no part 'nemo'; it has nemon, lben, opteq" in capsys.readouterr().err


def test_the_short_form_needs_no_run(capsys):
    main(["claims", "--quick", "sim"])
    assert "(curves.md)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_paper_is_run_seed_by_seed_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(single_index, "CASES", ("identity", "tanh"))
    monkeypatch.setattr(single_index, "INPUTS", 3)
    main(["claims", "single-index", "--quick", "--seeds", "0", "--folder", str(tmp_path)])
    main(["claims", "single-index", "--quick", "--seeds", "0", "1", "--folder", str(tmp_path), "--missing"])
    records = json.loads((tmp_path / "claims.json").read_text())["records"]
    keys = sorted((record["seed"], record["case"]) for record in records)
    assert keys == [(0, "identity"), (0, "tanh"), (1, "identity"), (1, "tanh")]
    page = (tmp_path / "claims.md").read_text()
    assert "seeds 0, 1" in page
    assert "“linear convergence of gradient descent to a global minimizer" in page
    assert "## NEMON" not in page
    assert (tmp_path / "paper-claims-single-index.png").stat().st_size > 10_000
