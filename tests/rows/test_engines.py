"""The two engines: the same answers, few programs, the precision asked for, and no setting of the user's in the way."""

import logging
import re

import chex
import jax
import numpy as np
import pytest
from helpers import BOUND, ROWS, WIDTH, Huber, generator, sparse_rows

import simjax
from simjax.rows.attempts import RowBlock
from simjax.rows.engines import jax_engine
from simjax.rows.engines.numpy_engine import NumpyEngine
from simjax.rows.solvers import first_order, portfolio
from simjax.rows.solvers.canonical import CanonicalRows
from simjax.rows.status import Status

SAMPLES = 12
OBJECTIVES = {
    "l1": simjax.L1(0.3),
    "perspective": simjax.Perspective(0.2),
    "elastic_net": simjax.ElasticNet(0.2, 0.1),
    "ridge": simjax.Ridge(0.3),
    "least_squares": simjax.NoPenalty(),
    "own": Huber(0.3),
}
# Strict settings under which the library's own code has to work all the same.
STRICT = (
    ("jax_numpy_dtype_promotion", "strict"),
    ("jax_numpy_rank_promotion", "raise"),
    ("jax_debug_nans", True),
    ("jax_debug_infs", True),
)


def constraint(name):
    if name == "free":
        return None
    if name == "metzler":
        return simjax.MetzlerRow(0.9, np.arange(ROWS), size=BOUND)
    weights = generator(5).uniform(0.5, 1.5, (ROWS, BOUND)) if name == "weighted" else 1.0
    return simjax.L1Ball(0.9, size=BOUND, weights=weights)


def rows_of(matching):
    """(design, targets): with noise, or, for exact matching, met by weights inside of every one of the constraints."""
    design, targets = sparse_rows(SAMPLES)
    if matching == "penalty":
        return design, targets
    weights = generator(6).normal(size=(ROWS, WIDTH))
    return design, design @ (weights / (4.0 * np.abs(weights).sum(axis=1, keepdims=True))).T


def solve(objective, constrained, matching, **options):
    penalty = OBJECTIVES[objective]
    return simjax.solve_rows(
        *rows_of(matching), penalty=penalty, constraint=constraint(constrained), matching=matching, **options
    )


def big_problem():
    """So large that passes are in float32: d·r = 240 · 140 > 2¹⁵."""
    rng = generator(7)
    design = rng.normal(size=(140, 240))
    truth = rng.normal(size=(240, 4)) * (rng.random((240, 4)) < 0.05)
    return design, design @ truth + 0.1 * rng.normal(size=(140, 4))


# --- The same answers --------------------------------------------------------------------------------------------

CONSTRAINTS = ("free", "ball", "weighted", "metzler")
_FAST = {("own", "ball", "penalty"), ("l1", "ball", "exact"), ("perspective", "ball", "exact")}


def _cases():
    for matching in ("penalty", "exact"):
        for constrained in CONSTRAINTS:
            for objective in OBJECTIVES:
                if objective == "own" and constrained == "metzler":
                    continue  # refused
                case = objective, constrained, matching
                fast = case in _FAST or (matching == "penalty" and objective != "own")
                yield pytest.param(*case, marks=() if fast else pytest.mark.slow, id="-".join(case))


@pytest.mark.parametrize(("objective", "constrained", "matching"), list(_cases()))
def test_both_engines_certify_the_same_objective(objective, constrained, matching):
    numpy = solve(objective, constrained, matching, engine="numpy")
    compiled = solve(objective, constrained, matching, engine="jax")
    for solution in (numpy, compiled):
        assert np.all(solution.status == Status.SOLVED), solution.summary()
        assert solution.certificate.relative_gap.max() <= 1e-6
    np.testing.assert_allclose(compiled.certificate.objective, numpy.certificate.objective, rtol=2e-6, atol=1e-12)


# --- Few programs ------------------------------------------------------------------------------------------------


@pytest.fixture
def traced_once(monkeypatch):
    """Every function that the portfolio has compiled may be traced once; called again, it is an error."""
    jax_engine._program.cache_clear()
    chex.clear_trace_counter()
    judged = chex.assert_max_traces(first_order.judged_points, n=1)
    for module, name, function in (
        (first_order, "judged_points", judged),
        (portfolio, "judged_points", judged),
        (first_order, "_advance", chex.assert_max_traces(first_order._advance, n=1)),
        (first_order, "_restart", chex.assert_max_traces(first_order._restart, n=1)),
        (portfolio, "polished", chex.assert_max_traces(portfolio.polished, n=1)),
    ):
        monkeypatch.setattr(module, name, function)
    yield
    jax_engine._program.cache_clear()


def programs(caplog, solve):
    """The names of what JAX compiled during a call, eager operations included."""
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        solve()
    found = (re.match(r"Compiling (?:jit\()?(\w+)", record.getMessage()) for record in caplog.records)
    return [match[1] for match in found if match]


