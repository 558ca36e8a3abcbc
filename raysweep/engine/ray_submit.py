"""A run as a job of a Ray cluster: submitted after every check that is possible from here, followed to its end, and stopped.

From outside, only the cluster's dashboard is seen: its nodes and jobs. What only the nodes know (their releases, whether all of
them see the storage) the job checks itself before any work (ray_checks.py), and the outcome comes back in its log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import requests
from ray.job_submission import JobStatus, JobSubmissionClient

from raysweep.config import Config, parse_config
from raysweep.engine.ray_address import dashboard_url
from raysweep.engine.ray_backend import RayBackend
from raysweep.engine.ray_dashboard import check_dashboard_answers, client_of, nodes_of
from raysweep.errors import InputError, RunError, shortened
from raysweep.fingerprint import fingerprint
from raysweep.redaction import redacted

CHECKED = "cluster checked:"  # in the job's log once every node was checked
_POLL_SECONDS = 0.5
_AWAY_SECONDS = 60.0
_JOBS_SHOWN = 8
_SHELL_CODES = {126: "cannot be run", 127: "does not exist"}  # what the shell says of the interpreter itself
# As Ctrl-C: committed work is kept, and the log says so. Ray kills the job if it has not ended by then.
_STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "30"}

for _name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # a package of a few bytes is uploaded

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A submitted job; `address` is its cluster's dashboard, `python` the interpreter that it was submitted with."""

    client: JobSubmissionClient
    id: str
    address: str
    python: str

    def follow(self, say: Callable[[str], None], *, until_checked: bool = False) -> int | None:
        """Pass the job's log to `say` as it grows, and return its exit code; with `until_checked`, None after its checks.

        Raises RunError if the job ended without an exit code of its own, InputError if its interpreter has no raysweep.
        """
        log = ""
        for text in _lines(self):
            say(text)
            log = (log + text)[-4000:]
            if until_checked and CHECKED in log:
                return None
        return self._exit_code(log)

    def command(self, what: str) -> str:
        """Return the command that does this with the job, for messages."""
        return f"raysweep {what} {self.id} --address {redacted(self.address)}"

    def log(self) -> str:
        """Return the job's log so far."""
        return _asked(self, self.client.get_job_logs)

    def stop(self, *, wait: bool = True) -> str | None:
        """Stop the job as Ctrl-C does, and return how it ended (`STOPPED`, …), without `wait` None.

        A job that had ended before is left alone.
        """
        status = _asked(self, self.client.get_job_status, patience=_AWAY_SECONDS if wait else 0.0)
        if not status.is_terminal():
            _asked(self, self.client.stop_job, patience=_AWAY_SECONDS if wait else 0.0)
            if not wait:
                return None
            status = _ended(self).status
        return str(status.value)

    def _exit_code(self, log: str) -> int:
        info = _ended(self)
        code: int | None = info.driver_exit_code
        if code in _SHELL_CODES:
            raise InputError(
                f"interpreter '{self.python}' {_SHELL_CODES[code]} on the head of the cluster at {redacted(self.address)}; give "
                "the one that has raysweep there (--python /path/to/python), or activate its environment before `ray start`"
            )
        if code == 1 and "No module named raysweep" in log:
            raise InputError(
                f"interpreter '{self.python}' on the head of the cluster at {redacted(self.address)} has no raysweep; install it on every "
                "node, or give the interpreter that has it (--python /path/to/python)"
            )
        if info.status == JobStatus.STOPPED:
            raise RunError(f"job {self.id} was stopped; committed work is kept, and submitting again resumes it")
        if code is not None and code < 0:
            raise RunError(
                f"job {self.id} was killed (signal {-code}); committed work is kept, and submitting again resumes it"
            )
        if code is None:
            raise RunError(f"job {self.id} ended without an exit code: {' '.join(str(info.message).split())[:400]}")
        return code


def submit(
    config: Config,
    address: str,
    *,
    working_dir: Path | None = None,
    python: str = "python",
    fresh: bool = False,
    wait_for_folder: bool = False,
) -> Job:
    """Check the cluster whose dashboard is at `address`, and submit a run of the config there.

    Only the config is sent, and the files in `working_dir` except those that its .gitignore names. Checkpoints and records
    outside it must have the same paths on every node, and so must the storage. Raises InputError, before there is a job, if
    nothing answers, the token is not the cluster's, or the cluster has less room than the config asks for.
    """
    url = dashboard_url(address)
    if working_dir is not None and not working_dir.is_dir():
        raise InputError(f"--working-dir '{working_dir}' is not a folder; give a folder, or remove the option")
    config = travelling(config, working_dir)
    headers = check_dashboard_answers(url)
    RayBackend(config.execution.model_copy(update={"address": url})).settle(
        config.execution.device, nodes_of(url, headers)
    )
    name = f"raysweep-{fingerprint(config.model_dump(mode='json'))[:16]}.yaml"
    chosen = [option for option, asked in (("--fresh", fresh), ("--wait", wait_for_folder)) if asked]
    arguments = ["run", name, "--executor", "ray", *chosen]
    with _folder_with(name, config.to_yaml(), working_dir) as folder, _submission_errors(url):
        client = client_of(url)
        job = client.submit_job(
            entrypoint=" ".join([python, "-m", "raysweep", *map(shlex.quote, arguments)]),
            runtime_env={"working_dir": str(folder), "env_vars": _STOPPING},
            metadata=metadata(config),
        )
    return Job(client, job, url, python)


