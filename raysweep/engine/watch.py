"""What each event of a run does to its metrics: pure reckoning; no Ray, and no clock but the events' own."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from raysweep.engine import events
from raysweep.engine import metrics as m
from raysweep.engine.metrics import Metric
from raysweep.engine.tally import Tally, kind_of

CAUSES = ("raised", "lost", "refused")
_PROGRESS = {events.RUN_STARTED, events.CHUNK_COMMITTED, events.CALL_DONE, events.TASK_DONE}
_QUEUED = {
    events.RUN_STARTED,
    events.CALL_STARTED,
    events.CALL_RETURNED,
    events.CALL_DONE,
    events.CALL_RETRIED,
    events.CALL_FAILED,
    events.CALLS_DROPPED,
    events.CALL_CUT,
}


class Sample(NamedTuple):
    """What to do to a metric: add `value` to a counter, set a gauge to it, observe it in a histogram."""

    metric: Metric
    value: float
    labels: dict[str, str]


class Watch:
    """Turns the events of a run into samples; `space` tells bytes free and in all of its disk, or None.

    What comes before a start's `run_started` is of earlier starts, and is passed over.
    """

    def __init__(self, run: str, space: Callable[[], tuple[int, int] | None]) -> None:
        self._run = {"run": run}
        self._space = space
        self._begun = False
        self._tally = Tally()
        self._tasks: dict[str, list[int]] = {}  # of a kind: done, all
        self._failed: defaultdict[str, set[str]] = defaultdict(set)  # of a kind, names
        self._sums: dict[Metric, float] = {}
        self._causes: Counter[str] = Counter()

    def take(self, event: Mapping[str, Any]) -> list[Sample]:
        """The samples of one event, in order."""
        self._tally.take(event)
        self._begun |= event["event"] == events.RUN_STARTED
        return list(self._samples(event["event"], event)) if self._begun else []

    def disk(self) -> Iterator[Sample]:
        """What the run folder's disk has now; it changes without events, too."""
        if found := self._space():
            yield self._of(m.DISK_FREE, found[0])
            yield self._of(m.DISK, found[1])

    def _samples(self, name: str, event: Mapping[str, Any]) -> Iterator[Sample]:
        if name == events.RUN_STARTED:
            yield from self._started(event)
        elif name in (events.WORKERS_READY, events.WORKERS_CHANGED):
            yield self._of(m.WORKERS, event["workers"])
        elif name == events.CALL_DONE:
            yield from self._done(kind_of(event["call"]), event["measured"])
        elif name in (events.CALL_RETRIED, events.CALL_FAILED):
            yield from self._missed(name, event)
        elif name == events.CHUNK_COMMITTED:
            for what, size in event["bytes"].items():
                yield from self._more(m.WRITTEN, size, what=what)
        elif name == events.TASK_DONE:
            self._tasks[kind_of(event["task"])][0] += 1
            self._failed[kind_of(event["task"])].discard(event["task"])
            yield from self._states()
        elif name == events.SLOT_QUARANTINED:
            for task in event["tasks"]:
                self._failed[kind_of(task)].discard(task)
            yield from self._states()
        elif name == events.RUN_FINISHED:
            self._failed.clear()
            self._fail(event["failed"])
            yield from self._states()
        if name in _PROGRESS:
            yield self._of(m.LAST_PROGRESS, datetime.fromisoformat(event["time"]).timestamp())
        if name in _QUEUED:
            yield from self._queue()
        if name in (events.RUN_FINISHED, events.RUN_INTERRUPTED):
            yield self._of(m.RUNNING, 0)

    def _of(self, metric: Metric, value: float, **labels: str) -> Sample:
        return Sample(metric, value, {**self._run, **labels})

    def _more(self, metric: Metric, value: float, **labels: str) -> Iterator[Sample]:
        """An addition to a counter, which takes no nought."""
        if value > 0:
            yield self._of(metric, value, **labels)

    def _added(self, metric: Metric, value: float) -> Sample:
        """A gauge that holds a sum since the start."""
        self._sums[metric] = self._sums.get(metric, 0) + value
        return self._of(metric, self._sums[metric])

    def _started(self, event: Mapping[str, Any]) -> Iterator[Sample]:
        self._tasks = {kind: list(counts) for kind, counts in event["kinds"].items()}
        yield self._of(m.RUNNING, 1)
        for metric in (m.LOADS, m.EVICTIONS, m.LOADING):
            yield self._added(metric, 0)
        for cause in CAUSES:
            yield self._of(m.FAILED_ATTEMPTS, 0, cause=cause)
        yield from self._states()
        yield from self.disk()

    def _done(self, kind: str, measured: Mapping[str, Any]) -> Iterator[Sample]:
        seconds, worker = measured.get("seconds", 0.0), measured.get("worker", "worker")
        yield self._of(m.CALLS, 1, kind=kind, outcome="done")
        yield self._of(m.CALL_SECONDS, seconds, kind=kind)
        yield from self._more(m.BUSY, seconds, kind=kind, worker=worker)
        yield from self._more(m.TOKENS, measured.get("tokens", 0), kind=kind)
        yield from self._more(m.APPLICATIONS, measured.get("layer_applications", 0), kind=kind)
        yield from self._more(m.TOKEN_APPLICATIONS, measured.get("token_applications", 0), kind=kind)
        yield from self._more(m.READ, measured.get("bytes_read", 0))
        yield from self._more(m.WRITTEN, measured.get("states_on_disk", 0), what="spill")
        yield self._added(m.LOADS, measured.get("loads", 0))
        yield self._added(m.EVICTIONS, measured.get("evictions", 0))
        yield self._added(m.LOADING, measured.get("load_seconds", 0.0))
        for metric, key in ((m.HELD, "held_bytes"), (m.PEAK, "peak_bytes")):
            if key in measured:
                yield self._of(metric, measured[key], worker=worker)
        yield from self.disk()

    def _missed(self, name: str, event: Mapping[str, Any]) -> Iterator[Sample]:
        outcome = "failed" if name == events.CALL_FAILED else "retried"
        yield self._of(m.CALLS, 1, kind=kind_of(event["call"]), outcome=outcome)
        self._causes[event["failure"]] += 1
        yield self._of(m.FAILED_ATTEMPTS, self._causes[event["failure"]], cause=event["failure"])
        if name == events.CALL_FAILED:
            self._fail(event["tasks"])
            yield from self._states()

    def _fail(self, tasks: Iterable[str]) -> None:
        for task in tasks:
            self._failed[kind_of(task)].add(task)

    def _states(self) -> Iterator[Sample]:
        for kind, (done, total) in self._tasks.items():
            failed = len(self._failed[kind])
            for state, n in (("done", done), ("failed", failed), ("left", total - done - failed)):
                yield self._of(m.TASKS, n, kind=kind, state=state)

    def _queue(self) -> Iterator[Sample]:
        tally = self._tally
        for kind in tally.total:
            yield self._of(m.WAITING, tally.waiting(kind), kind=kind)
            yield self._of(m.IN_FLIGHT, tally.in_flight(kind), kind=kind)
        if total := sum(tally.total.values()):
            yield self._of(m.PROGRESS, 1 - sum(map(tally.to_do, tally.total)) / total)
        if (left := tally.left()) is not None:
            yield self._of(m.SECONDS_LEFT, left)
