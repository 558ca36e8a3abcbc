"""The commands that run a whole study: the demo, the study of one pair, and a config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli_options import FORMATS, Fresh, Overrides, Wait, WaitAtMost
from raysweep.cli_run import run_and_report


def demo(
    out: Annotated[str, typer.Option(help="The run folder, or its URL.")] = "runs/demo",
    fresh: Fresh = False,
    wait: Wait = False,
    wait_at_most: WaitAtMost = None,
) -> None:
    """Run the whole study on the embedded laboratory: no network, no GPU, no download."""
    from raysweep.recipes import demo_config

    run_and_report(demo_config(out), fresh=fresh, wait=wait, wait_at_most=wait_at_most)


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
