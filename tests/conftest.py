"""What every test module begins with and leaves behind."""

import gc
import os

import jax
import pytest

from simjax.rows.attempts import RowBlock


def pytest_configure(config):
    """Keep compiled programs from one module, and one run, to the next; each process for itself, to need no locks."""
    programs = config.cache.mkdir("programs") / os.environ.get("PYTEST_XDIST_WORKER", "alone")
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture(scope="module", autouse=True)
def released_programs():
    """Drop a module's compiled programs: each one maps memory, and a process may only have so many mappings."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def solves(monkeypatch):
    """Says of every block how many rows it had, when it is solved."""
    counted, plain = [], RowBlock.solve

    def counting(block, start):
        counted.append(block.problem.count)
        return plain(block, start)

    monkeypatch.setattr(RowBlock, "solve", counting)
    return counted
