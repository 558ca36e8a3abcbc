"""The graph: tasks as frozen values, with the keys under which their parts are committed.

A task is made of one part a chunk of examples; a task with `results` also makes tables out of all its parts (and of the
tasks it needs) once they are committed. Keys are fingerprints of everything that decides the part's figures, so equal work is found
again whatever it was called. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from raysweep.studies.interventions import Change, change_from_json, to_json

if TYPE_CHECKING:
    from raysweep.store.chunks import Manifest

Kind = Literal[
    "finetune", "adapt", "adaptation", "backdoor", "judge", "substitute", "estimate", "generate", "similarity", "spectrum", "correlate", "verify",
    "stop", "removal",
]  # fmt: skip
_BY_MODELS = (
    "finetune",
    "adapt",
    "backdoor",
    "substitute",
    "estimate",
    "generate",
)  # whose tables come with their parts

STOPPED_AFTER = "chunks"  # where the manifest of a decision to stop has the number of chunks


@dataclass(frozen=True)
class Task:
    """One node: what is measured, on which cell, under which keys.

    `parts` has a key a chunk; `results` maps a table's name to the key of the rows made from all parts; `needs` names tasks.
    `at` tells tasks apart that differ in another way than their window.
    """

    kind: Kind
    model: str
    dataset: str
    parts: tuple[str, ...] = ()
    window: Change | None = None
    results: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    at: str = ""

    @property
    def name(self) -> str:
        """The task's name in the plan, the status and the events, such as `substitute tiny/sums 8-12`."""
        layers = f" {self.at}" if self.at else "" if self.window is None else f" {self.window.text}"
        return f"{self.kind} {self.model}/{self.dataset}{layers}"

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that must be committed for the task to be done."""
        return (*self.parts, *self.results.values())

    @property
    def made_from_others(self) -> bool:
        """Whether its tables are made from what other parts and tasks committed, once these are done.

        Where a sweep stops is decided while its tasks go on, by the driver.
        """
        made = self.kind != "stop" and self.kind not in _BY_MODELS
        return made and bool(self.results) and bool(self.parts or self.needs)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as plan.json holds them."""
        window = None if self.window is None else to_json(self.window)
        return {**asdict(self), "name": self.name, "window": window, "results": dict(self.results)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Task:
        """The task that `to_json` wrote."""
        window = data["window"]
        return cls(
            data["kind"],
            data["model"],
            data["dataset"],
            tuple(data["parts"]),
            None if window is None else change_from_json(window),
            dict(data["results"]),
            tuple(data["needs"]),
            data.get("at", ""),
        )


@dataclass(frozen=True)
class Graph:
    """All tasks of a run, in the order in which reports show them."""

    tasks: tuple[Task, ...]

    def of_kind(self, kind: Kind) -> Iterator[Task]:
        """The tasks of one kind."""
        return (task for task in self.tasks if task.kind == kind)

    def cell(self, kind: Kind, model: str, dataset: str) -> list[Task]:
        """The tasks of one kind on one model and data set."""
        return self._cells.get((kind, model, dataset), [])

    def captured(self, model: str, dataset: str) -> list[Task]:
        """The tasks on one model and data set that are made of its captured states, all with the same parts."""
        return [*self.cell("similarity", model, dataset), *self.cell("spectrum", model, dataset)]

    @cached_property
    def _cells(self) -> dict[tuple[str, str, str], list[Task]]:
        cells: dict[tuple[str, str, str], list[Task]] = {}
        for task in self.tasks:
            cells.setdefault((task.kind, task.model, task.dataset), []).append(task)
        return cells


def shortened(graph: Graph, done: Mapping[str, Manifest]) -> Graph:
    """The graph with each stopped sweep's parts up to where it stopped; `done` has the manifest of each committed key."""
    needed = {
        (task.model, task.dataset): int(done[key].extra[STOPPED_AFTER])
        for task in graph.of_kind("stop")
        for key in task.results.values()
        if key in done
    }
    if not needed:
        return graph
    return Graph(tuple(_cut(task, needed.get((task.model, task.dataset))) for task in graph.tasks))


def _cut(task: Task, chunks: int | None) -> Task:
    if task.kind != "substitute" or chunks is None:
        return task
    return replace(task, parts=task.parts[:chunks])


def beyond(graph: Graph, short: Graph) -> set[str]:
    """The keys of `graph` that no task of the shortened one has."""
    return {key for task in graph.tasks for key in task.keys} - {key for task in short.tasks for key in task.keys}
