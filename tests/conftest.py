"""What every test module leaves behind."""

import gc

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def released_programs():
    """Drop a module's compiled programs: each one maps memory, and a process may only have so many mappings."""
    yield
    jax.clear_caches()
    gc.collect()
