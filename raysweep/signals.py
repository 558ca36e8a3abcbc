"""SIGINT, SIGTERM and SIGHUP end the work in progress in the same way: as an exception in the main thread, then by force.

Ctrl-C, Slurm and Kubernetes, and a terminal that is closed all mean the same: stop, and keep what is committed. The first
signal raises `Interrupted` in the main thread. Python runs no handler while a long operation of a library goes on, so a
watchdog thread hears of the signal from the system itself (`signal.set_wakeup_fd`). If the process has not ended
GRACE_SECONDS later, the watchdog runs the registered last actions and ends it with the same exit code.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

GRACE_SECONDS = 8.0  # from the first signal to the end by force; schedulers allow 10 s or more
LAST_SECONDS = 1.5  # for all last actions together
REPEAT_SECONDS = 1.0  # a closed terminal, or systemd, sends two signals at once; a later one means "now"
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
_CLOSE = b"\0"  # no signal has this number


class Interrupted(KeyboardInterrupt, SystemExit):
    """A signal that ends the program. Uncaught, it ends the process with the exit code 128 + its number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.code = 128 + number


_last_actions: list[Callable[[int], None]] = []
_active: _Handling | None = None


def received() -> int | None:
    """Return the number of the first signal that has come since handling began; None if there was none."""
    if _active is None:
        return None
    return _active.heard if _active.received is None else _active.received


def check() -> None:
    """Raise Interrupted again if a signal has come: an exception raised inside a destructor or a callback is lost."""
    number = received()
    if _active is not None and number is not None:
        _active.received = number
        raise Interrupted(number)


def number_of(error: BaseException) -> int | None:
    """Return the signal behind an exception: what it carries or what has come; SIGINT for any other KeyboardInterrupt."""
    number = error.number if isinstance(error, Interrupted) else received()
    return int(signal.SIGINT) if number is None and isinstance(error, KeyboardInterrupt) else number


def name_of(number: int) -> str:
    """Return the name of a signal, such as `SIGTERM`."""
    return signal.Signals(number).name


def what_happened(number: int) -> str:
    """Return the start of a message: `interrupted` for Ctrl-C, else for example `ended by SIGTERM`."""
    return "interrupted" if number == signal.SIGINT else f"ended by {name_of(number)}"


def stand_down() -> None:
    """Give the process its handlers back and stop the watchdog: what follows takes as long as it takes, or a second signal."""
    if _active is not None:
        _active.restore()


@contextmanager
def last_action(action: Callable[[int], None]) -> Iterator[None]:
    """Have the watchdog call `action` with the signal's number before it ends the process by force.

    It is called from another thread while the main thread is anywhere, and may be cut off after LAST_SECONDS.
    """
    _last_actions.append(action)
    try:
        yield
    finally:
        _last_actions.remove(action)


@contextmanager
def handled(*, program: bool = False) -> Iterator[None]:
    """Raise Interrupted for the signals that come meanwhile; afterwards the process has the handlers that it had before.

    A signal that is ignored stays ignored (SIGHUP under nohup), and so does a handler of the application's own, unless the
    process is raysweep's `program`: once a signal has come, that keeps the handlers and the watchdog until it ends.
    Nothing is done within another `handled`, or outside the main thread, where Python allows no handlers.
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _active = handling = _Handling(program)
    try:
        handling.install()
        yield
    finally:
        if not program or received() is None:
            handling.restore()
            _active = None


def renew() -> None:
    """Install the handlers again after a library has replaced them, as `ray.init` does; do nothing outside `handled`."""
    if _active is not None and threading.current_thread() is threading.main_thread():
        _active.renew()


class _Handling:
    """The handlers of one `handled`, what was there before, and the watchdog."""

    def __init__(self, program: bool) -> None:
        self.received: int | None = None  # by the handler
        self.heard: int | None = None  # by the watchdog: also if a library has replaced the handler
        self._program = program
        self._before: dict[int, Any] = {}
        self._taken: list[int] = []
        self._process = os.getpid()
        self._wakeup = -1
        self._read = self._write = -1
        self._watchdog = threading.Thread(target=self._watch, name="raysweep signals", daemon=True)

    def install(self) -> None:
        self._before = {number: signal.getsignal(number) for number in _NUMBERS}
        self._taken = [number for number, handler in self._before.items() if self._takes(handler)]
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._watchdog.start()
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self.renew()

    def renew(self) -> None:
        for number, handler in self._before.items():
            if number in self._taken:
                signal.signal(number, self._handle)
            elif handler is not None:  # None is one that Python did not install, and cannot put back
                signal.signal(number, handler)

    def restore(self) -> None:
        for number, handler in self._before.items():
            if handler is not None:
                signal.signal(number, handler)
        if self._write >= 0:
            signal.set_wakeup_fd(self._wakeup)
            os.write(self._write, _CLOSE)
            self._watchdog.join()
            os.close(self._write)
            os.close(self._read)
            self._read = self._write = -1

    def forget(self) -> None:
        """In a forked child, whose signals are its own: the pipe is its parent's."""
        signal.set_wakeup_fd(-1)
        for number in self._taken:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def _takes(self, handler: Any) -> bool:
        if handler in (None, signal.SIG_IGN):
            return False
        module = str(getattr(handler, "__module__", ""))
        return self._program or handler in _DEFAULTS or module.partition(".")[0] == "ray"

    def _handle(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:  # a child that was forked a moment ago
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.received is None:
            self.received = number
            raise Interrupted(number)

    def _watch(self) -> None:
        """Wait for the first signal, then for the process to end."""
        until: float | None = None
        first = 0
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._read], [], [], left)[0]:
                break
            for number in os.read(self._read, 64):
                if number == 0:
                    return
                if number not in self._taken:
                    self._pass_on(number)
                elif until is None:
                    self.heard = first = number
                    until = time.monotonic() + GRACE_SECONDS
                elif time.monotonic() > until - GRACE_SECONDS + REPEAT_SECONDS:
                    until = 0.0
        _end_by_force(first)

    def _pass_on(self, number: int) -> None:
        """Tell whoever listened before, such as asyncio, of another signal."""
        if self._wakeup >= 0:
            with contextlib.suppress(OSError):
                os.write(self._wakeup, bytes([number]))


def _end_by_force(number: int) -> None:
    threads = [threading.Thread(target=_quietly, args=(act, number), daemon=True) for act in reversed(_last_actions)]
    until = time.monotonic() + LAST_SECONDS
    words = f"what is still in progress {GRACE_SECONDS:g} s after {name_of(number)} is cut off\n"
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, words.encode())
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    os._exit(128 + number)


def _quietly(action: Callable[[int], None], number: int) -> None:
    with contextlib.suppress(BaseException):
        action(number)


def _in_child() -> None:
    global _active
    if _active is not None:
        handling, _active = _active, None
        handling.forget()


os.register_at_fork(after_in_child=_in_child)
