"""What the parts of a config are made of: sections, names, counts, places and patterns."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from raysweep.config_dates import parse_date
from raysweep.errors import shown

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Positive = Annotated[int, Field(ge=1, le=10**9, strict=True)]

_DATE = {"type": "string", "format": "date", "examples": ["2026-01-31"]}
_MODE = {"type": "string", "pattern": "^0?7[0-7]{2}$", "examples": ["700"]}

T = TypeVar("T")


def distinct(values: list[T], each: str) -> list[T]:
    """The values. Raises ValueError, for a validator, where one is named twice; `each` says what to name once."""
    doubled = [value for value in values if values.count(value) > 1]
    if doubled:
        raise ValueError(f"{shown(doubled[0])} is listed twice; list {each} once")
    return values


def _place(value: str) -> str:
    try:
        Path(value).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{shown(value)} starts with the home folder of a user that does not exist on this machine; give a full "
            "path"
        ) from None
    return value


Place = Annotated[str, AfterValidator(_place)]  # a path, a hub id or a laboratory name


def _compiles(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{shown(value)} is not a regular expression ({error}); correct it") from error
    return value


Regex = Annotated[str, Field(min_length=1), AfterValidator(_compiles)]  # a regular expression of Python's


def _date(value: object) -> object:
    """A date as text; YAML makes a date of one that is not quoted."""
    return value.isoformat() if type(value) is date else value


Date = Annotated[str, BeforeValidator(_date), AfterValidator(parse_date), WithJsonSchema(_DATE)]  # YYYY-MM-DD


def _mode(value: object) -> object:
    """Permissions as text. Raises ValueError for one that does not let the owner in."""
    value = str(value) if type(value) is int else value  # 0700 without quotes is 448 to YAML, and refused
    if not isinstance(value, str) or not re.fullmatch(r"0?7[0-7]{2}", value):
        raise ValueError(
            f'{shown(value)} is not a folder mode that the owner can use; write it in quotes, such as "700"'
        )
    return value


Mode = Annotated[str, BeforeValidator(_mode), WithJsonSchema(_MODE)]  # permissions of a folder, octal


class Section(BaseModel):
    """A part of a config: a mapping of known keys, which nothing changes once it is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Named(Section):
    """A section that others refer to by its name."""

    name: Name = Field(
        description=(
            "The name that tables, plans and the report use. Letters, digits, `.`, `_` and `-`; the first is a "
            "letter or digit."
        )
    )
