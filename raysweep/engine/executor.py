"""What the driver asks of an executor, and the executor in this process.

An executor takes calls and gives outcomes, in any order. It never raises for a call that failed: the failure is the
outcome. It keeps no results; what is committed is the driver's.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from raysweep.engine.calls import Call, Outcome
from raysweep.engine.work import Worker


class Executor(Protocol):
    """Runs calls. `capacity` is how many may be submitted and not yet collected."""

    capacity: int

    def submit(self, call: Call) -> None:
        """Take a call."""

    def collect(self) -> Outcome:
        """Wait for a submitted call to end, and give its outcome."""

    def close(self) -> None:
        """Let go of everything, whatever is still running."""


class LocalExecutor:
    """One worker in this process; a call runs when its outcome is collected."""

    capacity = 1

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._calls: deque[Call] = deque()

    def submit(self, call: Call) -> None:
        """Queue the call."""
        self._calls.append(call)

    def collect(self) -> Outcome:
        """Run the oldest queued call."""
        return self._worker.attempt(self._calls.popleft())

    def close(self) -> None:
        """Drop queued calls and loaded models."""
        self._calls.clear()
        self._worker.unload()
