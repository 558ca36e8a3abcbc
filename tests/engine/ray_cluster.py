"""A real Ray head of its own for tests, started and stopped by `ray`, and runs of the command line on it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# The tests' own clusters ask for a token, as Ray's own local ones do; read when Ray first connects.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def head(cpus: int = 4, gpus: int = 4, watched: Path | None = None) -> Iterator[str]:
    """The address of a head with so many CPU slots and (pretended) GPUs.

    With `watched` metrics go out every second, and that file is a link to the one in which Prometheus finds the node.
    """
    port = free_port()
    folder = tempfile.mkdtemp(prefix="rs-ray-", dir="/tmp")  # sockets lie below it, whose paths must be short
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += [f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--temp-dir={folder}"]
    command += ["--include-dashboard=false"] if watched is None else [f"--dashboard-port={free_port()}"]
    if watched is not None:
        watched.symlink_to(Path(folder) / "prom_metrics_service_discovery.json")
        command += ['--system-config={"metrics_report_interval_ms": 1000}']
    command += ["--object-store-memory=100000000", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    log = Path(folder) / "start.log"
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + 60
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def start(arguments: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """`raysweep …` as a process of its own, its output kept."""
    return subprocess.Popen(
        [sys.executable, "-m", "raysweep", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def descendants(pid: int) -> dict[int, str]:
    """The processes below `pid`, with their command lines."""
    import psutil

    found = {}
    for process in psutil.Process(pid).children(recursive=True):
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
