"""Downloads are what they should be, or refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

from raysweep.errors import InputError


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raise InputError unless the file has the SHA-256 `expected`; `what` names it in the message."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise InputError(
            f"{what} has SHA-256 {found}, but {expected} is expected; it is not the published file, and nothing was kept. "
            "Check which index or mirror pip and the hub client use here"
        )
