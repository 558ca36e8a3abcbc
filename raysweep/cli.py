"""The command line: each command parses, makes one call, and turns the outcome into an exit code.

0 done; 1 some task failed, or the run folder could not be written to (the rest is done and kept); 2 bad usage or input, before
anything ran; 3 another raysweep is in the run folder; 130, 143 and 129 ended by SIGINT (Ctrl-C), SIGTERM and SIGHUP.
Progress goes to standard error, results to standard output.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import sys
import traceback

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
from raysweep.cli_ends import EXIT_CODES, Commands, error_code
from raysweep.cli_options import Version
from raysweep.errors import RaysweepError, in_lines
from raysweep.redaction import redacted
from raysweep.terminal import echo, show_old_names

app = typer.Typer(
    cls=Commands,
    help="Find a language model's critical layers, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(epilog=EXIT_CODES)
def program(version: Version = False) -> None:
    """Find a language model's critical layers, and prove it."""


app.command()(cli_sweeps.demo)
app.command()(cli_sweeps.sweep)
app.command()(cli_config.init)
app.command()(cli_config.plan)
app.command(epilog=EXIT_CODES)(cli_sweeps.run)
app.command()(cli_jobs.submit)
app.command()(cli_folders.status)
app.command()(cli_folders.report)
app.command()(cli_analysis.export)
app.command()(cli_checkpoints.fetch)
app.command()(cli_checkpoints.consolidate)
app.command()(cli_folders.doctor)
app.command()(cli_analysis.critical)
app.command()(cli_analysis.correlate)
cli_verbosity.add_options(app)


def main() -> None:
    """Entry point: commands, with raysweep's own errors told in words."""
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
            app()
    except Exception as error:
        number = signals.received()  # it may be what the error comes of, as of a terminal that was closed
        if number is None and not isinstance(error, RaysweepError):
            raise
        with contextlib.suppress(OSError):
            if cli_verbosity.verbosity() is cli_verbosity.Verbosity.VERBOSE:
                echo(redacted("".join(traceback.format_exception(error))), err=True)
            echo(f"error: {redacted(in_lines(error))}", err=True)
        sys.exit(error_code(error) if number is None else 128 + number)
