"""A lock in an object store: numbered objects, of which the highest holds, made exclusively and kept alive by a heartbeat.

<path>/000001 says who holds the lock and how often its holder has said so since. A holder that ends marks its object as let
go of; one that has not been heard of for a while is taken to be dead, as is one whose process is gone from this machine.
Whoever takes over makes the object of the next number, which the store lets only one of two do (If-None-Match: S3, Google,
Azure; a store that does not know it keeps two apart unless they start in the same instant), and then looks again: a process
that was paused between looking and creating may have created a number that others have since used and removed. Ages are measured by
the store's own clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.store.artifacts import is_alive
from raysweep.store.lock import HeldError
from raysweep.store.places import create, listing, put_bytes, read_bytes

if TYPE_CHECKING:
    from upath import UPath

BEAT_SECONDS = 20.0
STALE_SECONDS = 120.0


@dataclass(frozen=True)
class Holder:
    """Who made the highest object of a lock. `stale`: it still claims to hold it, and is dead."""

    number: int
    words: str
    held: bool
    stale: bool


class LostError(Exception):
    """Another process has taken the lock over."""


class Held:
    """A lock that is held: `check` tells whether it still is."""

    def __init__(self, place: UPath, said: dict[str, Any]) -> None:
        self._place, self._said = place, said
        self.number = int(place.name)  # higher than that of whoever held it before
        self._end = threading.Event()
        self._lost = False
        self._beats, self._heard = 0, _now()
        self._thread = threading.Thread(target=self._keep_beating, name="raysweep lock", daemon=True)
        self._thread.start()

    def check(self, *, ask: bool = True) -> None:
        """Raise LostError if another process has taken the lock over, or the lock was removed.

        The store is asked, with one listing. With `ask` False it is asked only if the last heartbeat is so old that another process
        may be about to take over; then this process also says that it is alive. Raises what the store raises.
        """
        if not self._lost and _now() - self._heard > STALE_SECONDS:
            self._beat()
        elif not self._lost and ask:
            self._look()
        if self._lost:
            raise LostError(str(self._place))

    def let_go(self) -> None:
        """Say that nobody holds the lock; where the store cannot be told, it takes the holder to be dead before long."""
        self._end.set()
        self._thread.join(timeout=10)
        if not self._lost:
            with contextlib.suppress(Exception):
                self._say(released=True)

    def _keep_beating(self) -> None:
        while not self._lost and not self._end.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):  # the store may be away for a while; the next beat tries again
                self._beat()

    def _beat(self) -> None:
        """Say once more that the lock is held, unless it is another's."""
        began = _now()  # a process may be paused between looking and saying, for long enough to lose the lock
        self._look()
        if not self._lost:
            self._beats += 1
            self._say(beats=self._beats)
            self._heard = began

    def _look(self) -> None:
        last = highest(self._place.parent)
        self._lost = last is None or last.name != self._place.name

    def _say(self, **more: Any) -> None:
        put_bytes(self._place, json.dumps({**self._said, **more}).encode())


@contextlib.contextmanager
def hold_object(path: UPath) -> Iterator[Held]:
    """Hold the lock at `path` while the context lasts. Raises HeldError, naming the holder, where another process does."""
    said = {
        "token": secrets.token_hex(8),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "machine": machine(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    last = holder(path)
    if last is not None and last.held and not last.stale:
        raise HeldError(last.words)
    place = path / f"{last.number + 1 if last else 1:06d}"
    with _released_if_interrupted(place, said):
        # If the answer was lost and it was tried again, it is there, and ours.
        create(place, json.dumps(said).encode())
        now = json.loads(read_bytes(place))
        if now["token"] != said["token"]:
            raise HeldError(_words(now))
        latest = holder(path)
    if latest is None or latest.number != int(place.name):
        place.unlink(missing_ok=True)
        raise HeldError(latest.words if latest else "process unknown")
    held = Held(place, said)
    try:
        _remove_below(path, place.name)
        yield held
    finally:
        held.let_go()


@contextlib.contextmanager
def _released_if_interrupted(place: UPath, said: dict[str, Any]) -> Iterator[None]:
    """Release the lock if a signal comes while it is being taken; otherwise nobody gets in until it is stale."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        with contextlib.suppress(Exception):
            if json.loads(read_bytes(place))["token"] == said["token"]:
                put_bytes(place, json.dumps({**said, "released": True}).encode())
        raise


def _remove_below(path: UPath, own: str) -> None:
    for name in sorted(listing(path)):
        if name < own:
            (path / name).unlink(missing_ok=True)


def highest(path: UPath) -> UPath | None:
    """The object that tells of the lock at `path`; None where it was never held."""
    names = sorted(name for name in listing(path) if name.isdecimal())
    return path / names[-1] if names else None


def holder(path: UPath) -> Holder | None:
    """Who holds the lock at `path`, or did last; None where nobody ever did."""
    place = highest(path)
    if place is None:
        return None
    try:
        said = json.loads(read_bytes(place))
        words = _words(said)
    except (ValueError, KeyError, TypeError):
        return Holder(int(place.name), "process unknown", True, _age(path, place) > STALE_SECONDS)
    held = not said.get("released")
    gone = said.get("machine") == machine() and not is_alive(int(said["pid"]))
    return Holder(int(place.name), words, held, held and (gone or _age(path, place) > STALE_SECONDS))


def machine() -> str:
    """This boot of this machine, and the namespace that its process numbers are of."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - what the link says is no path
    except OSError:
        return socket.gethostname()


def _now() -> float:
    """Seconds on a clock that counts while the machine sleeps, and that nobody sets."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _words(said: dict[str, Any]) -> str:
    return f"process {said['pid']} on {said['host']}, since {said['since']}"


def _age(path: UPath, place: UPath) -> float:
    """Seconds since an object was written, by the clock of the store: that of one which is written now."""
    probe = path.parent / f".raysweep-clock-{secrets.token_hex(8)}"
    put_bytes(probe, b"now")
    try:
        return float((_written(probe) - _written(place)).total_seconds())
    finally:
        probe.unlink(missing_ok=True)


def _written(place: UPath) -> datetime:
    when: datetime = place.fs.modified(place.path)
    return when if when.tzinfo else when.replace(tzinfo=UTC)
