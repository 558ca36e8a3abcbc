"""A run as a job of a Ray cluster: what can be refused is refused before there is a job, then it is followed to its end.

From outside the cluster its dashboard tells of nodes and jobs. What only the nodes can tell (their releases, whether they
all see the storage) is looked at by the job itself before any work (ray_checks.py), and comes back with its log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import ray
import requests
from ray.job_submission import JobStatus, JobSubmissionClient

from raysweep.config import Config, parse_config
from raysweep.engine.dispatch import Node
from raysweep.engine.ray_backend import RayBackend
from raysweep.engine.ray_token import what_token
from raysweep.errors import InputError, RunError
from raysweep.fingerprint import fingerprint
from raysweep.redaction import redacted

CHECKED = "cluster checked:"  # the job says so once every node was looked at
_ANSWER_SECONDS = 5.0
_POLL_SECONDS = 0.5
_AWAY_SECONDS = 60.0
_SHELL_CODES = {126: "cannot be run", 127: "is not there"}  # what the shell says of the interpreter itself
# As Ctrl-C: what is committed is kept and the run says so. Ray kills what has not ended by then.
_STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "30"}

for _name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # that a package of a few bytes is uploaded is no news

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A submitted job; `address` is its cluster's dashboard."""

    client: JobSubmissionClient
    id: str
    address: str
    python: str

    def follow(self, say: Callable[[str], None], *, until_checked: bool = False) -> int | None:
        """Say the job's log as it comes, and return its exit code; None once it is past its checks, if that is enough.

        Raises RunError where the job ended without an exit code of its own, InputError where its interpreter has no raysweep.
        """
        log = ""
        for text in _lines(self):
            say(text)
            log = (log + text)[-4000:]
            if until_checked and CHECKED in log:
                return None
        return self._exit_code(log)

    def command(self, what: str) -> str:
        """For messages: Ray's own command about this job."""
        return f"ray job {what} {self.id} --address {redacted(self.address)}"

    def stop(self, *, wait: bool = True) -> None:
        """Stop it as Ctrl-C does, and wait until it has ended."""
        self.client.stop_job(self.id)
        if wait:
            _ended(self)

    def _exit_code(self, log: str) -> int:
        info = _ended(self)
        code: int | None = info.driver_exit_code
        if code in _SHELL_CODES:
            raise InputError(
                f"interpreter '{self.python}' {_SHELL_CODES[code]} on the head of the cluster at {self.address}; give the one "
                "that has raysweep there (--python /path/to/python), or activate its environment before `ray start`"
            )
        if code == 1 and "No module named raysweep" in log:
            raise InputError(
                f"interpreter '{self.python}' on the head of the cluster at {self.address} has no raysweep; install it on every "
                "node, or give the interpreter that has it (--python /path/to/python)"
            )
        if info.status == JobStatus.STOPPED:
            raise RunError(f"job {self.id} was stopped; what is committed is kept, and running again resumes it")
        if code is not None and code < 0:
            raise RunError(
                f"job {self.id} was killed (signal {-code}); what is committed is kept, and submitting again resumes it"
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

    Only the config travels, and the files in `working_dir` (but those that its .gitignore names): checkpoints and records
    named by paths outside it must lie under the same paths on every node, as the storage must. Raises InputError where
    nothing answers, the token is not the cluster's, or there is not the room that the config asks for; no job is made then.
    """
    url = dashboard_url(address)
    if working_dir is not None and not working_dir.is_dir():
        raise InputError(f"--working-dir '{working_dir}' is no folder")
    config = travelling(config, working_dir)
    headers = check_dashboard_answers(url)
    RayBackend(config.execution.model_copy(update={"address": url})).settle(
        config.execution.device, nodes_of(url, headers)
    )
    name = f"raysweep-{fingerprint(config.model_dump(mode='json'))[:16]}.yaml"
    chosen = [option for option, asked in (("--fresh", fresh), ("--wait", wait_for_folder)) if asked]
    arguments = ["run", name, "--executor", "ray", *chosen]
    with _folder_with(name, config.to_yaml(), working_dir) as folder, _told(url):
        client = _client(url)
        job = client.submit_job(
            entrypoint=" ".join([python, "-m", "raysweep", *map(shlex.quote, arguments)]),
            runtime_env={"working_dir": str(folder), "env_vars": _STOPPING},
            metadata=metadata(config),
        )
    return Job(client, job, url, python)


def dashboard_url(address: str) -> str:
    """The URL of a dashboard, from a URL or host:port. Raises InputError for what is neither."""
    url = address if "://" in address else f"http://{address}"
    scheme, _, rest = url.partition("://")
    port = rest.rstrip("/").rpartition(":")[2]
    if scheme not in ("http", "https") or not rest.strip("/") or (scheme == "http" and not port.isdecimal()):
        raise InputError(
            f"--address '{redacted(address)}' is no dashboard's; give http://HOST:8265 (the dashboard, not the head's port 6379)"
        )
    return url.rstrip("/")


def check_dashboard_answers(url: str) -> Mapping[str, str]:
    """The headers to ask with. Raises InputError unless a Ray dashboard answers at `url`, and takes this process's token."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    headers = dict(get_auth_headers_if_auth_enabled({}))
    try:
        answer = requests.get(f"{url}/api/version", headers=headers, timeout=_ANSWER_SECONDS, allow_redirects=False)
    except requests.exceptions.RequestException as error:
        raise InputError(
            f"nothing answers at {redacted(url)} ({type(error).__name__}); is the cluster up, and is this its dashboard "
            "(port 8265 by default, and on the head's loopback unless it was started otherwise)?"
        ) from error
    if answer.status_code in (401, 403):
        raise InputError(
            f"the cluster at {redacted(url)} asks for a token, and {what_token()}; give its token in RAY_AUTH_TOKEN, or in the "
            "file that RAY_AUTH_TOKEN_PATH names (~/.ray/auth_token by default)"
        )
    try:
        theirs = str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"what answers at {redacted(url)} is no Ray dashboard; give http://HOST:8265 of the cluster's head"
        ) from None
    if theirs != ray.__version__:
        raise InputError(
            f"the cluster at {redacted(url)} has Ray {theirs}, and this process has Ray {ray.__version__}; use the same on both"
        )
    return headers


