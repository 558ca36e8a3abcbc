"""The status of a run: how much of each kind of work is committed, whether a process works on it, and how long it will take.

It is read from the run folder's plan, commits, events and lock; nothing is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raysweep.engine import events
from raysweep.engine.folder import RunFolder
from raysweep.engine.graph import Graph
from raysweep.engine.tally import Tally, duration
from raysweep.store import lock, object_lock
from raysweep.terminal import aligned, wrapped

_FAILURES = 10  # that are listed
_ROWS = 40  # models on data sets that are listed

RUNNING, FINISHED, INTERRUPTED, KILLED = "running", "finished", "interrupted", "killed"
UNKNOWN = "running, or killed"  # the file system has no locks that could tell

_MEANINGS = {
    RUNNING: "",
    FINISHED: "",
    INTERRUPTED: "run it again to resume",
    KILLED: "its process is gone; run it again to resume",
    UNKNOWN: "no lock shows which",
}

# As commands name kinds of work, in the order of a run; a kind that is not here has its own name.
_NAMES = {
    "finetune": "fine-tune",
    "adapt": "adaptation",
    "backdoor": "backdoor",
    "capture": "capture",
    "substitute": "substitution",
    "estimate": "estimate",
    "verify": "verification",
    "stop": "stopping",
    "generate": "generation",
    "similarity": "similarity",
    "spectrum": "spectrum",
    "removal": "removal",
    "correlate": "correlation",
    "adaptation": "comparison",
    "judge": "judge",
}
_CAPTURED = ("similarity", "spectrum")  # kinds whose parts are captured states


def kind_name(kind: str) -> str:
    """Return the name that commands show for a kind of work."""
    return _NAMES.get(kind, kind)


Cells = Mapping[tuple[str, str], Mapping[str, tuple[int, int]]]


@dataclass(frozen=True)
class Standing:
    """The status of a run: its state, tasks by kind (done, all), parts committed, failures of the latest start.

    A part is what is committed at once: a window or a capture on one chunk of examples, or a table. `cells` has parts (done, all) by
    model and data set and kind of work. `state` is `running`, `finished`, `interrupted` (by a signal), `killed` (the process is gone),
    or `running, or killed` on a file system without locks; `holder` is the process that holds the run folder. `trainings` has those
    that are not done, by task: step, of, split, loss, seconds. `active` is when the latest event was logged, `left` the seconds that a
    run still takes; None if not known.
    """

    tasks: Mapping[str, tuple[int, int]]
    parts: tuple[int, int]
    failures: Mapping[str, str]
    state: str
    unfinished: Sequence[str]
    trainings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cells: Cells = field(default_factory=dict)
    holder: str | None = None
    active: datetime | None = None
    left: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "state": self.state,
            "tasks": {kind: {"done": done, "all": n} for kind, (done, n) in self.tasks.items()},
            "parts": {"done": self.parts[0], "all": self.parts[1]},
            "failures": dict(self.failures),
            "unfinished": list(self.unfinished),
            "trainings": {task: dict(known) for task, known in self.trainings.items()},
            "cells": [
                {
                    "model": model,
                    "dataset": dataset,
                    "parts": {kind: {"done": done, "all": n} for kind, (done, n) in kinds.items()},
                }
                for (model, dataset), kinds in self.cells.items()
            ],
            "holder": self.holder,
            "last_activity": None if self.active is None else self.active.isoformat(timespec="seconds"),
            "seconds_left": None if self.left is None else round(self.left, 1),
        }

    def to_text(self, now: datetime | None = None) -> str:
        """Return lines of at most 80 columns: the state, a table of models on data sets, trainings and failures."""
        lines = self._first_lines(now or datetime.now(UTC))
        if self.cells:
            lines += ["", *self._table()]
        if self.trainings:
            lines.append("")
        for task, known in self.trainings.items():
            far = f"step {known['step']} of {known['of']}, {known['split']} loss {known['loss']:.4g}"
            lines += wrapped(f"{task}: {far}")
        if self.failures:
            lines.append("")
        for task, error in list(self.failures.items())[:_FAILURES]:
            lines += wrapped(f"failed: {task}: {next(iter(error.splitlines()), 'no reason given')}")
        if len(self.failures) > _FAILURES:
            lines.append(f"… and {len(self.failures) - _FAILURES} more; --json lists them")
        return "\n".join(lines)

    def _first_lines(self, now: datetime) -> list[str]:
        done, n = self.parts
        text = f"{self.state}: {_percent(done, n)} done ({done:,} of {n:,} parts)"
        if self.state == RUNNING:
            text += ", time left not known yet" if self.left is None else f", about {duration(self.left)} left"
        if self.active is not None:
            ago = max(0.0, (now - self.active).total_seconds())
            text += f", last activity {_ago(ago)} ago"
        notes = [self.holder if self.holder else "", _MEANINGS.get(self.state, "")]
        if self.failures:
            notes.append(f"{len(self.failures)} task{'s' * (len(self.failures) != 1)} failed")
        return [*wrapped(text), *(line for note in notes if note for line in wrapped(note, first="  "))]

    def _table(self) -> list[str]:
        kinds = [kind for kind in _NAMES if any(kind in counts for counts in self.cells.values())]
        kinds += sorted({kind for counts in self.cells.values() for kind in counts} - set(kinds))
        rows = [
            [f"{model} on {dataset}", *(_percent(*counts[kind]) if kind in counts else "" for kind in kinds)]
            for (model, dataset), counts in self.cells.items()
        ]
        rest = max(0, len(rows) - _ROWS)
        header = ["model on data set", *(kind_name(kind) for kind in kinds)]
        lines = aligned([header, *rows[:_ROWS]], right=range(1, len(header)))
        return [*lines, *([f"… and {rest} more; --json lists them"] if rest else [])]


def standing_of(folder: RunFolder) -> Standing:
    """Return the status of the run in the folder."""
    graph, _ = folder.read_plan()
    done = folder.committed()
    tasks: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    unfinished = []
    for task in graph.tasks:
        complete = all(key in done for key in task.keys)
        before = tasks[task.kind]
        tasks[task.kind] = (before[0] + complete, before[1] + 1)
        if not complete:
            unfinished.append(task.name)
    keys = {key for task in graph.tasks for key in task.keys}
    last, active, unlocked = "", None, False
    failures, tally = dict[str, str](), Tally()
    for event in events.read_events(folder.events):
        if event["event"] == events.RUN_STARTED:
            unlocked = False
        unlocked |= event["event"] == events.RUN_UNLOCKED
        if event["event"] in (events.RUN_STARTED, events.RUN_FINISHED, events.RUN_INTERRUPTED):
            last = event["event"]
        failures = events.with_failures(failures, event)
        with suppress(KeyError, TypeError, AttributeError):  # of an older release
            tally.take(event)
        with suppress(KeyError, TypeError, ValueError):
            active = datetime.fromisoformat(event["time"])
    holder, is_known = _holder(folder)
    state = _state(last, holder, is_known=is_known and not unlocked)
    lacking = set(unfinished)
    trainings = {task: known for task, known in folder.trainings().items() if task in lacking}
    return Standing(
        dict(tasks),
        (len(keys & done.keys()), len(keys)),
        failures,
        state,
        unfinished,
        trainings,
        _cells(graph, done),
        holder,
        active,
        tally.left() if state in (RUNNING, UNKNOWN) else None,
    )


def _cells(graph: Graph, done: Mapping[str, Any]) -> Cells:
    """Parts (done, all) by model and data set, and kind of work; captured states are a kind of their own."""
    keys: dict[tuple[str, str], dict[str, set[str]]] = {}
    for task in graph.tasks:
        kinds = keys.setdefault((task.model, task.dataset), {})
        kinds.setdefault("capture" if task.kind in _CAPTURED and task.parts else task.kind, set()).update(task.parts)
        kinds.setdefault(task.kind, set()).update(task.results.values())
    return {
        cell: {kind: (len(own & done.keys()), len(own)) for kind, own in kinds.items() if own}
        for cell, kinds in keys.items()
    }


def _holder(folder: RunFolder) -> tuple[str | None, bool]:
    """The process that holds the run folder, if one does; and whether that is known."""
    if isinstance(folder.lock, Path):
        try:
            return lock.holder(folder.lock), True
        except OSError:  # a lock file that this user may not read
            return None, False
    try:
        found = object_lock.holder(folder.lock)
    except Exception:  # a store in which this user may read and not write has no clock to compare heartbeats with
        return None, False
    return (found.words if found and found.held and not found.stale else None), True


def _state(last: str, holder: str | None, *, is_known: bool) -> str:
    """What a run's last event of its own and its lock say together."""
    if holder is not None:
        return RUNNING
    if last == events.RUN_FINISHED:
        return FINISHED
    if last == events.RUN_INTERRUPTED:
        return INTERRUPTED
    return KILLED if is_known else UNKNOWN


def _percent(done: int, n: int) -> str:
    """The share in whole per cent, rounded down, so that 100 % is complete."""
    return f"{100 * done // n if n else 100} %"


def _ago(seconds: float) -> str:
    return f"{seconds / 86400:.0f} days" if seconds >= 2 * 86400 else duration(seconds)
