"""How much a command prints: --quiet and --verbose, the same on every command that runs or plans something."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any

import typer

from raysweep.errors import InputError

COMMANDS = ("demo", "sweep", "run", "submit", "critical", "plan")  # those that have the two options


Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only the answer, warnings, errors and the report's path.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print each call as it begins and ends, and tracebacks.")
]

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


def reset() -> None:
    """Forget what an earlier command in this process was asked for."""
    _Chosen.verbosity = Verbosity.NORMAL


def add_options(app: typer.Typer) -> None:
    """Give those commands of COMMANDS that the app has by now the options --quiet and --verbose."""
    for command in app.registered_commands:
        if command.callback is not None and (command.name or command.callback.__name__) in COMMANDS:
            command.callback = _with_options(command.callback)


def _with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command with two more options, which its function never sees."""
    signature = inspect.signature(function, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("quiet", Quiet), ("verbose", Verbose))
    ]

    @functools.wraps(function)
    def command(*args: Any, quiet: bool, verbose: bool, **kwargs: Any) -> Any:
        if quiet and verbose:
            raise InputError("--quiet and --verbose are opposites; give one of them")
        _Chosen.verbosity = Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL
        return function(*args, **kwargs)

    given = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    command.__annotations__ = {**given, "quiet": Quiet, "verbose": Verbose}
    vars(command)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), *more])
    return command
