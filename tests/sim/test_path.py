"""Paths over alpha and kappa: each point is the fit it stands for, certified by itself."""

import numpy as np
import pytest
from helpers import generator

import simjax
from simjax.plotting import plot_path
from simjax.rows import memory
from simjax.rows.solvers.factor import FactoredDesign
from simjax.rows.workspace import Workspace
from simjax.sim import samples


@pytest.fixture(scope="module")
def states():
    rng = generator(20)
    weights = [rng.normal(size=(9, 6)) / 3, rng.normal(size=(8, 9)) / 3, rng.normal(size=(3, 8))]
    return simjax.States.from_layers(weights, None, "relu", rng.normal(size=(60, 6)))


@pytest.mark.slow
def test_every_point_is_the_fit_at_its_alpha(states):
    alphas = [1e-3, 1.0, 3e-2, 0.2]  # in any order
    path = simjax.path(states, "l1", alphas=alphas, support="full")
    assert path.converged
    assert path.parameter == "alpha"
    np.testing.assert_array_equal(path.values, alphas)
    for alpha, point in zip(alphas, path.fits):
        fit = simjax.fit(states, "l1", alpha=alpha, support="full")
        np.testing.assert_allclose(point.certificate.objective, fit.certificate.objective, rtol=2e-6)
        assert point.settings == fit.settings
        assert point.verify(rows=2).ok
    assert list(np.argsort(path.nonzeros)) == list(np.argsort(alphas)[::-1])
    assert len(path.table().splitlines()) == 5
    assert path.seconds == sum(fit.seconds for fit in path.fits)


def test_misfit_and_picture(states, tmp_path):
    path = simjax.path(states, "l1", alphas=[1.0, 1e-3], support="full", rescale="none")
    design = np.concatenate([states.activations, states.inputs], axis=1)
    targets = np.concatenate([states.preactivations, states.outputs], axis=1)
    for fit, misfit in zip(path.fits, path.misfit):
        expected = np.sum((targets - design @ fit.weights.T) ** 2) / np.sum(targets**2)
        np.testing.assert_allclose(misfit, expected, rtol=1e-9)
    assert path.misfit[1] < path.misfit[0]
    figure = plot_path(path)
    (line,) = [line for line in figure.axes[0].lines if "alpha" in str(line.get_label())]
    np.testing.assert_array_equal(line.get_xdata(), np.sort(path.nonzeros))
    np.testing.assert_allclose(line.get_ydata(), path.misfit[np.argsort(path.nonzeros)])
    figure.savefig(tmp_path / "path.png")


@pytest.mark.slow
def test_mu_follows_alpha_and_weights_multiply_it(states):
    d, rows = states.n + states.p, states.n + states.q
    weights = generator(21).uniform(0.5, 2.0, (rows, d))
    path = simjax.path(states, "perspective", alphas=[0.1, 0.01], alpha_weights=weights, mu_ratio=0.01)
    fit = simjax.fit(states, "perspective", alpha=0.01 * weights, mu=1e-4 * weights)
    np.testing.assert_allclose(path.fits[1].certificate.objective, fit.certificate.objective, rtol=2e-6)


@pytest.mark.parametrize("units", ["natural", "rescaled"])
def test_a_path_over_kappa_is_monotone(states, units):
    kappas = [0.2, 0.9, 0.5]
    path = simjax.path(states, "l1", kappas=kappas, alpha=1e-2, units=units, rescale="none")
    assert path.converged
    objective = {kappa: fit.certificate.objective.sum() for kappa, fit in zip(kappas, path.fits)}
    assert objective[0.2] >= objective[0.5] >= objective[0.9]
    for kappa, fit in zip(kappas, path.fits):
        assert fit.model.well_posedness <= kappa * (1.0 + 1e-12)
    rescaled = simjax.path(states, "l1", kappas=kappas, alpha=1e-2, units=units)  # the design may change with kappa
    fit = simjax.fit(states, "l1", kappa=0.5, alpha=1e-2, units=units)
    np.testing.assert_allclose(rescaled.fits[2].certificate.objective, fit.certificate.objective, rtol=2e-6)


def test_a_start_saves_passes(states):
    alphas = np.geomspace(1.0, 1e-2, 12)
    path = simjax.path(states, "l1", alphas=alphas, solver="admm")
    apart = sum(simjax.fit(states, "l1", alpha=alpha, solver="admm").solutions[0].passes.sum() for alpha in alphas)
    assert sum(fit.solutions[0].passes.sum() for fit in path.fits) < apart


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("l1", {}),
        ("l1", {"units": "rescaled", "reduction": "mean", "lambda_output": 3.0, "fit_intercept": True}),
        ("perspective", {"mu_ratio": 0.01, "support": "feedforward", "alpha_weights": np.linspace(0.5, 2.0, 23)}),
        ("perspective", {"kappas": None}),
        ("elastic_net", {"mu_ratio": 0.1}),
    ],
)
def test_the_grid_begins_where_all_weights_are_zero(states, objective, options):
    path = simjax.path(states, objective, points=3, ratio=0.9, **options)
    assert path.converged
    assert path.parameter == "alpha"
    np.testing.assert_allclose(path.values[1:] / path.values[:-1], 0.9**0.5)
    assert not np.any(path.fits[0].weights)  # free intercepts stay
    assert path.nonzeros[1] > 0


