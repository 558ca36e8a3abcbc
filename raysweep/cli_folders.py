"""The commands about run folders."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from raysweep.cli_options import AsJson, Folder, Options
from raysweep.terminal import echo


def status(folder: Folder, options: Options = None, as_json: AsJson = False) -> None:
    """Tell where a run stands."""
    from raysweep.api import status as standing_of
    from raysweep.config_overrides import parse_options

    standing = standing_of(folder, parse_options(options or []))
    echo(json.dumps(standing.to_json(), indent=1) if as_json else standing.to_text())


def report(folder: Folder, options: Options = None) -> None:
    """Draw a run's tables, figures and page again."""
    from raysweep.api import open_run
    from raysweep.config_overrides import parse_options

    echo(f"report: {open_run(folder, parse_options(options or [])).report}")


def doctor(
    folder: Folder,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is found.")] = False,
    checksums: Annotated[bool, typer.Option("--checksums", help="Compare checksums of files and checkpoints.")] = False,
    options: Options = None,
    as_json: AsJson = False,
) -> None:
    """Find what kills and damage left in a run folder; exit code 1 where something is left."""
    from raysweep.api import examine
    from raysweep.config_overrides import parse_options

    found = examine(folder, parse_options(options or []), remove=remove, checksums=checksums)
    echo(json.dumps(found.to_json(), indent=1) if as_json else found.to_text())
    if found.left:
        raise typer.Exit(1)
