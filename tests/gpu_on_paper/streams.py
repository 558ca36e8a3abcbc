"""CUDA's streams on paper: what a side stream copies happens as late as it may, so that a missing wait is seen.

The main stream runs at once. A side stream's copy runs when the main stream, or the host, waits for it: who does not wait
computes with what was there before. Two more mistakes would not show in figures here, and are noted in `errors`: memory on the
device that a side stream overwrites though the main stream may still use it, and a pinned buffer that is filled again though a copy
out of it may still run. A copy to pinned memory that the host did not wait for is not there yet either.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from pretend import Machine, OnGpu, line


@dataclass(eq=False)
class Stream:
    """Copies in order: how many were enqueued, have run, and are known to the host to have run."""

    device: Any = None
    waiting: list[Callable[[], None]] = field(default_factory=list)
    ran: int = 0
    host: int = 0
    waited: int = 0  # up to which of the main stream's operations it waits

    def enqueue(self, copy: Callable[[], None]) -> int:
        self.waiting.append(copy)
        return len(self.waiting)

    def run_to(self, place: int) -> None:
        while self.ran < place:
            self.ran += 1
            self.waiting[self.ran - 1]()
            self.waiting[self.ran - 1] = lambda: None  # what it held is given back

    def known_to(self, place: int) -> None:
        """The host waits until so many have run."""
        self.run_to(place)
        self.host = max(self.host, place)

    def synchronize(self) -> None:
        self.known_to(len(self.waiting))

    def wait_event(self, event: Event) -> None:
        STREAMS.order(self, event)

    def wait_stream(self, other: Stream) -> None:
        event = Event()
        event.record(other)
        self.wait_event(event)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event


class Event:
    """A place in a stream."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.stream: Stream | None = None
        self.place = 0
        self.operations = 0

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or STREAMS.current()
        self.place = len(self.stream.waiting)
        self.operations = STREAMS.machine.operations

    def synchronize(self) -> None:
        if self.stream is not None:
            self.stream.known_to(self.place)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or STREAMS.current()).wait_event(self)

    def query(self) -> bool:
        return self.stream is None or self.stream.host >= self.place


class _Streams:
    """All streams of a test. The main stream is told apart by being `main`."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.main = Stream()
        self.errors: list[str] = []
        self.local = threading.local()
        self.lock = threading.RLock()
        self.out_of: dict[int, tuple[Stream, int]] = {}  # by pinned buffer: its last copy to the device

    def current(self, device: Any = None) -> Stream:
        found: Stream = getattr(self.local, "stream", self.main)
        return found

    @contextmanager
    def use(self, stream: Stream | None) -> Iterator[None]:
        before = self.current()
        self.local.stream = stream or before
        try:
            yield
        finally:
            self.local.stream = before

    def order(self, stream: Stream, event: Event) -> None:
        """Have a stream wait for an event, without the host."""
        if event.stream is None or event.stream is stream:
            return
        with self.lock:
            if event.stream is self.main:
                stream.waited = max(stream.waited, event.operations)
            elif stream is self.main:
                event.stream.run_to(event.place)
            else:
                other, place = event.stream, event.place
                stream.enqueue(lambda: other.run_to(place))

    def copy(self, target: torch.Tensor, source: torch.Tensor, quick: bool) -> bool:
        """Take over a copy that does not happen at once; whether it is one."""
        stream, at = self.current(), self.machine
        to_device = isinstance(target, OnGpu) and not isinstance(source, OnGpu) and at.is_pinned(source)
        to_host = isinstance(source, OnGpu) and not isinstance(target, OnGpu) and at.is_pinned(target)
        with self.lock:
            if quick and to_host:
                arrived, there = source.held.clone(), target
                stream.enqueue(lambda: _write(there, arrived))
                return True
            if quick and to_device:
                self._note_reuse(source, stream)
                if stream is self.main:
                    target.held.copy_(source)  # type: ignore[attr-defined]
                    self.out_of[_address(source)] = (stream, stream.enqueue(lambda: None))
                    return True
                if target.memory is not None and target.memory.used > stream.waited:  # type: ignore[attr-defined]
                    self.errors.append(
                        f"memory of the device is overwritten while the main stream may use it, {line()}"
                    )
                there, data = target.held, source.clone()  # type: ignore[attr-defined]
                self.out_of[_address(source)] = (stream, stream.enqueue(lambda: _write(there, data)))
                return True
        return False

    def _note_reuse(self, source: torch.Tensor, stream: Stream) -> None:
        last = self.out_of.get(_address(source))
        if last is not None and last[1] > last[0].host:
            self.errors.append(f"a pinned buffer is filled again while a copy out of it may run, {line()}")


STREAMS: _Streams


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _write(target: torch.Tensor, source: torch.Tensor) -> None:
    with torch.utils._python_dispatch._disable_current_modes():
        target.copy_(source)


@contextmanager
def late(machine: Machine) -> Iterator[_Streams]:
    """Streams and events of torch.cuda on paper, on a pretended machine."""
    global STREAMS
    STREAMS = streams = _Streams(machine)
    names = {
        "Stream": Stream,
        "Event": Event,
        "current_stream": streams.current,
        "default_stream": lambda device=None: streams.main,
        "stream": streams.use,
    }
    with contextlib.ExitStack() as held:
        for name, value in names.items():
            held.enter_context(mock.patch.object(torch.cuda, name, value))
        machine.copy = streams.copy
        machine.is_main = lambda: streams.current() is streams.main
        try:
            yield streams
        finally:
            machine.copy, machine.is_main = None, lambda: True
