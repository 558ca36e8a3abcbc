"""One job ahead: while the caller works with a job's result, a thread makes the next one's.

At most two results exist at a time. Whatever ends the iteration (its end, an exception on either side, an interrupt), the
thread is gone when it is over.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
THREAD = "raysweep-layers"


def one_ahead(jobs: Sequence[Callable[[], T]], stop: Callable[[], None]) -> Generator[T]:
    """Results of the jobs in order, each begun when the result two before it is no longer in use.

    A result is in use until the next is asked for. A job's exception is raised where its result would be given. `stop`
    is called when the iteration is given up, to make a job that is running return soon. Close the iterator
    (`contextlib.closing`) where it may not be run to its end.
    """
    with ThreadPoolExecutor(1, thread_name_prefix=THREAD) as pool:
        waiting = pool.submit(jobs[0]) if jobs else None
        following = iter(jobs[1:])
        try:
            while waiting is not None:
                result = waiting.result()
                job = next(following, None)
                waiting = pool.submit(job) if job is not None else None
                yield result
        finally:
            if waiting is not None and not waiting.cancel():
                stop()
