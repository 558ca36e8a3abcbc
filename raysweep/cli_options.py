"""Arguments and options that several commands have, and how their values are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Template = Literal["chat", "plain", "llama2", "llama3", "phi3"]  # data/wording.py's
Executor = Literal["local", "ray"]
FORMATS = (
    *("dolly", "alpaca", "gsm8k", "boolq", "openbookqa", "messages", "sharegpt", "prompt_completion", "preference"),
    "columns",
)  # data/formats.py's
_CHECKPOINT = "a folder, a hub id or a lab:// name"


def _started_with(incomplete: str) -> list[str]:
    return [name for name in FORMATS if name.startswith(incomplete)]


def _checked_device(value: str | None) -> str | None:
    """Raise typer.BadParameter for what is not a device; the rule is the config's."""
    if value is not None:
        from pydantic import ValidationError

        from raysweep.config_execution import ExecutionConfig

        try:
            ExecutionConfig(device=value)
        except ValidationError as error:
            raise typer.BadParameter(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    return value


Base = Annotated[str, typer.Argument(metavar="BASE", help=f"The base model's checkpoint: {_CHECKPOINT}.")]
Tuned = Annotated[
    str,
    typer.Argument(
        metavar="TUNED", help=f"The checkpoint fine-tuned from it: {_CHECKPOINT}; or a PEFT adapter on the base."
    ),
]
Data = Annotated[
    str, typer.Argument(metavar="DATA", help="The test records: a file, a folder, a hub id or a lab:// name.")
]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The config, a YAML file.")]
Folder = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its URL.")]
DataFormat = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        autocompletion=_started_with,
        help=f"Format of the records: {', '.join(FORMATS[:-1])}, or {FORMATS[-1]} (with --prompt and --response). "
        "By default it is detected from the first record.",
    ),
]
PromptTemplate = Annotated[
    Template | None,
    typer.Option(
        metavar="NAME",
        help="Prompt template: chat (the tokenizer's own), plain (no words added), llama2, llama3 or phi3. "
        "[default: chat]",
        show_default=False,
    ),
]
OldTemplate = Annotated[str | None, typer.Option("--wording", metavar="NAME", hidden=True)]
Widths = Annotated[
    list[str] | None,
    typer.Option(
        metavar="N,N",
        help="Layers in a window: one width, several (4,5), or all. [default: 5]",
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Use the first N records of each data set.")]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="Split to read, of a folder or a hub data set.")]
Prompt = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Column of the prompt, or a Jinja template (format columns).")
]
Response = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Column of the response, or a Jinja template (format columns).")
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        callback=_checked_device,
        help="Where to compute: auto (a GPU if there is one), cpu, mps, cuda, or cuda:1 for the second GPU.",
        show_default=False,
    ),
]
RunsOn = Annotated[
    Executor | None,
    typer.Option(
        "--executor",
        metavar="NAME",
        help="local (this process) or ray (workers of a Ray cluster, or of this machine).",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the config: --set execution.chunk=16, or --set datasets.0.limit=9 for the first data set. "
        "Repeat it for several keys.",
    ),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Delete the run's committed results first, and compute everything again.")
]
Wait = Annotated[
    bool,
    typer.Option(
        "--wait", help="If another raysweep is in the run folder, wait until it ends. Otherwise: exit code 3."
    ),
]
WaitAtMost = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", min=0.001, help="Like --wait, but at most this long; then exit code 3.", show_default=False
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="Option of a URL's object store, as in storage_options: --option endpoint_url=http://HOST:9000. Repeat it for "
        "several.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def widths_of(given: list[str] | None) -> list[int] | Literal["all"]:
    """Return the widths of `--width`, each of which may be several (4,5). Raises typer.BadParameter."""
    parts = [part.strip() for text in given or ["5"] for part in text.split(",")]
    if parts == ["all"]:
        return "all"
    for part in parts:
        if part == "all":
            raise typer.BadParameter("'all' includes every width; give it alone", param_hint="'--width'")
        if not (part.isascii() and part.isdecimal() and len(part) <= 9 and int(part) > 0):
            raise typer.BadParameter(
                f"'{part[:80]}' is not a number of layers; give a number from 1, several (4,5), or all",
                param_hint="'--width'",
            )
    return list(dict.fromkeys(map(int, parts)))


def template_of(template: Template | None, old: str | None) -> str:
    """Return the prompt template; `old` is what the deprecated option --wording has. Raises typer.BadParameter for both."""
    if old is None:
        return template or "chat"
    if template is not None:
        raise typer.BadParameter("--wording is its old name; leave it out", param_hint="'--template'")
    from raysweep.terminal import echo

    echo("warning: --wording is deprecated; use --template", err=True)
    return old


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"raysweep {version('raysweep')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]
