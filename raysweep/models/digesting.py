"""Reading bytes and digesting them at the same time: threads digest one piece while the next one is read.

SHA-256 takes about as long as a fast disk, so one after the other would nearly double the time. hashlib and preadv
both release the interpreter's lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

PIECE = 4 * 2**20  # bytes read at a time
_INLINE = 2**18  # bytes that take no longer to digest than to hand to a thread
_MOST_THREADS = 4
_PIECES = 4  # one that is read into, and those that wait to be digested
THREAD = "raysweep-digests"


class Digesting:
    """A digest that one thread updates, piece by piece, in order."""

    def __init__(self, digest: _Hash, thread: ThreadPoolExecutor) -> None:
        self._digest, self._thread = digest, thread
        self._last: Future[None] | None = None

    def add(self, piece: memoryview) -> Future[None] | None:
        """Digest a piece, whose memory must stay as it is until the future is done (None: it is digested already)."""
        if self._last is None and len(piece) <= _INLINE:
            self._digest.update(piece)
        else:
            self._last = self._thread.submit(self._digest.update, piece)
        return self._last

    def hexdigest(self) -> str:
        """Wait for all pieces and return the digest."""
        if self._last is not None:
            self._last.result()
        return self._digest.hexdigest()


class PieceMemory:
    """Memory for a few pieces, each reused once its content is digested."""

    def __init__(self, pieces: int = _PIECES) -> None:
        self._all = cycle([(memoryview(bytearray(PIECE)), list[Future[None]]()) for _ in range(pieces)])
        self._waiting: list[Future[None]] = []

    def take(self, size: int) -> memoryview:
        """Give the next memory, of `size` bytes, PIECE at most."""
        memory, self._waiting = next(self._all)
        while self._waiting:
            self._waiting.pop().result()
        return memory[:size]

    def hold(self, pending: Future[None] | None) -> None:
        """Keep the memory that was taken last until this is done."""
        if pending is not None:
            self._waiting.append(pending)


class DigestThreads:
    """Threads for digests; each digest is updated by one of them. `close` it, which waits for the threads."""

    def __init__(self) -> None:
        pools = [ThreadPoolExecutor(1, thread_name_prefix=THREAD) for _ in range(_n_threads())]
        self._pools, self._lock = pools, Lock()
        self._given = [0] * len(pools)

    def begin(self, digest: _Hash, size: int = 1) -> Digesting:
        """Go on with a digest, of `size` bytes, in the thread that got the fewest bytes so far."""
        with self._lock:
            thread = self._given.index(min(self._given))
            self._given[thread] += size
            return Digesting(digest, self._pools[thread])

    def close(self) -> None:
        """Give up what is not digested yet, and end the threads."""
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)


def _n_threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_THREADS, cores))


class ShortFileError(Exception):
    """A file ended before the bytes that were to be read; `at` is where."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


def fill(handle: int, view: memoryview, place: int, stop: Callable[[], None] | None = None) -> None:
    """Fill `view` with the bytes of a file from `place` on, calling `stop`, which may raise, before every read.

    Raises ShortFileError if the file ends first, and OSError.
    """
    got = 0
    while got < len(view):
        if stop is not None:
            stop()
        more = os.preadv(handle, [view[got:]], place + got)
        if not more:
            raise ShortFileError(place + got)
        got += more


def fill_digested(handle: int, view: memoryview, place: int, digesting: Digesting) -> None:
    """Fill `view` from `place` on, piece by piece, each digested while the next is read. `fill`'s errors."""
    for start in range(0, len(view), PIECE):
        piece = view[start : start + PIECE]
        fill(handle, piece, place + start)
        digesting.add(piece)
