"""The commands that make checkpoints: published models brought here, and shards made into one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli_ends import stopped
from raysweep.terminal import echo


def fetch(
    name: Annotated[str, typer.Argument(help="The model: smollm2 (SmolLM2-135M-Instruct).")],
    force: Annotated[bool, typer.Option("--force", help="Fetch it again and replace what is there.")] = False,
) -> None:
    """Bring a published model into the user's cache, where lab://NAME finds it."""
    from raysweep.fetching import fetch as fetch_model

    try:
        fetched = fetch_model(name, force=force, progress=lambda text: echo(text, err=True))
    except KeyboardInterrupt as error:
        stopped(error, "nothing was kept")
    echo(fetched.to_text())


def consolidate(
    shards: Annotated[Path, typer.Argument(help="A checkpoint-N that was trained with FSDP, or a folder of *.distcp.")],
    base: Annotated[str, typer.Argument(help="The checkpoint it was trained from: folder, hub id or lab:// name.")],
    out: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, or auto: the widest that is stored.")
    ] = "auto",
) -> None:
    """Make a Hugging Face folder of a sharded checkpoint; no pickled code is run."""
    from raysweep.api import consolidate as write

    echo(write(shards, base, out, dtype=dtype).to_text())
