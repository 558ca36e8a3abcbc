"""Real Ray nodes of their own for tests, started and stopped by `ray`, and runs of the command line on them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# The tests' own clusters ask for a token, as Ray's own local ones do; read when Ray first connects.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# A node that is gone is noticed in seconds.
_NOTICED = {
    "prestart_worker_first_driver": False,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
}


@dataclass(frozen=True)
class Started:
    """A node's `ray start`: the address of its cluster, and its process, which all of its others are below."""

    address: str
    pid: int

    def kill(self) -> None:
        """All its processes at once, as a machine that loses its power."""
        os.killpg(self.pid, signal.SIGKILL)


@contextmanager
def head(
    cpus: int = 4,
    gpus: int = 4,
    dashboard: int | None = None,
    visible: str | None = None,
    watched: Path | None = None,
) -> Iterator[str]:
    """The address of a head of its own; see `head_node`."""
    with head_node(cpus, gpus, dashboard, visible, watched) as found:
        yield found.address


@contextmanager
def head_node(
    cpus: int = 4,
    gpus: int = 4,
    dashboard: int | None = None,
    visible: str | None = None,
    watched: Path | None = None,
) -> Iterator[Started]:
    """A head with so many CPU slots and (pretended) GPUs, `visible` as CUDA_VISIBLE_DEVICES has them, and a dashboard on a
    port where one is given.

    With `watched` metrics go out every second, and that file is a link to the one in which Prometheus finds the node.
    """
    port = free_port()
    dashboard = dashboard or (free_port() if watched else None)
    settings = {**_NOTICED, **({"metrics_report_interval_ms": 1000} if watched else {})}
    how = ["--head", f"--port={port}", f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--disable-usage-stats"]
    how += [f"--include-dashboard={dashboard is not None}", f"--system-config={json.dumps(settings)}"]
    how += ["--no-monitor"]  # nothing is scaled
    how += [f"--dashboard-port={dashboard}"] if dashboard else []
    with _running(how, visible, watched=watched) as pid:
        yield Started(f"127.0.0.1:{port}", pid)


@contextmanager
def node(
    address: str, cpus: int = 1, gpus: int = 0, visible: str | None = None, before: str | None = None
) -> Iterator[Started]:
    """One more node of the cluster; in a mount namespace of its own where the shell has run `before`, if that is given."""
    with _running([f"--address={address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"], visible, before) as pid:
        yield Started(address, pid)


@contextmanager
def _running(
    how: Sequence[str], visible: str | None = None, before: str | None = None, watched: Path | None = None
) -> Iterator[int]:
    """`ray start --block`, up; its process, killed in the end with all that it has started."""
    # Of its own, for nodes that share one delete each other's files; sockets lie below it, whose paths must be short.
    folder = tempfile.mkdtemp(prefix="rs-ray-", dir="/tmp")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *how]
    command += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000", f"--temp-dir={folder}"]
    command += ["--include-log-monitor=False"]  # what workers print is not looked at
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    if before is not None:
        as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
        command = ["unshare", "--mount", *as_root, "sh", "-c", f"{before} && exec {shlex.join(command)}"]
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    if watched is not None:
        watched.symlink_to(Path(folder) / "prom_metrics_service_discovery.json")
    log = Path(folder) / "start.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def descendants(pid: int) -> dict[int, str]:
    """The processes below `pid`, with their command lines; workers that were forked for one of them are, too."""
    import psutil

    below = {child.pid: child for child in psutil.Process(pid).children(recursive=True)}
    for file in Path(os.environ["RAYSWEEP_WARM"]).glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            if file.name.isdigit() and int(file.read_text()) in below:
                below[int(file.name)] = psutil.Process(int(file.name))
    found = {}
    for process in below.values():
        try:
            found[process.pid] = " ".join(process.cmdline())
        except psutil.Error:
            continue
    return found


def workers_below(pid: int) -> list[int]:
    """Workers of raysweep below `pid`: Ray gives a worker's process the name of the call that it runs."""
    kind = re.compile(r"ray::(RayWorker|raysweep|capture|substitute|generate|similarity|correlate)")
    return [child for child, command in descendants(pid).items() if kind.match(command)]


def raylet_below(pid: int) -> int | None:
    """The raylet below `pid`."""
    return next((child for child, command in descendants(pid).items() if "/raylet/raylet" in command), None)
