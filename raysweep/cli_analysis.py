"""The commands that analyse: critical layers of a base model, figures measured elsewhere, and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli_ends import stopped
from raysweep.cli_options import FORMATS, AsJson, Folder, Options
from raysweep.cli_run import warn
from raysweep.terminal import echo


def critical(
    model: Annotated[str, typer.Argument(help="Base checkpoint: folder, hub id or lab:// name.")],
    data: Annotated[
        list[str], typer.Argument(help="Records, one place or several: file, folder, hub id or lab:// name.")
    ],
    top: Annotated[int | None, typer.Option(help="How many layers to choose; a fifth of them by default.")] = None,
    metric: Annotated[str, typer.Option(help="Similarity that δ is the mean of.")] = "cka_linear",
    pooling: Annotated[str, typer.Option(help="Which state stands for an example: last, first or mean.")] = "last",
    neighbourhood: Annotated[int, typer.Option(help="Layers that δ is the mean over; odd.")] = 3,
    diagonal: Annotated[bool, typer.Option(help="Count a layer's similarity to itself in its δ.")] = True,
    format: Annotated[str | None, typer.Option(help=FORMATS)] = None,
    wording: Annotated[str, typer.Option(help="Prompt wording: chat, plain, llama2, llama3 or phi3.")] = "chat",
    limit: Annotated[int | None, typer.Option(help="Use the first so many records of each.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a folder or hub data set.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt column or template (format columns).")] = None,
    response: Annotated[str | None, typer.Option(help="Response column or template (format columns).")] = None,
    template_date: Annotated[
        str | None, typer.Option(help="YYYY-MM-DD for a chat template that reads the clock; today by default.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Half-samples of the examples behind each share.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the half-samples.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    residency: Annotated[str, typer.Option(help="resident, stream (layers from disk) or auto (by size).")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Tell a base model's critical layers, how sure that is, and the lists for PEFT and for freezing."""
    from raysweep.api import critical as find
    from raysweep.recipes import critical_config
    from raysweep.report.critical_words import critical_json, critical_lines

    config = critical_config(
        model,
        data,
        format=format,
        wording=wording,
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
    echo(f"capturing the states of '{name}'", err=True)


def correlate(
    dynamics: Annotated[
        Path | None,
        typer.Option(
            help="δ by layer: CSV or Parquet (layer, delta), or an L × L matrix (.pt); or a folder of many *_cka.pt."
        ),
    ] = None,
    losses: Annotated[
        Path | None,
        typer.Option(
            help="Loss by centre: CSV or Parquet (centre, loss), or a folder of prune_*.jsonl; or one of many such."
        ),
    ] = None,
    cells: Annotated[
        Path | None, typer.Option(help="A folder with both of many cells, as export --format paper writes it.")
    ] = None,
    neighbourhood: Annotated[int, typer.Option(help="Layers that δ of a .pt matrix is the mean over; odd.")] = 3,
    drop_ends: Annotated[int, typer.Option(min=0, help="Leave so many centres out at each end.")] = 0,
    diagonal: Annotated[
        bool, typer.Option(help="Count a layer's similarity to itself in the δ of a .pt matrix.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Correlate figures measured elsewhere: one cell's, or a table of many (exit code 1 where one of them failed)."""
    from raysweep.api import correlate_files, correlate_folders
    from raysweep.errors import InputError

    if cells is not None and (dynamics is not None or losses is not None):
        raise InputError("--cells has both sides; leave --dynamics and --losses out")
    if cells is None and (dynamics is None or losses is None):
        raise InputError("give --dynamics and --losses, or --cells for a folder with both of many cells")
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
    format: Annotated[str, typer.Option(help="paper: prune_*.jsonl and *_cka.pt, as correlate reads them.")] = "paper",
    out: Annotated[
        str | None, typer.Option(help="A new or empty folder; by default RUN's name and the format.")
    ] = None,
    options: Options = None,
) -> None:
    """Write a run's losses, texts and similarities as files of another program."""
    from raysweep.api import export_run
    from raysweep.config_overrides import parse_options

    echo(export_run(folder, out, format, parse_options(options or [])).to_text())