def test_the_grid_is_that_of_alpha_max(states):
    path = simjax.path(states, "l1", support="full", rescale="none", lambda_state=0.2, lambda_output=0.2)
    design = np.concatenate([states.activations, states.inputs], axis=1)
    targets = np.concatenate([states.preactivations, states.outputs], axis=1)
    largest = simjax.alpha_max(design, targets, loss_weight=0.2).max()
    np.testing.assert_allclose(path.values, np.geomspace(largest, 1e-3 * largest, 20))
    assert path.converged
    assert path.misfit[0] == 1.0
    assert np.all(np.diff(path.misfit) < 0.0)


def test_a_path_makes_its_workspace_once(states, monkeypatch):
    made = []

    def counted(design):
        made.append(design)
        return Workspace(design)

    factorised = {}
    for name in ("factorisation", "itself"):
        original = getattr(FactoredDesign, name)

        def counting(self, *args, original=original, name=name, **kwargs):
            found = original(self, *args, **kwargs)
            factorised.setdefault((name, *sorted(kwargs.items())), []).append(found)
            return found

        monkeypatch.setattr(FactoredDesign, name, counting)
    monkeypatch.setattr("simjax.sim.path.Workspace", counted)
    simjax.path(states, "l1", alphas=[1.0, 0.1, 1e-2], solver="admm")
    simjax.path(states, "l1", points=3, rescale="none")
    assert len(made) == 2
    for found in factorised.values():
        assert len({id(each) for each in found}) <= 2  # one for each path


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"objective": "ridge"}, ValueError, "alphas or kappas, as no alpha makes all weights zero"),
        ({"alpha_weights": np.zeros(23)}, ValueError, "no alpha makes all weights zero"),
        ({"matching": "exact"}, ValueError, "path needs alphas or kappas under matching='exact'"),
        ({"points": 0}, ValueError, "points"),
        ({"ratio": 1.0}, ValueError, "ratio"),
        ({"alphas": [1.0], "points": 3}, ValueError, "points and ratio are for a path's own grid"),
        ({"kappas": [0.5], "ratio": 0.1}, ValueError, "points and ratio are for a path's own grid"),
        ({"alphas": [1.0], "kappas": [0.5]}, ValueError, "got both"),
        ({"alphas": [1.0, -1.0]}, ValueError, "alphas must be"),
        ({"alphas": []}, ValueError, "alphas must be"),
        ({"alphas": [np.nan]}, ValueError, "alphas"),
        ({"kappas": [1.0]}, ValueError, "kappas must be"),
        ({"kappas": [0.5], "kappa": 0.9}, ValueError, "kappa must be left alone"),
        ({"kappas": [0.5], "alpha_weights": np.ones(14)}, ValueError, "alpha_weights"),
        ({"alphas": [1.0], "colour": "red"}, TypeError, "unknown arguments: colour"),
        ({"alphas": [1.0], "mu": 1.0}, TypeError, "unknown arguments: mu"),
        ({"alphas": [1.0], "mu_ratio": 0.0}, ValueError, "mu_ratio"),
        ({"alphas": [1.0], "objective": simjax.L1(1.0)}, TypeError, "objective must be a name"),
        ({"alphas": [1.0], "solver": "simplex"}, ValueError, "solver"),
        ({"alphas": [1.0], "objective": "l1", "mu_ratio": 0.1}, ValueError, "mu must be None"),
    ],
)
def test_bad_input_is_named(states, arguments, error, message):
    with pytest.raises(error, match=message):
        simjax.path(states, **arguments)


def test_the_design_is_taken_over_once_for_all_alphas_and_blocks(states, monkeypatch):
    real, looked_through = samples.refuse_huge, []

    def counted(name, value):
        looked_through.append((name, value.shape))
        return real(name, value)

    monkeypatch.setattr(samples, "refuse_huge", counted)
    shape = states.m, states.n + states.p
    path = simjax.path(states, "l1", alphas=[1.0, 0.1], max_memory=9 * memory.bytes_per_row(shape))
    assert looked_through.count(("design", shape)) == 1
    assert looked_through[0][0] == "design"
    assert {name for name, _ in looked_through[1:]} == {"targets"}
    (first,), (second,) = (fit.solutions for fit in path.fits)
    assert first.problem.design is second.problem.design
    assert first.problem.take(np.arange(2)).design is first.problem.design
    assert states.n + states.q > 9  # more than one block
