"""A folder that appears whole or not at all: built next to its place, flushed to the disk, and named by one rename."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

from raysweep.store.artifacts import flush, flush_below, make_folder
from raysweep.store.scratch import scratch_folder


def install_folder(target: Path, build: Callable[[Path, Path], None], *, replace: bool = False) -> bool:
    """Have `build(whole, scratch)` fill the folder `whole`, then rename it to `target`; return whether it was.

    `scratch` is for files that are needed only while building. If `target` is not empty, or another process installs it meanwhile,
    that one stays, unless `replace` is set: then the one that finishes last stays. A killed process leaves nothing at `target`;
    what it had built is removed by the next call. Raises OSError if the disk cannot be written to, and whatever `build` raises.
    """
    with scratch_folder(target.parent) as scratch:
        whole = scratch / "whole"
        whole.mkdir()
        build(whole, scratch)
        return publish_folder(whole, target, aside=scratch if replace else None)


def publish_folder(whole: Path, target: Path, *, aside: Path | None = None) -> bool:
    """Flush a finished folder to the disk and rename it to `target`, on the same file system; return whether it was renamed.

    A `target` that is not empty stays, unless there is a folder `aside` that it is moved into first. When this returns, the
    folder survives a power cut: a manifest may name its files.
    """
    flush_below(whole)
    make_folder(target.parent)
    while not (renamed := _rename(whole, target)) and aside is not None:
        with contextlib.suppress(FileNotFoundError):  # another process has just moved it away
            target.rename(aside / f"replaced-{os.urandom(4).hex()}")
    flush(target.parent)
    if whole.parent != target.parent and renamed:
        flush(whole.parent)
    return renamed


def _rename(whole: Path, target: Path) -> bool:
    """Rename a folder unless there is one of that name; return whether it was renamed."""
    try:
        whole.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
