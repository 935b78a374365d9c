"""Every program is lowered for CUDA and TPU, which need not be here, and its text read for what they would choke on."""

import re

import jax
import numpy as np
import pytest
from helpers import BOUND, ROWS, WIDE, WIDTH, Huber, generator, sparse_rows

import simjax
from benchmarks.programs import Program, engine_programs, functional_programs
from simjax.rows.options import SolveOptions
from simjax.rows.problem import row_problem
from simjax.rows.solvers import admm

# What the compilers of these platforms have beside StableHLO: of cuSOLVER and of XLA's own decompositions.
KNOWN = {
    "cuda": {"cusolver_syevd_ffi", "cusolver_potrf_ffi", "cusolver_getrf_ffi", "cu_lu_pivots_to_permutation"},
    "tpu": {"Eigh", "LuDecomposition"},
}
PLATFORMS = tuple(KNOWN)
MARKERS = {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}  # gone before anything is compiled
HOST = re.compile(r"callback|stablehlo\.(?:infeed|outfeed|send|recv)\b")
# A number that JAX converts before use costs nothing; an array of float64, or anything done to a number in it, does.
ARRAY, NUMBER = re.compile(r"tensor<\d[\dx]*xf64>"), re.compile(r"tensor<f64>")
CONVERTED = re.compile(r"stablehlo\.(?:constant|convert)|call @|func\.func|return")


def faults(program, platform):
    """What is wrong with a program, as sentences; the first line of each kind."""
    try:
        text = program.text(platform)
    except (ValueError, NotImplementedError) as error:
        return [f"cannot be lowered: {error}"]
    lines = [line.strip() for line in text.splitlines() if not line.startswith("#loc")]
    found = [f"goes to the host: {line}" for line in lines if HOST.search(line)][:1]
    calls = set(re.findall(r"custom_call @([\w.$]+)", "\n".join(lines)))
    found += [f"calls {name}" for name in sorted(calls - KNOWN[platform] - MARKERS)]
    if program.single:
        double = (line for line in lines if ARRAY.search(line) or (NUMBER.search(line) and not CONVERTED.search(line)))
        found += [f"has float64: {line}" for line in double][:1]
    return found


def assert_ready(programs):
    wrong = {(each.name, platform): faults(each, platform) for each in programs for platform in PLATFORMS}
    assert {name: found for name, found in wrong.items() if found} == {}


def mesh_of_one():
    return jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))


# --- The engine's ------------------------------------------------------------------------------------------------


def large_enough_for_float32():
    design, targets = sparse_rows(190, d=192)
    support = generator(1).random((ROWS, 192)) < 0.9
    return row_problem(design, targets, penalty=simjax.L1(1.0), constraint=simjax.L1Ball(0.9, size=40), support=support)


def small(matching="penalty", d=WIDTH, **problem):
    design, targets = sparse_rows(WIDE, d=d)
    return row_problem(design, targets, matching=matching, **problem)


