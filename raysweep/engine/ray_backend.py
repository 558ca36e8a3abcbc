"""Joining a Ray cluster, or starting one on this machine, and what there is room for. The workers are ray_executor.py's."""

from __future__ import annotations

import ipaddress
import logging
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray

from raysweep import signals
from raysweep.config_execution import ExecutionConfig
from raysweep.engine.calls import Outcome, TrainCall
from raysweep.engine.dispatch import Node, room_for
from raysweep.engine.events import Listener
from raysweep.engine.executor import Executor
from raysweep.engine.measuring import Measured, T, measure_apart, measure_here
from raysweep.engine.ray_checks import check_nodes
from raysweep.engine.ray_executor import RayExecutor, Share, living_nodes
from raysweep.engine.ray_jobs import enter_job, in_job, refuse_held_gpus
from raysweep.engine.ray_measuring import measure_on_nodes
from raysweep.engine.ray_metrics import RayMetrics
from raysweep.engine.ray_token import is_on, what_token
from raysweep.engine.training_work import Tell, untold
from raysweep.errors import InputError, RunError
from raysweep.store.places import location

if TYPE_CHECKING:
    from raysweep.store.places import Location

_ANSWER_SECONDS = 10.0
_OBJECT_STORE_BYTES = 256 * 2**20  # results are small, and activations do not pass through it


