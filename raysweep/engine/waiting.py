"""Holding a run folder, at once or once another raysweep has ended in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import FolderInUseError, InputError

if TYPE_CHECKING:
    from raysweep.engine.folder import RunFolder

_LOOK_SECONDS = 0.5  # between looks at the lock of a folder
_STORE_SECONDS = 3.0  # at that of an object store, each of which costs several requests


def check_wait(wait: bool | float) -> None:
    """Raise InputError unless `wait` is True, False, or a number of seconds above 0."""
    if not isinstance(wait, bool) and not wait > 0:
        raise InputError(f"wait is {wait!r}; give True, False, or a number of seconds above 0")


@contextmanager
def held(
    folder: RunFolder,
    wait: bool | float,
    waiting: Callable[[str], None],
    mode: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[bool]:
    """Make the folder and hold it; yield whether it was in use before, so that what was planned may be out of date.

    With `wait`, wait until it is free: True for as long as it takes, else at most so many seconds. `waiting` is called once,
    with the holder in words. Raises FolderInUseError if it is still in use.
    """
    until = None if wait is True else time.monotonic() + float(wait)
    each, waited = _LOOK_SECONDS if isinstance(folder.root, Path) else _STORE_SECONDS, False
    with ExitStack() as stack:
        while True:
            folder.make(mode)
            try:
                stack.enter_context(folder.locked())
                break
            except FolderInUseError as error:
                left = each if until is None else until - time.monotonic()
                if left <= 0:
                    raise _after(error, wait) from None
                if not waited:
                    waiting(error.holder)
                waited = True
                sleep(min(each, left))
        yield waited


def _after(error: FolderInUseError, wait: bool | float) -> FolderInUseError:
    if not wait:
        return error
    return FolderInUseError(f"after {float(wait):g} s of waiting, {error}", error.holder)