def find_job(name: str, address: str) -> Job:
    """Return a job of the cluster whose dashboard is at `address`. Raises InputError if nothing answers or there is none of this name."""
    url = dashboard_url(address)
    check_dashboard_answers(url)
    client = client_of(url)
    try:
        jobs = [job for job in client.list_jobs() if job.submission_id]
    except (RuntimeError, ConnectionError, requests.exceptions.RequestException) as error:
        raise InputError(f"the dashboard at {redacted(url)} does not list its jobs ({type(error).__name__})") from error
    for job in jobs:
        if name in (job.submission_id, job.job_id):
            return Job(client, str(job.submission_id), url, job.entrypoint.partition(" -m raysweep")[0])
    raise InputError(f"the cluster at {redacted(url)} has no job '{shortened(name)}'; {_jobs_in_words(jobs)}")


def _jobs_in_words(jobs: Sequence[Any]) -> str:
    """Return the latest jobs with their states, for a message."""
    if not jobs:
        return "no job was submitted to it"
    latest = sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)
    words = [f"{job.submission_id} ({job.status.value.lower()})" for job in latest[:_JOBS_SHOWN]]
    more = f" and {len(jobs) - _JOBS_SHOWN} older ones" if len(jobs) > _JOBS_SHOWN else ""
    return f"its jobs: {', '.join(words)}{more}"


def metadata(config: Config) -> dict[str, str]:
    """Return what the job's page shows; without secrets, because everybody who sees the dashboard can read it."""
    about = {
        "name": config.name,
        "config": fingerprint(config.model_dump(mode="json"))[:16],
        "storage": config.storage,
        "raysweep": version("raysweep"),
    }
    return redacted(about)


def travelling(config: Config, working_dir: Path | None) -> Config:
    """Return the config with executor ray and with absolute paths, except for files that are in `working_dir`."""

    def there(place: str) -> str:
        if "://" in place or (working_dir is not None and (working_dir / place).exists()):
            return place
        path = Path(place).expanduser()
        return str(path.absolute()) if path.exists() else place  # a hub id, or a folder that only the cluster has

    values: dict[str, Any] = json.loads(config.model_dump_json())
    for model in values["models"]:
        model["base"] = there(model["base"])
        model["tuned"] = {name: there(place) for name, place in model["tuned"].items()}
    sources = [source for dataset in values["datasets"] for source in (dataset, dataset["train"])]
    for source in filter(None, [*sources, (values["studies"]["backdoor"] or {}).get("prompts")]):
        source["path"] = there(source["path"])
    if "://" not in config.storage:
        values["storage"] = str(Path(config.storage).expanduser().absolute())
    values["execution"] |= {"executor": "ray", "address": None, "dashboard_host": "127.0.0.1"}
    if config.execution.spill_folder is not None:
        values["execution"]["spill"] = str(config.execution.spill_folder)
    return parse_config(values)


@contextlib.contextmanager
def _folder_with(name: str, text: str, folder: Path | None) -> Iterator[Path]:
    """Yield the folder that is sent, which holds the config under `name` while it is packed."""
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raysweep-submit-")))
        path = folder / name
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"the config cannot be written into --working-dir '{folder}' ({error.strerror or error}), where it is needed to send it; "
                "make the folder writable, or remove --working-dir"
            ) from error
        stack.callback(path.unlink, missing_ok=True)
        yield folder


@contextlib.contextmanager
def _submission_errors(url: str) -> Iterator[None]:
    """Turn what the cluster answers to a submission into InputError: a package that is too large, a server that fails."""
    try:
        yield
    except (RuntimeError, ValueError, ConnectionError, requests.exceptions.RequestException) as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        if "No available agent" in words:
            raise InputError(
                f"the job agent of the head of {redacted(url)} does not answer; its port (52365) may be taken there: start the "
                "head with another (ray start --head --dashboard-agent-listen-port=…)"
            ) from error
        raise InputError(f"the cluster at {redacted(url)} did not accept the job ({redacted(words)})") from error


def _lines(job: Job) -> Iterator[str]:
    """Yield the job's log as it grows, until the job has ended. The complete log is fetched each time, a long one less often."""
    said = 0
    while True:
        ended = _asked(
            job, job.client.get_job_status
        ).is_terminal()  # asked before the log, so that its end is not missed
        log = _asked(job, job.client.get_job_logs)
        if len(log) > said:
            yield log[said:]
            said = len(log)
        if ended:
            return
        time.sleep(_POLL_SECONDS * (1 + len(log) / 2**18))


def _ended(job: Job) -> Any:
    while not (info := _asked(job, job.client.get_job_info)).status.is_terminal():
        time.sleep(_POLL_SECONDS)
    return info


def _asked(job: Job, ask: Callable[[str], T], *, patience: float | None = None) -> T:
    """Return the dashboard's answer about the job. Raises RunError after `patience` seconds without one; the job itself goes on."""
    until = time.monotonic() + (_AWAY_SECONDS if patience is None else patience)
    while True:
        try:
            return ask(job.id)
        except (RuntimeError, ConnectionError, requests.exceptions.RequestException) as error:
            if time.monotonic() > until:
                raise RunError(
                    f"the dashboard at {redacted(job.address)} no longer answers ({type(error).__name__}); job "
                    f"{job.id} may still be running: try again with {job.command('logs')}"
                ) from error
            time.sleep(_POLL_SECONDS)
