"""The command line: each command parses, makes one call, and turns the outcome into an exit code.

0 done; 1 some task failed, or the run folder could not be written to (the rest is done and kept); 2 bad usage or input, before
anything ran; 3 another raysweep is in the run folder; 130, 143 and 129 ended by SIGINT (Ctrl-C), SIGTERM and SIGHUP.
Progress goes to standard error, results to standard output.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from raysweep import cli_verbosity, signals
from raysweep.cli_checkpoints import consolidate, fetch
from raysweep.cli_ends import EXIT_CODES, Commands, error_code, stopped
from raysweep.cli_options import FORMATS, AsJson, Folder, Fresh, Options, Overrides, Version, Wait, WaitAtMost
from raysweep.cli_run import run_and_report, warn
from raysweep.errors import RaysweepError, in_lines
from raysweep.redaction import redacted
from raysweep.terminal import echo

app = typer.Typer(
    cls=Commands,
    help="Find a language model's critical layers, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(epilog=EXIT_CODES)
def program(version: Version = False) -> None:
    """Find a language model's critical layers, and prove it."""


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="The run folder, or its URL.")] = "runs/demo",
    fresh: Fresh = False,
    wait: Wait = False,
    wait_at_most: WaitAtMost = None,
) -> None:
    """Run the whole study on the embedded laboratory: no network, no GPU, no download."""
    from raysweep.recipes import demo_config

    run_and_report(demo_config(out), fresh=fresh, wait=wait, wait_at_most=wait_at_most)


@app.command()
def sweep(
    base: Annotated[str, typer.Argument(help="Base checkpoint: folder, hub id or lab:// name.")],
    tuned: Annotated[str, typer.Argument(help="The checkpoint fine-tuned from it, or a PEFT adapter.")],
    data: Annotated[str, typer.Argument(help="Test records: file, folder, hub id or lab:// name.")],
    format: Annotated[str | None, typer.Option(help=FORMATS)] = None,
    wording: Annotated[str, typer.Option(help="Prompt wording: chat, plain, llama2, llama3 or phi3.")] = "chat",
    width: Annotated[
        list[int] | None, typer.Option(help="Window width, 5 by default; may be given several times.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many records.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a folder or hub data set.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt column or template (format columns).")] = None,
    response: Annotated[str | None, typer.Option(help="Response column or template (format columns).")] = None,
    out: Annotated[
        str | None, typer.Option(help="The run folder, or its URL; runs/BASE-TUNED-DATA by default.")
    ] = None,
    overrides: Overrides = None,
    fresh: Fresh = False,
    wait: Wait = False,
    wait_at_most: WaitAtMost = None,
) -> None:
    """Run the whole study of one pair; the config it makes is kept in the run folder."""
    from raysweep.recipes import sweep_config

    config = sweep_config(
        base,
        tuned,
        data,
        format=format,
        wording=wording,
        widths=width or [5],
        limit=limit,
        split=split,
        prompt=prompt,
        response=response,
        storage=out,
    )
    run_and_report(config, overrides, fresh=fresh, wait=wait, wait_at_most=wait_at_most)


@app.command()
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


@app.command()
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


