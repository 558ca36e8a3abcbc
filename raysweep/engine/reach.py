"""Whether an object store answers, before anything runs: a small object is written there, read back and removed."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.errors import InputError, shortened
from raysweep.store.places import listing, location, put_bytes, read_bytes

if TYPE_CHECKING:
    from raysweep.store.places import Location

_SECONDS = 12.0
_HINTS = {
    "NoCredentialsError": "give credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or in ~/.aws",
    "EndpointConnectionError": "is the store up, and is storage_options.endpoint_url its address?",
    "PermissionError": "are these the right credentials, with permission for this bucket?",
    "FileNotFoundError": "is there such a bucket? Create it first",
}


def reach(storage: str | Location, options: Mapping[str, Any] | None = None, *, write: bool = False) -> Location:
    """The place that `storage` names, once its store has answered: to a listing, and with `write` to writing and reading.

    A folder is not looked at. Raises InputError, within seconds, where the store does not answer or does not let it.
    """
    place = location(storage, options)
    if isinstance(place, Path):
        return place
    hasty = location(str(storage), place.storage_options, hasty=True)
    if isinstance(hasty, Path):
        return hasty

    def look() -> None:
        listing(hasty / ".raysweep-none")
        if write:
            probe, said = hasty / f".raysweep-probe-{secrets.token_hex(8)}", os.urandom(64)
            put_bytes(probe, said)
            found = read_bytes(probe)
            probe.unlink(missing_ok=True)
            if found != said:
                raise InputError(
                    f"storage '{storage}' returned {len(found)} bytes that differ from the {len(said)} written"
                )

    _in_time(look, str(storage))
    return place


def _in_time(look: Callable[[], None], storage: str) -> None:
    raised: list[Exception] = []

    def run() -> None:
        try:
            look()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="raysweep reach", daemon=True)
    thread.start()
    thread.join(_SECONDS)
    if thread.is_alive():
        raise InputError(
            f"storage '{storage}' has not answered in {_SECONDS:g} s; is the store up, and can it be reached from here?"
        )
    for error in raised:
        if isinstance(error, InputError):
            raise error
        hint = _HINTS.get(type(error).__name__, "check that this user may read and write there")
        said = shortened(" ".join(str(error).split()), 300)
        raise InputError(f"storage '{storage}' cannot be used ({type(error).__name__}: {said}); {hint}") from error
