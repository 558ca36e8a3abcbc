"""The log of a run in an object store: <folder>/000001-<token>.jsonl, …, in the order of their names.

An object cannot be appended to. The last segment is published whole again, with what was added, every few seconds, and once
it is large the next is begun; the token is the writer's own, so that nobody's segment is ever replaced by another's. A kill
loses the events of the last seconds; which commits there are is told by their manifests, and a later run logs those that
were lost.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from typing import TYPE_CHECKING

from raysweep.store.places import listing, put_bytes

if TYPE_CHECKING:
    from upath import UPath

SECONDS = 2.0
SEGMENT_BYTES = 2**18


class Segments:
    """Lines, published every few seconds and when they are closed."""

    def __init__(self, folder: UPath) -> None:
        self._folder = folder
        self._token = secrets.token_hex(4)
        there = [int(number) for number in (name.partition("-")[0] for name in listing(folder)) if number.isdecimal()]
        self._number = max(there, default=0) + 1
        self._lines = bytearray()  # of the segment that is being written
        self._unsent = not there  # an empty segment makes the folder a run's
        self._adding, self._sending = threading.Lock(), threading.Lock()
        self._end = threading.Event()
        self._send()
        self._thread = threading.Thread(target=self._keep_sending, name="raysweep events", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Add a line."""
        with self._adding:
            # Half a surrogate pair (a file name that is no UTF-8, say) is written as JSON's own escape.
            self._lines += line.encode("utf-8", "backslashreplace")
            self._unsent = True

    def clear(self) -> None:
        """Begin anew with an empty segment, and remove those before it."""
        with self._adding:
            self._number, self._lines, self._unsent = self._number + 1, bytearray(), True
        self._send()
        for name in listing(self._folder):
            if name != self._name(self._number):
                (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Publish what is left. Raises what the store raises."""
        self._end.set()
        self._thread.join(timeout=10)
        self._send()

    def _keep_sending(self) -> None:
        while not self._end.wait(SECONDS):
            with contextlib.suppress(Exception):  # what could not be sent is sent with what comes next
                self._send()

    def _send(self) -> None:
        with self._sending:
            with self._adding:
                if not self._unsent:
                    return
                number, lines, self._unsent = self._number, bytes(self._lines), False
            try:
                put_bytes(self._folder / self._name(number), lines)
            except BaseException:
                self._unsent = True
                raise
            with self._adding:
                if number == self._number and len(lines) >= SEGMENT_BYTES:
                    self._number, self._lines = number + 1, self._lines[len(lines) :]

    def _name(self, number: int) -> str:
        return f"{number:06d}-{self._token}.jsonl"
