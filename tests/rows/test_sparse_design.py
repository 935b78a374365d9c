"""Sparse designs: the answers of the same numbers in an array, and none of the memory."""

from __future__ import annotations

import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from helpers import ROWS, TALL, WIDTH, generator
from numpy.testing import assert_allclose, assert_array_equal

import simjax
from simjax.rows import sparse_design
from simjax.rows.fingerprint import digest
from simjax.rows.problem import prepared_samples, row_problem
from simjax.rows.solvers import factor

SHAPES = {"of other tests": (TALL, WIDTH), "tall": (200, 12), "squarish": (60, 40), "wide": (40, 90)}
PENALTIES = {
    "l1": simjax.L1(1.0),
    "elastic net": simjax.ElasticNet(0.8, 0.3),
    "perspective": simjax.Perspective(0.5),
    "ridge": simjax.Ridge(0.5),
}
WAYS = ("plain", "intercept", "weights")


def samples(shape: tuple[int, int], seed: int = 0, rows: int = 4) -> tuple[Any, np.ndarray]:
    """A sparse design with a column of zeros, a full and a constant one, and targets of sparse weights."""
    rng = generator(seed, *shape)
    m, d = shape
    design = np.where(rng.random(shape) < 0.15, rng.normal(size=shape), 0.0)
    design[:, 1], design[:, 2], design[:, 3] = 0.0, rng.normal(size=m) + 40.0, 0.7
    weights = rng.normal(size=(d, rows)) * (rng.random((d, rows)) < 4.0 / d)
    return scipy.sparse.csr_array(design), design @ weights + rng.normal(size=rows) + 0.1 * rng.normal(size=(m, rows))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", ["tall", "squarish", "wide"])
@pytest.mark.parametrize("kind", PENALTIES)
def test_the_answer_is_that_of_the_same_numbers_in_an_array(kind: str, shape: str, way: str) -> None:
    design, targets = samples(SHAPES[shape])
    options: dict[str, Any] = {"penalty": PENALTIES[kind], "tol": 1e-9, "fit_intercept": way != "plain"}
    if way == "weights":
        options["sample_weight"] = generator(1).integers(0, 3, len(targets)).astype(float)
    found = simjax.solve_rows(design, targets, **options)
    dense = simjax.solve_rows(design.toarray(), targets, **options)
    assert found.converged
    assert dense.converged
    assert_allclose(found.certificate.objective, dense.certificate.objective, rtol=1e-10)
    assert_allclose(found.weights, dense.weights, atol=1e-8)
    if way == "plain":
        assert not np.any(found.weights[:, 1])
    else:
        assert_allclose(found.intercept, dense.intercept, atol=1e-7)
        assert not np.any(found.weights[:, 3])  # constant: the intercept has it
    # The dual points prove the rows over the samples as an array too, by a certificate that sees nothing sparse.
    stated = {name: value for name, value in options.items() if name != "tol"}
    proved = simjax.certify(row_problem(design.toarray(), targets, **stated), found.weights, [found.certificate.dual])
    assert np.all(proved.relative_gap <= 2e-9)


