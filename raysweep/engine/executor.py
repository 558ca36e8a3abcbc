"""What the driver asks of an executor, and the executor in this process.

An executor takes calls and gives outcomes, in any order. It never raises for a call that failed or a worker that died:
that is the outcome. It keeps no results and no queue; who gets which call, and what is tried again, is the driver's.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from raysweep.config_execution import ExecutionConfig
from raysweep.engine.calls import Call, Outcome, TrainCall
from raysweep.engine.deadline import Deadline
from raysweep.engine.dispatch import Slot
from raysweep.engine.events import Listener
from raysweep.engine.inspection import resolve_device
from raysweep.engine.measuring import Measured, T, measure_here
from raysweep.engine.tally import duration
from raysweep.engine.training_work import Tell, untold
from raysweep.engine.work import Worker
from raysweep.errors import InputError, RunError, in_lines

if TYPE_CHECKING:
    from raysweep.store.places import Location


class Executor(Protocol):
    """Workers, by their place in `slots`."""

    @property
    def slots(self) -> Sequence[Slot]:
        """The workers."""

    @property
    def about(self) -> Mapping[str, Any]:
        """Plain values that say where the work is done, for the log."""

    def submit(self, index: int, call: Call) -> None:
        """Hand a call to a worker."""

    def collect(self) -> list[Outcome]:
        """Wait until a submitted call has ended, and give what came of it; of several calls where a worker died."""

    def close(self) -> None:
        """Let go of everything, whatever is still running."""


@runtime_checkable
class LimitsCalls(Protocol):
    """An executor that does not wait forever for a call."""

    def limit_calls(self, deadline_of: Callable[[Call], Deadline]) -> None:
        """Have a deadline for each call that is submitted from now on."""


class Backend(Protocol):
    """Where a run is executed. Nothing is started or joined before it is asked."""

    def check(self, storage: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """See that the work can be done there, and that `storage`, with its `options`, is seen from everywhere there.

        What was found, as plain values; nothing where there is but this process. Raises InputError where it cannot.
        """

    def device(self, asked: str) -> str:
        """The device that `execution.device` means there; raises InputError where it is not to be had."""

    def measure(self, function: Callable[..., T], *arguments: Any) -> Measured[T]:
        """Run a short function where the device is, as a worker would, and return its results. Needs `device` first.

        Where workers are other processes, nothing of the device is used in this one.
        """

    def workers(self) -> int:
        """How many workers there will be, as far as that is known before they are there."""

    def open(self, folder: Location, n_calls: int, tell: Tell = untold) -> Executor:
        """Workers for at most so many calls; raises InputError where they cannot be had.

        `tell` is told how far a call has come that takes long, by its name, where its worker is in this process.
        """

    def train(self, folder: Location, calls: Sequence[TrainCall], tell: Tell = untold) -> Iterator[Outcome]:
        """Run trainings of several processes each, with no workers open, and give what comes of each as it ends."""

    def listener(self, run: str, root: Location) -> Listener | None:
        """Who is told the events of the run of this name in the folder `root`, beside the log; None for nobody."""

    def close(self) -> None:
        """Leave, and stop what was started."""


class LocalExecutor:
    """One worker in this process; a call runs when its outcome is collected.

    It cannot be replaced: once its CUDA context is dead, the next call ends the run.
    """

    slots = (Slot(),)
    about: Mapping[str, Any] = {"executor": "local", "workers": 1}

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._calls: deque[Call] = deque()
        self._lost: Outcome | None = None  # the call that left this process without a usable device
        self._deadline_of: Callable[[Call], Deadline] = lambda call: Deadline()

    def limit_calls(self, deadline_of: Callable[[Call], Deadline]) -> None:
        """Warn on standard error of a call that takes longer: in this process it cannot be given up."""
        self._deadline_of = deadline_of

    def submit(self, index: int, call: Call) -> None:
        """Queue the call; raises RunError if an earlier one has left the CUDA context dead."""
        if self._lost is not None:
            raise RunError(
                f"the CUDA context of this process is dead since '{self._lost.call.name}' ({in_lines(Exception(self._lost.error))}), "
                "so no other call can run in it; committed work is kept. Run again, which continues from it. If this comes "
                "back, check the GPU (nvidia-smi -q, dmesg)"
            )
        self._calls.append(call)

    def collect(self) -> list[Outcome]:
        """Run the oldest queued call."""
        call = self._calls.popleft()
        with _overdue_warned(call, self._deadline_of(call)):
            outcome = self._worker.attempt(call)
        if outcome.error is not None and outcome.failure == "lost":
            self._lost = outcome
        return [outcome]

    def close(self) -> None:
        """Drop queued calls and loaded models. With a dead CUDA context the models stay: freeing them there would raise."""
        self._calls.clear()
        if self._lost is None:
            self._worker.unload()


@contextmanager
def _overdue_warned(call: Call, limit: Deadline) -> Iterator[None]:
    """Print a warning once the call has taken longer than it should."""
    if limit.seconds is None:
        yield
        return
    words = f"warning: '{call.name}' still runs after {duration(limit.seconds)} ({limit.words}); Ctrl-C ends the run"
    timer = threading.Timer(limit.seconds, print, [words], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class LocalBackend:
    """This process; its worker keeps so many checkpoints `resident`."""

    def __init__(self, resident: int = 2) -> None:
        self.resident = resident

    def check(self, storage: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Nothing to be looked at that inspection does not look at."""
        return {}

    def device(self, asked: str) -> str:
        """A device of this machine."""
        return resolve_device(asked)

    def measure(self, function: Callable[..., T], *arguments: Any) -> Measured[T]:
        """Run the function in this process, which is the worker."""
        return measure_here(function, *arguments)

    def workers(self) -> int:
        """One."""
        return 1

    def open(self, folder: Location, n_calls: int, tell: Tell = untold) -> Executor:
        """The executor in this process."""
        return LocalExecutor(Worker(folder, self.resident, tell))

    def train(self, folder: Location, calls: Sequence[TrainCall], tell: Tell = untold) -> Iterator[Outcome]:
        """Refused when the config is read: several processes are started through Ray."""
        raise ValueError(f"'{calls[0].name}' has {calls[0].processes} processes, and the local executor has one")

    def listener(self, run: str, root: Location) -> None:
        """Nobody: metrics are Ray's."""

    def close(self) -> None:
        """Nothing was started."""


def backend_for(execution: ExecutionConfig) -> Backend:
    """The backend that a config asks for; nothing is started yet. Raises InputError for workers that this process is not."""
    if execution.executor == "ray":
        from raysweep.engine.ray_token import use_token

        use_token(starting=not (execution.address or os.environ.get("RAY_ADDRESS")))
        from raysweep.engine.ray_backend import RayBackend

        return RayBackend(execution)
    if execution.workers not in ("auto", 1):
        raise InputError(
            f"execution.workers asks for {execution.workers} workers, and execution.executor is local, which is one worker in this "
            "process; give --executor ray, which starts them on this machine or joins a cluster (--address), or workers: auto"
        )
    return LocalBackend(execution.resident)