class RayBackend:
    """Ray: the cluster at `address` (or at RAY_ADDRESS, as in a job), else one started on this machine for this run."""

    def __init__(self, execution: ExecutionConfig) -> None:
        self._asked = execution
        self._address = execution.address or os.environ.get("RAY_ADDRESS")
        self._metrics: RayMetrics | None = None
        self._ours = False  # whether it was this object that joined or started
        self._device = "cpu"
        self._dashboard = ""
        self._unmeasured: Measured[Any] | None = None  # the first measurement, if it gave nothing

    def check(self, storage: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Join the cluster where there is an address, and look at every node of it.

        Raises InputError where it cannot be joined, has not the room that is asked for, or has a node with other releases
        or without the storage; and where a dashboard would be open to others without a token.
        """
        if in_job():
            enter_job(storage, self._asked.spill)
        self.device(self._asked.device)
        if not ray.is_initialized():
            return {}
        if in_job():
            refuse_held_gpus()
        return check_nodes(location(storage, options, hasty=True).absolute())

    def device(self, asked: str) -> str:
        """`auto` is cuda where the cluster has GPUs and workers are to have some, else cpu.

        Joins the cluster where there is an address. Raises InputError where it cannot be joined, or has not the room
        that is asked for.
        """
        if self._address and not ray.is_initialized():
            self._join(self._address)
        elif not ray.is_initialized():
            check_dashboard(self._asked.dashboard_host)
        return self.settle(asked, self._nodes())

    def settle(self, asked: str, nodes: list[Node]) -> str:
        """The device on these nodes. Raises InputError where they have not the room that is asked for."""
        some = any(node.gpus for node in nodes) and self._asked.gpus_per_worker != 0
        self._device = asked if asked != "auto" else "cuda" if some else "cpu"
        self._workers(nodes)
        return self._device

    def measure(self, function: Callable[..., T], *arguments: Any) -> Measured[T]:
        """Run the function on GPUs of the cluster, or of this machine in a process that ends. For a CPU, run it in this process.

        If the workers could not be measured once, they are not asked again.
        """
        if not self._device.startswith("cuda"):
            return measure_here(function, *arguments)
        if self._unmeasured is not None:
            return self._unmeasured
        if ray.is_initialized():
            found = measure_on_nodes(self._share, function, *arguments)
        else:
            found = measure_apart(self._share.gpus, function, *arguments)
        self._unmeasured = None if found.values else found
        return found

    def workers(self) -> int:
        """As many as are asked for, or as there is room for: on the cluster that was joined, else on this machine."""
        return self._workers(self._nodes())

    def open(self, folder: Location, n_calls: int, tell: Tell = untold) -> Executor:
        """Workers for at most so many calls, on the cluster, which is started here where there is no address.

        They are other processes, and `tell` is told nothing; `raysweep status` reads how far a training has come.
        """
        if not ray.is_initialized():
            self._start()
        workers = min(self._workers(self._nodes()), n_calls)
        about = {"address": ray.get_runtime_context().gcs_address, "dashboard": self._dashboard}
        return RayExecutor(folder, workers, self._share, self._device, about, self._asked.resident)

    def train(self, folder: Location, calls: Sequence[TrainCall], tell: Tell = untold) -> Iterator[Outcome]:
        """As many trainings at once as the cluster has room for."""
        from raysweep.engine.ray_trainings import run_trainings

        if not ray.is_initialized():
            self._start()
        return run_trainings(folder, calls, self._share, self._device, tell)

    def listener(self, run: str, root: Location) -> Listener:
        """What turns the run's events into Ray's metrics."""
        self._metrics = RayMetrics(run, root)
        return self._metrics

    def close(self) -> None:
        """Leave the cluster, or stop it where it was started here."""
        if self._metrics is not None:
            self._metrics.close()
        if self._ours and ray.is_initialized():
            ray.shutdown()
            self._ours = False

    @property
    def _share(self) -> Share:
        gpus = self._asked.gpus_per_worker
        if gpus == "auto":
            gpus = 1.0 if self._device.startswith("cuda") else 0.0
        return Share(self._asked.cpus_per_worker, gpus)

    def _nodes(self) -> list[Node]:
        if ray.is_initialized():
            return living_nodes()
        import torch

        return [Node(float(os.cpu_count() or 1), float(torch.cuda.device_count()))]

    def _workers(self, nodes: list[Node]) -> int:
        """How many workers: as many as asked for, or as there is room for. Raises InputError where there is not."""
        room = room_for(nodes, self._share.cpus, self._share.gpus)
        where = f"the cluster at {self._address}" if self._address else "this machine"
        has = f"{where} has {sum(n.cpus for n in nodes):g} CPUs and {sum(n.gpus for n in nodes):g} GPUs on {len(nodes)} node{'s' * (len(nodes) != 1)}"
        if self._asked.workers != "auto" and self._asked.workers > room:
            raise InputError(
                f"execution.workers asks for {self._asked.workers} workers of {self._share.words} each, and there is room "
                f"for {room}: {has}; use fewer, or smaller ones (execution.cpus_per_worker, gpus_per_worker)"
            )
        if room == 0:
            raise InputError(
                f"no worker of {self._share.words} fits: {has}; use smaller workers (execution.cpus_per_worker, "
                "gpus_per_worker), "
                "or set execution.device to cpu"
            )
        return room if self._asked.workers == "auto" else self._asked.workers

    def _join(self, address: str) -> None:
        if "://" in address:
            raise InputError(
                f"execution.address '{address}' is a Ray Client address, which raysweep does not support; run on a "
                "node of the cluster "
                "or as a job there, with the head's host:port (6379 by default) or auto"
            )
        if address not in ("auto", "local") and not in_job():  # a job is where its cluster is
            _check_address(address)
        try:
            with _quiet(), _undone():
                context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            if (
                theirs := re.findall(r"(?:Ray|Python): (\S+)", str(error))[:2]
                if "ersion mismatch" in str(error)
                else []
            ):
                raise InputError(
                    f"the Ray cluster at '{address}' has Ray {theirs[0]} and Python {theirs[-1]}, and this process has Ray "
                    f"{ray.__version__} and Python {platform.python_version()}; use the same on both"
                ) from error
            raise InputError(
                f"the Ray cluster at '{address}' cannot be joined ({_words(error)}); is it up, does it have the same Ray "
                f"({ray.__version__}) and Python ({platform.python_version()}), and does this process have its token "
                "(RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token)?"
            ) from error
        self._ours, self._dashboard = True, str(context.dashboard_url or "")

    def _start(self) -> None:
        import torch

        try:
            with _quiet(), _undone():
                context = ray.init(
                    address="local",
                    num_cpus=os.cpu_count(),
                    num_gpus=torch.cuda.device_count(),
                    object_store_memory=_OBJECT_STORE_BYTES,
                    dashboard_host=self._asked.dashboard_host,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except Exception as error:  # starting processes fails in many ways; all mean that there is no Ray here
            raise RunError(
                f"Ray could not be started on this machine ({_words(error)}); executor local does not need Ray"
            ) from error
        self._ours, self._dashboard = True, str(context.dashboard_url or "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Files that Ray makes meanwhile, its authentication token above all, are this user's alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _undone() -> Iterator[None]:
    """What a signal interrupts is undone: nothing that was started here is left. Ray's own SIGTERM handler is replaced."""
    try:
        yield
        signals.renew()
        signals.check()
    except (KeyboardInterrupt, SystemExit):
        ray.shutdown()
        raise


def _check_address(address: str) -> None:
    """Raise InputError unless a Ray head answers there, which `ray.init` would wait for much longer."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise InputError(f"execution.address '{address}' is not an address; give host:port of the head node, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"nothing answers at execution.address '{address}' ({error}); is the cluster up, and is this its head's port "
            "(6379 by default)?"
        ) from error
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "health-check",
        "--address",
        address,
        "--skip-version-check",
    ]
    try:
        asked = subprocess.run(command, timeout=_ANSWER_SECONDS, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        asked = None
    if asked is not None and re.search(r"(?i)unauthenticated|authentication", asked.stderr):
        raise InputError(
            f"the Ray cluster at '{address}' asks for a token, and {what_token()}; give its token in RAY_AUTH_TOKEN, or in the "
            "file that RAY_AUTH_TOKEN_PATH names (~/.ray/auth_token by default)"
        )
    if asked is None or asked.returncode != 0:
        raise InputError(
            f"the service at execution.address '{address}' is not a Ray head; give host:port of the head, or auto"
        )


def check_dashboard(host: str) -> None:
    """Raise InputError where a dashboard on `host` could be reached by others, and would ask them for no token."""
    if not _is_loopback(host) and not is_on():
        raise InputError(
            f"execution.dashboard_host {host} opens the dashboard, which runs any job it is sent, to other machines, "
            "and "
            f"RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', '')} requires no token; unset it or set it to token, or "
            "keep "
            "the dashboard at 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # another name
        return False


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
