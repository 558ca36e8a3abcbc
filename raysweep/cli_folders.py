"""The commands about run folders: how far a run is, its report, what crashes left there, and disk space."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from raysweep.cli_options import AsJson, Folder, Options
from raysweep.terminal import echo


def status(folder: Folder, options: Options = None, as_json: AsJson = False) -> None:
    """Show the progress of a run."""
    from raysweep.api import status as standing_of
    from raysweep.config_overrides import parse_options

    standing = standing_of(folder, parse_options(options or []))
    echo(json.dumps(standing.to_json(), indent=1) if as_json else standing.to_text())


def report(folder: Folder, options: Options = None) -> None:
    """Rebuild a run's tables, figures and report page."""
    from raysweep.api import open_run
    from raysweep.config_overrides import parse_options

    echo(f"report: {open_run(folder, parse_options(options or [])).report}")


def doctor(
    folder: Folder,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what it finds.")] = False,
    checksums: Annotated[
        bool,
        typer.Option(
            "--checksums", help="Also compare the checksums of all files and checkpoints, which reads them all."
        ),
    ] = False,
    options: Options = None,
    as_json: AsJson = False,
) -> None:
    """Find damage and leftovers of crashes in a run folder.

    The exit code is 1 if any of it remains.
    """
    from raysweep.api import examine
    from raysweep.config_overrides import parse_options

    found = examine(folder, parse_options(options or []), remove=remove, checksums=checksums)
    echo(json.dumps(found.to_json(), indent=1) if as_json else found.to_text())
    if found.left:
        raise typer.Exit(1)


def clean(
    folder: Folder,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Remove results that the folder's config no longer uses.")
    ] = False,
    activations: Annotated[
        bool, typer.Option("--activations", help="Remove captured states; the next run captures them again.")
    ] = False,
    trackers: Annotated[
        bool, typer.Option("--trackers", help="Remove logs of TensorBoard, MLflow and Weights & Biases.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")] = False,
    options: Options = None,
    as_json: AsJson = False,
) -> None:
    """Free disk space in a run folder.

    Without an option it removes nothing, and shows how many bytes and files each option would free.
    """
    from raysweep.config_overrides import parse_options
    from raysweep.engine.cleaning import CHOICES, clean_folder

    asked = dict(zip(CHOICES, (superseded, activations, trackers), strict=True))
    chosen = [name for name, wanted in asked.items() if wanted]
    found = clean_folder(folder, parse_options(options or []), chosen, dry_run=dry_run)
    echo(json.dumps(found.to_json(), indent=1) if as_json else found.to_text())
