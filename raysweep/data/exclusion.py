"""Exclusion: which of a source's records are used, before any is worded.

In this order: what `exclude` names is left out, then the last so many are taken or held back.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from raysweep.data.formats import Format, Record
from raysweep.errors import InputError, shortened, shown
from raysweep.patterns import LimitedPattern

T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Exclude:
    """Which records to skip: those that contain a phrase, match a pattern, or have a value in a column.

    Phrases and pattern are searched in the record's question and response, or in `column`.

    Attributes:
        phrases: Skip records that contain any of these, in upper or lower case. A single text is fine.
        pattern: Skip records in which this Python regular expression matches.
        column: The column to search. `values` needs it.
        values: Skip records whose `column` equals one of these texts. A column that is not text is compared as JSON writes it.

    Raises:
        InputError: Nothing is named, the pattern does not compile, or there are values without a column.
    """

    phrases: tuple[str, ...] = ()
    pattern: str | None = None
    column: str | None = None
    values: tuple[str, ...] = ()

    def __repr__(self) -> str:
        given = {"phrases": self.phrases, "pattern": self.pattern, "column": self.column, "values": self.values}
        return f"Exclude({', '.join(f'{name}={shown(value)}' for name, value in given.items() if value)})"

    def __post_init__(self) -> None:
        for name in ("phrases", "values"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        if not (self.phrases or self.pattern or self.values):
            raise InputError("exclude is empty; give phrases, a pattern, or a column and its values")
        if "" in self.phrases:
            raise InputError("exclude has an empty phrase, which every text contains; remove it")
        if self.values and self.column is None:
            raise InputError("exclude has values but no column; name the column that they belong to")
        _ = self._expression

    @cached_property
    def _expression(self) -> LimitedPattern | None:
        try:
            return LimitedPattern(self.pattern) if self.pattern else None
        except (re.error, OverflowError, RecursionError) as error:
            raise InputError(
                f"exclude has a pattern {shown(self.pattern)} that does not compile ({error}); correct the regular "
                "expression"
            ) from error

    @cached_property
    def _folded(self) -> tuple[str, ...]:
        return tuple(phrase.casefold() for phrase in self.phrases)

    def leaves_out(self, record: Record, record_format: Format) -> bool:
        """Whether the record is left out; one that does not fit its format is not, so that it is told of.

        Raises InputError for a record without the column, and where a template of the user's fails.
        """
        if self.column is not None:
            if self.column not in record:
                names = shortened(", ".join(map(str, record))) or "none"
                raise InputError(f"has no field '{self.column}', which exclude uses; its fields are {names}")
            texts: tuple[str, ...] = (_text(record[self.column]),)
            if texts[0] in self.values:
                return True
        elif record_format.problem(record) is None:
            texts = record_format.texts(record)
        else:
            return False
        return any(self._found(text) for text in texts)

    def _found(self, text: str) -> bool:
        folded = text.casefold()
        if any(phrase in folded for phrase in self._folded):
            return True
        return self._expression is not None and self._expression.found(text)


def _texts(name: str, given: object) -> tuple[str, ...]:
    """Several texts, of which one may be given by itself."""
    several = [given] if isinstance(given, str) else given
    if not isinstance(several, Iterable) or isinstance(several, bytes | Mapping):
        raise InputError(f"exclude has {name} of type {type(given).__name__}; give a list of texts")
    found = tuple(several)
    odd = next((each for each in found if not isinstance(each, str)), None)
    if odd is not None:
        raise InputError(f"exclude has {shown(odd)}, of type {type(odd).__name__}, among its {name}; give texts")
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def taken(rows: Iterable[T], last: int | None, all_but_last: int | None) -> Iterator[T]:
    """The `last` so many rows, or all but so many, or all; no more than so many are held in memory."""
    if last is not None:
        yield from deque(rows, maxlen=last)
        return
    held: deque[T] = deque()
    for row in rows:
        held.append(row)
        if len(held) > (all_but_last or 0):
            yield held.popleft()
