"""Progress on standard error: a live bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from raysweep.engine import events

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Listens to a run's events; use as a context manager, and as the run's listener."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty()
        self._calls = self._ended = self._failed = 0
        self._started = self._printed = time.monotonic()
        self._bar: Any = None
        self._row: Any = None

    def __enter__(self) -> Progress:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._row = self._bar.add_task("planning", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event of the run."""
        name = event["event"]
        if name == events.RUN_STARTED:
            self._calls, self._ended = event["calls"], 0  # what a killed start left to tell came before
            self._line(
                f"{event['tasks']} tasks, {event['done']} done already; {event['calls']} calls to run", always=True
            )
            if self._bar:
                self._bar.update(self._row, total=self._calls)
        elif name == events.CALL_STARTED and self._bar:
            self._bar.update(self._row, description=event["call"])
        elif name == events.CHUNK_COMMITTED:
            self._ended += 1
            if self._bar:
                self._bar.update(self._row, completed=self._ended, total=max(self._calls, self._ended))
            self._line(f"{self._ended} commits, {self._failed} failures: {event['call']}")
        elif name == events.CALL_FAILED:
            self._failed += 1
            self._line(f"failed: {event['call']}: {event['error'].splitlines()[0]}", always=True)

    def _line(self, text: str, always: bool = False) -> None:
        now = time.monotonic()
        if self._quiet or (self._live and not always) or (not always and now - self._printed < _SECONDS_BETWEEN_LINES):
            return
        self._printed = now
        line = f"[{now - self._started:6.1f} s] {text}"
        if self._bar:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)
