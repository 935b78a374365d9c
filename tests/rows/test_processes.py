"""A mesh over two processes of JAX: each solves half of the rows, and both get the answers that one process gets."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

TESTS = Path(__file__).resolve().parents[1]

PROGRAM = """
import sys
import jax, numpy as np
number, count, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, number)
import simjax
from helpers import BOUND, generator, sparse_rows
from simjax.rows.memory import bytes_per_row
from simjax.rows import processes

assert len(jax.devices()) == count
mesh = jax.make_mesh((count,), ("rows",))
design, targets = sparse_rows(25, rows=31)
stated = {"penalty": simjax.L1(0.3), "constraint": simjax.L1Ball(0.9, size=BOUND), "tol": 1e-9}
seen = []
found = simjax.solve_rows(design, targets, mesh=mesh, progress=seen.append, **stated)
assert found.converged
own = 31 if count == 1 else (16, 15)[number]
assert {told.rows for told in seen} == {own}
if count > 1:
    assert found.engine.endswith("a mesh was given, in each of 2 processes")
    processes._CHUNK = 1000  # gathered in many pieces, to the same
few = simjax.solve_rows(design, targets[:, :1], mesh=mesh, **stated)  # not a row for everyone
assert few.converged and few.weights.shape == (1, 20)
rng = generator(30)  # and a fit of shapes that are compiled for already
layers = [rng.normal(size=(8, 6)) / 3, rng.normal(size=(6, 8)) / 3, rng.normal(size=(3, 6))]
states = simjax.States.from_layers(layers, None, "relu", rng.normal(size=(25, 6)))
for _ in range(2):  # the second time from the checkpoint
    fit = simjax.fit(states, "l1", alpha=0.05, tol=1e-9, mesh=mesh, max_memory=8 * bytes_per_row((25, 20)),
                     support="full", rescale="none", checkpoint=f"{folder}/fit-{count}")
if count > 1:
    alone = jax.sharding.Mesh(np.array(jax.local_devices()), ("rows",))
    assert simjax.solve_rows(design, targets[:, :16], mesh=alone, **stated).converged  # of this process alone
    others = jax.sharding.Mesh(np.array([jax.devices()[1 - number]]), ("rows",))
    try:
        simjax.solve_rows(design, targets, mesh=others, **stated)
    except ValueError as error:
        assert "mesh must have devices of all 2 processes of JAX, or of this one alone" in str(error)
    else:
        raise AssertionError
    try:
        simjax.solve_rows(design[: 20 + number], targets[: 20 + number], mesh=mesh, **stated)
    except ValueError as error:
        assert f"number of rows of [{1 - number}] differ from those of {number}" in str(error)
    else:
        raise AssertionError
np.savez(f"{folder}/{count}-{number}.npz", weights=found.weights, objective=found.certificate.objective,
         few=few.weights, dual=found.certificate.dual, fitted=fit.weights.toarray(), A=fit.model.to_dense().A)
"""


def started(number: int, count: int, port: int, folder: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(number), str(count), str(port), str(folder)],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_give_the_answers_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with contextlib.ExitStack() as stack:
        running = [started(number, count, port, tmp_path) for number, count in ((0, 2), (1, 2), (0, 1))]
        for process in running:
            stack.enter_context(process)
            stack.callback(process.kill)
        for process in running:
            error = process.communicate(timeout=240)[1]
            assert process.returncode == 0, error[-3000:]
    one, *two = (np.load(tmp_path / f"{name}.npz") for name in ("1-0", "2-0", "2-1"))
    for name in one.files:
        assert_array_equal(two[0][name], two[1][name])
        assert_allclose(two[0][name], one[name], rtol=1e-10, atol=1e-10)
    folders = {path.parent.name for path in (tmp_path / "fit-2").rglob("checkpoint.json")}
    assert folders == {"process-000", "process-001"}
