"""Which commits have the parts of a cell, so that a call says where its worker finds what it reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from raysweep.engine.calls import Call
from raysweep.engine.graph import Graph
from raysweep.store.chunks import Manifest

AnyCall = TypeVar("AnyCall", bound=Call)


class CommitIndex:
    """The names of commits by cell. A commit whose parts several cells share is in each of them."""

    def __init__(self, graph: Graph, done: Mapping[str, Manifest]) -> None:
        self._cells = {task.name: (task.model, task.dataset) for task in graph.tasks}
        self._commits: dict[tuple[str, str], dict[str, None]] = {}
        for task in graph.tasks:
            for name in {done[key].name for key in task.keys if key in done}:
                self.add(name, [task.name])

    def add(self, commit: str, tasks: Iterable[str]) -> None:
        """Take note of a commit with parts of these tasks."""
        for cell in {self._cells[task] for task in tasks if task in self._cells}:
            self._commits.setdefault(cell, {})[commit] = None

    def with_chunks(self, call: AnyCall, needs: Iterable[str] = ()) -> AnyCall:
        """The call, with the names of the commits of its own cell and of the cells of the tasks that it `needs`."""
        cells = dict.fromkeys([(call.model, call.dataset), *(self._cells[task] for task in needs)])
        return replace(call, chunks=tuple(name for cell in cells for name in self._commits.get(cell, ())))
