"""Threads with BLAS in each: what they compute, and that BLAS is afterwards as it was."""

import sys
import threading

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits

from raysweep.numerics import blas_threads
from raysweep.numerics.blas_threads import each, single_threaded_blas, workers


def test_results_come_in_order_and_from_threads_of_their_own():
    both = threading.Barrier(3, timeout=30)

    def work(index):
        both.wait()
        return index, threading.get_ident()

    results = each(work, 3)
    assert [index for index, _ in results] == [0, 1, 2]
    assert len({ident for _, ident in results}) == 3
    assert each(lambda index: index + 10, 1) == [10]


def test_an_error_comes_out_and_blas_is_as_before():
    before = workers()

    def fail(index):
        raise ArithmeticError(f"worker {index}")

    with pytest.raises(ArithmeticError, match="worker"):
        each(fail, 2)
    assert workers() == before


def test_blas_is_found_told_and_told_back():
    """numpy's wheels on Linux bring OpenBLAS; where there is none, there is one worker and nothing to restore."""

    def threads():
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    if not threads():
        assert workers() == 1
        return
    with threadpool_limits(2, user_api="blas"):
        assert workers() == 2
        with single_threaded_blas():
            assert threads() == {1}
            assert workers() == 2  # as many threads as BLAS would have had
            with single_threaded_blas():
                np.ones((300, 300)) @ np.ones((300, 300))
            assert threads() == {1}
        assert threads() == {2}


def test_without_blas_there_is_one_worker(monkeypatch):
    nothing = ThreadpoolController().select(user_api="none of the kind")
    monkeypatch.setattr(blas_threads, "_blas", lambda: nothing)
    assert workers() == 1
    assert each(lambda index: index, 2) == [0, 1]


def test_without_threadpoolctl_there_is_one_worker(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    blas_threads._blas.cache_clear()
    try:
        assert workers() == 1
        assert each(lambda index: index, 2) == [0, 1]
        with single_threaded_blas():
            assert workers() == 1
    finally:
        blas_threads._blas.cache_clear()
