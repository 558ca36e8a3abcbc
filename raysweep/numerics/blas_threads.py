"""Threads that each work on layers of their own, instead of BLAS splitting the products of one layer.

A layer's products are small: two threads that share one lose a third of their time to waiting, and all that is not a
product is left to one of them. So BLAS is told to compute in the thread that calls it; what it was told before holds
again afterwards. Where no BLAS is found that can be told so (Apple's, or without threadpoolctl), there is one worker, and
BLAS does as it likes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ContextDecorator, ExitStack
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

T = TypeVar("T")


@cache
def _blas() -> ThreadpoolController | None:
    """The libraries of products that numpy and scipy have loaded; looking for them takes milliseconds, so it is done once.

    None if threadpoolctl is not installed.
    """
    try:
        from threadpoolctl import ThreadpoolController
    except ModuleNotFoundError:
        return None
    return ThreadpoolController().select(user_api="blas")


def _blas_threads() -> int:
    blas = _blas()
    return max((library.num_threads for library in blas.lib_controllers), default=1) if blas else 1


def workers() -> int:
    """How many threads to use: as many as BLAS would, so that OMP_NUM_THREADS and its like hold for both."""
    with _lock:
        return _threads_before if _users else _blas_threads()


def each(work: Callable[[int], T], count: int) -> list[T]:
    """`work(0)` … `work(count − 1)` in a thread each, with BLAS in the calling thread; the results in this order.

    The first error of any is raised once all have ended.
    """
    if count == 1:
        return [work(0)]
    with single_threaded_blas(), ThreadPoolExecutor(count - 1) as pool:
        others = [pool.submit(work, index) for index in range(1, count)]
        return [work(0), *(other.result() for other in others)]


class single_threaded_blas(ContextDecorator):  # noqa: N801 (used as a function: with single_threaded_blas())
    """BLAS in the calling thread, for the whole process; the last of several users restores what the first found.

    To be held from the first to the last of a computation that uses `each`: a thread of OpenBLAS that has had a part in
    one product spins for a tenth of a second, waiting for the next, and takes the time from a worker.
    """

    def __enter__(self) -> None:
        global _users, _threads_before
        with _lock:
            if _users == 0:
                _threads_before = _blas_threads()
                if (blas := _blas()) is not None:
                    _limits.enter_context(blas.limit(limits=1))
            _users += 1

    def __exit__(self, *exception: object) -> None:
        global _users
        with _lock:
            _users -= 1
            if _users == 0:
                _limits.close()


_lock = threading.Lock()
_limits = ExitStack()
_users = 0
_threads_before = 1
