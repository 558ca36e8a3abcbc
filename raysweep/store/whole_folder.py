"""A folder that appears whole or not at all: built next to its place, flushed to the disk, and named by one rename."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

from raysweep.store.artifacts import flush, flush_below
from raysweep.store.scratch import scratch_folder


def install_folder(target: Path, build: Callable[[Path, Path], None], *, replace: bool = False) -> None:
    """Have `build(whole, scratch)` fill the folder `whole`, then rename it to `target`.

    `scratch` is for files that are needed only while building. If another process installs `target` meanwhile, its copy stays,
    unless `replace` is set: then the one that finishes last stays. A killed process leaves nothing at `target`; what it had
    built is removed by the next call. Raises OSError if the disk cannot be written to, and whatever `build` raises.
    """
    with scratch_folder(target.parent) as scratch:
        whole = scratch / "whole"
        whole.mkdir()
        build(whole, scratch)
        flush_below(whole)
        while not _rename(whole, target) and replace:
            with contextlib.suppress(FileNotFoundError):  # another process has just moved it away
                target.rename(scratch / f"replaced-{os.urandom(4).hex()}")
        flush(target.parent)


def _rename(whole: Path, target: Path) -> bool:
    """Rename a folder unless there is one of that name; return whether it was renamed."""
    try:
        whole.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