@pytest.mark.parametrize("shape", ["tall", "wide"])
@pytest.mark.parametrize(
    "options",
    [
        {"penalty": simjax.L1(1.0), "constraint": simjax.L1Ball(0.5, size=8)},
        {"penalty": simjax.L1(1.0), "constraint": simjax.MetzlerRow(0.5, np.arange(4), size=8)},
        {"penalty": simjax.L1(1.0), "solver": "admm"},
        {"penalty": simjax.L1(1.0), "engine": "jax"},
        {"penalty": simjax.L1(1.0), "solver": "clarabel", "tol": 1e-6},
        {"penalty": simjax.NoPenalty(), "constraint": simjax.L1Ball(0.5, size=8)},
        {"penalty": simjax.L1(1e-9)},
    ],
    ids=["ball", "metzler", "admm", "jax", "clarabel", "least squares", "next to no penalty"],
)
def test_every_way_to_solve_takes_it(options: dict[str, Any], shape: str) -> None:
    rows = 4
    if options.get("engine") == "jax":
        if shape == "wide":
            pytest.skip("a compilation for what the tall one shows")
        shape, rows = "of other tests", ROWS
    if shape == "wide" and options["penalty"].slope == 1e-9:  # interpolation, which no float64 certifies
        options = {"penalty": simjax.L1(1e-4)}
    options = {"tol": 1e-7, "fit_intercept": True, **options}
    design, targets = samples(SHAPES[shape], rows=rows)
    found = simjax.solve_rows(design, targets, **options)
    dense = simjax.solve_rows(design.toarray(), targets, **{**options, "engine": "numpy"})
    assert found.converged
    scale = 1e-12 * np.sum((targets - targets.mean(axis=0)) ** 2, axis=0)
    assert_allclose(
        found.certificate.objective, dense.certificate.objective, rtol=3.0 * options["tol"], atol=scale.max()
    )
    if "solver" not in options and "engine" not in options:
        assert found.verify(rows=2).ok


def test_least_squares_and_dependent_columns() -> None:
    design, targets = samples(SHAPES["tall"])
    found = simjax.solve_rows(design, targets, penalty=simjax.NoPenalty(), tol=1e-9)
    dense = simjax.solve_rows(design.toarray(), targets, penalty=simjax.NoPenalty(), tol=1e-9)
    assert found.converged
    assert_allclose(found.certificate.objective, dense.certificate.objective, rtol=1e-10)
    twice = scipy.sparse.hstack([design, design[:, [0]] + 1e-9 * design[:, [4]]])  # for a factorisation of Φ itself
    found = simjax.solve_rows(twice, targets, penalty=simjax.NoPenalty())
    assert found.converged
    assert np.all(found.certificate.objective <= dense.certificate.objective * (1.0 + 1e-6))


def test_exact_matching() -> None:
    design, _ = samples(SHAPES["wide"])
    targets = design @ generator(3).normal(size=(90, 3))
    found = simjax.solve_rows(design, targets, penalty=simjax.L1(1.0), matching="exact")
    dense = simjax.solve_rows(design.toarray(), targets, penalty=simjax.L1(1.0), matching="exact")
    assert found.converged
    assert_allclose(found.certificate.objective, dense.certificate.objective, rtol=1e-6)
    with pytest.warns(simjax.ConvergenceWarning):
        found = simjax.solve_rows(*samples(SHAPES["tall"]), penalty=simjax.L1(1.0), matching="exact")
    assert set(found.status) == {"INFEASIBLE"}