def test_a_solve_compiles_few_programs_and_one_of_a_near_size_none(traced_once, caplog):
    def near(rows, m, d, bound, penalty):
        rng = generator(rows, m, d)
        design = rng.normal(size=(m, d))
        truth = rng.normal(size=(d, rows)) * (rng.random((d, rows)) < 0.1)
        targets = design @ truth + 0.1 * rng.normal(size=(m, rows))
        solution = simjax.solve_rows(
            design, targets, penalty=penalty, constraint=simjax.L1Ball(0.9, size=bound), engine="jax"
        )
        assert solution.converged
        assert solution.passes.max() > 0

    first = programs(caplog, lambda: near(40, 60, 90, 70, simjax.Perspective(0.05)))
    assert {"advance", "judged_points"} <= set(first)
    seen = list(first)
    for size in ((40, 60, 90, 70), (33, 52, 82, 65), (48, 64, 96, 96)):  # fewer rows, columns, samples; and more
        for penalty in (simjax.L1(0.05), simjax.Perspective(0.02), simjax.ElasticNet(0.05, 0.02)):
            seen += programs(caplog, lambda: near(*size, penalty))  # noqa: B023
    assert len(set(seen)) == len(seen) <= 8  # a later problem may need a restart that the first did not


def test_passes_in_single_precision_share_the_program_that_judges(traced_once, caplog):
    design, targets = big_problem()
    first = programs(caplog, lambda: simjax.solve_rows(design, targets, penalty=simjax.L1(0.5), engine="jax"))
    assert {"advance", "judged_points"} <= set(first)
    assert first.count("judged_points") == 1
    assert len(first) <= 8


# --- Which engine ------------------------------------------------------------------------------------------------


def test_auto_is_numpy_on_a_cpu_and_jax_on_a_mesh():
    plain = solve("l1", "ball", "penalty")
    assert plain.engine.startswith("numpy, ")
    assert "thread" in plain.engine
    assert plain.engine.endswith(": no accelerator and no mesh")
    assert plain.engine in plain.summary()
    meshed = solve("l1", "ball", "penalty", mesh=jax.make_mesh((1,), ("rows",)))
    assert meshed.engine == "jax, 1 device (cpu): a mesh was given"
    assert meshed.engine in meshed.summary()
    np.testing.assert_allclose(meshed.certificate.objective, plain.certificate.objective, rtol=2e-6)
    assert solve("l1", "ball", "penalty", engine="jax").engine == "jax, 1 device (cpu): as asked"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "torch"}, r"engine must be one of 'auto', 'numpy', 'jax'; got 'torch'"),
        ({"precision": "single"}, r"precision must be one of 'auto', 'float64'; got 'single'"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(options, message):
    with pytest.raises(ValueError, match=message):
        solve("l1", "ball", "penalty", **options)


def test_numpy_is_refused_with_a_mesh():
    with pytest.raises(ValueError, match="mesh must be None for engine='numpy'"):
        solve("l1", "ball", "penalty", engine="numpy", mesh=jax.make_mesh((1,), ("rows",)))


# --- Precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["numpy", "jax"])
@pytest.mark.parametrize("precision", ["auto", "float64"])
def test_precision_is_what_passes_are_in(engine, precision, monkeypatch):
    """Working sets, which NumPy would try first, are left out: there are no passes in them."""
    monkeypatch.setattr(RowBlock, "_on_this_cpu", lambda self: False)
    seen: set[np.dtype] = set()
    kind = NumpyEngine if engine == "numpy" else jax_engine.JaxEngine
    for name in ("share", "spread"):
        placed = getattr(kind, name)

        def spy(self, tree, placed=placed):
            seen.update(leaf.dtype for leaf in jax.tree.leaves(tree))
            return placed(self, tree)

        monkeypatch.setattr(kind, name, spy)
    design, targets = big_problem()
    solution = simjax.solve_rows(design, targets, penalty=simjax.L1(0.5), engine=engine, precision=precision)
    assert solution.converged
    assert solution.passes.max() > 0
    assert np.dtype(np.float64) in seen
    assert (np.dtype(np.float32) in seen) == (precision == "auto")


def test_a_small_problem_is_solved_in_float64_whatever_the_precision(monkeypatch):
    monkeypatch.setattr(CanonicalRows, "astype", lambda *_: pytest.fail("float32 passes gain nothing here"))
    monkeypatch.setattr(RowBlock, "_on_this_cpu", lambda self: False)
    assert solve("l1", "ball", "penalty", precision="auto").passes.max() > 0


# --- The user's own settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["numpy", "jax"])
@pytest.mark.parametrize(("setting", "value"), STRICT)
def test_a_user_s_strict_settings_are_for_his_own_code(engine, setting, value):
    before = jax.config.values[setting]
    jax.config.update(setting, value)
    try:
        for objective, constrained in (("l1", "ball"), ("perspective", "metzler"), ("own", "ball")):
            assert solve(objective, constrained, "penalty", engine=engine).converged
    finally:
        jax.config.update(setting, before)


@pytest.mark.parametrize(("setting", "value"), STRICT)
def test_a_user_s_strict_settings_do_not_break_a_fit(setting, value):
    rng = generator(8)
    weights = [rng.normal(size=shape) for shape in ((4, 3), (3, 4), (2, 3))]
    before = jax.config.values[setting]
    jax.config.update(setting, value)
    try:
        states = simjax.States.from_layers(weights, None, "relu", rng.normal(size=(30, 3)))
        assert simjax.fit(states, "l1").converged
    finally:
        jax.config.update(setting, before)
