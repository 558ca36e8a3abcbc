"""A real Ray head of its own for tests, started and stopped by `ray`, and runs of the command line on it."""

from __future__ import annotations

import contextlib
import json
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# The tests' own clusters ask for a token, as Ray's own local ones do; read when Ray first connects.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_NOTICED = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}


@contextmanager
def head(cpus: int = 4, gpus: int = 4, visible: str | None = None) -> Iterator[str]:
    """The address of a head with so many CPU slots and (pretended) GPUs, `visible` as CUDA_VISIBLE_DEVICES has them."""
    port = free_port()
    folder = tempfile.mkdtemp(prefix="rs-ray-", dir="/tmp")  # sockets lie below it, whose paths must be short
    how = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}", "--disable-usage-stats"]
    try:
        with _started([*how, f"--system-config={json.dumps(_NOTICED)}"], cpus, gpus, visible):
            yield f"127.0.0.1:{port}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def node(address: str, cpus: int = 4, gpus: int = 0, visible: str | None = None) -> Iterator[Callable[[], None]]:
    """One more node of a cluster; what comes is called to kill it with all its processes."""
    with _started([f"--address={address}"], cpus, gpus, visible) as process:
        yield lambda: os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _started(how: list[str], cpus: int, gpus: int, visible: str | None) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *how]
    command += [f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--object-store-memory=100000000"]
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "start.log"
        with log.open("wb") as out:
            command += ["--node-ip-address=127.0.0.1"]
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        try:
            until = time.monotonic() + 120
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


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
