"""Progress on standard error: a live table in a terminal, a plain line now and then elsewhere.

What is shown is reckoned by `Tally` from the run's events; drawing it is `Progress`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from raysweep.engine import events

_SECONDS_BETWEEN_LINES = 5.0


@dataclass
class Tally:
    """Calls done and to do by kind, the seconds they took, failures; from events alone."""

    total: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    workers: int = 1
    failed: int = 0
    retried: int = 0

    def take(self, event: Mapping[str, Any]) -> None:
        """Take note of one event."""
        name = event["event"]
        if name == events.RUN_STARTED:
            self.total, self.done, self.seconds = dict(event["calls"]), {}, {}
            self.failed = self.retried = 0
        elif name == events.WORKERS_READY:
            self.workers = event["workers"]
        elif name == events.CALL_DONE:
            kind = kind_of(event["call"])
            self.done[kind] = self.done.get(kind, 0) + 1
            self.seconds[kind] = self.seconds.get(kind, 0.0) + event["measured"].get("seconds", 0.0)
        elif name == events.CALLS_DROPPED:  # not needed: a sweep has stopped early
            for kind, n in event["calls"].items():
                self.total[kind] = self.total.get(kind, 0) - n
        elif name == events.CALL_CUT:
            self.total[kind_of(event["call"])] += len(event["calls"]) - 1
        elif name == events.CALL_RETRIED:
            self.retried += 1
        elif name == events.CALL_FAILED:
            self.failed += 1

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
            left += (self.total[each] - n) * (self.seconds[each] / n if n else mean)
        return left / self.workers

    def words(self) -> str:
        """One line: each kind's calls and rate, the time left, failures."""
        parts = []
        for kind, total in self.total.items():
            rate = self.rate(kind)
            running = rate is not None and self.done[kind] < total
            parts.append(f"{kind} {self.done.get(kind, 0)}/{total}" + (f" ({rate:.2g}/s)" if running else ""))
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


class Progress:
    """Listens to a run's events; use as a context manager, and as the run's listener."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._live = sys.stderr.isatty()
        self._tally = Tally()
        self._started = self._printed = clock()
        self._bars: Any = None
        self._rows: dict[str, Any] = {}

    def __enter__(self) -> Progress:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:>9} {task.fields[left]:>12}  {task.fields[now]}", markup=False),
            )
            self._bars = Bars(*columns, console=Console(stderr=True))
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event of the run."""
        name = event["event"]
        self._tally.take(event)
        if name == events.RUN_STARTED:
            n = sum(event["calls"].values())
            self._line(f"{event['tasks']} tasks, {event['done']} done already; {n} calls to run")
            self._add_rows()
        elif name == events.WORKERS_READY and event["executor"] != "local":
            board = f", dashboard http://{event['dashboard']}" if event["dashboard"] else ""
            self._line(f"{event['workers']} workers of {event['each']} on {event['executor']}{board}")
        elif name == events.CALL_RETRIED:
            self._line(
                f"attempt {event['attempt']} of {event['attempts']} failed: {event['call']}: {_first(event['error'])}"
            )
        elif name == events.CALL_FAILED:
            self._line(f"failed: {event['call']}: {_first(event['error'])}")
        elif name == events.CALL_DONE and not self._live:
            now = self._clock()
            if now - self._printed >= _SECONDS_BETWEEN_LINES:
                self._line(self._tally.words())
        elif name == events.MEMORY_SHORT:
            self._line(f"out of memory: {event['call']} went on in batches of {event['batch_tokens']} tokens")
        elif name == events.CALLS_DROPPED and self._bars:
            for kind in event["calls"]:
                self._bars.update(self._rows[kind], total=self._tally.total[kind])
        elif name == events.CALL_CUT and self._bars:
            kind = kind_of(event["call"])
            self._bars.update(self._rows[kind], total=self._tally.total[kind])
        self._update_rows(event)

    def _add_rows(self) -> None:
        if self._bars:
            for kind, total in self._tally.total.items():
                self._rows[kind] = self._bars.add_task(kind, total=total, rate="", left="", now="")

    def _update_rows(self, event: Mapping[str, Any]) -> None:
        kind = kind_of(event["call"]) if "call" in event else ""
        if kind not in self._rows:
            return
        rate, left = self._tally.rate(kind), self._tally.left(kind)
        running = event["event"] == events.CALL_STARTED
        self._bars.update(
            self._rows[kind],
            completed=self._tally.done.get(kind, 0),
            rate="" if rate is None else f"{rate:.2g}/s",
            left="" if left is None else f"{duration(left)} left",
            **({"now": event["call"].partition(" ")[2]} if running else {}),
        )

    def _line(self, text: str) -> None:
        self._printed = self._clock()
        line = f"[{self._printed - self._started:6.1f} s] {text}"
        if self._bars:
            self._bars.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)


def _first(text: str) -> str:
    return text.splitlines()[0] if text else "no reason given"
