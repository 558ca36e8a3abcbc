"""The ledger: what is not done yet, and which tables can be made as it gets done.

It holds only what is missing, so that it shrinks while a run goes on. No I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from raysweep.engine.graph import Graph, Task


class Ledger:
    """The missing keys of a graph, and per task how many of them it waits for."""

    def __init__(self, graph: Graph, done: Collection[str]) -> None:
        self._missing: dict[str, int] = {}  # keys of a task, by its name
        self._missing_parts: dict[str, int] = {}
        self._tasks_of: dict[str, list[Task]] = {}  # those that a missing key belongs to
        self._needed_by: dict[str, list[Task]] = {}
        for task in graph.tasks:
            missing = [key for key in dict.fromkeys(task.keys) if key not in done]
            for key in missing:
                self._tasks_of.setdefault(key, []).append(task)
            if missing:
                self._missing[task.name] = len(missing)
                self._missing_parts[task.name] = len(missing) - sum(key not in done for key in task.results.values())
                for name in task.needs:
                    self._needed_by.setdefault(name, []).append(task)
        self._total = len(graph.tasks)
        self._to_make = {t.name: t for t in graph.tasks if t.made_from_others and t.name in self._missing}
        self._makeable = {name: task for name, task in self._to_make.items() if self._can_be_made(task)}

    @property
    def n_done(self) -> int:
        """How many tasks are done."""
        return self._total - len(self._missing)

    def is_done(self, name: str) -> bool:
        """Whether nothing is missing of the task of this name."""
        return name not in self._missing

    def to_make(self) -> Counter[str]:
        """How many tasks have tables still to be made that `take_makeable` has not given, by kind."""
        return Counter(task.kind for task in self._to_make.values())

    def lacks(self, key: str) -> bool:
        """Whether this key is wanted and not committed."""
        return key in self._tasks_of

    def waiting(self, keys: Iterable[str]) -> list[str]:
        """The names of the tasks that lack any of these keys."""
        return [task.name for key in keys for task in self._tasks_of.get(key, ())]

    def commit(self, keys: Iterable[str]) -> list[Task]:
        """Take note of committed keys; the tasks that this makes done."""
        return [task for key in keys for task in self._tasks_of.pop(key, ()) if self._finishes(task, key)]

    def drop(self, task: Task, keys: Iterable[str]) -> bool:
        """Take note that a task does not need these keys of its parts after all; whether it is done by that.

        Other tasks that have them still do.
        """
        finished = False
        for key in keys:
            tasks = self._tasks_of.get(key, [])
            own = [other for other in tasks if other.name == task.name]
            if own:
                self._tasks_of[key] = [other for other in tasks if other.name != task.name]
                if not self._tasks_of[key]:
                    del self._tasks_of[key]
                finished |= self._finishes(own[0], key)
        return finished

    def _finishes(self, task: Task, key: str) -> bool:
        """Count a key of a task as no longer missing; whether it was the last."""
        self._missing[task.name] -= 1
        self._missing_parts[task.name] -= key not in task.results.values()
        touched, finished = [task], not self._missing[task.name]
        if finished:
            del self._missing[task.name], self._missing_parts[task.name]
            self._to_make.pop(task.name, None)
            self._makeable.pop(task.name, None)
            touched = self._needed_by.pop(task.name, [])
        self._makeable |= {other.name: other for other in touched if self._can_be_made(other)}
        return finished

    def take_makeable(self) -> list[Task]:
        """The tasks whose tables can be made now from what is committed; each is given once."""
        makeable, self._makeable = list(self._makeable.values()), {}
        for task in makeable:
            del self._to_make[task.name]
        return makeable

    def _can_be_made(self, task: Task) -> bool:
        return (
            task.name in self._to_make
            and not self._missing_parts[task.name]
            and not any(name in self._missing for name in task.needs)
        )


def done_by_kind(graph: Graph, ledger: Ledger) -> dict[str, list[int]]:
    """For each kind of task how many are done, and how many there are."""
    kinds: dict[str, list[int]] = {}
    for task in graph.tasks:
        counts = kinds.setdefault(task.kind, [0, 0])
        counts[0] += ledger.is_done(task.name)
        counts[1] += 1
    return kinds
