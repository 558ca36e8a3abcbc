"""The log of a run: events.jsonl, one JSON object a line, appended and flushed as things happen.

`chunk_committed` appears once for every commit, so the log shows that nothing is computed twice. The names of events are
constants here; readers skip a line that a kill has torn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RUN_STARTED = "run_started"
WORKERS_READY = "workers_ready"
CALL_STARTED = "call_started"
CHUNK_COMMITTED = "chunk_committed"
CALL_DONE = "call_done"
CALL_RETRIED = "call_retried"
CALL_FAILED = "call_failed"
CALL_CUT = "call_cut"
MEMORY_SHORT = "memory_short"
CALLS_DROPPED = "calls_dropped"
TASK_DONE = "task_done"
RUN_FINISHED = "run_finished"
RUN_INTERRUPTED = "run_interrupted"

Listener = Callable[[dict[str, Any]], None]


class EventLog:
    """Appends events to a file and passes each to the listener."""

    def __init__(self, path: Path, listener: Listener | None = None) -> None:
        self._path = path
        self._listener = listener
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        # Half a surrogate pair (a file name that is no UTF-8, say) is written as JSON's own escape.
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        if torn:
            self._file.write("\n")

    def emit(self, event: str, **details: Any) -> None:
        """Append one event with the time, UTC."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **details}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        if self._listener:
            self._listener(line)

    def clear(self) -> None:
        """Forget all events. The file is emptied and not removed: killed here, its folder is still a run folder."""
        self._file.truncate(0)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *exception: object) -> None:
        """Flush to the disk and close."""
        try:
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log, oldest first."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event
