"""The commands that write checkpoints: download a published model, and convert shards to one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli_ends import stopped
from raysweep.terminal import echo


def fetch(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="The model: smollm2 (SmolLM2-135M-Instruct).")],
    force: Annotated[bool, typer.Option("--force", help="Download it again and replace the existing copy.")] = False,
) -> None:
    """Download a published model, for use as lab://MODEL."""
    from raysweep.fetching import fetch as fetch_model

    try:
        fetched = fetch_model(name, force=force, progress=lambda text: echo(text, err=True))
    except KeyboardInterrupt as error:
        stopped(error, "nothing was kept")
    echo(fetched.to_text())


def consolidate(
    shards: Annotated[
        Path,
        typer.Argument(
            metavar="SHARDS", help="A checkpoint-N folder that was trained with FSDP, or a folder of *.distcp."
        ),
    ],
    base: Annotated[
        str,
        typer.Argument(metavar="BASE", help="The checkpoint it was trained from: a folder, a hub id or a lab:// name."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder.")],
    dtype: Annotated[
        str,
        typer.Option(metavar="DTYPE", help="float32, bfloat16, float16, or auto: the widest of the stored weights."),
    ] = "auto",
) -> None:
    """Convert an FSDP checkpoint to a Hugging Face folder.

    No pickled code is run.
    """
    from raysweep.api import consolidate as write

    echo(write(shards, base, out, dtype=dtype).to_text())