# ---- formats, types and entries ----------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"])
@pytest.mark.parametrize("kind", ["array", "matrix"])
def test_every_format_of_scipy_is_taken_and_left_as_it_is(format_: str, kind: str) -> None:
    design, targets = samples(SHAPES["tall"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.sparse.SparseEfficiencyWarning)  # of a diagonal matrix of this pattern
        given = getattr(scipy.sparse, f"{format_}_{kind}")(design)
    before = given.toarray()
    problem = row_problem(given, targets, penalty=simjax.L1(1.0), fit_intercept=True, sample_weight=np.ones(200))
    assert_array_equal(given.toarray(), before)
    assert_allclose(problem.design.toarray(), before - before.mean(axis=0), atol=1e-12)


def test_entries_are_what_scipy_says_they_are() -> None:
    """Duplicates add up, explicit zeros are zeros, indices come in any order, bools and integers are numbers."""
    rows, columns, data = [0, 2, 0, 1, 2], [1, 0, 1, 2, 2], [1, 5, 2, 0, 7]
    for kind in (np.int8, np.int64, np.float32, np.uint16):
        given = scipy.sparse.coo_array((np.array(data, dtype=kind), (rows, columns)), shape=(3, 4))
        design, _, _ = prepared_samples(given, np.ones((3, 1)))
        assert_array_equal(design.toarray(), [[0, 3, 0, 0], [0, 0, 0, 0], [5, 0, 7, 0]])
        assert_allclose(design.column_norms(), [5.0, 3.0, 7.0, 0.0])
    unsorted = scipy.sparse.csr_array((np.array([1.0, 2.0]), np.array([3, 0]), np.array([0, 2])), shape=(1, 4))
    assert_array_equal(prepared_samples(unsorted, np.ones((1, 1)))[0].toarray(), [[2.0, 0.0, 0.0, 1.0]])
    assert_array_equal(unsorted.indices, [3, 0])
    flags = scipy.sparse.csr_array(np.eye(3, dtype=bool))
    assert_array_equal(prepared_samples(flags, np.ones((3, 1)))[0].toarray(), np.eye(3))


@pytest.mark.parametrize(
    "penalty", [simjax.L1(0.1), simjax.NoPenalty(), simjax.Ridge(1.0)], ids=["l1", "none", "ridge"]
)
@pytest.mark.parametrize("shape", [(6, 4), (6, 1), (1, 5)])
def test_nothing_stored_means_nothing_to_gain(shape: tuple[int, int], penalty: Any) -> None:
    targets = generator(9).normal(size=(shape[0], 2))
    for intercept in (False, True):
        found = simjax.solve_rows(scipy.sparse.csr_array(shape), targets, penalty=penalty, fit_intercept=intercept)
        assert found.converged
        assert not np.any(found.weights)
    full = scipy.sparse.csr_array(np.full(shape, 7.0))
    assert not np.any(simjax.solve_rows(full, targets, penalty=penalty, fit_intercept=True).weights)


def test_a_sparse_target_is_the_array_that_residuals_are() -> None:
    design, targets = samples(SHAPES["tall"])
    targets = np.where(targets > 0.5, targets, 0.0)
    found = simjax.solve_rows(design, scipy.sparse.coo_array(targets), penalty=simjax.L1(1.0))
    assert_array_equal(found.weights, simjax.solve_rows(design, targets, penalty=simjax.L1(1.0)).weights)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x * np.nan, ValueError, r"design must be finite, got \d+ NaN or infinite entries of \d+ stored"),
        (lambda x: x * np.inf, ValueError, "design must be finite"),
        (lambda x: x * 1j, TypeError, "design must be an array of real numbers, got dtype complex128"),
        (lambda x: x * 1e160, ValueError, "design must not exceed 1e.151"),
        (lambda x: x[:0], ValueError, r"design must not be empty, got shape \(0, 12\)"),
        (lambda x: x[:50], ValueError, r"targets must have as many rows as design \(50 samples\)"),
        (lambda x: scipy.sparse.coo_array(x.toarray()[0]), ValueError, "design must be a 2-D array, got 1-D"),
    ],
)
def test_bad_designs_are_refused(change: Any, error: type[Exception], message: str) -> None:
    design, targets = samples(SHAPES["tall"])
    with np.errstate(invalid="ignore"):
        given = change(design)
    with pytest.raises(error, match=message):
        simjax.solve_rows(given, targets, penalty=simjax.L1(1.0))


def test_nothing_sparse_becomes_an_array_by_itself() -> None:
    design, _, _ = prepared_samples(*samples(SHAPES["tall"]))
    with pytest.raises(TypeError, match=r"toarray\(\)"):
        np.asarray(design)
    assert repr(design).startswith("SparseDesign(200 × 12, ")
    assert "\n" not in repr(row_problem(*samples(SHAPES["tall"]), penalty=simjax.L1(1.0), fit_intercept=True))


