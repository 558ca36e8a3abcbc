"""How much a command prints: the options --quiet and --verbose of every command that runs or plans something."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Annotated

import typer

from raysweep.errors import InputError

_PROGRESS = re.compile(r"\[ *\d+\.\d s\] (?!failed: |warning: )")  # how progress.py begins a line


class Verbosity(Enum):
    """`QUIET`: the answer, warnings, errors and where the report is. `VERBOSE`: also each call, and tracebacks."""

    QUIET = "quiet"
    NORMAL = "normal"
    VERBOSE = "verbose"


class _Chosen:
    """What the running command was asked for."""

    verbosity = Verbosity.NORMAL


def verbosity() -> Verbosity:
    """Return what the running command was asked for."""
    return _Chosen.verbosity


def is_quiet() -> bool:
    """Return whether the running command was asked to print no progress."""
    return _Chosen.verbosity is Verbosity.QUIET


class LogFilter:
    """Prints the log of a job as it comes; with --quiet without the lines that only show progress."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._line = write, ""

    def __call__(self, text: str) -> None:
        """Take the next piece of the log, which may end within a line."""
        if not is_quiet():
            self._write(text)
            return
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if not _PROGRESS.match(line):
                self._write(line + "\n")

    def close(self) -> None:
        """Print what is left of the last line."""
        if self._line and not _PROGRESS.match(self._line):
            self._write(self._line)
        self._line = ""


def _choose(context: typer.Context, parameter: typer.CallbackParam, given: bool) -> bool:
    """Keep what an option asks for. Raises InputError if the other one was given, too."""
    if given:
        if _Chosen.verbosity is not Verbosity.NORMAL:
            raise InputError("--quiet and --verbose are opposites; give one of them")
        _Chosen.verbosity = Verbosity(parameter.name)
    return given


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=_choose, help="Print only the answer, warnings, errors and the report's path."
    ),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", callback=_choose, help="Print each call as it begins and ends, and tracebacks."),
]


def reset() -> None:
    """Forget what an earlier command in this process was asked for."""
    _Chosen.verbosity = Verbosity.NORMAL
