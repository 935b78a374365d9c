"""States that pass every check and are not what they are taken for: a warning before they are fitted."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
from helpers import generator

import simjax
from simjax.sim.options import PlanOptions
from simjax.sim.plan import Plan


def network_states(m=60, sizes=(9, 7)):
    rng = generator(30)
    widths = (5, *sizes, 2)
    weights = [rng.normal(size=(after, before)) for before, after in pairwise(widths)]
    biases = [rng.normal(size=after) for after in widths[1:]]
    return simjax.States.from_layers(weights, biases, "relu", rng.normal(size=(m, 5)))


def layers_of(states):
    """Z and X of each layer, first hidden layer first."""
    slices = states.layer_slices()[::-1]
    return [states.preactivations[:, part] for part in slices], [states.activations[:, part] for part in slices]


def plan(states, **options):
    return Plan.make(states, PlanOptions(**options))


def arrays_of(states):
    return states.inputs, states.preactivations, states.activations, states.outputs


def test_activations_in_the_place_of_preactivations_are_doubted():
    states = network_states()
    U, _, X, Y = arrays_of(states)
    taken = simjax.States(U, X, X, Y)  # passes, since relu(X) = X
    with pytest.warns(UserWarning, match="preactivations has no negative entry") as caught:
        plan(taken)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="preactivations has no negative entry"):
        simjax.stream_states([taken.subset(30), taken.subset(np.arange(30, 60))])
    with pytest.warns(UserWarning, match="preactivations has no negative entry"):
        simjax.StreamedStates.from_arrays(U, X, X, Y, batch_size=16)


@pytest.mark.parametrize("classes", [(0, 1), range(10)])
def test_labels_are_no_outputs(classes):
    states = network_states()
    U, Z, X, _ = arrays_of(states)
    labels = generator(31).choice(np.array(classes), size=(states.m, 1))
    with pytest.warns(UserWarning, match="outputs is one column of whole numbers .* look like labels"):
        plan(simjax.States(U, Z, X, labels))


def test_answers_of_a_classifier_are_no_outputs():
    """One-hot labels, and the probabilities after a softmax, of which no linear layer is the origin."""
    U, Z, X, _ = arrays_of(network_states())
    chances = generator(32).dirichlet(np.ones(3), size=60)
    hot = np.eye(3)[chances.argmax(axis=1)]
    for outputs, words in ((hot, "labels, one-hot"), (chances, "probabilities")):
        with pytest.warns(UserWarning, match=f"outputs has rows that sum to 1, which look like {words}"):
            plan(simjax.States(U, Z, X, outputs), fit_intercept=False)


def test_biases_that_nobody_spoke_of_are_doubted():
    U, Z, X, Y = arrays_of(network_states())
    unknown = simjax.States(U, Z, X, Y)
    with pytest.warns(UserWarning, match=r"with a constant only: the network seems to have biases.*has_biases=True"):
        plan(unknown)
    with pytest.warns(UserWarning, match="seems to have biases"):
        simjax.StreamedStates.from_arrays(U, Z, X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for asked in (True, False, "penalised"):
            plan(unknown, fit_intercept=asked)
        for known in (True, False):
            plan(simjax.States(U, Z, X, Y, has_biases=known))
        plan(unknown.subset(40))  # too few to tell
        weights = [generator(33).normal(size=shape) for shape in ((7, 5), (2, 7))]
        without = simjax.States.from_layers(weights, None, "relu", U)
        plan(simjax.States(*arrays_of(without)))


def test_layers_in_the_wrong_order_are_doubted():
    states = network_states()
    (Z1, Z2), (X1, X2) = layers_of(states)
    wrong = simjax.States(
        *(states.inputs, np.hstack([Z1, Z2]), np.hstack([X1, X2]), states.outputs),
        layer_sizes=states.layer_sizes,
        has_biases=True,
    )
    with pytest.warns(UserWarning, match="stacked last hidden layer first"):
        plan(wrong, support="feedforward")
    with pytest.raises(ValueError, match=r"preactivations differ .* stacked last hidden layer first"):
        simjax.States(*arrays_of(wrong), baseline=states.baseline)


def test_nothing_is_said_of_states_that_are_right():
    states = network_states()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan(states)
        plan(simjax.States(*arrays_of(states), layer_sizes=states.layer_sizes, has_biases=True))
        plan(simjax.States(*arrays_of(states.subset(4)), layer_sizes=states.layer_sizes))  # too few to tell
        constant = np.ones((states.m, 1))  # what dead units leave
        plan(simjax.States(*arrays_of(states)[:3], constant, has_biases=True))
        simjax.stream_states([states.subset(30)])


def test_layers_as_lists_are_stacked():
    states = network_states()
    Zs, Xs = layers_of(states)
    stacked = simjax.States(states.inputs, Zs, tuple(Xs), states.outputs)
    np.testing.assert_array_equal(stacked.preactivations, states.preactivations)
    np.testing.assert_array_equal(stacked.activations, states.activations)
    assert stacked.layer_sizes == states.layer_sizes == (9, 7)
    with pytest.raises(ValueError, match=r"layers of sizes \(9, 7\), but layer_sizes is \(7, 9\)"):
        simjax.States(states.inputs, Zs, Xs, states.outputs, layer_sizes=(7, 9))
    with pytest.raises(ValueError, match="preactivations must have one row per sample in every layer"):
        simjax.States(states.inputs, [Zs[0], Zs[1][1:]], Xs, states.outputs)
    with pytest.raises(ValueError, match=r"activations has layers of sizes \(7, 9\)"):
        simjax.States(states.inputs, Zs, Xs[::-1], states.outputs)
    with pytest.raises(ValueError, match=r"preactivations\[1\] must be finite"):
        simjax.States(states.inputs, [Zs[0], Zs[1] * np.nan], Xs, states.outputs)