def test_statistics_and_streamed_states_take_it() -> None:
    design, targets = samples(SHAPES["tall"])
    one, other = (simjax.SufficientStatistics(12, 4) for _ in range(2))
    one.update(design, targets, np.arange(200.0))
    other.update(design.toarray(), targets, np.arange(200.0))
    for found, expected in zip(one.compressed(), other.compressed()):
        assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="design must have width = 12 columns"):
        one.update(design.T, targets)
    activations = np.maximum(targets, 0.0)
    arrays = targets, activations, activations[:, :2]
    streamed = simjax.StreamedStates.from_arrays(design.tocoo(), *arrays, batch_size=70)
    whole = simjax.StreamedStates.from_arrays(design.toarray(), *arrays, batch_size=70)
    for found, expected in zip(streamed.compressed(), whole.compressed()):
        assert_array_equal(found, expected)


def test_where_it_is_not_taken_it_is_told_so() -> None:
    design, targets = samples(SHAPES["tall"])
    with pytest.raises(TypeError, match=r"simjax\.solve_rows takes sparse designs"):
        simjax.functional.solve_rows(design, targets, penalty=simjax.L1(1.0))
    with pytest.raises(TypeError, match=r"inputs must be a dense array, got a scipy.sparse csr_array"):
        simjax.States(design, targets, targets, targets)


# ---- products, means, files --------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 1.0, 1e6])
def test_products_and_norms_are_those_of_the_array(shift: float) -> None:
    """Also where means are large: then columns are centred entry by entry, so that no digits cancel."""
    given, targets = samples(SHAPES["tall"])
    given = given.copy()
    given.data += shift
    weight = generator(5).random(len(targets)) * (generator(6).random(len(targets)) < 0.8)
    sparse, _, centring = prepared_samples(given, targets, weight, True)
    array, _, same = prepared_samples(given.toarray(), targets, weight, True)
    size = np.abs(array).max()
    assert_allclose(centring.design, same.design, rtol=1e-13)
    assert_allclose(sparse.toarray(), array, atol=1e-14 * size)
    assert_allclose(sparse.column_norms(), np.linalg.norm(array, axis=0), rtol=1e-12, atol=1e-300)
    left, right = generator(7).normal(size=(3, 200)), generator(8).normal(size=(12, 2))
    assert_allclose(left @ sparse, left @ array, atol=1e-12 * size)
    assert_allclose(sparse @ right, array @ right, atol=1e-12 * size)
    assert_allclose(right.T @ sparse.T, right.T @ array.T, atol=1e-12 * size)
    assert_allclose(sparse.T @ sparse, array.T @ array, atol=1e-11 * size**2)
    scale = np.arange(1.0, 13.0)
    assert_allclose((sparse / scale).T.by_rows()[[3, 1]].toarray(), (array / scale).T[[3, 1]], atol=1e-14 * size)
    assert_allclose(sparse[:, np.arange(12) > 8], array[:, 9:], atol=1e-14 * size)


def test_alpha_max_and_row_problems_take_it() -> None:
    design, targets = samples(SHAPES["wide"])
    options = {"fit_intercept": True, "sample_weight": np.arange(40.0)}
    largest = simjax.alpha_max(design, targets, **options)
    assert_allclose(largest, simjax.alpha_max(design.toarray(), targets, **options), rtol=1e-12)
    above = simjax.solve_rows(
        design, targets, penalty=simjax.L1(np.repeat(1.0001 * largest[:, None], 90, 1)), **options
    )
    assert not np.any(above.weights)


