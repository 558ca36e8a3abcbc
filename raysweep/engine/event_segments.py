"""The log of a run in an object store: <folder>/000001-<token>.jsonl, …, in the order of their names.

An object cannot be appended to. The last segment is published again with what was added every few seconds, and once it is large
the next one is begun; the token is the writer's own, so nobody replaces another writer's segment. A kill loses the events of
the last seconds; commits are found by their manifests, and a later run logs those that were lost.

A writer that was paused and lost the run's lock may still publish segments. So every log that is opened begins with a line that
has the writer's number in the lock and lists the segments that were there, with their sizes. It closes them: of writers with lower
numbers, readers count those bytes and nothing that was added later.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysweep.store.places import listing, put_bytes, read_bytes, read_many

if TYPE_CHECKING:
    from upath import UPath

SECONDS = 2.0
SEGMENT_BYTES = 2**18
LOG_OPENED = "log_opened"
_NAME = re.compile(r"(?P<number>\d{6,})-(?P<token>[0-9a-f]{8})\.jsonl")
_AT_A_TIME = 8  # segments in memory while a log is read


class Segments:
    """Lines, published every few seconds and when they are closed."""

    def __init__(self, folder: UPath, holder: int) -> None:
        self._folder, self._holder = folder, holder
        self._token = secrets.token_hex(4)
        there = {name: int(info["size"]) for name, info in listing(folder).items() if _NAME.fullmatch(name)}
        self._number = max(map(_number, there), default=0) + 1
        self._lines = bytearray(_opening(holder, there))  # of the segment that is being written
        self._unsent = True
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
            self._number, self._lines, self._unsent = self._number + 1, bytearray(_opening(self._holder, {})), True
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


def is_segment(name: str) -> bool:
    """Return whether a file of a log's folder has a segment's name."""
    return _NAME.fullmatch(name) is not None


def segment_lines(folder: UPath) -> Iterator[str]:
    """Yield the lines of a log in an object store, oldest first, including torn ones; a few segments are in memory at a time."""
    for _, content in segments(folder):
        lines = content.decode("utf-8", errors="replace").removesuffix("\n").split("\n")
        yield from (line for line in lines if not line.startswith(_OPENED))


def segments(folder: UPath) -> Iterator[tuple[str, bytes]]:
    """Yield the name of each segment that counts and what counts of it, oldest first."""
    sizes = {name: int(info["size"]) for name, info in listing(folder).items() if is_segment(name)}
    counted = counted_bytes(sizes, _openings(folder, sizes))
    names = sorted(counted)
    for start in range(0, len(names), _AT_A_TIME):
        read = read_many(folder, {name: counted[name] for name in names[start : start + _AT_A_TIME]})
        yield from sorted(read.items())


@dataclass(frozen=True)
class Opening:
    """What a writer found when it opened the log: the sizes of the segments that were there.

    `holder` is its number in the lock, `number` that of its first segment.
    """

    holder: int
    number: int
    token: str
    found: Mapping[str, int]


def counted_bytes(sizes: Mapping[str, int], openings: Iterable[Opening]) -> dict[str, int]:
    """Return how many bytes of each segment count, for those that do.

    A segment counts as far as every writer that held the lock after the segment's own writer found it.
    """
    order: dict[str, tuple[int, int]] = {}  # of writers
    for name in sorted(sizes, reverse=True):
        order[_token(name)] = (0, _number(name))  # of one that wrote no opening, before there were any
    opened = list(openings)
    order |= {opening.token: (opening.holder, opening.number) for opening in opened}
    counted = dict(sizes)
    for opening in opened:
        for name in sizes:
            if order[_token(name)] < order[opening.token]:
                counted[name] = min(counted[name], opening.found.get(name, 0))
    return {name: size for name, size in counted.items() if size}


_OPENED = f'{{"event": "{LOG_OPENED}"'


def _opening(holder: int, there: Mapping[str, int]) -> bytes:
    return (json.dumps({"event": LOG_OPENED, "holder": holder, "found": dict(there)}) + "\n").encode()


def _openings(folder: UPath, sizes: Mapping[str, int]) -> Iterator[Opening]:
    """What the writers of a log found, each from the first line of its first segment; older logs have none."""
    first: dict[str, str] = {}
    for name in sorted(sizes):
        first.setdefault(_token(name), name)
    for token, name in first.items():
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            line, end, _ = read_bytes(folder / name).partition(b"\n")
            said: Any = json.loads(line) if end else {}
            if said["event"] == LOG_OPENED:
                found = {key: int(size) for key, size in said["found"].items()}
                yield Opening(int(said["holder"]), _number(name), token, found)


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _token(name: str) -> str:
    return name.partition("-")[2]