@app.command(epilog=EXIT_CODES)
def run(
    config: Annotated[Path, typer.Argument(help="The config.")],
    overrides: Overrides = None,
    executor: Annotated[str | None, typer.Option(help="local or ray; the same as --set execution.executor=…")] = None,
    address: Annotated[str | None, typer.Option(help="The Ray cluster to join (host:port, or auto).")] = None,
    verify: Annotated[
        int | None, typer.Option(help="Compute so many windows, drawn at random, again by true substitution.")
    ] = None,
    fresh: Fresh = False,
    wait: Wait = False,
    wait_at_most: WaitAtMost = None,
) -> None:
    """Run a config; what is whole is not done again."""
    chosen = list(overrides or [])
    if address is not None:
        chosen += [f"execution.address={address}", f"execution.executor={executor or 'ray'}"]
    elif executor is not None:
        chosen.append(f"execution.executor={executor}")
    if verify is not None:
        chosen.append(f"studies.substitution.verify={verify}")
    run_and_report(str(config), chosen, fresh=fresh, wait=wait, wait_at_most=wait_at_most)


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="The config.")],
    address: Annotated[str, typer.Option(help="The cluster's dashboard: http://HOST:8265.")],
    overrides: Overrides = None,
    working_dir: Annotated[
        Path | None, typer.Option(help="A folder that travels with the job, beside the config; by default none does.")
    ] = None,
    python: Annotated[str, typer.Option(help="The interpreter that has raysweep on the cluster.")] = "python",
    wait: Annotated[bool, typer.Option(help="Follow the job to its end; or only until its checks are passed.")] = True,
    stop: Annotated[bool, typer.Option(help="Ctrl-C, SIGTERM or SIGHUP stops the job, too.")] = False,
    fresh: Fresh = False,
    wait_for_folder: Annotated[
        bool, typer.Option("--wait-for-folder", help="Have the job wait for another raysweep in the run folder to end.")
    ] = False,
) -> None:
    """Run a config as a job of a Ray cluster: check the cluster, follow the job's log, end with its exit code."""
    from raysweep.api import submit as submit_run

    job = submit_run(
        config,
        address,
        overrides or [],
        working_dir=working_dir,
        python=python,
        fresh=fresh,
        wait_for_folder=wait_for_folder,
    )
    echo(f"job {job.id} submitted; it is followed from here", err=True)
    try:
        code = job.follow(lambda text: echo(text, nl=False), until_checked=not wait)
    except KeyboardInterrupt as error:
        if stop:
            wait = signals.number_of(error) == signal.SIGINT  # a scheduler gives no time for that
            if wait:
                signals.stand_down()
            job.stop(wait=wait)
            how = "is stopped" if wait else "was asked to stop"
            stopped(error, f"job {job.id} {how}; committed work is kept, and submitting again resumes it")
        stopped(
            error, f"job {job.id} goes on; stop it: {job.command('stop')}; follow it: {job.command('logs --follow')}"
        )
    if code is None:
        echo(
            f"job {job.id} goes on; follow it: {job.command('logs --follow')}; stop it: {job.command('stop')}", err=True
        )
    elif code:
        echo(f"job {job.id} ended with exit code {code}", err=True)
        raise typer.Exit(code)


@app.command()
def status(folder: Folder, options: Options = None, as_json: AsJson = False) -> None:
    """Tell where a run stands."""
    from raysweep.api import status as standing_of
    from raysweep.config_overrides import parse_options

    standing = standing_of(folder, parse_options(options or []))
    echo(json.dumps(standing.to_json(), indent=1) if as_json else standing.to_text())


@app.command()
def report(folder: Folder, options: Options = None) -> None:
    """Draw a run's tables, figures and page again."""
    from raysweep.api import open_run
    from raysweep.config_overrides import parse_options

    echo(f"report: {open_run(folder, parse_options(options or [])).report}")


@app.command()
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


app.command()(fetch)
app.command()(consolidate)


@app.command()
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


@app.command()
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


@app.command()
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


cli_verbosity.add_options(app)


def main() -> None:
    """Entry point: commands, with raysweep's own errors told in words."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    atexit.register(gc.freeze)  # or the interpreter's last collection goes over all that libraries have made
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show ends no command
            stream.reconfigure(errors="backslashreplace")
    try:
        with signals.handled(program=True):
            app()
    except Exception as error:
        number = signals.received()  # it may be what the error comes of, as of a terminal that was closed
        if number is None and not isinstance(error, RaysweepError):
            raise
        with contextlib.suppress(OSError):
            if cli_verbosity.verbosity() is cli_verbosity.Verbosity.VERBOSE:
                echo(redacted("".join(traceback.format_exception(error))), err=True)
            echo(f"error: {redacted(in_lines(error))}", err=True)
        sys.exit(error_code(error) if number is None else 128 + number)
