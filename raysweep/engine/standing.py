"""Where a run stands, from its plan, its commits and its events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raysweep.engine import events
from raysweep.engine.folder import RunFolder

_SHOWN = 10
_STATES = {
    events.RUN_STARTED: "running, or killed",
    events.RUN_FINISHED: "finished",
    events.RUN_INTERRUPTED: "interrupted",
}


@dataclass(frozen=True)
class Standing:
    """Where a run stands: tasks by kind (done, all), parts committed, failures of the last start, and whether it ended.

    `trainings` tells of those that are not done how far they have come, by task: step, of, split, loss, seconds.
    """

    tasks: Mapping[str, tuple[int, int]]
    parts: tuple[int, int]
    failures: Mapping[str, str]
    state: str
    unfinished: Sequence[str]
    trainings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "state": self.state,
            "tasks": {kind: {"done": done, "all": n} for kind, (done, n) in self.tasks.items()},
            "parts": {"done": self.parts[0], "all": self.parts[1]},
            "failures": dict(self.failures),
            "unfinished": list(self.unfinished),
            "trainings": {task: dict(told) for task, told in self.trainings.items()},
        }

    def to_text(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{self.state}; {self.parts[0]} of {self.parts[1]} parts committed"]
        lines += [f"  {kind:<12} {done} of {n} tasks done" for kind, (done, n) in self.tasks.items()]
        lines += [
            f"  {task}: step {told['step']} of {told['of']}, {told['split']} loss {told['loss']:.4g}"
            for task, told in self.trainings.items()
        ]
        lines += [f"  failed: {task}: {error.splitlines()[0]}" for task, error in self.failures.items()]
        lines += [f"  not done: {name}" for name in self.unfinished[:_SHOWN]]
        if len(self.unfinished) > _SHOWN:
            lines.append(f"  … and {len(self.unfinished) - _SHOWN} more")
        return "\n".join(lines)


def standing_of(folder: RunFolder) -> Standing:
    """Where the run in the folder stands."""
    graph, _ = folder.read_plan()
    done = folder.committed()
    tasks: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    unfinished = []
    for task in graph.tasks:
        whole = all(key in done for key in task.keys)
        before = tasks[task.kind]
        tasks[task.kind] = (before[0] + whole, before[1] + 1)
        if not whole:
            unfinished.append(task.name)
    keys = {key for task in graph.tasks for key in task.keys}
    state, failures = "running, or killed", dict[str, str]()
    for event in events.read_events(folder.events):
        state = _STATES.get(event["event"], state)
        failures = events.with_failures(failures, event)
    lacking = set(unfinished)
    trainings = {task: told for task, told in folder.trainings().items() if task in lacking}
    return Standing(dict(tasks), (len(keys & done.keys()), len(keys)), failures, state, unfinished, trainings)