def test_blocks_and_checkpoints(tmp_path: Path) -> None:
    design, targets = samples(SHAPES["tall"], rows=30)
    options: dict[str, Any] = {"penalty": simjax.L1(1.0), "fit_intercept": True, "max_memory": 3e5}
    first = simjax.solve_rows(design, targets, checkpoint=tmp_path / "kept", **options)
    again = simjax.solve_rows(design.tocoo(), targets, checkpoint=tmp_path / "kept", **options)
    assert_array_equal(first.weights.data, again.weights.data)
    with pytest.raises(ValueError, match="design"):
        simjax.solve_rows(2.0 * design, targets, checkpoint=tmp_path / "kept", **options)
    with pytest.raises(ValueError, match="design"):
        simjax.solve_rows(design.toarray(), targets, checkpoint=tmp_path / "kept", **options)
    moved = scipy.sparse.csr_array((design.data, design.indices[::-1], design.indptr), shape=design.shape)
    assert digest(design) == digest(design.tocsc())
    assert digest(design) != digest(moved)


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, lambda n: ProcessPoolExecutor(n, get_context("spawn"))])
def test_workers_are_sent_it(kind: Any) -> None:
    design, targets = samples(SHAPES["tall"], rows=12)
    options: dict[str, Any] = {"penalty": simjax.L1(1.0), "fit_intercept": True, "max_memory": 1.5e5}
    alone = simjax.solve_rows(design, targets, **options)
    with kind(2) as executor:
        found = simjax.solve_rows(design, targets, executor=executor, **options)
    assert_allclose(found.weights.toarray(), alone.weights.toarray(), atol=1e-12)


# ---- memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["squarish", "wide"])
def test_rows_for_which_there_is_no_memory_say_so(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    design, targets = samples(SHAPES[shape])
    monkeypatch.setattr(factor, "memory_left", lambda: 1e4)
    monkeypatch.setattr(sparse_design, "memory_left", lambda: 1e4)
    free = simjax.L1(np.where(np.arange(design.shape[1]) < 3, 0.0, 1.0))
    for penalty in (simjax.L1(1.0), free):  # working sets need no factorisation
        found = simjax.solve_rows(design, targets, penalty=penalty, fit_intercept=True)
        assert found.converged
    with (
        pytest.warns(UserWarning, match=r"4 rows are not solved: .* takes about \S+ GB, more than is free"),
        pytest.warns(simjax.ConvergenceWarning),
    ):
        missed = simjax.solve_rows(design, targets, penalty=simjax.NoPenalty())
    assert set(missed.status) == {"STALLED"}  # more passes would gain nothing
    with pytest.raises(MemoryError, match="as an array of shape"):
        found.verify(rows=1)


_LARGE = """
import resource, sys
import numpy as np, scipy.sparse, simjax

m, d, nonzeros, rows, share = map(eval, sys.argv[1:])
rng = np.random.default_rng(0)
places = rng.integers(0, m, nonzeros), rng.integers(0, d, nonzeros)
design = scipy.sparse.csr_array(scipy.sparse.coo_array((rng.standard_normal(nonzeros), places), shape=(m, d)))
weights = rng.normal(size=(d, rows)) * (rng.random((d, rows)) < 10.0 / d)
targets = design @ weights + 0.1 * rng.normal(size=(m, rows))
del places
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
alpha = share * float(simjax.alpha_max(design, targets).min())
for intercept in (False, True):
    found = simjax.solve_rows(design, targets, penalty=simjax.L1(alpha), fit_intercept=intercept)
    assert found.converged, found.summary()
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.parametrize(
    ("m", "d", "nonzeros", "share", "bound"),
    [
        pytest.param(1_000_000, 500, 5_000_000, 0.05, 1.0e9, marks=pytest.mark.slow),
        pytest.param(2_000, 500_000, 2_000_000, 0.3, 1.0e9, marks=pytest.mark.slow),
        (50_000, 200, 100_000, 0.05, 0.08e9),
    ],
    ids=["1e6 x 500", "2e3 x 5e5", "5e4 x 200"],
)
def test_memory_is_that_of_what_is_stored_not_of_an_array(
    m: int, d: int, nonzeros: int, share: float, bound: float
) -> None:
    """Of four rows whose α is a share of the largest; as arrays the designs take 4 GB, 8 GB and 80 MB."""
    if sys.platform != "linux":
        pytest.skip("ru_maxrss has other units elsewhere")
    arguments = [str(m), str(d), str(nonzeros), "4", str(share)]
    told = subprocess.run([sys.executable, "-c", _LARGE, *arguments], capture_output=True, text=True, check=True).stdout
    assert float(told) <= bound