def nodes_of(url: str, headers: Mapping[str, str]) -> list[Node]:
    """The living nodes of the cluster, with all that they have, from its dashboard. Raises InputError where it does not say."""
    try:
        answer = requests.get(
            f"{url}/api/v0/nodes",
            headers=dict(headers),
            params={"detail": "1", "limit": "10000"},
            timeout=_ANSWER_SECONDS,
        )
        answer.raise_for_status()
        found = answer.json()["data"]["result"]["result"]
        alive = [node["resources_total"] for node in found if node["state"] == "ALIVE"]
    except (requests.exceptions.RequestException, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the dashboard at {redacted(url)} does not tell its nodes ({type(error).__name__})"
        ) from error
    return [Node(has.get("CPU", 0.0), has.get("GPU", 0.0)) for has in alive]


def metadata(config: Config) -> dict[str, str]:
    """What the job's page says of it; without secrets, for everybody who sees the dashboard reads it."""
    about = {
        "name": config.name,
        "config": fingerprint(config.model_dump(mode="json"))[:16],
        "storage": config.storage,
        "raysweep": version("raysweep"),
    }
    return redacted(about)


def travelling(config: Config, working_dir: Path | None) -> Config:
    """The config as it means the same on the cluster: executor ray, and paths absolute unless `working_dir` has them."""

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
    """The folder that travels, with the config in it under `name` for as long as it is packed."""
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raysweep-submit-")))
        path = folder / name
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"the config cannot be put into --working-dir '{folder}' ({error.strerror or error}), from where it travels; "
                "make it writable, or leave --working-dir out"
            ) from error
        stack.callback(path.unlink, missing_ok=True)
        yield folder


def _client(url: str) -> JobSubmissionClient:
    """A client of the dashboard that was checked; Ray's own would go to RAY_ADDRESS instead, where that is set."""
    others = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:
        return JobSubmissionClient(url)
    finally:
        os.environ.update(others)


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """What the cluster answers to a submission in words: a package that is too large, a server that fails."""
    try:
        yield
    except (RuntimeError, ValueError, ConnectionError, requests.exceptions.RequestException) as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        if "No available agent" in words:
            raise InputError(
                f"the job agent of the head of {redacted(url)} does not answer; its port (52365) may be taken there: start the "
                "head with another (ray start --head --dashboard-agent-listen-port=…)"
            ) from error
        raise InputError(f"the cluster at {redacted(url)} took no job ({redacted(words)})") from error


def _lines(job: Job) -> Iterator[str]:
    """The job's log as it grows, until the job has ended. The whole log is fetched each time, a long one less often."""
    said = 0
    while True:
        ended = _asked(job, job.client.get_job_status).is_terminal()  # before the log, whose end is not missed so
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


def _asked(job: Job, ask: Callable[[str], T]) -> T:
    """The dashboard's answer about the job. Raises RunError where it gives none for a while; the job goes on by itself."""
    until = time.monotonic() + _AWAY_SECONDS
    while True:
        try:
            return ask(job.id)
        except (RuntimeError, ConnectionError, requests.exceptions.RequestException) as error:
            if time.monotonic() > until:
                raise RunError(
                    f"the dashboard at {redacted(job.address)} does not answer any more ({type(error).__name__}); the job "
                    f"{job.id} may still be running: look again with {job.command('logs --follow')}"
                ) from error
            time.sleep(_POLL_SECONDS)
