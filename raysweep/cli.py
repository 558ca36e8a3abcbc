"""The command line: its commands, in the groups in which `raysweep --help` lists them, and its entry point.

Each command parses its arguments, makes one call, and turns the outcome into an exit code (cli_ends.EXIT_CODES). Progress goes to
standard error, results to standard output. The commands themselves are in a module per topic, cli_*.py.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import sys
import traceback
from collections.abc import Callable

import typer

from raysweep import (
    cli_analysis,
    cli_checkpoints,
    cli_config,
    cli_folders,
    cli_jobs,
    cli_sweeps,
    cli_verbosity,
    signals,
)
from raysweep.cli_ends import EXIT_CODES, error_code
from raysweep.cli_help import CLUSTER, LOOK, RUN, START, TOOLS, GroupedCommands, PlainCommand
from raysweep.cli_options import Version
from raysweep.errors import RaysweepError, in_lines
from raysweep.redaction import redacted
from raysweep.terminal import echo, show_old_names

app = typer.Typer(
    cls=GroupedCommands,
    help="Find a language model's critical layers, with evidence.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(epilog=EXIT_CODES)
def program(version: Version = False) -> None:
    """Find a language model's critical layers, with evidence."""


_GROUPS: dict[str, tuple[Callable[..., None], ...]] = {
    START: (cli_sweeps.demo, cli_sweeps.sweep, cli_analysis.critical),
    RUN: (cli_config.init, cli_config.plan, cli_sweeps.run),
    LOOK: (cli_folders.status, cli_folders.report, cli_analysis.export, cli_analysis.correlate),
    CLUSTER: (cli_jobs.submit, cli_jobs.logs, cli_jobs.stop),
    TOOLS: (
        cli_checkpoints.fetch,
        cli_checkpoints.consolidate,
        cli_config.schema,
        cli_folders.doctor,
        cli_folders.clean,
    ),
}
_EPILOGS = {cli_sweeps.run: EXIT_CODES, cli_jobs.submit: EXIT_CODES}
for _group, _functions in _GROUPS.items():
    for _function in _functions:
        app.command(cls=PlainCommand, rich_help_panel=_group, epilog=_EPILOGS.get(_function))(_function)


def main() -> None:
    """Run the command line; raysweep's own errors are printed as one line, without a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    atexit.register(gc.freeze)  # or the interpreter's last collection goes over all that libraries have made
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show ends no command
            stream.reconfigure(errors="backslashreplace")
    show_old_names()
    try:
        with signals.handled(program=True):
            app(prog_name="raysweep")
    except Exception as error:
        number = signals.received()  # it may be what the error comes of, as of a terminal that was closed
        if number is None and not isinstance(error, RaysweepError):
            raise
        with contextlib.suppress(OSError):
            if cli_verbosity.verbosity() is cli_verbosity.Verbosity.VERBOSE:
                echo(redacted("".join(traceback.format_exception(error))), err=True)
            echo(f"error: {redacted(in_lines(error))}", err=True)
        sys.exit(error_code(error) if number is None else 128 + number)
