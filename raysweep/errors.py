"""Errors that raysweep raises on purpose, and helpers for their messages.

Every message says what is wrong, where, and what to do; the command line prints it without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST_REPR = 10_000  # characters of a text whose repr is made
_LONGEST_NAME, _MOST_NAMES = 200, 1000  # that a wrong name is compared with


class RaysweepError(Exception):
    """A problem that the user can fix; its message is complete in itself."""


class InputError(RaysweepError):
    """Bad input (config, path, record, checkpoint), found before anything ran: exit code 2."""


class FolderInUseError(InputError):
    """A run folder that another raysweep works in: exit code 3. `holder` says which process holds it, and since when."""

    def __init__(self, message: str, holder: str) -> None:
        super().__init__(message)
        self.holder = holder


class SeveralProblemsError(InputError):
    """Several problems of one input, each on a line of its own."""


class RenamedWarning(FutureWarning):
    """A config key or a keyword argument was given by its old name, which still works."""


class StoreError(RaysweepError):
    """A run folder or artifact that is missing, not written by raysweep, or does not match its manifest."""


class RunError(RaysweepError):
    """A run that cannot continue (its disk is full, its workers are lost); committed work is kept: exit code 1."""


def in_lines(error: Exception) -> str:
    """The message in one line, or in one for each of several problems: what a library raised may have many."""
    if isinstance(error, SeveralProblemsError):
        return str(error)
    return " ".join(filter(None, map(str.strip, str(error).splitlines())))


def shown(value: object) -> str:
    """A value's repr for a message, shortened."""
    if isinstance(value, str) and len(value) > _LONGEST_REPR:  # its middle is not shown anyway
        value = value[: _LONGEST_REPR // 2] + value[-_LONGEST_REPR // 2 :]
    try:
        return shortened(repr(value))
    except (ValueError, RecursionError):  # Python writes no number of more than 4300 digits, and no endless nesting
        return f"a {type(value).__name__} too large to show"


def shortened(text: str, most: int = 80) -> str:
    """Text for a message, cut in its middle beyond `most` characters: what is wrong may be 100 kB long."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """The hint that ends an "unknown name" message: the nearest known name, or all of them."""
    names = sorted(known)
    short = [name for name in names if len(name) <= _LONGEST_NAME][
        :_MOST_NAMES
    ]  # comparing takes the product of lengths
    close = difflib.get_close_matches(word, short, n=1, cutoff=0.5) if len(word) <= _LONGEST_NAME else []
    if close:
        return f"did you mean '{shortened(close[0], _LONGEST_NAME)}'?"
    more = f" and {len(names) - len(short)} more" if len(names) > len(short) else ""
    return f"known: {', '.join(short)}{more}"
