"""Arrays as people have them: taken if they are real numbers, refused by name if something would be lost."""

from __future__ import annotations

import decimal
import fractions
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import simjax
from simjax import equilibrium
from simjax._checks import checked_labels, float_array, plain_array
from simjax.nn import ImplicitLayer

RNG = np.random.default_rng(0)
X, T = RNG.normal(size=(20, 3)), RNG.normal(size=(20, 2))
MASKED = np.ma.array(X, mask=np.abs(X) > 1.5)


def test_object_arrays_of_real_numbers_are_numbers() -> None:
    mixed = np.column_stack([X.astype(object), (X[:, 0] > 0).astype(object)])
    mixed[0, 1], mixed[1, 1], mixed[2, 1] = fractions.Fraction(1, 4), decimal.Decimal("0.5"), np.float32(0.75)
    plain = np.column_stack([X, X[:, 0] > 0])
    plain[:3, 1] = 0.25, 0.5, 0.75
    penalty = simjax.L1(0.1)
    found = simjax.solve_rows(mixed, T.astype(object), penalty=penalty, loss_weight=np.array([1, 2], dtype=object))
    expected = simjax.solve_rows(plain, T, penalty=penalty, loss_weight=[1.0, 2.0])
    np.testing.assert_array_equal(found.weights, expected.weights)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (np.array([1.0, None], dtype=object), "NoneType"),
        (np.array(["1.5", 2.0], dtype=object), "str"),
        (np.array([1j, 2.0], dtype=object), "complex"),
        (None, "NoneType"),
        ("l1", "'l1'"),
        (np.array(["1.5"]), "<U3"),
        (np.array([1j]), "complex128"),
        (np.array(["2020-01-01"], dtype="M8[s]"), "datetime64"),
    ],
)
def test_what_is_no_real_number_is_refused_by_name(value: Any, word: str) -> None:
    with pytest.raises(TypeError, match=rf"alpha must be an array of real numbers.*{word}"):
        simjax.L1(value)


@pytest.mark.parametrize("value", [np.array([10**400], dtype=object), np.array([np.longdouble("1e4000")])])
def test_numbers_beyond_float64_are_infinite(value: np.ndarray) -> None:
    with pytest.raises(ValueError, match="alpha must be finite"):
        simjax.L1(value)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("design", lambda: simjax.solve_rows(MASKED, T, penalty=simjax.L1(0.1))),
        ("targets", lambda: simjax.solve_rows(X, np.ma.array(T, mask=T > 1), penalty=simjax.L1(0.1))),
        ("support", lambda: simjax.solve_rows(X, T, penalty=simjax.L1(0.1), support=MASKED[4] > -9)),
        ("alpha", lambda: simjax.L1(np.ma.array([1.0, 2.0], mask=[0, 1]))),
        ("labels", lambda: checked_labels(np.ma.array([1, 0], mask=[0, 1]), 2, 2)),
        ("inputs", lambda: simjax.States(MASKED, X, np.maximum(X, 0), X)),
        ("inputs", lambda: ImplicitLayer(3, 4, 2)(MASKED)),
        ("u", lambda: equilibrium.equilibrium(np.zeros((2, 2)), np.ones((2, 3)), MASKED)),
        ("rows in a list", lambda: float_array("rows in a list", [row for row in MASKED])),
    ],
)  # fmt: skip
def test_a_mask_is_not_lost_silently(name: str, call: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} has .* masked entries .*drop or fill them"):
        call()


def test_a_mask_that_masks_nothing_is_no_obstacle() -> None:
    np.testing.assert_array_equal(float_array("x", np.ma.array(X, mask=False)), X)


