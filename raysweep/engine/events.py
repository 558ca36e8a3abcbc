"""The log of a run: events.jsonl, one JSON object a line, appended and flushed as things happen.

In an object store, which cannot append, it is segments of such lines (event_segments.py), each published whole.

`chunk_committed` appears once for every commit, so the log shows that nothing is computed twice. The names of events are
constants here; readers skip a line that a kill has torn.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.engine.event_segments import Segments, segment_lines
from raysweep.redaction import redacted
from raysweep.store.artifacts import publish

if TYPE_CHECKING:
    from raysweep.store.places import Location

CLUSTER_CHECKED = "cluster_checked"  # told before there is a log, so in none
WORKERS_UNMEASURED = "workers_unmeasured"  # reported before the log is this run's, so not in it
FOLDER_AWAITED = "folder_awaited"  # reported before the log is this run's, so not in it
TRACKER_FAILED = "tracker_failed"  # told beside the log, so in none
RUN_STARTED = "run_started"
WORKERS_READY = "workers_ready"
WORKERS_CHANGED = "workers_changed"
CALL_STARTED = "call_started"
CALL_GOES_ON = "call_goes_on"  # of one that takes long: how far it has come
CALL_RETURNED = "call_returned"  # not begun: its worker died before
CHUNK_COMMITTED = "chunk_committed"
CALL_DONE = "call_done"
WORKER_GIVEN_UP = "worker_given_up"  # it did not end its call before the deadline
SLOT_QUARANTINED = "slot_quarantined"  # its worker failed calls that others complete; it gets no more
CALL_RETRIED = "call_retried"
CALL_FAILED = "call_failed"
CALL_CUT = "call_cut"
MEMORY_SHORT = "memory_short"
CALLS_DROPPED = "calls_dropped"
TASK_DONE = "task_done"
RUN_FINISHED = "run_finished"
RUN_INTERRUPTED = "run_interrupted"
TASKS_REDONE = "tasks_redone"
RUN_UNLOCKED = "run_unlocked"  # the file system has no locks

Listener = Callable[[dict[str, Any]], None]


def to_all(*listeners: Listener | None) -> Listener:
    """Return one listener that passes each event to all of these."""

    def pass_on(event: dict[str, Any]) -> None:
        for listener in filter(None, listeners):
            listener(event)

    return pass_on


class EventLog:
    """Appends events to a file, or to segments in an object store, and passes each to the listener.

    `check` is called before each event is written; what it raises goes on, with nothing written. `holder` is this writer's number in
    the lock of an object store.
    """

    def __init__(
        self,
        path: Location,
        listener: Listener | None = None,
        *,
        check: Callable[[], None] = lambda: None,
        holder: int = 0,
    ) -> None:
        self._lines: _File | Segments = _File(path) if isinstance(path, Path) else Segments(path, holder)
        self._listener, self._check = listener, check

    def emit(self, event: str, **details: Any) -> None:
        """Append one event with the time, UTC."""
        self._check()
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **redacted(details)}
        self._lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self._listener:
            self._listener(line)

    def cut_off(self, event: str, **details: Any) -> None:
        """Append a last event and publish, from any thread, without the listener: the process ends without unwinding."""
        self._listener = None
        self.emit(event, **details)
        if isinstance(self._lines, Segments):
            self._lines.close()

    def clear(self) -> None:
        """Forget all events. The log is emptied and not removed: killed here, its folder is still a run folder."""
        self._lines.clear()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *exception: object) -> None:
        """Flush to the disk, or the store, and close."""
        self._lines.close()


class _File:
    """Lines appended to a file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_nlink > 1:  # a backup's, which would be appended to as well
            publish(path, lambda own: shutil.copyfile(path, own))
        torn = path.exists() and _is_torn(path)
        # Half a surrogate pair (a file name that is no UTF-8, say) is written as JSON's own escape.
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        if torn:
            self._file.write("\n")

    def write(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()

    def clear(self) -> None:
        self._file.truncate(0)

    def close(self) -> None:
        try:
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


def _is_torn(path: Path) -> bool:
    """Whether the last line of a file does not end."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read_events(path: Location) -> Iterator[dict[str, Any]]:
    """The events of a log, oldest first."""
    for line in log_lines(path):
        if (event := parsed(line)) is not None:
            yield event


def lost_calls(log: Iterable[Mapping[str, Any]]) -> set[str]:
    """Find the calls that lost their worker and have not completed since."""
    lost: set[str] = set()
    for event in log:
        if event["event"] in (CALL_RETRIED, CALL_FAILED) and event.get("failure") == "lost":
            lost.add(event["call"])
        elif event["event"] == CALL_DONE:
            lost.discard(event["call"])
    return lost


def latest_failures(log: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """By task, why its calls failed for good since the latest start."""
    failed: dict[str, str] = {}
    for event in log:
        failed = with_failures(failed, event)
    return failed


def with_failures(failed: dict[str, str], event: Mapping[str, Any]) -> dict[str, str]:
    """By task, why its calls failed for good since the latest start, once this event is counted too."""
    if event["event"] == RUN_STARTED:
        return {}
    if event["event"] == CALL_FAILED:
        return failed | dict.fromkeys(event["tasks"], event["error"])
    if event["event"] == SLOT_QUARANTINED:  # the worker was to blame, and the calls run again
        return {task: error for task, error in failed.items() if task not in event["tasks"]}
    return failed


@dataclass
class LatestStart:
    """The latest start of a log, without its events: its first and last, and the calls that failed for good."""

    first: Mapping[str, Any] = field(default_factory=dict)
    last: Mapping[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def latest_start(log: Iterable[Mapping[str, Any]]) -> LatestStart:
    """Find the latest start of a log; empty if there is none."""
    found = LatestStart()
    for event in log:
        if event["event"] == RUN_STARTED:
            found = LatestStart(event, event)
        elif found.first:
            found.last = event
            if event["event"] == CALL_FAILED:
                found.failures.append(f"{event['call']}: {event['error']}")
            elif event["event"] == SLOT_QUARANTINED:
                again = tuple(f"{call}: " for call in event["calls"])
                found.failures = [failure for failure in found.failures if not failure.startswith(again)]
    return found


def log_lines(path: Location) -> Iterator[str]:
    """The lines of a log, oldest first, those that a kill has torn among them."""
    if isinstance(path, Path):
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                yield from file
        return
    yield from segment_lines(path)


def parsed(line: str) -> dict[str, Any] | None:
    """The event of a line; None for a line that is none."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