ENGINE = {
    "float32": (large_enough_for_float32, {}, {"advance", "judged_points", "polished", "restart"}),
    "own": (lambda: small(penalty=Huber(0.3)), {}, {"advance", "judged_points"}),
    "metzler": (
        lambda: small(penalty=simjax.Perspective(0.3), constraint=simjax.MetzlerRow(0.9, np.arange(ROWS), size=BOUND)),
        {},
        {"advance", "judged_points", "polished"},
    ),
    "exact": (
        lambda: small(penalty=simjax.L1(0.3), constraint=simjax.L1Ball(40.0, size=BOUND), matching="exact"),
        {},
        {"advance", "judged_points"},
    ),
    "box": (
        lambda: small(penalty=simjax.L1(0.3), constraint=simjax.Box(-0.2, 0.5)),
        {},
        {"advance", "judged_points"},
    ),
    "groups": (
        # So many that they fill the grid of sizes: without columns NumPy knows no group.
        lambda: small(penalty=simjax.GroupL1(0.3, np.arange(32) // 2), d=32),
        {},
        {"advance", "judged_points"},
    ),
    "proximal_gradient": (
        lambda: small(penalty=simjax.ElasticNet(0.3, 0.1)),
        {"solver": "proximal_gradient"},
        {"advance", "judged_points"},
    ),
}


@pytest.mark.parametrize("name", ENGINE)
def test_programs_of_the_engine(name):
    make, options, functions = ENGINE[name]
    programs = engine_programs(make(), SolveOptions(**options))
    assert functions <= {program.name.partition(" ")[0] for program in programs}
    assert any(program.single for program in programs) == (name == "float32")
    assert_ready(programs)


def test_programs_of_the_engine_on_a_mesh():
    assert_ready(engine_programs(small(penalty=simjax.L1(0.3)), SolveOptions(), mesh=mesh_of_one()))


# --- Of the functional API ---------------------------------------------------------------------------------------

FUNCTIONAL = {
    "ball": {"penalty": simjax.L1, "constraint": simjax.L1Ball(0.8, size=BOUND)},
    "metzler": {"penalty": simjax.Perspective, "constraint": simjax.MetzlerRow(0.8, np.arange(ROWS), size=BOUND)},
    "box": {"penalty": simjax.L1, "constraint": simjax.Box(-0.2, 0.5, ball=simjax.L1Ball(0.8, size=BOUND))},
    "groups": {"penalty": lambda alpha: simjax.GroupL1(alpha, np.arange(WIDTH) // 4)},
    "exact": {"penalty": lambda alpha: simjax.ElasticNet(alpha, 0.1), "matching": "exact"},
}


def functional_in(dtype, name, **forms):
    support = generator(2).random((ROWS, WIDTH)) < 0.9
    programs = functional_programs(
        WIDE, WIDTH, ROWS, dtype, mesh=mesh_of_one(), support=support, **FUNCTIONAL[name], **forms
    )
    assert all(program.single == (dtype == np.float32) for program in programs)
    return programs


def test_programs_of_the_functional_api():
    assert_ready(functional_in(np.float32, "metzler", forms=("gradient", "sharded")))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONAL)
def test_all_programs_of_the_functional_api(name, dtype):
    programs = functional_in(dtype, name)
    assert [program.name.split()[1] for program in programs] == ["solve", "vmap", "gradient", "tangent", "sharded"]
    assert_ready(programs)


# --- The reading itself ------------------------------------------------------------------------------------------


def tampered(monkeypatch, tamper, width):
    """A float32 program in whose passes the weights go through `tamper`; of a width of its own, for JAX remembers."""
    plain = admm._w_step

    def w_step(*operands):
        w, y = plain(*operands)
        return tamper(w), y

    monkeypatch.setattr(admm, "_w_step", w_step)
    (program,) = functional_programs(WIDE, width, ROWS, np.float32, forms=("solve",))
    return program


def watched(weights):
    jax.debug.callback(lambda _: None, weights)
    return weights


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_host_callback_is_found(monkeypatch, platform):
    assert faults(tampered(monkeypatch, watched, WIDTH + 1), platform)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_constant_in_float64_is_found(monkeypatch, platform):
    doubled = tampered(monkeypatch, lambda w: (w * np.float64(0.1)).astype(np.float32), WIDTH + 2)
    (found,) = faults(doubled, platform)
    assert found.startswith("has float64")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("%1 = stablehlo.custom_call @xla_ffi_python_gpu_callback(%0) : tensor<3xf32>", "goes to the host"),
        ("%1 = stablehlo.outfeed %0", "goes to the host"),
        ("%1 = stablehlo.custom_call @lapack_ssyevd_ffi(%0) : tensor<3xf32>", "calls lapack_ssyevd_ffi"),
        ("%1 = stablehlo.multiply %0, %0 : tensor<f64>", "has float64"),
        ("%1 = stablehlo.convert %0 : (tensor<3xf32>) -> tensor<3xf64>", "has float64"),
    ],
)
def test_each_kind_of_fault_is_read(monkeypatch, text, kind):
    monkeypatch.setattr(Program, "text", lambda program, platform: text)
    found = faults(Program("made up", None, (jax.ShapeDtypeStruct((3,), np.float32),)), "cuda")
    assert found[0].startswith(kind)
    assert faults(Program("made up", None, (jax.ShapeDtypeStruct((3,), np.float64),)), "cuda") == [
        fault for fault in found if "float64" not in fault
    ]
