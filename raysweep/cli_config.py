"""The commands about configs: write one to start from, estimate what it would cost, and their JSON schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli_options import AsJson, ConfigFile, Overrides
from raysweep.cli_verbosity import Quiet, Verbose
from raysweep.terminal import echo


def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")] = Path("raysweep.yaml"),
    minimal: Annotated[
        bool, typer.Option("--minimal", help="Write the shortest config that runs: models, records and storage.")
    ] = False,
    schema: Annotated[
        bool, typer.Option(help="Also write the JSON schema, which editors use to complete and check keys.")
    ] = True,
) -> None:
    """Write a commented config to start from.

    Its first line names the JSON schema, which is written next to it as raysweep.schema.json.
    """
    from raysweep.config_schema import FILE
    from raysweep.errors import InputError
    from raysweep.recipes import MINIMAL, TEMPLATE

    text = MINIMAL if minimal else TEMPLATE
    try:
        if path.exists():
            raise InputError(f"'{path}' already exists; give another name or delete it")
        if not path.parent.is_dir():
            raise InputError(f"folder '{path.parent}' does not exist; create it first")
    except OSError as error:  # a name too long
        raise _not_written(path, error) from error
    written = str(path)
    if schema:
        text = f"# yaml-language-server: $schema={FILE}\n{text}"
    _write(path, text)
    if schema:
        _write(path.with_name(FILE), _schema_text())
        written += f" and {path.with_name(FILE)}"
    echo(f"wrote {written}; next: raysweep plan {path}")


def schema(
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file to write; by default it is printed.")
    ] = None,
) -> None:
    """Print the JSON schema of a config, for editors.

    An editor with a YAML language server uses it if a config's first line is `# yaml-language-server: $schema=FILE`.
    """
    if out is None:
        echo(_schema_text(), nl=False)
        return
    _write(out, _schema_text())
    echo(f"wrote {out}")


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", min=1, help="Simulate the run on N GPUs.")] = None,
    nodes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Number of nodes that hold these GPUs; by default one per 8 GPUs."),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            metavar="RATES",
            help="Speeds to use in the estimate: a run folder (those measured in that run); layer=SECONDS,read=BYTES (seconds for "
            "one layer on one token, bytes read per second); or flops=N,read=BYTES (a device's, per second).",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Estimate what a run would do and cost, without running it."""
    from raysweep.planned import plan_run

    planned = plan_run(config, overrides or [], gpus=gpus, nodes=nodes, rates=rates)
    echo(json.dumps(planned.to_json(), indent=1) if as_json else planned.to_text())


def _schema_text() -> str:
    from raysweep.config_schema import config_schema

    return json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a text file. Raises InputError if that is not possible."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> Exception:
    from raysweep.errors import InputError

    return InputError(f"'{path}' cannot be written: {error.strerror or error}; give another path")
