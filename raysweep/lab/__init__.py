"""The embedded laboratory: a small invented world, its tasks, and the trained models that ship with the package.

Names: `lab://tiny` (the base model), `lab://tiny/<set>` (fine-tuned on the set), `lab://<set>/train` and
`lab://<set>/test` (its records). How they were made is train.py's; resolving a name needs nothing heavy.

Published models go by `lab://` names as well. They do not ship with the package: `raysweep fetch NAME` brings them.
"""

from __future__ import annotations

import os
from pathlib import Path

from raysweep.errors import InputError, nearest
from raysweep.user_cache import user_cache

SCHEME = "lab://"
PUBLISHED = ("smollm2",)  # fetching/ knows how to get each
_HERE = Path(__file__).parent


def names() -> dict[str, Path]:
    """Every laboratory name that this installation has, with its folder or file."""
    found = {f"tiny/{path.name.removeprefix('tiny-')}": path for path in (_HERE / "checkpoints").glob("tiny-*")}
    found |= {f"{path.parent.name}/{path.stem}": path for path in (_HERE / "records").glob("*/*.jsonl")}
    return {"tiny": _HERE / "checkpoints" / "tiny"} | found


def published_folder(name: str) -> Path:
    """Return the folder in the user's cache that a published model has once it is fetched."""
    return user_cache() / "checkpoints" / name


def is_unfetched(source: str) -> bool:
    """Return whether `source` names a published model that is not in the user's cache."""
    name = _name(source)
    return source.startswith(SCHEME) and name in PUBLISHED and not published_folder(name).is_dir()


def resolve(source: str) -> str:
    """The path behind a `lab://` name; any other source as it is.

    Raises InputError for an unknown name, with the nearest known one, and for a published model that is not fetched yet.
    """
    if not source.startswith(SCHEME):
        return source
    name = _name(source)
    if name in PUBLISHED:
        if is_unfetched(source):
            raise InputError(f"'{source}' is not on this machine yet; run: raysweep fetch {name}")
        return str(published_folder(name))
    known = names()
    if name not in known:
        raise InputError(
            f"the laboratory has no '{source}'; {nearest(name, [*known, *PUBLISHED])} (write it after {SCHEME})"
        )
    return str(known[name])


def _name(source: str) -> str:
    return source.removeprefix(SCHEME).strip("/")


def as_text(source: str | os.PathLike[str]) -> str:
    """A source that may be a path, as text. A `Path` of a laboratory name has lost one of its slashes, which it gets back."""
    text = os.fspath(source)
    short = SCHEME.removesuffix("/")
    return SCHEME + text.removeprefix(short) if text.startswith(short) and not text.startswith(SCHEME) else text
