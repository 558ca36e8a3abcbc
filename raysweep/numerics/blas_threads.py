"""Threads that each work on layers of their own, instead of BLAS splitting the products of one layer.

A layer's products are small: two threads that share one lose a third of their time to waiting, and all that is not a
product is left to one of them. So OpenBLAS is told to compute in the thread that calls it; what it was told before holds
again afterwards. Where no OpenBLAS is found (other systems than Linux, other libraries), there is one worker, and the
library does as it likes.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ContextDecorator
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_MAPS = Path("/proc/self/maps")
# numpy's own wheels rename the library's functions; distributions' do not.
_AFFIXES = (("scipy_", "64_"), ("", "64_"), ("scipy_", ""), ("", ""))


def workers() -> int:
    """How many threads to use: as many as BLAS would, so that OMP_NUM_THREADS and its like hold for both."""
    if _users:
        return max(1, _threads_before)
    blas = _open_blas()
    return max(1, blas.threads()) if blas else 1


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
        blas = _open_blas()
        with _lock:
            if _users == 0 and blas:
                _threads_before = blas.threads()
                blas.set_threads(1)
            _users += 1

    def __exit__(self, *exception: object) -> None:
        global _users
        blas = _open_blas()
        with _lock:
            _users -= 1
            if _users == 0 and blas:
                blas.set_threads(_threads_before)


_lock = threading.Lock()
_users = 0
_threads_before = 1


class _OpenBlas:
    def __init__(self, library: ctypes.CDLL, prefix: str, suffix: str) -> None:
        self._get = getattr(library, f"{prefix}openblas_get_num_threads{suffix}")
        self._set = getattr(library, f"{prefix}openblas_set_num_threads{suffix}")

    def threads(self) -> int:
        return int(self._get())

    def set_threads(self, count: int) -> None:
        self._set(ctypes.c_int(count))


@cache
def _open_blas() -> _OpenBlas | None:
    """The OpenBLAS that numpy's products are computed by, if it can be told apart among the libraries loaded."""
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    # scipy brings a copy of its own, which lies in another folder.
    paths = {line.split(maxsplit=5)[5] for line in lines if "openblas" in line and "scipy.libs" not in line}
    for path in sorted(paths):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for prefix, suffix in _AFFIXES:
            if hasattr(library, f"{prefix}openblas_set_num_threads{suffix}"):
                return _OpenBlas(library, prefix, suffix)
    return None
