"""The commands about jobs of a Ray cluster."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from raysweep import signals
from raysweep.cli_ends import stopped
from raysweep.cli_options import Fresh, Overrides
from raysweep.terminal import echo


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