def test_weights_to_certify_may_not_be_masked() -> None:
    problem = simjax.row_problem(X, T, penalty=simjax.L1(0.1))
    weights = np.zeros((2, 3))
    with pytest.raises(ValueError, match="weights has 1 masked"):
        simjax.certify(problem, np.ma.array(weights, mask=[[1, 0, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match="duals has 40 masked"):
        simjax.certify(problem, weights, [np.ma.array(T.T, mask=True)])


def test_a_sparse_matrix_where_none_is_taken_is_told_the_remedy() -> None:
    with pytest.raises(
        TypeError, match=r"loss_weight must be a dense array, got a scipy.sparse csr_array: pass its toarray"
    ):
        simjax.solve_rows(X, T, penalty=simjax.L1(0.1), loss_weight=scipy.sparse.csr_array(T))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("design", lambda: jax.jit(lambda x: simjax.solve_rows(x, T, penalty=simjax.L1(0.1)).weights)(jnp.asarray(X))),
        ("inputs", lambda: jax.jit(simjax.ImplicitModel([[0.5]], [[1.0]], [[1.0]], [[0.0]]))(jnp.ones((2, 1)))),
        ("inputs", lambda: jax.vmap(simjax.ImplicitModel([[0.5]], [[1.0]], [[1.0]], [[0.0]]))(jnp.ones((2, 1)))),
        ("kappa", lambda: jax.grad(lambda k: float_array("kappa", k).sum())(0.5)),
    ],
)
def test_a_traced_value_is_named_and_what_takes_it(name: str, call: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} is traced by JAX.*to_flax"):
        call()


class Unreadable:
    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        raise RuntimeError("the numbers are elsewhere")


def test_what_cannot_be_read_as_an_array_is_named() -> None:
    with pytest.raises(
        TypeError, match=r"design must be an array of real numbers, got a Unreadable.*numbers are elsewhere"
    ):
        simjax.solve_rows(Unreadable(), T, penalty=simjax.L1(0.1))


class Tensor:
    """As PyTorch's: cannot be read while it has a gradient, or in bfloat16."""

    def __init__(self, values: np.ndarray, kind: str, plain: bool = False) -> None:
        self.values, self.kind, self.plain = values, kind, plain

    def detach(self) -> Tensor:
        return Tensor(self.values, self.kind, self.kind != "bfloat16")

    def cpu(self) -> Tensor:
        return self

    def double(self) -> Tensor:
        return Tensor(self.values, "float64", True)

    def is_floating_point(self) -> bool:
        return self.kind != "int64"

    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        if not self.plain:
            raise TypeError("can't be converted")
        return self.values


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int64"])
def test_tensors_are_taken_off_their_graph(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(Tensor=Tensor))
    values = np.arange(3) if kind == "int64" else np.array([0.5, 1.0, -2.0])
    np.testing.assert_array_equal(plain_array("x", Tensor(values, kind)), values)


def test_real_tensors() -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(float_array("x", torch.tensor([0.5, 1.0], requires_grad=True)), [0.5, 1.0])
    np.testing.assert_array_equal(float_array("x", torch.tensor([0.5, 1.0], dtype=torch.bfloat16)), [0.5, 1.0])


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_states_of_half_precision_are_told(dtype: Any) -> None:
    Z = np.array([[1.0, -0.5], [0.25, 2.0], [-1.0, 1.0]]).astype(dtype)
    with pytest.warns(UserWarning, match=r"preactivations is of dtype b?float16.*float32 or float64"):
        simjax.States(np.eye(3), Z, np.maximum(Z.astype(float), 0.0), np.ones((3, 1)))
    with pytest.warns(UserWarning, match=r"preactivations is of dtype") as caught:
        simjax.States(np.eye(3), [Z], np.maximum(Z.astype(float), 0.0), np.ones((3, 1)))
    assert len(caught) == 1


def test_what_is_traced_in_a_penalty_or_constraint_is_named() -> None:
    def of_penalty(alpha: Any) -> Any:
        return simjax.solve_rows(np.eye(2), np.eye(2), penalty=simjax.L1(alpha)).weights.sum()

    def of_constraint(kappa: Any) -> Any:
        ball = simjax.L1Ball(kappa)
        return simjax.solve_rows(np.eye(2), np.eye(2), penalty=simjax.L1(0.1), constraint=ball).weights.sum()

    for name, function in (("penalty", of_penalty), ("constraint", of_constraint)):
        for traced in (jax.grad(function), jax.jit(function)):
            with pytest.raises(TypeError, match=rf"{name} is traced by JAX.*simjax\.functional"):
                traced(0.5)


def test_a_vector_in_the_place_of_a_matrix_is_told_how_to_become_one() -> None:
    with pytest.raises(ValueError, match=r"targets must be.*: as one column, targets\[:, None\]; as one row"):
        simjax.solve_rows(np.eye(3), np.ones(3), penalty=simjax.L1(0.1))
    with pytest.raises(ValueError, match=r"inputs must be a 2-D array.*as one row, inputs\[None\]"):
        simjax.ImplicitModel([[0.0]], [[1.0]], [[1.0]], [[0.0]]).predict([1.0])
