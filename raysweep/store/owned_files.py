"""Which files in a folder raysweep wrote, where users may put files of their own as well: a list that is kept next to them.

Only listed files are ever removed. A list that is missing or damaged lists nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from raysweep.store.artifacts import publish_json
from raysweep.store.places import read_bytes

if TYPE_CHECKING:
    from raysweep.store.places import Location

LIST = ".raysweep-files.json"


def owned_files(folder: Location) -> set[str]:
    """Return the names of the files in `folder` that raysweep wrote."""
    try:
        listed = json.loads(read_bytes(folder / LIST))
        return {name for name in listed if isinstance(name, str) and _is_file_name(name)}
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return set()


def keep_only(folder: Location, names: Iterable[str]) -> None:
    """Remove the files that raysweep wrote into `folder` and that are not among `names`, then list `names` as written."""
    kept = set(names)
    remove_owned(folder, keep=kept)
    publish_json(folder / LIST, sorted(kept))


def remove_owned(folder: Location, *, keep: Collection[str] = ()) -> None:
    """Remove the files that raysweep wrote into `folder`, except `keep`; without `keep` also the list, and the folder if it is empty."""
    kept = {name.lower() for name in keep}  # some file systems do not distinguish lower from upper case
    for name in owned_files(folder):
        if name.lower() not in kept:
            (folder / name).unlink(missing_ok=True)
    if not keep:
        with contextlib.suppress(NotADirectoryError):
            (folder / LIST).unlink(missing_ok=True)
        if isinstance(folder, Path):
            with contextlib.suppress(OSError):  # not empty, or not there
                folder.rmdir()


def _is_file_name(name: str) -> bool:
    return PurePosixPath(name).name == name and name not in ("", ".", "..", LIST)
