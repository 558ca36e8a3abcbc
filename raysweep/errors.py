"""The errors raysweep raises on purpose, and the wording helpers they share.

Every message says what was wrong, where, and what to do; the command line prints it without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RaysweepError(Exception):
    """Something the user can mend; its message is meant to be read alone."""


class InputError(RaysweepError):
    """Bad input (config, path, record, checkpoint), found before anything ran: exit code 2."""


class FolderInUseError(InputError):
    """A run folder that another raysweep works in: exit code 3. `holder` says which process holds it, and since when."""

    def __init__(self, message: str, holder: str) -> None:
        super().__init__(message)
        self.holder = holder


class SeveralProblemsError(InputError):
    """Several problems of one input, each on a line of its own."""


class StoreError(RaysweepError):
    """A run folder or artifact that is missing, foreign, or does not match its manifest."""


class RunError(RaysweepError):
    """A run that could not go on (its disk is full, its workers are lost); what is committed is kept: exit code 1."""


def in_lines(error: Exception) -> str:
    """The message in one line, or in one for each of several problems: what a library raised may have many."""
    if isinstance(error, SeveralProblemsError):
        return str(error)
    return " ".join(filter(None, map(str.strip, str(error).splitlines())))


def shown(value: object) -> str:
    """A value's repr for a message, shortened."""
    return shortened(repr(value))


def shortened(text: str, most: int = 80) -> str:
    """Text for a message, cut in its middle beyond `most` characters: what is wrong may be 100 kB long."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """The hint that ends an "unknown name" message: the nearest known name, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
