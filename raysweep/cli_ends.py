"""How commands end: exit codes, the line on standard error after a signal, and how a run is resumed."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from raysweep import cli_verbosity, signals
from raysweep.errors import FolderInUseError, RunError
from raysweep.redaction import redacted
from raysweep.terminal import echo

EXIT_CODES = (
    "Exit codes: 0 done; 1 some task failed, or the run folder could not be written to (the rest is done and kept); "
    "2 bad usage or input, before anything ran; 3 another raysweep uses the run folder; "
    "130, 143 or 129 ended by Ctrl-C, SIGTERM or SIGHUP (committed work is kept)."
)
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # in the environment of a job that was submitted to a Ray cluster


class Commands(TyperGroup):
    """The commands, each of which a signal ends with its own exit code and a line on standard error."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        cli_verbosity.reset()
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, SystemExit) as error:
            if signals.number_of(error) is None:
                raise
            stopped(error, "the command did not finish; run it again")


def stopped(error: BaseException, words: str) -> NoReturn:
    """Print that a signal ended the command, and `words`; end with the signal's exit code."""
    number = signals.number_of(error)
    assert number is not None
    with contextlib.suppress(OSError):  # the terminal may be what is gone
        echo(f"{signals.what_happened(number)}; {words}", err=True)
    raise typer.Exit(128 + number) from None


def how_to_resume() -> str:
    """Return what to do after a run ended early: the command that resumes it, if that is known in full."""
    if _JOB in os.environ:
        return "committed work is kept, and submitting again resumes it"
    command = _command_line()
    if command is None or redacted(command) != command:
        return "committed work is kept, and running again resumes it"
    return f"committed work is kept; resume with: {command}"


def error_code(error: Exception) -> int:
    """Return the exit code of an error."""
    return 1 if isinstance(error, RunError) else 3 if isinstance(error, FolderInUseError) else 2


def _command_line() -> str | None:
    """Return this process's command line without `--fresh`, which would forget what is to be resumed."""
    program = Path(sys.argv[0]).name if sys.argv else ""
    if program == "__main__.py":
        program = "raysweep"
    arguments = [argument for argument in sys.argv[1:] if argument != "--fresh"]
    return shlex.join([program, *arguments]) if program else None
