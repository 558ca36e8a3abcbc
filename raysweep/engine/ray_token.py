"""Token authentication, which Ray decides on as it is imported: this must be called before that, and does not import it."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

_MODE = "RAY_AUTH_MODE"


def use_token(*, starting: bool) -> None:
    """Have Ray authenticate with this user's token, unless RAY_AUTH_MODE says how it is to be.

    `starting` a cluster of its own, always: Ray makes a token where there is none. As a client, where there is a token: a
    client that has one and not the mode is turned away by a cluster with authentication, and a cluster without it does not
    mind one. A token file of this user's that others can read is made this user's alone.
    """
    path = token_file()
    make_private(path)
    if not os.environ.get(_MODE) and (starting or os.environ.get("RAY_AUTH_TOKEN") or path.is_file()):
        os.environ[_MODE] = "token"
        if "ray" in sys.modules:  # it has looked at the mode already, once and for all
            from ray import _raylet

            _raylet.Config.initialize("")  # type: ignore[attr-defined]


def is_on() -> bool:
    """Whether a cluster that is started or joined now is asked for with a token."""
    return os.environ.get(_MODE, "").lower() == "token"


def what_token() -> str:
    """For messages: which token this process gives to a cluster, in words, without the token."""
    if not is_on():
        return "this process gives none"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "the one in this process's RAY_AUTH_TOKEN is wrong"
    path = token_file()
    return f"the one in {path} is wrong" if path.is_file() else "this process has none"


def token_file() -> Path:
    """Where Ray looks for this user's token, and writes one that it makes."""
    stated = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(stated) if stated else Path.home() / ".ray" / "auth_token"


def make_private(path: Path) -> None:
    """Take from everybody else what they may do with a token file that is this user's; another's is left as it is."""
    with contextlib.suppress(OSError):  # none there, or in a place that is read-only, as a mounted secret is
        found = path.stat()
        if found.st_mode & 0o077 and found.st_uid == os.geteuid():
            path.chmod(0o600)
