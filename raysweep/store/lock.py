"""A lock on a folder: a file that one process holds, and that is free again the moment its holder is gone.

The operating system keeps the lock and drops it with the process, however that ends, so there are no stale locks to
judge; what the file says is for people only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_TRIES, _MOMENT = 5, 0.02
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class HeldError(Exception):
    """Another process holds the lock; the message says which, as far as it is known."""


@dataclass(frozen=True)
class HeldFile:
    """A lock file that is open. `locked` is False on a file system without locks, where two processes are not kept apart."""

    path: Path
    descriptor: int
    locked: bool

    def is_there(self) -> bool:
        """Return whether the path still names this file: False once it, or a folder above it, was removed, renamed or replaced."""
        try:
            found = self.path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        own = os.fstat(self.descriptor)
        return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


@contextmanager
def hold(path: Path) -> Iterator[HeldFile]:
    """Hold the lock file `path`, which is made where it is missing, while the context lasts.

    Raises HeldError where another process holds it, OSError where it is a symbolic link. On a file system without locks (some
    network ones) nothing is held, which `HeldFile.locked` says.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        locked = False
        try:
            _take(descriptor)
        except BlockingIOError:
            raise HeldError(_holder(descriptor)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        else:
            locked = True
            now = datetime.now(UTC).isoformat(timespec="seconds")
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield HeldFile(path, descriptor, locked)
    finally:
        os.close(descriptor)


def holder(path: Path) -> str | None:
    """Who holds the lock file `path`, in words; None where nobody does. Nothing is changed."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
    return None


def _take(descriptor: int) -> None:
    """Take the lock; tried again for a moment, for whoever asks for its holder has it for as long as that takes."""
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not left:
                raise
            time.sleep(_MOMENT)


def _holder(descriptor: int) -> str:
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {said['pid']} on {said['host']}, since {said['since']}"
    except (ValueError, KeyError, TypeError):  # it is only now writing who it is
        return "process unknown"
