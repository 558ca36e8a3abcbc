"""Token authentication, which Ray decides on as it is imported: this must be called before that, and imports nothing of it."""

from __future__ import annotations

import os
from pathlib import Path


def use_token_if_there_is_one() -> None:
    """Have Ray authenticate with this user's token, unless RAY_AUTH_MODE says how it is to be.

    Ray looks for the mode once, when it is imported; a client that has a token and not the mode is turned away by a
    cluster with authentication. A cluster without it does not mind a token. New local clusters make a token by themselves.
    """
    stated = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(stated) if stated else Path.home() / ".ray" / "auth_token"
    if os.environ.get("RAY_AUTH_TOKEN") or path.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
