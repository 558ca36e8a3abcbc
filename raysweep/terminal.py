"""Text for a terminal: wrapped and aligned for 80 columns, control characters escaped.

Names of files, models and records may hold control characters.
"""

from __future__ import annotations

import re
import sys
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from raysweep.errors import RenamedWarning

WIDTH = 80  # columns that results fit in
_GAP = 2  # columns between those of a table
_LEAST = 12  # that the first column of a table is shortened to

# Control characters except line ends and tabs, and those that reorder text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Return the text with control characters written as escapes, such as `\x1b`; line ends and tabs stay."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def show_old_names() -> None:
    """Print warnings about old names of keys as a line on standard error, without Python's file and line."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, RenamedWarning):
            echo(f"warning: {message}", err=True)
        else:
            usual(message, category, *place, **more)

    warnings.showwarning = show


def echo(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print text that may hold anything to standard output, or to standard error."""
    typer.echo(printable(str(text)), err=err, nl=nl)


def wrapped(text: str, *, first: str = "", indent: str = "  ", width: int = WIDTH) -> list[str]:
    """Return the text in lines of at most `width` columns; words, such as paths, and intervals in brackets stay in one piece.

    `first` comes before the first line, `indent` before each of the others.
    """
    kept = re.sub(r"\[[^\[\]]{1,30}\]", lambda found: found[0].replace(" ", "\xa0"), printable(text))
    lines = textwrap.wrap(
        kept,
        width,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\xa0", " ") for line in lines]


def fitted(line: str) -> list[str]:
    """Return a line as it is if it fits, else wrapped under its own indent."""
    own = line[: len(line) - len(line.lstrip())]
    return [line] if len(line) <= WIDTH else wrapped(line.strip(), first=own, indent=own or "  ")


def message(text: str, *, err: bool = True) -> None:
    """Print a message: wrapped in a terminal, in one line elsewhere, so that logs can be searched."""
    stream = sys.stderr if err else sys.stdout
    echo("\n".join(wrapped(text)) if stream.isatty() else text, err=err)


def aligned(rows: Sequence[Sequence[str]], *, width: int = WIDTH, right: Iterable[int] = ()) -> list[str]:
    """Return rows of text, the first of which is the header, as aligned lines of at most `width` columns.

    If they do not fit, the first column is shortened in its middle; columns that do not fit even so follow in further blocks, each
    with the first column again. `right` are the places of columns that are aligned to the right.
    """
    if not rows:
        return []
    shown = [[printable(text) for text in row] for row in rows]
    most = max(_LEAST, width // 2)
    sizes = [min(max(len(row[place]) for row in shown), most) for place in range(len(shown[0]))]
    spare = width - sum(sizes[1:]) - _GAP * (len(sizes) - 1)
    longest = max(len(row[0]) for row in shown)
    if spare >= _LEAST:
        sizes[0] = min(longest, spare)
    blocks: list[list[int]] = [[]]
    used = sizes[0]
    for place in range(1, len(sizes)):
        if blocks[-1] and used + _GAP + sizes[place] > width:
            blocks.append([])
            used = sizes[0]
        blocks[-1].append(place)
        used += _GAP + sizes[place]
    to_right = set(right)
    lines: list[str] = []
    for block in blocks:
        lines += [""] if lines else []
        for row in shown:
            texts = [(shortened(row[place], sizes[place]), sizes[place], place in to_right) for place in (0, *block)]
            padded = [text.rjust(size) if flush else text.ljust(size) for text, size, flush in texts]
            lines.append((" " * _GAP).join(padded).rstrip())
    return lines


def shortened(text: str, length: int) -> str:
    """Return the text with its middle left out if it is longer than `length`."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"
