"""Where a run may be stored: a folder, or a URL of an object store, and the options that go with it, without any secret.

Only the words are checked here; whether the store answers is engine/disk.py's to find out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from raysweep.errors import nearest, shown

# Stores in which a file appears whole or not at all, and the package that speaks to each.
STORES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "memory": "fsspec",
}
_SECRET = re.compile(
    r"key|secret|token|passw|passphrase|credential|connection_?string|signature|authorization|cookie|^sas$|^auth$|^username$",
    re.IGNORECASE,
)
_NO_SECRET = {"SSEKMSKeyId", "BucketKeyEnabled"}  # names of keys, not keys
_WITH_PASSWORD = re.compile(r"//[^/]*@")
_INSTEAD = (
    "give credentials in the environment or in the store's own config files (for S3: AWS_ACCESS_KEY_ID or ~/.aws)"
)


def scheme_of(storage: str) -> str | None:
    """The scheme of a URL, in lower case; None for a plain folder."""
    scheme, there, _ = storage.partition("://")
    return scheme.lower() if there else None


def checked_storage(storage: str) -> str:
    """The folder or URL. Raises ValueError, never showing a secret, for what a run cannot be stored in."""
    if not storage:
        raise ValueError("give a folder, or the URL of a place in an object store")
    scheme = scheme_of(storage)
    if scheme is None or scheme == "file":
        return storage
    if _WITH_PASSWORD.search(storage):
        raise ValueError(f"the URL has a name or password in it; {_INSTEAD}")
    if scheme not in STORES:
        raise ValueError(
            f"{shown(storage)} cannot store a run: files there must never appear half-written, as in a folder or "
            f"an object store; {nearest(scheme, STORES)}"
        )
    if found := next((c for c in "?#*[]\\" if c in storage), None):
        raise ValueError(
            f"{shown(storage)} contains {found!r}; give a bucket and a folder in it, such as s3://bucket/runs/one"
        )
    if not storage.partition("://")[2].strip("/"):
        raise ValueError(
            f"{shown(storage)} names no bucket; give a bucket and a folder in it, such as s3://bucket/runs/one"
        )
    return storage


def checked_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the key and not its value, where options for a store hold a secret."""
    for key, value in options.items():
        if isinstance(key, str) and key not in _NO_SECRET and _SECRET.search(key):
            raise ValueError(f"'{key}' may be a secret, and options are written into plans and reports; {_INSTEAD}")
        if isinstance(value, str) and _WITH_PASSWORD.search(value):
            raise ValueError(f"the URL of '{key}' has a name or password in it; {_INSTEAD}")
        for inner in [value] if isinstance(value, Mapping) else value if isinstance(value, list) else []:
            if isinstance(inner, Mapping):
                checked_options(inner)
