"""Text for a terminal: names of files, models and records may hold control characters, which are printed escaped."""

from __future__ import annotations

import re
import warnings
from typing import Any

import typer

from raysweep.errors import RenamedWarning

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
