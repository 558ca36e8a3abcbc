"""The commands that run whole studies: the demo, one pair of models, and a config."""

from __future__ import annotations

from typing import Annotated

import typer

from raysweep.cli_options import (
    AsJson,
    Base,
    ConfigFile,
    Data,
    DataFormat,
    Device,
    Fresh,
    Limit,
    OldTemplate,
    Overrides,
    Prompt,
    PromptTemplate,
    Response,
    RunsOn,
    Split,
    Tuned,
    Wait,
    WaitAtMost,
    Widths,
    template_of,
    widths_of,
)
from raysweep.cli_run import run_and_report
from raysweep.cli_verbosity import Quiet, Verbose


def demo(
    out: Annotated[str, typer.Option(metavar="FOLDER", help="The run folder, or its URL.")] = "runs/demo",
    device: Device = None,
    executor: RunsOn = None,
    fresh: Fresh = False,
    wait: Wait = False,
    wait_at_most: WaitAtMost = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run all studies on a built-in model: nothing to download.

    A tiny model that comes with raysweep, four data sets, no network and no GPU.
    """
    from raysweep.recipes import demo_config

    config, chosen = demo_config(out), _execution(device, executor)
    run_and_report(config, chosen, fresh=fresh, wait=wait, wait_at_most=wait_at_most, as_json=as_json)


def sweep(
    base: Base,
    tuned: Tuned,
    data: Data,
    format: DataFormat = None,
    template: PromptTemplate = None,
    wording: OldTemplate = None,
    width: Widths = None,
    limit: Limit = None,
    split: Split = None,
    prompt: Prompt = None,
    response: Response = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The run folder, or its URL. By default runs/BASE-TUNED-DATA."),
    ] = None,
    device: Device = None,
    executor: RunsOn = None,
    overrides: Overrides = None,
    fresh: Fresh = False,
    wait: Wait = False,
    wait_at_most: WaitAtMost = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run all studies on one base and tuned model.

    The config is written to the run folder, where `raysweep run` can use it again.
    """
    widths = widths_of(width)
    prompt_template = template_of(template, wording)
    from raysweep.recipes import sweep_config

    config = sweep_config(
        base,
        tuned,
        data,
        format=format,
        template=prompt_template,
        widths=widths,
        limit=limit,
        split=split,
        prompt=prompt,
        response=response,
        storage=out,
    )
    chosen = [*(overrides or []), *_execution(device, executor)]
    run_and_report(config, chosen, fresh=fresh, wait=wait, wait_at_most=wait_at_most, as_json=as_json)


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    device: Device = None,
    executor: RunsOn = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="The Ray cluster to join: HOST:PORT of its head, or auto. Sets --executor ray."
        ),
    ] = None,
    verify: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Recompute the losses of N windows, chosen at random, by actually swapping the layers."
        ),
    ] = None,
    fresh: Fresh = False,
    wait: Wait = False,
    wait_at_most: WaitAtMost = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run a config, or resume it; completed work is kept."""
    chosen = [*(overrides or []), *_execution(device, executor or ("ray" if address is not None else None))]
    if address is not None:
        chosen.append(f"execution.address={address}")
    if verify is not None:
        chosen.append(f"studies.substitution.verify={verify}")
    run_and_report(str(config), chosen, fresh=fresh, wait=wait, wait_at_most=wait_at_most, as_json=as_json)


def _execution(device: str | None, executor: str | None) -> list[str]:
    """Return the overrides of a config that the options ask for."""
    chosen = {"device": device, "executor": executor}
    return [f"execution.{key}={value}" for key, value in chosen.items() if value is not None]
