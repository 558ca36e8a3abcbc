"""The commands that analyse: critical layers of a base model, losses and δ measured elsewhere, and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli_ends import stopped
from raysweep.cli_options import (
    AsJson,
    Base,
    DataFormat,
    Device,
    Folder,
    Limit,
    OldTemplate,
    Options,
    Prompt,
    PromptTemplate,
    Response,
    Split,
    template_of,
)
from raysweep.cli_run import warn
from raysweep.cli_verbosity import Quiet, Verbose, is_quiet
from raysweep.terminal import echo


def critical(
    model: Base,
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA", help="Records, in one or more places: files, folders, hub ids or lab:// names."),
    ],
    top: Annotated[
        int | None, typer.Option(metavar="N", help="Number of layers to choose; by default a fifth of the layers.")
    ] = None,
    metric: Annotated[str, typer.Option(metavar="NAME", help="Similarity measure behind δ.")] = "cka_linear",
    pooling: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="State that represents an example: last or first (prompt token), or mean (over the prompt).",
        ),
    ] = "last",
    neighbourhood: Annotated[int, typer.Option(metavar="N", help="Layers that δ averages over; an odd number.")] = 3,
    diagonal: Annotated[bool, typer.Option(help="Include each layer's similarity to itself in its δ.")] = True,
    format: DataFormat = None,
    template: PromptTemplate = None,
    wording: OldTemplate = None,
    limit: Limit = None,
    split: Split = None,
    prompt: Prompt = None,
    response: Response = None,
    template_date: Annotated[
        str | None,
        typer.Option(metavar="YYYY-MM-DD", help="Date for a chat template that reads the clock; by default today."),
    ] = None,
    resamples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of half-samples (random halves of the examples) to draw.")
    ] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the half-samples.")] = 0,
    device: Device = "auto",
    residency: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Where weights are kept: resident (memory), stream (disk), or auto (by size)."
        ),
    ] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the critical layers of a base model alone.

    Shows how sure the choice is, and the lists of layers for PEFT and for freezing. Writes no files.
    """
    prompt_template = template_of(template, wording)
    from raysweep.api import critical as find
    from raysweep.recipes import critical_config
    from raysweep.report.critical_words import critical_json, critical_lines

    config = critical_config(
        model,
        data,
        format=format,
        template=prompt_template,
        limit=limit,
        split=split,
        prompt=prompt,
        response=response,
        template_date=template_date,
        similarity={"metrics": [metric], "pooling": pooling, "neighbourhood": neighbourhood, "diagonal": diagonal},
        execution={"device": device, "residency": residency},
    )
    try:
        found = find(config, top=top, resamples=resamples, seed=seed, progress=_capturing, warn=warn)
    except KeyboardInterrupt as error:
        stopped(error, "nothing was written")
    if as_json:
        echo(json.dumps(critical_json(found, model), indent=1))
    else:
        echo("\n".join(critical_lines(found, model)))


def _capturing(name: str) -> None:
    if not is_quiet():
        echo(f"capturing the states of '{name}'", err=True)


def correlate(
    dynamics: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="δ of each layer: CSV or Parquet (layer, delta), an L × L similarity matrix (.pt), or a folder of *_cka.pt for "
            "many cells.",
        ),
    ] = None,
    losses: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Loss of each window's centre: CSV or Parquet (centre, loss), a folder of prune_*.jsonl, or for many cells a "
            "folder of these folders.",
        ),
    ] = None,
    cells: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="A folder with δ and losses of many cells, as `export --format paper` writes it."
        ),
    ] = None,
    neighbourhood: Annotated[
        int, typer.Option(metavar="N", help="Layers that δ averages over, for a .pt matrix; an odd number.")
    ] = 3,
    drop_ends: Annotated[int, typer.Option(metavar="N", min=0, help="Ignore N window centres at each end.")] = 0,
    diagonal: Annotated[
        bool, typer.Option(help="Include each layer's similarity to itself in its δ, for a .pt matrix.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Correlate δ and losses that were measured elsewhere.

    Prints the result of one cell, or a table of many. With many cells, the exit code is 1 if any of them failed.
    """
    from raysweep.api import correlate_files, correlate_folders
    from raysweep.errors import InputError

    if cells is not None and (dynamics is not None or losses is not None):
        raise InputError("--cells already names both; remove --dynamics and --losses")
    if cells is None and (dynamics is None or losses is None):
        raise InputError("give --dynamics and --losses, or --cells with a folder that has both for many cells")
    if cells is not None or (dynamics is not None and dynamics.expanduser().is_dir()):
        many = correlate_folders(cells or dynamics or "", losses, neighbourhood, drop_ends=drop_ends, diagonal=diagonal)
        echo(json.dumps(many.to_json(), indent=1) if as_json else many.to_text())
        if many.failed:
            raise typer.Exit(1)
        return
    assert dynamics is not None
    assert losses is not None
    found = correlate_files(dynamics, losses, neighbourhood, drop_ends=drop_ends, diagonal=diagonal)
    echo(json.dumps(found.to_json(), indent=1) if as_json else found.to_text())


def export(
    folder: Folder,
    format: Annotated[
        str,
        typer.Option(metavar="NAME", help="paper: prune_*.jsonl and *_cka.pt, which `raysweep correlate` can read."),
    ] = "paper",
    out: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="A new or empty folder; by default the run's name and the format."),
    ] = None,
    options: Options = None,
) -> None:
    """Write a run's results as files for other programs.

    The files hold the losses, the generated texts and the similarities.
    """
    from raysweep.api import export_run
    from raysweep.config_overrides import parse_options

    echo(export_run(folder, out, format, parse_options(options or [])).to_text())
