"""The embedded laboratory: a small invented world, its tasks, and the trained models that ship with the package.

Names: `lab://tiny` (the base model), `lab://tiny/<set>` (fine-tuned on the set), `lab://<set>/train` and
`lab://<set>/test` (its records). How they were made is train.py's; resolving a name needs nothing heavy.
"""

from __future__ import annotations

import os
from pathlib import Path

from raysweep.errors import InputError, nearest

SCHEME = "lab://"
_HERE = Path(__file__).parent


def names() -> dict[str, Path]:
    """Every laboratory name that this installation has, with its folder or file."""
    found = {f"tiny/{path.name.removeprefix('tiny-')}": path for path in (_HERE / "checkpoints").glob("tiny-*")}
    found |= {f"{path.parent.name}/{path.stem}": path for path in (_HERE / "records").glob("*/*.jsonl")}
    return {"tiny": _HERE / "checkpoints" / "tiny"} | found


def resolve(source: str) -> str:
    """The path behind a `lab://` name; any other source as it is.

    Raises InputError for an unknown name, with the nearest known one.
    """
    if not source.startswith(SCHEME):
        return source
    known = names()
    name = source.removeprefix(SCHEME).strip("/")
    if name not in known:
        raise InputError(f"the laboratory has no '{source}'; {nearest(name, known)} (write it after {SCHEME})")
    return str(known[name])


def as_text(source: str | os.PathLike[str]) -> str:
    """A source that may be a path, as text. A `Path` of a laboratory name has lost one of its slashes, which it gets back."""
    text = os.fspath(source)
    short = SCHEME.removesuffix("/")
    return SCHEME + text.removeprefix(short) if text.startswith(short) and not text.startswith(SCHEME) else text
