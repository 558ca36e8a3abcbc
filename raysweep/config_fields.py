"""What the parts of a config are made of: names, counts and places."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from raysweep.errors import shown

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Positive = Annotated[int, Field(ge=1, le=10**9, strict=True)]


def _place(value: str) -> str:
    try:
        Path(value).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{shown(value)} begins with the home folder of a user that this machine does not know"
        ) from None
    return value


Place = Annotated[str, AfterValidator(_place)]  # a path, a hub id or a laboratory name
