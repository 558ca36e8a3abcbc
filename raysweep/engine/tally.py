"""Counts of a run, from its events alone: calls done and to do, their rate, the time left, failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raysweep.engine import events

# After these a call is in flight no more.
_ENDS = {events.CALL_DONE, events.CALL_RETRIED, events.CALL_FAILED, events.CALL_RETURNED, events.CALLS_DROPPED}


@dataclass
class Tally:
    """Calls done and to do by kind, the seconds they took, failures; from events alone."""

    total: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    set_aside: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    running: dict[str, set[str]] = field(default_factory=dict)  # names of calls in flight
    workers: int = 1
    retried: int = 0

    def take(self, event: Mapping[str, Any]) -> None:
        """Take note of one event."""
        name = event["event"]
        if name == events.RUN_STARTED:
            self.total, self.done, self.set_aside, self.seconds = dict(event["calls"]), {}, {}, {}
            self.running, self.retried = {}, 0
        elif name in (events.WORKERS_READY, events.WORKERS_CHANGED):
            self.workers = event["workers"]
        elif name == events.CALL_STARTED:
            self.running.setdefault(kind_of(event["call"]), set()).add(event["call"])
        elif name == events.CALL_DONE:
            kind = kind_of(event["call"])
            self.done[kind] = self.done.get(kind, 0) + 1
            self.seconds[kind] = self.seconds.get(kind, 0.0) + event["measured"].get("seconds", 0.0)
        elif name == events.CALLS_DROPPED:  # not needed: a sweep has stopped early
            for kind, n in event["calls"].items():
                self.total[kind] = self.total.get(kind, 0) - n
        elif name == events.CALL_CUT:  # waiting, into pieces that other workers take
            kind = kind_of(event["call"])
            self.total[kind] = self.total.get(kind, 0) + len(event["calls"]) - 1
        elif name == events.CALL_RETRIED:
            self.retried += 1
        elif name == events.CALL_FAILED:
            kind = kind_of(event["call"])
            self.set_aside[kind] = self.set_aside.get(kind, 0) + 1
        elif name == events.SLOT_QUARANTINED:  # calls that failed for good run again
            for kind in map(kind_of, event["calls"]):
                self.set_aside[kind] = self.set_aside.get(kind, 0) - 1
        if name in _ENDS and "call" in event:
            self.running.get(kind_of(event["call"]), set()).discard(event["call"])

    @property
    def failed(self) -> int:
        """How many calls were set aside, all their attempts having failed."""
        return sum(self.set_aside.values())

    def waiting(self, kind: str) -> int:
        """How many calls of a kind are to be done and no worker has yet, those that must wait for others among them."""
        return self.to_do(kind) - self.in_flight(kind)

    def in_flight(self, kind: str) -> int:
        """How many calls of a kind workers have."""
        return len(self.running.get(kind, ()))

    def to_do(self, kind: str) -> int:
        """How many calls of a kind have not ended."""
        return self.total[kind] - self.done.get(kind, 0) - self.set_aside.get(kind, 0)

    def rate(self, kind: str) -> float | None:
        """Calls of a kind a second while all workers do them; None before the first has ended."""
        seconds = self.seconds.get(kind, 0.0)
        return self.done[kind] / seconds * self.workers if seconds else None

    def left(self, kind: str | None = None) -> float | None:
        """Seconds that the calls of a kind (of all kinds) still take; a kind of which none has ended counts as the mean."""
        if not any(self.seconds.values()):
            return None
        mean = sum(self.seconds.values()) / max(1, sum(self.done.values()))
        left = 0.0
        for each in self.total if kind is None else [kind]:
            n = self.done.get(each, 0)
            left += self.to_do(each) * (self.seconds[each] / n if n else mean)
        return left / max(1, self.workers)

    def words(self, name_of: Callable[[str], str] = str) -> str:
        """One line: each kind's calls and rate, the time left, failures; `name_of` gives the name to show for a kind."""
        parts = []
        for kind, total in self.total.items():
            rate = self.rate(kind)
            running = rate is not None and self.to_do(kind) > 0
            parts.append(f"{name_of(kind)} {self.done.get(kind, 0)}/{total}" + (f" ({rate:.2g}/s)" if running else ""))
        left = self.left()
        if left is not None:
            parts.append(f"{duration(left)} left")
        parts += [f"{n} {word}" for n, word in ((self.failed, "failed"), (self.retried, "tried again")) if n]
        return ", ".join(parts)


def kind_of(call: str) -> str:
    """The kind of a call: the first word of its name."""
    return call.partition(" ")[0]


def duration(seconds: float) -> str:
    """Seconds in words: `42 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
