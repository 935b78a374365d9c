"""LAPACK on one thread, while the solvers factorise many small systems."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import scipy.linalg  # noqa: F401  XLA takes its LAPACK from SciPy: it has to be loaded to be found
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

_limiting = threading.Lock()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """BLAS and LAPACK on the CPU use one thread inside; afterwards as many as before.

    XLA factorises the systems of a batch in turn. They are too small for several threads to gain anything, and where
    other work keeps the cores busy these threads wait for one another, which makes a solve several times as long.

    The number of threads is the whole process's, so only one solve at a time limits it: one that begins meanwhile in
    another thread leaves it alone, for who sets it has to be who puts it back.
    """
    if not _limiting.acquire(blocking=False):
        yield
        return
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        _limiting.release()
