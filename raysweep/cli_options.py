"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a key: --set execution.chunk=16; may be given several times, lists count from 0 (datasets.0.limit=9).",
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget what is committed and compute everything again.")]
Wait = Annotated[
    bool,
    typer.Option("--wait", help="If another raysweep is in the run folder, wait until it ends instead of refusing."),
]
WaitAtMost = Annotated[
    float | None,
    typer.Option(min=0.001, help="--wait, for at most so many seconds; then exit code 3.", show_default=False),
]
Folder = Annotated[str, typer.Argument(help="A run folder, or its URL.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="Of a URL's store, as in storage_options: --option endpoint_url=http://…"),
]
FORMATS = (
    "dolly, alpaca, gsm8k, boolq, openbookqa, messages, sharegpt, prompt_completion, preference, or columns (with --prompt and "
    "--response); found from the first record by default."
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"raysweep {version('raysweep')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]
