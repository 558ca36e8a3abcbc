"""A folder for files that are of no use once their process is gone: removed at its end, or, after a kill, by the next one.

Beside each folder lies a lock file that its process holds (lock.py): a folder whose lock is free is nobody's any more.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysweep.store.lock import HeldError, hold

_PREFIX = "raysweep-scratch-"


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, which is made where it is missing; gone when the context ends, however it ends.

    What killed processes left in `parent` is removed first. Raises OSError where the system does not let it.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep_scratch(parent)
    folder = parent / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    lock = _lock_of(folder)
    try:
        with hold(lock):
            try:
                folder.mkdir(mode=0o700)  # states of records wait in it
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.unlink(missing_ok=True)


def sweep_scratch(parent: Path) -> None:
    """Remove the folders in `parent` whose process is gone.

    One whose lock file tells of no holder stays: its process is only now taking the lock, or the file system has none.
    """
    for lock in parent.glob(f"{_PREFIX}*.lock"):
        try:
            if lock.stat().st_size == 0:
                continue
            with hold(lock):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
        except (HeldError, FileNotFoundError):
            continue


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
