"""Rows solved by Ray: arguments without it; its clusters, of one node and of two of which one dies, with it."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ByHand, sparse_rows
from numpy.testing import assert_array_equal

import simjax
from simjax.rows.memory import bytes_per_row

M, WIDTH, ROWS = 60, 40, 400
DESIGN, TARGETS = sparse_rows(M, WIDTH, ROWS)
STATED: dict[str, Any] = {"penalty": simjax.L1(0.5), "max_memory": 10 * bytes_per_row((M, WIDTH))}  # forty blocks


class OfNobody(ByHand):
    """A penalty that no worker can read: its module is in this process alone."""

    __module__, __qualname__ = "nobody", "Own"


def solve(**changed: Any) -> simjax.Solution:
    return simjax.solve_rows(DESIGN, TARGETS, **{**STATED, **changed})


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package; afterwards no cluster of it is left."""
    package = pytest.importorskip("ray")
    monkeypatch.setattr("simjax.rows.engines.numpy_engine.cores", lambda: 1)  # as the workers: to the same bits
    yield package
    package.shutdown()


def assert_same(found: simjax.Solution, wanted: simjax.Solution) -> None:
    assert_array_equal(found.weights.toarray(), wanted.weights.toarray())
    for name in ("dual", "gap", "objective"):
        assert_array_equal(getattr(found.certificate, name), getattr(wanted.certificate, name))
    assert_array_equal(found.status, wanted.status)


def test_arguments() -> None:
    pytest.importorskip("ray")
    with pytest.raises(TypeError, match="address must be a string or None, got int"):
        simjax.cluster.ray(8265)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_cpus must be at least 1, got 0"):
        simjax.cluster.ray(num_cpus=0)
    with pytest.raises(ValueError, match="num_gpus must be a number >= 0, got -1"):
        simjax.cluster.ray(num_gpus=-1)
    with pytest.raises(TypeError, match="retries must be an integer"):
        simjax.cluster.ray(retries=0.5)  # type: ignore[arg-type]
    pool = simjax.cluster.ray(num_cpus=2, num_gpus=0.5)
    assert pool.threads == 2
    with pytest.raises(ValueError, match="workers must be 1"):
        solve(executor=pool, workers=2, solver="clarabel")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_one_machine_and_errors_that_name_their_rows(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with simjax.cluster.ray() as pool:
        found = solve(executor=pool)
        assert_same(found, solve())
        assert found.engine == "numpy, 1 thread a block: in the workers of RayExecutor"
        assert_same(solve(executor=simjax.cluster.ray()), found)  # in the cluster that is there, which stays
        assert ray.is_initialized()
        with pytest.raises(ValueError, match="address must be that of the cluster this process is in"):
            solve(executor=simjax.cluster.ray("192.0.2.1:6379"))
        nobody = types.ModuleType("nobody")
        monkeypatch.setitem(sys.modules, "nobody", nobody)
        nobody.Own = OfNobody  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match=r"^rows 0 to 199 could .* of RayExecutor: ModuleNotFoundError: No mod"):
            solve(executor=pool, penalty=OfNobody(simjax.L1(0.5)), max_memory=None)
    assert not ray.is_initialized()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_node_that_is_killed_loses_nothing(ray: Any, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        seen: list[int] = []

        def kill(told: simjax.Progress) -> None:
            seen.append(told.solved)
            if len(seen) == 5:
                cluster.remove_node(second, allow_graceful=False)

        found = solve(executor=simjax.cluster.ray(), progress=kill, checkpoint=tmp_path / "rows")
        assert not second.any_processes_alive()
        assert seen == list(range(10, ROWS + 1, 10))
        assert len(list((tmp_path / "rows").glob("block-*"))) == 40
        assert_same(found, solve())
    finally:
        ray.shutdown()
        cluster.shutdown()
