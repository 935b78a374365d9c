"""What a model file says about its fit may be somebody else's words: it is refused, and named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import simjax


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(4, 3)), rng.normal(size=(2, 4))]
    states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(30, 3)))
    return simjax.fit(states, "l1"), states


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda settings: "third try", "no fit settings"),
        (lambda settings: {"note": "mine"}, "note unknown, .*alpha.*tol.* missing"),
        (lambda settings: {}, "none unknown, .*alpha.*tol.* missing"),
        (lambda settings: {**settings, "setting_of_0_2": None}, "setting_of_0_2 unknown, none missing"),
        (lambda settings: {k: v for k, v in settings.items() if k != "tol"}, "none unknown, tol missing"),
        (lambda settings: {**settings, "tol": -1.0}, "tol of the fit must be a positive number"),
        (lambda settings: {**settings, "tol": None}, "tol of the fit must be a positive number"),
        (lambda settings: {**settings, "kappa": "x"}, "kappa must be a number"),
        (lambda settings: {**settings, "refit": {"a": 1}}, "refit must be one of 'support', 'outputs'; got 'a'"),
        (lambda settings: {**settings, "reduction": None}, "reduction must be one of"),
        (lambda settings: {**settings, "fit_intercept": "always"}, "fit_intercept must be True, False"),
        (lambda settings: {**settings, "support": ["hollow"]}, "support must be one of"),
    ],
)
def test_foreign_settings_are_refused(fitted, change, match) -> None:
    result, states = fitted
    model = dataclasses.replace(result.model, metadata={"fit": change(result.settings)})
    with pytest.raises((ValueError, TypeError), match=match):
        simjax.verify_model(model, states, rows=1)


def test_settings_of_version_0_1_are_known(fitted) -> None:
    pytest.importorskip("clarabel")
    result, states = fitted
    old = {key: value for key, value in result.settings.items() if key not in ("constraint", "eta")}
    model = dataclasses.replace(result.model, metadata={"fit": old})
    assert simjax.verify_model(model, states, rows=2).ok
