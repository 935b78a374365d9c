import threading

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from simjax.rows.threads import one_thread_each


def threads():
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture
def three():
    """As many threads as something else has asked for."""
    with threadpool_limits(limits=3, user_api="blas"):
        found = threads()
        assert found
        assert set(found.values()) == {3}  # SciPy's BLAS, which XLA uses, is one of them
        yield found


def test_one_thread_inside_and_as_many_as_before_afterwards(three):
    assert any("scipy" in path for path in three)
    with one_thread_each():
        assert set(threads().values()) == {1}
        with one_thread_each():
            assert set(threads().values()) == {1}
        assert set(threads().values()) == {1}
    assert threads() == three


def test_an_error_inside_puts_them_back(three):
    with pytest.raises(ZeroDivisionError), one_thread_each():
        raise ZeroDivisionError
    assert threads() == three


def test_a_solve_that_overlaps_another_leaves_them_alone():
    begun, end = threading.Event(), threading.Event()
    before = threads()

    def first():
        with one_thread_each():
            begun.set()
            assert end.wait(timeout=60)

    other = threading.Thread(target=first)
    other.start()
    assert begun.wait(timeout=60)
    assert set(threads().values()) == {1}
    with one_thread_each():
        end.set()
        other.join()
        assert threads() == before
    assert threads() == before
    with one_thread_each():  # and the next one limits them again
        assert set(threads().values()) == {1}
    assert threads() == before
