"""The commands about jobs of a Ray cluster: submit one, follow its log, stop it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raysweep import signals
from raysweep.cli_ends import stopped
from raysweep.cli_options import ConfigFile, Fresh, Overrides
from raysweep.cli_verbosity import LogFilter, Quiet, Verbose
from raysweep.terminal import echo

if TYPE_CHECKING:
    from raysweep.engine.ray_submit import Job

JobName = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as submit prints it: raysubmit_…")]
Dashboard = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The cluster's dashboard, http://HOST:8265; by default the one in RAY_API_SERVER_ADDRESS or RAY_ADDRESS.",
        show_default=False,
    ),
]


def submit(
    config: ConfigFile,
    address: Annotated[str, typer.Option(metavar="URL", help="The cluster's dashboard: http://HOST:8265.")],
    overrides: Overrides = None,
    working_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A folder to send with the config, for example one with records."),
    ] = None,
    python: Annotated[
        str, typer.Option(metavar="PATH", help="The Python interpreter on the cluster that has raysweep.")
    ] = "python",
    wait: Annotated[
        bool, typer.Option(help="Follow the job until it ends; with --no-wait until its checks have passed.")
    ] = True,
    stop: Annotated[bool, typer.Option(help="Stop the job if Ctrl-C, SIGTERM or SIGHUP ends this command.")] = False,
    fresh: Fresh = False,
    wait_for_folder: Annotated[
        bool,
        typer.Option(
            "--wait-for-folder", help="If another raysweep is in the run folder, the job waits until it ends."
        ),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run a config as a job of a Ray cluster.

    Checks the cluster first, follows the job's log, and ends with the job's exit code.
    """
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
    echo(f"job {job.id} is submitted; its log follows", err=True)
    _follow(job, until_checked=not wait, stop=stop)


def logs(
    job: JobName,
    address: Dashboard = None,
    follow: Annotated[
        bool, typer.Option(help="Follow the log until the job ends; with --no-follow print what there is.")
    ] = True,
) -> None:
    """Print the log of a submitted job, and follow it.

    Ends with the job's exit code when the job has ended.
    """
    found = _job(job, address)
    if follow:
        _follow(found)
    else:
        echo(found.log(), nl=False)


def stop(
    job: JobName,
    address: Dashboard = None,
    wait: Annotated[bool, typer.Option(help="Wait until the job has ended.")] = True,
) -> None:
    """Stop a submitted job; its committed work is kept.

    The job ends as with Ctrl-C. Submitting the same config again resumes it.
    """
    found = _job(job, address)
    try:
        status = found.stop(wait=wait)
    except KeyboardInterrupt as error:
        stopped(error, f"job {found.id} was asked to stop, and may still be running: {found.command('logs')}")
    if status is None:
        echo(f"job {found.id} was asked to stop; committed work is kept")
    elif status == "STOPPED":
        echo(f"job {found.id} is stopped; committed work is kept, and submitting again resumes it")
    else:
        echo(f"job {found.id} had already ended ({status.lower()})")


def _job(name: str, address: str | None) -> Job:
    """Return a job of the cluster at this address, with this user's token. Raises InputError."""
    from raysweep.engine.ray_address import address_or_default, dashboard_url
    from raysweep.engine.ray_token import use_token

    url = dashboard_url(address_or_default(address))
    use_token(starting=False)
    from raysweep.engine.ray_submit import find_job

    return find_job(name, url)


def _follow(job: Job, *, until_checked: bool = False, stop: bool = False) -> None:
    """Print the job's log until it ends, or has passed its checks; end with its exit code. `stop` it after a signal."""
    goes_on = f"job {job.id} continues; follow it: {job.command('logs')}; stop it: {job.command('stop')}"
    show = LogFilter(lambda text: echo(text, nl=False))
    try:
        code = job.follow(show, until_checked=until_checked)
        show.close()
    except KeyboardInterrupt as error:
        if stop:
            wait = signals.number_of(error) == signal.SIGINT  # a scheduler gives no time for that
            if wait:
                signals.stand_down()
            job.stop(wait=wait)
            how = "is stopped" if wait else "was asked to stop"
            stopped(error, f"job {job.id} {how}; committed work is kept, and submitting again resumes it")
        stopped(error, goes_on)
    if code is None:
        echo(goes_on, err=True)
    elif code:
        echo(f"job {job.id} ended with exit code {code}", err=True)
        raise typer.Exit(code)
