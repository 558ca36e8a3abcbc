"""Progress on standard error: a live table in a terminal, a plain line every few seconds elsewhere.

What is shown is counted from the run's events in engine/tally.py; it is drawn here. The unit is a call: what a worker does in one go,
such as the sweep of a chunk, or a table.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from raysweep.cli_verbosity import Verbosity
from raysweep.engine import events
from raysweep.engine.standing import kind_name
from raysweep.engine.tally import Tally, duration, kind_of
from raysweep.terminal import printable

_SECONDS_BETWEEN_LINES = 5.0
_CHECKING = ""  # in place of a kind of call: the row before the first call
_ALWAYS = {
    events.CALL_FAILED,
    events.SLOT_QUARANTINED,
    events.RUN_UNLOCKED,
    events.CLUSTER_CHECKED,
}  # also printed with --quiet


class Progress:
    """Listens to a run's events; use as a context manager, and as the run's listener."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, verbosity: Verbosity = Verbosity.NORMAL) -> None:
        self._clock = clock
        self._is_quiet, self._is_verbose = verbosity is Verbosity.QUIET, verbosity is Verbosity.VERBOSE
        self._live = sys.stderr.isatty() and not self._is_quiet
        self._tally = Tally()
        self._started = self._printed = clock()
        self._bars: Any = None
        self._rows: dict[str, Any] = {}
        self._reasons: set[str] = set()  # of failures that have their line
        self.has_started = False  # the run: what it does is in its log from here on

    def __enter__(self) -> Progress:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bars
            from rich.table import Column

            columns = (
                TextColumn("{task.description:<11}"),
                BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=20)),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:>8} {task.fields[left]:>11}"),
                TextColumn("{task.fields[now]}", markup=False, table_column=Column(ratio=2, no_wrap=True)),
            )
            self._bars = Bars(*columns, console=Console(stderr=True), expand=True)
            self._bars.start()
            self._rows[_CHECKING] = self._bars.add_task("checking", total=None, rate="", left="", now="models and data")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._checked()
            with contextlib.suppress(OSError):  # a terminal that was closed
                self._bars.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event of the run."""
        name = event["event"]
        self._tally.take(event)
        if name == events.RUN_STARTED:
            self.has_started = True
        if not self._is_quiet or name in _ALWAYS:
            self._show(name, event)
        if self._is_verbose:
            self._show_step(name, event)
        self._update_rows(event)

    def _show(self, name: str, event: Mapping[str, Any]) -> None:
        if name == events.CLUSTER_CHECKED:
            self._line(
                f"cluster checked: {_counted(event['nodes'], 'node')} with the same package versions as this process and access to the storage"
            )
        elif name == events.WORKERS_UNMEASURED:
            self._line(
                f"warning: no worker could be measured, because {event['why']}: the plan has no times, and execution.residency auto "
                "loads complete models unless execution.memory is set"
            )
        elif name == events.FOLDER_AWAITED:
            self._line(
                f"run folder '{event['folder']}' is in use by another raysweep ({event['holder']}); waiting for it to end"
            )
        elif name == events.RUN_STARTED:
            self._line(_beginning(event))
            self._add_rows()
        elif name == events.WORKERS_READY and event["executor"] != "local":
            board = f", dashboard http://{event['dashboard']}" if event["dashboard"] else ""
            self._line(f"{_counted(event['workers'], 'worker')} of {event['each']} on {event['executor']}{board}")
        elif name == events.WORKERS_CHANGED:
            self._line(f"{_counted(event['workers'], 'worker')} left")
        elif name == events.CALL_FAILED:
            self._failed(event)
        elif name == events.WORKER_GIVEN_UP:
            self._line(f"replacing a worker: {event['call']}: {event['error']}")
        elif name == events.SLOT_QUARANTINED:
            where = (f" on {event['host']}" if event["host"] else "") + (
                f", GPU {event['gpu']}" if event["gpu"] else ""
            )
            self._line(
                f"warning: {event['worker']}{where} gets no more calls: its last {event['failures']} failed, and "
                f"'{event['witness']}' completed on another worker; its failure here: {_first(event['error'])}"
            )
        elif name == events.CALL_GOES_ON:
            self._goes_on(event)
        elif name == events.CALL_DONE and not self._live:
            if self._clock() - self._printed >= _SECONDS_BETWEEN_LINES:
                self._line(self._tally.words(kind_name))
        elif name == events.MEMORY_SHORT:
            self._line(f"out of memory: {event['call']} continued in batches of {event['batch_tokens']} tokens")
        elif name == events.TASKS_REDONE:
            self._line(event["why"])
        elif name == events.RUN_UNLOCKED:
            self._line(
                f"warning: the file system of '{event['folder']}' has no file locks, so nothing keeps a second raysweep out of this "
                "folder; run one at a time there"
            )
        elif name == events.TRACKER_FAILED:
            self._line(f"logging to {event['tracker']} stopped: {_first(event['error'])}")
        elif name == events.CALLS_DROPPED and self._bars:
            for kind in event["calls"]:
                self._bars.update(self._rows[kind], total=self._tally.total[kind])
        elif name == events.CALL_CUT and self._bars:
            kind = kind_of(event["call"])
            self._bars.update(self._rows[kind], total=self._tally.total[kind])

    def _show_step(self, name: str, event: Mapping[str, Any]) -> None:
        """Each step as it begins and ends, and the traceback of a failure."""
        if name == events.CALL_STARTED:
            self._line(f"started: {event['call']}")
        elif name == events.CALL_DONE:
            seconds = event["measured"].get("seconds")
            self._line(f"done: {event['call']}" + ("" if seconds is None else f" in {seconds:.1f} s"))
        elif name == events.CALL_CUT:
            self._line(f"split into {len(event['calls'])} pieces: {event['call']}")
        elif name == events.CALL_RETURNED:
            self._line(f"not started, waiting for another worker: {event['call']}")
        elif name == events.CALL_RETRIED:
            self._line(
                f"attempt {event['attempt']} of {event['attempts']} failed: {event['call']}: {_first(event['error'])}"
            )
        elif name == events.TASK_DONE:
            self._line(f"task done: {event['task']}")
        if name in (events.CALL_RETRIED, events.CALL_FAILED) and event.get("traceback"):
            self._line(event["traceback"].rstrip())

    def _checked(self) -> None:
        """Take the row of the checks away."""
        if _CHECKING in self._rows:
            self._bars.remove_task(self._rows.pop(_CHECKING))

    def _add_rows(self) -> None:
        if self._bars:
            self._checked()
            for kind, total in self._tally.total.items():
                self._rows[kind] = self._bars.add_task(kind_name(kind), total=total, rate="", left="", now="")

    def _update_rows(self, event: Mapping[str, Any]) -> None:
        kind = kind_of(event["call"]) if "call" in event else ""
        if kind not in self._rows:
            return
        rate, left = self._tally.rate(kind), self._tally.left(kind)
        running = event["event"] == events.CALL_STARTED
        ended = self._tally.to_do(kind) == 0
        now = printable(event["call"].partition(" ")[2]) if running else ""
        self._bars.update(
            self._rows[kind],
            completed=self._tally.done.get(kind, 0),
            rate="" if rate is None else f"{rate:.2g}/s",
            left="" if left is None or ended else f"{duration(left)} left",
            **({"now": now} if running or ended else {}),
        )

    def _failed(self, event: Mapping[str, Any]) -> None:
        """A failure in one line, once its last attempt has failed; calls that fail for the same reason share the first's line."""
        reason = _first(event["error"])
        if reason not in self._reasons:
            self._reasons.add(reason)
            self._line(f"failed: {event['call']}: {reason}")

    def _goes_on(self, event: Mapping[str, Any]) -> None:
        """How far a training has come: next to its bar, or as a line if none was printed for a while."""
        far = f"{event['call']}: step {event['step']} of {event['of']}, {event['split']} loss {event['loss']:.4g}"
        kind = kind_of(event["call"])
        if kind in self._rows:
            self._bars.update(self._rows[kind], now=printable(far.partition(" ")[2]))
        elif self._clock() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._line(far)

    def _line(self, text: str) -> None:
        self._printed = self._clock()
        line = printable(f"[{self._printed - self._started:6.1f} s] {text}")
        if self._bars:
            self._bars.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)


def _beginning(event: Mapping[str, Any]) -> str:
    """What is to run, and what is there already."""
    n, done, calls = event["tasks"], event["done"], sum(event["calls"].values())
    if done == n:
        return f"all {_counted(n, 'task')} already done"
    there = f"; {done} of {n} tasks already done" if done else ""
    return f"{_counted(calls, 'call')} to run for {_counted(n - done, 'task')}{there}"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _first(text: str) -> str:
    return text.splitlines()[0] if text else "no reason given"
