"""What the parts of a config are made of: names, counts and places."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, StringConstraints

from raysweep.errors import shown

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Positive = Annotated[int, Field(ge=1, le=10**9, strict=True)]

T = TypeVar("T")


def distinct(values: list[T], each: str) -> list[T]:
    """The values. Raises ValueError, for a validator, where one is named twice; `each` says what to name once."""
    doubled = [value for value in values if values.count(value) > 1]
    if doubled:
        raise ValueError(f"{shown(doubled[0])} is named twice; name {each} once")
    return values


def _place(value: str) -> str:
    try:
        Path(value).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{shown(value)} begins with the home folder of a user that this machine does not know"
        ) from None
    return value


Place = Annotated[str, AfterValidator(_place)]  # a path, a hub id or a laboratory name
