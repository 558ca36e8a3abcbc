"""The commands about configs: write one to start from, and estimate what it would cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli_options import AsJson, Overrides
from raysweep.terminal import echo


def init(path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("raysweep.yaml")) -> None:
    """Write a commented config to start from."""
    from raysweep.errors import InputError
    from raysweep.recipes import TEMPLATE

    try:
        if path.exists():
            raise InputError(f"'{path}' exists already; give another name or delete it")
        if not path.parent.is_dir():
            raise InputError(f"folder '{path.parent}' does not exist; make it first")
        path.write_text(TEMPLATE, encoding="utf-8")
    except OSError as error:
        raise InputError(f"'{path}' cannot be written: {error.strerror or error}; give another place") from error
    echo(f"wrote {path}; now: raysweep plan {path}")


def plan(
    config: Annotated[Path, typer.Argument(help="The config.")],
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Simulate the run on so many GPUs.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Their nodes; one for every 8 by default.")] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            help="Rates of a run (its folder); or layer=SECONDS,read=BYTES (a layer on a token, bytes a second), or flops=OPERATIONS,read=BYTES (a device's, a second)."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a run would do and cost; run nothing."""
    from raysweep.planned import plan_run

    planned = plan_run(config, overrides or [], gpus=gpus, nodes=nodes, rates=rates)
    echo(json.dumps(planned.to_json(), indent=1) if as_json else planned.to_text())
