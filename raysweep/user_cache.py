"""The user's cache: where raysweep keeps what it downloaded and converted, for all runs of one user."""

from __future__ import annotations

import os
from pathlib import Path

from raysweep.errors import InputError


def user_cache() -> Path:
    """Return the cache folder, which may not exist yet.

    It is `RAYSWEEP_CACHE` if that is set, else `raysweep` in `XDG_CACHE_HOME` (ignored unless absolute, as its standard
    says), else `~/.cache/raysweep`. Raises InputError if none of these can be determined.
    """
    if chosen := os.environ.get("RAYSWEEP_CACHE"):
        return Path(chosen).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():
        return shared / "raysweep"
    try:
        return Path.home() / ".cache" / "raysweep"
    except RuntimeError as error:
        raise InputError("this user has no home folder; set RAYSWEEP_CACHE to a folder for downloads") from error
