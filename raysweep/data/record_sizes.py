"""How deep records are nested, and how much memory they take."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from raysweep.limits import RECORD_DEPTH, SOURCE_BYTES

_ROW = 200  # bytes, about: its place and its number

Row = TypeVar("Row", bound=tuple[Any, ...])


def within_memory(rows: Iterable[Row], place: str) -> list[Row]:
    """Return the rows, whose last part is a record, as a list. Raises InputError once the records take too much memory."""
    most, total = SOURCE_BYTES.value(), 0
    found = []
    for row in rows:
        total += _ROW + memory_of(row[-1])
        if total > most:
            raise SOURCE_BYTES.error(f"{most:.15g}", place, most)
        found.append(row)
    return found


def memory_of(value: Any) -> int:
    """Bytes of a value of JSON's types in memory."""
    total, open_values = 0, [value]
    while open_values:
        each = open_values.pop()
        total += sys.getsizeof(each)
        if isinstance(each, dict):
            open_values.extend(each.values())
        elif isinstance(each, list):
            open_values.extend(each)
    return total


def check_depth(record: Any, place: object, most: int | None = None) -> None:
    """Raise InputError for a record that is nested more deeply than what reads it can follow; `most` is the limit, if known."""
    most = int(RECORD_DEPTH.value()) if most is None else most
    level = [record]
    for _ in range(most + 1):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise RECORD_DEPTH.error(f"{most}", place, most)
