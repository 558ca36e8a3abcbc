"""Progress on standard error: a live table in a terminal, a plain line now and then elsewhere.

What is shown is reckoned from the run's events in engine/tally.py; here it is drawn.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from raysweep.engine import events
from raysweep.engine.tally import Tally, duration, kind_of

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Listens to a run's events; use as a context manager, and as the run's listener."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._live = sys.stderr.isatty()
        self._tally = Tally()
        self._started = self._printed = clock()
        self._bars: Any = None
        self._rows: dict[str, Any] = {}
        self._reasons: set[str] = set()  # of failures that have their line

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
        if name == events.CLUSTER_CHECKED:
            nodes = f"{event['nodes']} node{'s' * (event['nodes'] != 1)}"
            self._line(f"cluster checked: {nodes} with the releases of this process, the storage seen from each")
        elif name == events.RUN_STARTED:
            n = sum(event["calls"].values())
            self._line(f"{event['tasks']} tasks, {event['done']} done already; {n} calls to run")
            self._add_rows()
        elif name == events.WORKERS_READY and event["executor"] != "local":
            board = f", dashboard http://{event['dashboard']}" if event["dashboard"] else ""
            self._line(f"{event['workers']} workers of {event['each']} on {event['executor']}{board}")
        elif name == events.WORKERS_CHANGED:
            self._line(f"{event['workers']} worker{'s' * (event['workers'] != 1)} left")
        elif name == events.CALL_FAILED:
            self._failed(event)
        elif name == events.CALL_GOES_ON:
            self._goes_on(event)
        elif name == events.CALL_DONE and not self._live:
            now = self._clock()
            if now - self._printed >= _SECONDS_BETWEEN_LINES:
                self._line(self._tally.words())
        elif name == events.MEMORY_SHORT:
            self._line(f"out of memory: {event['call']} went on in batches of {event['batch_tokens']} tokens")
        elif name == events.RUN_UNLOCKED:
            self._line(
                f"warning: the file system of '{event['folder']}' has no file locks, so nothing keeps a second raysweep out of this "
                "folder; run one at a time there"
            )
        elif name == events.TRACKER_FAILED:
            self._line(f"{event['tracker']} is logged to no more: {_first(event['error'])}")
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

    def _failed(self, event: Mapping[str, Any]) -> None:
        """A failure in one line, once its last attempt has failed; calls that fail for the same reason share the first's line."""
        reason = _first(event["error"])
        if reason not in self._reasons:
            self._reasons.add(reason)
            self._line(f"failed: {event['call']}: {reason}")

    def _goes_on(self, event: Mapping[str, Any]) -> None:
        """How far a training has come: beside its bar, or as a line where none was printed for a while."""
        far = f"{event['call']}: step {event['step']} of {event['of']}, {event['split']} loss {event['loss']:.4g}"
        kind = kind_of(event["call"])
        if kind in self._rows:
            self._bars.update(self._rows[kind], now=far.partition(" ")[2])
        elif self._clock() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._line(far)

    def _line(self, text: str) -> None:
        self._printed = self._clock()
        line = f"[{self._printed - self._started:6.1f} s] {text}"
        if self._bars:
            self._bars.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)


def _first(text: str) -> str:
    return text.splitlines()[0] if text else "no reason given"
