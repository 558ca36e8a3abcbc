"""What the commands that run a study share: progress, the answer, and how the command ends."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import typer

from raysweep import signals
from raysweep.cli_ends import how_to_resume, stopped
from raysweep.cli_verbosity import Verbosity, verbosity
from raysweep.redaction import redacted
from raysweep.terminal import echo, fitted, message

if TYPE_CHECKING:
    from raysweep.api import Run


def run_and_report(
    config: Any,
    overrides: list[str] | None = None,
    *,
    fresh: bool,
    wait: bool,
    wait_at_most: float | None,
    as_json: bool = False,
) -> None:
    """Run a config with progress on standard error, and print the answer; exit 1 if a task failed."""
    from raysweep.api import run as run_config
    from raysweep.progress import Progress

    progress = Progress(verbosity=verbosity())

    def words() -> str:
        return how_to_resume() if progress.has_started else "nothing was run"

    def cut_off(number: int) -> None:
        echo(f"{signals.what_happened(number)}; {words()}", err=True)

    try:
        with signals.last_action(cut_off), progress:
            done = run_config(config, overrides or [], fresh=fresh, wait=wait_at_most or wait, listener=progress)
    except (KeyboardInterrupt, SystemExit) as error:
        if signals.number_of(error) is None:
            raise
        stopped(error, words())
    _conclude(done, as_json=as_json)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    message(f"warning: {text}")


def _conclude(done: Run, *, as_json: bool) -> None:
    """Print the answer and where the report is, or JSON; exit 1 if a task failed."""
    if as_json:
        echo(_json(done))
    else:
        for line in done.summary():
            echo("\n".join(fitted(line)))
    for text, times in Counter(done.warnings).items():
        warn(text if times == 1 else f"{text} ({times} times)")
    if done.accuracy is not None and verbosity() is not Verbosity.QUIET:
        from raysweep.report.accuracy import accuracy_line

        echo(accuracy_line(done.accuracy), err=True)
    if not as_json:
        echo(f"report: {done.report}")
    if done.failed:
        message(redacted(done.failure))
        raise typer.Exit(1)


def _json(done: Run) -> str:
    """Return the answer as JSON: the folder, the report, an entry per cell, and the tasks that failed with their reasons."""
    from raysweep.report.answer_json import answer_json

    said = {
        "folder": str(done.folder),
        "report": str(done.report),
        "cells": answer_json(done.tables, done.about),
        "warnings": list(done.warnings),
        "failed": dict(done.failed),
    }
    return json.dumps(redacted(said), indent=1)
