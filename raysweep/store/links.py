"""Symbolic links in a run folder that lead out of it: refused, so that nothing outside is written, truncated or removed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from raysweep.errors import InputError


def refuse_links(root: Path) -> None:
    """Raise InputError if a symbolic link below `root` leads out of it. `root` itself may be one: it is where the user said.

    Links that stay inside are allowed; trackers make some.
    """
    real, waiting = root.resolve(), [root]
    while waiting:
        with contextlib.suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:  # a run may be going on
            for entry in entries:
                if entry.is_symlink():
                    _check(Path(entry.path), real)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def _check(link: Path, root: Path) -> None:
    try:
        inside = link.resolve().is_relative_to(root)
    except RuntimeError:  # it leads to itself
        inside = False
    if not inside:
        raise InputError(
            f"'{link}' is a symbolic link to '{link.readlink()}', outside the run folder, and raysweep writes only inside "
            "it; replace the link with a folder or file, or give another storage"
        )
