"""The address of a Ray cluster's dashboard, checked without importing Ray."""

from __future__ import annotations

import os

from raysweep.errors import InputError
from raysweep.redaction import redacted

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # where Ray's own client looks, in this order


def address_or_default(address: str | None) -> str:
    """Return the address, or the dashboard's in RAY_API_SERVER_ADDRESS or RAY_ADDRESS. Raises InputError if there is none."""
    if address is not None:
        return address
    for name in ADDRESSES:
        if stated := os.environ.get(name):
            if stated.startswith(("http://", "https://")):
                return stated
            raise InputError(
                f"{name} is '{redacted(stated)}', which is not a dashboard's URL; give --address http://HOST:8265 "
                "(the dashboard of the cluster's head)"
            )
    raise InputError(
        "which cluster? Give --address http://HOST:8265 (the dashboard of its head), or set RAY_API_SERVER_ADDRESS"
    )


def dashboard_url(address: str) -> str:
    """Return the URL of a dashboard, from a URL or host:port. Raises InputError for anything else."""
    url = address if "://" in address else f"http://{address}"
    scheme, _, rest = url.partition("://")
    port = rest.rstrip("/").rpartition(":")[2]
    if scheme not in ("http", "https") or not rest.strip("/") or (scheme == "http" and not port.isdecimal()):
        raise InputError(
            f"--address '{redacted(address)}' is not a dashboard's address; give http://HOST:8265 (the dashboard, not the head's "
            "port 6379)"
        )
    return url.rstrip("/")
